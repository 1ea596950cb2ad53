//! A stranger's crate that adds a serializer and a load balancer by name.
