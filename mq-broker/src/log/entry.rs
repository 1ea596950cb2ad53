//! The journal's frames as bytes; pure. `docs/store.md` has the tables, a golden file pins them.
//!
//! A frame is `[header][commands][bodies]`: one entry. Its checksum covers header and commands, which hold
//! each body's own checksum, so no body is read again. It starts from the segment's *seed* and contains the
//! checksum of the frame before: a frame is valid only in its segment and directly after its predecessor,
//! whatever the file held before.

use bytes::{Buf, Bytes};
use mq_common::ids::{Lsn, Term, Timestamp};

use super::{COMMAND_BYTES_MAX, Part, Stored};
use crate::store::{Location, SegmentId};

/// The version of frames, segment headers and footers that this program writes, and the only one it reads.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of a frame's header, up to the commands.
pub const FRAME_HEADER_BYTES: usize = 60;
/// Bytes that a frame adds per command, besides its header.
pub const PER_COMMAND_BYTES: usize = 8;
/// Bytes that a frame adds per batch.
pub const PER_BATCH_BYTES: usize = 8;
/// Bytes of a segment's header.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// Commands in one entry.
pub const COMMANDS_MAX: usize = u16::MAX as usize;
/// The most bytes of a frame. A group is limited to [`super::GROUP_BYTES_MAX`] of metas and bodies, or is one
/// command; with the smallest commands, what the frame adds is as much again.
pub const FRAME_BYTES_MAX: usize = 2 * COMMAND_BYTES_MAX;

const SEGMENT_MAGIC: [u8; 8] = *b"hcmq-jnl";

/// The fields of a frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole frame.
    pub frame_bytes: u32,
    /// Checksum of header and commands.
    pub checksum: u32,
    /// The `checksum` of the frame before.
    pub previous_checksum: u32,
    /// The entry.
    pub lsn: Lsn,
    /// The term it was written in.
    pub term: Term,
    /// The leader's time.
    pub time: Timestamp,
    /// The last entry that was synced when this one was written.
    pub synced: Lsn,
    /// The format of the frame.
    pub version: u16,
    /// Commands in it.
    pub commands: u16,
    /// Bytes of the commands.
    pub commands_bytes: u32,
    /// Batches in it.
    pub batches: u32,
}

/// A point of the chain: what the next frame must continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainPoint {
    /// The next entry's lsn.
    pub next: Lsn,
    /// The last frame's checksum.
    pub checksum: u32,
    /// The last entry's term.
    pub term: Term,
    /// The last entry's time.
    pub time: Timestamp,
}

/// Why bytes are not the frame that is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// There is no frame: the length is zero, or the file ends.
    #[error("there is no frame")]
    End,
    /// The header's own checksum does not match.
    #[error("the frame's header is damaged")]
    Header,
    /// The frame is longer than the file.
    #[error("the frame is cut off")]
    Cut,
    /// The checksum over header and commands does not match.
    #[error("the frame's commands are damaged")]
    Commands,
    /// The frame is valid, but does not follow the one before it.
    #[error("the frame does not follow the one before it")]
    Chain,
    /// It is intact, but of another version.
    #[error("the frame has version {0}")]
    Version(u16),
}

/// Bytes of a frame with these contents.
#[must_use]
pub const fn frame_bytes(commands: usize, batches: usize, content_bytes: usize) -> usize {
    FRAME_HEADER_BYTES + commands * PER_COMMAND_BYTES + batches * PER_BATCH_BYTES + content_bytes
}

/// Appends a frame's header and commands to `out`, to be followed by the bodies, and returns the header. The
/// fields of `header` that follow from the contents (lengths, counts, checksum, version) are overwritten.
///
/// # Panics
/// When the contents exceed [`FRAME_BYTES_MAX`]: proposals are checked.
pub fn encode(out: &mut Vec<u8>, seed: u32, header: Header, parts: &[Part], batches: &[Stored]) -> Header {
    let start = out.len();
    let bodies: usize = batches.iter().map(|stored| stored.location.bytes as usize).sum();
    let metas: usize = parts.iter().map(|part| part.meta.len()).sum();
    let whole = frame_bytes(parts.len(), batches.len(), metas + bodies);
    assert!(whole <= FRAME_BYTES_MAX, "a frame of {whole} bytes");
    let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let mut header = Header {
        frame_bytes: count(whole),
        version: FORMAT_VERSION,
        commands: u16::try_from(parts.len()).expect("at most COMMANDS_MAX commands"),
        commands_bytes: count(whole - FRAME_HEADER_BYTES - bodies),
        batches: count(batches.len()),
        ..header
    };
    header.write(out, seed);
    let mut rest = batches.iter();
    for part in parts {
        out.extend_from_slice(&count(part.meta.len()).to_be_bytes());
        out.extend_from_slice(&part.batches.to_be_bytes());
        out.extend_from_slice(&part.meta);
        for stored in rest.by_ref().take(part.batches as usize) {
            out.extend_from_slice(&stored.location.bytes.to_be_bytes());
            out.extend_from_slice(&stored.checksum.to_be_bytes());
        }
    }
    debug_assert!(rest.next().is_none(), "every batch belongs to a command");
    header.checksum = compute_checksum(seed, &out[start..]);
    out[start + 4..start + 8].copy_from_slice(&header.checksum.to_be_bytes());
    header
}

