//! Newtypes for names and numbers that must not be confused. They are checked once, when they are created, so
//! a value of such a type is valid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::NAME_BYTES_MAX;

/// A name that breaks the rule `[A-Za-z0-9._-]{1,127}`, or starts with the reserved `__`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a valid {kind} name: {reason}; use 1 to 127 of A-Z a-z 0-9 . _ -")]
pub struct InvalidName {
    /// The kind of thing it was meant to name.
    pub kind: &'static str,
    /// The name as given.
    pub name: String,
    /// Which part of the rule it breaks.
    pub reason: &'static str,
}

fn check_name(kind: &'static str, name: &str) -> Result<(), InvalidName> {
    let fail = |reason| {
        Err(InvalidName {
            kind,
            name: name.to_owned(),
            reason,
        })
    };
    if name.is_empty() {
        return fail("it is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return fail("it is too long");
    }
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    {
        return fail("it has a character outside the set");
    }
    if name == "." || name == ".." {
        return fail("it is a path");
    }
    if name.starts_with("__") {
        return fail("names that start with `__` are reserved");
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$meta:meta])* $name:ident, $kind:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The checked name.
            ///
            /// # Errors
            /// [`InvalidName`] states which part of the rule it breaks.
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                let name = name.into();
                check_name($kind, &name)?;
                Ok(Self(name))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A topic's name.
    TopicName, "topic"
);
name_type!(
    /// A consumer group's or producer group's name.
    GroupName, "group"
);
name_type!(
    /// A shard's name: on one broker without replication, the broker's name.
    ShardName, "shard"
);

macro_rules! number_type {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_type!(
    /// Identity of a topic: the same name, created again after a deletion, gets another one.
    TopicId(u64)
);
number_type!(
    /// A message queue of a topic, numbered over the whole topic from 0.
    QueueNumber(u32)
);
number_type!(
    /// Position of a record in its queue: dense, from 0, never a byte position.
    Offset(u64)
);
number_type!(
    /// Log sequence number: position of an entry in a shard's log, from 1.
    Lsn(u64)
);
number_type!(
    /// Number of a transaction on its shard. Opaque: it is unique for the life of the broker's data folder
    /// and later transactions have higher numbers, but it is not the log sequence number ([`Lsn`]) of any
    /// entry.
    TransactionNumber(u64)
);
number_type!(
    /// Term of the log's leader: higher after every start.
    Term(u64)
);
number_type!(
    /// Milliseconds since 1970-01-01 UTC.
    Timestamp(u64)
);

/// Version of a queue's owner in a `stream` group: later owners compare greater, earlier ones are fenced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OwnerEpoch {
    /// Term of the broker that granted it.
    pub term: Term,
    /// How many grants preceded it in that term.
    pub counter: u64,
}

/// A consumer's or producer's identity within its group: random, new for each start of the process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(pub String);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A transaction: the shard it lives on, and its number there. Written `shard:number`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TransactionId {
    /// The shard that stores it.
    pub shard: ShardName,
    /// Its number on that shard.
    pub number: TransactionNumber,
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.shard, self.number)
    }
}

impl From<TransactionId> for String {
    fn from(id: TransactionId) -> Self {
        id.to_string()
    }
}

/// A text that is not a [`TransactionId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a transaction id; expected `shard:number`, as in `broker-a:1764245392000017`")]
pub struct InvalidTransactionId(pub String);

impl FromStr for TransactionId {
    type Err = InvalidTransactionId;
    fn from_str(text: &str) -> Result<Self, InvalidTransactionId> {
        let invalid = || InvalidTransactionId(text.to_owned());
        let (shard, number) = text.rsplit_once(':').ok_or_else(invalid)?;
        let shard = ShardName::new(shard).map_err(|_| invalid())?;
        let number = number.parse().map_err(|_| invalid())?;
        Ok(Self {
            shard,
            number: TransactionNumber(number),
        })
    }
}

impl TryFrom<String> for TransactionId {
    type Error = InvalidTransactionId;
    fn try_from(text: String) -> Result<Self, InvalidTransactionId> {
        text.parse()
    }
}

/// The durability of a message. Ordered: greater is safer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Written to the operating system: survives a crash of the broker process, but not a power loss.
    Memory,
    /// On the disk of one broker (fdatasync returned).
    Fsynced,
    /// On the disks of this many brokers.
    ReplicatedFsynced(u8),
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Fsynced => f.write_str("fsynced"),
            Self::ReplicatedFsynced(brokers) => write!(f, "replicated_fsynced({brokers})"),
        }
    }
}

/// A text that is not a durability a client can request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a durability; expected `memory` or `fsynced`")]
pub struct InvalidDurability(pub String);

impl FromStr for Durability {
    type Err = InvalidDurability;
    fn from_str(text: &str) -> Result<Self, InvalidDurability> {
        match text {
            "memory" => Ok(Self::Memory),
            "fsynced" => Ok(Self::Fsynced),
            _ => Err(InvalidDurability(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_id_is_its_shard_and_its_number() {
        let id = TransactionId {
            shard: ShardName::new("broker-a").unwrap(),
            number: TransactionNumber(1_764_245_392_000_017),
        };
        assert_eq!(id.to_string(), "broker-a:1764245392000017");
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["broker-a", "broker-a:", "broker-a:-1", ":17", "broker a:17"] {
            let invalid = text.parse::<TransactionId>();
            assert_eq!(invalid, Err(InvalidTransactionId(text.to_owned())));
        }
    }
}
