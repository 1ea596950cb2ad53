//! A backup at one checkpoint: its files get second names a piece at a time, and whatever goes on then, what
//! is restored of them is what there was at the checkpoint. As `mq_broker::store::backup` does it, over the
//! disk in memory.

use std::path::{Path, PathBuf};

use mq_broker::store::disk::{Disk as _, TestDisk};
use mq_broker::store::{SegmentId, layout};

use super::beside::{Checkpointing, advance};
use super::{Whole, served, start};
use crate::support::baton::Errand;
use crate::support::journal::DATA;
use crate::support::model::View;
use crate::support::stepped::Stepped;
use crate::support::workload::Piece;

/// Files of one checkpoint.
#[derive(Debug)]
pub(super) struct Stage {
    linking: Option<Errand<()>>,
    /// Which files, and how many bytes of each count; `None` = all.
    files: Vec<(PathBuf, Option<u32>)>,
    /// Which of the checkpoints.
    checkpoint: usize,
    model: View,
}

fn second_name(path: &Path) -> PathBuf {
    Path::new("backup").join(path)
}

impl Whole {
    /// Begins a backup if a checkpoint may be taken and there is none; of a whole one, sees to it that it is
    /// what it must be, and drops it.
    pub(super) async fn back_up(&mut self) -> bool {
        match &self.beside.stage {
            None if matches!(self.beside.checkpoint, Checkpointing::Idle) => {
                let sealing = self.core.visit(|holder, core| holder.sealed_snapshot(core));
                let (snapshot, segments) = sealing.await.unwrap().unwrap().unwrap();
                self.taken(snapshot, Some(segments));
            }
            Some(stage) if stage.linking.is_none() => {
                self.restore(stage).await;
                self.reached.restored += 1;
                self.beside.stage = None;
                self.drop_backup();
            }
            _ => {}
        }
        true
    }

    /// The checkpoint that was saved last is the backup's.
    pub(super) fn begin_stage(&mut self, segments: &[SegmentId], model: View) {
        let checkpoint = self.saved.len() - 1;
        let data = Path::new(DATA);
        let segments = segments
            .iter()
            .map(|segment| (layout::segment_file(data, *segment), None));
        let rows = self.saved[checkpoint].store.files.iter();
        let queue_files = rows.filter(|row| !row.is_gone).map(|row| {
            let path = layout::queue_data_file(data, &row.name, row.first, row.generation);
            (path, Some(row.segment.bytes))
        });
        let files: Vec<_> = segments.chain(queue_files).collect();
        let disk = Stepped::new(self.disk.clone(), true);
        let paths: Vec<_> = files.iter().map(|(path, _)| path.clone()).collect();
        let link = move || {
            for path in paths {
                // One that fails is missed when it is restored.
                if disk.link(&path, &second_name(&path)).is_err() {
                    return;
                }
            }
        };
        self.beside.stage = Some(Stage {
            linking: Some(Errand::begin(link)),
            files,
            checkpoint,
            model,
        });
    }

    /// Whether all files have their second names.
    pub(super) fn go_on_staging(&mut self, piece: Piece) -> bool {
        let stage = self.beside.stage.as_mut().unwrap();
        let linking = stage.linking.as_mut().unwrap();
        advance(linking, piece.unharmed(), true);
        let is_done = linking.at().is_none();
        if is_done {
            stage.linking.take().unwrap().end();
        }
        is_done
    }

    async fn restore(&self, stage: &Stage) {
        let disk = TestDisk::default();
        for (path, bytes) in &stage.files {
            let mut content = self.disk.content(&second_name(path)).unwrap();
            if let Some(bytes) = bytes {
                assert!(content.len() >= *bytes as usize, "{}", path.display());
                content.truncate(*bytes as usize);
            }
            disk.set_content(path, content);
        }
        let (core, _) = start(&disk, &self.shape, &self.saved[stage.checkpoint]).unwrap();
        let restored = served(&core).await;
        assert!(
            stage.model.is_shown_by(&restored),
            "restored is {restored:?}, not {:?}",
            stage.model
        );
    }

    /// As a start does.
    pub(super) fn drop_backup(&self) {
        for name in self.disk.names() {
            if name.starts_with("backup") {
                self.disk.remove(&name).unwrap();
            }
        }
    }
}
