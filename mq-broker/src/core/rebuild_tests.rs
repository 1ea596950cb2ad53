//! Rows rebuilt from segments that are written by hand: intact ones, and some with damaged entries.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::{GroupName, Term, Timestamp, TransactionNumber};

use super::*;
use crate::log::entry::{ChainPoint, Header, SegmentHeader, encode};
use crate::log::{Part, Stored};
use crate::state::command::{self, SendHalf};
use crate::store::disk::{Disk as _, Faults, Mode, TestDisk, write_all_at};
use crate::store::{Found, SegmentRow, Settings, Store, layout};

const DATA: &str = "d";
const NUMBERED_FROM: u64 = 1_000_000;

/// Segments without footers, so that rows can only come from the entries.
struct Journal {
    disk: TestDisk,
    seed: u32,
    point: ChainPoint,
    segment: SegmentId,
    bytes: Vec<u8>,
    /// Where the last entry begins.
    last_at: usize,
}

impl Journal {
    fn new() -> Self {
        let point = ChainPoint {
            next: Lsn(1),
            checksum: 7,
            term: Term(1),
            time: Timestamp(1),
        };
        let mut journal = Self {
            disk: TestDisk::default(),
            seed: 0,
            point,
            segment: SegmentId(0),
            bytes: Vec::new(),
            last_at: 0,
        };
        journal.begin();
        journal
    }

    /// The next segment.
    fn begin(&mut self) {
        self.segment.0 += 1;
        self.seed = self.point.checksum;
        let header = SegmentHeader {
            segment: self.segment,
            point: self.point,
            segment_bytes: 1 << 20,
        };
        self.bytes = header.encode().to_vec();
        self.save();
    }

    fn path(&self) -> PathBuf {
        layout::segment_file(Path::new(DATA), self.segment)
    }

    fn save(&self) {
        let path = self.path();
        let file = match self.disk.open(&path, Mode::CreateNew) {
            Ok(file) => file,
            Err(_) => self.disk.open(&path, Mode::Write).unwrap(),
        };
        write_all_at(&*file, &mut [IoSlice::new(&self.bytes)], 0).unwrap();
    }

    /// Writes one entry; returns its lsn.
    fn entry(&mut self, command: &Command, batches: usize) -> Lsn {
        let meta = command.encode();
        let stored: Vec<Stored> = (0..batches)
            .map(|_| {
                let batch = batch();
                Stored {
                    location: Location {
                        segment: self.segment,
                        position: 0,
                        bytes: u32::try_from(batch.len()).unwrap(),
                    },
                    checksum: batch.checksum(),
                    batch: Some(batch),
                }
            })
            .collect();
        let parts = [Part {
            meta,
            batches: u32::try_from(batches).unwrap(),
        }];
        let header = Header {
            frame_bytes: 0,
            checksum: 0,
            previous_checksum: self.point.checksum,
            lsn: self.point.next,
            term: self.point.term,
            time: self.point.time,
            synced: Lsn(self.point.next.0 - 1),
            version: 0,
            commands: 0,
            commands_bytes: 0,
            batches: 0,
        };
        let mut frame = Vec::new();
        encode(&mut frame, self.seed, header, &parts, &stored);
        for stored in &stored {
            frame.extend_from_slice(stored.batch.as_ref().unwrap().bytes());
        }
        self.point = Header::check(&frame, self.seed).unwrap().point();
        self.last_at = self.bytes.len();
        self.bytes.extend_from_slice(&frame);
        self.save();
        header.lsn
    }

    fn append(&mut self, queue: u32) {
        self.entry(&Command::Append(part(queue)), 1);
    }

    fn half(&mut self, queue: u32) -> TransactionNumber {
        let half = SendHalf {
            producer_group: GroupName::new("producers").unwrap(),
            key: None,
            check_after_ms: 0,
            checksum: 0,
            parts: vec![part(queue)],
        };
        TransactionNumber(self.entry(&Command::SendHalf(half), 1).0 + NUMBERED_FROM)
    }

