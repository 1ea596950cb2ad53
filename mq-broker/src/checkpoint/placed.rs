//! Rows of the unsealed segment in packed form: there can be a hundred thousand of them, and they are never
//! queried. Pure.
//!
//! 62 bytes each, big-endian: queue u32, base offset u64, records u32, segment u64, position u32, bytes u32,
//! checksum u32, lsn u64, term u64, time u64, flags u16.

use bytes::{Buf, BufMut};
use mq_common::ids::{Lsn, Offset, Term, Timestamp};

use crate::ids::QueueKey;
use crate::store::{Location, PlacedRow, SegmentId};

const ROW_BYTES: usize = 62;

pub(super) fn pack<'a>(rows: impl IntoIterator<Item = &'a PlacedRow>) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows {
        out.put_u32(row.queue.0);
        out.put_u64(row.base_offset.0);
        out.put_u32(row.count);
        out.put_u64(row.location.segment.0);
        out.put_u32(row.location.position);
        out.put_u32(row.location.bytes);
        out.put_u32(row.checksum);
        out.put_u64(row.lsn.0);
        out.put_u64(row.term.0);
        out.put_u64(row.time.0);
        out.put_u16(row.flags);
    }
    out
}

/// `None` unless the bytes are complete rows.
pub(super) fn unpack(bytes: &[u8]) -> Option<Vec<PlacedRow>> {
    let rows = bytes.chunks_exact(ROW_BYTES);
    if !rows.remainder().is_empty() {
        return None;
    }
    Some(rows.map(row).collect())
}

fn row(mut bytes: &[u8]) -> PlacedRow {
    PlacedRow {
        queue: QueueKey(bytes.get_u32()),
        base_offset: Offset(bytes.get_u64()),
        count: bytes.get_u32(),
        location: Location {
            segment: SegmentId(bytes.get_u64()),
            position: bytes.get_u32(),
            bytes: bytes.get_u32(),
        },
        checksum: bytes.get_u32(),
        lsn: Lsn(bytes.get_u64()),
        term: Term(bytes.get_u64()),
        time: Timestamp(bytes.get_u64()),
        flags: bytes.get_u16(),
    }
}
