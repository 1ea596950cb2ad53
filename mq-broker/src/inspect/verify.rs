//! `mq-broker verify`: checks every file of a data folder completely.
//!
//! In the folder of a stopped broker everything is checked. While a broker runs, the sealed segments and the
//! checkpoint are; its newest segment is read as far as it has been written, and a segment that is freed
//! meanwhile is skipped.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use mq_common::batch::Batch;
use mq_common::ids::{Lsn, Offset};

use super::coverage;
use super::names::Names;
use super::progress::Progress;
use super::queue_file;
use super::report::{self, Damage, Output, Report, Standing};
use super::segment::{self, Around, Checked};
use super::unreadable::{check_around, footer_around};
use super::{Error, at};
use crate::checkpoint::{self, Examined, Saved};
use crate::ids::QueueKey;
use crate::log::SegmentId;
use crate::log::entry::ChainPoint;
use crate::state::{Limits, State};
use crate::store::disk::{Disk, DiskFile, Mode, StdDisk, read_up_to_at};
use crate::store::io::unreadable;
use crate::store::segment_index::footer_file::Footer;
use crate::store::{FileRow, PlacedRow, layout};

/// Number of consecutive missing segments that are named.
const GAP_MAX: usize = 16;

/// Checks the folder `data`, writes the findings to `out`, and returns whether there is no damage.
///
/// # Errors
/// [`Error`]: there is nothing to check, or it cannot be read.
pub async fn verify(data: &Path, output: Output, out: &mut dyn Write) -> Result<bool, Error> {
    let state = layout::checkpoint_file(data);
    let journal = layout::journal_folder(data);
    if !state.is_file() && !journal.is_dir() {
        return Err(Error::NoData {
            path: data.to_owned(),
        });
    }
    // Held to the end, so that no broker starts meanwhile. The file is not created where it is missing.
    let lock_file = layout::lock_file(data);
    let lock = lock_file.is_file().then(|| StdDisk.lock(&lock_file));
    // Any failure counts: without the lock a broker may be running, and what it is writing must not be
    // judged.
    let failed = lock.as_ref().and_then(|lock| lock.as_ref().err());
    let runs = failed.is_some();
    let (state_report, saved) = check_state(&state, !runs).await?;
    let folder = JournalFolder::list(data, runs)?;
    let mut reports = vec![state_report];
    reports.extend(folder.check(saved.as_ref())?);
    if let Some(saved) = &saved {
        reports.extend(check_queue_files(data, &saved.store.files, runs)?);
        folder.name_missing(saved, &mut reports)?;
    }
    if let Some(error) = failed {
        reports[0].note += &match error.kind() {
            io::ErrorKind::WouldBlock => {
                "; a broker is running: its newest entries are not checked".to_owned()
            }
            _ => format!(
                "; a broker may be running (cannot lock the folder: {error}): the newest entries are not checked"
            ),
        };
    }
    report::write(out, output, &reports).map_err(Error::Output)?;
    drop(lock);
    Ok(!reports.iter().any(|report| report.standing.is_bad()))
}

/// Checks the queue files that the checkpoint lists. Nothing reads any others.
fn check_queue_files(data: &Path, rows: &[FileRow], runs: bool) -> Result<Vec<Report>, Error> {
    let rows: Vec<&FileRow> = rows.iter().filter(|row| !row.is_gone).collect();
    let progress = Progress::new(rows.iter().map(|row| u64::from(row.segment.bytes)).sum());
    let mut reports = Vec::new();
    for row in rows {
        let path = layout::queue_data_file(data, &row.name, row.first, row.generation);
        let name = path.strip_prefix(data).unwrap_or(&path).display().to_string();
        progress.file(&name);
        match StdDisk.open(&path, Mode::Read) {
            Ok(file) => {
                let checked = check_around(&*file, name, |file, name| {
                    let report = queue_file::check(file, name, row, &progress)?;
                    Ok(Checked { report, point: None })
                });
                reports.push(checked.map_err(at(&path))?.report);
            }
            // Rewritten or removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && runs => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut report = Report::new(name, 0);
                report.standing = Standing::Missing;
                report.note = format!("it held offsets {}..{}", row.first, row.segment.end);
                reports.push(report);
            }
            Err(error) => return Err(at(&path)(error)),
        }
    }
    progress.finish();
    Ok(reports)
}

