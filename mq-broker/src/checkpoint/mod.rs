//! The checkpoint: `state.db`, an SQLite database next to the journal, with the state that results from
//! applying the journal, so that a start replays only the journal's end. Its views `catalog_*` are the
//! catalog for management tools (docs/catalog.md); the broker itself never reads them.
//!
//! The one invariant: everything in it was synced to the journal before. So it never contains an entry that a
//! power loss takes away, and everything after its lsn is still in the journal.
//!
//! WAL mode, `synchronous = FULL`: a saved checkpoint is on the disk. SQLite works on a thread of its own
//! (sqlx starts it), so these functions may be awaited anywhere; none of them blocks.

mod error;
mod placed;
mod read;
mod reader;
mod schema;
mod write;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mq_common::ids::{Lsn, ShardName};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

pub use error::Error;
use error::Fault;
pub use reader::{Examined, Standing, catalog, examine, standing};
use schema::Found;

use crate::state::rows::{Changes, Rows};
use crate::store;

/// The first bytes of every SQLite database.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    connection: SqliteConnection,
}

/// The content of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// The state, for [`crate::state::State::load`]; `rows.counters.lsn` is the last entry in it.
    pub rows: Rows,
    /// The store's part.
    pub store: store::Rows,
    /// For [`crate::state::State::numbered_from`]. It never changes.
    pub transactions_from: u64,
}

impl Checkpoint {
    /// Opens the checkpoint, checks it, and upgrades it to the latest format. A new folder gets an empty one.
    ///
    /// `has_messages`: whether the folder holds journal segments or queue files. With them a missing or empty
    /// file is refused, since starting from nothing would forget everything below the journal's first
    /// segment.
    ///
    /// # Errors
    /// [`Error`]; nothing was deleted, and nothing was created in a folder with messages.
    ///
    /// Cancelling leaves the file as it was, or in the latest format.
    pub async fn open(path: &Path, shard: &ShardName, has_messages: bool) -> Result<Self, Error> {
        let new = is_new(path)?;
        if new && has_messages {
            return Err(Error::Missing {
                path: path.to_owned(),
            });
        }
        let at = |fault: Fault| fault.at(path);
        let mut connection = options(path, new)
            .connect()
            .await
            .map_err(|error| at(error.into()))?;
        if !new {
            check(&mut connection).await.map_err(at)?;
        }
        match schema::find(&mut connection).await.map_err(at)? {
            Found::Empty if has_messages => {
                return Err(Error::Missing {
                    path: path.to_owned(),
                });
            }
            Found::Empty => {
                schema::create(&mut connection, shard).await.map_err(at)?;
                sync_folder(path)?;
            }
            Found::Format(format) => schema::migrate(&mut connection, format).await.map_err(at)?,
            Found::Unknown(found) => {
                return Err(Error::Format {
                    path: path.to_owned(),
                    found,
                    known: schema::LATEST,
                });
            }
        }
        let (found, _) = read::meta(&mut connection).await.map_err(at)?;
        if found != shard.as_str() {
            return Err(Error::OtherShard {
                path: path.to_owned(),
                found,
                expected: shard.clone(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            connection,
        })
    }

    /// Reads everything.
    ///
    /// # Errors
    /// [`Error::Damaged`] if a broker cannot have written the rows.
    pub async fn load(&mut self) -> Result<Saved, Error> {
        let at = |fault: Fault| fault.at(&self.path);
        let rows = read::state(&mut self.connection).await.map_err(at)?;
        let store = read::store(&mut self.connection).await.map_err(at)?;
        let transactions_from = read::transactions_from(&mut self.connection).await.map_err(at)?;
        Ok(Saved {
            rows,
            store,
            transactions_from,
        })
    }

    /// Reads the store's part.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub async fn store_rows(&mut self) -> Result<store::Rows, Error> {
        let rows = read::store(&mut self.connection).await;
        rows.map_err(|fault| fault.at(&self.path))
    }

    /// Copies what was saved last to a file that must not exist. The copy is not synced.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn copy_to(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.to_str().ok_or_else(|| Error::File {
            path: path.to_owned(),
            source: std::io::ErrorKind::InvalidFilename.into(),
        })?;
        let copied = sqlx::query("VACUUM INTO ?")
            .bind(name)
            .execute(&mut self.connection)
            .await;
        copied.map_err(|error| Fault::from(error).at(path))?;
        Ok(())
    }

    /// Saves what changed, with its lsn, in one transaction: after a crash the checkpoint holds all of it or
    /// nothing. `dirty` and `store` must have been taken together, and must be saved in the order in which
    /// they were taken. After an error the same changes must be saved again before any newer ones.
    ///
    /// Cancelling saves nothing or, if the commit is already in progress, everything.
    ///
    /// # Errors
    /// [`Error::Database`]: the disk is full, or a write or sync failed. After [`Error::is_failed_sync`] the
    /// process must stop: the kernel's reports about this disk can no longer be trusted.
    ///
    /// # Panics
    /// If the log is not synced up to the checkpoint's lsn: a power loss would leave a state from entries
    /// that are lost.
    pub async fn save(&mut self, dirty: &Changes, store: &store::Rows, synced: Lsn) -> Result<(), Error> {
        let lsn = dirty.rows.counters.lsn;
        assert!(
            lsn <= synced,
            "a checkpoint at {lsn} while the log is synced to {synced}"
        );
        self.write(dirty, store)
            .await
            .map_err(|fault| fault.at(&self.path))
    }

    async fn write(&mut self, dirty: &Changes, store: &store::Rows) -> Result<(), Fault> {
        let mut transaction = self.connection.begin().await?;
        write::state(&mut transaction, dirty).await?;
        write::store(&mut transaction, dirty.rows.counters.lsn, store).await?;
        transaction.commit().await?;
        self.fold().await
    }

    /// Moves what was saved from the write-ahead log into the database. SQLite would do it by itself from
    /// time to time, but without reporting a sync that failed.
    async fn fold(&mut self) -> Result<(), Fault> {
        // Busy (the catalog is being read) is not a failure: the next checkpoint moves the rest.
        sqlx::raw_sql("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Closes the database, with its write-ahead log folded in.
    ///
    /// # Errors
    /// [`Error::Database`]. What was saved is safe nevertheless.
    pub async fn close(self) -> Result<(), Error> {
        let Self { path, connection } = self;
        connection
            .close()
            .await
            .map_err(|error| Fault::from(error).at(&path))
    }
}

/// Whether there is no database yet. The file is checked before SQLite opens it: SQLite would take a file
/// that was truncated to nothing for a new database, and discard its write-ahead log.
fn is_new(path: &Path) -> Result<bool, Error> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(failed(error)),
    };
    let mut head = Vec::with_capacity(MAGIC.len());
    file.by_ref()
        .take(MAGIC.len() as u64)
        .read_to_end(&mut head)
        .map_err(failed)?;
    if head.is_empty() {
        return Ok(true);
    }
    if head != MAGIC {
        return Err(Error::Damaged {
            path: path.to_owned(),
            reason: "it does not start like a database".to_owned(),
        });
    }
    Ok(false)
}

fn options(path: &Path, new: bool) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(new)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .pragma("wal_autocheckpoint", "0")
        .disable_statement_logging()
}

async fn check(connection: &mut SqliteConnection) -> Result<(), Fault> {
    let (verdict,): (String,) = sqlx::query_as("PRAGMA quick_check(1)")
        .fetch_one(&mut *connection)
        .await?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(Fault::Damaged(verdict))
    }
}

/// Makes the new file's name durable, like its content.
fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| Error::File {
            path: folder.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests;
