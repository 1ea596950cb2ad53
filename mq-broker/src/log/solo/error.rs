//! Why a journal could not be opened.

use std::io;
use std::path::PathBuf;

use mq_common::ids::Lsn;

use crate::log::{Poisoned, Refused};

/// Why the journal could not be opened. Nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Synced bytes are damaged.
    #[error(
        "the journal is damaged: `{}` at byte {position}, entry {lsn}: {reason}; it was once safely on disk, so it is \
         not cut off: restore a backup into a new folder with `mq-broker restore`",
        path.display()
    )]
    Rot {
        /// The file.
        path: PathBuf,
        /// Byte position in it.
        position: u64,
        /// The entry that is missing from here on.
        lsn: Lsn,
        /// What is wrong.
        reason: String,
    },
    /// A newer program wrote it.
    #[error(
        "`{}` has journal format version {version}, this program reads version {known}; use the newer program",
        path.display()
    )]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version found.
        version: u16,
        /// The version that this program reads.
        known: u16,
    },
    /// The checkpoint and the journal do not fit together.
    #[error(
        "the checkpoint is at entry {checkpoint}, but the journal in `{}` {reason}; nothing was changed: restore \
         the folder from a backup",
        path.display()
    )]
    Mismatch {
        /// The journal's folder.
        path: PathBuf,
        /// Lsn of the checkpoint.
        checkpoint: Lsn,
        /// What does not fit.
        reason: String,
    },
    /// An entry cannot be applied; the applier knows why.
    #[error("the journal holds an entry that cannot be applied")]
    NotApplied,
    /// There is no space for the entry that every start writes.
    #[error("the journal cannot be opened: {0}")]
    NoSpace(Refused),
    /// The settings cannot work.
    #[error("journal settings: {0}")]
    Settings(String),
    /// A write or sync failed.
    #[error(transparent)]
    Poisoned(Poisoned),
    /// The disk failed.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}
