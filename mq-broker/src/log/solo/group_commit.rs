//! The group: waiting commands become frames that are written at once. Its buffers are reused from turn to
//! turn.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use mq_common::ids::{Lsn, Term, Timestamp};

use super::segment::{Failed, Segment};
use crate::log::entry::{
    COMMANDS_MAX, FRAME_HEADER_BYTES, Header, PER_BATCH_BYTES, PER_COMMAND_BYTES, encode,
};
use crate::log::{Command, Entry, GROUP_BYTES_MAX, Part, Purpose, Stored, Ticket, Want};
use crate::store::Location;

/// A command that waits for its turn.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) ticket: Ticket,
    pub(super) want: Want,
    pub(super) command: Command,
}

/// What a waiting command counts in addition to its bytes.
const PENDING_BYTES: usize = 128;

/// The commands that wait, in order.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    commands: VecDeque<Pending>,
    bytes: usize,
}

impl Waiting {
    /// What a command counts against the limit of waiting bytes.
    pub(super) fn counted(command: &Command) -> usize {
        command.bytes() + PENDING_BYTES
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    pub(super) fn push(&mut self, pending: Pending) {
        self.bytes += Self::counted(&pending.command);
        self.commands.push_back(pending);
    }

    /// Puts back a command that was taken too early: it is the next one again.
    pub(super) fn push_front(&mut self, pending: Pending) {
        self.bytes += Self::counted(&pending.command);
        self.commands.push_front(pending);
    }

    fn front(&self) -> Option<&Command> {
        self.commands.front().map(|pending| &pending.command)
    }

    /// The purpose of the oldest one.
    pub(super) fn purpose(&self) -> Option<Purpose> {
        self.front().map(|command| command.purpose)
    }

    /// Removes those with this purpose or an earlier one, in order.
    pub(super) fn take_up_to(&mut self, purpose: Purpose) -> Vec<Ticket> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        self.commands.retain(|pending| {
            let stays = pending.command.purpose > purpose;
            if !stays {
                taken.push(pending.ticket);
                bytes += Self::counted(&pending.command);
            }
            stays
        });
        self.bytes -= bytes;
        taken
    }

    pub(super) fn pop(&mut self) -> Option<Pending> {
        let pending = self.commands.pop_front()?;
        self.bytes -= Self::counted(&pending.command);
        Some(pending)
    }
}

/// Whether a group could be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// It holds the waiting commands, or as many as fit.
    Done,
    /// Not even the first command fits into the rest of the segment.
    NoRoom,
}

/// The entries of one write, with their commands and batches.
#[derive(Debug, Default)]
pub(super) struct Group {
    entries: Vec<Draft>,
    parts: Vec<Part>,
    batches: Vec<Stored>,
    tickets: Vec<(Ticket, Want)>,
    /// For each command, what an entry does not record: whether it needs an lsn of its own, and its purpose.
    unwritten: Vec<(bool, Purpose)>,
    heads: Vec<u8>,
    frames_bytes: usize,
    wants_sync: bool,
}

/// One entry of the group.
#[derive(Debug, Clone)]
struct Draft {
    parts: Range<usize>,
    batches: Range<usize>,
    own_lsn: bool,
    header: Option<Header>,
}

