//! Wraps another registry and keeps the last list of each service in a folder, so that a process which starts
//! while the registry is away still finds the instances it called before. Lists from the folder are marked as
//! stale, and are used only until the registry itself has answered.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rpc_core::registry::{Freshness, Instance, InstanceId, Registry, RegistryError, ServiceKey, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::cache::{self, ById, Followed};

/// How long the registry itself may take to answer first: a reachable one needs less, and a call waits
/// longer.
const GRACE: Duration = Duration::from_millis(250);
/// A list that changes often is written at most this often.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// A larger file was not written here.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The longest file name that all file systems support.
const NAME_BYTES_MAX: usize = 255;
const FORMAT: u32 = 1;

/// The registry returned by [`kept`](crate::kept).
#[derive(Debug)]
pub struct Kept {
    inner: Arc<dyn Registry>,
    folder: PathBuf,
    followed: Arc<Followed>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// The content of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Page {
    format: u32,
    /// For people; the file's name contains it, too.
    key: String,
    instances: BTreeMap<InstanceId, Instance>,
}

impl Kept {
    /// Keeps the lists of `inner` in `folder`, which is created when there is something to keep.
    pub fn new(inner: Arc<dyn Registry>, folder: impl Into<PathBuf>) -> Self {
        let stop = CancellationToken::new();
        Self {
            inner,
            folder: folder.into(),
            followed: Arc::default(),
            tasks: TaskTracker::new(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        }
    }
}

#[async_trait]
impl Registry for Kept {
    async fn register(
        &self,
        key: &ServiceKey,
        instance: &Instance,
        wait: Duration,
    ) -> Result<(), RegistryError> {
        self.inner.register(key, instance, wait).await
    }

    async fn deregister(&self, key: &ServiceKey, id: &InstanceId) -> Result<(), RegistryError> {
        self.inner.deregister(key, id).await
    }

    fn subscribe(&self, key: &ServiceKey) -> Result<watch::Receiver<Snapshot>, RegistryError> {
        let pictures = self.inner.subscribe(key)?;
        let runtime = cache::runtime("kept")?;
        let start = |shown: Arc<watch::Sender<Snapshot>>| {
            let file = file_name(key).map(|name| self.folder.join(name));
            let (followed, stop, key) = (Arc::clone(&self.followed), self.stop.clone(), key.clone());
            let task = async move {
                let mut follower = Follower {
                    pictures,
                    shown: Arc::clone(&shown),
                    key: key.clone(),
                    file,
                    unwritten: None,
                };
                tokio::select! {
                    () = follower.run() => {}
                    () = followed.until_unseen(&key, &shown) => {}
                    () = stop.cancelled() => {}
                }
                follower.write().await;
            };
            self.tasks.spawn_on(task, &runtime);
        };
        Ok(self.followed.subscribe(key, start))
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.inner.close().await;
    }
}

/// Follows the list of one service.
struct Follower {
    pictures: watch::Receiver<Snapshot>,
    shown: Arc<watch::Sender<Snapshot>>,
    key: ServiceKey,
    /// `None` for a key whose name is too long for a file.
    file: Option<PathBuf>,
    /// The newest list that has not been written, and when it is due.
    unwritten: Option<(ById, Instant)>,
}

impl Follower {
    async fn run(&mut self) {
        let heard = |picture: &Snapshot| picture.freshness != Freshness::Unknown;
        let in_time = tokio::time::timeout(GRACE, self.pictures.wait_for(heard));
        if in_time.await.is_err() {
            self.show_what_was_kept().await;
        }
        loop {
            let picture = self.pictures.borrow_and_update().clone();
            if heard(&picture) {
                self.take(&picture);
            }
            let due = self.unwritten.as_ref().map(|(_, due)| *due);
            let write = tokio::time::sleep_until(due.unwrap_or_else(Instant::now));
            tokio::select! {
                changed = self.pictures.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = write, if due.is_some() => self.write().await,
            }
        }
    }

    fn take(&mut self, picture: &Snapshot) {
        let instances: ById = picture
            .instances
            .iter()
            .map(|instance| (instance.id.clone(), Arc::clone(instance)))
            .collect();
        cache::show(&self.shown, &instances, picture.freshness);
        // If no instance is left, the last known ones are the better guess after a restart.
        if picture.freshness == Freshness::Fresh && !instances.is_empty() {
            // The oldest unwritten change determines when.
            let due = self.unwritten.as_ref().map(|(_, due)| *due);
            self.unwritten = Some((instances, due.unwrap_or_else(|| Instant::now() + WRITE_EVERY)));
        }
    }