/// Checks `state.db`.
async fn check_state(path: &Path, alone: bool) -> Result<(Report, Option<Saved>), Error> {
    let file = StdDisk.open(path, Mode::Read);
    let bytes = file.and_then(|file| file.bytes()).unwrap_or(0);
    let mut report = Report::new("state.db".to_owned(), bytes);
    let Examined { shard, format, saved } = match checkpoint::examine(path, alone).await {
        Ok(examined) => examined,
        Err(checkpoint::Error::Missing { .. }) => {
            report.standing = Standing::Missing;
            return Ok((report, None));
        }
        Err(checkpoint::Error::Format { found, .. }) => {
            report.standing = Standing::LaterVersion;
            report.note = format!("format {found}: written by a later version of the broker");
            return Ok((report, None));
        }
        Err(checkpoint::Error::Damaged { reason, .. }) => {
            report.damaged(Damage {
                end: bytes,
                what: reason,
                ..Damage::default()
            });
            return Ok((report, None));
        }
        Err(error) if error.is_unreadable() => {
            report.damaged(Damage {
                end: bytes,
                what: error.to_string(),
                ..Damage::default()
            });
            return Ok((report, None));
        }
        Err(error) => return Err(error.into()),
    };
    let Some(saved) = saved else {
        report.note = format!("broker {shard}, format {format}: the next start upgrades it");
        return Ok((report, None));
    };
    let (lsn, queues) = (saved.rows.counters.lsn, saved.rows.queues.len());
    report.note = format!("broker {shard}, at entry {lsn}, {queues} queues");
    let name = shard.clone().try_into();
    let loaded = name.map(|name| State::load(name, Limits::default(), saved.rows.clone()));
    let wrong = match loaded {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("`{shard}` is not a valid broker name")),
    };
    if let Some(what) = wrong {
        report.damaged(Damage {
            end: bytes,
            what,
            ..Damage::default()
        });
    }
    Ok((report, Some(saved)))
}

/// The journal's segments.
struct JournalFolder<'a> {
    data: &'a Path,
    segments: Vec<SegmentId>,
    runs: bool,
}

