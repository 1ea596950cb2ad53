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

#[test]
fn s22_what_no_broker_put_among_the_queue_files_stays() {
    let (written, image) = filled();
    let disk = written.disk.fork();
    let store = image.open(&disk);
    compact(&store, &[1, 2, 3]);
    let queues = layout::queues_folder(Path::new(DATA));
    let file = disk
        .names()
        .into_iter()
        .find(|name| name.starts_with(&queues))
        .unwrap();
    let file = file.file_name().unwrap();
    let foreign = [
        // Put aside by a person, and by the repair of a file system.
        queues.join("orders-7.old/100").join(file),
        queues.join("lost+found/#1234").join(file),
        queues.join("orders-8/100/notes.txt"),
        queues.join("orders-9/notes.txt"),
        queues.join("orders-10/one").join(file),
        queues.join("orders-11/100/copy").join(file),
    ];
    for path in &foreign {
        disk.set_content(path, vec![1]);
    }
    drop(store);
    let store = image.open(&disk);
    store.sweep().unwrap();
    let left: Vec<PathBuf> = disk
        .names()
        .into_iter()
        .filter(|name| name.starts_with(&queues))
        .collect();
    let mut expected = foreign.to_vec();
    expected.sort();
    assert_eq!(left, expected, "and what the round left is gone");
}
