//! Why a checkpoint could not be opened, read or written.

use std::path::PathBuf;

use mq_common::ids::ShardName;

use crate::state::rows::LoadError;
use crate::store::io::unreadable::is_rot;

/// A checkpoint that cannot be used. Nothing was deleted or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are messages but no checkpoint: part of the state is unknown, and so is the entry from which the
    /// journal has to be replayed.
    #[error(
        "`{}` is missing, but its folder holds messages; nothing was changed. Put the file back, or restore \
         a backup into a new folder with `mq-broker restore`",
        path.display()
    )]
    Missing {
        /// Where it was expected.
        path: PathBuf,
    },
    /// The file is not an intact checkpoint database.
    #[error(
        "`{}` is damaged ({reason}); nothing was changed. Restore a backup into a new folder with \
         `mq-broker restore`",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a later version.
    #[error(
        "`{}` has format {found}, this broker knows formats up to {known}; nothing was changed. Start the version that wrote it",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The latest known.
        known: i64,
    },
    /// The folder belongs to another broker.
    #[error("`{}` belongs to the broker `{found}`, this one is `{expected}`; use its own folder, or that name", path.display())]
    OtherShard {
        /// The file.
        path: PathBuf,
        /// The broker whose file it is.
        found: String,
        /// The broker that opened it.
        expected: ShardName,
    },
    /// The database reported an error. After a failed write or sync: repeat the same save, or stop.
    #[error("the checkpoint `{}` failed: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// The file cannot be read.
    #[error("`{}` cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether a sync failed: then no later one can be trusted, and the broker must not acknowledge anything
    /// any longer.
    #[must_use]
    pub fn is_failed_sync(&self) -> bool {
        let Self::Database { source, .. } = self else {
            return false;
        };
        // SQLITE_IOERR_FSYNC and SQLITE_IOERR_DIR_FSYNC.
        matches!(extended_code(source), Some(1034 | 1290))
    }

    /// Whether the disk could not read the file.
    pub(crate) fn is_unreadable(&self) -> bool {
        match self {
            Self::Database {
                source: sqlx::Error::Io(error),
                ..
            }
            | Self::File { source: error, .. } => is_rot(error),
            // SQLITE_IOERR with any extended code.
            Self::Database { source, .. } => extended_code(source).is_some_and(|code| code & 0xff == 10),
            _ => false,
        }
    }
}

impl Error {
    /// Whether the disk had no space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let Self::Database { source, .. } = self else {
            return false;
        };
        // SQLITE_FULL, and SQLITE_IOERR_SHMSIZE: no space for the index of the write-ahead log.
        matches!(extended_code(source), Some(13 | 4874))
    }
}

fn extended_code(error: &sqlx::Error) -> Option<u32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// An error within the database, before the path is added.
#[derive(Debug)]
pub(super) enum Fault {
    Sql(sqlx::Error),
    Damaged(String),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<LoadError> for Fault {
    fn from(error: LoadError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl Fault {
    pub(super) fn at(self, path: &std::path::Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Damaged(reason) => Error::Damaged { path, reason },
            Self::Sql(source) if is_damage(&source) => Error::Damaged {
                path,
                reason: source.to_string(),
            },
            Self::Sql(source) => Error::Database { path, source },
        }
    }
}

/// SQLITE_CORRUPT and SQLITE_NOTADB with all their extended codes, a missing table or column, a value of
/// another type.
fn is_damage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => {
            extended_code(error).is_some_and(|code| matches!(code & 0xff, 1 | 11 | 26))
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::RowNotFound => true,
        _ => false,
    }
}
