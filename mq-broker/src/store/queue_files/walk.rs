//! Walks a queue file from batch to batch by the lengths in it.
//!
//! A damaged header says nothing about where the next batch begins, but the marks of the index do: a mark is
//! trusted if there is an intact batch at its position.

use std::io;

use bytes::Bytes;
use mq_common::batch::StampedHeader;
use mq_common::ids::Offset;

use super::View;
use super::marks::{Mark, Marks};
use crate::store::disk::{DiskFile, read_without_waiting_at};

/// What is at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A batch whose header is intact.
    Batch(StampedHeader),
    /// Damage, up to this batch; `None` = up to the end.
    Damage(Option<Mark>),
    /// The end of the bytes in use.
    End,
}

/// A file, and the bytes read last.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    file: &'a dyn DiskFile,
    view: &'a View,
    marks: &'a Marks,
    /// Bytes read at once.
    ahead_bytes: usize,
    buffer: Bytes,
    buffer_at: u32,
}

impl<'a> Walk<'a> {
    pub(super) fn new(file: &'a dyn DiskFile, view: &'a View, marks: &'a Marks, ahead_bytes: usize) -> Self {
        Self {
            file,
            view,
            marks,
            ahead_bytes,
            buffer: Bytes::new(),
            buffer_at: 0,
        }
    }

    /// Whether these bytes have been read already.
    pub(super) fn has(&self, position: u32, bytes: usize) -> bool {
        position
            .checked_sub(self.buffer_at)
            .is_some_and(|from| from as usize + bytes <= self.buffer.len())
    }

    /// Bytes at a position, never more than are in use; fewer if the file is shorter than it should be.
    pub(super) fn bytes(&mut self, position: u32, bytes: usize) -> io::Result<Bytes> {
        if !self.has(position, bytes) {
            let left = self.view.segment.bytes.saturating_sub(position) as usize;
            let wanted = bytes.max(self.ahead_bytes).min(left);
            let least = bytes.min(left);
            self.buffer = read_without_waiting_at(self.file, (least, wanted), u64::from(position))?.into();
            self.buffer_at = position;
        }
        let from = ((position - self.buffer_at) as usize).min(self.buffer.len());
        Ok(self
            .buffer
            .slice(from..from.saturating_add(bytes).min(self.buffer.len())))
    }

    /// Damaged bytes are read once more, bypassing the page cache: that can be wrong, too.
    pub(super) fn forget(&mut self, position: u32, bytes: usize) {
        self.file.forget(u64::from(position), bytes as u64);
        self.buffer = Bytes::new();
    }

    /// What is at a position at which a batch should begin, none of whose offsets is below `next`.
    pub(super) fn step(&mut self, position: u32, next: Offset) -> io::Result<Step> {
        if position >= self.view.segment.bytes {
            return Ok(Step::End);
        }
        if let Some(header) = self.header(position, next)? {
            return Ok(Step::Batch(header));
        }
        self.forget(position, StampedHeader::READ_BYTES);
        if let Some(header) = self.header(position, next)? {
            return Ok(Step::Batch(header));
        }
        for mark in self.marks.behind(position) {
            let header = self.header(mark.position, next)?;
            if header.is_some_and(|header| header.stamp.base_offset == mark.offset) {
                return Ok(Step::Damage(Some(*mark)));
            }
        }
        Ok(Step::Damage(None))
    }

    /// The header at a position, if it is intact and can belong to this file.
    pub(super) fn header(&mut self, position: u32, next: Offset) -> io::Result<Option<StampedHeader>> {
        // A mark may come from an index that was written when more bytes were in use.
        let Some(left) = self.view.segment.bytes.checked_sub(position) else {
            return Ok(None);
        };
        let bytes = self.bytes(position, StampedHeader::READ_BYTES)?;
        Ok(StampedHeader::read(&bytes).ok().filter(|header| {
            header.stamp.queue == self.view.name.number
                && header.whole_bytes() <= left as usize
                && (next..self.view.segment.end).contains(&header.stamp.base_offset)
        }))
    }
}

/// The position after a batch.
pub(super) fn behind(position: u32, header: &StampedHeader) -> u32 {
    let bytes = u32::try_from(header.whole_bytes()).unwrap_or(u32::MAX);
    position.saturating_add(bytes)
}
