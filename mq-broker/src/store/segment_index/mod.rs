//! The index of a sealed segment of the journal, from its rows in the footer to the row of one (queue,
//! offset).
//!
//! `footer` is the format, `footer_file` reads it whole from a file, `footer_cache` keeps what memory has of
//! it (`sampled`: one key per block of rows), `cursor` searches the rows of one segment, and `rebuild` is how
//! rows are recomputed from the entries when a footer is damaged.

pub(super) mod cursor;
#[cfg(test)]
mod every_bit_tests;
pub mod footer;
pub(super) mod footer_cache;
pub mod footer_file;
pub(super) mod rebuild;
pub(super) mod sampled;
