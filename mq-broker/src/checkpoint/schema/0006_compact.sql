-- Format 6: of topics that compact, only the last message of each key has to stay.

ALTER TABLE topics ADD COLUMN compact INTEGER NOT NULL DEFAULT 0;

DROP VIEW catalog_topics;
CREATE VIEW catalog_topics AS
SELECT t.name AS topic, t.topic_id, t.version, t.durability, t.deleted,
       json_array_length(t.homes) AS queues,
       (SELECT count(*) FROM queues q WHERE q.topic = t.name) AS queues_here,
       json_extract(t.shards, '$[0]') AS authority,
       t.retention_ms, t.retention_bytes, t.consumed, t.hold_ms, t.message_bytes_max, t.compact
FROM topics t;