/// Bytes that a command adds to a frame.
pub(super) fn frame_share(command: &Command) -> usize {
    PER_COMMAND_BYTES + PER_BATCH_BYTES * command.batches.len() + command.bytes()
}

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) const fn frames_bytes(&self) -> usize {
        self.frames_bytes
    }

    pub(super) const fn wants_sync(&self) -> bool {
        self.wants_sync
    }

    pub(super) fn tickets(&self) -> &[(Ticket, Want)] {
        &self.tickets
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.parts.clear();
        self.batches.clear();
        self.tickets.clear();
        self.unwritten.clear();
        self.heads.clear();
        self.frames_bytes = 0;
        self.wants_sync = false;
    }

    /// Empties the group: its commands as they waited, in order.
    pub(super) fn take_commands(&mut self) -> Vec<Pending> {
        let mut batches = std::mem::take(&mut self.batches).into_iter();
        let of_command = self.tickets.drain(..).zip(self.unwritten.drain(..));
        let commands = of_command.zip(self.parts.drain(..));
        let taken = commands
            .map(|(((ticket, want), (own_lsn, purpose)), part)| {
                let own = batches.by_ref().take(part.batches as usize);
                let command = Command {
                    meta: part.meta,
                    batches: own.filter_map(|stored| stored.batch).collect(),
                    own_lsn,
                    purpose,
                };
                Pending {
                    ticket,
                    want,
                    command,
                }
            })
            .collect();
        self.clear();
        taken
    }

    /// Takes commands, in order, as long as they fit into the group and the segment, which is to have `rows_max`
    /// rows at most.
    pub(super) fn fill(&mut self, waiting: &mut Waiting, segment: &Segment, rows_max: usize) -> Fill {
        while let Some(front) = waiting.front() {
            let opens = self.opens_entry(front);
            let header = if opens { FRAME_HEADER_BYTES } else { 0 };
            let frames_bytes = self.frames_bytes + frame_share(front) + header;
            if !self.is_empty() && frames_bytes > GROUP_BYTES_MAX {
                break;
            }
            let batches = self.batches.len() + front.batches.len();
            // An empty segment takes any command.
            let has_rows = segment.rows() + batches <= rows_max || (self.is_empty() && segment.rows() == 0);
            if !has_rows || !segment.has_room(frames_bytes, batches) {
                return if self.is_empty() { Fill::NoRoom } else { Fill::Done };
            }
            let Some(next) = waiting.pop() else { break };
            self.frames_bytes = frames_bytes;
            self.push(next, opens);
        }
        Fill::Done
    }

    /// Makes the group one empty entry.
    pub(super) fn fill_empty(&mut self, segment: &Segment) -> Fill {
        if !segment.has_room(FRAME_HEADER_BYTES, 0) {
            return Fill::NoRoom;
        }
        self.open_entry();
        self.frames_bytes = FRAME_HEADER_BYTES;
        Fill::Done
    }

    fn opens_entry(&self, command: &Command) -> bool {
        self.entries
            .last()
            .is_none_or(|last| (command.own_lsn && last.own_lsn) || last.parts.len() == COMMANDS_MAX)
    }

    fn open_entry(&mut self) {
        self.entries.push(Draft {
            parts: self.parts.len()..self.parts.len(),
            batches: self.batches.len()..self.batches.len(),
            own_lsn: false,
            header: None,
        });
    }

    fn push(&mut self, next: Pending, opens: bool) {
        if opens {
            self.open_entry();
        }
        let Command {
            meta,
            batches,
            own_lsn,
            purpose,
        } = next.command;
        let count = |value: usize| u32::try_from(value).expect("a command's bytes were checked");
        self.parts.push(Part {
            meta,
            batches: count(batches.len()),
        });
        self.batches.extend(batches.into_iter().map(|batch| Stored {
            location: Location {
                bytes: count(batch.len()),
                ..Location::default()
            },
            checksum: batch.checksum(),
            batch: Some(batch),
        }));
        self.tickets.push((next.ticket, next.want));
        self.unwritten.push((own_lsn, purpose));
        self.wants_sync |= next.want == Want::Synced;
        if let Some(last) = self.entries.last_mut() {
            last.parts.end = self.parts.len();
            last.batches.end = self.batches.len();
            last.own_lsn |= own_lsn;
        }
    }

    /// Appends the group to the segment in one write; returns the last lsn.
    pub(super) fn write(
        &mut self,
        segment: &mut Segment,
        term: Term,
        time: Timestamp,
        synced: Lsn,
    ) -> Result<Lsn, Failed> {
        let mut point = segment.point;
        let mut position = segment.position();
        let start = position;
        for draft in &mut self.entries {
            let batches = &mut self.batches[draft.batches.clone()];
            let fields = Header {
                frame_bytes: 0,
                checksum: 0,
                previous_checksum: point.checksum,
                lsn: point.next,
                term,
                time,
                synced,
                version: 0,
                commands: 0,
                commands_bytes: 0,
                batches: 0,
            };
            let parts = &self.parts[draft.parts.clone()];
            let header = encode(&mut self.heads, segment.seed(), fields, parts, batches);
            let bodies: u32 = batches.iter().map(|stored| stored.location.bytes).sum();
            let mut body = position + header.frame_bytes - bodies;
            for stored in batches {
                stored.location.segment = segment.id();
                stored.location.position = body;
                body += stored.location.bytes;
            }
            position += header.frame_bytes;
            debug_assert_eq!(body, position);
            point = header.point();
            draft.header = Some(header);
        }
        let mut slices = Vec::with_capacity(self.entries.len() + self.batches.len());
        let mut heads = &self.heads[..];
        for draft in &self.entries {
            let Some(header) = draft.header else { continue };
            let (head, rest) = heads.split_at(header.bodies_at());
            heads = rest;
            slices.push(IoSlice::new(head));
            let bodies = self.batches[draft.batches.clone()].iter();
            slices.extend(
                bodies
                    .filter_map(|stored| stored.batch.as_ref())
                    .map(|batch| IoSlice::new(batch.bytes())),
            );
        }
        segment.write(&mut slices, position - start, self.batches.len(), point)?;
        Ok(Lsn(point.next.0 - 1))
    }

    /// The entries as written, with the tickets of their commands.
    pub(super) fn entries(&self, segment: &Segment) -> impl Iterator<Item = (Entry<'_>, &[(Ticket, Want)])> {
        let segment = segment.id();
        self.entries.iter().filter_map(move |draft| {
            let header = draft.header?;
            let entry = Entry {
                lsn: header.lsn,
                term: header.term,
                time: header.time,
                segment,
                replayed: false,
                parts: &self.parts[draft.parts.clone()],
                batches: &self.batches[draft.batches.clone()],
            };
            // Only commands have tickets, in the same order.
            Some((entry, self.tickets.get(draft.parts.clone()).unwrap_or(&[])))
        })
    }
}
