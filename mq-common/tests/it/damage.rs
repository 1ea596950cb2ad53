//! Damaged, cut, lying and foreign bytes: each is refused, none panics, none allocates what it merely claims.

use bytes::{Bytes, BytesMut};
use mq_common::batch::{
    Batch, BatchError, Compression, REGION_HEADER_BYTES, Record, STAMPED_HEADER_BYTES, Stamp, split_stamped,
    stamp_header,
};
use mq_common::ids::{Lsn, Offset, QueueNumber, Term, Timestamp};

use super::{TIME, batch_of, sample};

fn samples() -> Vec<Batch> {
    vec![
        sample(Compression::None),
        sample(Compression::Lz4),
        batch_of(&[Record::new(b"", TIME)], Compression::None),
        batch_of(&[Record::new(&[0; 2000], TIME)], Compression::Lz4),
    ]
}

fn stamped(batch: &Batch, queue: u32) -> Bytes {
    let stamp = Stamp {
        queue: QueueNumber(queue),
        base_offset: Offset(42),
        lsn: Lsn(7),
        append_time: Timestamp(TIME.0 + 1),
        epoch: Term(2),
        flags: 0,
    };
    let header = stamp_header(&stamp, u32::try_from(batch.len()).unwrap(), batch.checksum());
    Bytes::from([&header[..], batch.bytes()].concat())
}

fn flipped(bytes: &[u8], bit: usize) -> Bytes {
    let mut copy = BytesMut::from(bytes);
    copy[bit / 8] ^= 1 << (bit % 8);
    copy.freeze()
}

/// Gives `batch` other header bytes and a checksum that fits them, as a lying peer would.
fn forged(batch: &Batch, at: usize, value: &[u8]) -> Bytes {
    let mut copy = BytesMut::from(&batch.bytes()[..]);
    copy[at..at + value.len()].copy_from_slice(value);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&copy[..4]), &copy[8..]);
    copy[4..8].copy_from_slice(&checksum.to_be_bytes());
    copy.freeze()
}

#[test]
fn every_flipped_bit_of_a_batch_is_detected() {
    for batch in samples() {
        for bit in 0..8 * batch.len() {
            let outcome = Batch::parse(flipped(batch.bytes(), bit));
            assert!(outcome.is_err(), "bit {bit} of {} bytes", batch.len());
        }
    }
}

