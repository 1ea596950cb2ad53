//! The commands: everything that can change the broker, as it is written to the log. Pure.
//!
//! Encoded `[u8 version][u8 kind][fields]`, big-endian; texts `[u16 bytes][UTF-8]`, lists `[u32
//! count][items]`. docs/store.md has the field table, the files in `state/tests/golden` pin the bytes. A
//! command contains the number of records and bytes of each of its batches: a batch whose bytes are damaged
//! still takes its offsets.

use bytes::{BufMut, Bytes, BytesMut};
use mq_common::api::TopicSettings;
use mq_common::api::group::GroupMode;
use mq_common::api::transaction::Decision;
use mq_common::ids::{GroupName, Offset, ShardName, TopicId, TopicName, TransactionNumber};
use mq_common::limits::{TOPIC_QUEUES_MAX, TRANSACTION_KEY_BYTES_MAX};

pub use super::codec::DecodeError;
use super::codec::{Reader, put_list, put_text};
use super::codes::{decision, decision_code};
pub(crate) use super::codes::{durability, durability_code, mode, mode_code};
use super::declaration::Declaration;
use crate::ids::{GroupKey, QueueKey};

/// Format version of commands.
pub const VERSION: u8 = 1;
/// Format version of commands with a declaration that has settings.
pub const VERSION_WITH_SETTINGS: u8 = 2;
/// Format version of commands with a declaration of a topic that compacts.
pub const VERSION_WITH_COMPACT: u8 = 3;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Appends the command's one batch to a queue.
    Append(Part),
    /// Creates a topic at its authority. The declaration's `version` is 0: the authority assigns it.
    CreateTopic(Declaration),
    /// Adopts what the authority declared: a new topic, a higher version, a tombstone.
    AdoptTopic {
        /// As the authority numbered it.
        declaration: Declaration,
        /// With a tombstone: roll back the topic's open transactions. Otherwise they remain, and are parked
        /// when their commit is requested.
        drop_transactions: bool,
    },
    /// Deletes a topic at its authority.
    DeleteTopic {
        /// The topic.
        name: TopicName,
        /// Roll back its open transactions. If not set and there are any, the command is refused.
        drop_transactions: bool,
    },
    /// Stores the command's batches where no consumer sees them.
    SendHalf(SendHalf),
    /// Ends a transaction.
    EndTransaction {
        /// Its number.
        number: TransactionNumber,
        /// How.
        decision: Decision,
    },
    /// Counts one question for each of these transactions.
    CountChecks {
        /// Their numbers.
        numbers: Vec<TransactionNumber>,
    },
    /// Resumes a parked transaction, as if its half messages had just been stored.
    ResumeTransaction {
        /// Its number.
        number: TransactionNumber,
    },
    /// Creates a consumer group.
    CreateGroup(CreateGroup),
    /// Moves cursors.
    Progress {
        /// At most one for each group and queue.
        acks: Vec<Ack>,
    },
    /// Moves the start of queues forward: messages below it are deleted.
    Trim {
        /// The new starts.
        starts: Vec<(QueueKey, Offset)>,
    },
    /// Changes a topic at its authority. The declaration is the new one, but with the version of the one it
    /// replaces.
    AlterTopic(Declaration),
    /// Stores the half messages of a transaction again: from now on they are in this entry. Nothing else
    /// about the transaction changes.
    MoveHalf {
        /// The transaction's number.
        number: TransactionNumber,
        /// Its batches, the same and in the same order.
        parts: Vec<Part>,
    },
}

/// One batch of a command and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The queue.
    pub queue: QueueKey,
    /// Records in it, at least one.
    pub records: u32,
    /// Bytes of its producer region.
    pub bytes: u32,
}

/// The half messages of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendHalf {
    /// The group whose producers are asked if no decision arrives.
    pub producer_group: GroupName,
    /// Makes the command repeatable.
    pub key: Option<String>,
    /// First question after this many milliseconds.
    pub check_after_ms: u32,
    /// Distinguishes a repetition from other messages: the producer's digest of what the application sent,
    /// otherwise computed from the checksums of all batches, in order (see [`checksum_of`]).
    pub checksum: u64,
    /// Its batches, in order, at least one.
    pub parts: Vec<Part>,
}

