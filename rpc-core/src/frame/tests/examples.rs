//! One frame of every kind, with the golden file that pins it.

use bytes::BytesMut;

use super::{frame, written};
use crate::frame::{Hello, Kind, Status, Window, cancel, go_away, hello, ping, pong, window};

/// Every kind of frame, with the file that pins it.
pub(super) fn examples() -> Vec<(&'static str, BytesMut)> {
    let hello_of_invoker = Hello {
        hello: 1,
        flags: 6,
        types: vec![16, 17],
        compressors: Vec::new(),
        frame_bytes_max: 16_777_216,
        token: Some("secret".to_owned()),
    };
    let hello_of_provider = Hello {
        flags: 14,
        compressors: vec!["zstd".to_owned()],
        token: None,
        ..hello_of_invoker.clone()
    };
    let mut all = calls();
    all.extend(streams());
    all.extend([
        ("hello-invoker", written(|out| hello(out, &hello_of_invoker))),
        ("hello-provider", written(|out| hello(out, &hello_of_provider))),
        ("ping", written(ping)),
        ("pong", written(pong)),
        ("cancel", written(|out| cancel(out, 16_777_216))),
        ("go-away", written(go_away)),
        ("hello-streams", written(|out| hello(out, &hello_with_streams()))),
    ]);
    all
}

/// A HELLO of a peer that understands streams too.
fn hello_with_streams() -> Hello {
    Hello {
        hello: 1,
        flags: 6,
        types: vec![16, 17, 18, 19, 20],
        compressors: Vec::new(),
        frame_bytes_max: 16_777_216,
        token: None,
    }
}

/// A stream: the window that opens it (its request follows), items and both ends.
fn streams() -> Vec<(&'static str, BytesMut)> {
    let first = Window {
        items: 256,
        bytes: 1 << 20,
    };
    let id = (1 << 24) + 4;
    let part = |kind, status, body, attachment| frame(kind, Status(status), id, "", body, attachment);
    vec![
        ("stream-window", written(|out| window(out, id, first))),
        ("stream-item", part(Kind::StreamItem, 0, b"\x07", b"")),
        (
            "stream-item-attachment",
            part(Kind::StreamItem, 4, b"\x07", b"raw bytes"),
        ),
        ("stream-end", part(Kind::StreamEnd, 0, b"\x93\xc0\xc0\xc0", b"")),
        (
            "stream-end-failed",
            part(Kind::StreamEnd, 1, b"\x93envelope", b""),
        ),
    ]
}

/// File, kind, status, id, serializer, envelope, attachment.
type Row = (
    &'static str,
    Kind,
    u8,
    i64,
    &'static str,
    &'static [u8],
    &'static [u8],
);
const PACKED: &[u8] = b"\x04zstd\x00\x00\x00\x09packed";
/// Requests and answers.
const ROWS: &[Row] = &[
    (
        "request",
        Kind::Request,
        0x01,
        1 << 24,
        "msgpack",
        b"\x97envelope",
        b"",
    ),
    (
        "request-oneway",
        Kind::Request,
        0x03,
        1 << 62,
        "msgpack",
        b"\x97envelope",
        b"",
    ),
    (
        "request-attachment",
        Kind::Request,
        0x05,
        (1 << 24) + 1,
        "msgpack",
        b"\x97envelope",
        b"raw bytes",
    ),
    (
        "request-compressed",
        Kind::Request,
        0x09,
        (1 << 24) + 2,
        "msgpack",
        PACKED,
        b"",
    ),
    (
        "request-json",
        Kind::Request,
        0x01,
        (1 << 24) + 3,
        "json",
        b"{}",
        b"",
    ),
    (
        "request-heartbeat-of-hc-rpc",
        Kind::Request,
        0x01,
        -1,
        "hessian",
        b"{}",
        b"",
    ),
    (
        "response",
        Kind::Response,
        0x00,
        1 << 24,
        "msgpack",
        b"\x93envelope",
        b"",
    ),
    (
        "response-failed",
        Kind::Response,
        0x01,
        1 << 24,
        "msgpack",
        b"\x93envelope",
        b"",
    ),
    (
        "response-attachment",
        Kind::Response,
        0x04,
        (1 << 24) + 1,
        "msgpack",
        b"\x93envelope",
        b"raw bytes",
    ),
    (
        "response-failed-attachment",
        Kind::Response,
        0x05,
        (1 << 24) + 1,
        "raw",
        b"\x93envelope",
        b"",
    ),
];

fn calls() -> Vec<(&'static str, BytesMut)> {
    let row = |(file, kind, status, id, name, envelope, attachment): &Row| {
        (
            *file,
            frame(*kind, Status(*status), *id, name, envelope, attachment),
        )
    };
    ROWS.iter().map(row).collect()
}
