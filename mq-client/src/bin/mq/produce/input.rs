//! The input of `mq produce`: a whole file as one message, or lines, read by a separate thread and passed on
//! as they arrive.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use mq_common::limits::RECORD_BYTES_MAX;
use tokio::sync::mpsc;

/// Bytes read at once; the lines of one read are sent together.
const READ_BYTES: usize = 256 * 1024;
/// Chunks that wait for the sender; reading pauses at this many.
const CHUNKS_WAITING: usize = 4;

/// The lines of one read.
pub(super) type Chunk = Vec<Bytes>;

/// The contents of a file.
pub(super) fn whole(path: &Path) -> Result<Bytes, String> {
    let cannot = |error: io::Error| format!("cannot read `{}`: {error}", path.display());
    let bytes = fs::metadata(path).map_err(cannot)?.len();
    if bytes > RECORD_BYTES_MAX as u64 {
        return Err(format!(
            "`{}` has {bytes} bytes, a message at most {RECORD_BYTES_MAX}; send its lines with `--lines`",
            path.display()
        ));
    }
    fs::read(path).map(Bytes::from).map_err(cannot)
}

/// The lines of a file, or of stdin.
pub(super) fn lines(path: Option<&Path>) -> Result<mpsc::Receiver<Result<Chunk, String>>, String> {
    let source: Box<dyn Read + Send> = match path {
        Some(path) => {
            Box::new(File::open(path).map_err(|error| format!("cannot read `{}`: {error}", path.display()))?)
        }
        None => Box::new(io::stdin()),
    };
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    // The thread ends with its source, or when the receiver is gone. A read from a terminal cannot be
    // interrupted; it ends with the process.
    std::thread::spawn(move || {
        let mut reader = BufReader::with_capacity(READ_BYTES, source);
        let mut rest = BytesMut::new();
        loop {
            let outcome = next_chunk(&mut reader, &mut rest);
            let last = matches!(outcome, Ok(None) | Err(_));
            let Some(message) = outcome.transpose() else { break };
            if sender.blocking_send(message).is_err() || last {
                break;
            }
        }
    });
    Ok(receiver)
}

/// The complete lines of one read; `None` at the end. An unfinished line stays in `rest`.
fn next_chunk(reader: &mut impl BufRead, rest: &mut BytesMut) -> Result<Option<Chunk>, String> {
    loop {
        let read = reader
            .fill_buf()
            .map_err(|error| format!("cannot read the input: {error}"))?;
        if read.is_empty() {
            // A last line without its newline is a line too.
            return Ok((!rest.is_empty()).then(|| vec![rest.split().freeze()]));
        }
        rest.extend_from_slice(read);
        let bytes = read.len();
        reader.consume(bytes);
        let end = rest.iter().rposition(|byte| *byte == b'\n');
        let Some(end) = end else {
            if rest.len() > RECORD_BYTES_MAX {
                return Err(format!(
                    "a line is longer than {RECORD_BYTES_MAX} bytes, the limit of a message"
                ));
            }
            continue;
        };
        let whole = rest.split_to(end + 1).freeze();
        let lines = whole.split_inclusive(|byte| *byte == b'\n');
        return Ok(Some(
            lines
                .map(|line| whole.slice_ref(&line[..line.len() - 1]))
                .collect(),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8], read_bytes: usize) -> Vec<Bytes> {
        let mut reader = BufReader::with_capacity(read_bytes, text);
        let mut rest = BytesMut::new();
        let mut lines = Vec::new();
        while let Some(chunk) = next_chunk(&mut reader, &mut rest).unwrap() {
            lines.extend(chunk);
        }
        lines
    }

    #[test]
    fn lines_are_the_same_for_every_split_of_the_input() {
        let text = b"first\n\nthird\r\nlast without newline";
        for read_bytes in 1..text.len() + 2 {
            let lines = all(text, read_bytes);
            assert_eq!(
                lines,
                [&b"first"[..], b"", b"third\r", b"last without newline"],
                "{read_bytes}"
            );
        }
    }

    #[test]
    fn an_empty_input_has_no_lines() {
        assert!(all(b"", 8).is_empty());
        assert_eq!(all(b"\n", 8), [&b""[..]]);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let text = vec![b'x'; RECORD_BYTES_MAX + 2];
        let mut reader = BufReader::with_capacity(READ_BYTES, &text[..]);
        assert!(next_chunk(&mut reader, &mut BytesMut::new()).is_err());
    }
}
