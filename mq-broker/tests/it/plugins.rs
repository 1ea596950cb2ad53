//! Which plug-ins the binary has.

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
    insta(&names);
}

fn insta(names: &[String]) {
    let expected = ["x"];
    assert_eq!(names, expected);
}
