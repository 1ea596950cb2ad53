//! The text that is published: the lines of any file, by default the package database of the Linux machine.
//! Lines are grouped into sections (one per package), and all lines of a section have the same key, so they
//! go to one queue, in order.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Text files that Debian, Alpine and other systems have.
const USUAL: &[&str] = &[
    "/var/lib/dpkg/status",
    "/lib/apk/db/installed",
    "/usr/share/dict/words",
    "/etc/services",
    "/usr/share/common-licenses/GPL-3",
];
/// At most this many lines are published, so that the demo ends within minutes.
const LINES_MAX: usize = 200_000;
/// A text without empty lines is cut into sections of this many lines.
const SECTION_LINES_MAX: usize = 60;

/// The lines of a file.
#[derive(Debug)]
pub(crate) struct Input {
    /// The file.
    pub(crate) path: PathBuf,
    /// Every line, without its newline.
    pub(crate) lines: Vec<Bytes>,
    /// The section of each line.
    pub(crate) sections: Vec<u32>,
}

impl Input {
    /// Reads `path`, or the first of the default texts that exists.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, String> {
        let path = match path {
            Some(path) => path,
            None => USUAL
                .iter()
                .map(Path::new)
                .find(|path| path.is_file())
                .ok_or("this machine has none of the default texts; name a file with `--input FILE`")?,
        };
        let text = fs::read(path).map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
        let input = Self::cut(path, Bytes::from(text));
        if input.lines.is_empty() {
            return Err(format!("`{}` is empty", path.display()));
        }
        Ok(input)
    }

    fn cut(path: &Path, text: Bytes) -> Self {
        let (mut lines, mut sections) = (Vec::new(), Vec::new());
        let (mut section, mut in_section) = (0, 0);
        for line in text.split_inclusive(|byte| *byte == b'\n').take(LINES_MAX) {
            let line = text.slice_ref(line.strip_suffix(b"\n").unwrap_or(line));
            in_section += 1;
            let last = line.is_empty() || in_section == SECTION_LINES_MAX;
            lines.push(line);
            sections.push(section);
            if last {
                (section, in_section) = (section + 1, 0);
            }
        }
        Self {
            path: path.to_owned(),
            lines,
            sections,
        }
    }

    /// Bytes in all lines.
    pub(crate) fn bytes(&self) -> usize {
        self.lines.iter().map(Bytes::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_as_they_are_and_empty_ones_end_a_section() {
        let input = Input::cut(Path::new("x"), Bytes::from_static(b"a\nb\r\n\nc\n\nd"));
        let lines: Vec<&[u8]> = input.lines.iter().map(Bytes::as_ref).collect();
        assert_eq!(lines, [&b"a"[..], b"b\r", b"", b"c", b"", b"d"]);
        assert_eq!(input.sections, [0, 0, 0, 1, 1, 2]);
    }

    #[test]
    fn a_text_without_empty_lines_has_sections_too() {
        let input = Input::cut(Path::new("x"), Bytes::from("y\n".repeat(SECTION_LINES_MAX + 1)));
        assert_eq!(input.sections.first(), Some(&0));
        assert_eq!(input.sections.last(), Some(&1));
    }
}
