//! Frames against golden files, arbitrary bytes, every split of a stream, and their own reflections.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::golden;

mod examples;

use examples::examples;

const MAX: usize = 1 << 20;
const MAX_I32: i32 = 1 << 20;

/// One frame, written by the encoder.
fn frame(kind: Kind, status: Status, id: i64, name: &str, envelope: &[u8], attachment: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let draft = Draft::begin(&mut out, kind, status, id, name);
    out.put_slice(envelope);
    draft.finish(&mut out, attachment.len(), MAX).unwrap();
    out.put_slice(attachment);
    out
}

fn written(write: impl FnOnce(&mut BytesMut)) -> BytesMut {
    let mut out = BytesMut::new();
    write(&mut out);
    out
}

/// All frames of a stream that arrives in these pieces.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new(MAX);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(frame) = decoder.next(&mut buffer)? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

#[test]
fn frames_are_the_golden_ones_and_decode_to_themselves() {
    for (name, bytes) in examples() {
        golden(&format!("frame/{name}.hex"), &bytes);
        let frames = decode([&bytes[..]]).unwrap();
        let [only] = &frames[..] else {
            panic!("{name}: {frames:?}")
        };
        let again = frame(
            only.kind,
            Status(only.status.0 & !Status::ATTACHMENT.0),
            only.id,
            only.name.as_str(),
            &only.body,
            b"",
        );
        let mut again = again;
        again[4] = only.status.0;
        assert_eq!(again, bytes, "{name}");
    }
}

#[test]
fn p22_stream_split_at_every_byte_gives_the_same_frames() {
    let stream: Vec<u8> = examples().iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
    let whole = decode([&stream[..]]).unwrap();
    assert_eq!(whole.len(), examples().len());
    for at in 0..=stream.len() {
        assert_eq!(
            decode([&stream[..at], &stream[at..]]).unwrap(),
            whole,
            "split at {at}"
        );
    }
    assert_eq!(decode(stream.chunks(1)).unwrap(), whole);
}

#[test]
fn bad_field_is_an_error_as_soon_as_it_is_there() {
    let good = frame(Kind::Request, Status::REQUEST, 7, "msgpack", b"body", b"");
    let bad = |at: usize, bytes: &[u8]| {
        let mut stream = good.clone();
        stream[at..at + bytes.len()].copy_from_slice(bytes);
        // Only the bytes up to the bad field: the rest is not waited for.
        decode([&stream[..at + bytes.len()]]).unwrap_err()
    };
    assert_eq!(bad(0, &[0, 0x11]), FrameError::Magic { found: 0x0011 });
    assert_eq!(bad(0, b"GE"), FrameError::Http);
    assert_eq!(bad(0, b"PR"), FrameError::Http);
    assert_eq!(bad(0, &[0x16, 3]), FrameError::Tls);
    assert_eq!(bad(0, &[0x15, 3]), FrameError::Tls);
    assert_eq!(bad(2, &[2]), FrameError::Version { found: 2 });
    for found in [3, 15, 21, 255] {
        assert_eq!(bad(3, &[found]), FrameError::Kind { found });
    }
    for found in [0x10, 0x20, 0x80, 0xff] {
        let kind = Kind::Request;
        assert_eq!(bad(4, &[found]), FrameError::Status { kind, found });
    }
    assert_eq!(
        bad(3, &[1, 0x02]),
        FrameError::Status {
            kind: Kind::Response,
            found: 2
        }
    );
    assert_eq!(
        bad(3, &[2, 0x02]),
        FrameError::Status {
            kind: Kind::Heartbeat,
            found: 2
        }
    );
    assert_eq!(
        bad(3, &[16, 0x01]),
        FrameError::Status {
            kind: Kind::Cancel,
            found: 1
        }
    );
    for (kind, found) in [
        (Kind::StreamItem, 0x01),
        (Kind::StreamItem, 0x08),
        (Kind::StreamEnd, 0x04),
        (Kind::StreamWindow, 0x01),
    ] {
        assert_eq!(
            bad(3, &[kind.number(), found]),
            FrameError::Status { kind, found }
        );
    }
    for found in [33, i32::MAX, -1, i32::MIN] {
        assert_eq!(bad(13, &found.to_be_bytes()), FrameError::NameLength { found });
    }
    for found in [1 + MAX_I32, i32::MAX, -1, i32::MIN] {
        assert_eq!(
            bad(24, &found.to_be_bytes()),
            FrameError::BodyLength { found, max: MAX }
        );
    }
}

