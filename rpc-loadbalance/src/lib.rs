//! Load balancers for rpc-core: random, round robin, consistent hash.
