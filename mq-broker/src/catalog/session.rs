//! One connection to the catalog's database: upgrades the tables to the latest format, compares rows and
//! writes them.
//!
//! Every statement has a time limit, at the server and here. After an error a session is unusable and must be
//! dropped.

use std::time::Duration;

use mq_common::ids::{Lsn, ShardName, Term, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{ConnectOptions, Connection, PgConnection, Row, query, query_as, query_scalar, raw_sql};

use super::error::Error;
use super::feed::{Change, Mark};
use super::url::DatabaseUrl;
use super::{rows, schema};
use crate::state::rows::Rows;

/// Added to the server's own time limit, for the round trip.
const GRACE: Duration = Duration::from_secs(1);

const MARK: &str = "SELECT lsn, term, saved_ms FROM projected_brokers WHERE broker = $1";
const MARK_LOCKED: &str = "SELECT lsn, term, saved_ms FROM projected_brokers WHERE broker = $1 FOR UPDATE";

/// The outcome of applying a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was applied.
    Now,
    /// It had been applied before.
    Before,
    /// The rows correspond to another checkpoint than the one that the change starts from.
    Apart,
}

/// A connection to the catalog's database, for the rows of one broker.
#[derive(Debug)]
pub(super) struct Session {
    connection: PgConnection,
    place: String,
    broker: String,
    limit: Duration,
}

impl Session {
    /// Connects, and upgrades the tables to the latest format.
    pub(super) async fn open(url: &DatabaseUrl, broker: &ShardName, limit: Duration) -> Result<Self, Error> {
        let place = url.place();
        let limit_ms = limit.as_millis().to_string();
        let options = url
            .options()
            .application_name("mq-broker")
            .options([
                ("statement_timeout", limit_ms.as_str()),
                ("client_min_messages", "warning"),
            ])
            .disable_statement_logging();
        let connection = tokio::time::timeout(limit + GRACE, options.connect()).await;
        let connection = match connection {
            Err(_) => {
                let limit_ms = limit.as_millis();
                return Err(Error::Slow { place, limit_ms });
            }
            Ok(Err(source)) => return Err(Error::Connect { place, source }),
            Ok(Ok(connection)) => connection,
        };
        let mut session = Self {
            connection,
            place,
            broker: broker.to_string(),
            limit,
        };
        session.migrate().await?;
        Ok(session)
    }

    /// Upgrades the tables, one broker at a time. A table that was dropped is recreated.
    async fn migrate(&mut self) -> Result<(), Error> {
        self.begin().await?;
        self.raw(schema::LOCK).await?;
        self.raw(schema::VERSIONS).await?;
        let found: i32 = self
            .one(schema::FOUND)
            .await?
            .try_get(0)
            .map_err(|error| self.sql(error))?;
        if found > schema::LATEST {
            let place = self.place.clone();
            let known = schema::LATEST;
            return Err(Error::Format { place, found, known });
        }
        let missing: i64 = self
            .one(schema::MISSING)
            .await?
            .try_get(0)
            .map_err(|error| self.sql(error))?;
        if found == schema::LATEST && missing == 0 {
            return self.commit().await;
        }
        let done = if missing == 0 { found } else { 0 };
        for (step, version) in schema::STEPS
            .iter()
            .zip(1..)
            .skip(usize::try_from(done).unwrap_or_default())
        {
            self.raw(step).await?;
            let taken = query(schema::TAKEN).bind(version).execute(&mut self.connection);
            within(&self.place, self.limit, taken).await?;
        }
        self.raw(schema::VIEWS).await?;
        self.raw(schema::FORGET).await?;
        self.commit().await
    }

    /// Writes what a checkpoint changed, in one transaction with its lsn, if the rows correspond to the
    /// checkpoint before it.
    pub(super) async fn apply(&mut self, change: &Change) -> Result<Taken, Error> {
        self.begin().await?;
        let found = self.lock().await?;
        if found != Some(change.from) {
            self.raw("ROLLBACK").await?;
            let before = found == Some(change.to);
            return Ok(if before { Taken::Before } else { Taken::Apart });
        }
        for statement in rows::changed(&change.dirty) {
            self.execute(statement).await?;
        }
        self.record(change.to).await?;
        Ok(Taken::Now)
    }

    /// Rewrites all rows of this broker, in one transaction of many short statements.
    pub(super) async fn replace(&mut self, all: &Rows) -> Result<(), Error> {
        self.begin().await?;
        self.lock().await?;
        self.raw(rows::ALONG_THE_KEY).await?;
        for (sql, before_all) in rows::ALL_GONE {
            self.remove(sql, before_all.to_owned()).await?;
        }
        for statement in rows::written(all) {
            self.execute(statement).await?;
        }
        self.record(Mark::from(&all.counters)).await
    }

