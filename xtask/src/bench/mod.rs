//! `cargo xtask bench rpc|store|mq`: measures ours beside peers and the bare machine, in one run on one machine. A table
//! for people, or one JSON object per line on stdout.

mod child;
mod folder;
mod mq;
mod rpc;
mod store;
mod table;

use serde_json::Value;

use crate::report;
use crate::run::{Failure, Outcome};

const HELP: &str = "\
cargo xtask bench rpc|store|mq [--output table|json] [--quick]

  rpc     echo of 128 B, 4 KiB and 64 KiB over ours, bare tokio, tonic and tarpc, client and server in
          separate processes, set-ups D (tokio's default runtime for all) and C (one thread each)
  store   what the bare disk does: sequential write and fdatasync rate
  mq      `mq bench produce|consume|latency` against a fresh broker, beside the bare disk

  --output json   one object per line on stdout, with the field names of the tables
  --quick         fewer cells, shorter: to see that it works, not to quote";

/// How a bench is run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    json: bool,
    quick: bool,
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
    match name.as_str() {
        "rpc" => rpc::run(options),
        "store" => store::run(options),
        "mq" => mq::run(options),
        other => Err(Failure::usage(format!("unknown bench `{other}`\n\n{HELP}"))),
    }
}

fn options(arguments: &[String]) -> Outcome<Options> {
    let mut options = Options {
        json: false,
        quick: false,
    };
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--quick" => options.quick = true,
            "--output" => options.json = form(words.next().unwrap_or_default())?,
            other => match other.strip_prefix("--output=") {
                Some(value) => options.json = form(value)?,
                None => return Err(Failure::usage(format!("unknown argument `{other}`\n\n{HELP}"))),
            },
        }
    }
    Ok(options)
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
    /// A finished measurement: a JSON line at once, so that a run that is broken off has shown what it has.
    pub(super) fn emit(self, row: &Value) {
        if self.json {
            report::text(&row.to_string());
        }
    }

    /// All measurements as a table for people.
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
    }
}
