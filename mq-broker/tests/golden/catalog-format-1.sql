-- The catalog's database as brokers of format 1 left it: of `a`, and of `b`, which does not run any more.

CREATE TABLE IF NOT EXISTS catalog_versions (version integer PRIMARY KEY, taken_at timestamptz NOT NULL DEFAULT now());
INSERT INTO catalog_versions VALUES (1);

CREATE TABLE IF NOT EXISTS projected_brokers (
    broker       text        PRIMARY KEY,
    lsn          bigint      NOT NULL, -- last journal entry in this broker's rows; -1 = none yet
    term         bigint      NOT NULL, -- its term
    saved_ms     bigint      NOT NULL, -- its time
    projected_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS projected_topics (
    broker     text    NOT NULL,
    topic      text    NOT NULL,
    topic_id   bigint  NOT NULL,
    version    bigint  NOT NULL,
    durability text    NOT NULL,
    deleted    integer NOT NULL,
    queues     bigint  NOT NULL,
    authority  text,
    PRIMARY KEY (broker, topic)
);

CREATE TABLE IF NOT EXISTS projected_queues (
    broker       text   NOT NULL,
    queue_key    bigint NOT NULL,
    topic        text   NOT NULL,
    queue        bigint NOT NULL,
    start_offset bigint NOT NULL,
    end_offset   bigint NOT NULL,
    bytes        bigint NOT NULL,
    PRIMARY KEY (broker, queue_key)
);

CREATE INDEX IF NOT EXISTS projected_queues_topic ON projected_queues (topic, broker);

CREATE TABLE IF NOT EXISTS projected_groups (
    broker         text   NOT NULL,
    group_key      bigint NOT NULL,
    consumer_group text   NOT NULL,
    topic          text   NOT NULL,
    mode           text   NOT NULL,
    since_ms       bigint NOT NULL,
    PRIMARY KEY (broker, group_key)
);

CREATE TABLE IF NOT EXISTS projected_cursors (
    broker      text   NOT NULL,
    group_key   bigint NOT NULL,
    queue_key   bigint NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (broker, group_key, queue_key)
);

CREATE TABLE IF NOT EXISTS projected_transactions (
    broker         text   NOT NULL,
    number         bigint NOT NULL,
    parked_because text,
    producer_group text   NOT NULL,
    app_key        text,
    since_ms       bigint NOT NULL,
    asked          bigint NOT NULL,
    messages       bigint NOT NULL,
    PRIMARY KEY (broker, number)
);

CREATE OR REPLACE VIEW catalog_brokers AS
SELECT broker, lsn, term, saved_ms, projected_at FROM projected_brokers WHERE lsn >= 0;

CREATE OR REPLACE VIEW catalog_topics AS
SELECT t.broker, t.topic, t.topic_id, t.version, t.durability, t.deleted, t.queues,
       (SELECT count(*) FROM projected_queues q WHERE q.broker = t.broker AND q.topic = t.topic) AS queues_here,
       t.authority
FROM projected_topics t;

CREATE OR REPLACE VIEW catalog_queues AS
SELECT broker, topic, queue, start_offset, end_offset, end_offset - start_offset AS messages, bytes
FROM projected_queues;

CREATE OR REPLACE VIEW catalog_groups AS
SELECT g.broker, g.consumer_group, g.topic, g.mode, g.since_ms,
       coalesce((SELECT sum(q.end_offset - c.next_offset)
                 FROM projected_cursors c JOIN projected_queues q USING (broker, queue_key)
                 WHERE c.broker = g.broker AND c.group_key = g.group_key), 0)::bigint AS lag
FROM projected_groups g;

CREATE OR REPLACE VIEW catalog_cursors AS
SELECT c.broker, g.consumer_group, q.topic, q.queue, c.next_offset, q.end_offset, q.end_offset - c.next_offset AS lag
FROM projected_cursors c
JOIN projected_groups g USING (broker, group_key)
JOIN projected_queues q USING (broker, queue_key);

CREATE OR REPLACE VIEW catalog_transactions AS
SELECT t.broker, t.broker || ':' || t.number AS transaction_id,
       CASE WHEN t.parked_because IS NULL THEN 'open' ELSE 'parked' END AS state,
       t.parked_because, t.producer_group, t.app_key, t.since_ms, t.asked, t.messages
FROM projected_transactions t;

INSERT INTO projected_brokers VALUES ('a', 5, 1, 1000), ('b', 9, 1, 2000);
INSERT INTO projected_topics VALUES ('a', 'stale', 1, 1, 'memory', 0, 1, 'a'), ('b', 'kept', 7, 2, 'fsynced', 0, 1, 'b');
INSERT INTO projected_queues VALUES ('b', 0, 'kept', 0, 3, 8, 500);
INSERT INTO projected_groups VALUES ('b', 0, 'billing', 'kept', 'stream', 1500);
INSERT INTO projected_cursors VALUES ('b', 0, 0, 6);
INSERT INTO projected_transactions VALUES ('b', 4, NULL, 'producers', 'k', 1600, 2, 3);
