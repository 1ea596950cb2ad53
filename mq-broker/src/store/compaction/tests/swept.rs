//! What a crash leaves of a round, when no other round comes for its queues.

use std::path::Path;

use super::*;

fn topics(disk: &TestDisk) -> Vec<String> {
    disk.list_folders(&layout::queues_folder(Path::new(DATA)))
        .unwrap()
}

#[test]
fn what_a_round_left_behind_goes_and_what_a_checkpoint_lists_stays() {
    let (written, mut image) = filled();
    let disk = written.disk.fork();
    let store = image.open(&disk);
    compact(&store, &[1, 2, 3]);
    assert_eq!(topics(&disk), ["orders-7"]);
    // A crash before the checkpoint.
    drop(store);
    let store = image.open(&disk);
    store.sweep().unwrap();
    assert_eq!(topics(&disk), [""; 0]);
    store.sweep().unwrap();
    let before = everything(&store, &ENDS);
    compact(&store, &[1, 2, 3]);
    image.save(store.take_rows());
    drop(store);
    let store = image.open(&disk);
    store.sweep().unwrap();
    assert_eq!(everything(&store, &ENDS), before);
    assert_eq!(topics(&disk), ["orders-7"]);
}
