//! ARCHITECTURE.md stays true: every path it names exists, and every outside crate that we depend on has its
//! line.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::run::Outcome;
use crate::workspace::Member;

const PAGE: &str = "ARCHITECTURE.md";

/// Every violation.
pub(super) fn check(root: &Path, members: &[Member]) -> Outcome<Vec<String>> {
    let page = fs::read_to_string(root.join(PAGE))?;
    let mut breaches: Vec<String> = paths(&page)
        .into_iter()
        .filter(|path| !root.join(path).exists())
        .map(|path| format!("{PAGE}: `{path}` does not exist; name the file that does this now"))
        .collect();
    let used: BTreeSet<&str> = members
        .iter()
        .flat_map(|member| &member.outside)
        .map(String::as_str)
        .collect();
    let named = words(&page);
    // One crate for each platform, one line for all of them.
    let family = |name: &str| named.iter().any(|word| word.len() > 12 && name.starts_with(word));
    let unnamed = used
        .into_iter()
        .filter(|name| !named.contains(name) && !family(name));
    breaches.extend(unnamed.map(|name| {
        format!("{PAGE}: the dependency `{name}` has no line; say why it is there, and instead of what")
    }));
    Ok(breaches)
}

/// The texts in backticks that look like a file or folder of a crate.
fn paths(page: &str) -> BTreeSet<&str> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted
        .filter(|text| text.contains("/src") && !text.contains([' ', '*', '<']))
        .collect()
}

fn words(page: &str) -> BTreeSet<&str> {
    page.split(|character: char| !(character.is_ascii_alphanumeric() || "_-".contains(character)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_crates_are_looked_for() {
        let page =
            "see `rpc-core/src/call.rs` and `docs`, `a b/src`, `/hc-rpc/<group>` and `mq-broker/src/state`";
        assert_eq!(
            paths(page).into_iter().collect::<Vec<_>>(),
            ["mq-broker/src/state", "rpc-core/src/call.rs"]
        );
    }

    #[test]
    fn names_with_dashes_are_one_word() {
        assert!(words("| tokio, tokio-util | x |").contains("tokio-util"));
    }
}
