//! What retention asks of a queue file: when an offset was appended, and how many bytes come after it.
//! Answered from the index and headers; no batch is read.

use mq_common::ids::Offset;

use super::marks::INTERVAL_BYTES;
use super::read::seek;
use super::walk::{Step, Walk, behind};
use super::{Files, View};
use crate::store::io::unreadable::Around;
use crate::store::{Extent, ReadError};

/// The most runs returned at once.
const RUNS_AT_ONCE: usize = 4096;

impl Files {
    /// The batch that contains an offset of this segment, or the gap between it and the next one.
    ///
    /// # Errors
    /// [`ReadError::QueueFile`].
    pub(in super::super) fn extent(&self, view: &View, offset: Offset) -> Result<Extent, ReadError> {
        let opened = self.file(view)?;
        let file = Around::new(&*opened);
        let mut marks = self.marks(view, &file)?;
        let failed = |source| self.failed(view, source);
        let mut start = seek(&file, view, &marks, offset).map_err(failed)?;
        if start.is_none() {
            marks = self.make_again(view, &file, &marks)?;
            start = seek(&file, view, &marks, offset).map_err(failed)?;
        }
        let (mut position, first) = start.unwrap_or((0, view.first));
        let mut walk = Walk::new(&file, view, &marks, INTERVAL_BYTES as usize);
        let mut extent = Extent {
            from: offset,
            end: view.segment.end,
            time: None,
            bytes: 0,
        };
        if let Some(header) = walk.header(position, view.first).map_err(failed)?
            && header.stamp.base_offset == first
            && first <= offset
        {
            extent.from = first;
            extent.time = Some(header.stamp.append_time);
            extent.bytes = header.region_bytes;
            position = behind(position, &header);
        }
        let next = Offset(offset.0.saturating_add(1));
        match walk.step(position, next).map_err(failed)? {
            Step::Batch(header) => extent.end = header.stamp.base_offset,
            Step::Damage(Some(mark)) if mark.offset > offset => extent.end = mark.offset,
            _ => {}
        }
        Ok(extent)
    }

    /// First offsets and bytes of runs of batches that begin below `from`, the last one first. `from` is at
    /// most the segment's end.
    ///
    /// # Errors
    /// [`ReadError::QueueFile`].
    pub(in super::super) fn runs_before(
        &self,
        view: &View,
        from: Offset,
    ) -> Result<Vec<(Offset, u32)>, ReadError> {
        let file = self.file(view)?;
        let marks = self.marks(view, &Around::new(&*file))?;
        let all = marks.all();
        let below = all.partition_point(|mark| mark.offset < from);
        let mut end = all.get(below).map_or(view.segment.bytes, |mark| mark.position);
        let mut runs = Vec::new();
        for mark in all[..below].iter().rev().take(RUNS_AT_ONCE) {
            runs.push((mark.offset, end.saturating_sub(mark.position)));
            end = mark.position;
        }
        if runs.is_empty() {
            // Damaged from its beginning.
            runs.push((view.first, 0));
        }
        Ok(runs)
    }
}
