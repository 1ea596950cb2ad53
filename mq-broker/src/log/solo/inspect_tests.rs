//! S6 over a whole sealed segment of 64 KiB, full to the last byte: each of its 524,288 bits flipped.

use std::path::Path;

use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::{Offset, Term, Timestamp};

use super::super::segment::write_footer;
use super::*;
use crate::ids::QueueKey;
use crate::log::entry::encode;
use crate::store::disk::{Disk as _, Mode, TestDisk, write_all_at};
use crate::store::segment_index::footer::{ROW_BYTES, TRAILER_BYTES};
use crate::store::segment_index::footer_file::{Footer, read_footer};
use crate::store::{Location, PlacedRow, SegmentId};

const SEGMENT_BYTES: usize = 64 * 1024;
const SEED: u32 = 0x1357_9bdf;
const SEGMENT: SegmentId = SegmentId(9);

fn batch(seed: u64, bytes: usize) -> Batch {
    let mut random = fastrand::Rng::with_seed(seed);
    let payload: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
    let mut builder = Builder::new(BuilderOptions::default());
    builder.push(&Record::new(&payload, Timestamp(1))).unwrap();
    builder.finish().unwrap()
}

struct Frame {
    position: usize,
    bytes: Bytes,
    header: Header,
    point: ChainPoint,
}

struct Sealed {
    disk: TestDisk,
    bytes: Vec<u8>,
    header: SegmentHeader,
    frames: Vec<Frame>,
    rows: Vec<PlacedRow>,
}

impl Sealed {
    /// Two batches a frame, the last frame as large as what is left.
    fn new() -> Self {
        let header = SegmentHeader {
            segment: SEGMENT,
            point: ChainPoint {
                next: Lsn(100),
                checksum: SEED,
                term: Term(3),
                time: Timestamp(5),
            },
            segment_bytes: u32::try_from(SEGMENT_BYTES).unwrap(),
        };
        let mut bytes = header.encode().to_vec();
        let mut point = header.point;
        let (mut frames, mut rows) = (Vec::new(), Vec::<PlacedRow>::new());
        let overhead = batch(0, 3000).len() - 3000;
        while bytes.len() + TRAILER_BYTES + rows.len() * ROW_BYTES < SEGMENT_BYTES {
            let left = SEGMENT_BYTES - TRAILER_BYTES - (rows.len() + 2) * ROW_BYTES - bytes.len();
            let content = left - FRAME_HEADER_BYTES - 3 * 8 - 7 - 2 * overhead;
            let sizes = if content < 9000 {
                [content / 2, content - content / 2]
            } else {
                [2000, 1100]
            };
            let batches = [
                batch(point.next.0, sizes[0]),
                batch(point.next.0 + 1000, sizes[1]),
            ];
            let position = bytes.len();
            let (frame, stored) = frame(&point, position, &batches);
            let head = Header::check(&frame, SEED).unwrap();
            for stored in stored {
                rows.push(PlacedRow {
                    queue: QueueKey(4),
                    base_offset: Offset(rows.len() as u64),
                    count: 1,
                    location: stored.location,
                    checksum: stored.checksum,
                    lsn: head.lsn,
                    term: head.term,
                    time: head.time,
                    flags: 0,
                });
            }
            bytes.extend_from_slice(&frame);
            frames.push(Frame {
                position,
                bytes: frame,
                header: head,
                point,
            });
            point = head.point();
        }
        let disk = TestDisk::default();
        disk.create_folder(Path::new("d")).unwrap();
        let file = disk.open(Path::new("d/s"), Mode::CreateNew).unwrap();
        write_all_at(&*file, &mut [io::IoSlice::new(&bytes)], 0).unwrap();
        let frames_end = u32::try_from(bytes.len()).unwrap();
        let end = u64::from(header.segment_bytes.max(frames_end));
        write_footer(&*file, header.segment, frames_end, &point, &rows, end).unwrap();
        let bytes = disk.content(Path::new("d/s")).unwrap();
        assert_eq!(bytes.len(), SEGMENT_BYTES);
        assert_eq!(
            frames_end as usize + rows.len() * ROW_BYTES + TRAILER_BYTES,
            SEGMENT_BYTES,
            "no unused byte"
        );
        Self {
            disk,
            bytes,
            header,
            frames,
            rows,
        }
    }

    fn flipped(&self, bit: usize) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    }

    /// Everything that an inspection finds in these bytes: damage as ranges, whole batches as positions.
    fn inspect(&self, bytes: Vec<u8>) -> (Vec<(u32, u32)>, Vec<u32>) {
        self.disk.set_content(Path::new("d/s"), bytes);
        let file = self.disk.open(Path::new("d/s"), Mode::Read).unwrap();
        let frames_end = match read_footer(&*file, SEGMENT).unwrap() {
            Footer::Whole(trailer, _) | Footer::Rows(trailer) => Some(trailer.frames_end),
            _ => None,
        };
        let mut inspection = Inspection::begin(self.header);
        let (mut damage, mut whole) = (Vec::new(), Vec::new());
        while let Some(piece) = inspection.next(&*file, frames_end).unwrap() {
            match piece {
                Piece::Damaged { position, end, .. } => damage.push((position, end)),
                Piece::Entry { batches, .. } => {
                    for stored in batches {
                        let Location { position, bytes, .. } = stored.location;
                        match stored.batch {
                            Some(_) => whole.push(position),
                            None => damage.push((position, position + bytes)),
                        }
                    }
                }
            }
        }
        (damage, whole)
    }
}

