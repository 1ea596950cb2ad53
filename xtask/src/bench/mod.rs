//! `cargo xtask bench rpc|store|mq`: measures ours, peers and the bare machine in one run on one machine.
//! Prints a table for people, or one JSON object per line on stdout.

mod child;
mod detail;
mod folder;
mod mq;
mod rpc;
mod startup;
mod store;
mod strain;
mod table;

use std::time::Duration;

use serde_json::Value;

use crate::report;
use crate::run::{Failure, Outcome};

const HELP: &str = "\
cargo xtask bench rpc|store|mq [--output table|json] [--quick]
cargo xtask bench rpc --idle CONNECTIONS | --soak DURATION

  rpc     echo of 128 B, 4 KiB and 64 KiB over ours, bare tokio, tonic, tarpc and capnp-rpc, client and server in
          separate processes, set-ups D (tokio's default runtime for all) and C (one thread each)
  store   the journal and the store in one process next to the bare disk: appends over 1 and 10,000 queues, reads from
          memory, page cache and disk; then how long a broker takes to start with a large journal, after a clean stop and
          after a kill
  mq      `mq bench produce|consume|latency` against a fresh broker, next to the bare disk and a bare socket: full
          batches, 1,024 awaited sends at once (`sends`: the producer batches them; `unbatched`: a batch per message),
          one send at a time, 10,000 queues, and producing while old messages are read from the disk

  --output json   one object per line on stdout, with the field names of the tables
  --quick         fewer cells, shorter: to see that it works, not for figures to quote
  --detail        (rpc) each cell once more under strace, for the system calls and allocations of a call
  --idle N        (rpc) memory of a provider with N idle connections, instead of the cells
  --soak 10m      (rpc) calls with timeouts, cancellations and dropped connections for this long, and the memory
                  of both processes at its beginning and end, instead of the cells";

/// The options of a bench.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    json: bool,
    quick: bool,
    detail: bool,
    idle: Option<u32>,
    soak: Option<Duration>,
}

/// Runs one of the benches.
pub(crate) fn bench(arguments: &[String]) -> Outcome {
    let Some((name, rest)) = arguments.split_first() else {
        return Err(Failure::usage(format!("which bench?\n\n{HELP}")));
    };
    if name == "--help" || name == "-h" {
        report::text(HELP);
        return Ok(());
    }
    let options = options(rest)?;
    let only_rpc = options.detail || options.idle.is_some() || options.soak.is_some();
    if only_rpc && name != "rpc" {
        return Err(Failure::usage(format!(
            "--detail, --idle and --soak belong to `bench rpc`\n\n{HELP}"
        )));
    }
    match name.as_str() {
        "rpc" => match (options.idle, options.soak) {
            (None, None) => rpc::run(options),
            (Some(connections), None) => strain::idle(options, connections),
            (None, Some(time)) => strain::soak(options, time),
            (Some(_), Some(_)) => Err(Failure::usage("--idle or --soak, not both")),
        },
        "store" => store::run(options),
        "mq" => mq::run(options),
        other => Err(Failure::usage(format!("unknown bench `{other}`\n\n{HELP}"))),
    }
}

fn options(arguments: &[String]) -> Outcome<Options> {
    let mut options = Options {
        json: false,
        quick: false,
        detail: false,
        idle: None,
        soak: None,
    };
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--quick" => options.quick = true,
            "--detail" => options.detail = true,
            "--idle" => options.idle = Some(connections(words.next().unwrap_or_default())?),
            "--soak" => options.soak = Some(duration(words.next().unwrap_or_default())?),
            "--output" => options.json = form(words.next().unwrap_or_default())?,
            other => match other.strip_prefix("--output=") {
                Some(value) => options.json = form(value)?,
                None => return Err(Failure::usage(format!("unknown argument `{other}`\n\n{HELP}"))),
            },
        }
    }
    Ok(options)
}

fn connections(word: &str) -> Outcome<u32> {
    let number = word.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Failure::usage(format!("--idle takes a number of connections, not `{word}`")))
}

/// Parses `90s` or `10m`.
fn duration(word: &str) -> Outcome<Duration> {
    let seconds = match (word.strip_suffix('s'), word.strip_suffix('m')) {
        (Some(seconds), _) => seconds.parse::<u64>().ok(),
        (None, Some(minutes)) => minutes
            .parse::<u64>()
            .ok()
            .and_then(|minutes| minutes.checked_mul(60)),
        (None, None) => None,
    };
    match seconds {
        Some(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err(Failure::usage(format!(
            "--soak takes a time like 90s or 10m, not `{word}`"
        ))),
    }
}

fn form(word: &str) -> Outcome<bool> {
    match word {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(Failure::usage(format!(
            "--output takes `table` or `json`, not `{other}`"
        ))),
    }
}

impl Options {
    /// Prints a finished measurement as a JSON line at once, so that an interrupted run has printed its
    /// results so far.
    pub(super) fn emit(self, row: &Value) {
        if self.json {
            report::text(&row.to_string());
        }
    }

    /// Prints all measurements as a table for people.
    pub(super) fn table(self, title: &str, headers: &[&str], rows: &[Vec<String>]) {
        if !self.json {
            report::text(&table::render(title, headers, rows));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_are_understood_and_others_refused() {
        assert!(options(&words("--output json")).is_ok_and(|options| options.json && !options.quick));
        assert!(
            options(&words("--quick --output=table")).is_ok_and(|options| !options.json && options.quick)
        );
        assert!(options(&words("--output yaml")).is_err_and(|failure| failure.exit == 2));
        assert!(options(&words("--fast")).is_err_and(|failure| failure.exit == 2));
        assert!(options(&words("--idle 10000")).is_ok_and(|options| options.idle == Some(10_000)));
        assert!(options(&words("--idle many")).is_err_and(|failure| failure.exit == 2));
        assert!(
            options(&words("--soak 10m")).is_ok_and(|options| options.soak == Some(Duration::from_secs(600)))
        );
        assert!(
            options(&words("--soak 90s")).is_ok_and(|options| options.soak == Some(Duration::from_secs(90)))
        );
        for wrong in ["--soak", "--soak 0s", "--soak 5", "--soak m"] {
            assert!(
                options(&words(wrong)).is_err_and(|failure| failure.exit == 2),
                "{wrong}"
            );
        }
        assert!(bench(&words("store --detail")).is_err_and(|failure| failure.exit == 2));
    }
}