    fn commit(&mut self, number: TransactionNumber) {
        let decision = Decision::Commit;
        self.entry(&Command::EndTransaction { number, decision }, 0);
    }

    fn move_half(&mut self, number: TransactionNumber, queue: u32) {
        let parts = vec![part(queue)];
        self.entry(&Command::MoveHalf { number, parts }, 1);
    }

    /// Damages the entry written last: its header, because an entry with a damaged batch is still known in
    /// full.
    fn damage_last(&mut self) {
        self.bytes[self.last_at] ^= 1;
        self.save();
    }

    /// Queue and first offset of each rebuilt row of a segment.
    fn rows(&self, segment: u64, spans: &[(u32, u64, Option<u64>)]) -> Vec<(u32, u64)> {
        self.rows_with(segment, spans, |_| Faults::default()).unwrap()
    }

    /// The same on a disk that fails once this many files have been opened.
    fn rows_with(
        &self,
        segment: u64,
        spans: &[(u32, u64, Option<u64>)],
        faults: impl FnOnce(u64) -> Faults,
    ) -> Result<Vec<(u32, u64)>, ReadError> {
        let disk = self.disk.fork();
        let folder = Folder::open(Arc::new(disk.clone()), Path::new(DATA)).unwrap();
        disk.set_faults(faults(disk.looks()));
        let spans: Vec<Span> = spans
            .iter()
            .map(|(queue, first, until)| Span {
                queue: QueueKey(*queue),
                first: Offset(*first),
                until: until.map(Offset),
            })
            .collect();
        let rebuild = FromEntries {
            folder,
            transactions_from: NUMBERED_FROM,
        };
        let rows = rebuild.rows(SegmentId(segment), &spans)?.rows;
        Ok(rows.iter().map(|row| (row.queue.0, row.base_offset.0)).collect())
    }

    /// The segment in which the batch of each row lies.
    fn places(&self, segment: u64, until: u64) -> Vec<u64> {
        let folder = Folder::open(Arc::new(self.disk.fork()), Path::new(DATA)).unwrap();
        let rebuild = FromEntries {
            folder,
            transactions_from: NUMBERED_FROM,
        };
        let span = Span {
            queue: QueueKey(1),
            first: Offset(0),
            until: Some(Offset(until)),
        };
        let rows = rebuild.rows(SegmentId(segment), &[span]).unwrap().rows;
        rows.iter().map(|row| row.location.segment.0).collect()
    }
}

fn part(queue: u32) -> command::Part {
    command::Part {
        queue: QueueKey(queue),
        records: 1,
        bytes: u32::try_from(batch().len()).unwrap(),
    }
}

fn batch() -> Batch {
    let mut builder = Builder::new(BuilderOptions::default());
    builder.push(&Record::new(b"message", Timestamp(5))).unwrap();
    builder.finish().unwrap()
}

#[test]
fn s12_behind_a_damaged_entry_only_queues_that_are_known_to_end_before_it_come_back() {
    for damaged in [false, true] {
        let mut journal = Journal::new();
        journal.append(1);
        journal.append(1);
        journal.append(2);
        journal.append(2);
        if damaged {
            journal.damage_last();
        }
        journal.begin();
        let all = vec![(1, 0), (1, 1), (2, 0), (2, 1)];
        let none = Vec::new();
        let unknown = journal.rows(1, &[(1, 0, None), (2, 0, None)]);
        assert_eq!(unknown, if damaged { none } else { all.clone() });
        let known = journal.rows(1, &[(1, 0, Some(2)), (2, 0, Some(2))]);
        assert_eq!(known, if damaged { all[..2].to_vec() } else { all });
    }
}

