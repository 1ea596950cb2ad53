//! The service that the echo benches call, the same for their server and their clients.

use std::time::Duration;

use bytes::Bytes;
use rpc_core::Attachment;

/// Returns its argument.
#[rpc_core::service(name = "bench.Echo")]
pub trait Echo {
    /// Bytes as a parameter, through the serializer.
    #[rpc(idempotent)]
    async fn echo(&self, payload: Bytes) -> Bytes;
    /// The same, some milliseconds later.
    #[rpc(idempotent)]
    async fn echo_after(&self, milliseconds: u64, payload: Bytes) -> Bytes;
    /// Bytes next to the parameters, which no serializer touches.
    #[rpc(idempotent)]
    async fn echo_attachment(&self, payload: Attachment) -> ((), Attachment);
}

/// The server's side.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl Echo for Plain {
    async fn echo(&self, payload: Bytes) -> Bytes {
        payload
    }

    async fn echo_after(&self, milliseconds: u64, payload: Bytes) -> Bytes {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        payload
    }

    async fn echo_attachment(&self, payload: Attachment) -> ((), Attachment) {
        ((), payload)
    }
}
