//! Registries for rpc-core: local, embedded and etcd.
