//! A substitute for the damaged header of a journal segment. Its frames continue those of the segment before
//! it, so the end of that segment holds all that is needed to read them, as at a start.

use std::path::{Path, PathBuf};

use super::{Error, at};
use crate::log::entry::{Broken, SegmentHeader};
use crate::log::{Inspection, SegmentId, segment_header};
use crate::store::disk::{Disk, DiskFile, Mode, StdDisk};
use crate::store::layout;
use crate::store::segment_index::footer_file::{Footer, read_footer};

/// A header derived from the previous segment.
#[derive(Debug)]
pub(super) struct Guessed {
    pub(super) header: SegmentHeader,
    /// The previous segment.
    pub(super) of: PathBuf,
}

/// Reads the segment `before`, or else the one before `path` in its folder, to its end. `broken`: what is
/// wrong with the header of `file`.
pub(super) fn guess(
    path: &Path,
    file: &dyn DiskFile,
    before: Option<&Path>,
    broken: &Broken,
) -> Result<Guessed, Error> {
    let refused = |reason: &str| Error::Unknown {
        path: path.to_owned(),
        reason: format!("the segment's header is damaged: {broken}; {reason}"),
    };
    if let Broken::Version(_) = broken {
        return Err(refused("written by a later version of the broker"));
    }
    let of = match before {
        Some(before) => before.to_owned(),
        None => neighbour(path)
            .filter(|before| before.is_file())
            .ok_or_else(|| refused("name the segment before it with --seed-from"))?,
    };
    let opened = StdDisk.open(&of, Mode::Read).map_err(at(&of))?;
    let header = segment_header(&*opened).map_err(at(&of))?.map_err(|broken| {
        let of = of.display();
        refused(&format!(
            "the header of `{of}`, the segment before it, is damaged too: {broken}"
        ))
    })?;
    let frames_end = match read_footer(&*opened, header.segment).map_err(at(&of))? {
        Footer::Whole(trailer, _) | Footer::Rows(trailer) => Some(trailer.frames_end),
        Footer::Version(_) | Footer::None => None,
    };
    let mut inspection = Inspection::begin(header);
    while inspection.next(&*opened, frames_end).map_err(at(&of))?.is_some() {}
    let header = SegmentHeader {
        segment: SegmentId(header.segment.0.saturating_add(1)),
        point: inspection.point(),
        segment_bytes: 0,
    };
    let first = Inspection::begin(header).next(file, None).map_err(at(path))?;
    if first.is_none() {
        let of = of.display();
        return Err(refused(&format!("and no entry in it continues `{of}`")));
    }
    Ok(Guessed { header, of })
}

/// The file of the previous segment, derived from the name of this one.
fn neighbour(path: &Path) -> Option<PathBuf> {
    let segment = layout::parse_segment(path.file_name()?.to_str()?)?;
    let before = layout::segment_file(Path::new(""), SegmentId(segment.0.checked_sub(1)?));
    Some(path.with_file_name(before.file_name()?))
}
