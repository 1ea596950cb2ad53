-- Format 4: long times without a journal entry, of which nobody can tell whether they passed.

CREATE TABLE pauses (
    from_ms INTEGER PRIMARY KEY, -- time of the last entry before it
    to_ms   INTEGER NOT NULL     -- time of the first entry behind it
) STRICT;
