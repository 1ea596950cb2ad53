//! Keeps the protoc build-dependencies alive; there is nothing to generate here.
fn main() {}
