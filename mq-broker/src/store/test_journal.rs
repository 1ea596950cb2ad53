//! For tests: the store with a journal that is written by hand, entry by entry, without a log.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use mq_common::batch::{Batch, Builder, BuilderOptions, Record};
use mq_common::ids::{Durability, Lsn, Offset, Term, Timestamp};

use super::disk::{Disk as _, Mode, TestDisk, write_all_at};
use super::segment_index::footer::encode_rows;
use super::{Folder, Found, Location, Rows, SegmentId, Settings, Store, Update, layout};
use crate::ids::QueueKey;
use crate::log::{Entry, Part, Stored};
use crate::state::{Placement, Source};

pub(super) const DATA: &str = "d";

pub(super) struct Written {
    pub(super) disk: TestDisk,
    pub(super) folder: Arc<Folder>,
    pub(super) store: Store,
    pub(super) lsn: u64,
    pub(super) position: u32,
    pub(super) segment: SegmentId,
}

pub(super) fn batch(text: &str) -> Batch {
    let mut builder = Builder::new(BuilderOptions::default());
    builder.push(&Record::new(text.as_bytes(), Timestamp(5))).unwrap();
    builder.finish().unwrap()
}

impl Written {
    pub(super) fn new(tail_bytes: usize) -> Self {
        Self::with(Settings {
            tail_bytes,
            footer_bytes: 1000,
            ..Settings::default()
        })
    }

    pub(super) fn with(settings: Settings) -> Self {
        let disk = TestDisk::default();
        let folder = Folder::open(Arc::new(disk.clone()), Path::new(DATA)).unwrap();
        let store = Store::open(&folder, settings, Rows::default());
        let mut written = Self {
            disk,
            folder,
            store,
            lsn: 0,
            position: 0,
            segment: SegmentId(0),
        };
        written.begin();
        written
    }

    fn begin(&mut self) {
        self.segment.0 += 1;
        self.position = 64;
        self.disk.open(&self.path(), Mode::CreateNew).unwrap();
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        layout::segment_file(Path::new(DATA), self.segment)
    }

    pub(super) fn entry(
        &mut self,
        batches: &[Batch],
        replayed: bool,
        act: impl FnOnce(&Store, &Entry<'_>),
    ) -> Lsn {
        self.lsn += 1;
        let file = self.disk.open(&self.path(), Mode::Write).unwrap();
        let mut stored = Vec::new();
        for batch in batches {
            let bytes = u32::try_from(batch.len()).unwrap();
            write_all_at(
                &*file,
                &mut [IoSlice::new(batch.bytes())],
                u64::from(self.position),
            )
            .unwrap();
            stored.push(Stored {
                location: Location {
                    segment: self.segment,
                    position: self.position,
                    bytes,
                },
                checksum: batch.checksum(),
                batch: Some(batch.clone()),
            });
            self.position += bytes + 60;
        }
        let parts = [Part {
            meta: Bytes::new(),
            batches: u32::try_from(batches.len()).unwrap(),
        }];
        let entry = Entry {
            lsn: Lsn(self.lsn),
            term: Term(1),
            time: Timestamp(self.lsn),
            segment: self.segment,
            replayed,
            parts: &parts,
            batches: &stored,
        };
        act(&self.store, &entry);
        Lsn(self.lsn)
    }

    pub(super) fn append(&mut self, queue: u32, base: u64, texts: &[&str]) {
        let batches: Vec<_> = texts.iter().map(|text| batch(text)).collect();
        let placements: Vec<_> = (0..)
            .zip(base..)
            .take(texts.len())
            .map(|(index, base)| placement(queue, base, Source::Here(index)))
            .collect();
        self.entry(&batches, false, |store, entry| {
            let effects = Update {
                placements: &placements,
                ..Update::default()
            };
            store.apply(entry, &effects);
        });
    }

    pub(super) fn seal(&mut self) {
        let rows = self.store.seal(self.segment);
        let bytes = encode_rows(&rows);
        let trailer = super::segment_index::footer::Trailer {
            segment: self.segment,
            last: Lsn(self.lsn),
            synced: Lsn(self.lsn),
            chain: 0,
            frames_end: self.position,
            rows_at: self.position,
            rows: u32::try_from(rows.len()).unwrap(),
            rows_checksum: crc32c::crc32c(&bytes),
        };
        let file = self.disk.open(&self.path(), Mode::Write).unwrap();
        let trailer = trailer.encode();
        let mut slices = [IoSlice::new(&bytes), IoSlice::new(&trailer)];
        write_all_at(&*file, &mut slices, u64::from(self.position)).unwrap();
        self.begin();
    }

    pub(super) fn fetch(&self, queue: u32, from: u64, end: u64) -> Vec<Result<String, (u64, u64)>> {
        let found = self
            .store
            .fetch(QueueKey(queue), Offset(from), Offset(end), 1 << 20)
            .unwrap();
        found.iter().map(text).collect()
    }
}

pub(super) fn placement(queue: u32, base: u64, source: Source) -> Placement {
    Placement {
        queue: QueueKey(queue),
        base_offset: Offset(base),
        records: 1,
        source,
        visible_at: Durability::Memory,
    }
}

pub(super) fn text(found: &Found) -> Result<String, (u64, u64)> {
    match found {
        Found::Batch { region, .. } => {
            let records = Batch::parse(region.clone()).unwrap().records().unwrap();
            let record = records.iter().next().unwrap().unwrap();
            Ok(String::from_utf8(record.payload.to_vec()).unwrap())
        }
        Found::Hole { from, end, .. } => Err((from.0, end.0)),
    }
}

pub(super) fn ok(texts: &[&str]) -> Vec<Result<String, (u64, u64)>> {
    texts.iter().map(|text| Ok((*text).to_owned())).collect()
}
