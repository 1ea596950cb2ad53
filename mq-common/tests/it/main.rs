//! Tests of the batch format from outside, as a broker and a client use it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod damage;
mod golden;
mod property;

use mq_common::batch::{Batch, Builder, BuilderOptions, Compression, Properties, Record};
use mq_common::ids::Timestamp;

/// A fixed time, so that golden bytes do not move.
pub(crate) const TIME: Timestamp = Timestamp(1_700_000_000_000);

/// A batch of these records.
pub(crate) fn batch_of(records: &[Record<'_>], compression: Compression) -> Batch {
    let mut builder = Builder::new(BuilderOptions {
        compression,
        ..BuilderOptions::default()
    });
    for record in records {
        builder.push(record).unwrap();
    }
    builder.finish().unwrap()
}

/// One record with everything, one with nothing, one earlier than the first, and filler that shrinks.
pub(crate) fn sample(compression: Compression) -> Batch {
    batch_of(
        &[
            Record {
                key: Some(b"order-1"),
                tag: Some("paid"),
                properties: Properties::Borrowed(&[("tenant", "t"), ("source", "web")]),
                payload: b"payload of the first record, the first record, the first record",
                time: TIME,
            },
            Record::new(b"", TIME),
            Record {
                tag: Some("refunded"),
                ..Record::new(&[b'x'; 100], Timestamp(TIME.0 - 5))
            },
            Record::new(&[b'y'; 60], Timestamp(TIME.0 + 300)),
        ],
        compression,
    )
}
