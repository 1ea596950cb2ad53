//! What retention asks of the store, over sealed segments, the unsealed one, and damage.

use std::io::IoSlice;
use std::path::Path;

use super::*;
use crate::store::disk::{Disk as _, Mode, write_all_at};
use crate::store::layout;
use crate::store::test_journal::{DATA, Written, batch};

fn extent(written: &Written, offset: u64) -> Option<Extent> {
    let found = written.store.extent(QueueKey(1), Offset(offset), Offset(100));
    found.unwrap()
}

fn behind(written: &Written, start: u64, end: u64, bytes: u64) -> u64 {
    let range = (Offset(start), Offset(end));
    written.store.bytes_behind(QueueKey(1), range, bytes).unwrap().0
}

/// Queue 1 with six batches of one record each, two in each of two sealed segments and in the unsealed one,
/// among those of other queues.
fn written() -> Written {
    let mut written = Written::new(0);
    for segment in 0..3 {
        written.append(0, segment * 2, &["before", "before"]);
        written.append(1, segment * 2, &["one", "two"]);
        written.append(2, segment * 2, &["behind", "behind"]);
        if segment < 2 {
            written.seal();
        }
    }
    written
}

#[test]
fn every_offset_has_its_batch_with_time_and_size_and_none_is_read() {
    let written = written();
    let size = u32::try_from(batch("one").len()).unwrap();
    for offset in 0..6_u64 {
        let found = extent(&written, offset).unwrap();
        let expected = Extent {
            from: Offset(offset),
            end: Offset(offset + 1),
            // Three entries a segment, the second one is queue 1's; the time is the entry's number.
            time: Some(Timestamp(offset / 2 * 3 + 2)),
            bytes: size,
        };
        assert_eq!(found, expected);
    }
    assert_eq!(extent(&written, 6), None);
}

#[test]
fn bytes_are_counted_from_the_end_over_all_segments() {
    let written = written();
    let size = batch("one").len() as u64;
    for batches in 0..=6_u64 {
        assert_eq!(behind(&written, 0, 6, batches * size), 6 - batches);
        assert_eq!(
            behind(&written, 0, 6, batches * size + 1),
            5_u64.saturating_sub(batches)
        );
    }
    assert_eq!(behind(&written, 0, 6, u64::MAX), 0);
    assert_eq!(behind(&written, 4, 6, u64::MAX), 4, "not below the start");
    assert_eq!(
        behind(&written, 0, 3, size),
        2,
        "what is not visible does not count"
    );
    let nothing = written.store.bytes_behind(QueueKey(9), (Offset(0), Offset(5)), 1);
    assert_eq!(nothing.unwrap(), Offset(0));
}

#[test]
fn what_a_damaged_index_hides_has_no_time_and_no_size_and_is_passed_over() {
    let mut written = written();
    let damaged = layout::segment_file(Path::new(DATA), SegmentId(2));
    let file = written.disk.open(&damaged, Mode::Write).unwrap();
    let bytes = file.bytes().unwrap();
    write_all_at(&*file, &mut [IoSlice::new(&[0xff; 64])], bytes - 64).unwrap();
    written.store.segments.forget_footers();
    let hidden = extent(&written, 2).unwrap();
    let expected = Extent {
        from: Offset(2),
        end: Offset(4),
        time: None,
        bytes: 0,
    };
    assert_eq!(hidden, expected);
    let size = batch("one").len() as u64;
    assert_eq!(behind(&written, 0, 6, 2 * size + 1), 1);
    written.append(1, 6, &["three"]);
    assert_eq!(behind(&written, 0, 7, size), 6);
}