    async fn show_what_was_kept(&self) {
        let Some(file) = self.file.clone() else { return };
        let name = file.display().to_string();
        let read = tokio::task::spawn_blocking(move || read(&file)).await;
        match read.map_err(io::Error::other).and_then(|read| read) {
            Ok(instances) => {
                tracing::warn!(key = %self.key, instances = instances.len(), file = %name,
                    "the registry is silent; using the list kept on disk");
                cache::show(&self.shown, &instances, Freshness::Stale);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(key = %self.key, file = %name, %error, "cannot read the list kept on disk");
            }
        }
    }

    /// Writes the newest list, if it has not been written yet.
    async fn write(&mut self) {
        let (Some((instances, _)), Some(file)) = (self.unwritten.take(), self.file.clone()) else {
            return;
        };
        let page = Page {
            format: FORMAT,
            key: self.key.to_string(),
            instances: instances
                .iter()
                .map(|(id, instance)| (id.clone(), Instance::clone(instance)))
                .collect(),
        };
        let written = tokio::task::spawn_blocking(move || write(&file, &page)).await;
        if let Err(error) = written.map_err(io::Error::other).and_then(|written| written) {
            tracing::warn!(key = %self.key, %error, "cannot keep the list of instances on disk");
        }
    }
}

/// The file name of a key: percent-encoded, like the keys of etcd. `None` if that is too long for a file
/// name.
fn file_name(key: &ServiceKey) -> Option<String> {
    let mut name: String = key
        .to_string()
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect();
    name.push_str(".json");
    // The file being written has this name with `.new` appended.
    (name.len() + ".new".len() <= NAME_BYTES_MAX).then_some(name)
}

fn read(file: &Path) -> io::Result<ById> {
    let mut text = Vec::new();
    let file = std::fs::File::open(file)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    if text.len() as u64 > FILE_BYTES_MAX {
        return refuse(format!("more than {FILE_BYTES_MAX} bytes"));
    }
    let unreadable = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let page: Page = serde_json::from_slice(&text).map_err(unreadable)?;
    if page.format != FORMAT {
        return refuse(format!("format {}, expected {FORMAT}", page.format));
    }
    let with_id = |(id, mut instance): (InstanceId, Instance)| {
        instance.id = id.clone();
        (id, Arc::new(instance))
    };
    Ok(page.instances.into_iter().map(with_id).collect())
}

/// Replaces the whole file: a reader finds either the old list or the new one.
fn write(file: &Path, page: &Page) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let mut out = std::fs::File::create(&new)?;
    out.write_all(&serde_json::to_vec_pretty(page)?)?;
    out.sync_all()?;
    std::fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(service: &str) -> ServiceKey {
        ServiceKey {
            group: "default".into(),
            service: service.into(),
            version: "1.0".into(),
        }
    }

    #[test]
    fn names_of_files_are_told_apart_and_leave_no_folder() {
        assert_eq!(
            file_name(&key("hc.Greeter")).unwrap(),
            "default%2Fhc.Greeter%3A1.0.json"
        );
        assert_eq!(
            file_name(&key("../../etc")).unwrap(),
            "default%2F..%2F..%2Fetc%3A1.0.json"
        );
        assert_eq!(file_name(&key(&"x".repeat(300))), None);
    }

    #[test]
    fn file_that_is_not_one_is_refused_and_a_good_one_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("below").join("list.json");
        assert_eq!(read(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut instance: Instance = serde_json::from_str(r#"{"address": "h:1", "zone": "a"}"#).unwrap();
        instance.id = InstanceId("7".into());
        let page = Page {
            format: FORMAT,
            key: "k".into(),
            instances: BTreeMap::from([(instance.id.clone(), instance.clone())]),
        };
        write(&file, &page).unwrap();
        let known = read(&file).unwrap();
        assert_eq!(
            known.values().map(|one| (**one).clone()).collect::<Vec<_>>(),
            [instance]
        );
        for bad in [
            "",
            "{",
            "[]",
            r#"{"format":2,"key":"k","instances":{}}"#,
            r#"{"format":1}"#,
        ] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(
                read(&file).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{bad}"
            );
        }
    }
}
