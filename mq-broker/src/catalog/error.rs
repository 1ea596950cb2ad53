//! Why the catalog in PostgreSQL is not current. None of it stops the broker.

use crate::checkpoint;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nobody there, a wrong password, no such database.
    #[error("cannot connect to `{place}`: {source}; check `catalog.url` and the server")]
    Connect {
        place: String,
        #[source]
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("`{place}` refused a statement: {source}")]
    Sql {
        place: String,
        #[source]
        source: sqlx::Error,
    },
    /// No answer in time.
    #[error("`{place}` did not answer within {limit_ms} ms (`catalog.timeout_ms`)")]
    Slow { place: String, limit_ms: u128 },
    /// A later version of the broker made the tables.
    #[error(
        "the catalog in `{place}` has format {found}, this broker knows formats up to {known}: update the broker, or give it \
         another database"
    )]
    Format { place: String, found: i32, known: i32 },
    /// Its own checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
}

impl Error {
    /// Errors of one kind are logged once in a row.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Sql { .. } => "statement",
            Self::Slow { .. } => "slow",
            Self::Format { .. } => "format",
            Self::Checkpoint(_) => "checkpoint",
        }
    }
}
