//! Read-only access to the checkpoint while the broker saves to it. It is opened for each read, in one read
//! transaction, so that SQLite's write-ahead log is never blocked for long.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::error::{Error, Fault};
use super::schema::{self, Found};
use super::{Saved, read};
use crate::state::rows::{Counters, Rows};

/// The position and size of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The entry that it was saved at, and the other counters.
    pub counters: Counters,
    /// How many topics, queues, groups, cursors and undecided transactions it has.
    pub rows: [i64; 5],
}

/// The position and size of the checkpoint at `path`.
///
/// # Errors
/// [`Error`].
pub async fn standing(path: &Path) -> Result<Standing, Error> {
    let at = |fault: Fault| fault.at(path);
    let mut connection = open(path).await.map_err(at)?;
    let standing = read_standing(&mut connection).await.map_err(at)?;
    close(connection).await;
    Ok(standing)
}

/// What the catalog shows of the checkpoint at `path`: its state without decisions and pauses.
///
/// # Errors
/// [`Error`].
pub async fn catalog(path: &Path) -> Result<Rows, Error> {
    let at = |fault: Fault| fault.at(path);
    let mut connection = open(path).await.map_err(at)?;
    let rows = read_catalog(&mut connection).await.map_err(at)?;
    close(connection).await;
    Ok(rows)
}

async fn open(path: &Path) -> Result<SqliteConnection, Fault> {
    Ok(options(path).connect().await?)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging()
}

async fn close(connection: SqliteConnection) {
    // An error is harmless, since nothing was written.
    drop(connection.close().await);
}

async fn read_standing(connection: &mut SqliteConnection) -> Result<Standing, Fault> {
    let mut transaction = connection.begin().await?;
    let (_, counters) = read::meta(&mut transaction).await?;
    let sql = "SELECT (SELECT count(*) FROM topics), (SELECT count(*) FROM queues), (SELECT count(*) FROM groups), \
               (SELECT count(*) FROM cursors), (SELECT count(*) FROM transactions)";
    let (topics, queues, groups, cursors, transactions) =
        sqlx::query_as(sql).fetch_one(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(Standing {
        counters,
        rows: [topics, queues, groups, cursors, transactions],
    })
}

async fn read_catalog(connection: &mut SqliteConnection) -> Result<Rows, Fault> {
    let mut transaction = connection.begin().await?;
    let rows = read::catalog(&mut transaction).await?;
    transaction.rollback().await?;
    Ok(rows)
}

/// The result of examining a checkpoint.
#[derive(Debug, Clone)]
pub struct Examined {
    /// The broker's name.
    pub shard: String,
    /// Its format.
    pub format: i64,
    /// Its content; `None` = it has an earlier format, which the next start upgrades.
    pub saved: Option<Saved>,
}

/// Checks the checkpoint at `path` and reads all of it, without changing anything. `alone`: no broker is
/// using it.
///
/// # Errors
/// [`Error`]: what is wrong with it.
pub async fn examine(path: &Path, alone: bool) -> Result<Examined, Error> {
    let at = |fault: Fault| fault.at(path);
    if super::is_new(path)? {
        return Err(Error::Missing {
            path: path.to_owned(),
        });
    }
    // Without a write-ahead log SQLite need not lock anything; otherwise it needs its lock files next to the
    // database.
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let untouched = alone && !Path::new(&log).exists();
    let options = options(path).immutable(untouched);
    let mut connection = options.connect().await.map_err(|error| at(error.into()))?;
    let examined = read_all(&mut connection).await.map_err(at)?;
    close(connection).await;
    match examined {
        Ok(examined) => Ok(examined),
        Err(found) => Err(Error::Format {
            path: path.to_owned(),
            found,
            known: schema::LATEST,
        }),
    }
}

/// The content, or the format if it is a later one.
async fn read_all(connection: &mut SqliteConnection) -> Result<Result<Examined, i64>, Fault> {
    super::check(connection).await?;
    let mut transaction = connection.begin().await?;
    let format = match schema::find(&mut transaction).await? {
        Found::Format(format) => format,
        Found::Unknown(found) => return Ok(Err(found)),
        Found::Empty => return Err(Fault::Damaged("it is an empty database".to_owned())),
    };
    let shard = sqlx::query_scalar("SELECT shard FROM meta")
        .fetch_one(&mut *transaction)
        .await?;
    let saved = if format == schema::LATEST {
        let rows = read::state(&mut transaction).await?;
        let store = read::store(&mut transaction).await?;
        let transactions_from = read::transactions_from(&mut transaction).await?;
        Some(Saved {
            rows,
            store,
            transactions_from,
        })
    } else {
        None
    };
    transaction.rollback().await?;
    Ok(Ok(Examined { shard, format, saved }))
}