fn frame(point: &ChainPoint, position: usize, batches: &[Batch]) -> (Bytes, Vec<Stored>) {
    let header = Header {
        frame_bytes: 0,
        checksum: 0,
        previous_checksum: point.checksum,
        lsn: point.next,
        term: point.term,
        time: point.time,
        synced: Lsn(point.next.0 - 1),
        version: 0,
        commands: 0,
        commands_bytes: 0,
        batches: 0,
    };
    let parts = [Part {
        meta: Bytes::from_static(b"command"),
        batches: u32::try_from(batches.len()).unwrap(),
    }];
    let mut at = position + FRAME_HEADER_BYTES + 8 + 7 + 8 * batches.len();
    let stored: Vec<Stored> = batches
        .iter()
        .map(|batch| {
            let location = Location {
                segment: SEGMENT,
                position: u32::try_from(at).unwrap(),
                bytes: u32::try_from(batch.len()).unwrap(),
            };
            at += batch.len();
            Stored {
                location,
                checksum: batch.checksum(),
                batch: Some(batch.clone()),
            }
        })
        .collect();
    let mut out = Vec::new();
    encode(&mut out, SEED, header, &parts, &stored);
    for batch in batches {
        out.extend_from_slice(batch.bytes());
    }
    (out.into(), stored)
}

/// What a reader makes of a frame in which one bit is flipped: `None` = it is no frame, else which batches
/// hold.
fn read(frame: &Frame, bit: usize, header: &SegmentHeader) -> Option<Vec<bool>> {
    let mut bytes = frame.bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    let bytes = Bytes::from(bytes);
    let head = Header::check(&bytes, SEED).ok()?;
    if !head.follows(&frame.point) {
        return None;
    }
    let position = u32::try_from(frame.position).unwrap();
    let (_, batches) = scan::read_entry(&bytes, &head, header, position).ok()?;
    Some(batches.iter().map(|stored| stored.batch.is_some()).collect())
}

#[test]
fn s6_each_of_the_524288_bits_of_a_sealed_segment_is_detected_and_harms_one_batch_at_most() {
    let sealed = Sealed::new();
    let mut bits = 0;
    for bit in 0..SEGMENT_HEADER_BYTES * 8 {
        let bytes = sealed.flipped(bit);
        assert!(SegmentHeader::decode(&bytes).is_err(), "bit {bit}");
        bits += 1;
    }
    for frame in &sealed.frames {
        let first_batch = frame.header.bodies_at() * 8;
        let sizes = sealed.rows.iter().filter(|row| row.lsn == frame.header.lsn);
        let sizes: Vec<usize> = sizes.map(|row| row.location.bytes as usize * 8).collect();
        for bit in 0..frame.bytes.len() * 8 {
            let expected = (bit >= first_batch).then(|| {
                let in_first = bit < first_batch + sizes[0];
                vec![!in_first, in_first]
            });
            assert_eq!(
                read(frame, bit, &sealed.header),
                expected,
                "frame at {}, bit {bit}",
                frame.position
            );
            bits += 1;
        }
    }
    let footer_at = SEGMENT_BYTES - TRAILER_BYTES - sealed.rows.len() * ROW_BYTES;
    let file = sealed.disk.open(Path::new("d/s"), Mode::Read).unwrap();
    for bit in footer_at * 8..SEGMENT_BYTES * 8 {
        sealed.disk.set_content(Path::new("d/s"), sealed.flipped(bit));
        let found = read_footer(&*file, SEGMENT).unwrap();
        let in_trailer = bit / 8 >= SEGMENT_BYTES - TRAILER_BYTES;
        match found {
            Footer::None if in_trailer => {}
            Footer::Rows(_) if !in_trailer => {}
            other => panic!("bit {bit}: {other:?}"),
        }
        bits += 1;
    }
    assert_eq!(bits, 524_288);
}

#[test]
fn s6_an_inspection_goes_on_behind_damage_and_finds_all_that_is_whole() {
    let sealed = Sealed::new();
    let all: Vec<u32> = sealed.rows.iter().map(|row| row.location.position).collect();
    assert_eq!(sealed.inspect(sealed.bytes.clone()), (vec![], all.clone()));
    for bit in (SEGMENT_HEADER_BYTES * 8..SEGMENT_BYTES * 8).step_by(1009) {
        let byte = bit / 8;
        let (damage, whole) = sealed.inspect(sealed.flipped(bit));
        let frame = sealed
            .frames
            .iter()
            .rfind(|frame| frame.position <= byte)
            .unwrap();
        if byte >= frame.position + frame.bytes.len() {
            // The footer: frames do without it.
            assert_eq!((damage, whole), (vec![], all.clone()), "bit {bit}");
            continue;
        }
        assert_eq!(damage.len(), 1, "bit {bit}");
        let (from, end) = damage[0];
        assert!(
            (from as usize..end as usize).contains(&byte),
            "bit {bit}: {from}..{end}"
        );
        let outside = all.iter().filter(|at| !(from..end).contains(*at)).count();
        assert_eq!(whole.len(), outside, "bit {bit}");
        assert!(
            outside >= all.len() - 2,
            "bit {bit}: at most one frame is passed over"
        );
    }
}

#[test]
fn s8_lengths_that_lie_are_damage_and_cost_no_memory() {
    let sealed = Sealed::new();
    let frame = &sealed.frames[2];
    for length in [0, 1, 59, 60, 1 << 31, u32::MAX, u32::MAX - 1] {
        for field in [0, 48, 52] {
            let mut bytes = sealed.bytes.clone();
            let at = frame.position + field;
            bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
            let (damage, whole) = sealed.inspect(bytes);
            let end = u32::try_from(frame.position + frame.bytes.len()).unwrap();
            assert_eq!(
                damage,
                [(u32::try_from(frame.position).unwrap(), end)],
                "{length} at {field}"
            );
            assert_eq!(whole.len(), sealed.rows.len() - 2);
        }
    }
}
