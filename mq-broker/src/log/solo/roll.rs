//! Continuing in the next segment, and refusing commands when there is no space for one.
//!
//! The one invariant: a command that was answered `Refused` is durably in no file: neither this process nor
//! the next one will find it.

use mq_common::ids::Timestamp;

use super::segment::{Failed, Material, Segment, Undone};
use super::{Fill, Solo};
use crate::log::entry::SegmentHeader;
use crate::log::{Applier, Completion, Poisoned, Purpose, Refused};
use crate::store::SegmentId;
use crate::store::disk::is_full;

impl<R> Solo<R> {
    /// Writes an empty entry, in the next segment if necessary. If there is no space, it is not written: the
    /// entry that it would cover is only synced.
    pub(super) fn write_empty<A: Applier<Result = R>>(
        &mut self,
        now: Timestamp,
        applier: &mut A,
        purpose: Purpose,
    ) -> Result<Option<Refused>, Poisoned> {
        self.sync_wanted = true;
        if self.group.fill_empty(&self.segment) == Fill::NoRoom {
            if let Some(refused) = self.roll(applier, purpose)? {
                self.timer.found_no_space(now);
                return Ok(Some(refused));
            }
            assert_eq!(
                self.group.fill_empty(&self.segment),
                Fill::Done,
                "an empty segment has room"
            );
        }
        if let Some(refused) = self.write_group(now, applier)? {
            self.timer.found_no_space(now);
            return Ok(Some(refused));
        }
        self.timer.wrote_empty();
        Ok(None)
    }

    /// Seals the segment that is being written, if it holds anything: all entries so far are then in files
    /// that no longer change, and can be moved or copied. If there can be no next segment, returns why;
    /// nothing happened then.
    ///
    /// # Errors
    /// The log failed.
    pub fn seal_segment<A: Applier<Result = R>>(
        &mut self,
        applier: &mut A,
        purpose: Purpose,
    ) -> Result<Option<Refused>, Poisoned> {
        if self.segment.is_empty() {
            return Ok(None);
        }
        let mut refused = None;
        self.guard(|log| {
            refused = log.roll(applier, purpose)?;
            Ok(())
        })?;
        Ok(refused)
    }

    /// Seals the segment and begins the next one, for a command with this purpose. All its entries are
    /// applied: nothing of the group is written yet. If there can be no next segment, returns why.
    pub(super) fn roll<A: Applier<Result = R>>(
        &mut self,
        applier: &mut A,
        purpose: Purpose,
    ) -> Result<Option<Refused>, Poisoned> {
        if let Some(refused) = self.space.look().refuses(purpose) {
            return Ok(Some(refused));
        }
        match self.begin_next(applier, purpose) {
            Ok(()) => {
                // The spare taken may have been the last one.
                self.space.look();
                Ok(None)
            }
            Err(Failed::Undone(undone)) => Ok(Some(self.refusal(&undone, purpose))),
            Err(Failed::Poisoned(poisoned)) => Err(poisoned),
        }
    }

    fn begin_next<A: Applier<Result = R>>(
        &mut self,
        applier: &mut A,
        purpose: Purpose,
    ) -> Result<(), Failed> {
        let sealed = self.segment.id();
        if !self.segment.is_sealed() {
            self.sync_all()?;
            // Before the store drops the rows: a checkpoint must find them there or in the footer.
            self.reserve_footer(applier.rows(sealed))?;
            let rows = applier.seal(sealed);
            self.segment.seal(&rows)?;
        }
        let material = match (self.ahead.take(), purpose) {
            (Some(spare), _) => Material::Spare(spare),
            // Commands that give space back need little.
            (None, Purpose::Frees) => Material::Any,
            (None, _) => Material::Whole,
        };
        let header = SegmentHeader {
            segment: SegmentId(sealed.0 + 1),
            point: self.segment.point,
            segment_bytes: self.settings.segment_bytes,
        };
        self.segment = match Segment::begin(&self.folder, header, &material) {
            Ok(segment) => segment,
            Err(failed) => {
                if let (Failed::Undone(undone), Material::Spare(spare)) = (&failed, material)
                    && undone.source.kind() != std::io::ErrorKind::NotFound
                {
                    self.ahead.put_back(spare);
                }
                return Err(failed);
            }
        };
        // Only now, because the last existing segment must not be freed.
        self.ahead.sealed(sealed);
        Ok(())
    }

    /// A footer needs little space, a spare has much: one is given up if there is no other space.
    fn reserve_footer(&mut self, rows: usize) -> Result<(), Failed> {
        loop {
            match self.segment.reserve_footer(rows) {
                Err(Failed::Undone(undone)) if self.recycler().give_up_spare().unwrap_or(false) => {
                    tracing::warn!(error = %undone.source, "a spare journal segment is given up to seal one on a full disk");
                }
                done => return done,
            }
        }
    }

    /// Takes back a group whose write found no space. It was neither acknowledged nor applied. Commands that
    /// store no messages wait for the next segment if a spare is ready; the others are refused.
    pub(super) fn take_back(&mut self, undone: &Undone) -> Result<Refused, Poisoned> {
        self.segment.take_back()?;
        // Before the refusals are delivered. This also syncs everything written before.
        self.segment.sync()?;
        self.sync_all()?;
        self.space.look();
        let refused = self.refusal(undone, Purpose::Stores);
        let smaller = match &refused {
            Refused::DiskFull { free, needed } => Refused::ReserveUsed {
                free: *free,
                needed: *needed,
            },
            other => other.clone(),
        };
        // Each try takes a spare, so the tries end.
        let has_spare = self.recycler().spares() > 0;
        let commands = self.group.take_commands().into_iter();
        let (later, never): (Vec<_>, Vec<_>) =
            commands.partition(|pending| has_spare && pending.command.purpose > Purpose::Stores);
        let answers = never.into_iter().map(|pending| match pending.command.purpose {
            Purpose::Stores => (pending.ticket, Completion::Refused(refused.clone())),
            Purpose::Notes | Purpose::Frees => (pending.ticket, Completion::Refused(smaller.clone())),
        });
        self.completions.extend(answers);
        for pending in later.into_iter().rev() {
            self.waiting.push_front(pending);
        }
        // They may belong to the same calls: nothing may be accepted after a refused command, even if there
        // is space again.
        self.refuse_waiting(Purpose::Stores, &refused);
        Ok(refused)
    }

    /// Refuses the waiting commands with this purpose or an earlier one.
    pub(super) fn refuse_waiting(&mut self, purpose: Purpose, refused: &Refused) {
        let tickets = self.waiting.take_up_to(purpose).into_iter();
        self.completions
            .extend(tickets.map(|ticket| (ticket, Completion::Refused(refused.clone()))));
    }

    fn refusal(&self, undone: &Undone, purpose: Purpose) -> Refused {
        let Undone {
            operation,
            path,
            source,
        } = undone;
        tracing::warn!(operation, path = %path.display(), error = %source, "the journal found no space");
        if !is_full(source) {
            return Refused::NoSegment {
                reason: format!("{operation} `{}`: {source}", path.display()),
            };
        }
        self.space.found_full();
        let standing = self.space.standing();
        let (free, needed) = (standing.free, standing.needed);
        match purpose {
            Purpose::Stores => Refused::DiskFull { free, needed },
            Purpose::Notes | Purpose::Frees => Refused::ReserveUsed { free, needed },
        }
    }
}