#[test]
fn s12_without_the_end_of_a_segment_nothing_is_made_of_what_may_go_on() {
    let mut journal = Journal::new();
    journal.append(1);
    // Neither a trailer nor a next segment confirms that these were all entries.
    assert_eq!(journal.rows(1, &[(1, 0, None)]), []);
    journal.begin();
    assert_eq!(journal.rows(1, &[(1, 0, None)]), [(1, 0)]);
}

#[test]
fn s12_a_half_message_in_a_damaged_entry_makes_no_offset_too_low() {
    for damaged in [false, true] {
        let mut journal = Journal::new();
        let number = journal.half(1);
        if damaged {
            journal.damage_last();
        }
        journal.begin();
        journal.append(2);
        journal.commit(number);
        journal.append(1);
        journal.begin();
        let known = journal.rows(2, &[(1, 0, Some(2)), (2, 0, Some(1))]);
        let expected = [(1, 0), (1, 1), (2, 0)];
        assert_eq!(known, expected[if damaged { 2 } else { 0 }..]);
        let unknown = journal.rows(2, &[(1, 0, None), (2, 0, None)]);
        assert_eq!(unknown, expected[if damaged { 3 } else { 2 }..]);
    }
}

#[test]
fn s25_without_file_descriptors_nothing_is_taken_for_damaged() {
    let mut journal = Journal::new();
    let number = journal.half(1);
    journal.begin();
    journal.append(2);
    journal.commit(number);
    journal.begin();
    let spans = [(1, 0, Some(1)), (2, 0, Some(1))];
    let whole = journal.rows(2, &spans);
    assert_eq!(whole, [(1, 0), (2, 0)]);
    let mut refused = 0;
    for look in 1.. {
        let faults = |looks| Faults {
            no_descriptors_from: looks + look,
            ..Faults::default()
        };
        match journal.rows_with(2, &spans, faults) {
            Ok(rows) => {
                assert_eq!(rows, whole, "look {look}");
                break;
            }
            Err(error) => {
                assert!(error.is_passing(), "look {look}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 4, "{refused}");
}

#[test]
fn half_messages_that_were_moved_are_found_where_they_were_moved_to_last() {
    let mut journal = Journal::new();
    let (here, before, late) = (journal.half(1), journal.half(1), journal.half(1));
    journal.begin();
    journal.move_half(here, 1);
    journal.move_half(before, 1);
    journal.append(2);
    journal.begin();
    journal.move_half(here, 1);
    journal.commit(here);
    journal.commit(before);
    journal.commit(late);
    // It was decided by then, and stays where it was.
    journal.move_half(late, 1);
    journal.begin();
    assert_eq!(journal.places(3, 3), [3, 2, 1]);
}

#[test]
fn half_messages_whose_first_segment_is_gone_are_found_where_they_were_moved_to() {
    let mut journal = Journal::new();
    let number = journal.half(1);
    journal.begin();
    journal.move_half(number, 1);
    journal.begin();
    journal.append(1);
    journal.commit(number);
    journal.begin();
    let first = layout::segment_file(Path::new(DATA), SegmentId(1));
    journal.disk.remove(&first).unwrap();
    assert_eq!(journal.places(3, 2), [3, 2]);
}

#[test]
fn a_commit_that_came_too_late_places_nothing_also_if_the_messages_were_moved_behind_the_decision() {
    let mut journal = Journal::new();
    let number = journal.half(1);
    journal.commit(number);
    journal.begin();
    journal.move_half(number, 1);
    journal.commit(number);
    journal.append(1);
    journal.begin();
    assert_eq!(journal.places(2, 1), [2]);
}

/// A store that knows a journal's segments as sealed, with the offsets at which queues 1 and 2 begin in the second one.
fn store(journal: &Journal, second: [u64; 2]) -> Store {
    let folder = Folder::open(Arc::new(journal.disk.clone()), Path::new(DATA)).unwrap();
    let row = |segment, queue, first| SegmentRow {
        segment: SegmentId(segment),
        queue: QueueKey(queue),
        first_offset: Offset(first),
    };
    let rows = crate::store::Rows {
        segments: vec![
            row(1, 1, 0),
            row(1, 2, 0),
            row(2, 1, second[0]),
            row(2, 2, second[1]),
            row(3, 1, second[0] + 1),
            row(3, 2, second[1] + 2),
        ],
        ..Default::default()
    };
    let settings = Settings {
        tail_bytes: 0,
        unreadable_patience: Duration::from_secs(30),
        ..Settings::default()
    };
    let transactions_from = NUMBERED_FROM;
    let rebuild = FromEntries {
        folder: Arc::clone(&folder),
        transactions_from,
    };
    Store::open(&folder, settings, rows).rebuilt_by(Arc::new(rebuild))
}

#[test]
fn s12_a_disk_that_fails_while_a_damaged_footer_is_made_again_makes_errors_and_no_holes_until_patience_is_over()
 {
    let mut journal = Journal::new();
    // Some blocks of each, so that a bad one hides entries of the second alone.
    (0..80).for_each(|_| journal.append(1));
    (0..80).for_each(|_| journal.append(2));
    let (path, header_at) = (journal.path(), journal.last_at as u64);
    journal.begin();
    journal.append(1);
    journal.append(2);
    journal.begin();
    let store = store(&journal, [80, 80]);
    let fetch = |queue| store.fetch(QueueKey(queue), Offset(0), Offset(1), 1 << 20);
    let is_hole = |found: &[Found]| found.iter().any(Found::is_damage);
    journal.disk.set_unreadable(&path, header_at..header_at + 1);
    for _ in 0..3 {
        let error = fetch(2).unwrap_err();
        assert!(matches!(error, ReadError::Io { .. }), "{error}");
        // What could be made is served, and says nothing of the rest.
        assert!(!is_hole(&fetch(1).unwrap()));
        store.pass(Duration::from_secs(9));
    }
    store.pass(Duration::from_secs(3));
    assert!(
        is_hole(&fetch(2).unwrap()),
        "nobody is kept from the rest for ever"
    );
    journal.disk.set_unreadable(&path, 0..0);
    store.pass(Duration::from_secs(60));
    let found = fetch(2).unwrap();
    assert_eq!(
        (found.len(), is_hole(&found)),
        (1, false),
        "it can be read after all"
    );
}

#[test]
fn s12_a_disk_that_gets_over_it_in_time_loses_nothing_wherever_it_failed_while_a_footer_was_made_again() {
    let mut journal = Journal::new();
    let number = journal.half(2);
    let half_at = journal.path();
    journal.append(1);
    journal.append(2);
    journal.begin();
    journal.append(1);
    journal.commit(number);
    journal.append(2);
    let here = journal.path();
    journal.begin();
    for (path, bytes, known) in [
        (&here, 0..1, false),
        (&here, 64..65, false),
        (&half_at, 0..1, true),
        (&half_at, 64..65, true),
        (&half_at, 0..u64::MAX, true),
    ] {
        let store = store(&journal, [1, 1]);
        let fetch = |queue, from| store.fetch(QueueKey(queue), Offset(from), Offset(from + 1), 1 << 20);
        journal.disk.set_unreadable(path, bytes.clone());
        assert_eq!(fetch(1, 1).is_ok(), known, "{bytes:?}");
        let error = fetch(2, 1).unwrap_err();
        assert!(matches!(error, ReadError::Io { .. }), "{bytes:?}: {error}");
        journal.disk.set_unreadable(path, 0..0);
        store.pass(Duration::from_secs(29));
        for (queue, from) in [(1, 0), (2, 0), (1, 1), (2, 1), (2, 2)] {
            let found = fetch(queue, from).unwrap();
            assert!(
                !found.iter().any(Found::is_damage),
                "{bytes:?} {queue} {from}: {found:?}"
            );
        }
    }
}
