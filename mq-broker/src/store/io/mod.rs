//! Reading the store's files: open segment files (`segment_files`), many batches in one read (`spans`), and
//! files that the disk cannot read everywhere (`unreadable` for checks, `read_around` and
//! `unreadable_regions` for consumers) or that are read slowly on purpose (`throttled`).

mod read_around;
pub(super) mod segment_files;
pub(super) mod spans;
pub(super) mod throttled;
pub(crate) mod unreadable;
pub(super) mod unreadable_regions;
