//! A peer that speaks frames by hand: what a stranger's client or provider would do, right or wrong.

use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use rpc_core::frame::{self, Decoder, Draft, Frame, Hello, Kind, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    buffer: BytesMut,
    decoder: Decoder,
}

impl Raw {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: BytesMut::new(),
            decoder: Decoder::new(1 << 24),
        }
    }

    pub(crate) async fn connect(address: &str) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Says HELLO with everything there is.
    pub(crate) async fn greet(&mut self, token: Option<&str>) {
        let mut out = BytesMut::new();
        frame::hello(&mut out, &hello(token));
        self.send(&out).await;
    }

    /// The next frame, within 10 s; `None` when the peer has closed.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let read = self.stream.read_buf(&mut self.buffer);
            match tokio::time::timeout(Duration::from_secs(10), read).await.unwrap() {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

pub(crate) fn hello(token: Option<&str>) -> Hello {
    Hello {
        hello: 1,
        flags: 0x06,
        types: vec![16, 17],
        compressors: Vec::new(),
        frame_bytes_max: 1 << 24,
        token: token.map(str::to_owned),
    }
}

/// A request of `test.Wire` in msgpack with these params (an encoded array).
pub(crate) fn request(id: i64, method: &str, params: &[u8], timeout: Option<Duration>) -> BytesMut {
    request_of("test.Wire", id, method, params, timeout)
}

/// The same of any service.
pub(crate) fn request_of(
    service: &str,
    id: i64,
    method: &str,
    params: &[u8],
    timeout: Option<Duration>,
) -> BytesMut {
    let mut out = BytesMut::new();
    let draft = Draft::begin(&mut out, Kind::Request, Status::REQUEST, id, "msgpack");
    out.put_u8(0x97);
    for text in [service, "1.0", "default", method] {
        out.put_u8(0xa0 | u8::try_from(text.len()).unwrap());
        out.put_slice(text.as_bytes());
    }
    match timeout {
        Some(timeout) => {
            out.put_u8(0xce);
            out.put_u32(u32::try_from(timeout.as_micros()).unwrap());
        }
        None => out.put_u8(0xc0),
    }
    out.put_u8(0xc0);
    out.put_slice(params);
    draft.finish(&mut out, 0, 1 << 24).unwrap();
    out
}

/// An answer with this envelope.
pub(crate) fn response(id: i64, status: Status, name: &str, envelope: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let draft = Draft::begin(&mut out, Kind::Response, status, id, name);
    out.put_slice(envelope);
    draft.finish(&mut out, 0, 1 << 24).unwrap();
    out
}

/// The code and `executed` of an answer that reports a failure: `[nil, [code, message, executed, ..], ..]`.
pub(crate) fn failure(frame: &Frame) -> (u8, u8) {
    assert_eq!((frame.kind, frame.status), (Kind::Response, Status::FAILED));
    let [0x93, 0xc0, 0x95, code, text, rest @ ..] = &frame.body[..] else {
        panic!("{:?}", frame.body);
    };
    let (head, length) = match *text {
        short @ 0xa0..=0xbf => (0, usize::from(short & 0x1f)),
        0xd9 => (1, usize::from(rest[0])),
        0xda => (2, usize::from(u16::from_be_bytes([rest[0], rest[1]]))),
        other => panic!("{other:#x}"),
    };
    (*code, rest[head + length])
}
