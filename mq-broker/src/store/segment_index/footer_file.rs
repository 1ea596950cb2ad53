//! The footer of a sealed segment, read from its file.

use std::io;

use bytes::Bytes;

use crate::log::entry::Broken;
use crate::store::SegmentId;
use crate::store::disk::{DiskFile, read_up_to_at};
use crate::store::segment_index::footer::{FooterRows, TRAILER_BYTES, Trailer};

/// What a file has at the position of its footer.
#[derive(Debug)]
pub enum Footer {
    /// Trailer and rows are intact.
    Whole(Trailer, FooterRows),
    /// The trailer is intact, its rows are not.
    Rows(Trailer),
    /// A trailer of a later version.
    Version(u16),
    /// No trailer of this segment: it was never sealed, or the trailer is damaged.
    None,
}

/// Reads the footer of `segment`.
///
/// # Errors
/// As the disk says.
pub fn read_footer(file: &dyn DiskFile, segment: SegmentId) -> io::Result<Footer> {
    let Some(trailer_at) = file.bytes()?.checked_sub(TRAILER_BYTES as u64) else {
        return Ok(Footer::None);
    };
    let block = read_up_to_at(file, TRAILER_BYTES, trailer_at)?;
    let trailer = match Trailer::decode(&block) {
        Ok(trailer) if trailer.segment == segment => trailer,
        Err(Broken::Version(version)) => return Ok(Footer::Version(version)),
        _ => return Ok(Footer::None),
    };
    let fits = u64::from(trailer.rows_at) + trailer.rows_bytes() as u64 <= trailer_at;
    if !fits {
        return Ok(Footer::Rows(trailer));
    }
    let rows = read_up_to_at(file, trailer.rows_bytes(), u64::from(trailer.rows_at))?;
    Ok(match FooterRows::check(&trailer, Bytes::from(rows)) {
        Some(rows) => Footer::Whole(trailer, rows),
        None => Footer::Rows(trailer),
    })
}
