//! The index of a queue file, mark by mark, for `dump`.

use std::path::Path;

use mq_common::ids::Offset;
use serde_json::json;

use super::dump::Lines;
use super::{Error, at};
use crate::store::disk::{DiskFile, read_up_to_at};
use crate::store::{INDEX_BYTES_MAX, MARK_BYTES, Marks};

/// Shows the index of the queue file whose first offset is `first`. A start rebuilds a damaged index.
pub(super) fn show(
    path: &Path,
    file: &dyn DiskFile,
    first: Offset,
    lines: &mut Lines<'_>,
) -> Result<(), Error> {
    let bytes = read_up_to_at(file, INDEX_BYTES_MAX, 0).map_err(at(path))?;
    let marks = Marks::decode(&bytes, first, u32::MAX);
    let words = format!(
        "index of the queue file with first offset {first}: {} marks, {} bytes",
        marks.all().len(),
        bytes.len()
    );
    let object = json!({"kind": "queue_index", "first_offset": first.0, "marks": marks.all().len(),
        "bytes": bytes.len()});
    lines.put(0, &words, &object)?;
    for mark in marks.all() {
        let words = format!(
            "offset {} at byte {}, time {} ms",
            mark.offset, mark.position, mark.time.0
        );
        let object = json!({"kind": "mark", "offset": mark.offset.0, "position": mark.position,
            "time_ms": mark.time.0});
        lines.put(2, &words, &object)?;
    }
    let whole = Marks::holds_header(&bytes, first).then(|| (marks.all().len() + 1) * MARK_BYTES);
    let position = whole.unwrap_or(0);
    if position < bytes.len() {
        let end = bytes.len();
        let words =
            format!("bytes {position}..{end}: DAMAGED, or left over from a crash; rebuilt when it is needed");
        let object = json!({"kind": "damage", "position": position, "end": end});
        lines.put(0, &words, &object)?;
    }
    Ok(())
}
