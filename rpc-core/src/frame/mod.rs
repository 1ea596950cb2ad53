//! The frame: hc-rpc's frame format, byte for byte, and our additions. docs/wire.md is its specification.
//!
//! Pure: no clock, task, socket or file. A frame carries an envelope, which is opaque bytes here (`envelope/`
//! knows its content), and perhaps an attachment. The one invariant: nothing is allocated by a length before
//! that length was checked.

mod decode;
mod encode;
mod header;
mod hello;
mod window;

pub use decode::{Body, BodyError, Decoder, Frame, FrameError, split_body, unpacked_bytes};
pub use encode::{Draft, cancel, go_away, hello, ping, pong, window};
pub use header::{FIXED_BYTES, HEARTBEAT_ID, HEARTBEAT_NAME, Kind, MAGIC, Name, Status, VERSION};
pub use hello::{Hello, HelloError};
pub use window::Window;

#[cfg(test)]
mod tests;
