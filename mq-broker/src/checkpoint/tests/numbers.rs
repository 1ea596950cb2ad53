//! Checkpoints that are intact as databases but have impossible numbers.

use sqlx::{ConnectOptions as _, Connection as _};

use super::*;

#[tokio::test]
async fn numbers_that_no_broker_reaches_are_damage() {
    let folder = Folder::new();
    let mut history = History::new(3);
    for _ in 0..300 {
        history.step();
    }
    let mut checkpoint = folder.open(false).await.unwrap();
    let dirty = history.state.take_changes();
    let rows = store::Rows {
        segments: vec![segment_row(1, 1)],
        placed: vec![placed(1, 40, 4)],
        halves: vec![half(10, 0)],
        ..store::Rows::default()
    };
    checkpoint
        .save(&dirty, &rows, dirty.rows.counters.lsn)
        .await
        .unwrap();
    checkpoint.load().await.unwrap();
    checkpoint.close().await.unwrap();
    let whole = std::fs::read(folder.path()).unwrap();
    for (table, column) in [
        ("meta", "lsn"),
        ("meta", "term"),
        ("meta", "time_ms"),
        ("meta", "last_transaction"),
        ("meta", "transactions_from"),
        ("queues", "end_offset"),
        ("queues", "bytes"),
        ("segment_rows", "segment"),
        ("half_rows", "batch"),
    ] {
        std::fs::write(folder.path(), &whole).unwrap();
        let options = SqliteConnectOptions::new().filename(folder.path());
        let mut connection = options.connect().await.unwrap();
        // -1 is the highest of all as it is read; u32 columns refuse it, so they get their own highest.
        let value = if column == "batch" {
            i64::from(u32::MAX)
        } else {
            -1
        };
        let change = format!("UPDATE {table} SET {column} = {value}");
        sqlx::query(sqlx::AssertSqlSafe(change))
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        let error = match folder.open(true).await {
            Err(error) => error,
            Ok(mut checkpoint) => checkpoint.load().await.unwrap_err(),
        };
        assert!(
            matches!(error, Error::Damaged { .. }),
            "{table}.{column}: {error}"
        );
        assert!(error.to_string().contains(column), "{table}.{column}: {error}");
    }
}
