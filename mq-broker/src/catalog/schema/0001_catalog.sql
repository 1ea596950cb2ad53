-- Format 1 of the catalog in PostgreSQL. The tables are the brokers' own and may change with every version; the views for
-- management are in views.sql. Every row belongs to one broker, which alone writes it. Each step can be run again over what
-- it made: that is how a table that somebody dropped comes back.

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