/// The checksum of header and commands, without the checksum's own bytes.
fn compute_checksum(seed: u32, frame: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&seed.to_be_bytes()), &frame[..4]);
    crc32c::crc32c_append(crc, &frame[8..])
}

impl Header {
    fn write(&self, out: &mut Vec<u8>, seed: u32) {
        let start = out.len();
        out.extend_from_slice(&self.frame_bytes.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.previous_checksum.to_be_bytes());
        for long in [self.lsn.0, self.term.0, self.time.0, self.synced.0] {
            out.extend_from_slice(&long.to_be_bytes());
        }
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&self.commands.to_be_bytes());
        out.extend_from_slice(&self.commands_bytes.to_be_bytes());
        out.extend_from_slice(&self.batches.to_be_bytes());
        let own = compute_checksum(seed, &out[start..]);
        out.extend_from_slice(&own.to_be_bytes());
    }

    /// Reads a header whose own checksum matches; its frame is not checked yet.
    ///
    /// # Errors
    /// [`Broken::End`] or [`Broken::Header`].
    pub fn decode(bytes: &[u8], seed: u32) -> Result<Self, Broken> {
        let Some(mut rest) = bytes.get(..FRAME_HEADER_BYTES) else {
            return Err(Broken::End);
        };
        let own = compute_checksum(seed, &rest[..FRAME_HEADER_BYTES - 4]);
        let header = Self {
            frame_bytes: rest.get_u32(),
            checksum: rest.get_u32(),
            previous_checksum: rest.get_u32(),
            lsn: Lsn(rest.get_u64()),
            term: Term(rest.get_u64()),
            time: Timestamp(rest.get_u64()),
            synced: Lsn(rest.get_u64()),
            version: rest.get_u16(),
            commands: rest.get_u16(),
            commands_bytes: rest.get_u32(),
            batches: rest.get_u32(),
        };
        if header.frame_bytes == 0 {
            return Err(Broken::End);
        }
        if rest.get_u32() != own
            || header.frame_bytes as usize > FRAME_BYTES_MAX
            || header.bodies_at() > header.frame_bytes as usize
        {
            return Err(Broken::Header);
        }
        Ok(header)
    }

    /// Reads the header of a whole frame at the start of `bytes`: header and commands are valid, bodies are
    /// present (their checksums are not verified).
    ///
    /// # Errors
    /// Every [`Broken`] but [`Broken::Chain`].
    pub fn check(bytes: &[u8], seed: u32) -> Result<Self, Broken> {
        let header = Self::decode(bytes, seed)?;
        if bytes.len() < header.frame_bytes as usize {
            return Err(Broken::Cut);
        }
        if compute_checksum(seed, &bytes[..header.bodies_at()]) != header.checksum {
            return Err(Broken::Commands);
        }
        if header.version != FORMAT_VERSION {
            return Err(Broken::Version(header.version));
        }
        Ok(header)
    }

    /// Whether it continues the chain.
    #[must_use]
    pub fn follows(&self, point: &ChainPoint) -> bool {
        self.lsn == point.next
            && self.previous_checksum == point.checksum
            && self.term >= point.term
            && self.time >= point.time
            && self.synced < self.lsn
    }

    /// The point after it.
    #[must_use]
    pub const fn point(&self) -> ChainPoint {
        ChainPoint {
            next: Lsn(self.lsn.0 + 1),
            checksum: self.checksum,
            term: self.term,
            time: self.time,
        }
    }

    /// Bytes of the frame before its bodies.
    #[must_use]
    pub const fn bodies_at(&self) -> usize {
        FRAME_HEADER_BYTES + self.commands_bytes as usize
    }
}

