//! The fields before a frame's body.

/// First two bytes of every frame.
pub const MAGIC: u16 = 0x0010;
/// Third byte of every frame.
pub const VERSION: u8 = 1;
/// Bytes before the length of the serializer's name: magic 2, version 1, type 1, status 1, id 8.
pub const FIXED_BYTES: usize = 13;
/// The id of every frame that belongs to no call.
pub const HEARTBEAT_ID: i64 = -1;
/// The serializer's name in type-2 frames; hc-rpc looks it up before it drops the frame.
pub const HEARTBEAT_NAME: &str = "json";

/// The type of a frame; the numbers are its fourth byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A call (or hc-rpc's heartbeat, if its id is -1).
    Request = 0,
    /// Its answer.
    Response = 1,
    /// HELLO, ping or pong, depending on the status.
    Heartbeat = 2,
    /// The caller no longer waits for the call with this id.
    Cancel = 16,
    /// Send no further requests on this connection; running ones will still be answered.
    GoAway = 17,
    /// One item of the stream that answers the call with this id.
    StreamItem = 18,
    /// The end of that stream, with the outcome of the call.
    StreamEnd = 19,
    /// From the caller: this much more of the stream may be sent.
    StreamWindow = 20,
}

impl Kind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Request),
            1 => Some(Self::Response),
            2 => Some(Self::Heartbeat),
            16 => Some(Self::Cancel),
            17 => Some(Self::GoAway),
            18 => Some(Self::StreamItem),
            19 => Some(Self::StreamEnd),
            20 => Some(Self::StreamWindow),
            _ => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// The status byte: bits whose meaning depends on the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u8);

impl Status {
    /// A response, ping or pong without special properties.
    pub const NONE: Self = Self(0);
    /// Always set in a request.
    pub const REQUEST: Self = Self(0x01);
    /// A response that reports a failure.
    pub const FAILED: Self = Self(0x01);
    /// A ping; a pong has [`Status::NONE`].
    pub const PING: Self = Self(0x01);
    /// HELLO.
    pub const HELLO: Self = Self(0x03);
    /// No answer is wanted.
    pub const ONEWAY: Self = Self(0x02);
    /// The body is `[u32 envelope bytes][envelope][attachment]`.
    pub const ATTACHMENT: Self = Self(0x04);
    /// The envelope is compressed.
    pub const COMPRESSED: Self = Self(0x08);

    /// Both sets of bits combined.
    #[must_use]
    pub const fn with(self, bits: Self) -> Self {
        Self(self.0 | bits.0)
    }

    /// Whether all of `bits` are set.
    #[must_use]
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// Whether a frame of this kind may have these bits.
    pub(super) const fn allowed(self, kind: Kind) -> bool {
        match kind {
            Kind::Request => self.0 & !0x0f == 0,
            Kind::Response => self.0 & !0x0d == 0,
            Kind::Heartbeat => matches!(self.0, 0x00 | 0x01 | 0x03),
            Kind::StreamItem => self.0 & !0x04 == 0,
            Kind::StreamEnd => self.0 & !0x09 == 0,
            Kind::Cancel | Kind::GoAway | Kind::StreamWindow => self.0 == 0,
        }
    }
}

/// The name of a serializer in a frame; the two built-in ones need no allocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// `msgpack`
    Msgpack,
    /// `json`
    Json,
    /// Any other, at most 32 bytes.
    Other(Box<str>),
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Msgpack => "msgpack",
            Self::Json => "json",
            Self::Other(name) => name,
        }
    }

    /// Parses the bytes of a frame; `None` if they are not UTF-8.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes {
            b"msgpack" => Some(Self::Msgpack),
            b"json" => Some(Self::Json),
            other => std::str::from_utf8(other)
                .ok()
                .map(|name| Self::Other(Box::from(name))),
        }
    }
}
