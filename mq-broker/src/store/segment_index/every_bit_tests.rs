//! A sealed segment of 64 KiB, each bit of it flipped in turn: what a reader gets.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::Arc;

use mq_common::ids::Offset;

use crate::ids::QueueKey;
use crate::store::disk::{Disk as _, DiskFile, Mode, write_all_at};
use crate::store::segment_index::footer::{ROW_BYTES, TRAILER_BYTES};
use crate::store::test_journal::Written;
use crate::store::{Found, PlacedRow, ReadError, Rebuild, Rebuilt, SegmentId, Settings, Span, Store};

const SEGMENT_BYTES: usize = 64 * 1024;
const QUEUES: u32 = 2;

/// What was placed, as a rebuild from the entries finds it.
#[derive(Debug)]
struct Makes(Vec<PlacedRow>);

impl Rebuild for Makes {
    fn rows(&self, _: SegmentId, _: &[Span]) -> Result<Rebuilt, ReadError> {
        Ok(self.0.clone().into())
    }
}

/// The store of such a segment, as after a start, its file, and its rows.
fn sealed() -> (Written, Arc<dyn DiskFile>, Vec<PlacedRow>) {
    let mut written = Written::with(Settings {
        tail_bytes: 0,
        ..Settings::default()
    });
    let path = written.path();
    let text = |bytes: usize| "x".repeat(bytes);
    let mut next: HashMap<u32, u64> = HashMap::new();
    let mut append = |written: &mut Written, count: u32, bytes: usize| {
        let offset = next.entry(count % QUEUES).or_default();
        written.append(count % QUEUES, *offset, &[&text(bytes)]);
        *offset += 1;
    };
    let (mut count, begin) = (0_u32, written.position as usize);
    append(&mut written, count, 1000);
    let around = written.position as usize - begin - 1000;
    // The last one fills it up.
    let room = |written: &Written, count: u32| {
        let footer = (count as usize + 2) * ROW_BYTES + TRAILER_BYTES;
        SEGMENT_BYTES - written.position as usize - footer - around
    };
    while room(&written, count) > 3000 {
        count += 1;
        append(&mut written, count, 1000);
    }
    let bytes = room(&written, count);
    append(&mut written, count + 1, bytes);
    written.seal();
    let rows = written.store.segments.footer(SegmentId(1)).unwrap();
    let rows: Vec<_> = (0..rows.len()).filter_map(|at| rows.get(at)).collect();
    written.store.segments.forget_footers();
    written.store = written.store.rebuilt_by(Arc::new(Makes(rows.clone())));
    let file = written.disk.open(&path, Mode::Write).unwrap();
    assert_eq!(file.bytes().unwrap(), SEGMENT_BYTES as u64);
    (written, file, rows)
}

/// From these rows' offsets on, up to `count` batches of the queue.
fn read(store: &Store, row: &PlacedRow, count: u64) -> Vec<Found> {
    let end = Offset(row.base_offset.0 + count);
    store.fetch(row.queue, row.base_offset, end, 1 << 20).unwrap()
}

#[test]
fn s6_whichever_of_524288_bits_flips_the_reader_loses_the_one_batch_that_it_is_in_and_gets_the_rest() {
    let (written, file, rows) = sealed();
    let store = &written.store;
    let whole: HashMap<(QueueKey, Offset), Found> = rows
        .iter()
        .map(|row| ((row.queue, row.base_offset), read(store, row, 1).remove(0)))
        .collect();
    assert!(whole.values().all(|found| !found.is_damage()));
    let firsts: Vec<_> = rows.iter().filter(|row| row.base_offset == Offset(0)).collect();
    let bytes = written
        .disk
        .content(&crate::store::layout::segment_file("d".as_ref(), SegmentId(1)))
        .unwrap();
    let rows_at = SEGMENT_BYTES - TRAILER_BYTES - rows.len() * ROW_BYTES;
    for bit in 0..SEGMENT_BYTES * 8 {
        let byte = bit / 8;
        let write = |value: u8| write_all_at(&*file, &mut [IoSlice::new(&[value])], byte as u64).unwrap();
        write(bytes[byte] ^ (1 << (bit % 8)));
        let hit = rows.iter().find(|row| {
            let from = row.location.position as usize;
            (from..from + row.location.bytes as usize).contains(&byte)
        });
        let is_right = |row: &PlacedRow, found: &Found| match found {
            Found::Hole { from, end, .. } => {
                hit == Some(row) && (*from, *end) == (row.base_offset, row.end())
            }
            batch => hit != Some(row) && whole.get(&(row.queue, row.base_offset)) == Some(batch),
        };
        if byte >= rows_at {
            store.segments.forget_footers();
        }
        // The batch and the next one each time, or the first of each queue; now and then all.
        let looks: Vec<(&PlacedRow, u64)> = match hit {
            _ if bit % 509 == 0 => firsts.iter().map(|row| (*row, 1000)).collect(),
            Some(row) => vec![(row, 2)],
            None if byte >= rows_at => firsts.iter().map(|row| (*row, 1)).collect(),
            None => Vec::new(),
        };
        for (first, count) in looks {
            let of_queue = rows.iter().filter(|row| row.queue == first.queue);
            let expected: Vec<_> = of_queue
                .skip_while(|row| row.base_offset < first.base_offset)
                .take(usize::try_from(count).unwrap())
                .collect();
            let mut found = Vec::new();
            while let Some(next) = expected.get(found.len()) {
                let left = (expected.len() - found.len()) as u64;
                found.extend(read(store, next, left));
            }
            assert_eq!(found.len(), expected.len(), "bit {bit}");
            assert!(
                expected
                    .iter()
                    .zip(&found)
                    .all(|(row, found)| is_right(row, found)),
                "bit {bit}: {found:?}"
            );
        }
        write(bytes[byte]);
    }
}
