//! The rows of one sealed segment during one search: in memory, or in the segment's file, which is read a
//! block at a time.

use mq_common::ids::Offset;

use crate::ids::QueueKey;
use crate::store::io::segment_files::SegmentFiles;
use crate::store::segment_index::footer::FooterRows;
use crate::store::segment_index::footer_cache::Footer;
use crate::store::segment_index::sampled::BLOCK_ROWS;
use crate::store::{Access, PlacedRow, ReadError, SegmentId};

/// The rows of one segment.
#[derive(Debug)]
pub(in crate::store) struct SealedRows<'a> {
    segments: &'a SegmentFiles,
    access: Access,
    segment: SegmentId,
    footer: Footer,
    /// The block that was read last.
    block: Option<(usize, FooterRows)>,
}

impl SegmentFiles {
    /// The rows of a sealed segment. A footer that has not been used for long is read and checked here as a
    /// whole, if `access` allows it.
    pub(in crate::store) fn rows(
        &self,
        access: Access,
        segment: SegmentId,
    ) -> Result<SealedRows<'_>, ReadError> {
        let footer = self.footer_by(access, segment)?;
        Ok(self.rows_of(access, segment, footer))
    }

    pub(in crate::store) const fn rows_of(
        &self,
        access: Access,
        segment: SegmentId,
        footer: Footer,
    ) -> SealedRows<'_> {
        SealedRows {
            segments: self,
            access,
            segment,
            footer,
            block: None,
        }
    }
}

impl SealedRows<'_> {
    /// Number of rows.
    pub(in crate::store) fn len(&self) -> usize {
        match &self.footer {
            Footer::Here(rows) | Footer::Rebuilt(rows, _) => rows.len(),
            Footer::InFile(sparse) => sparse.rows(),
        }
    }

    /// Why they had to be rebuilt. Then they may lack queues.
    pub(in crate::store) fn damage(&self) -> Option<ReadError> {
        match &self.footer {
            Footer::Rebuilt(_, damage) => Some(damage.error(self.segment)),
            _ => None,
        }
    }

    /// One row.
    pub(in crate::store) fn get(&mut self, at: usize) -> Result<Option<PlacedRow>, ReadError> {
        match &self.footer {
            Footer::Here(rows) | Footer::Rebuilt(rows, _) => Ok(rows.get(at)),
            Footer::InFile(sparse) if at >= sparse.rows() => Ok(None),
            Footer::InFile(_) => Ok(self.block(at / BLOCK_ROWS)?.get(at % BLOCK_ROWS)),
        }
    }

    /// All that can be read.
    pub(in crate::store) fn all(&mut self) -> impl Iterator<Item = PlacedRow> {
        (0..self.len()).filter_map(|at| self.get(at).ok().flatten())
    }

    /// Index of the row of this queue that contains the offset, or else of the first one after it.
    pub(in crate::store) fn find(&mut self, queue: QueueKey, offset: Offset) -> Result<usize, ReadError> {
        match &self.footer {
            Footer::Here(rows) | Footer::Rebuilt(rows, _) => Ok(rows.find(queue, offset)),
            Footer::InFile(sparse) => {
                let Some(number) = sparse.block_of(queue, offset) else {
                    return Ok(0);
                };
                Ok(number * BLOCK_ROWS + self.block(number)?.find(queue, offset))
            }
        }
    }

    /// The rows from the one of this queue that contains the offset, or else from the first one after it.
    pub(in crate::store) fn from(
        &mut self,
        queue: QueueKey,
        offset: Offset,
    ) -> Result<impl Iterator<Item = Result<PlacedRow, ReadError>>, ReadError> {
        let first = self.find(queue, offset)?;
        Ok((first..).map_while(|at| self.get(at).transpose()))
    }

    fn block(&mut self, number: usize) -> Result<&FooterRows, ReadError> {
        let known = self.block.take().filter(|(known, _)| *known == number);
        let block = match (known, &self.footer) {
            (Some(known), _) => known,
            (None, Footer::InFile(sparse)) => {
                let rows = self.segments.block(self.access, self.segment, sparse, number)?;
                (number, rows)
            }
            (None, Footer::Here(rows) | Footer::Rebuilt(rows, _)) => (number, rows.clone()),
        };
        Ok(&self.block.insert(block).1)
    }
}