impl<'a> JournalFolder<'a> {
    fn list(data: &'a Path, runs: bool) -> Result<Self, Error> {
        let journal = layout::journal_folder(data);
        let names = match StdDisk.list(&journal) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(at(&journal)(error)),
        };
        let segments = names
            .iter()
            .filter_map(|name| layout::parse_segment(name))
            .collect();
        Ok(Self { data, segments, runs })
    }

    fn open(&self, segment: SegmentId) -> Result<Option<Arc<dyn DiskFile>>, Error> {
        let path = layout::segment_file(self.data, segment);
        match StdDisk.open(&path, Mode::Read) {
            Ok(file) => Ok(Some(file)),
            // Freed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.runs => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    fn name(&self, segment: SegmentId) -> String {
        let path = layout::segment_file(self.data, segment);
        let short = path.strip_prefix(self.data).unwrap_or(&path);
        short.display().to_string()
    }

    fn check(&self, saved: Option<&Saved>) -> Result<Vec<Report>, Error> {
        let checkpoint = saved.map_or(Lsn(0), |saved| saved.rows.counters.lsn);
        let mut bytes = 0;
        for segment in &self.segments {
            bytes += self.open(*segment)?.map_or(0, |file| file.bytes().unwrap_or(0));
        }
        let progress = Progress::new(bytes);
        let mut reports: BTreeMap<SegmentId, Report> = BTreeMap::new();
        let mut before: Option<(SegmentId, ChainPoint)> = None;
        for (index, segment) in self.segments.iter().enumerate() {
            progress.file(&self.name(*segment));
            let Some(file) = self.open(*segment)? else {
                before = None;
                continue;
            };
            let is_last = index + 1 == self.segments.len();
            let is_neighbour = |of: SegmentId| of.0 + 1 == segment.0;
            let around = Around {
                segment: *segment,
                before: before.filter(|(of, _)| is_neighbour(*of)).map(|(_, point)| point),
                has_successor: !is_last,
                // The checkpoint may have only the first entries of the last segment.
                checkpoint,
                is_written: self.runs && is_last,
            };
            let Some(checked) = self.check_one(&*file, around, &progress)? else {
                before = None;
                continue;
            };
            before = checked.point.map(|point| (*segment, point));
            reports.insert(*segment, checked.report);
        }
        progress.finish();
        if let Some(saved) = saved {
            self.name_damage(saved, &mut reports)?;
            self.find_missing(saved, &mut reports);
        }
        Ok(reports.into_values().collect())
    }

    /// Checks a segment whose file is open. `None` = a running broker freed it meanwhile, renamed its file
    /// and filled it with zeros.
    fn check_one(
        &self,
        file: &dyn DiskFile,
        around: Around,
        progress: &Progress,
    ) -> Result<Option<Checked>, Error> {
        let path = layout::segment_file(self.data, around.segment);
        let checked = check_around(file, self.name(around.segment), |file, name| {
            segment::check(file, name, around, progress)
        });
        let checked = checked.map_err(at(&path))?;
        // The name is never used again, so without a file of that name the segment was freed.
        if checked.report.standing != Standing::Ok && self.open(around.segment)?.is_none() {
            return Ok(None);
        }
        Ok(Some(checked))
    }

    /// Finds segments that the checkpoint needs but that have no file.
    fn find_missing(&self, saved: &Saved, reports: &mut BTreeMap<SegmentId, Report>) {
        if self.runs {
            return;
        }
        for segment in needed(saved) {
            if !self.segments.contains(&segment) {
                let mut report = Report::new(self.name(segment), 0);
                report.standing = Standing::Missing;
                report.note = "it held messages that are still valid".to_owned();
                reports.insert(segment, report);
            }
        }
        let lsn = saved.rows.counters.lsn;
        for segment in self.gaps(lsn, reports) {
            let report = reports.entry(segment);
            let report = report.or_insert_with(|| Report::new(self.name(segment), 0));
            report.standing = Standing::Missing;
            report.note = format!("it held entries after the checkpoint, which is at entry {lsn}");
        }
        let last = self.segments.last().copied().unwrap_or(SegmentId(1));
        let ends = reports
            .values()
            .filter_map(|report| report.last_lsn)
            .max()
            .unwrap_or(0);
        if lsn.0 > ends {
            let report = reports
                .entry(last)
                .or_insert_with(|| Report::new(self.name(last), 0));
            if report.standing == Standing::Ok {
                report.standing = Standing::Missing;
                report.note =
                    format!("the journal ends at entry {ends}, but the checkpoint is at entry {lsn}");
            }
        }
    }

    /// Missing segments that a start has to replay: from the one with the entry after the checkpoint onwards.
    fn gaps(&self, checkpoint: Lsn, reports: &BTreeMap<SegmentId, Report>) -> Vec<SegmentId> {
        let Some(first) = self.segments.first().copied() else {
            return Vec::new();
        };
        let starts = |segment: &SegmentId| {
            let first = reports.get(segment).and_then(|report| report.first_lsn);
            first.is_some_and(|first| first <= checkpoint.0 + 1)
        };
        let begun = reports.get(&first).and_then(|report| report.first_lsn);
        let Some(start) = self.segments.iter().copied().rfind(starts) else {
            // Nothing is known of a first segment without an entry or a header.
            let before = SegmentId(first.0.saturating_sub(1));
            return begun.map(|_| before).into_iter().collect();
        };
        let replayed: Vec<SegmentId> = self.segments.iter().copied().filter(|id| *id >= start).collect();
        let missing = replayed
            .windows(2)
            .flat_map(|pair| (pair[0].0 + 1..pair[1].0).take(GAP_MAX));
        missing.map(SegmentId).collect()
    }

    /// Reports which offsets of which queues no file holds: in the report of the missing segment, or else in
    /// that of the checkpoint, whose rows have no file.
    fn name_missing(&self, saved: &Saved, reports: &mut [Report]) -> Result<(), Error> {
        // A segment that a running broker freed meanwhile is no longer needed.
        let is_there = |segment| self.runs || self.segments.binary_search(&segment).is_ok();
        let rows = |segment| {
            let Some(file) = self
                .segments
                .contains(&segment)
                .then(|| self.open(segment))
                .transpose()?
            else {
                return Ok(None);
            };
            let Some(file) = file else { return Ok(None) };
            let path = layout::segment_file(self.data, segment);
            match footer_around(&*file, segment).map_err(at(&path))? {
                Footer::Whole(_, rows) => Ok(Some(rows)),
                _ => Ok(None),
            }
        };
        for missing in coverage::missing(saved, is_there, rows)? {
            let name = missing.segment.map(|segment| self.name(segment));
            let of_segment = reports
                .iter()
                .position(|report| Some(&report.file) == name.as_ref());
            let report = &mut reports[of_segment.unwrap_or(0)];
            if report.standing == Standing::Ok {
                report.standing = Standing::Damaged;
            }
            report.damage.push(Damage {
                topic: Some(missing.topic),
                queue: Some(missing.queue),
                first_offset: Some(missing.first.0),
                end_offset: Some(missing.end.0),
                what: "no file holds these messages".to_owned(),
                ..Damage::default()
            });
        }
        Ok(())
    }

    /// Adds to each damaged place which queue and offsets it held.
    fn name_damage(&self, saved: &Saved, reports: &mut BTreeMap<SegmentId, Report>) -> Result<(), Error> {
        if reports.values().all(|report| report.damage.is_empty()) {
            return Ok(());
        }
        let names = Names::of(saved);
        for (_, row) in &saved.store.placed {
            self.name_row(row, &names, reports)?;
        }
        for segment in &self.segments {
            let Some(file) = self.open(*segment)? else {
                continue;
            };
            let path = layout::segment_file(self.data, *segment);
            let footer = footer_around(&*file, *segment);
            let Footer::Whole(_, rows) = footer.map_err(at(&path))? else {
                continue;
            };
            for row in (0..rows.len()).filter_map(|index| rows.get(index)) {
                self.name_row(&row, &names, reports)?;
            }
        }
        Ok(())
    }

    fn name_row(
        &self,
        row: &PlacedRow,
        names: &Names,
        reports: &mut BTreeMap<SegmentId, Report>,
    ) -> Result<(), Error> {
        let Some(report) = reports.get_mut(&row.location.segment) else {
            return Ok(());
        };
        let (from, end) = (
            u64::from(row.location.position),
            u64::from(row.location.position) + u64::from(row.location.bytes),
        );
        let overlaps = |damage: &&mut Damage| damage.position < end && from < damage.end;
        let Some(damage) = report.damage.iter_mut().find(overlaps) else {
            return Ok(());
        };
        if (damage.position, damage.end) == (from, end) {
            names.name(damage, row);
        } else if !self.holds(row)? {
            // Some batches within damaged frames may be intact.
            let mut found = Damage {
                position: from,
                end,
                what: "a batch is damaged".to_owned(),
                ..Damage::default()
            };
            names.name(&mut found, row);
            report.damage.push(found);
        }
        Ok(())
    }

    /// Whether the batch of a row is intact.
    fn holds(&self, row: &PlacedRow) -> Result<bool, Error> {
        let Some(file) = self.open(row.location.segment)? else {
            return Ok(true);
        };
        let path = layout::segment_file(self.data, row.location.segment);
        let bytes = read_up_to_at(
            &unreadable::Around::new(&*file),
            row.location.bytes as usize,
            u64::from(row.location.position),
        );
        let holds = match bytes {
            Err(error) if unreadable::is_rot(&error) => false,
            bytes => {
                let batch = Batch::parse(Bytes::from(bytes.map_err(at(&path))?));
                batch.is_ok_and(|batch| batch.checksum() == row.checksum)
            }
        };
        Ok(holds || self.open(row.location.segment)?.is_none())
    }
}

/// Segments that hold valid messages according to the checkpoint.
fn needed(saved: &Saved) -> Vec<SegmentId> {
    let queues = saved.rows.queues.iter();
    let starts: HashMap<QueueKey, Offset> = queues.map(|queue| (queue.key, queue.start)).collect();
    let parts = coverage::parts(saved).into_iter();
    let valid = parts.filter(|part| starts.get(&part.queue).is_some_and(|start| part.end > *start));
    let mut needed: Vec<SegmentId> = valid.map(|part| part.segment).collect();
    needed.extend(saved.store.halves.iter().map(|half| half.location.segment));
    let references = saved.store.references.iter().flat_map(|(_, all)| all.iter());
    let valid = references.filter(|row| starts.get(&row.queue).is_some_and(|start| row.end > *start));
    needed.extend(valid.map(|row| row.segment));
    needed.sort_unstable();
    needed.dedup();
    needed
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
