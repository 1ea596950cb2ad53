//! The hc-mq client: producer, consumer, transactions, and the mq command line tool.
