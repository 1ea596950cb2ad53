//! Rules about single source files: a doc at the top, a bounded size, pure files without a clock, sockets and
//! files only where they belong, and no names in rpc-core that it must not know.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::Outcome;

/// The most lines of a file.
const LINES_MAX: usize = 500;

/// Files that may be longer, with the reason.
const LONGER: &[(&str, &str)] = &[];

/// A rule: below these paths (but not those), outside tests and comments, none of these texts.
struct Rule {
    name: &'static str,
    below: &'static [&'static str],
    except: &'static [&'static str],
    banned: &'static [&'static str],
    instead: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        name: "pure",
        below: &[
            "mq-common/src/batch",
            "mq-broker/src/state",
            "mq-broker/src/volatile",
            "rpc-core/src/frame",
            "rpc-core/src/envelope",
        ],
        except: &[],
        banned: &[
            "tokio",
            "std::fs",
            "std::net",
            "std::thread",
            "std::env",
            "Instant::now",
            "SystemTime::now",
            "spawn",
            "async fn",
            "fastrand::u",
            "fastrand::i",
            "fastrand::bool",
            "Rng::new",
            "static mut",
            "thread_local!",
        ],
        instead: "take time, randomness and bytes as arguments",
    },
    Rule {
        name: "no I/O in mq-common",
        below: &["mq-common/src"],
        except: &[],
        banned: &[
            "std::fs",
            "std::net::Tcp",
            "tokio::net",
            "tokio::fs",
            "Instant::now",
            "SystemTime::now",
        ],
        instead: "mq-common says what a message is; I/O belongs to the broker and the client",
    },
    Rule {
        name: "data files",
        below: &["mq-broker/src"],
        except: &[
            "mq-broker/src/store",
            "mq-broker/src/checkpoint",
            "mq-broker/src/config",
            "mq-broker/src/cli.rs",
            "mq-broker/src/telemetry",
            "mq-broker/src/testing",
        ],
        banned: &[
            "std::fs",
            "tokio::fs",
            "File::open",
            "File::create",
            "OpenOptions",
            "rustix::fs",
        ],
        instead: "open data files through store's disk seam",
    },
    Rule {
        name: "files of tokio",
        below: &["mq-common/src", "mq-broker/src", "mq-client/src"],
        except: &[],
        banned: &["tokio::fs"],
        instead: "a file of tokio that is dropped may still write: use std's, where blocking is allowed",
    },
    Rule {
        name: "sockets",
        below: &["rpc-core/src"],
        except: &["rpc-core/src/transport"],
        banned: &[
            "TcpStream",
            "TcpListener",
            "TcpSocket",
            "UnixStream",
            "UnixListener",
            "UdpSocket",
            "socket2",
        ],
        instead: "open sockets in transport/",
    },
    Rule {
        name: "names that rpc-core must not know",
        below: &["rpc-core/src", "rpc-core/macros/src"],
        except: &[],
        banned: &[
            "etcd",
            "redis",
            "zookeeper",
            "consul",
            "round_robin",
            "RoundRobin",
            "consistent_hash",
            "ConsistentHash",
            "least_active",
            "p2c",
            "Topic",
            "topic",
            "Broker",
            "broker",
            "mq_common",
            "rpc_registry",
            "rpc_loadbalance",
        ],
        instead: "rpc-core holds traits; implementations and messaging lie above it",
    },
];

/// Every violation in every `.rs` file below `root`.
pub(super) fn check(root: &Path) -> Outcome<Vec<String>> {
    let mut breaches = Vec::new();
    for file in rust_files(root)? {
        let text = fs::read_to_string(&file)?;
        let relative = file
            .strip_prefix(root)
            .unwrap_or(&file)
            .to_string_lossy()
            .replace('\\', "/");
        breaches.extend(check_file(&relative, &text));
    }
    Ok(breaches)
}

