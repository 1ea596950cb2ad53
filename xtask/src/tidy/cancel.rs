//! Every public `async fn` of the messaging libraries documents what cancelling it does.

use std::fs;
use std::path::Path;

use super::sources::rust_files;
use crate::run::Outcome;

/// Folders whose public async functions are checked. (Programs below them have no public functions.)
const CHECKED: [&str; 2] = ["mq-client/src", "mq-common/src"];

/// Every violation.
pub(super) fn check(root: &Path) -> Outcome<Vec<String>> {
    let mut breaches = Vec::new();
    for folder in CHECKED {
        for file in rust_files(&root.join(folder))? {
            let text = fs::read_to_string(&file)?;
            let path = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            breaches.extend(undocumented(&text).map(|name| {
                format!("{path}: `{name}` is a public async fn; add `# Cancel safety` to its documentation")
            }));
        }
    }
    Ok(breaches)
}

/// The names of public async functions whose documentation has no such section.
fn undocumented(text: &str) -> impl Iterator<Item = &str> {
    let mut is_documented = false;
    text.lines().filter_map(move |line| {
        let line = line.trim_start();
        if let Some(name) = line.strip_prefix("pub async fn ") {
            let undocumented = !is_documented;
            is_documented = false;
            return undocumented.then(|| name.split(['(', '<']).next().unwrap_or(name));
        }
        if line.starts_with("/// # Cancel safety") {
            is_documented = true;
        } else if line.starts_with('}') || line.is_empty() {
            is_documented = false;
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_async_functions_without_the_section_are_named() {
        let text = "\
/// Sends.
///
/// # Cancel safety
/// Dropping the future has no effect.
#[must_use]
pub async fn send(&self) {}

/// Stops.
pub async fn stop<F>(self) {}

async fn private() {}
pub async fn bare() {}
";
        assert_eq!(undocumented(text).collect::<Vec<_>>(), ["stop", "bare"]);
    }
}
