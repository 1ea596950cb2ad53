//! Inspecting stored data: `mq-broker verify` checks a whole data folder, `mq-broker dump` shows one file.
//! Both only read. They report damage with file, position, entry, queue and offsets; how a start handles
//! damage is decided in recovery (`log/solo/recover.rs`).

mod coverage;
mod dump;
mod index_file;
mod names;
mod progress;
mod queue_file;
mod report;
mod seed;
mod segment;
mod unreadable;
mod verify;
mod words;

use std::path::PathBuf;

pub use dump::dump;
pub use report::{Damage, Output, Report, Standing};
pub use verify::verify;

/// Why nothing could be inspected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder holds no broker's data.
    #[error("`{}` holds no broker's data (neither `state.db` nor `journal/`); name its folder with --data-dir", path.display())]
    NoData {
        /// The folder.
        path: PathBuf,
    },
    /// The file is not one that a broker writes.
    #[error(
        "`{}` is not a file that a broker writes ({reason}); expected a journal segment (`journal/*.journal`), a queue file (`queue_data.*`), its index (`queue_index.*`) or `state.db`",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it contains instead.
        reason: String,
    },
    /// The file or folder cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[source] std::io::Error),
}

fn at(path: &std::path::Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}
