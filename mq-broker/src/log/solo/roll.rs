//! Going on in the next segment, and what becomes of commands when there is no space for one.
//!
//! The one invariant: a command that is answered `Refused` is in no file, durably: neither this process nor the next one
//! will find it.

use mq_common::ids::Timestamp;

use super::segment::{Failed, Material, Segment, Undone};
use super::{Fill, Solo, idle_ms};
use crate::log::entry::SegmentHeader;
use crate::log::{Applier, Completion, Poisoned, Purpose, Refused};
use crate::store::SegmentId;
use crate::store::disk::is_full;

impl<R> Solo<R> {
    /// Writes an empty entry, in the next segment if need be. One that finds no space is not written: what it would
    /// cover is synced instead.
    pub(super) fn write_empty<A: Applier<Result = R>>(
        &mut self,
        now: Timestamp,
        applier: &mut A,
        purpose: Purpose,
    ) -> Result<Option<Refused>, Poisoned> {
        self.sync_wanted = true;
        if self.group.fill_empty(&self.segment) == Fill::NoRoom {
            if let Some(refused) = self.roll(applier, purpose)? {
                // Not at once again: each try asks the system for a file.
                self.empty_from = Timestamp(now.0.saturating_add(idle_ms(&self.settings)));
                return Ok(Some(refused));
            }
            assert_eq!(
                self.group.fill_empty(&self.segment),
                Fill::Done,
                "an empty segment has room"
            );
        }
        if let Some(refused) = self.write_group(now, applier)? {
            self.empty_from = Timestamp(now.0.saturating_add(idle_ms(&self.settings)));
            return Ok(Some(refused));
        }
        self.last_is_empty = true;
        Ok(None)
    }

    /// Seals the segment that is being written, if it holds anything, so that all entries so far lie in files that change
    /// no more: to be moved or copied. Answers why there is no next one, if so; then nothing happened.
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

    /// Seals the segment and begins the next one, for a command of this purpose. Every entry of it is applied: nothing
    /// of the group is written yet. Answers why there is no next one, if so.
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
            // Before the store forgets the rows: a checkpoint must find them there or in the footer.
            self.reserve_footer(applier.rows(sealed))?;
            let rows = applier.seal(sealed);
            self.segment.seal(&rows)?;
        }
        let material = match (self.ahead.take(), purpose) {
            (Some(spare), _) => Material::Spare(spare),
            // Little is enough for what gives space back.
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
        // Only now: the last segment that there is must not be freed.
        self.ahead.sealed(sealed);
        Ok(())
    }

    /// A footer needs little, a spare has much: it is given up if there is nothing else.
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

    /// Takes back a group whose write found no space. Nobody was told of it and it is not applied. What stores no messages
    /// waits for the next segment if a spare stands ready for it; the rest is refused.
    pub(super) fn take_back(&mut self, undone: &Undone) -> Result<Refused, Poisoned> {
        self.segment.take_back()?;
        // Before anybody is told that nothing happened. What was written before is on the disk then, too.
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
        // Each try takes a spare, so it ends.
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
        // They may be of the same calls: nothing is to be taken behind what was refused, should there be space again.
        self.refuse_waiting(Purpose::Stores, &refused);
        Ok(refused)
    }

    /// Refuses what waits, as far as it is for no more than this purpose.
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
