//! The built-in compressors against the contract, bombs, packed frames as pinned.

use std::path::Path;

use bytes::{BufMut as _, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::frame::{BodyError, Decoder, Draft, Kind, Status, split_body};
use crate::limits::BODY_BYTES_MAX;
use crate::plugin::Settings;

fn named(name: &str) -> Named {
    Named::find(name).unwrap()
}

/// A text that is worth packing.
fn text() -> String {
    (0..200).fold(String::new(), |text, line| {
        text + &format!("{{\"order\":{line},\"paid\":true}}\n")
    })
}

#[test]
fn lz4_keeps_the_contract() {
    contract::check("lz4", 1);
}

#[test]
fn zstd_keeps_the_contract() {
    contract::check("zstd", 2);
}

#[test]
fn packed_forms_are_those_of_their_specifications() {
    let cases: [(&str, &[u8], &[u8]); 4] = [
        // Five literals; two literals and a match of ten bytes, two back, then five literals.
        ("lz4", b"\x50hello", b"hello"),
        ("lz4", b"\x26ab\x02\x00\x50hello", b"abababababab\x68ello"),
        // Magic, one segment of that size, a last block: stored, or one byte repeated.
        ("zstd", b"\x28\xb5\x2f\xfd\x20\x05\x29\x00\x00hello", b"hello"),
        ("zstd", b"\x28\xb5\x2f\xfd\x20\x0a\x53\x00\x00x", b"xxxxxxxxxx"),
    ];
    for (name, packed, plain) in cases {
        assert_eq!(named(name).unpack(packed, plain.len()).unwrap(), plain, "{name}");
    }
}

#[test]
fn only_what_shrinks_and_is_large_enough_is_packed() {
    let mut noise = vec![0; 100_000];
    fastrand::Rng::with_seed(7).fill(&mut noise);
    for name in ["lz4", "zstd"] {
        let text = text();
        let packed = named(name).pack(text.as_bytes()).unwrap();
        assert!(packed.len() < text.len() / 3, "{name}: {} bytes", packed.len());
        assert_eq!(named(name).unpack(&packed, text.len()).unwrap(), text);
        assert!(
            named(name)
                .pack(&text.as_bytes()[..PACKED_BYTES_MIN - 1])
                .is_none()
        );
        assert!(named(name).pack(&noise).is_none(), "{name}");
        // Whatever is packed here can be unpacked there: nothing beyond the ratio that a peer allows is sent packed.
        let zeros = vec![0; 8 << 20];
        if let Some(packed) = named(name).pack(&zeros) {
            assert_eq!(named(name).unpack(&packed, zeros.len()).unwrap(), zeros);
        }
    }
    assert!(named("zstd").pack(&vec![0; 8 << 20]).is_none());
}

/// 128 KiB of one byte, as often as said: 4 bytes each.
fn zstd_bomb(blocks: usize) -> Vec<u8> {
    // A frame without a content size, with a window of 128 KiB.
    let mut bomb = b"\x28\xb5\x2f\xfd\x00\x38".to_vec();
    for block in 1..=blocks {
        let last = u32::from(block == blocks);
        bomb.extend_from_slice(&(131_072 << 3 | 1 << 1 | last).to_le_bytes()[..3]);
        bomb.push(0);
    }
    bomb
}

/// A literal and a match of it that is 255 bytes long for every byte given.
fn lz4_bomb(bytes: usize) -> Vec<u8> {
    let mut bomb = b"\x1fx\x01\x00".to_vec();
    bomb.resize(bytes, 0xff);
    bomb.extend_from_slice(b"\x00\x50hello");
    bomb
}

#[test]
fn p6_compression_bomb_is_refused_before_memory_is_taken() {
    const GIB: usize = 1 << 30;
    assert_eq!(zstd_bomb(8192).len(), 32_774);
    let bombs = [
        // What they are: 32 MiB out of 1 kB, 1 GiB out of 32 kB, 255 kB out of 1 kB.
        ("zstd", zstd_bomb(250), 250 << 17),
        ("zstd", zstd_bomb(8192), GIB),
        ("lz4", lz4_bomb(1000), 254_000),
        // One that also says itself how large it is, in a frame that must be unpacked in one piece.
        (
            "zstd",
            [
                &b"\x28\xb5\x2f\xfd\xe0\0\0\0\x40\0\0\0\0"[..],
                &zstd_bomb(250)[6..],
            ]
            .concat(),
            GIB,
        ),
    ];
    for (name, bomb, truth) in bombs {
        // Told honestly, it is too large for the body, or for what its bytes may stand for.
        for said in [truth, GIB, BODY_BYTES_MAX + 1] {
            let body = [
                &[4][..],
                &format!("{name:4}").into_bytes(),
                &u32::try_from(said).unwrap().to_be_bytes(),
                &bomb,
            ]
            .concat();
            let split = split_body(Status::COMPRESSED, body.into(), BODY_BYTES_MAX);
            if said > BODY_BYTES_MAX {
                assert_eq!(
                    split,
                    Err(BodyError::PlainLength {
                        plain: said,
                        max: BODY_BYTES_MAX
                    })
                );
            }
        }
        // Told to be smaller, it fills what it said and no byte more.
        for said in [0, 1000, 100_000, bomb.len() * RATIO_MAX - 1, BODY_BYTES_MAX] {
            if said != truth {
                let unpacked = named(name).unpack(&bomb, said);
                assert!(
                    unpacked.is_err(),
                    "{name}: {} bytes were said to be {said}",
                    bomb.len()
                );
            }
        }
        let reason = named(name).unpack(&bomb[..1000], BODY_BYTES_MAX).unwrap_err();
        assert!(
            reason.contains("1000 packed bytes that claim to be 16777216"),
            "{reason}"
        );
    }
}

/// A whole frame, its envelope packed.
fn packed_frame(kind: Kind, status: Status, name: &str, attachment: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let mut draft = Draft::begin(&mut out, kind, status, 1 << 24, "json");
    out.put_slice(text().as_bytes());
    draft.pack(&mut out, BODY_BYTES_MAX, name, |plain| named(name).pack(plain));
    draft.finish(&mut out, attachment.len(), BODY_BYTES_MAX).unwrap();
    out.put_slice(attachment);
    out
}

/// The bytes in a golden file, which is written once, by running the test with `GOLDEN=write`. Not compared with what
/// is packed today: a compressor may find a shorter form, and must read every old one.
fn pinned(name: &str, write: impl FnOnce() -> BytesMut) -> BytesMut {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/compress")
        .join(name);
    if !path.exists() && std::env::var("GOLDEN").as_deref() == Ok("write") {
        crate::testing::golden(&format!("compress/{name}"), &write());
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let digits = text.split_ascii_whitespace();
    digits
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect::<Vec<_>>()
        .as_slice()
        .into()
}

#[test]
fn packed_frames_are_read_as_pinned() {
    let attached = Status::NONE.with(Status::ATTACHMENT);
    let cases = [
        ("request.lz4.hex", Kind::Request, Status::REQUEST, "lz4", &b""[..]),
        ("request.zstd.hex", Kind::Request, Status::REQUEST, "zstd", b""),
        (
            "response-attachment.lz4.hex",
            Kind::Response,
            attached,
            "lz4",
            b"raw bytes",
        ),
        (
            "response-attachment.zstd.hex",
            Kind::Response,
            attached,
            "zstd",
            b"raw bytes",
        ),
    ];
    for (file, kind, status, name, attachment) in cases {
        let today = packed_frame(kind, status, name, attachment);
        for mut bytes in [pinned(file, || today.clone()), today.clone()] {
            let frame = Decoder::new(BODY_BYTES_MAX).next(&mut bytes).unwrap().unwrap();
            assert_eq!(
                (frame.kind, frame.status),
                (kind, status.with(Status::COMPRESSED)),
                "{file}"
            );
            let body = split_body(frame.status, frame.body, BODY_BYTES_MAX).unwrap();
            assert_eq!(body.attachment, attachment, "{file}");
            let plain = Named::plain(body.envelope, body.compressor, Named::linked).unwrap();
            assert_eq!(plain, text(), "{file}");
        }
    }
}

#[test]
fn envelope_that_does_not_shrink_leaves_the_frame_as_it_was() {
    let written = |max, pack: fn(&[u8]) -> Option<Vec<u8>>| {
        let mut out = BytesMut::new();
        let mut draft = Draft::begin(&mut out, Kind::Request, Status::REQUEST, 1, "json");
        out.put_slice(b"0123456789");
        draft.pack(&mut out, max, "z", pack);
        draft.finish(&mut out, 0, 100).unwrap();
        out
    };
    let plain = written(100, |_| None);
    assert_eq!(plain.last_chunk(), Some(b"0123456789"));
    // Four bytes and the six before them are ten again.
    assert_eq!(written(100, |_| Some(vec![0; 4])), plain);
    // The peer would refuse so many plain bytes.
    assert_eq!(written(9, |_| Some(vec![0; 1])), plain);
    let packed = written(100, |_| Some(vec![0; 3]));
    assert_eq!((packed[4], packed.len()), (0x09, plain.len() - 1));
    assert_eq!(packed.last_chunk(), Some(b"\x01z\0\0\0\x0a\0\0\0"));
}

proptest! {
    #[test]
    fn damaged_blocks_are_refused_or_have_at_most_the_size_that_was_said(
        lz4: bool, plain in prop::collection::vec(0_u8..4, 1..600), said in 0_usize..4000,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5), cut in 0_usize..40,
    ) {
        let name = if lz4 { "lz4" } else { "zstd" };
        let compressor = CompressorPlugin::build(name, &Settings::new()).unwrap();
        let mut packed = compressor.compress(&plain).unwrap();
        let whole = changes.is_empty() && cut == 0;
        for (at, byte) in changes {
            let at = at.index(packed.len());
            packed[at] = byte;
        }
        packed.truncate(packed.len() - cut.min(packed.len()));
        match compressor.decompress(&packed, said) {
            Ok(unpacked) => prop_assert!(unpacked.len() <= said && (!whole || unpacked == plain)),
            // Who says too much may be refused at once.
            Err(_) => prop_assert!(!whole || said != plain.len()),
        }
    }
}
