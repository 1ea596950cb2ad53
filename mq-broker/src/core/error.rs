//! Why the core does not start.

use mq_common::ids::Lsn;

use crate::log::OpenError;
use crate::state::Moment;

/// Why the core does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// An entry holds a command that this version does not know.
    #[error(
        "journal entry {lsn} cannot be read: {reason}; it was written by a later version: start that one"
    )]
    Unreadable {
        /// The entry.
        lsn: Lsn,
        /// What is unknown in it.
        reason: String,
    },
    /// The journal's entries cannot follow the position that the checkpoint states.
    #[error(
        "journal entry {} (term {}, time {} ms) cannot follow the checkpoint, which is at {} (term {}, time {} ms): \
         they do not belong together, or the checkpoint is damaged; nothing was deleted: restore a backup into a new \
         folder with `mq-broker restore`",
        .entry.lsn, .entry.term, .entry.time.0, .checkpoint.lsn, .checkpoint.term, .checkpoint.time.0
    )]
    Contradiction {
        /// The entry.
        entry: Moment,
        /// The position of the state.
        checkpoint: Moment,
    },
    /// A file of the journal that queues still need is missing.
    #[error(
        "the journal has no `{}`, which holds messages; nothing was changed: put the file back, or restore a backup \
         into a new folder with `mq-broker restore`",
        path.display()
    )]
    Missing {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The journal's files cannot be listed.
    #[error("cannot look at the files of the journal: {0}")]
    Files(#[source] std::io::Error),
    /// The core's thread cannot be started.
    #[error("cannot start the core's thread: {0}")]
    Thread(#[source] std::io::Error),
}
