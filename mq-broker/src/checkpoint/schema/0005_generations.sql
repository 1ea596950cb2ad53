-- Format 5: queue files that were compacted by keys. Beside one that waits for its removal another may begin at the same
-- offset; their generations tell them apart.

CREATE TABLE queue_files_5 (
    queue_key     INTEGER NOT NULL,
    first_offset  INTEGER NOT NULL,
    end_offset    INTEGER NOT NULL, -- behind its last offset
    bytes         INTEGER NOT NULL, -- of its file that count
    planned_bytes INTEGER NOT NULL, -- behind so many the next file begins
    topic         TEXT    NOT NULL, -- topic, id and number name its folder, also when the topic is gone
    topic_id      INTEGER NOT NULL,
    number        INTEGER NOT NULL,
    gone          INTEGER NOT NULL, -- nothing needs it: it only waits for its removal
    generation    INTEGER NOT NULL, -- 0 = never compacted by keys: offsets that it passes over were damaged
    PRIMARY KEY (queue_key, first_offset, generation)
) STRICT, WITHOUT ROWID;

INSERT INTO queue_files_5 SELECT *, 0 FROM queue_files;
DROP VIEW catalog_queue_files;
DROP TABLE queue_files;
ALTER TABLE queue_files_5 RENAME TO queue_files;

CREATE VIEW catalog_queue_files AS
SELECT f.topic, f.number AS queue, m.shard AS broker, f.first_offset, f.end_offset,
       f.end_offset - f.first_offset AS messages,
       max(0, f.end_offset - max(f.first_offset, coalesce(q.start_offset, f.end_offset))) AS valid_messages, f.bytes
FROM meta m, queue_files f LEFT JOIN queues q USING (queue_key)
WHERE NOT f.gone;
