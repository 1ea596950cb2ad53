-- Format 3: topics that compact.

ALTER TABLE projected_topics ADD COLUMN IF NOT EXISTS compact integer NOT NULL DEFAULT 0;
