//! Making a data folder of a backup.

use std::fs;
use std::io;
use std::path::Path;

use super::manifest::Manifest;
use super::{
    Error, MANIFEST, copy, fail, make_folder, make_parent, parent_of, sync_file, sync_folder, sync_folders,
};
use crate::store::layout;

/// Copies a backup into a new or empty folder, checks every file on the way, and syncs it all. While it runs, and if it
/// does not come to its end, no broker starts on the folder. `progress` is told of bytes as they are copied.
///
/// # Errors
/// [`Error`].
pub fn restore(
    from: &Path,
    data: &Path,
    mut progress: impl FnMut(u64, &Manifest),
) -> Result<Manifest, Error> {
    let manifest = read_manifest(from)?;
    make_folder(data)?;
    must_be_empty(data)?;
    let mark = layout::restoring_file(data);
    fs::write(
        &mark,
        "A backup is being restored here, or was and did not come to its end.\n",
    )
    .map_err(fail("write", &mark))?;
    sync_file(&mark)?;
    sync_folder(data)?;
    for file in &manifest.files {
        let (source, target) = (from.join(&file.path), data.join(&file.path));
        make_parent(&target)?;
        let (crc32c, bytes) = copy(&source, &target, file.bytes, |bytes| {
            progress(bytes, &manifest);
            Ok(())
        })?;
        if (crc32c, bytes) != (file.crc32c, file.bytes) {
            let reason = format!(
                "has {bytes} bytes with checksum {crc32c:08x}, the manifest says {} and {:08x}",
                file.bytes, file.crc32c
            );
            return Err(Error::Damaged { path: source, reason });
        }
    }
    sync_folders(data)?;
    // Its name too: an empty folder that was there may be as new.
    sync_folder(parent_of(data))?;
    fs::remove_file(&mark).map_err(fail("remove", &mark))?;
    sync_folder(data)?;
    Ok(manifest)
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

fn must_be_empty(data: &Path) -> Result<(), Error> {
    for found in fs::read_dir(data).map_err(fail("list", data))? {
        let found = found.map_err(fail("list", data))?;
        // Every new ext4 has one.
        if found.file_name() != "lost+found" {
            return Err(Error::NotEmpty {
                path: data.to_owned(),
            });
        }
    }
    Ok(())
}
