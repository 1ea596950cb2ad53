//! The machine whose power is cut: a logged disk with an ext4 file system on it, and disks as a cut would
//! leave them.

pub(crate) mod image;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// One operation of the disk.
#[derive(Debug)]
pub(crate) struct Record {
    /// CLOCK_MONOTONIC, ns.
    pub(crate) at: u64,
    /// Position and bytes of a write; `None` = a flush.
    pub(crate) write: Option<(usize, Vec<u8>)>,
}

/// Everything that reached the disk, in order.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) bytes: usize,
    pub(crate) records: Vec<Record>,
}

/// A file system on a loop device; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    folder: PathBuf,
    device: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Machine {
    temporary: TempDir,
    bytes: usize,
    disk: Child,
    mounted: Option<Mounted>,
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run `{program}`: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("`{program} {}`: {}", arguments.join(" "), said.trim()))
    }
}

impl Mounted {
    /// Mounts the file system in `file`.
    pub(crate) fn new(file: &Path, folder: &Path) -> Result<Self, String> {
        let device = run("losetup", &["--find", "--show", file.to_str().unwrap()])?;
        let folder = folder.to_owned();
        let mounted = Self { folder, device };
        run("mount", &[&mounted.device, mounted.folder.to_str().unwrap()])?;
        Ok(mounted)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A mount that failed cannot be undone; the device goes all the same.
        drop(run("umount", &[self.folder.to_str().unwrap()]));
        drop(run("losetup", &["--detach", &self.device]));
    }
}

impl Machine {
    /// A disk of so many bytes with an empty file system.
    pub(crate) fn start(bytes: usize) -> Self {
        // In memory, where there is a place: the disk under test is in memory too.
        let shared = Path::new("/dev/shm");
        let temporary = tempfile::tempdir_in(if shared.is_dir() {
            shared
        } else {
            Path::new("/tmp")
        });
        let temporary = temporary.unwrap();
        let folder = temporary.path();
        for name in ["disk", "mounted", "crashed"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        let program = build(folder, "blklog.c", "blklog", &[]);
        let disk = Command::new(program)
            .args([folder.join("disk"), folder.join("log")])
            .arg(bytes.to_string())
            .spawn()
            .unwrap();
        let mut machine = Self {
            bytes,
            disk,
            mounted: None,
            temporary,
        };
        let file = machine.folder().join("disk/disk");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !file.exists() {
            let ended = machine.disk.try_wait().unwrap();
            assert!(ended.is_none(), "no disk: this needs root and /dev/fuse");
            assert!(Instant::now() < deadline, "the disk does not come");
            std::thread::yield_now();
        }
        run("mkfs.ext4", &["-q", "-F", file.to_str().unwrap()]).unwrap();
        let mounted = Mounted::new(&file, &machine.folder().join("mounted"));
        machine.mounted = Some(mounted.unwrap());
        machine
    }

    /// Files of the run.
    pub(crate) fn folder(&self) -> &Path {
        self.temporary.path()
    }

    /// The broker's folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder().join("mounted/data")
    }

    /// Builds one of the tests' C programs.
    pub(crate) fn build(&self, source: &str, target: &str, options: &[&str]) -> PathBuf {
        build(self.folder(), source, target, options)
    }

    /// Ends the disk; its log.
    pub(crate) fn stop(&mut self) -> Log {
        self.mounted = None;
        run("umount", &[self.folder().join("disk").to_str().unwrap()]).unwrap();
        assert!(self.disk.wait().unwrap().success());
        Log::read(&std::fs::read(self.folder().join("log")).unwrap(), self.bytes)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.mounted = None;
        // Unmounted already, unless the run failed.
        drop(run("umount", &[self.folder().join("disk").to_str().unwrap()]));
        drop(self.disk.kill());
        drop(self.disk.wait());
    }
}

impl Log {
    fn read(mut bytes: &[u8], disk_bytes: usize) -> Self {
        let mut records = Vec::new();
        while let Some((kind, rest)) = bytes.split_first() {
            let number = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().unwrap());
            let count = u32::from_ne_bytes(rest[16..20].try_into().unwrap()) as usize;
            let (written, behind) = rest[20..].split_at(count);
            let position = usize::try_from(number(8)).unwrap();
            records.push(Record {
                at: number(0),
                write: (*kind == b'W').then(|| (position, written.to_vec())),
            });
            bytes = behind;
        }
        Self {
            bytes: disk_bytes,
            records,
        }
    }

    pub(crate) fn writes(&self) -> usize {
        self.records.len() - self.flushes()
    }

    pub(crate) fn flushes(&self) -> usize {
        self.records
            .iter()
            .filter(|record| record.write.is_none())
            .count()
    }
}

fn build(folder: &Path, source: &str, target: &str, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/shim")
        .join(source);
    let target = folder.join(target);
    let mut arguments = vec!["-O1", "-Wall", "-Werror", "-o"];
    arguments.extend([target.to_str().unwrap(), source.to_str().unwrap()]);
    arguments.extend(options);
    run("gcc", &arguments).unwrap();
    target
}
