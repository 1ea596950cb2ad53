-- Format 7: transactions of a folder that is made again get other numbers than those of the former one.

ALTER TABLE meta ADD COLUMN transactions_from INTEGER NOT NULL DEFAULT 0; -- a transaction's number is its entry's lsn and this
