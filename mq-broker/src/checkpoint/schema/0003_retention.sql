-- Format 3: topics have settings, queues are trimmed, and groups know what they lost by it. Topics from before keep
-- everything, as they did.

ALTER TABLE topics ADD COLUMN retention_ms      INTEGER; -- NULL = for ever
ALTER TABLE topics ADD COLUMN retention_bytes   INTEGER; -- for each queue; NULL = no limit
ALTER TABLE topics ADD COLUMN consumed          INTEGER NOT NULL DEFAULT 0;
ALTER TABLE topics ADD COLUMN hold_ms           INTEGER; -- NULL = nothing is held for groups
ALTER TABLE topics ADD COLUMN message_bytes_max INTEGER; -- NULL = the limit of the format
ALTER TABLE cursors ADD COLUMN lost             INTEGER NOT NULL DEFAULT 0; -- deleted before they were acked

DROP VIEW catalog_topics;
CREATE VIEW catalog_topics AS
SELECT t.name AS topic, t.topic_id, t.version, t.durability, t.deleted,
       json_array_length(t.homes) AS queues,
       (SELECT count(*) FROM queues q WHERE q.topic = t.name) AS queues_here,
       json_extract(t.shards, '$[0]') AS authority,
       t.retention_ms, t.retention_bytes, t.consumed, t.hold_ms, t.message_bytes_max
FROM topics t;

DROP VIEW catalog_groups;
CREATE VIEW catalog_groups AS
SELECT g.name AS consumer_group, g.topic, g.mode, g.since_ms,
       coalesce((SELECT sum(q.end_offset - c.next_offset) FROM cursors c JOIN queues q USING (queue_key)
                 WHERE c.group_key = g.group_key), 0) AS lag,
       coalesce((SELECT sum(c.lost) FROM cursors c WHERE c.group_key = g.group_key), 0) AS lost
FROM groups g;

DROP VIEW catalog_cursors;
CREATE VIEW catalog_cursors AS
SELECT g.name AS consumer_group, q.topic, q.number AS queue, c.next_offset, q.end_offset,
       q.end_offset - c.next_offset AS lag, c.lost
FROM cursors c JOIN groups g USING (group_key) JOIN queues q USING (queue_key);
