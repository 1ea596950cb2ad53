//! `mq-broker backup` and `mq-broker restore`: the first asks the running broker, or reads the data folder
//! itself if no broker is running.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mq_common::api::AdminClient;
use mq_common::api::admin::{BackupState, BackupStatus};
use mq_common::ids::Lsn;
use rpc_core::invoker::{Invoker, InvokerError};

use crate::checkpoint::{self, Checkpoint};
use crate::config::{Config, kept};
use crate::store::backup::{self, Stage, Staged};
use crate::store::disk::StdDisk;
use crate::store::{Folder, FolderError, layout};

/// How often the broker is asked for its progress.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// The time limit of one question.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Taking or restoring the backup failed.
    #[error(transparent)]
    Backup(#[from] backup::Error),
    /// The broker's token or name cannot be read.
    #[error(transparent)]
    Kept(#[from] kept::KeptError),
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// There is nothing to save.
    #[error("`{}` holds no broker's data; name its folder with --data-dir, or a running broker with --broker", path.display())]
    NoData {
        /// The folder.
        path: PathBuf,
    },
    /// A backup brings the checkpoint up to date, after which the version that wrote it could no longer read
    /// the folder.
    #[error(
        "`{}` has format {found}, which an earlier version wrote; nothing was changed. Take the backup with that version, or \
         start this one once",
        path.display()
    )]
    EarlierFormat {
        /// The checkpoint.
        path: PathBuf,
        /// Its format.
        found: i64,
    },
    /// No calls can be made.
    #[error(transparent)]
    Invoker(#[from] InvokerError),
    /// The broker did not answer.
    #[error("broker `{broker}`: {reason}")]
    Call {
        /// Its expected address.
        broker: String,
        /// What happened.
        reason: String,
    },
    /// The broker could not take the backup.
    #[error("the backup failed: {0}")]
    Failed(String),
    /// The broker was restarted meanwhile.
    #[error("broker `{broker}` no longer knows a backup to `{to}`: it was restarted; start the backup again")]
    Forgotten {
        /// The broker.
        broker: String,
        /// The backup's folder.
        to: String,
    },
}

