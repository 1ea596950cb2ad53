//! What memory keeps of the rows in a sealed segment's footer; pure. The rows were checked as a whole. Of
//! each block of them, memory keeps the first row's key, to find rows by, and a checksum, by which the block
//! is checked whenever it is read again: 16 bytes of 8192.

use mq_common::ids::Offset;

use crate::ids::QueueKey;
use crate::store::PlacedRow;
use crate::store::prefetch::shared::Shares;
use crate::store::segment_index::footer::{ROW_BYTES, Trailer};

/// Rows of a block.
pub(in crate::store) const BLOCK_ROWS: usize = 128;
/// Bytes of a block.
pub(in crate::store) const BLOCK_BYTES: usize = BLOCK_ROWS * ROW_BYTES;

/// The sampled rows of one footer.
#[derive(Debug)]
pub(in crate::store) struct SampledRows {
    rows_at: u64,
    rows: usize,
    blocks: Box<[Block]>,
    shares: Shares,
}

#[derive(Debug)]
struct Block {
    queue: QueueKey,
    checksum: u32,
    base_offset: Offset,
}

/// Builds it from the rows as they are read.
#[derive(Debug, Default)]
pub(in crate::store) struct Making {
    blocks: Vec<Block>,
    bytes: usize,
    checksum: u32,
    shares: Shares,
}

impl Making {
    /// The next rows: whole blocks, except for the last ones.
    pub(in crate::store) fn add(&mut self, rows: &[u8]) {
        self.bytes += rows.len();
        self.checksum = crc32c::crc32c_append(self.checksum, rows);
        for row in rows.as_chunks::<ROW_BYTES>().0 {
            self.shares.add(&PlacedRow::decode(row));
        }
        self.blocks.extend(rows.chunks(BLOCK_BYTES).filter_map(|block| {
            let row = PlacedRow::decode(block.first_chunk()?);
            Some(Block {
                queue: row.queue,
                checksum: crc32c::crc32c(block),
                base_offset: row.base_offset,
            })
        }));
    }

    /// `None` = these are not the rows of the trailer.
    pub(in crate::store) fn finish(self, trailer: &Trailer) -> Option<SampledRows> {
        let holds = self.bytes == trailer.rows_bytes() && self.checksum == trailer.rows_checksum;
        holds.then(|| SampledRows {
            rows_at: u64::from(trailer.rows_at),
            rows: self.bytes / ROW_BYTES,
            blocks: self.blocks.into(),
            shares: self.shares.finish(),
        })
    }
}

impl SampledRows {
    /// Number of rows.
    pub(in crate::store) const fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of memory.
    pub(in crate::store) const fn bytes(&self) -> usize {
        size_of::<Self>() + self.blocks.len() * size_of::<Block>() + self.shares.bytes()
    }

    /// The share of each queue in the segment.
    pub(in crate::store) const fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Position and bytes of a block in the segment's file.
    pub(in crate::store) const fn place(&self, block: usize) -> (u64, usize) {
        let before = block * BLOCK_BYTES;
        let left = (self.rows * ROW_BYTES).saturating_sub(before);
        let bytes = if left < BLOCK_BYTES { left } else { BLOCK_BYTES };
        (self.rows_at + before as u64, bytes)
    }

    /// Whether these are the bytes of a block.
    pub(in crate::store) fn holds(&self, block: usize, bytes: &[u8]) -> bool {
        let known = self.blocks.get(block);
        bytes.len() == self.place(block).1
            && known.is_some_and(|known| crc32c::crc32c(bytes) == known.checksum)
    }

    /// The block with the row of this queue that contains the offset, if there is one; otherwise the next row
    /// is in this block or the first of the next one. `None` = it is before all rows.
    pub(in crate::store) fn block_of(&self, queue: QueueKey, offset: Offset) -> Option<usize> {
        let is_before = |block: &Block| (block.queue, block.base_offset) <= (queue, offset);
        self.blocks.partition_point(is_before).checked_sub(1)
    }
}
