//! Properties: what goes in comes out, and arbitrary bytes end in an error or in records, never in a panic.

use bytes::Bytes;
use mq_common::batch::{
    Batch, BatchError, Builder, BuilderOptions, Compression, Producer, Properties, Record, split_stamped,
};
use mq_common::ids::Timestamp;
use mq_common::limits::{PROPERTIES_MAX, RECORD_BYTES_MAX, TAG_BYTES_MAX};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{TIME, batch_of, sample};

#[derive(Debug, Clone)]
struct Owned {
    key: Option<Vec<u8>>,
    tag: Option<String>,
    properties: Vec<(String, String)>,
    payload: Vec<u8>,
    time: u64,
}

impl Owned {
    fn record(&self) -> Record<'_> {
        Record {
            key: self.key.as_deref(),
            tag: self.tag.as_deref(),
            properties: Properties::Owned(&self.properties),
            payload: &self.payload,
            time: Timestamp(self.time),
        }
    }
}

fn record() -> impl Strategy<Value = Owned> {
    let time = prop_oneof![3 => TIME.0 - 5000..TIME.0 + 5000, 1 => any::<u64>()];
    (
        option::of(vec(any::<u8>(), 0..20)),
        option::of("\\PC{0,8}"),
        vec(("[a-z]{0,5}", "\\PC{0,10}"), 0..4),
        vec(any::<u8>(), 0..300),
        time,
    )
        .prop_map(|(key, tag, properties, payload, time)| Owned {
            key,
            tag,
            properties,
            payload,
            time,
        })
}

proptest! {
    #[test]
    fn of_any_records_that_stay_each_run_is_a_batch_with_them_at_their_places(
        records in vec((record(), any::<bool>()), 1..40),
        lz4: bool,
        first_sequence: u64,
    ) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let mut builder = Builder::new(BuilderOptions { compression, ..BuilderOptions::default() });
        let producer = Producer { id: 9, epoch: 3, first_sequence };
        builder.set_producer(producer);
        for (record, _) in &records {
            builder.push(&record.record()).unwrap();
        }
        let batch = builder.finish().unwrap();
        prop_assert!(batch.can_be_split());
        let keep: Vec<bool> = records.iter().map(|(_, keep)| *keep).collect();
        let unpacked = batch.records().unwrap();
        let mut found = Vec::new();
        for run in batch.runs(&unpacked, &keep) {
            let (first, run) = run.unwrap();
            let run = Batch::parse(run.into_bytes()).unwrap();
            prop_assert_eq!(run.producer(), Producer {
                first_sequence: first_sequence.wrapping_add(u64::from(first)),
                ..producer
            });
            let first = usize::try_from(first).unwrap();
            let own = run.records().unwrap();
            let own: Vec<_> = own.iter().map(Result::unwrap).collect();
            prop_assert_eq!(own.len(), usize::try_from(run.record_count()).unwrap());
            // As if its producer had never had another one.
            let alone: Vec<_> = records[first..first + own.len()].iter().map(|(one, _)| one.record()).collect();
            let compression = batch.compression();
            let mut builder = Builder::new(BuilderOptions { compression, ..BuilderOptions::default() });
            builder.set_producer(run.producer());
            alone.iter().for_each(|record| builder.push(record).unwrap());
            let expected = builder.finish().unwrap();
            prop_assert_eq!(expected.bytes(), run.bytes());
            prop_assert_eq!(own, alone);
            let behind = first + usize::try_from(run.record_count()).unwrap();
            prop_assert!(!keep.get(behind).copied().unwrap_or(false), "the run is whole");
            found.extend(first..behind);
        }
        let expected: Vec<usize> = (0..keep.len()).filter(|at| keep[*at]).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn records_come_out_as_they_went_in(records in vec(record(), 1..40), lz4: bool) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let borrowed: Vec<_> = records.iter().map(Owned::record).collect();
        let batch = batch_of(&borrowed, compression);
        let parsed = Batch::parse(batch.bytes().clone()).unwrap();
        prop_assert_eq!(&parsed, &batch);
        prop_assert_eq!(parsed.record_count() as usize, records.len());
        prop_assert_eq!(parsed.base_time(), borrowed[0].time);
        let read = parsed.records().unwrap();
        let read: Vec<_> = read.iter().map(Result::unwrap).collect();
        prop_assert_eq!(&read, &borrowed);
        for record in &read {
            prop_assert!(record.tag.is_none_or(|tag| parsed.header().may_contain(tag)));
        }
        let again = batch_of(&read, compression);
        prop_assert_eq!(again, batch);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        prop_assert!(Batch::parse(bytes.clone()).is_err());
        prop_assert!(bytes.is_empty() || split_stamped(&mut bytes.clone()).is_err());
        walk(bytes);
    }

    #[test]
    fn damage_past_the_checksum_never_panics(
        at in 0_usize..300, value: u8, second in 64_usize..300, other: u8, lz4: bool,
    ) {
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let mut bytes = sample(compression).bytes().to_vec();
        for (at, value) in [(at, value), (second, other)] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        walk(Bytes::from(bytes));
    }
}

/// Reads whatever can be read, without the protection of the checksum.
fn walk(bytes: Bytes) {
    let Ok(batch) = Batch::parse_trusted(bytes) else {
        return;
    };
    assert!(batch.extensions().count() <= 16);
    let Ok(records) = batch.records() else { return };
    for record in records.iter().map_while(Result::ok) {
        assert!(record.properties.iter().count() <= PROPERTIES_MAX);
        assert!(record.payload.len() <= records.bytes().len());
    }
}

#[test]
fn refused_record_leaves_the_builder_as_it_was() {
    let mut builder = Builder::new(BuilderOptions {
        bytes_max: 300,
        ..BuilderOptions::default()
    });
    builder.push(&Record::new(b"first", TIME)).unwrap();
    let before = builder.bytes();
    let long_tag = "t".repeat(TAG_BYTES_MAX + 1);
    let many = vec![("a", "b"); PROPERTIES_MAX + 1];
    let large = vec![0; RECORD_BYTES_MAX + 1];
    let refused = [
        Record {
            tag: Some(&long_tag),
            ..Record::new(b"", TIME)
        },
        Record {
            properties: Properties::Borrowed(&many),
            ..Record::new(b"", TIME)
        },
        Record::new(&large, TIME),
    ];
    for record in &refused {
        let error = builder.push(record).unwrap_err();
        assert!(
            matches!(
                error,
                BatchError::TooLarge { .. } | BatchError::TooManyProperties { .. }
            ),
            "{error}"
        );
    }
    assert_eq!(builder.push(&Record::new(&[0; 300], TIME)), Err(BatchError::Full));
    assert_eq!((builder.bytes(), builder.record_count()), (before, 1));
    let batch = builder.finish().unwrap();
    assert_eq!(batch.record_count(), 1);
    assert_eq!(builder.finish(), Err(BatchError::Empty));
}

#[test]
fn finished_builder_begins_anew() {
    let mut builder = Builder::new(BuilderOptions::default());
    let tagged = Record {
        tag: Some("a"),
        ..Record::new(b"one", TIME)
    };
    builder.push(&tagged).unwrap();
    let first = builder.finish().unwrap();
    builder.push(&Record::new(b"two", Timestamp(5))).unwrap();
    let second = builder.finish().unwrap();
    assert_eq!(
        (second.bloom(), second.base_time(), second.record_count()),
        (0, Timestamp(5), 1)
    );
    assert_eq!(
        first.records().unwrap().iter().next().unwrap().unwrap().payload,
        b"one"
    );
}
