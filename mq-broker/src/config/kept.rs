//! Values stored in files outside the settings: the broker's name in its data folder, and the token.

use std::fs;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use mq_common::ids::ShardName;

use crate::store::Folder;
use crate::store::disk::{Disk, Mode, read_up_to_at, write_all_at};

/// The file in the data folder that holds the broker's name.
const NAME_FILE: &str = "name";
/// Bytes read of the name file. A valid name is shorter.
const NAME_BYTES_MAX: usize = 1024;
/// Longest accepted token, in bytes.
const TOKEN_BYTES_MAX: usize = 1024;

/// Why a name or token cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeptError {
    /// A file cannot be read or written.
    #[error("cannot {what} `{}`: {error}", path.display())]
    Io {
        /// The operation, `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        error: io::Error,
    },
    /// The folder belongs to a broker with another name.
    #[error(
        "the data folder `{}` belongs to broker `{kept}`, not to `{wanted}`; start it with `--name {kept}` (or without `--name`), or use another folder",
        folder.display()
    )]
    OtherName {
        /// The folder.
        folder: PathBuf,
        /// The name in the folder.
        kept: ShardName,
        /// The requested name.
        wanted: ShardName,
    },
    /// The name file is missing or damaged, and the folder holds data.
    #[error(
        "the data folder `{}` holds a journal, and its file `name` {problem}; give the broker's name with `--name` (its transaction ids and its topics' queue lists carry it)",
        folder.display()
    )]
    NameLost {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with the name file.
        problem: &'static str,
    },
    /// The token file holds no token.
    #[error("`{}` holds no token: {reason}; expected one line of at most {TOKEN_BYTES_MAX} printable characters", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The broker's name: the one stored in the data folder, else the one asked for, else a random one, which is
/// then stored. `has_data` = the folder holds messages.
///
/// # Errors
/// The folder has another name, or the name cannot be read or written.
pub fn name(folder: &Folder, wanted: Option<&ShardName>, has_data: bool) -> Result<ShardName, KeptError> {
    let (disk, folder) = (&**folder.disk(), folder.path());
    let path = folder.join(NAME_FILE);
    let kept = match read(disk, &path) {
        Ok(text) => ShardName::new(text.trim_end()).map_err(|_| "is damaged"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("is missing"),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let name = match (kept, wanted) {
        (Ok(kept), Some(wanted)) if kept != *wanted => {
            return Err(KeptError::OtherName {
                folder: folder.to_owned(),
                kept,
                wanted: wanted.clone(),
            });
        }
        (Ok(kept), _) => return Ok(kept),
        (Err(_), Some(wanted)) => wanted.clone(),
        (Err(problem), None) if has_data => {
            return Err(KeptError::NameLost {
                folder: folder.to_owned(),
                problem,
            });
        }
        (Err(_), None) => random(),
    };
    keep(disk, &path, folder, &name).map_err(failed("write", &path))?;
    Ok(name)
}

/// Whether this folder contains anything, folders included. It need not exist.
///
/// # Errors
/// Those of the operating system.
pub fn is_filled(folder: &Path) -> io::Result<bool> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        entries => Ok(entries?.next().transpose()?.is_some()),
    }
}

/// The token in a file: its only line.
///
/// # Errors
/// The file cannot be read, or holds no token.
pub fn token(path: &Path) -> Result<String, KeptError> {
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    let token = text.trim_end_matches(['\n', '\r']);
    let problem = if token.is_empty() {
        Some("it is empty")
    } else if token.len() > TOKEN_BYTES_MAX {
        Some("it is too long")
    } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some("it has spaces, several lines or characters beyond ASCII")
    } else {
        None
    };
    match problem {
        None => Ok(token.to_owned()),
        Some(reason) => Err(KeptError::Token {
            path: path.to_owned(),
            reason,
        }),
    }
}

fn random() -> ShardName {
    let name = format!("broker-{:08x}", fastrand::u32(..));
    ShardName::new(name).expect("letters, digits and a dash are a name")
}