/// Takes a backup into the folder `to`: by asking `broker` (`host:port`), otherwise the broker of these
/// settings if it is running, otherwise from its data folder. Prints one line about the backup.
///
/// # Errors
/// [`Error`].
pub async fn take(config: &Config, to: &Path, broker: Option<String>) -> Result<String, Error> {
    if let Some(broker) = broker {
        return ask(config, to, broker).await;
    }
    let to = std::path::absolute(to).map_err(|source| backup::Error::Io {
        operation: "find",
        path: to.to_owned(),
        source,
    })?;
    let data = &config.broker.data_dir;
    if !layout::checkpoint_file(data).exists() {
        return Err(Error::NoData { path: data.clone() });
    }
    match Folder::open(Arc::new(StdDisk), data) {
        Ok(folder) => take_from(&folder, &to).await,
        Err(FolderError::InUse { .. }) => {
            let network = &config.network;
            let address = network.advertise.as_ref().unwrap_or(&network.listen);
            ask(config, &to, address.clone()).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Restores the backup in `from` into the data folder of these settings. Prints one line about the result.
///
/// # Errors
/// [`Error`].
pub fn restore(config: &Config, from: &Path) -> Result<String, Error> {
    let data = &config.broker.data_dir;
    let mut shown = Progress::new("restored");
    let mut done = 0;
    let manifest = backup::restore(&StdDisk, from, data, |bytes, manifest| {
        done += bytes;
        shown.show(done, manifest.bytes());
    })?;
    shown.end();
    Ok(format!(
        "restored broker={} lsn={} files={} bytes={} data_dir={}\n",
        manifest.broker,
        manifest.lsn,
        manifest.files.len(),
        manifest.bytes(),
        data.display()
    ))
}

/// From the folder of a broker that is not running; the caller holds its lock.
async fn take_from(folder: &Folder, to: &Path) -> Result<String, Error> {
    let data = folder.path();
    backup::is_free(data, to)?;
    let name = kept::name(folder, None, true)?;
    let path = layout::checkpoint_file(data);
    let examined = checkpoint::examine(&path, true).await?;
    if examined.saved.is_none() {
        let found = examined.format;
        return Err(Error::EarlierFormat { path, found });
    }
    let mut checkpoint = Checkpoint::open(&path, &name, true).await?;
    let saved = checkpoint.load().await?;
    let journal = layout::journal_folder(data);
    let names = folder.disk().list(&journal).map_err(|source| backup::Error::Io {
        operation: "list",
        path: journal,
        source,
    })?;
    let segments: Vec<_> = names
        .iter()
        .filter_map(|name| layout::parse_segment(name))
        .collect();
    let mut stage = Stage::make(data, &segments, segments.last().copied(), &saved.store.files)?;
    checkpoint.copy_to(&stage.checkpoint_file()).await?;
    stage.add_checkpoint()?;
    checkpoint.close().await?;
    let total: u64 = stage.files().iter().map(|(_, bytes)| bytes).sum();
    let lsn = saved.rows.counters.lsn;
    let mut shown = Progress::new("saved");
    let mut done = 0;
    let manifest = backup::finish(to, name.as_str(), Staged { lsn, stage }, |bytes| {
        done += bytes;
        shown.show(done, total);
        Ok(())
    })?;
    shown.end();
    Ok(said(to, manifest.lsn, manifest.bytes()))
}

async fn ask(config: &Config, to: &Path, broker: String) -> Result<String, Error> {
    let mut builder = Invoker::builder()
        .direct([broker.as_str()])
        .timeout(ANSWER_WITHIN);
    if let Some(file) = &config.network.auth_token_file {
        builder = builder.token(kept::token(file)?);
    }
    let invoker = builder.build().await?;
    let admin = AdminClient::refer(&invoker);
    let call = |reason: String| Error::Call {
        broker: broker.clone(),
        reason,
    };
    let to = to.display().to_string();
    let mut status = admin
        .backup(to.clone())
        .await
        .map_err(|error| call(error.to_string()))?;
    let mut shown = Progress::new("saved");
    let done: BackupStatus = loop {
        match status.state {
            BackupState::Done => break status,
            BackupState::Failed => return Err(Error::Failed(status.reason.unwrap_or_default())),
            _ => {}
        }
        shown.show(status.bytes_done, status.bytes_total);
        tokio::time::sleep(ASK_EVERY).await;
        let asked = admin
            .backup_status()
            .await
            .map_err(|error| call(error.to_string()))?;
        let forgotten = || Error::Forgotten {
            broker: broker.clone(),
            to: to.clone(),
        };
        status = asked.filter(|asked| asked.to == to).ok_or_else(forgotten)?;
    };
    shown.end();
    Ok(said(
        Path::new(&to),
        done.lsn.unwrap_or_default(),
        done.bytes_total,
    ))
}

fn said(to: &Path, lsn: Lsn, bytes: u64) -> String {
    format!("backup to={} lsn={lsn} bytes={bytes}\n", to.display())
}

/// Prints the progress, on a terminal only.
struct Progress {
    what: &'static str,
    is_shown: bool,
    percent: Option<u64>,
}

impl Progress {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            is_shown: std::io::stderr().is_terminal(),
            percent: None,
        }
    }

    fn show(&mut self, done: u64, total: u64) {
        let percent = done.saturating_mul(100) / total.max(1);
        if self.is_shown && self.percent != Some(percent) {
            self.percent = Some(percent);
            let (done, total) = (done >> 20, total >> 20);
            let mut out = std::io::stderr();
            // A terminal that is gone needs no progress.
            drop(write!(out, "\r{} {done} of {total} MiB, {percent} % ", self.what));
            drop(out.flush());
        }
    }

    fn end(&self) {
        if self.percent.is_some() {
            drop(writeln!(std::io::stderr()));
        }
    }
}
