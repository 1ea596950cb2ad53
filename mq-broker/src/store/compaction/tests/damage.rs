//! Queue files and their indexes, damaged by hand.

use std::path::PathBuf;

use super::*;

/// Queue 1 with these messages, moved into one file; and the paths of that and of its index.
fn one_file(texts: &[&str]) -> (Written, PathBuf, PathBuf) {
    let mut written = Written::new(0);
    written.append(1, 0, texts);
    written.seal();
    compact(&written.store, &[1]);
    let name = planned(QueueKey(1), 0).name;
    let data = layout::queue_data_file(Path::new(DATA), &name, Offset(0), 0);
    let index = layout::queue_index_file(Path::new(DATA), &name, Offset(0), 0);
    (written, data, index)
}

/// A store that knows what the given one does, and has nothing in memory.
fn cold(written: &mut Written, image: &Image) {
    written.store = Store::open(
        &written.folder,
        Settings {
            tail_bytes: 0,
            ..Settings::default()
        },
        image.rows(),
    );
}

#[test]
fn s6_every_flipped_bit_of_a_queue_file_is_a_hole_of_its_batch_or_to_the_next_mark() {
    let texts = ["one", "two", "three"];
    let (mut written, data, index) = one_file(&texts);
    let mut image = Image::default();
    image.save(written.store.take_rows());
    let whole = written.disk.content(&data).unwrap();
    let marks = written.disk.content(&index).unwrap();
    let mut lost = 0;
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        written.disk.set_content(&data, damaged);
        written.disk.set_content(&index, marks.clone());
        cold(&mut written, &image);
        let mut next = 0;
        while next < 3 {
            let found = written
                .store
                .fetch(QueueKey(1), Offset(next), Offset(3), 1 << 20)
                .unwrap();
            for found in &found {
                match crate::store::test_journal::text(found) {
                    Ok(text) => assert_eq!(text, texts[usize::try_from(next).unwrap()], "bit {bit}"),
                    Err((from, end)) => {
                        assert!(from == next && end > from, "bit {bit}");
                        lost += 1;
                    }
                }
                next = found.end().0;
            }
        }
    }
    assert_eq!(lost, whole.len() * 8, "each flipped bit is one hole");
}

