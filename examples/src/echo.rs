//! The service that the echo bench calls, the same for its server and its client.

use bytes::Bytes;
use rpc_core::Attachment;

/// Gives back what it gets.
#[rpc_core::service(name = "bench.Echo")]
pub trait Echo {
    /// Bytes as a parameter, through the serializer.
    #[rpc(idempotent)]
    async fn echo(&self, payload: Bytes) -> Bytes;
    /// Bytes beside the parameters, which no serializer touches.
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

    async fn echo_attachment(&self, payload: Attachment) -> ((), Attachment) {
        ((), payload)
    }
}
