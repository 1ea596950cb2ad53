//! The benches end, and give all promised figures.

use crate::support::{Broker, mq};

#[test]
fn benches_give_their_figures() {
    let broker = Broker::start();
    let at = broker.listen.as_str();
    mq(at, &["topic", "create", "load", "--queues", "2"]).ok();
    let runs = [
        &["bench", "produce", "load", "--messages", "5000", "--size", "100"][..],
        &["bench", "consume", "load", "--messages", "5000"],
        &[
            "bench",
            "produce",
            "load",
            "--messages",
            "500",
            "--batch-records",
            "1",
            "--in-flight",
            "64",
        ],
        &[
            "bench",
            "produce",
            "load",
            "--messages",
            "500",
            "--size",
            "100",
            "--keys",
            "10",
        ],
        &[
            "bench",
            "latency",
            "load",
            "--rate",
            "500",
            "--duration",
            "1s",
            "--size",
            "64",
        ],
    ];
    for run in runs {
        let arguments: Vec<&str> = ["--output", "json"].iter().chain(run).copied().collect();
        let figures = mq(at, &arguments).ok().json();
        assert_eq!(figures.len(), 1, "{run:?}");
        for name in ["msgs_per_s", "mb_per_s", "p50_us", "p99_us", "p999_us", "errors"] {
            assert!(figures[0][name].is_number(), "{run:?} has no {name}: {figures:?}");
        }
        assert!(figures[0]["msgs_per_s"].as_f64() > Some(0.0), "{figures:?}");
        assert_eq!(figures[0]["errors"], 0);
    }
}

#[test]
fn a_backlog_that_is_too_short_is_said_so() {
    let broker = Broker::start();
    mq(&broker.listen, &["topic", "create", "load", "--queues", "1"]).ok();
    mq(
        &broker.listen,
        &["bench", "produce", "load", "--messages", "10", "--size", "10"],
    )
    .ok();
    mq(&broker.listen, &["bench", "consume", "load", "--messages", "11"]).fails(1, "10 of 11");
}
