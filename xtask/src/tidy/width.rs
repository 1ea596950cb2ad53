//! Prose is as narrow as a reader's window: comments and pages in Markdown. Tables, code and links may be wider.

use std::fs;
use std::path::{Path, PathBuf};

use super::sources::rust_files;
use crate::run::Outcome;

/// The most characters of a line of prose.
const WIDTH_MAX: usize = 120;

/// Every violation.
pub(super) fn check(root: &Path) -> Outcome<Vec<String>> {
    let mut breaches = Vec::new();
    let sources = rust_files(root)?.into_iter().map(|file| (file, true));
    let pages = pages(root)?.into_iter().map(|file| (file, false));
    for (file, is_source) in sources.chain(pages) {
        let text = fs::read_to_string(&file)?;
        let path = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        breaches.extend(
            too_wide(&text, is_source).map(|line| {
                format!("{path}:{line}: prose wider than {WIDTH_MAX} characters; break the line")
            }),
        );
    }
    Ok(breaches)
}

/// The pages at the root and below `docs`.
fn pages(root: &Path) -> Outcome<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for folder in [root.to_owned(), root.join("docs"), root.join("docs/guide")] {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    Ok(pages)
}

/// The numbers of the lines of prose that are too wide. Of a source file, comments are prose.
fn too_wide(text: &str, is_source: bool) -> impl Iterator<Item = usize> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let prose = if is_source {
            let comment = line.trim_start().strip_prefix("//")?;
            let comment = comment.trim_start_matches(['/', '!']);
            comment.strip_prefix(' ').unwrap_or(comment)
        } else {
            line
        };
        if prose.starts_with("```") {
            is_code = !is_code;
        }
        let is_exempt = is_code || prose.starts_with(['|', '[']) || prose.starts_with("    ");
        (!is_exempt && line.chars().count() > WIDTH_MAX).then_some(index + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_prose_is_a_breach_and_wide_tables_and_code_are_not() {
        let wide = "word ".repeat(30);
        let page = format!("{wide}\n| {wide}|\n```sh\n{wide}\n```\n{wide}\n");
        assert_eq!(too_wide(&page, false).collect::<Vec<_>>(), [1, 6]);
        let source =
            format!("//! {wide}\nlet a = \"{wide}\";\n    // {wide}\n/// ```\n/// {wide}\n/// ```\n");
        assert_eq!(too_wide(&source, true).collect::<Vec<_>>(), [1, 3]);
    }
}
