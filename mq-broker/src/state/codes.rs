//! Numeric codes of the enums in commands. Pure.

use mq_common::api::group::GroupMode;
use mq_common::api::transaction::Decision;
use mq_common::ids::Durability;

use super::codec::DecodeError;

/// A durability in two bytes: 0 memory, 1 fsynced, 0x0100 + n replicated on n brokers.
pub(crate) const fn durability_code(durability: Durability) -> u16 {
    match durability {
        Durability::Memory => 0,
        Durability::Fsynced => 1,
        Durability::ReplicatedFsynced(brokers) => u16::from_be_bytes([1, brokers]),
    }
}

/// Reads [`durability_code`].
pub(crate) const fn durability(code: u16) -> Result<Durability, DecodeError> {
    match code.to_be_bytes() {
        [0, 0] => Ok(Durability::Memory),
        [0, 1] => Ok(Durability::Fsynced),
        [1, brokers] => Ok(Durability::ReplicatedFsynced(brokers)),
        _ => Err(DecodeError::Invalid("durability")),
    }
}

/// A group's mode in one byte.
pub(crate) fn mode_code(mode: GroupMode) -> u8 {
    match mode {
        GroupMode::Stream => 1,
        other => unreachable!("the service refuses the mode {other:?}, which this version does not know"),
    }
}

/// Reads [`mode_code`].
pub(crate) const fn mode(code: u8) -> Result<GroupMode, DecodeError> {
    match code {
        1 => Ok(GroupMode::Stream),
        _ => Err(DecodeError::Invalid("mode")),
    }
}

/// A decision in one byte.
pub(super) const fn decision_code(decision: Decision) -> u8 {
    match decision {
        Decision::Commit => 1,
        Decision::Rollback => 2,
        Decision::Unknown => 3,
    }
}

/// Reads [`decision_code`].
pub(super) const fn decision(code: u8) -> Result<Decision, DecodeError> {
    match code {
        1 => Ok(Decision::Commit),
        2 => Ok(Decision::Rollback),
        3 => Ok(Decision::Unknown),
        _ => Err(DecodeError::Invalid("decision")),
    }
}
