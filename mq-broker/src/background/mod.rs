//! Work that the broker does in the background, besides serving requests: checkpoints and what depends on
//! them (`upkeep`, `reclaim`, `half_moves`), checks (`scrub`, `disk_watch`), how these are kept running
//! (`supervisor`), and how they share the disk with producers (`disk_share`).

pub(crate) mod disk_share;
mod disk_watch;
pub(crate) mod half_moves;
pub mod reclaim;
mod scrub;
pub(crate) mod supervisor;
pub(crate) mod upkeep;
