//! Looking at what is stored, for people: `mq-broker verify` checks a whole data folder, `mq-broker dump` shows one
//! file. Both only read. What a start would make of damage is recovery's business (`log/solo/recover.rs`); here it is
//! found and named: file, position, entry, queue, offsets.

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

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no broker's data.
    #[error("`{}` holds no broker's data (neither `state.db` nor `journal/`); name its folder with --data-dir", path.display())]
    NoData {
        /// The folder.
        path: PathBuf,
    },
    /// Not a file that a broker writes.
    #[error(
        "`{}` is no file that a broker writes ({reason}); expected a journal segment (`journal/*.journal`), a queue file (`queue_data.*`), its index (`queue_index.*`) or `state.db`",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The system refused.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// Nobody reads what is written.
    #[error("cannot write the output: {0}")]
    Output(#[source] std::io::Error),
}

fn at(path: &std::path::Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}
