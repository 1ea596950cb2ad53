//! Queue files: each queue's batches behind one another, in the form in which they are served, in segments of its own.
//! Compaction writes them, when the journal has grown beyond its budget; `docs/store.md` has the formats.
//!
//! Which files there are, and how much of each counts, is the *manifest*, kept in memory and in the checkpoint. The one
//! invariant: bytes and files that the manifest does not list do not exist. So a round that a crash cut short is begun
//! again, and nothing of the first try is ever read.
//!
//! The index beside each file is no evidence: a stamp found through it is checked where it lies, and an index that is
//! missing, cut or wrong is made again from the lengths in the file.

mod append;
mod files;
mod manifest;
mod marks;
mod read;
mod retained;
mod stat;
mod time;
mod unsynced;
mod walk;

pub(super) use append::{AppendError, Appender, Appends, SoFar};
pub(super) use files::Files;
pub use manifest::{FileKey, FileRow, FileSegment, QueueName};
pub(super) use manifest::{Manifest, View};
pub(crate) use marks::{INDEX_BYTES_MAX, MARK_BYTES, Marks};
pub(super) use stat::write as write_stat;
