//! The pages that name tests stay true, docs/hc-rpc-defects.md, docs/faults.md and docs/faults-store.md:
//! every defect and every class of faults has a line, and every test and file named there exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::sources;
use crate::run::Outcome;

/// A page with a table whose first column counts, and how far.
#[derive(Debug, Clone, Copy)]
struct Page {
    path: &'static str,
    /// The text before the number.
    prefix: &'static str,
    rows: usize,
    /// Numbers that have no line yet.
    open: &'static [usize],
}

const PAGES: [Page; 3] = [
    Page {
        path: "docs/hc-rpc-defects.md",
        prefix: "",
        rows: 82,
        open: &[],
    },
    Page {
        path: "docs/faults.md",
        prefix: "P",
        rows: 25,
        open: &[],
    },
    Page {
        path: "docs/faults-store.md",
        prefix: "S",
        rows: 26,
        open: &[],
    },
];

/// Every violation.
pub(super) fn check(root: &Path) -> Outcome<Vec<String>> {
    let mut functions = BTreeSet::new();
    for file in sources::rust_files(root)? {
        let text = fs::read_to_string(file)?;
        functions.extend(names(&text).map(str::to_owned));
    }
    let mut found = Vec::new();
    for page in PAGES {
        let text = fs::read_to_string(root.join(page.path))?;
        found.extend(breaches(page, &text, &functions, |path| {
            root.join(path).is_file()
        }));
    }
    Ok(found)
}

fn breaches(
    page: Page,
    text: &str,
    functions: &BTreeSet<String>,
    exists: impl Fn(&str) -> bool,
) -> Vec<String> {
    let Page {
        path, prefix, open, ..
    } = page;
    let mut breaches = Vec::new();
    let rows: Vec<_> = text.lines().filter_map(|line| row(line, prefix)).collect();
    for number in 1..=page.rows {
        let lines = rows.iter().filter(|(found, _)| *found == number).count();
        let expected = usize::from(!open.contains(&number));
        if lines != expected {
            breaches.push(format!(
                "{path}: {prefix}{number} has {lines} lines, expected {expected}"
            ));
        }
    }
    for (number, answer) in rows {
        let mut proofs = 0;
        for quoted in answer.split('`').skip(1).step_by(2) {
            let (is_path, is_test) = (quoted.contains('/'), is_name(quoted) && quoted.contains('_'));
            if is_path && !exists(quoted) || is_test && !functions.contains(quoted) {
                breaches.push(format!(
                    "{path}: {prefix}{number}: `{quoted}` does not exist; name what is there now"
                ));
            }
            proofs += usize::from(is_path || is_test);
        }
        if proofs == 0 {
            breaches.push(format!(
                "{path}: {prefix}{number}: name the test or the file that keeps it out"
            ));
        }
    }
    breaches
}

/// The number and the last cell of a row of a table.
fn row<'a>(line: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
    let number = cells.next()?.strip_prefix(prefix)?;
    Some((number.parse().ok()?, cells.last()?))
}

/// The names of all functions in a source.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split("fn ").skip(1).filter_map(|after| {
        let end = after.find(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))?;
        Some(&after[..end]).filter(|name| !name.is_empty())
    })
}

fn is_name(text: &str) -> bool {
    text.chars()
        .all(|character| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(answer: &str) -> String {
        (1..=PAGES[0].rows).fold(String::from("| # | x | y |\n|---|---|---|\n"), |page, number| {
            let answer = if number == 7 { answer } else { "`it_holds`" };
            page + &format!("| {number} | it broke `a_b` | {answer} |\n")
        })
    }

    fn found(page: &str) -> Vec<String> {
        let functions = names("#[test] fn it_holds() {} async fn other_one<T>()")
            .map(str::to_owned)
            .collect();
        breaches(PAGES[0], page, &functions, |path| path == "a/b.rs")
    }

    #[test]
    fn lines_with_a_test_or_a_file_hold() {
        assert!(found(&page("`other_one`, `Call`")).is_empty());
        assert!(found(&page("words: `a/b.rs`")).is_empty());
    }

    #[test]
    fn lost_lines_and_names_are_found() {
        assert_eq!(found(&page("`it_held`")).len(), 1);
        assert_eq!(found(&page("`a/c.rs`")).len(), 1);
        assert_eq!(found(&page("a `Type` alone")).len(), 1);
        assert_eq!(found(&page("`it_holds`").replace("| 9 |", "| 8 |")).len(), 2);
    }
}