/// Bytes that are not UTF-8 are replaced; the result is not a valid name.
fn read(disk: &dyn Disk, path: &Path) -> io::Result<String> {
    let file = disk.open(path, Mode::Read)?;
    let bytes = read_up_to_at(&*file, NAME_BYTES_MAX, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replaces the file atomically: a crash leaves the old one or the new one.
fn keep(disk: &dyn Disk, path: &Path, folder: &Path, name: &ShardName) -> io::Result<()> {
    let new = path.with_extension("new");
    match disk.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // Removed: it was left by a crash.
        _ => {}
    }
    let file = disk.open(&new, Mode::CreateNew)?;
    let line = format!("{name}\n");
    write_all_at(&*file, &mut [IoSlice::new(line.as_bytes())], 0)?;
    file.sync_data()?;
    disk.rename(&new, path)?;
    disk.sync_folder(folder)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeptError {
    move |error| KeptError::Io {
        what,
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::disk::{Crash, TestDisk};

    fn open(disk: &TestDisk) -> Arc<Folder> {
        Folder::open(Arc::new(disk.clone()), Path::new("d")).unwrap()
    }

    fn shard(name: &str) -> ShardName {
        ShardName::new(name).unwrap()
    }

    #[test]
    fn random_name_is_kept() {
        let folder = open(&TestDisk::default());
        let first = name(&folder, None, false).unwrap();
        assert_eq!(name(&folder, None, true).unwrap(), first);
        assert_eq!(name(&folder, Some(&first), true).unwrap(), first);
    }

    #[test]
    fn another_name_is_refused_and_both_are_named() {
        let folder = open(&TestDisk::default());
        name(&folder, Some(&shard("a")), false).unwrap();
        let error = name(&folder, Some(&shard("b")), false).unwrap_err().to_string();
        assert!(error.contains("`a`") && error.contains("`b`"), "{error}");
    }

    #[test]
    fn lost_name_of_a_folder_with_data_is_not_replaced_by_a_random_one() {
        let disk = TestDisk::default();
        let folder = open(&disk);
        let lost = |folder| matches!(name(folder, None, true), Err(KeptError::NameLost { .. }));
        assert!(lost(&folder));
        for damaged in [&b"no name"[..], b"", &[0xff; 40], &[b'a'; 5000]] {
            disk.set_content(Path::new("d/name"), damaged.to_vec());
            assert!(lost(&folder), "{damaged:?}");
        }
        assert_eq!(name(&folder, Some(&shard("a")), true).unwrap(), shard("a"));
        assert_eq!(name(&folder, None, true).unwrap(), shard("a"));
    }

    #[test]
    fn s11_a_name_whose_keeping_is_cut_short_is_the_old_file_or_the_new_name() {
        for before in [None, Some(&b"damaged name"[..])] {
            let disk = TestDisk::default();
            let folder = open(&disk);
            if let Some(before) = before {
                disk.set_content(Path::new("d/name"), before.to_vec());
            }
            disk.record();
            disk.picture();
            name(&folder, Some(&shard("a")), true).unwrap();
            let pictures = disk.take_recorded();
            assert!(pictures.len() >= 5, "each step: {}", pictures.len());
            let crashes = [Crash::LoseUnsynced, Crash::KeepAll];
            let crashes = || crashes.into_iter().chain((0..20).map(Crash::Random));
            for (step, picture) in pictures.iter().enumerate() {
                for crash in crashes() {
                    let disk = picture.disk.fork();
                    disk.crash(crash);
                    let found = disk.content(Path::new("d/name"));
                    let is_last = step + 1 == pictures.len();
                    assert!(
                        found.as_deref() == Some(b"a\n") || (!is_last && found.as_deref() == before),
                        "step {step}, {crash:?}: {found:?}"
                    );
                    let folder = open(&disk);
                    assert_eq!(name(&folder, Some(&shard("a")), true).unwrap(), shard("a"));
                    assert_eq!(name(&folder, None, true).unwrap(), shard("a"));
                }
            }
        }
    }

    #[test]
    fn token_is_the_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "secret\n").unwrap();
        assert_eq!(token(&path).unwrap(), "secret");
        for bad in ["", "\n", "two words", "a\nb"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(token(&path), Err(KeptError::Token { .. })), "{bad:?}");
        }
        assert!(
            token(&folder.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("none")
        );
    }
}
