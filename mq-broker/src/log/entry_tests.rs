//! Frames: what is written is read, anything else is refused without harm.

use proptest::prelude::*;

use super::*;

const SEED: u32 = 77;

fn header() -> Header {
    Header {
        frame_bytes: 0,
        checksum: 0,
        previous_checksum: 5,
        lsn: Lsn(9),
        term: Term(2),
        time: Timestamp(1000),
        synced: Lsn(8),
        version: 0,
        commands: 0,
        commands_bytes: 0,
        batches: 0,
    }
}

fn stored(bytes: &[u8]) -> Stored {
    Stored {
        location: Location {
            segment: SegmentId(1),
            position: 0,
            bytes: u32::try_from(bytes.len()).unwrap(),
        },
        checksum: crc32c::crc32c(bytes),
        batch: None,
    }
}

fn frame(commands: &[(Vec<u8>, Vec<Vec<u8>>)]) -> (Header, Vec<u8>) {
    let parts: Vec<_> = commands
        .iter()
        .map(|(meta, bodies)| Part {
            meta: Bytes::copy_from_slice(meta),
            batches: u32::try_from(bodies.len()).unwrap(),
        })
        .collect();
    let bodies: Vec<_> = commands.iter().flat_map(|(_, bodies)| bodies).cloned().collect();
    let batches: Vec<_> = bodies.iter().map(|body| stored(body)).collect();
    let mut out = Vec::new();
    let header = encode(&mut out, SEED, header(), &parts, &batches);
    assert_eq!(out.len(), header.bodies_at());
    out.extend(bodies.concat());
    assert_eq!(out.len(), header.frame_bytes as usize);
    (header, out)
}

fn small_frame() -> (Header, Vec<u8>) {
    frame(&[
        (b"one".to_vec(), vec![b"body".to_vec(), vec![]]),
        (vec![], vec![]),
        (b"2".to_vec(), vec![b"x".to_vec()]),
    ])
}

#[test]
fn a_frame_comes_back() {
    let (header, bytes) = small_frame();
    assert_eq!(Header::check(&bytes, SEED), Ok(header));
    let bytes = Bytes::from(bytes);
    let (parts, batches) = decode_commands(&header, &bytes, SegmentId(1), 100).unwrap();
    let metas: Vec<_> = parts.iter().map(|part| (&part.meta[..], part.batches)).collect();
    assert_eq!(metas, [(&b"one"[..], 2), (b"", 0), (b"2", 1)]);
    let bodies: Vec<_> = batches
        .iter()
        .map(|stored| {
            let from = stored.location.position as usize - 100;
            &bytes[from..from + stored.location.bytes as usize]
        })
        .collect();
    assert_eq!(bodies, [&b"body"[..], b"", b"x"]);
}

#[test]
fn s8_every_flipped_bit_of_header_and_commands_is_detected() {
    let (header, bytes) = small_frame();
    for bit in 0..header.bodies_at() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::check(&damaged, SEED).is_err(), "bit {bit}");
    }
}

#[test]
fn s8_a_length_beyond_the_limit_is_refused_before_anything_is_read() {
    for length in [1_u32, 59, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let (_, mut bytes) = small_frame();
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        // Even with a true checksum of its own.
        let own = compute_checksum(SEED, &bytes[..FRAME_HEADER_BYTES - 4]);
        bytes[FRAME_HEADER_BYTES - 4..FRAME_HEADER_BYTES].copy_from_slice(&own.to_be_bytes());
        assert!(
            matches!(Header::check(&bytes, SEED), Err(Broken::Header)),
            "length {length}"
        );
    }
}

#[test]
fn s3_a_frame_holds_only_with_its_seed_and_behind_its_predecessor() {
    let (header, bytes) = small_frame();
    assert_eq!(Header::check(&bytes, SEED + 1), Err(Broken::Header));
    let point = ChainPoint {
        next: Lsn(9),
        checksum: 5,
        term: Term(2),
        time: Timestamp(1000),
    };
    assert!(header.follows(&point));
    let others = [
        ChainPoint {
            next: Lsn(8),
            ..point
        },
        ChainPoint {
            next: Lsn(10),
            ..point
        },
        ChainPoint { checksum: 6, ..point },
        ChainPoint {
            term: Term(3),
            ..point
        },
        ChainPoint {
            time: Timestamp(1001),
            ..point
        },
    ];
    for other in others {
        assert!(!header.follows(&other), "{other:?}");
    }
}

#[test]
fn a_segment_header_comes_back_and_every_flipped_bit_is_detected() {
    let header = SegmentHeader {
        segment: SegmentId(3),
        point: ChainPoint {
            next: Lsn(100),
            checksum: 0xdead_beef,
            term: Term(4),
            time: Timestamp(5),
        },
        segment_bytes: 1 << 26,
    };
    let bytes = header.encode();
    assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::decode(&damaged).is_err(), "bit {bit}");
    }
    assert!(SegmentHeader::decode(&bytes[..63]).is_err());
}

#[test]
fn a_whole_header_of_another_version_says_which() {
    let header = SegmentHeader {
        segment: SegmentId(3),
        point: ChainPoint {
            next: Lsn(1),
            checksum: 1,
            term: Term(0),
            time: Timestamp(0),
        },
        segment_bytes: 1 << 26,
    };
    let mut bytes = header.encode();
    bytes[8..10].copy_from_slice(&2_u16.to_be_bytes());
    let crc = block_checksum(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(SegmentHeader::decode(&bytes), Err(Broken::Version(2)));
}

proptest! {
    #[test]
    fn frames_round_trip(commands in prop::collection::vec(
        (prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..4)), 0..6
    )) {
        let (header, bytes) = frame(&commands);
        prop_assert_eq!(Header::check(&bytes, SEED), Ok(header));
        let (parts, batches) = decode_commands(&header, &Bytes::from(bytes), SegmentId(1), 0).unwrap();
        prop_assert_eq!(parts.len(), commands.len());
        prop_assert_eq!(batches.len(), commands.iter().map(|(_, bodies)| bodies.len()).sum::<usize>());
        for (part, (meta, bodies)) in parts.iter().zip(&commands) {
            prop_assert_eq!(&part.meta[..], &meta[..]);
            prop_assert_eq!(part.batches as usize, bodies.len());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Header::check(&bytes, SEED).is_err());
        let header = Header { commands: 3, batches: 2, frame_bytes: 300, commands_bytes: 40, ..header() };
        let mut frame = bytes;
        frame.resize(300, 1);
        // The checksum was true, the structure is nonsense.
        prop_assert!(decode_commands(&header, &Bytes::from(frame), SegmentId(1), u32::MAX - 150).is_err());
    }
}
