-- The views for management tools, in the latest format; docs/catalog.md describes them. Views and columns are never
-- removed; new columns are added after the others.

CREATE OR REPLACE VIEW catalog_brokers AS
SELECT broker, lsn, term, saved_ms, projected_at FROM projected_brokers WHERE lsn >= 0;

CREATE OR REPLACE VIEW catalog_topics AS
SELECT t.broker, t.topic, t.topic_id, t.version, t.durability, t.deleted, t.queues,
       (SELECT count(*) FROM projected_queues q WHERE q.broker = t.broker AND q.topic = t.topic) AS queues_here,
       t.authority, t.retention_ms, t.retention_bytes, t.consumed, t.hold_ms, t.message_bytes_max, t.compact
FROM projected_topics t;

CREATE OR REPLACE VIEW catalog_queues AS
SELECT broker, topic, queue, start_offset, end_offset, end_offset - start_offset AS messages, bytes
FROM projected_queues;

CREATE OR REPLACE VIEW catalog_groups AS
SELECT g.broker, g.consumer_group, g.topic, g.mode, g.since_ms,
       coalesce((SELECT sum(q.end_offset - c.next_offset)
                 FROM projected_cursors c JOIN projected_queues q USING (broker, queue_key)
                 WHERE c.broker = g.broker AND c.group_key = g.group_key), 0)::bigint AS lag,
       coalesce((SELECT sum(c.lost) FROM projected_cursors c
                 WHERE c.broker = g.broker AND c.group_key = g.group_key), 0)::bigint AS lost
FROM projected_groups g;

CREATE OR REPLACE VIEW catalog_cursors AS
SELECT c.broker, g.consumer_group, q.topic, q.queue, c.next_offset, q.end_offset, q.end_offset - c.next_offset AS lag,
       c.lost
FROM projected_cursors c
JOIN projected_groups g USING (broker, group_key)
JOIN projected_queues q USING (broker, queue_key);

CREATE OR REPLACE VIEW catalog_transactions AS
SELECT t.broker, t.broker || ':' || t.number AS transaction_id,
       CASE WHEN t.parked_because IS NULL THEN 'open' ELSE 'parked' END AS state,
       t.parked_because, t.producer_group, t.app_key, t.since_ms, t.asked, t.messages
FROM projected_transactions t;
