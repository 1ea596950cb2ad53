//! `cargo xtask tidy`: the rules that no compiler checks. They are also run by a test, so that `cargo test`
//! enforces them.

mod arrows;
mod cancel;
mod page;
mod proofs;
mod sources;
mod width;

use crate::report;
use crate::run::{Failure, Outcome};
use crate::workspace::{self, Workspace};

/// Prints every violation; fails if there is one.
pub(crate) fn tidy(arguments: &[String]) -> Outcome {
    if let Some(argument) = arguments.first() {
        return Err(Failure::usage(format!(
            "tidy takes no arguments, got `{argument}`"
        )));
    }
    let breaches = breaches()?;
    for breach in &breaches {
        report::note(breach);
    }
    if breaches.is_empty() {
        report::step("tidy: all rules hold");
        Ok(())
    } else {
        Err(Failure::new(format!(
            "{} breach(es) of the rules in CONTRIBUTING.md",
            breaches.len()
        )))
    }
}

/// Every violation as `file: what is wrong, what to do`.
fn breaches() -> Outcome<Vec<String>> {
    let workspace = Workspace::load()?;
    let mut breaches = arrows::check(&workspace.members);
    breaches.extend(arrows::check_manifests(&workspace.members)?);
    breaches.extend(sources::check(&workspace::root())?);
    breaches.extend(cancel::check(&workspace::root())?);
    breaches.extend(width::check(&workspace::root())?);
    breaches.extend(page::check(&workspace::root(), &workspace.members)?);
    breaches.extend(proofs::check(&workspace::root())?);
    Ok(breaches)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_rules_hold() {
        let breaches = super::breaches().expect("the workspace can be read");
        assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    }
}