/// A new group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateGroup {
    /// Its name.
    pub name: GroupName,
    /// Its topic.
    pub topic: TopicName,
    /// Its mode.
    pub mode: GroupMode,
    /// Where it starts reading; a queue that is missing here is read from its first message.
    pub cursors: Vec<(QueueKey, Offset)>,
}

/// Progress of one group in one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The group.
    pub group: GroupKey,
    /// The queue.
    pub queue: QueueKey,
    /// First offset not acknowledged.
    pub next: Offset,
}

/// The checksum of a transaction's messages from those of its batches: `(CRC-32C as stored in the batch,
/// bytes)`.
#[must_use]
pub fn checksum_of(batches: impl IntoIterator<Item = (u32, u32)>) -> u64 {
    let (mut crc, mut total) = (0, 0_u32);
    for (checksum, bytes) in batches {
        crc = crc32c::crc32c_append(crc, &checksum.to_be_bytes());
        crc = crc32c::crc32c_append(crc, &bytes.to_be_bytes());
        total = total.wrapping_add(bytes);
    }
    u64::from(total) << 32 | u64::from(crc)
}

impl Command {
    /// How many batches it carries.
    #[must_use]
    pub fn batches(&self) -> u32 {
        match self {
            Self::Append(_) => 1,
            Self::SendHalf(SendHalf { parts, .. }) | Self::MoveHalf { parts, .. } => {
                u32::try_from(parts.len()).unwrap_or(u32::MAX)
            }
            _ => 0,
        }
    }

    /// Whether it deletes a topic.
    #[must_use]
    pub const fn deletes(&self) -> bool {
        match self {
            Self::DeleteTopic { .. } => true,
            Self::AdoptTopic { declaration, .. } => declaration.deleted,
            _ => false,
        }
    }

