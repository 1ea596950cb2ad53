-- Format 1 of state.db. The tables are the broker's own and may change with every version; the views catalog_* are for
-- management and stay (docs/catalog.md). Numbers of 64 bits without a sign are stored with the same bits: those above
-- 2^63 (checksums, ids of topics) read as negative. Offsets, lsns and times never get there.

CREATE TABLE meta (
    id               INTEGER PRIMARY KEY CHECK (id = 1),
    shard            TEXT    NOT NULL, -- the broker's name; another one is refused
    lsn              INTEGER NOT NULL, -- last entry in here; the journal is replayed from the one behind it
    term             INTEGER NOT NULL, -- its term
    time_ms          INTEGER NOT NULL, -- its time
    next_queue       INTEGER NOT NULL, -- key of the next queue
    next_group       INTEGER NOT NULL, -- key of the next group
    last_transaction INTEGER NOT NULL, -- highest number given to a transaction
    decisions        INTEGER NOT NULL  -- decisions taken so far
) STRICT;

-- Topics with queues here, and tombstones.
CREATE TABLE topics (
    name       TEXT    PRIMARY KEY,
    topic_id   INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    durability TEXT    NOT NULL, -- memory, fsynced, replicated_fsynced(n)
    deleted    INTEGER NOT NULL,
    shards     TEXT    NOT NULL, -- JSON list of names, the authority first
    homes      TEXT    NOT NULL  -- JSON list: for queue 0, 1, .. the index of its shard in shards
) STRICT;

-- Queues that lie here.
CREATE TABLE queues (
    queue_key    INTEGER PRIMARY KEY,
    topic        TEXT    NOT NULL,
    number       INTEGER NOT NULL,
    start_offset INTEGER NOT NULL, -- first offset there is
    end_offset   INTEGER NOT NULL, -- first offset not assigned
    bytes        INTEGER NOT NULL  -- appended since its creation
) STRICT;

CREATE TABLE groups (
    group_key INTEGER PRIMARY KEY,
    name      TEXT    NOT NULL UNIQUE,
    topic     TEXT    NOT NULL,
    mode      TEXT    NOT NULL, -- stream
    since_ms  INTEGER NOT NULL
) STRICT;

CREATE TABLE cursors (
    group_key   INTEGER NOT NULL,
    queue_key   INTEGER NOT NULL,
    next_offset INTEGER NOT NULL, -- first offset not acked
    PRIMARY KEY (group_key, queue_key)
) STRICT, WITHOUT ROWID;

-- Undecided transactions.
CREATE TABLE transactions (
    number         INTEGER PRIMARY KEY,
    lsn            INTEGER NOT NULL, -- entry of its half messages
    batch          INTEGER NOT NULL, -- index of its first batch in that entry
    producer_group TEXT    NOT NULL,
    app_key        TEXT,
    checksum       INTEGER NOT NULL, -- over its messages
    since_ms       INTEGER NOT NULL,
    check_after_ms INTEGER NOT NULL,
    asked          INTEGER NOT NULL, -- questions counted
    parked         TEXT,             -- too_many_checks, target_gone, no_decision; NULL = open
    parts          TEXT    NOT NULL  -- JSON list of [queue key, records, bytes], one for each batch
) STRICT;

-- Decisions that are remembered.
CREATE TABLE decisions (
    number         INTEGER PRIMARY KEY,
    taken          INTEGER NOT NULL, -- its place among all decisions
    committed      INTEGER NOT NULL,
    lsn            INTEGER NOT NULL, -- entry that decided
    time_ms        INTEGER NOT NULL,
    producer_group TEXT    NOT NULL,
    app_key        TEXT,
    checksum       INTEGER NOT NULL,
    placed         TEXT    NOT NULL  -- JSON list of [queue key, base offset], one for each batch; [] = rolled back
) STRICT;

-- First offset that a queue has in a sealed segment: a fetch finds its segment by them.
CREATE TABLE segment_rows (
    queue_key    INTEGER NOT NULL,
    segment      INTEGER NOT NULL,
    first_offset INTEGER NOT NULL,
    PRIMARY KEY (queue_key, segment)
) STRICT, WITHOUT ROWID;

-- What was placed by the segment that is not sealed yet; when it is, its own footer says it.
CREATE TABLE placed_rows (
    segment INTEGER NOT NULL,
    lsn     INTEGER NOT NULL, -- of the checkpoint that added them
    rows    BLOB    NOT NULL, -- 62 bytes each, see checkpoint/placed.rs
    PRIMARY KEY (segment, lsn)
) STRICT, WITHOUT ROWID;

-- Where the batches of undecided transactions lie.
CREATE TABLE half_rows (
    lsn      INTEGER NOT NULL,
    batch    INTEGER NOT NULL,
    segment  INTEGER NOT NULL,
    position INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (lsn, batch)
) STRICT, WITHOUT ROWID;

CREATE VIEW catalog_brokers AS
SELECT shard AS broker, lsn, term, time_ms AS saved_ms FROM meta;

CREATE VIEW catalog_topics AS
SELECT t.name AS topic, t.topic_id, t.version, t.durability, t.deleted,
       json_array_length(t.homes) AS queues,
       (SELECT count(*) FROM queues q WHERE q.topic = t.name) AS queues_here,
       json_extract(t.shards, '$[0]') AS authority
FROM topics t;

CREATE VIEW catalog_queues AS
SELECT q.topic, q.number AS queue, m.shard AS broker, q.start_offset, q.end_offset,
       q.end_offset - q.start_offset AS messages, q.bytes
FROM queues q, meta m;

CREATE VIEW catalog_groups AS
SELECT g.name AS consumer_group, g.topic, g.mode, g.since_ms,
       coalesce((SELECT sum(q.end_offset - c.next_offset) FROM cursors c JOIN queues q USING (queue_key)
                 WHERE c.group_key = g.group_key), 0) AS lag
FROM groups g;

CREATE VIEW catalog_cursors AS
SELECT g.name AS consumer_group, q.topic, q.number AS queue, c.next_offset, q.end_offset,
       q.end_offset - c.next_offset AS lag
FROM cursors c JOIN groups g USING (group_key) JOIN queues q USING (queue_key);

CREATE VIEW catalog_transactions AS
SELECT m.shard || ':' || t.number AS transaction_id, CASE WHEN t.parked IS NULL THEN 'open' ELSE 'parked' END AS state,
       t.parked AS parked_because, t.producer_group, t.app_key, t.since_ms, t.asked,
       (SELECT sum(json_extract(p.value, '$[1]')) FROM json_each(t.parts) p) AS messages
FROM transactions t, meta m;