    /// The checkpoint that this broker's rows correspond to; `None` = it has no rows.
    pub(super) async fn standing(&mut self) -> Result<Option<Mark>, Error> {
        self.mark(MARK).await
    }

    /// How many rows of topics, queues, groups, cursors and transactions this broker has in the database.
    pub(super) async fn counts(&mut self) -> Result<[i64; 5], Error> {
        let counts = query_as(rows::COUNTS)
            .bind(&self.broker)
            .fetch_one(&mut self.connection);
        let (topics, queues, groups, cursors, transactions) = within(&self.place, self.limit, counts).await?;
        Ok([topics, queues, groups, cursors, transactions])
    }

    pub(super) async fn close(self) {
        // The server notices the end of the connection even if this fails.
        drop(tokio::time::timeout(GRACE, self.connection.close()).await);
    }

    /// Locks the broker's own row until the transaction ends, and returns the checkpoint that its rows
    /// correspond to.
    async fn lock(&mut self) -> Result<Option<Mark>, Error> {
        let row = query(
            "INSERT INTO projected_brokers (broker, lsn, term, saved_ms) VALUES ($1, -1, 0, 0) ON CONFLICT DO NOTHING",
        )
        .bind(&self.broker)
        .execute(&mut self.connection);
        within(&self.place, self.limit, row).await?;
        self.mark(MARK_LOCKED).await
    }

    async fn mark(&mut self, sql: &'static str) -> Result<Option<Mark>, Error> {
        let found = query_as(sql)
            .bind(&self.broker)
            .fetch_optional(&mut self.connection);
        let found: Option<(i64, i64, i64)> = within(&self.place, self.limit, found).await?;
        Ok(found.and_then(|(lsn, term, time)| {
            Some(Mark {
                lsn: Lsn(u64::try_from(lsn).ok()?),
                term: Term(u64::try_from(term).ok()?),
                time: Timestamp(u64::try_from(time).ok()?),
            })
        }))
    }

    /// Records the checkpoint that the rows correspond to, and commits.
    async fn record(&mut self, mark: Mark) -> Result<(), Error> {
        let moved = query(
            "UPDATE projected_brokers SET lsn = $2, term = $3, saved_ms = $4, projected_at = now() WHERE broker = $1",
        )
        .bind(&self.broker)
        .bind(mark.lsn.0.cast_signed())
        .bind(mark.term.0.cast_signed())
        .bind(mark.time.0.cast_signed())
        .execute(&mut self.connection);
        within(&self.place, self.limit, moved).await?;
        self.commit().await
    }

    /// Removes this broker's rows of one table that are after the key, step by step.
    async fn remove(&mut self, sql: &'static str, mut after: String) -> Result<(), Error> {
        loop {
            let last = query_scalar(sql)
                .bind(&self.broker)
                .bind(&after)
                .fetch_optional(&mut self.connection);
            match within(&self.place, self.limit, last).await? {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    async fn execute(&mut self, (sql, json): rows::Statement) -> Result<(), Error> {
        let written = query(sql)
            .bind(&self.broker)
            .bind(json)
            .execute(&mut self.connection);
        within(&self.place, self.limit, written).await.map(drop)
    }

    async fn begin(&mut self) -> Result<(), Error> {
        self.raw("BEGIN").await
    }

    async fn commit(&mut self) -> Result<(), Error> {
        self.raw("COMMIT").await
    }

    async fn raw(&mut self, sql: &'static str) -> Result<(), Error> {
        let done = raw_sql(sql).execute(&mut self.connection);
        within(&self.place, self.limit, done).await.map(drop)
    }

    async fn one(&mut self, sql: &'static str) -> Result<PgRow, Error> {
        let row = query(sql).fetch_one(&mut self.connection);
        within(&self.place, self.limit, row).await
    }

    fn sql(&self, source: sqlx::Error) -> Error {
        let place = self.place.clone();
        Error::Sql { place, source }
    }
}

async fn within<T>(
    place: &str,
    limit: Duration,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    let place = || place.to_owned();
    match tokio::time::timeout(limit + GRACE, statement).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) if is_timeout(&source) => Err(Error::Slow {
            place: place(),
            limit_ms: limit.as_millis(),
        }),
        Ok(Err(source)) => Err(Error::Sql {
            place: place(),
            source,
        }),
        Err(_) => Err(Error::Slow {
            place: place(),
            limit_ms: limit.as_millis(),
        }),
    }
}

/// `query_canceled`: the server's own time limit.
fn is_timeout(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some("57014")
}
