//! Developer commands: `cargo xtask demo | test | lint | tidy | bench | power-cut | tools`. Depends on no
//! other crate of the workspace, so that it builds in seconds and can check the others.

mod bench;
mod debian;
mod demo;
mod lint;
mod power_cut;
#[cfg(test)]
mod protoc;
mod report;
mod run;
mod test;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  demo [--input FILE]     build, then publish a real text through all four send modes, kill the broker in the
                          middle, and prove line by line that every acknowledged message arrived
  test [FILTER..]         everything: test tools, all tests, doc tests, examples (arguments go to `cargo test`)
  lint                    rustfmt, clippy and rustdoc, warnings are errors
  tidy                    the rules no compiler checks: crate arrows, pure files, file sizes (also part of `test`)
  tools                   fetch what tests need (etcd, python3, postgresql) into target/tools, unless it is on PATH; needs no root
  power-cut [--cuts N] [--seconds S] [--seed X] [--ignore-syncs]
                          a broker under load on an ext4 whose power is cut at N random moments; what it acknowledged must be
                          there each time (as root; with --ignore-syncs losses are expected: the check of the check)
  bench rpc|store|mq [--output table|json] [--quick] [..]
                          measure, beside peers and the bare machine, in one run

examples:
  cargo xtask demo
  cargo xtask test
  cargo xtask test -p rpc-core frame
  cargo xtask bench rpc --output json
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("--help", [].as_slice()),
    };
    let outcome = match command {
        "demo" => demo::demo(rest),
        "test" => test::test(rest),
        "lint" => lint::lint(rest),
        "tidy" => tidy::tidy(rest),
        "tools" => tools::tools(rest),
        "bench" => bench::bench(rest),
        "power-cut" => power_cut::power_cut(rest),
        "--help" | "-h" | "help" => {
            report::text(HELP);
            Ok(())
        }
        other => Err(run::Failure::usage(format!(
            "unknown command `{other}`\n\n{HELP}"
        ))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::failure(&failure.message);
            ExitCode::from(failure.exit)
        }
    }
}
