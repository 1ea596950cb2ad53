//! The bytes of format version 1. A file here is never edited: another layout is another version with files
//! of its own.

use bytes::Bytes;
use mq_common::batch::{
    Batch, Builder, BuilderOptions, Compression, Producer, Record, Stamp, split_stamped, stamp_header,
};
use mq_common::ids::{Lsn, Offset, QueueNumber, Term, Timestamp};

use super::{TIME, sample};

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or(""))
        .flat_map(str::bytes)
        .filter(u8::is_ascii_hexdigit)
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn to_hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.chunks(16).map(|line| line.join(" ") + "\n").collect()
}

fn assert_golden(golden: &str, bytes: &[u8]) {
    assert!(from_hex(golden) == bytes, "the bytes are now\n{}", to_hex(bytes));
}

#[test]
fn plain_batch() {
    let golden = include_str!("../golden/batch_v1_plain.hex");
    let batch = sample(Compression::None);
    assert_golden(golden, batch.bytes());
    assert_eq!(Batch::parse(Bytes::from(from_hex(golden))), Ok(batch));
}

#[test]
fn lz4_batch_of_another_encoder_version_still_reads() {
    let golden = Bytes::from(from_hex(include_str!("../golden/batch_v1_lz4.hex")));
    let batch = Batch::parse(golden).unwrap();
    assert_eq!(batch.compression(), Compression::Lz4);
    let plain = sample(Compression::None);
    let (read, wrote) = (batch.records().unwrap(), plain.records().unwrap());
    assert_eq!(read.iter().collect::<Vec<_>>(), wrote.iter().collect::<Vec<_>>());
}

#[test]
fn single_record_with_producer() {
    let mut builder = Builder::new(BuilderOptions::default());
    builder.set_producer(Producer {
        id: 0x0102_0304_0506_0708,
        epoch: 9,
        first_sequence: 1000,
    });
    builder.push(&Record::new(b"hello", TIME)).unwrap();
    let batch = builder.finish().unwrap();
    assert_golden(include_str!("../golden/batch_v1_producer.hex"), batch.bytes());
}

#[test]
fn stamped_batch() {
    let batch = sample(Compression::None);
    let stamp = Stamp {
        queue: QueueNumber(3),
        base_offset: Offset(1_000_000),
        lsn: Lsn(77),
        append_time: Timestamp(TIME.0 + 12),
        epoch: Term(5),
        flags: Stamp::TRANSACTIONAL,
    };
    let length = u32::try_from(batch.len()).unwrap();
    let header = stamp_header(&stamp, length, batch.checksum());
    assert_golden(include_str!("../golden/stamp_v1.hex"), &header);
    let mut served = Bytes::from([&header[..], batch.bytes()].concat());
    let split = split_stamped(&mut served).unwrap().unwrap();
    assert_eq!((split.stamp, &split.batch), (stamp, &batch));
    assert_eq!(split.end(), Offset(1_000_004));
    assert_eq!(split_stamped(&mut served), Ok(None));
}

#[test]
fn compression_shrinks_the_sample() {
    let (plain, packed) = (sample(Compression::None), sample(Compression::Lz4));
    assert_eq!(packed.compression(), Compression::Lz4);
    assert!(
        packed.len() < plain.len(),
        "{} bytes, plain {}",
        packed.len(),
        plain.len()
    );
}
