//! Why the catalog in PostgreSQL is not current. None of these errors stops the broker.

use crate::checkpoint;

/// Why the catalog in PostgreSQL is not current.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The server does not answer, refuses the password, or has no such database.
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
    /// A later version of the broker created the tables.
    #[error(
        "the catalog in `{place}` has format {found}, this broker knows formats up to {known}: update the broker, or give it \
         another database"
    )]
    Format { place: String, found: i32, known: i32 },
    /// The broker's own checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
}

impl Error {
    /// Of consecutive errors of one kind only the first is logged.
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
