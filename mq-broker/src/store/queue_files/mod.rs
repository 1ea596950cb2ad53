//! Queue files: the batches of each queue, consecutively and in the form in which they are served, in
//! segments of its own. Compaction writes them when the journal has grown beyond its budget; `docs/store.md`
//! has the formats.
//!
//! Which files exist, and how many bytes of each are in use, is recorded in the *manifest*, kept in memory
//! and in the checkpoint. The one invariant: bytes and files that the manifest does not list do not exist. So
//! a round that a crash interrupted is restarted, and nothing from the first attempt is ever read.
//!
//! Nothing relies on the index of a file: a stamp found through it is checked in the data, and an index that
//! is missing, truncated or wrong is rebuilt from the lengths in the file.

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
