//! What retention finds is the same in the journal and in queue files.

use super::*;
use crate::store::Extent;

fn extents(store: &Store) -> Vec<Extent> {
    let all = ENDS.iter().flat_map(|(queue, end)| {
        let look = |offset| store.extent(QueueKey(*queue), Offset(offset), Offset(*end));
        (0..*end).map(move |offset| look(offset).unwrap().unwrap())
    });
    all.collect()
}

#[test]
fn times_and_sizes_are_those_of_the_journal() {
    let (written, _) = filled();
    let store = &written.store;
    let before = extents(store);
    assert!(
        before
            .iter()
            .all(|extent| extent.time.is_some() && extent.bytes > 0)
    );
    compact(store, &[1]);
    assert_eq!(extents(store), before);
    compact(store, &[2, 3]);
    assert_eq!(extents(store), before);
}

#[test]
fn enough_bytes_stay_behind_and_not_much_more() {
    let (written, _) = filled();
    let store = &written.store;
    let (queue, end) = (QueueKey(1), Offset(22));
    let sizes: Vec<u64> = (0..end.0)
        .map(|offset| {
            let extent = store.extent(queue, Offset(offset), end).unwrap().unwrap();
            u64::from(extent.bytes)
        })
        .collect();
    compact(store, &[1, 2]);
    let range = (Offset(0), end);
    assert_eq!(store.bytes_behind(queue, range, 0).unwrap(), end);
    assert_eq!(store.bytes_behind(queue, range, u64::MAX).unwrap(), Offset(0));
    let total: u64 = sizes.iter().sum();
    let mut last = end;
    for bytes in (1..total).step_by(50) {
        let start = store.bytes_behind(queue, range, bytes).unwrap();
        assert!(start <= last, "more bytes reach further back");
        last = start;
        let kept = usize::try_from(start.0).unwrap();
        // Stamps of 48 bytes count in files, and a small file is one run.
        let stays: u64 = sizes[kept..].iter().map(|size| size + 48).sum();
        assert!(stays >= bytes, "{start}: {stays} of {bytes}");
        assert!(stays <= bytes + 2400 + 200, "{start}: {stays} of {bytes}");
    }
}