    /// The bytes that go into the log.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(self.version());
        out.put_u8(self.kind());
        match self {
            Self::Append(part) => put_part(&mut out, part),
            Self::CreateTopic(declaration) | Self::AlterTopic(declaration) => {
                put_declaration(&mut out, declaration);
            }
            Self::AdoptTopic {
                declaration,
                drop_transactions,
            } => {
                put_declaration(&mut out, declaration);
                out.put_u8(u8::from(*drop_transactions));
            }
            Self::DeleteTopic {
                name,
                drop_transactions,
            } => {
                put_text(&mut out, name.as_str());
                out.put_u8(u8::from(*drop_transactions));
            }
            Self::SendHalf(half) => put_half(&mut out, half),
            Self::EndTransaction { number, decision } => {
                out.put_u64(number.0);
                out.put_u8(decision_code(*decision));
            }
            Self::ResumeTransaction { number } => out.put_u64(number.0),
            Self::CountChecks { numbers } => put_list(&mut out, numbers, |out, number| out.put_u64(number.0)),
            Self::CreateGroup(group) => put_group(&mut out, group),
            Self::Progress { acks } => put_list(&mut out, acks, |out, ack| {
                out.put_u32(ack.group.0);
                out.put_u32(ack.queue.0);
                out.put_u64(ack.next.0);
            }),
            Self::Trim { starts } => put_list(&mut out, starts, put_offset),
            Self::MoveHalf { number, parts } => {
                out.put_u64(number.0);
                put_list(&mut out, parts, put_part);
            }
        }
        out.freeze()
    }

    /// Reads a command back.
    ///
    /// # Errors
    /// [`DecodeError`] on any bytes that [`Self::encode`] of this version does not write; never panics.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8("version")?;
        let kind = reader.u8("kind")?;
        match version {
            VERSION => {}
            VERSION_WITH_SETTINGS | VERSION_WITH_COMPACT if matches!(kind, 2 | 3 | 12) => {}
            _ => return Err(DecodeError::Version(version)),
        }
        let command = match kind {
            1 => Self::Append(part(&mut reader)?),
            2 => Self::CreateTopic(declaration(&mut reader, version)?),
            3 => Self::AdoptTopic {
                declaration: declaration(&mut reader, version)?,
                drop_transactions: reader.flag("drop_transactions")?,
            },
            4 => Self::DeleteTopic {
                name: reader.name("name")?,
                drop_transactions: reader.flag("drop_transactions")?,
            },
            5 => Self::SendHalf(half(&mut reader)?),
            6 => Self::EndTransaction {
                number: TransactionNumber(reader.u64("number")?),
                decision: decision(reader.u8("decision")?)?,
            },
            7 => Self::CountChecks {
                numbers: reader.list("numbers", 8, |reader| {
                    Ok(TransactionNumber(reader.u64("number")?))
                })?,
            },
            8 => Self::CreateGroup(group(&mut reader)?),
            9 => Self::Progress {
                acks: reader.list("acks", 16, |reader| {
                    Ok(Ack {
                        group: GroupKey(reader.u32("group")?),
                        queue: QueueKey(reader.u32("queue")?),
                        next: Offset(reader.u64("next")?),
                    })
                })?,
            },
            10 => Self::ResumeTransaction {
                number: TransactionNumber(reader.u64("number")?),
            },
            11 => Self::Trim {
                starts: reader.list("starts", 12, offset)?,
            },
            12 => Self::AlterTopic(declaration(&mut reader, version)?),
            13 => Self::MoveHalf {
                number: TransactionNumber(reader.u64("number")?),
                parts: reader.list("parts", 12, part)?,
            },
            kind => return Err(DecodeError::Kind(kind)),
        };
        reader.finish()?;
        Ok(command)
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Append(_) => 1,
            Self::CreateTopic(_) => 2,
            Self::AdoptTopic { .. } => 3,
            Self::DeleteTopic { .. } => 4,
            Self::SendHalf(_) => 5,
            Self::EndTransaction { .. } => 6,
            Self::CountChecks { .. } => 7,
            Self::CreateGroup(_) => 8,
            Self::Progress { .. } => 9,
            Self::ResumeTransaction { .. } => 10,
            Self::Trim { .. } => 11,
            Self::AlterTopic(_) => 12,
            Self::MoveHalf { .. } => 13,
        }
    }

    /// The lowest version that can express the command.
    fn version(&self) -> u8 {
        match self {
            Self::CreateTopic(declaration)
            | Self::AdoptTopic { declaration, .. }
            | Self::AlterTopic(declaration) => match declaration.settings {
                TopicSettings { compact: true, .. } => VERSION_WITH_COMPACT,
                settings if settings != TopicSettings::default() => VERSION_WITH_SETTINGS,
                _ => VERSION,
            },
            _ => VERSION,
        }
    }
}

fn put_part(out: &mut BytesMut, part: &Part) {
    out.put_u32(part.queue.0);
    out.put_u32(part.records);
    out.put_u32(part.bytes);
}

fn part(reader: &mut Reader<'_>) -> Result<Part, DecodeError> {
    Ok(Part {
        queue: QueueKey(reader.u32("queue")?),
        records: reader.u32("records")?,
        bytes: reader.u32("bytes")?,
    })
}

fn put_declaration(out: &mut BytesMut, declaration: &Declaration) {
    put_text(out, declaration.name.as_str());
    out.put_u64(declaration.id.0);
    out.put_u64(declaration.version);
    out.put_u16(durability_code(declaration.durability));
    out.put_u8(u8::from(declaration.deleted));
    put_list(out, &declaration.shards, |out, shard| {
        put_text(out, shard.as_str());
    });
    put_list(out, &declaration.homes, |out, home| out.put_u16(*home));
    if declaration.settings != TopicSettings::default() {
        put_settings(out, &declaration.settings);
    }
}