#[test]
fn id_must_fit_the_kind() {
    let ping_of_a_call = frame(Kind::Heartbeat, Status::PING, 7, "json", b"", b"");
    let error = decode([&ping_of_a_call[..]]).unwrap_err();
    assert_eq!(
        error,
        FrameError::Id {
            kind: Kind::Heartbeat,
            found: 7
        }
    );
    let cancel_of_none = frame(Kind::Cancel, Status::NONE, -1, "", b"", b"");
    let error = decode([&cancel_of_none[..]]).unwrap_err();
    assert_eq!(
        error,
        FrameError::Id {
            kind: Kind::Cancel,
            found: -1
        }
    );
}

#[test]
fn part_of_a_stream_belongs_to_a_call() {
    for kind in [Kind::StreamItem, Kind::StreamEnd, Kind::StreamWindow] {
        let of_none = frame(kind, Status::NONE, -1, "", b"", b"");
        let error = decode([&of_none[..]]).unwrap_err();
        assert_eq!(error, FrameError::Id { kind, found: -1 });
    }
}

#[test]
fn window_is_two_numbers_and_nothing_else() {
    let wanted = Window {
        items: 1,
        bytes: u32::MAX,
    };
    assert_eq!(Window::parse(b"\0\0\0\x01\xff\xff\xff\xff"), Some(wanted));
    for bad in [
        &b""[..],
        b"\0\0\0\x01\xff\xff\xff",
        b"\0\0\0\x01\xff\xff\xff\xff\0",
    ] {
        assert_eq!(Window::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn p5_body_at_the_limit_passes_and_above_is_refused_without_allocating() {
    let exact = frame(Kind::Request, Status::REQUEST, 1, "msgpack", &vec![0; MAX], b"");
    assert_eq!(decode([&exact[..]]).unwrap()[0].body.len(), MAX);
    let mut decoder = Decoder::new(MAX - 1);
    let mut buffer = BytesMut::from(&exact[..40]);
    let capacity = buffer.capacity();
    let error = decoder.next(&mut buffer).unwrap_err();
    assert_eq!(
        error,
        FrameError::BodyLength {
            found: MAX_I32,
            max: MAX - 1
        }
    );
    assert_eq!(buffer.capacity(), capacity);
    let mut out = BytesMut::from(&b"before"[..]);
    let draft = Draft::begin(&mut out, Kind::Request, Status::REQUEST, 1, "msgpack");
    out.put_bytes(0, 100);
    assert_eq!(draft.finish(&mut out, 50, 149), Err(150));
    assert_eq!(&out[..], b"before");
}

#[test]
fn decoder_says_how_much_a_frame_needs() {
    let bytes = frame(Kind::Request, Status::REQUEST, 1, "msgpack", &[0; 1000], b"");
    let mut decoder = Decoder::new(MAX);
    let mut buffer = BytesMut::from(&bytes[..10]);
    assert_eq!(decoder.next(&mut buffer).unwrap(), None);
    assert_eq!(decoder.frame_bytes(), 0);
    buffer.extend_from_slice(&bytes[10..50]);
    assert_eq!(decoder.next(&mut buffer).unwrap(), None);
    assert_eq!(decoder.frame_bytes(), bytes.len());
}

#[test]
fn bodies_are_taken_apart_or_refused() {
    let split = |status, body: &'static [u8]| split_body(status, Bytes::from_static(body), 100);
    let plain = split(Status::REQUEST, b"envelope").unwrap();
    assert_eq!(
        (&plain.envelope[..], plain.attachment.len()),
        (&b"envelope"[..], 0)
    );
    let both = split(Status::ATTACHMENT, b"\0\0\0\x03envattachment").unwrap();
    assert_eq!(
        (&both.envelope[..], &both.attachment[..]),
        (&b"env"[..], &b"attachment"[..])
    );
    let nothing = split(Status::ATTACHMENT, b"\0\0\0\0").unwrap();
    assert!(nothing.envelope.is_empty() && nothing.attachment.is_empty());
    for cut in [&b""[..], b"\0\0\0", b"\0\0\0\x01", b"\xff\xff\xff\xffenvelope"] {
        assert!(
            matches!(split(Status::ATTACHMENT, cut), Err(BodyError::Attachment { .. })),
            "{cut:?}"
        );
    }
    let packed = split(Status::COMPRESSED, b"\x04zstd\0\0\0\x64packed").unwrap();
    assert_eq!(
        (&packed.envelope[..], packed.compressor),
        (&b"packed"[..], Some(("zstd".to_owned(), 100)))
    );
    for cut in [
        &b""[..],
        b"\x04",
        b"\x04zstd\0\0\0",
        b"\xff",
        b"\x02\xff\xff\0\0\0\x01x",
    ] {
        assert_eq!(
            split(Status::COMPRESSED, cut),
            Err(BodyError::Compressed),
            "{cut:?}"
        );
    }
    let bomb = split(Status::COMPRESSED, b"\x04zstd\xff\xff\xff\xffpacked");
    assert_eq!(
        bomb,
        Err(BodyError::PlainLength {
            plain: u32::MAX as usize,
            max: 100
        })
    );
    let all = Status::ATTACHMENT.with(Status::COMPRESSED);
    let all = split(all, b"\0\0\0\x0a\x01z\0\0\0\x02packraw").unwrap();
    assert_eq!(
        (&all.envelope[..], &all.attachment[..]),
        (&b"pack"[..], &b"raw"[..])
    );
}

#[test]
fn hello_ignores_what_it_does_not_know_and_refuses_what_is_none() {
    let newer = br#"{"hello":2,"flags":255,"types":[16,17,99],"later":{"x":[1]},"frame_bytes_max":5}"#;
    let hello = Hello::parse(newer).unwrap();
    assert!(hello.understands(Status::ATTACHMENT.with(Status::ONEWAY)) && hello.takes(Kind::Cancel));
    let least = Hello::parse(br#"{"hello":1}"#).unwrap();
    assert!(!least.understands(Status::ONEWAY) && !least.takes(Kind::GoAway));
    for bad in [
        &b""[..],
        b"null",
        b"{}",
        br#"{"hello":"1"}"#,
        br#"{"hello":1,"types":[300]}"#,
    ] {
        assert!(Hello::parse(bad).is_err(), "{bad:?}");
    }
    assert!(Hello::parse(&vec![b' '; 17 * 1024]).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), pieces in vec(1_usize..40, 0..10)) {
        let mut rest = &bytes[..];
        let mut cut = Vec::new();
        for piece in pieces {
            let (head, tail) = rest.split_at(piece.min(rest.len()));
            cut.push(head);
            rest = tail;
        }
        cut.push(rest);
        prop_assert_eq!(decode(cut).is_ok(), decode([&bytes[..]]).is_ok());
    }

    #[test]
    fn damaged_frames_never_panic(which in 0_usize..22, at in any::<prop::sample::Index>(), byte in any::<u8>(), tail in vec(any::<u8>(), 0..50)) {
        let mut bytes = examples().swap_remove(which).1;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.extend_from_slice(&tail);
        for frame in decode([&bytes[..]]).unwrap_or_default() {
            drop(split_body(frame.status, frame.body.clone(), 100));
            drop(Hello::parse(&frame.body));
            let _any = Window::parse(&frame.body);
        }
    }

    #[test]
    fn damaged_hellos_are_read_or_refused(
        which in any::<prop::sample::Index>(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in 0_usize..20,
    ) {
        let frames = examples().into_iter().flat_map(|(_, bytes)| decode([&bytes[..]]).unwrap());
        let hellos: Vec<_> = frames.filter(|frame| (frame.kind, frame.status) == (Kind::Heartbeat, Status::HELLO)).collect();
        let mut text = which.get(&hellos).body.to_vec();
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        text.truncate(text.len() - cut.min(text.len()));
        if let Ok(hello) = Hello::parse(&text) {
            // What is read can be said again.
            let mut out = BytesMut::new();
            super::hello(&mut out, &hello);
            prop_assert_eq!(Hello::parse(&decode([&out[..]]).unwrap()[0].body), Ok(hello));
        }
    }

    #[test]
    fn frames_survive_the_way(
        id in any::<i64>(), bits in 0_u8..16, name in "[a-z]{0,32}",
        envelope in vec(any::<u8>(), 0..300), attachment in vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>(),
    ) {
        let status = Status(bits);
        let attachment = if status.has(Status::ATTACHMENT) { attachment } else { Vec::new() };
        let bytes = frame(Kind::Request, status, id, &name, &envelope, &attachment);
        let (head, tail) = bytes.split_at(cut.index(bytes.len()));
        let frames = decode([head, tail]).unwrap();
        prop_assert_eq!(frames.len(), 1);
        let only = &frames[0];
        prop_assert_eq!((only.kind, only.status, only.id, only.name.as_str()), (Kind::Request, status, id, &name[..]));
        let body = split_body(Status(bits & !Status::COMPRESSED.0), only.body.clone(), 100).unwrap();
        prop_assert_eq!(&body.envelope[..], &envelope[..]);
        prop_assert_eq!(&body.attachment[..], &attachment[..]);
    }
}
