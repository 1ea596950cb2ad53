//! All limits of the messaging layer.

/// Bytes of a topic, group or shard name.
pub const NAME_BYTES_MAX: usize = 127;
/// Bytes of one record (key, tag, properties and payload together).
pub const RECORD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of one batch, as it travels and as it is stored, and of its records when unpacked.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Records in one batch.
pub const BATCH_RECORDS_MAX: u32 = 1 << 20;
/// Bytes of a tag.
pub const TAG_BYTES_MAX: usize = 127;
/// Batches that one call to a broker appends.
pub const CALL_BATCHES_MAX: usize = 16_384;
/// Properties of one record.
pub const PROPERTIES_MAX: usize = 64;
/// Queues of one topic over all shards.
pub const TOPIC_QUEUES_MAX: u32 = 100_000;
/// Shards that the queues of one topic lie on.
pub const TOPIC_SHARDS_MAX: u16 = 1000;
/// Bytes of an application's transaction key.
pub const TRANSACTION_KEY_BYTES_MAX: usize = 64;
/// Parts of one page of a list: its items and what they consist of; a single item may have more.
pub const PAGE_PARTS_MAX: usize = 10_000;
/// The largest number of milliseconds or bytes in a topic's settings, which a database can still store.
pub const SETTING_MAX: u64 = 1 << 62;
/// Longest wait of a long poll, milliseconds.
pub const LONG_POLL_MS_MAX: u32 = 30_000;
