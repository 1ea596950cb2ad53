//! Files of which the disk cannot read some bytes. These bytes count as damaged; the bytes around them are
//! checked.

use std::io;

use super::report::{Damage, Report};
use super::segment::Checked;
use crate::log::SegmentId;
use crate::store::disk::DiskFile;
use crate::store::io::unreadable::{Around, is_rot};
use crate::store::segment_index::footer_file::{Footer, read_footer};

/// Checks a file and adds to the report which of its bytes the disk could not read. If too little is
/// readable, the whole file counts as damaged.
///
/// # Errors
/// Errors of the disk other than unreadable bytes.
pub(super) fn check_around(
    file: &dyn DiskFile,
    name: String,
    check: impl FnOnce(&dyn DiskFile, String) -> io::Result<Checked>,
) -> io::Result<Checked> {
    let around = Around::new(file);
    let mut checked = match check(&around, name.clone()) {
        Err(error) if is_rot(&error) => {
            let bytes = file.bytes()?;
            let mut report = Report::new(name, bytes);
            report.damaged(Damage {
                end: bytes,
                what: format!("the disk cannot read it: {error}"),
                ..Damage::default()
            });
            Checked { report, point: None }
        }
        checked => checked?,
    };
    for range in around.unreadable() {
        checked.report.damaged(Damage {
            position: range.start,
            end: range.end,
            what: "the disk cannot read these bytes".to_owned(),
            ..Damage::default()
        });
    }
    Ok(checked)
}

/// The footer of a segment, if it is sealed and the disk can read it.
///
/// # Errors
/// Errors of the disk other than unreadable bytes.
pub(super) fn footer_around(file: &dyn DiskFile, segment: SegmentId) -> io::Result<Footer> {
    match read_footer(&Around::new(file), segment) {
        Err(error) if is_rot(&error) => Ok(Footer::None),
        footer => footer,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use mq_common::batch::{Builder, BuilderOptions, Record, Stamp, stamp_header};
    use mq_common::ids::{Lsn, Offset, QueueNumber, Term, Timestamp, TopicId, TopicName};

    use super::*;
    use crate::ids::QueueKey;
    use crate::inspect::dump::dump_on;
    use crate::inspect::progress::Progress;
    use crate::inspect::queue_file;
    use crate::inspect::report::{Output, Standing};
    use crate::store::disk::{Disk as _, Mode, TestDisk, write_all_at};
    use crate::store::segment_index::footer::{Trailer, encode_rows};
    use crate::store::{FileRow, FileSegment, QueueName};

    /// A queue file of eight batches with 5,000 bytes each, and its row.
    fn queue_file() -> (TestDisk, FileRow, u64) {
        let mut bytes = Vec::new();
        for offset in 0..8 {
            let mut builder = Builder::new(BuilderOptions::default());
            builder.push(&Record::new(&[7; 5000], Timestamp(1))).unwrap();
            let batch = builder.finish().unwrap();
            let stamp = Stamp {
                queue: QueueNumber(3),
                base_offset: Offset(offset),
                lsn: Lsn(offset + 1),
                append_time: Timestamp(1),
                epoch: Term(1),
                flags: 0,
            };
            let region_bytes = u32::try_from(batch.len()).unwrap();
            bytes.extend(stamp_header(&stamp, region_bytes, batch.checksum()));
            bytes.extend(batch.bytes().iter());
        }
        let disk = TestDisk::default();
        let file = disk.open(Path::new("file"), Mode::CreateNew).unwrap();
        write_all_at(&*file, &mut [io::IoSlice::new(&bytes)], 0).unwrap();
        let row = FileRow {
            queue: QueueKey(1),
            first: Offset(0),
            generation: 0,
            segment: FileSegment {
                end: Offset(8),
                bytes: u32::try_from(bytes.len()).unwrap(),
                planned_bytes: 1 << 20,
            },
            name: QueueName {
                topic: Arc::new(TopicName::new("orders").unwrap()),
                topic_id: TopicId(1),
                number: QueueNumber(3),
            },
            is_gone: false,
        };
        (disk, row, bytes.len() as u64)
    }

    fn check(disk: &TestDisk, row: &FileRow) -> Report {
        let file = disk.open(Path::new("file"), Mode::Read).unwrap();
        let checked = check_around(&*file, "file".to_owned(), |file, name| {
            let report = queue_file::check(file, name, row, &Progress::new(1))?;
            Ok(Checked { report, point: None })
        });
        checked.unwrap().report
    }

    #[test]
    fn s6_a_bad_sector_does_not_end_the_check_and_is_told_with_what_it_held() {
        let (disk, row, bytes) = queue_file();
        assert_eq!(check(&disk, &row).standing, Standing::Ok);
        disk.set_unreadable(Path::new("file"), 13_000..13_001);
        let report = check(&disk, &row);
        assert_eq!(report.standing, Standing::Damaged);
        let lost: Vec<_> = report
            .damage
            .iter()
            .filter_map(|damage| damage.first_offset)
            .collect();
        assert_eq!(lost, [2], "{report:?}");
        let told = report.damage.last().unwrap();
        assert!(
            told.position == 12_288 && (13_001..=16_384).contains(&told.end),
            "{report:?}"
        );
        assert!(told.what.contains("the disk cannot read"), "{report:?}");
        disk.set_unreadable(Path::new("file"), 0..bytes);
        let report = check(&disk, &row);
        assert_eq!(report.standing, Standing::Damaged);
    }

    #[test]
    fn s6_a_footer_that_the_disk_cannot_read_is_none_and_no_end_of_the_check() {
        let disk = TestDisk::default();
        let path = Path::new("segment").to_owned();
        let rows = encode_rows(&[]);
        let trailer = Trailer {
            segment: SegmentId(1),
            last: Lsn(1),
            synced: Lsn(1),
            chain: 0,
            frames_end: 5000,
            rows_at: 5000,
            rows: 0,
            rows_checksum: crc32c::crc32c(&rows),
        };
        let whole = [&[7; 5000], &rows[..], &trailer.encode()[..]].concat();
        disk.set_content(&path, whole);
        let footer = || footer_around(&*disk.open(&path, Mode::Read).unwrap(), SegmentId(1));
        assert!(matches!(footer(), Ok(Footer::Whole(..))));
        let bytes = disk.content(&path).unwrap().len() as u64;
        for bad in [bytes - 10..bytes, 0..bytes, 0..u64::MAX] {
            disk.set_unreadable(&path, bad);
            assert!(matches!(footer(), Ok(Footer::None)), "{:?}", footer());
        }
    }

    #[tokio::test]
    async fn s6_a_bad_sector_does_not_end_a_dump_and_is_named_in_it() {
        let (disk, row, _) = queue_file();
        let path = Path::new("queue_data.00000000000000000000");
        disk.rename(Path::new("file"), path).unwrap();
        disk.set_unreadable(path, 13_000..13_001);
        let mut out = Vec::new();
        dump_on(&disk, path, None, (None, Output::Table), &mut out)
            .await
            .unwrap();
        let out = String::from_utf8(out).unwrap();
        let batches = out.lines().filter(|line| line.contains("1 records")).count();
        assert_eq!(batches as u64, row.segment.end.0 - 1, "{out}");
        let last = out.lines().last().unwrap();
        let is_named = last.starts_with("bytes 12288..") && last.ends_with(": the disk cannot read them");
        assert!(is_named, "{out}");
    }
}