/// Reads the commands of a frame that [`Header::check`] accepted: metas are slices of `frame`; of each batch
/// only place and checksum are returned, not the batch itself. `position` is the frame's in its segment.
///
/// # Errors
/// [`Broken::Commands`] if the structure contradicts itself; as the checksum matches, only a defect can have
/// written that.
pub fn decode_commands(
    header: &Header,
    frame: &Bytes,
    segment: SegmentId,
    position: u32,
) -> Result<(Vec<Part>, Vec<Stored>), Broken> {
    let mut rest = frame.slice(FRAME_HEADER_BYTES..header.bodies_at());
    // Both counts are covered by the checksum, and bounded by the bytes that are there.
    let mut parts = Vec::with_capacity((header.commands as usize).min(rest.len() / PER_COMMAND_BYTES));
    let mut batches = Vec::with_capacity((header.batches as usize).min(rest.len() / PER_BATCH_BYTES));
    let mut at = header.bodies_at();
    for _ in 0..header.commands {
        let meta_bytes = rest.try_get_u32().map_err(|_| Broken::Commands)? as usize;
        let count = rest.try_get_u32().map_err(|_| Broken::Commands)?;
        if rest.len() < meta_bytes {
            return Err(Broken::Commands);
        }
        parts.push(Part {
            meta: rest.split_to(meta_bytes),
            batches: count,
        });
        for _ in 0..count {
            let bytes = rest.try_get_u32().map_err(|_| Broken::Commands)?;
            let checksum = rest.try_get_u32().map_err(|_| Broken::Commands)?;
            let from = at;
            at += bytes as usize;
            if at > header.frame_bytes as usize {
                return Err(Broken::Commands);
            }
            let from = u32::try_from(from)
                .ok()
                .and_then(|from| position.checked_add(from));
            batches.push(Stored {
                location: Location {
                    segment,
                    position: from.ok_or(Broken::Commands)?,
                    bytes,
                },
                checksum,
                batch: None,
            });
        }
    }
    if !rest.is_empty() || at != header.frame_bytes as usize || batches.len() != header.batches as usize {
        return Err(Broken::Commands);
    }
    Ok((parts, batches))
}

/// The head of a segment's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment.
    pub segment: SegmentId,
    /// The point of the chain at which it begins; its checksum is the seed of this segment's frames.
    pub point: ChainPoint,
    /// Bytes of the file, as planned.
    pub segment_bytes: u32,
}

impl SegmentHeader {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        out[16..24].copy_from_slice(&self.segment.0.to_be_bytes());
        out[24..32].copy_from_slice(&self.point.next.0.to_be_bytes());
        out[32..40].copy_from_slice(&self.point.term.0.to_be_bytes());
        out[40..48].copy_from_slice(&self.point.time.0.to_be_bytes());
        out[48..52].copy_from_slice(&self.point.checksum.to_be_bytes());
        out[52..56].copy_from_slice(&self.segment_bytes.to_be_bytes());
        let crc = block_checksum(&out);
        out[12..16].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads the head of a segment's file. Magic, version and checksum are at these positions in every
    /// version.
    ///
    /// # Errors
    /// [`Broken::Version`] for a whole header of another version, else [`Broken::Header`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Broken> {
        let block = bytes.first_chunk::<SEGMENT_HEADER_BYTES>().ok_or(Broken::End)?;
        let version = check_block(block, &SEGMENT_MAGIC)?;
        if version != FORMAT_VERSION {
            return Err(Broken::Version(version));
        }
        let mut rest = &block[16..];
        let segment = SegmentId(rest.get_u64());
        let next = Lsn(rest.get_u64());
        let term = Term(rest.get_u64());
        let time = Timestamp(rest.get_u64());
        Ok(Self {
            segment,
            point: ChainPoint {
                next,
                term,
                time,
                checksum: rest.get_u32(),
            },
            segment_bytes: rest.get_u32(),
        })
    }
}

/// The checksum of a fixed block, which is stored in its bytes 12 to 16.
pub(crate) fn block_checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[16..])
}

/// Checks a fixed block `[8 magic][u16 version][2][u32 checksum]..`, and returns its version.
pub(crate) fn check_block(block: &[u8], magic: &[u8; 8]) -> Result<u16, Broken> {
    let stored = u32::from_be_bytes([block[12], block[13], block[14], block[15]]);
    if block[..8] != magic[..] || stored != block_checksum(block) {
        return Err(Broken::Header);
    }
    Ok(u16::from_be_bytes([block[8], block[9]]))
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