/// Messages with enough bytes for many marks.
fn long_file() -> (Written, Image, PathBuf, PathBuf, Vec<Served>) {
    let texts: Vec<String> = (0..60).map(|n| format!("{n:04} {}", "x".repeat(1000))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let (mut written, data, index) = one_file(&texts);
    let mut image = Image::default();
    image.save(written.store.take_rows());
    cold(&mut written, &image);
    let all = everything(&written.store, &[(1, 60)]);
    assert_eq!(all.len(), 60);
    (written, image, data, index, all)
}

#[test]
fn s12_an_index_that_is_missing_cut_or_garbled_is_made_again_and_answers_the_same() {
    let (mut written, image, _, index, all) = long_file();
    let whole = written.disk.content(&index).unwrap();
    assert!(whole.len() > 6 * 32, "{} bytes", whole.len());
    let check = |written: &mut Written| {
        cold(written, &image);
        // From the end first, so that each looks its place up.
        for from in (0..60).rev() {
            let found = written
                .store
                .fetch(QueueKey(1), Offset(from), Offset(60), 1)
                .unwrap();
            assert!(matches!(&found[..], [Found::Batch { row, .. }] if row.base_offset == Offset(from)));
        }
        assert_eq!(everything(&written.store, &[(1, 60)]), all);
    };
    written.disk.remove(&index).unwrap();
    check(&mut written);
    assert_eq!(written.disk.content(&index).unwrap(), whole, "rebuilt as it was");
    for cut in 0..whole.len() {
        written.disk.set_content(&index, whole[..cut].to_vec());
        check(&mut written);
    }
    for byte in 0..whole.len() {
        let mut garbled = whole.clone();
        garbled[byte] ^= 0xff;
        written.disk.set_content(&index, garbled);
        check(&mut written);
    }
}

#[test]
fn s12_an_index_that_holds_and_is_wrong_is_not_believed() {
    let (mut written, image, data, index, all) = long_file();
    // Of a file with the same first offset whose batches lie elsewhere.
    let texts: Vec<String> = (0..60).map(|n| format!("{n:04} {}", "y".repeat(900))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let (other, _, other_index) = one_file(&texts);
    let wrong = other.disk.content(&other_index).unwrap();
    let right = written.disk.content(&index).unwrap();
    assert_ne!(wrong, right);
    written.disk.set_content(&index, wrong);
    cold(&mut written, &image);
    assert_eq!(everything(&written.store, &[(1, 60)]), all);
    assert_eq!(written.disk.content(&index).unwrap(), right);
    assert!(written.disk.content(&data).unwrap().len() > 60_000);
}

#[test]
fn damage_without_an_index_hides_the_rest_and_with_one_what_is_before_the_next_mark() {
    let (mut written, image, data, index, all) = long_file();
    let mut bytes = written.disk.content(&data).unwrap();
    let second = 4 + u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
    bytes[second] ^= 1;
    written.disk.set_content(&data, bytes);
    cold(&mut written, &image);
    let holes = |all: &[Served]| {
        all.iter()
            .filter_map(|served| served.clone().err())
            .collect::<Vec<_>>()
    };
    let with = everything(&written.store, &[(1, 60)]);
    let resumed = holes(&with)[0].1;
    assert_eq!(holes(&with), [(1, resumed)]);
    assert!(resumed < 15, "{resumed}");
    assert_eq!(with[2..], all[usize::try_from(resumed).unwrap()..]);
    written.disk.remove(&index).unwrap();
    cold(&mut written, &image);
    assert_eq!(holes(&everything(&written.store, &[(1, 60)])), [(1, 60)]);
}

#[test]
fn a_queue_file_that_is_gone_or_too_short_takes_nothing_more_and_the_rest_is_served() {
    let (mut written, mut image, data, _, _) = long_file();
    let bytes = written.disk.content(&data).unwrap();
    written.disk.set_content(&data, bytes[..30_000].to_vec());
    written.append(1, 60, &["behind"]);
    written.seal();
    image.save(written.store.take_rows());
    written.store = image.open(&written.disk.fork());
    compact(&written.store, &[2]);
    let all = everything(&written.store, &[(1, 61)]);
    let holes: Vec<_> = all.iter().filter_map(|served| served.clone().err()).collect();
    assert!(matches!(holes[..], [(from, 60)] if from > 20), "{holes:?}");
    assert!(all.last().unwrap().is_ok(), "a new file holds it");
    let disk = written.store.folder.disk();
    disk.remove(&data).unwrap();
    written.store = Store::open(&written.store.folder, settings(), image.rows());
    let gone = written.store.fetch(QueueKey(1), Offset(0), Offset(60), 100);
    assert!(matches!(gone, Err(ReadError::QueueFile { .. })), "{gone:?}");
}

/// Makes these rows of every segment.
#[derive(Debug)]
pub(super) struct Makes(pub(super) Vec<PlacedRow>);

impl crate::store::Rebuild for Makes {
    fn rows(&self, _: SegmentId, _: &[Span]) -> Result<crate::store::Rebuilt, ReadError> {
        Ok(self.0.clone().into())
    }
}

#[test]
fn s12_rows_made_again_that_end_too_early_keep_their_segment_in_the_journal() {
    for lacking in [0, 1] {
        let mut written = Written::new(0);
        written.append(1, 0, &["a", "b"]);
        written.seal();
        let path = layout::segment_file(Path::new(DATA), SegmentId(1));
        let mut rows: Vec<PlacedRow> = {
            let footer = written.store.segments.footer(SegmentId(1)).unwrap();
            (0..footer.len()).map(|at| footer.get(at).unwrap()).collect()
        };
        written.append(1, 2, &["c"]);
        written.seal();
        rows.truncate(rows.len() - lacking);
        written.store = written.store.rebuilt_by(Arc::new(Makes(rows)));
        let mut bytes = written.disk.content(&path).unwrap();
        let at = bytes.len() - 100;
        bytes[at] ^= 1;
        written.disk.set_content(&path, bytes);
        written.store.segments.forget_footers();
        let moved = compact(&written.store, &[1]);
        assert_eq!(moved.segments, 1 - lacking);
    }
}