fn declaration(reader: &mut Reader<'_>, version: u8) -> Result<Declaration, DecodeError> {
    let mut declaration = Declaration {
        name: reader.name("name")?,
        id: TopicId(reader.u64("id")?),
        version: reader.u64("version")?,
        durability: durability(reader.u16("durability")?)?,
        deleted: reader.flag("deleted")?,
        settings: TopicSettings::default(),
        shards: reader.list("shards", 2, |reader| reader.name::<ShardName>("shard"))?,
        homes: reader.list("homes", 2, |reader| reader.u16("home"))?,
    };
    if version >= VERSION_WITH_SETTINGS {
        declaration.settings = settings(reader, version)?;
    }
    let queues = declaration.homes.len();
    if queues == 0 || queues > TOPIC_QUEUES_MAX as usize {
        return Err(DecodeError::Invalid("homes"));
    }
    if declaration
        .homes
        .iter()
        .any(|home| usize::from(*home) >= declaration.shards.len())
    {
        return Err(DecodeError::Invalid("home"));
    }
    Ok(declaration)
}

/// An unset value is written as 0, which no setting can have.
fn put_settings(out: &mut BytesMut, settings: &TopicSettings) {
    out.put_u64(settings.retention_ms.unwrap_or(0));
    out.put_u64(settings.retention_bytes.unwrap_or(0));
    out.put_u8(u8::from(settings.consumed));
    out.put_u64(settings.hold_ms.unwrap_or(0));
    out.put_u32(settings.message_bytes_max.unwrap_or(0));
    if settings.compact {
        out.put_u8(1);
    }
}

fn settings(reader: &mut Reader<'_>, version: u8) -> Result<TopicSettings, DecodeError> {
    let settings = TopicSettings {
        retention_ms: Some(reader.u64("retention_ms")?).filter(|ms| *ms > 0),
        retention_bytes: Some(reader.u64("retention_bytes")?).filter(|bytes| *bytes > 0),
        consumed: reader.flag("consumed")?,
        hold_ms: Some(reader.u64("hold_ms")?).filter(|ms| *ms > 0),
        message_bytes_max: Some(reader.u32("message_bytes_max")?).filter(|bytes| *bytes > 0),
        compact: version >= VERSION_WITH_COMPACT && reader.flag("compact")?,
    };
    // A command is written in the lowest version that can express it.
    if version >= VERSION_WITH_COMPACT && !settings.compact {
        return Err(DecodeError::Invalid("compact"));
    }
    if settings == TopicSettings::default() || settings.check().is_err() {
        return Err(DecodeError::Invalid("settings"));
    }
    Ok(settings)
}

fn put_offset(out: &mut BytesMut, (queue, offset): &(QueueKey, Offset)) {
    out.put_u32(queue.0);
    out.put_u64(offset.0);
}

fn offset(reader: &mut Reader<'_>) -> Result<(QueueKey, Offset), DecodeError> {
    Ok((QueueKey(reader.u32("queue")?), Offset(reader.u64("offset")?)))
}

fn put_half(out: &mut BytesMut, half: &SendHalf) {
    put_text(out, half.producer_group.as_str());
    out.put_u8(u8::from(half.key.is_some()));
    if let Some(key) = &half.key {
        put_text(out, key);
    }
    out.put_u32(half.check_after_ms);
    out.put_u64(half.checksum);
    put_list(out, &half.parts, put_part);
}

fn half(reader: &mut Reader<'_>) -> Result<SendHalf, DecodeError> {
    let producer_group = reader.name("producer_group")?;
    let key = if reader.flag("key")? {
        let key = reader.text("key")?;
        if key.len() > TRANSACTION_KEY_BYTES_MAX {
            return Err(DecodeError::Invalid("key"));
        }
        Some(key.to_owned())
    } else {
        None
    };
    Ok(SendHalf {
        producer_group,
        key,
        check_after_ms: reader.u32("check_after_ms")?,
        checksum: reader.u64("checksum")?,
        parts: reader.list("parts", 12, part)?,
    })
}

fn put_group(out: &mut BytesMut, group: &CreateGroup) {
    put_text(out, group.name.as_str());
    put_text(out, group.topic.as_str());
    out.put_u8(mode_code(group.mode));
    put_list(out, &group.cursors, put_offset);
}

fn group(reader: &mut Reader<'_>) -> Result<CreateGroup, DecodeError> {
    Ok(CreateGroup {
        name: reader.name("name")?,
        topic: reader.name("topic")?,
        mode: mode(reader.u8("mode")?)?,
        cursors: reader.list("cursors", 12, offset)?,
    })
}
