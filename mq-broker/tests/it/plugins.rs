//! Which plug-ins the binary has: rustc does not link a crate that nobody names.

use std::process::Command;

#[test]
fn binary_links_these_plugins() {
    let output = Command::new(env!("CARGO_BIN_EXE_mq-broker"))
        .arg("plugins")
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let names: Vec<String> = text
        .lines()
        .map(|line| line.split('\t').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let expected = [
        "compressor lz4",
        "compressor zstd",
        "fault tolerance failback",
        "fault tolerance failfast",
        "fault tolerance failover",
        "fault tolerance failsafe",
        "fault tolerance forking",
        "fault tolerance hedging",
        "filter access_log",
        "filter auth_token",
        "filter concurrency_limit",
        "filter metrics",
        "filter rate_limit",
        "registry etcd",
        "registry local",
        "registry mq",
        "serializer json",
        "serializer msgpack",
        "serializer msgpack-named",
        "serializer raw",
    ];
    assert_eq!(names, expected);
    assert!(text.lines().all(|line| line.contains(".rs:")), "{text}");
}
