//! Opening the journal. Decides which of its entries are kept, makes them durable, and replays them; in this
//! order, so that nothing is served that a power cut could still take back.
//!
//! The rule: an entry that is proven to have been synced (by a later frame, header or footer, or by the
//! checkpoint) must be intact: damage to its header or commands refuses the start, damage to a batch's bytes
//! makes that batch a hole. A damaged entry without such proof is a torn tail: it is cut off with everything
//! after it, and the cut is made durable.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use mq_common::ids::Lsn;

use super::ahead::Ahead;
use super::scan::{self, FrameAt, Walk};
use super::segment::{Failed, Material, Segment, Undone, write_footer};
use super::{OpenError, Poisoned, Settings};
use crate::log::entry::{Broken, ChainPoint, FORMAT_VERSION, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::log::{Applier, Entry};
use crate::store::disk::{DiskFile, Mode, read_up_to_at, write_all_at};
use crate::store::segment_index::footer::{FooterRows, Trailer};
use crate::store::{Folder, SegmentId, layout};

/// A segment's file, read whole.
struct Found {
    header: SegmentHeader,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: Bytes,
    walk: Walk,
    trailer: Option<Trailer>,
}

/// The segments in the journal's folder, starting with the one in which replay starts.
struct Listed {
    /// In order, with a valid header.
    begun: Vec<SegmentHeader>,
    /// The last one, if its header is not valid: its creation was cut short.
    unbegun: Option<SegmentId>,
}

/// Recovers the journal and returns the segment to continue in, with nothing after its last entry.
pub(super) fn recover<A: Applier>(
    folder: &Folder,
    settings: &Settings,
    ahead: &Ahead,
    from: Lsn,
    applier: &mut A,
) -> Result<Segment, OpenError> {
    let results = &mut Vec::new();
    let listed = list(folder, from)?;
    let Some((last, sealed)) = listed.begun.split_last() else {
        return begin_first(folder, settings, from, listed.unbegun);
    };
    // The checkpoint may be at the end of a segment that was sealed after it.
    let first = sealed.first().unwrap_or(last);
    drop(applier.seal(SegmentId(first.segment.0 - 1)));
    for (index, header) in sealed.iter().enumerate() {
        let next = sealed.get(index + 1).unwrap_or(last);
        let found = Found::read(folder, *header, from)?;
        found.must_lead_to(next)?;
        found.replay(from, results, applier)?;
        found.finish_sealed(from, applier)?;
    }
    let mut found = Found::read(folder, *last, from)?;
    let is_sealed = found.settle_last(folder, from, listed.unbegun)?;
    found.replay(from, results, applier)?;
    if !is_sealed {
        return Ok(found.resume());
    }
    found.finish_sealed(from, applier)?;
    if let Some(unbegun) = listed.unbegun {
        let path = layout::segment_file(folder.path(), unbegun);
        folder.disk().remove(&path).map_err(fail("remove", &path))?;
    }
    let header = SegmentHeader {
        segment: SegmentId(last.segment.0 + 1),
        point: found.walk.point,
        segment_bytes: settings.segment_bytes,
    };
    let material = ahead.take().map_or(Material::Any, Material::Spare);
    Ok(Segment::begin(folder, header, &material)?)
}

fn list(folder: &Folder, from: Lsn) -> Result<Listed, OpenError> {
    let parent = layout::journal_folder(folder.path());
    let names = folder.disk().list(&parent).map_err(fail("list", &parent))?;
    let ids: Vec<_> = names
        .iter()
        .filter_map(|name| layout::parse_segment(name))
        .collect();
    let mut listed = Listed {
        begun: Vec::new(),
        unbegun: None,
    };
    for (index, id) in ids.iter().rev().enumerate() {
        let path = layout::segment_file(folder.path(), *id);
        let file = folder
            .disk()
            .open(&path, Mode::Read)
            .map_err(fail("open", &path))?;
        let head = read_up_to_at(&*file, SEGMENT_HEADER_BYTES, 0).map_err(fail("read", &path))?;
        match SegmentHeader::decode(&head) {
            Ok(header) if header.segment == *id => {
                listed.begun.insert(0, header);
                // Older segments were freed, or hold messages that queues still need; none of them is
                // replayed.
                if header.point.next.0 <= from.0 + 1 {
                    return Ok(listed);
                }
            }
            Err(Broken::Version(version)) => return Err(unknown_version(path, version)),
            _ if index == 0 => listed.unbegun = Some(*id),
            _ => {
                let lsn = Lsn(from.0 + 1);
                return Err(rot(path, 0, lsn, "the segment's header is damaged"));
            }
        }
        let before = SegmentId(id.0.saturating_sub(1));
        if ids
            .iter()
            .rev()
            .nth(index + 1)
            .is_some_and(|older| *older != before)
        {
            let missing = layout::segment_file(folder.path(), before);
            let reason = format!("has no `{}`, but later segments", missing.display());
            return Err(mismatch(folder, from, reason));
        }
    }
    match (listed.begun.first(), listed.unbegun) {
        (Some(first), _) => {
            let reason = format!("begins at entry {}", first.point.next);
            Err(mismatch(folder, from, reason))
        }
        (None, None) if from.0 > 0 => Err(mismatch(folder, from, "has no segment".into())),
        (None, _) => Ok(listed),
    }
}

/// Creates the first segment, also if an earlier creation was cut short.
fn begin_first(
    folder: &Folder,
    settings: &Settings,
    from: Lsn,
    unbegun: Option<SegmentId>,
) -> Result<Segment, OpenError> {
    if let Some(id) = unbegun {
        let path = layout::segment_file(folder.path(), id);
        let file = folder
            .disk()
            .open(&path, Mode::Read)
            .map_err(fail("open", &path))?;
        let bytes = read_whole(&*file, &path)?;
        // The header is made durable before anything else is written.
        let written = scan::written_blocks(&bytes, SEGMENT_HEADER_BYTES).next();
        if id != SegmentId(1) || from.0 > 0 || written.is_some() {
            return Err(rot(path, 0, Lsn(from.0 + 1), "the segment's header is damaged"));
        }
        folder.disk().remove(&path).map_err(fail("remove", &path))?;
    }
    let header = SegmentHeader {
        segment: SegmentId(1),
        point: ChainPoint {
            next: Lsn(1),
            checksum: settings.chain_start,
            term: Default::default(),
            time: Default::default(),
        },
        segment_bytes: settings.segment_bytes,
    };
    Ok(Segment::begin(folder, header, &Material::Any)?)
}

impl Found {
    fn read(folder: &Folder, header: SegmentHeader, from: Lsn) -> Result<Self, OpenError> {
        let path = layout::segment_file(folder.path(), header.segment);
        let file = folder
            .disk()
            .open(&path, Mode::Write)
            .map_err(fail("open", &path))?;
        let bytes = Bytes::from(read_whole(&*file, &path)?);
        let walk = scan::walk(&bytes, &header, from);
        if let Broken::Version(version) = walk.broken {
            return Err(unknown_version(path, version));
        }
        let trailer = match Trailer::decode(&bytes) {
            Ok(trailer) if trailer.segment == header.segment => Some(trailer),
            Err(Broken::Version(version)) => return Err(unknown_version(path, version)),
            _ => None,
        };
        Ok(Self {
            header,
            path,
            file,
            bytes,
            walk,
            trailer,
        })
    }

    fn rot(&self) -> OpenError {
        let Walk {
            end, point, broken, ..
        } = &self.walk;
        rot(
            self.path.clone(),
            u64::from(*end),
            point.next,
            &broken.to_string(),
        )
    }

    /// A segment that has a successor must be whole.
    fn must_lead_to(&self, next: &SegmentHeader) -> Result<(), OpenError> {
        if self.walk.point == next.point {
            Ok(())
        } else {
            Err(self.rot())
        }
    }

    /// Whether the trailer belongs to exactly these frames.
    fn has_trailer(&self) -> bool {
        self.trailer.is_some_and(|trailer| {
            trailer.last.0 + 1 == self.walk.point.next.0
                && trailer.chain == self.walk.point.checksum
                && trailer.frames_end == self.walk.end
        })
    }

    /// Whether it does, and its rows are intact too.
    fn has_footer(&self) -> bool {
        self.has_trailer()
            && self.trailer.is_some_and(|trailer| {
                let from = trailer.rows_at as usize;
                let rows = self.bytes.get(from..from.saturating_add(trailer.rows_bytes()));
                rows.is_some_and(|rows| FooterRows::check(&trailer, self.bytes.slice_ref(rows)).is_some())
            })
    }

    /// Decides what to keep of the last segment, cuts off the rest, and makes what is kept durable. Returns
    /// whether the segment is sealed.
    fn settle_last(
        &mut self,
        folder: &Folder,
        from: Lsn,
        unbegun: Option<SegmentId>,
    ) -> Result<bool, OpenError> {
        let behind = &self.bytes[(self.walk.end as usize).min(self.bytes.len())..];
        let seed = self.header.point.checksum;
        let proof = scan::later_proof(behind, seed, self.walk.point.next);
        let mut proven = from.max(self.walk.proven).max(proof);
        if let Some(trailer) = self.trailer {
            proven = proven.max(trailer.synced);
        }
        if let Some(unbegun) = unbegun {
            // Its file was created only after this segment was sealed and synced.
            if !self.has_trailer() {
                return Err(self.rot());
            }
            proven = proven.max(self.prove_from_unbegun(folder, unbegun)?);
        }
        if self.walk.point.next <= proven {
            return Err(
                if self.walk.point.next <= from && self.walk.broken == Broken::End {
                    let last = self.walk.point.next.0 - 1;
                    mismatch(folder, from, format!("ends at entry {last}"))
                } else {
                    self.rot()
                },
            );
        }
        self.cut_unproven_damage(proven);
        let sealed = self.has_trailer();
        self.make_durable(folder, proven, sealed)?;
        Ok(sealed)
    }

    /// Frames in a segment with a damaged header prove that the header was once valid.
    fn prove_from_unbegun(&self, folder: &Folder, unbegun: SegmentId) -> Result<Lsn, OpenError> {
        let path = layout::segment_file(folder.path(), unbegun);
        let file = folder
            .disk()
            .open(&path, Mode::Read)
            .map_err(fail("open", &path))?;
        let bytes = read_whole(&*file, &path)?;
        let point = self.walk.point;
        if scan::later_proof(&bytes, point.checksum, Lsn(point.next.0 - 1)) >= Lsn(1) {
            return Err(rot(path, 0, point.next, "the segment's header is damaged"));
        }
        Ok(Lsn(point.next.0 - 1))
    }

    /// A damaged batch in an entry that is not proven synced: the torn tail begins with that entry.
    fn cut_unproven_damage(&mut self, proven: Lsn) {
        let torn = |frame: &FrameAt| frame.damaged && frame.header.lsn > proven;
        if let Some(first) = self.walk.frames.iter().position(torn) {
            self.walk.end = self.walk.frames[first].position;
            self.walk.frames.truncate(first);
            self.walk.point = self
                .walk
                .frames
                .last()
                .map_or(self.header.point, |frame| frame.header.point());
        }
    }

    /// Zeroes what was cut, rewrites what is not proven synced, and syncs. It is rewritten because after a
    /// failed sync the system may consider pages clean that never reached the disk: reading them back and
    /// syncing proves nothing.
    fn make_durable(&self, folder: &Folder, proven: Lsn, sealed: bool) -> Result<(), OpenError> {
        let write = |from: usize, bytes: &[u8]| {
            write_all_at(&*self.file, &mut [IoSlice::new(bytes)], from as u64)
                .map_err(fail("write", &self.path))
        };
        let end = self.walk.end as usize;
        let unproven = self.walk.frames.iter().find(|frame| frame.header.lsn > proven);
        if let Some(first) = unproven {
            let from = first.position as usize;
            write(from, &self.bytes[from..end])?;
        }
        if sealed {
            let rows_at = self.trailer.map_or(end, |trailer| trailer.rows_at as usize);
            let from = rows_at.clamp(end, self.bytes.len());
            write(from, &self.bytes[from..])?;
        } else {
            let zeros = [0; 4096];
            let mut cut = 0;
            for block in scan::written_blocks(&self.bytes, end) {
                cut += block.len();
                write(block.start, &zeros[..block.len()])?;
            }
            if cut > 0 {
                let Walk { point, broken, .. } = &self.walk;
                let lost = scan::entries_in(&self.bytes[end..], self.header.point.checksum, point.next);
                let (first, last) = lost.ends.unzip();
                tracing::warn!(
                    path = %self.path.display(), position = end, bytes = cut, next = %point.next, reason = %broken,
                    entries = lost.count, first = first.map(|lsn| lsn.0), last = last.map(|lsn| lsn.0),
                    "cut a torn tail off the journal: nothing shows that these entries were ever synced; `entries` of them have a valid header"
                );
            }
        }
        self.file.sync_data().map_err(fail("sync", &self.path))?;
        let parent = layout::journal_folder(folder.path());
        folder.disk().sync_folder(&parent).map_err(fail("sync", &parent))
    }

    /// Hands every entry after `from` to the applier.
    fn replay<A: Applier>(
        &self,
        from: Lsn,
        results: &mut Vec<A::Result>,
        applier: &mut A,
    ) -> Result<(), OpenError> {
        for frame in self.walk.frames.iter().filter(|frame| frame.header.lsn > from) {
            let header = &frame.header;
            let start = frame.position as usize;
            let whole = self.bytes.slice(start..start + header.frame_bytes as usize);
            let (parts, batches) = scan::read_entry(&whole, header, &self.header, frame.position)
                .map_err(|broken| rot(self.path.clone(), start as u64, header.lsn, &broken.to_string()))?;
            for stored in batches.iter().filter(|stored| stored.batch.is_none()) {
                tracing::error!(
                    path = %self.path.display(), position = stored.location.position, bytes = stored.location.bytes,
                    lsn = %header.lsn, "data lost: a batch in the journal is damaged; its offsets cannot be served"
                );
            }
            let entry = Entry {
                lsn: header.lsn,
                term: header.term,
                time: header.time,
                segment: self.header.segment,
                replayed: true,
                parts: &parts,
                batches: &batches,
            };
            applier.apply(&entry, results);
            results.clear();
        }
        // Nothing is written after an entry whose effect is unknown, and no footer without its rows.
        if applier.is_broken() {
            return Err(OpenError::NotApplied);
        }
        Ok(())
    }

    /// Takes the rows of a sealed segment from the applier, and rewrites its footer if that is damaged.
    fn finish_sealed<A: Applier>(&self, from: Lsn, applier: &mut A) -> Result<(), OpenError> {
        let rows = applier.seal(self.header.segment);
        if self.has_footer() {
            return Ok(());
        }
        let path = self.path.display();
        if self.walk.point.next.0 <= from.0 + 1 {
            tracing::error!(%path, "the footer of a sealed journal segment is damaged");
            return Ok(());
        }
        tracing::warn!(%path, "the footer of a sealed journal segment is damaged; it is rewritten");
        let Self { header, walk, .. } = self;
        write_footer(
            &*self.file,
            header.segment,
            walk.end,
            &walk.point,
            &rows,
            u64::from(header.segment_bytes).max(self.bytes.len() as u64),
        )
        .and_then(|()| self.file.sync_data())
        .map_err(fail("write the footer of", &self.path))
    }

    fn resume(self) -> Segment {
        let batches = self
            .walk
            .frames
            .iter()
            .map(|frame| frame.header.batches as usize)
            .sum();
        let Walk { end, point, .. } = self.walk;
        Segment::resume(self.header, self.path, self.file, end, batches, point)
    }
}

fn read_whole(file: &dyn DiskFile, path: &std::path::Path) -> Result<Vec<u8>, OpenError> {
    let bytes = file.bytes().map_err(fail("look at", path))?;
    let bytes = usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .min(u32::MAX as usize);
    read_up_to_at(file, bytes, 0).map_err(fail("read", path))
}

fn rot(path: PathBuf, position: u64, lsn: Lsn, reason: &str) -> OpenError {
    OpenError::Rot {
        path,
        position,
        lsn,
        reason: reason.to_owned(),
    }
}

const fn unknown_version(path: PathBuf, version: u16) -> OpenError {
    OpenError::UnknownVersion {
        path,
        version,
        known: FORMAT_VERSION,
    }
}

fn mismatch(folder: &Folder, checkpoint: Lsn, reason: String) -> OpenError {
    OpenError::Mismatch {
        path: layout::journal_folder(folder.path()),
        checkpoint,
        reason,
    }
}

fn fail(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io {
        operation,
        path,
        source,
    }
}

impl From<Poisoned> for OpenError {
    fn from(poisoned: Poisoned) -> Self {
        Self::Poisoned(poisoned)
    }
}

impl From<Failed> for OpenError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Poisoned(poisoned) => Self::Poisoned(poisoned),
            Failed::Undone(Undone {
                operation,
                path,
                source,
            }) => Self::Io {
                operation,
                path,
                source,
            },
        }
    }
}
