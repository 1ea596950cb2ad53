-- Format 2: topics have settings, and groups know what they lost by them.

ALTER TABLE projected_topics ADD COLUMN IF NOT EXISTS retention_ms      bigint;
ALTER TABLE projected_topics ADD COLUMN IF NOT EXISTS retention_bytes   bigint;
ALTER TABLE projected_topics ADD COLUMN IF NOT EXISTS consumed          integer NOT NULL DEFAULT 0;
ALTER TABLE projected_topics ADD COLUMN IF NOT EXISTS hold_ms           bigint;
ALTER TABLE projected_topics ADD COLUMN IF NOT EXISTS message_bytes_max bigint;
ALTER TABLE projected_cursors ADD COLUMN IF NOT EXISTS lost             bigint  NOT NULL DEFAULT 0;
