//! The allowed dependencies between the crates. They point down only; the broker and its client never depend
//! on each other.

use std::fs;

use crate::run::Outcome;
use crate::workspace::Member;

/// A member, the crates that its code may use, and those that its tests may use in addition.
const ARROWS: &[(&str, &[&str], &[&str])] = &[
    ("rpc-core-macros", &[], &["rpc-core"]),
    // Its tests name it once more, with all its features.
    ("rpc-core", &["rpc-core-macros"], &["rpc-core"]),
    ("rpc-registry", &["rpc-core"], &[]),
    ("rpc-loadbalance", &["rpc-core"], &[]),
    ("mq-common", &["rpc-core"], &[]),
    ("mq-broker", &["mq-common", "rpc-core", "rpc-registry"], &[]),
    ("mq-client-macros", &[], &["mq-client"]),
    (
        "mq-client",
        &[
            "mq-client-macros",
            "mq-common",
            "rpc-core",
            "rpc-registry",
            "rpc-loadbalance",
        ],
        &[],
    ),
    ("own-plugins", &["rpc-core"], &[]),
    (
        "examples",
        &[
            "mq-client",
            "mq-broker",
            "mq-common",
            "rpc-core",
            "rpc-registry",
            "rpc-loadbalance",
            "own-plugins",
        ],
        &[],
    ),
    ("xtask", &[], &[]),
];

/// Every dependency that is not in the table.
pub(super) fn check(members: &[Member]) -> Vec<String> {
    let mut breaches = Vec::new();
    for member in members {
        let Some((_, code, tests)) = ARROWS.iter().find(|(name, ..)| *name == member.name) else {
            breaches.push(format!(
                "{}: a new crate; add it to xtask/src/tidy/arrows.rs and ARCHITECTURE.md",
                member.name
            ));
            continue;
        };
        for (to, only_tests) in &member.arrows {
            let allowed = code.contains(&to.as_str()) || (*only_tests && tests.contains(&to.as_str()));
            if !allowed {
                breaches.push(format!(
                    "{} -> {to}: this arrow is not in ARCHITECTURE.md; see its crate table",
                    member.name
                ));
            }
        }
    }
    breaches
}

/// Every member must take its lints from the workspace.
pub(super) fn check_manifests(members: &[Member]) -> Outcome<Vec<String>> {
    let mut breaches = Vec::new();
    for member in members {
        let manifest = fs::read_to_string(&member.manifest)?;
        if !manifest.contains("[lints]\nworkspace = true") {
            breaches.push(format!(
                "{}: lacks `[lints] workspace = true`",
                member.manifest.display()
            ));
        }
    }
    Ok(breaches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, arrows: &[(&str, bool)]) -> Member {
        let arrows = arrows
            .iter()
            .map(|(to, only_tests)| ((*to).to_owned(), *only_tests))
            .collect();
        Member {
            name: name.to_owned(),
            manifest: "Cargo.toml".into(),
            arrows,
            outside: Vec::new(),
        }
    }

    #[test]
    fn an_arrow_upwards_is_a_breach() {
        assert_eq!(check(&[member("rpc-core", &[("mq-common", false)])]).len(), 1);
        assert_eq!(check(&[member("mq-broker", &[("mq-client", false)])]).len(), 1);
        assert!(check(&[member("mq-client", &[("rpc-core", false)])]).is_empty());
    }

    #[test]
    fn an_arrow_for_tests_is_a_breach_in_code() {
        assert!(check(&[member("rpc-core-macros", &[("rpc-core", true)])]).is_empty());
        assert_eq!(
            check(&[member("rpc-core-macros", &[("rpc-core", false)])]).len(),
            1
        );
    }

    /// Bytes from peers and disks contain numbers of all widths, so every crate uses these lints.
    #[test]
    fn p24_silent_integer_casts_are_denied() {
        let manifest = fs::read_to_string(crate::workspace::root().join("Cargo.toml")).unwrap();
        for lint in ["cast_possible_truncation", "cast_possible_wrap", "cast_sign_loss"] {
            assert!(manifest.contains(&format!("{lint} = \"deny\"")), "{lint}");
        }
    }

    #[test]
    fn an_unknown_crate_is_a_breach() {
        assert_eq!(check(&[member("mq-extra", &[])]).len(), 1);
    }
}
