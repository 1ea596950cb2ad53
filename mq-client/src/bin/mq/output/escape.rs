//! Text from messages made harmless for a terminal and for a row: no control characters, no bidirectional
//! overrides.

use std::fmt::Write;

/// `bytes` as visible text on one line. Valid UTF-8 stays as it is apart from control characters; other bytes
/// are written `\xNN`. A backslash is not doubled, so this is for reading; `--output json` is exact.
pub(crate) fn visible(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk
            .valid()
            .chars()
            .for_each(|character| push(&mut text, character));
        for byte in chunk.invalid() {
            push_hex(&mut text, u32::from(*byte));
        }
    }
    text
}

fn push(text: &mut String, character: char) {
    match character {
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        // Overrides of the writing direction can make a line read as something else.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            text.extend(character.escape_unicode());
        }
        _ if character.is_control() => push_hex(text, u32::from(character)),
        _ => text.push(character),
    }
}

fn push_hex(text: &mut String, number: u32) {
    // Writing into a String cannot fail.
    if write!(text, "\\x{number:02x}").is_err() {
        text.push('?');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_escapes_are_shown_not_obeyed() {
        assert_eq!(visible(b"\x1b[31mred\x07"), "\\x1b[31mred\\x07");
        assert_eq!(visible("\u{9b}2J".as_bytes()), "\\x9b2J");
        assert_eq!(visible("\u{202e}abc".as_bytes()), "\\u{202e}abc");
    }

    #[test]
    fn a_row_stays_a_row() {
        assert_eq!(visible(b"a\tb\r\nc"), "a\\tb\\r\\nc");
    }

    #[test]
    fn text_stays_text_and_other_bytes_become_hex() {
        assert_eq!(visible("žluťoučký 中文".as_bytes()), "žluťoučký 中文");
        assert_eq!(visible(b"a\xff\xfeb"), "a\\xff\\xfeb");
    }
}
