//! Statistics as text, in the format that Prometheus reads (text format 0.0.4; also a valid part of an
//! OpenMetrics page).

use std::fmt::{self, Write};

use super::MethodMetrics;
use crate::filter::Side;

/// All statistics as text: `rpc_calls_total` by outcome (`ok`, the name of an error's code, `abandoned`),
/// `rpc_calls_in_flight` and the histogram `rpc_call_duration_seconds`.
#[must_use]
pub fn prometheus(all: &[MethodMetrics]) -> String {
    let mut text = String::new();
    let written = write_all(&mut text, all);
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
    text
}

fn write_all(out: &mut String, all: &[MethodMetrics]) -> fmt::Result {
    out.push_str("# HELP rpc_calls_total Completed calls, by outcome.\n# TYPE rpc_calls_total counter\n");
    for metrics in all {
        let labels = Labels(metrics);
        let errors = metrics.errors.iter().map(|(code, calls)| (code.as_str(), *calls));
        let outcomes = [("ok", metrics.ok), ("abandoned", metrics.abandoned)];
        for (outcome, calls) in outcomes.into_iter().chain(errors) {
            writeln!(out, "rpc_calls_total{{{labels},outcome=\"{outcome}\"}} {calls}")?;
        }
    }
    out.push_str("# HELP rpc_calls_in_flight Calls running now.\n# TYPE rpc_calls_in_flight gauge\n");
    for metrics in all {
        writeln!(
            out,
            "rpc_calls_in_flight{{{}}} {}",
            Labels(metrics),
            metrics.in_flight
        )?;
    }
    out.push_str(
        "# HELP rpc_call_duration_seconds Duration of calls with an answer.\n\
         # TYPE rpc_call_duration_seconds histogram\n",
    );
    for metrics in all {
        let labels = Labels(metrics);
        let mut calls = 0;
        for bucket in &metrics.latency.buckets {
            calls += bucket.calls;
            let end = bucket.end_us.map_or_else(|| "+Inf".to_owned(), seconds);
            writeln!(
                out,
                "rpc_call_duration_seconds_bucket{{{labels},le=\"{end}\"}} {calls}"
            )?;
        }
        let sum = seconds(metrics.latency.sum_us);
        writeln!(out, "rpc_call_duration_seconds_sum{{{labels}}} {sum}")?;
        writeln!(out, "rpc_call_duration_seconds_count{{{labels}}} {calls}")?;
    }
    Ok(())
}

/// Exact, unlike a division of floats.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

struct Labels<'a>(&'a MethodMetrics);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.0.side {
            Side::Invoker => "invoker",
            Side::Provider => "provider",
        };
        write!(f, "side=\"{side}\"")?;
        for (name, value) in [("service", &self.0.service), ("method", &self.0.method)] {
            write!(f, ",{name}=\"")?;
            for c in value.chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    '"' => f.write_str("\\\"")?,
                    '\n' => f.write_str("\\n")?,
                    c => f.write_char(c)?,
                }
            }
            f.write_char('"')?;
        }
        Ok(())
    }
}