fn check_file(path: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let first = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    if !first.starts_with("//!") {
        breaches.push(format!(
            "{path}: must open with a `//!` doc that says what the file is and is not"
        ));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX && !LONGER.iter().any(|(name, _)| *name == path) {
        breaches.push(format!(
            "{path}: {lines} lines, at most {LINES_MAX}; split it by what its parts are"
        ));
    }
    if is_test(path) {
        return breaches;
    }
    for rule in RULES.iter().filter(|rule| rule.covers(path)) {
        for (number, line) in code_lines(text) {
            if let Some(word) = rule.banned.iter().find(|word| contains_word(line, word)) {
                breaches.push(format!(
                    "{path}:{number}: `{word}` breaks the rule \"{}\": {}",
                    rule.name, rule.instead
                ));
            }
        }
    }
    breaches
}

impl Rule {
    fn covers(&self, path: &str) -> bool {
        let under = |folder: &&str| {
            path.strip_prefix(*folder)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
        };
        self.below.iter().any(under) && !self.except.iter().any(under)
    }
}

/// Whole test files: below a `tests` folder, or called `tests.rs` or `*_tests.rs`.
fn is_test(path: &str) -> bool {
    path.split('/')
        .any(|part| part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs"))
}

/// Numbered lines of code, without comments and without everything after the first `#[cfg(test)]` module
/// (tests are at the end of a file).
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines: Vec<&str> = text.lines().collect();
    let tests = (0..lines.len()).find(|&index| {
        lines[index].trim() == "#[cfg(test)]"
            && lines[index + 1..]
                .iter()
                .take(3)
                .any(|line| line.starts_with("mod ") && line.ends_with('{'))
    });
    let end = tests.unwrap_or(lines.len());
    lines.into_iter().take(end).enumerate().map(|(index, line)| {
        let code = line.find("//").map_or(line, |at| {
            if line[..at].contains('"') {
                line
            } else {
                &line[..at]
            }
        });
        (index + 1, code)
    })
}

/// Whether `line` contains `word`, not as the end of a longer word.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|character| character.is_alphanumeric() || character == '_')
    })
}

pub(super) fn rust_files(root: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(path: &str, text: &str) -> usize {
        check_file(path, text).len()
    }

    #[test]
    fn a_file_without_a_doc_is_a_breach() {
        assert_eq!(breaches("mq-client/src/a.rs", "fn a() {}\n"), 1);
        assert_eq!(breaches("mq-client/src/a.rs", "//! What it is.\nfn a() {}\n"), 0);
    }

    #[test]
    fn a_long_file_is_a_breach() {
        let text = format!("//! What it is.\n{}", "\n".repeat(LINES_MAX));
        assert_eq!(breaches("mq-client/src/a.rs", &text), 1);
    }

    #[test]
    fn a_clock_in_a_pure_file_is_a_breach_but_not_in_its_tests() {
        assert_eq!(
            breaches("rpc-core/src/frame/a.rs", "//! F.\nlet now = Instant::now();\n"),
            1
        );
        assert_eq!(
            breaches("rpc-core/src/frame.rs", "//! F.\nlet now = Instant::now();\n"),
            1
        );
        assert_eq!(
            breaches("rpc-core/src/frames.rs", "//! F.\nlet now = Instant::now();\n"),
            0
        );
        assert_eq!(breaches("rpc-core/src/frame/a.rs", "//! F.\n// not tokio\n"), 0);
        let tests = "//! F.\n#[cfg(test)]\nmod tests {\n    fn now() { Instant::now(); }\n}\n";
        assert_eq!(breaches("rpc-core/src/frame/a.rs", tests), 0);
    }

    #[test]
    fn sockets_and_files_stay_where_they_belong() {
        assert_eq!(
            breaches(
                "rpc-core/src/invoker/a.rs",
                "//! F.\nuse tokio::net::TcpStream;\n"
            ),
            1
        );
        assert_eq!(
            breaches(
                "rpc-core/src/transport/tcp.rs",
                "//! F.\nuse tokio::net::TcpStream;\n"
            ),
            0
        );
        assert_eq!(breaches("mq-broker/src/core/a.rs", "//! F.\nuse std::fs;\n"), 1);
        assert_eq!(
            breaches("mq-broker/src/store/disk.rs", "//! F.\nuse std::fs;\n"),
            0
        );
    }

    #[test]
    fn s20_tokio_files_are_banned() {
        let uses = "//! F.\nuse tokio::fs::File;\n";
        for path in [
            "mq-broker/src/store/a.rs",
            "mq-broker/src/checkpoint/a.rs",
            "mq-client/src/a.rs",
        ] {
            assert_eq!(breaches(path, uses), 1, "{path}");
        }
    }

    #[test]
    fn rpc_core_names_no_topic() {
        assert_eq!(breaches("rpc-core/src/a.rs", "//! F.\nstruct Topic;\n"), 1);
        assert_eq!(breaches("mq-common/src/a.rs", "//! F.\nstruct Topic;\n"), 0);
    }
}
