-- Format 2: the manifest of queue files. Bytes of a file beyond `bytes`, and files that are not listed, do not exist.

CREATE TABLE queue_files (
    queue_key     INTEGER NOT NULL,
    first_offset  INTEGER NOT NULL,
    end_offset    INTEGER NOT NULL, -- behind its last offset
    bytes         INTEGER NOT NULL, -- of its file that count
    planned_bytes INTEGER NOT NULL, -- behind so many the next file begins
    topic         TEXT    NOT NULL, -- topic, id and number name its folder, also when the topic is gone
    topic_id      INTEGER NOT NULL,
    number        INTEGER NOT NULL,
    gone          INTEGER NOT NULL, -- nothing needs it: it only waits for its removal
    PRIMARY KEY (queue_key, first_offset)
) STRICT, WITHOUT ROWID;

CREATE VIEW catalog_queue_files AS
SELECT f.topic, f.number AS queue, m.shard AS broker, f.first_offset, f.end_offset,
       f.end_offset - f.first_offset AS messages,
       max(0, f.end_offset - max(f.first_offset, coalesce(q.start_offset, f.end_offset))) AS valid_messages, f.bytes
FROM meta m, queue_files f LEFT JOIN queues q USING (queue_key)
WHERE NOT f.gone;
