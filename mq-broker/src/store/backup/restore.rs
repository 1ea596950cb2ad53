//! Restoring a backup into a new data folder.

use std::fs;
use std::io::{self, IoSlice};
use std::path::Path;

use super::manifest::Manifest;
use super::{Error, MANIFEST, fail, parent_of, read_through};
use crate::store::disk::{Disk, Mode, write_all_at};
use crate::store::layout;

const MARK: &str = "A backup is being restored here, or was and did not come to its end.\n";

/// Copies a backup into a new or empty folder on this disk, checks every file on the way, and syncs
/// everything. During that, and after an interruption, no broker starts on the folder. `progress` is called
/// with the number of bytes copied.
///
/// # Errors
/// [`Error`].
pub fn restore(
    disk: &dyn Disk,
    from: &Path,
    data: &Path,
    mut progress: impl FnMut(u64, &Manifest),
) -> Result<Manifest, Error> {
    let manifest = read_manifest(from)?;
    disk.create_folder(data).map_err(fail("create", data))?;
    must_be_empty(disk, data)?;
    let sync_folder = |folder: &Path| disk.sync_folder(folder).map_err(fail("sync", folder));
    let mark = layout::restoring_file(data);
    write(disk, &mark, MARK.as_bytes()).map_err(fail("write", &mark))?;
    sync_folder(data)?;
    for file in &manifest.files {
        let (source, target) = (from.join(&file.path), data.join(&file.path));
        let parent = parent_of(&target);
        disk.create_folder(parent).map_err(fail("create", parent))?;
        let (crc32c, bytes) = copy(disk, &source, &target, file.bytes, |bytes| {
            progress(bytes, &manifest);
        })?;
        if (crc32c, bytes) != (file.crc32c, file.bytes) {
            let reason = format!(
                "has {bytes} bytes with checksum {crc32c:08x}, the manifest says {} and {:08x}",
                file.bytes, file.crc32c
            );
            return Err(Error::Damaged { path: source, reason });
        }
    }
    sync_folders(disk, data)?;
    // Its name, too: an existing empty folder may be just as new.
    sync_folder(parent_of(data))?;
    disk.remove(&mark).map_err(fail("remove", &mark))?;
    sync_folder(data)?;
    Ok(manifest)
}

/// A new file with these bytes, synced.
fn write(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = disk.open(path, Mode::CreateNew)?;
    write_all_at(&*file, &mut [IoSlice::new(bytes)], 0)?;
    file.sync_data()
}

/// Copies `bytes` bytes of a file into a new one, synced; returns their checksum and number.
fn copy(
    disk: &dyn Disk,
    from: &Path,
    to: &Path,
    bytes: u64,
    mut each: impl FnMut(u64),
) -> Result<(u32, u64), Error> {
    let file = disk.open(to, Mode::CreateNew).map_err(fail("create", to))?;
    let mut position = 0;
    let copied = read_through(from, bytes, |piece| {
        write_all_at(&*file, &mut [IoSlice::new(piece)], position).map_err(fail("write", to))?;
        position += piece.len() as u64;
        each(piece.len() as u64);
        Ok(())
    })?;
    file.sync_data().map_err(fail("sync", to))?;
    Ok(copied)
}

/// Makes the names in this folder and all folders below it durable.
fn sync_folders(disk: &dyn Disk, folder: &Path) -> Result<(), Error> {
    for below in disk.list_folders(folder).map_err(fail("list", folder))? {
        // Not ours, and accessible to root alone.
        if below != LOST_AND_FOUND {
            sync_folders(disk, &folder.join(below))?;
        }
    }
    disk.sync_folder(folder).map_err(fail("sync", folder))
}

fn read_manifest(from: &Path) -> Result<Manifest, Error> {
    let no_backup = |reason: String| Error::NoBackup {
        path: from.to_owned(),
        reason,
    };
    let path = from.join(MANIFEST);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(no_backup("is missing".to_owned()));
        }
        Err(error) => return Err(no_backup(error.to_string())),
    };
    Manifest::decode(&text).map_err(no_backup)
}

/// Every new ext4 has it.
const LOST_AND_FOUND: &str = "lost+found";

fn must_be_empty(disk: &dyn Disk, data: &Path) -> Result<(), Error> {
    let folders = disk.list_folders(data).map_err(fail("list", data))?;
    let files = disk.list(data).map_err(fail("list", data))?;
    if !files.is_empty() || folders.iter().any(|name| name != LOST_AND_FOUND) {
        return Err(Error::NotEmpty {
            path: data.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mq_common::ids::Lsn;

    use super::super::manifest::FileEntry;
    use super::*;
    use crate::store::disk::{Crash, TestDisk};
    use crate::store::{Folder, FolderError};

    const FILES: [(&str, &[u8]); 3] = [
        ("journal/0000000000000001.journal", &[7; 2000]),
        ("name", b"a\n"),
        ("queues/t-1/0/queue_data.0", &[9; 700]),
    ];

    /// A backup with these files.
    fn backup(folder: &Path) {
        let files = FILES.map(|(path, bytes)| {
            let to = folder.join(path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, bytes).unwrap();
            FileEntry {
                path: path.to_owned(),
                bytes: bytes.len() as u64,
                crc32c: crc32c::crc32c(bytes),
            }
        });
        let manifest = Manifest {
            broker: "a".to_owned(),
            lsn: Lsn(5),
            taken_ms: 1,
            files: files.into(),
        };
        fs::write(folder.join(MANIFEST), manifest.encode()).unwrap();
    }

    #[test]
    fn s11_a_restore_that_is_cut_short_at_any_step_is_refused_by_a_start_or_there_is_all_or_nothing() {
        let from = tempfile::tempdir().unwrap();
        backup(from.path());
        let (disk, data) = (TestDisk::default(), Path::new("d"));
        disk.record();
        disk.picture();
        restore(&disk, from.path(), data, |_, _| ()).unwrap();
        let pictures = disk.take_recorded();
        let (mut refused, mut empty) = (0, 0);
        let crashes = || [Crash::LoseUnsynced, Crash::KeepAll].into_iter();
        for (step, picture) in pictures.iter().enumerate() {
            for crash in crashes().chain((0..20).map(Crash::Random)) {
                let disk = picture.disk.fork();
                disk.crash(crash);
                let whole = FILES.map(|(path, bytes)| {
                    let found = disk.content(&data.join(path));
                    found.map(|found| found == bytes)
                });
                match Folder::open(Arc::new(disk.clone()), data) {
                    Err(FolderError::HalfRestored { .. }) => {
                        refused += 1;
                        let again = restore(&disk, from.path(), data, |_, _| ());
                        assert!(matches!(again, Err(Error::NotEmpty { .. })), "step {step}");
                    }
                    Err(error) => panic!("step {step}, {crash:?}: {error}"),
                    Ok(_) if whole == [None; 3] => empty += 1,
                    Ok(_) => assert_eq!(whole, [Some(true); 3], "step {step}, {crash:?}"),
                }
                let is_last = step + 1 == pictures.len();
                assert!(!is_last || whole == [Some(true); 3], "{crash:?}");
            }
        }
        assert!(refused > 20 && empty > 0, "{refused} {empty}");
    }
}
