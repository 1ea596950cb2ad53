//! Values that several unit tests need.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::message::{Attachment, Meta, Method, Request, Route};
use crate::serialize::SerializerRef;

/// A method like the macro describes it.
pub(crate) static GREET: Method = Method {
    name: "greet",
    idempotent: false,
    blocking: false,
    parameter_types: &["java.lang.String", "int"],
    result_type: "java.lang.String",
};

/// A method that may be repeated.
pub(crate) static COUNT: Method = Method {
    name: "count",
    idempotent: true,
    blocking: false,
    parameter_types: &[],
    result_type: "java.lang.Long",
};

/// A request of `greet` with the parameters `("ann", 7)`, in msgpack.
pub(crate) fn request() -> Request {
    Request {
        route: Arc::new(Route::new("hc.Greeter")),
        method: &GREET,
        serializer: SerializerRef::Msgpack,
        params: Bytes::from_static(b"\x92\xa3ann\x07"),
        attachment: Attachment::new(),
        meta: Meta::default(),
        deadline: now() + Duration::from_secs(1),
        oneway: false,
        hash_key: None,
        peer: None,
        cancelled: None,
    }
}

fn now() -> Instant {
    crate::call::now()
}
