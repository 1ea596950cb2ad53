-- Format 8: what sealed segments of the journal place of older ones: half messages that were committed later. A start then knows
-- which segments must be there, and freeing needs no footer. A row whose older segment is the segment itself says that all
-- rows of it are here; what was sealed before this format has none, until its footer is looked at.

CREATE TABLE segment_references (
    segment       INTEGER NOT NULL, -- whose rows they are
    older_segment INTEGER NOT NULL, -- where the batches lie
    queue_key     INTEGER NOT NULL, -- of which queue; 0 beside the segment itself
    end_offset    INTEGER NOT NULL, -- behind the last offset of the queue that lies there; 0 beside the segment itself
    PRIMARY KEY (segment, older_segment, queue_key)
) STRICT, WITHOUT ROWID;
