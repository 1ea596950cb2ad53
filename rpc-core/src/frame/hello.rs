//! HELLO: the features that a peer supports beyond hc-rpc's own frames.

use serde::{Deserialize, Serialize};

use super::header::{Kind, Status};

/// Most bytes of a HELLO's body that are read; far more than a token needs.
const BYTES_MAX: usize = 16 * 1024;

/// The body of a HELLO, as JSON. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of HELLO itself: 1.
    pub hello: u32,
    /// Status bits above 0x01 that the sender understands.
    #[serde(default)]
    pub flags: u8,
    /// Frame types from 16 that the sender understands.
    #[serde(default)]
    pub types: Vec<u8>,
    /// Compressors that the sender supports, by name.
    #[serde(default)]
    pub compressors: Vec<String>,
    /// Size of the largest body that the sender accepts.
    #[serde(default)]
    pub frame_bytes_max: u32,
    /// The token that authorises an invoker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Why a HELLO is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid HELLO: {reason}")]
pub struct HelloError {
    /// What is wrong.
    pub reason: String,
}

impl Hello {
    /// The features that this version supports.
    #[must_use]
    pub fn ours(body_bytes_max: usize, compressors: Vec<String>, token: Option<String>) -> Self {
        let flags = if compressors.is_empty() {
            Status::ONEWAY.with(Status::ATTACHMENT)
        } else {
            Status::ONEWAY.with(Status::ATTACHMENT).with(Status::COMPRESSED)
        };
        Self {
            hello: 1,
            flags: flags.0,
            types: (Kind::Cancel.number()..=Kind::StreamWindow.number()).collect(),
            compressors,
            frame_bytes_max: u32::try_from(body_bytes_max).unwrap_or(u32::MAX),
            token,
        }
    }

    /// Parses a frame's body.
    ///
    /// # Errors
    /// Too long, not JSON, or with fields of the wrong type.
    pub fn parse(body: &[u8]) -> Result<Self, HelloError> {
        if body.len() > BYTES_MAX {
            return Err(HelloError {
                reason: format!("{} bytes, at most {BYTES_MAX} are allowed", body.len()),
            });
        }
        serde_json::from_slice(body).map_err(|error| HelloError {
            reason: error.to_string(),
        })
    }

    /// Whether the sender understands all of these status bits.
    #[must_use]
    pub const fn understands(&self, bits: Status) -> bool {
        self.flags & bits.0 == bits.0
    }

    /// Whether the sender understands the frames of streams.
    #[must_use]
    pub fn takes_streams(&self) -> bool {
        [Kind::StreamItem, Kind::StreamEnd, Kind::StreamWindow]
            .into_iter()
            .all(|kind| self.takes(kind))
    }

    /// Whether the sender understands frames of this kind.
    #[must_use]
    pub fn takes(&self, kind: Kind) -> bool {
        self.types.contains(&kind.number())
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        // Numbers, strings and lists of them: nothing in it can fail to serialize.
        serde_json::to_vec(self).expect("a HELLO is plain JSON")
    }
}