#[test]
fn every_flipped_bit_of_a_stamped_batch_is_detected() {
    for batch in samples() {
        let bytes = stamped(&batch, 1);
        for bit in 0..8 * bytes.len() {
            let outcome = split_stamped(&mut flipped(&bytes, bit));
            assert!(outcome.is_err(), "bit {bit} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn every_cut_of_a_batch_is_detected() {
    let batch = sample(Compression::None);
    for end in 0..batch.len() {
        assert!(
            Batch::parse(batch.bytes().slice(..end)).is_err(),
            "cut to {end} bytes"
        );
    }
    let bytes = stamped(&batch, 1);
    for end in 1..bytes.len() {
        assert!(
            split_stamped(&mut bytes.slice(..end)).is_err(),
            "cut to {end} bytes"
        );
    }
    assert!(Batch::parse(Bytes::from([&batch.bytes()[..], b"x"].concat())).is_err());
}

#[test]
fn stamp_in_front_of_another_batch_is_detected() {
    let (mine, other) = (sample(Compression::None), sample(Compression::None));
    let other = forged(&other, 16, &[1]);
    assert_eq!(mine.len(), other.len());
    let header = &stamped(&mine, 1)[..STAMPED_HEADER_BYTES];
    let outcome = split_stamped(&mut Bytes::from([header, &other].concat()));
    assert!(
        matches!(
            outcome,
            Err(BatchError::Checksum {
                what: "the stamp",
                ..
            })
        ),
        "{outcome:?}"
    );
}

#[test]
fn damaged_batch_behind_a_good_stamp_leaves_the_next_one_readable() {
    let batch = sample(Compression::None);
    let one = stamped(&batch, 1);
    let two = stamped(&batch, 2);
    let mut bytes = Bytes::from([&flipped(&one, 8 * one.len() - 1)[..], &two].concat());
    assert!(matches!(
        split_stamped(&mut bytes),
        Err(BatchError::Checksum {
            what: "the batch",
            ..
        })
    ));
    let next = split_stamped(&mut bytes).unwrap().unwrap();
    assert_eq!(next.stamp.queue, QueueNumber(2));
}

#[test]
fn record_count_beyond_what_the_length_allows_is_refused_at_the_door() {
    let batch = sample(Compression::None);
    let unpacked = batch.header().unpacked_bytes;
    for lie in [0, unpacked / 3 + 1, u32::MAX] {
        let outcome = Batch::parse(forged(&batch, 12, &lie.to_be_bytes()));
        assert!(
            matches!(outcome, Err(BatchError::RecordCount { stated, .. }) if stated == lie),
            "{outcome:?}"
        );
    }
}

#[test]
fn plausible_lie_about_the_record_count_is_found_by_the_reader() {
    let batch = sample(Compression::None);
    assert_eq!(batch.record_count(), 4);
    for (lie, whole_records) in [(3_u32, 3), (5, 4)] {
        let forged = Batch::parse(forged(&batch, 12, &lie.to_be_bytes())).unwrap();
        let records = forged.records().unwrap();
        let read: Vec<_> = records.iter().collect();
        assert_eq!(read.len(), whole_records + 1);
        assert!(
            matches!(read.last(), Some(Err(BatchError::RecordCount { .. }))),
            "{read:?}"
        );
    }
}

#[test]
fn stated_unpacked_length_is_limited_before_room_is_made() {
    let batch = sample(Compression::Lz4);
    let stored = u32::try_from(batch.len() - REGION_HEADER_BYTES).unwrap();
    for lie in [u32::MAX, 8 * 1024 * 1024 + 1, stored * 255 + 1] {
        assert!(Batch::parse(forged(&batch, 56, &lie.to_be_bytes())).is_err());
    }
    let honest = batch.header().unpacked_bytes;
    for lie in [honest - 1, honest + 1] {
        let forged = Batch::parse(forged(&batch, 56, &lie.to_be_bytes())).unwrap();
        assert!(forged.records().is_err(), "stated {lie}, true {honest}");
    }
}

#[test]
fn unknown_features_are_refused_by_name() {
    let batch = sample(Compression::None);
    assert!(matches!(
        Batch::parse(forged(&batch, 0, &[2])),
        Err(BatchError::UnsupportedVersion { version: 2, .. })
    ));
    for attributes in [0x0002_u16, 0x0008, 0x0800] {
        assert!(matches!(
            Batch::parse(forged(&batch, 2, &attributes.to_be_bytes())),
            Err(BatchError::UnknownAttributes { .. })
        ));
    }
    let optional = Batch::parse(forged(&batch, 2, &0x8000_u16.to_be_bytes())).unwrap();
    assert_eq!(optional.record_count(), 4);
}

/// A batch with this extension block, built by hand: the builder writes none yet.
fn with_extensions(block: &[u8]) -> Bytes {
    let batch = sample(Compression::None);
    let (head, records) = batch.bytes().split_at(REGION_HEADER_BYTES);
    let mut region = BytesMut::from(&[head, block, records].concat()[..]);
    let length = u32::try_from(region.len()).unwrap().to_be_bytes();
    region[8..12].copy_from_slice(&length);
    region[60..64].copy_from_slice(&u32::try_from(block.len()).unwrap().to_be_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&region[..4]), &region[8..]);
    region[4..8].copy_from_slice(&checksum.to_be_bytes());
    region.freeze()
}

#[test]
fn extensions_are_skipped_or_refused_by_their_highest_bit() {
    let optional = [&[0x00, 0x63, 0, 0, 0, 3][..], b"abc"].concat();
    let batch = Batch::parse(with_extensions(&optional)).unwrap();
    let found: Vec<_> = batch.extensions().map(Result::unwrap).collect();
    assert_eq!((found[0].kind, found[0].value), (0x63, &b"abc"[..]));
    assert_eq!(batch.records().unwrap().iter().filter(Result::is_ok).count(), 4);

    let required = [0x80, 0x63, 0, 0, 0, 0];
    assert_eq!(
        Batch::parse(with_extensions(&required)),
        Err(BatchError::UnknownExtension { kind: 0x8063 })
    );
    let cut = [0x00, 0x63, 0, 0, 0, 9];
    assert!(matches!(
        Batch::parse(with_extensions(&cut)),
        Err(BatchError::Malformed(_))
    ));
    let many = optional.repeat(17);
    assert!(matches!(
        Batch::parse(with_extensions(&many)),
        Err(BatchError::Malformed(_))
    ));
}
