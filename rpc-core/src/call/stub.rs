//! The building block of generated clients.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Call, Decode};
use crate::dispatch::{Dispatch, Target};
use crate::error::{CallError, Code, Executed, RpcError};
use crate::invoker::Invoker;
use crate::message::{Attachment, Meta, MethodRef, Route, Served};
use crate::recovery::Recovery;
use crate::serialize::{self, SerializerRef};
use crate::service::{self, Local};
use crate::stream::{Item, StreamCall};

/// The contents of a generated client.
#[derive(Debug, Clone)]
pub struct Stub {
    dispatch: Arc<dyn Dispatch>,
    route: Arc<Route>,
    serializer: SerializerRef,
}

impl Stub {
    /// A stub that calls through `invoker`.
    #[must_use]
    pub fn refer(invoker: &Invoker, service: &str) -> Self {
        Self::new(invoker.dispatch(), Arc::new(Route::new(service)))
    }

    /// A stub that calls a service in this process.
    #[must_use]
    pub fn local(served: Served) -> Self {
        Self::new(Arc::new(Local::new(served.service)), served.route)
    }

    fn new(dispatch: Arc<dyn Dispatch>, route: Arc<Route>) -> Self {
        Self {
            serializer: dispatch.serializer().clone(),
            dispatch,
            route,
        }
    }

    /// The same for another version.
    #[must_use]
    pub fn version(mut self, version: String) -> Self {
        Arc::make_mut(&mut self.route).version = version;
        self
    }

    /// The same for another group.
    #[must_use]
    pub fn group(mut self, group: String) -> Self {
        Arc::make_mut(&mut self.route).group = group;
        self
    }

    /// The same with another serializer than the invoker's.
    #[must_use]
    pub fn serializer(mut self, serializer: SerializerRef) -> Self {
        self.serializer = serializer;
        self
    }

    /// A call of a `method` that returns a stream.
    pub fn stream<P: Serialize, T, E: DeserializeOwned>(
        &self,
        method: impl Into<MethodRef>,
        params: &P,
        attachment: Attachment,
        decode: fn(&SerializerRef, Item) -> Result<T, CallError<E>>,
    ) -> StreamCall<T, E> {
        let end = service::decode_value::<(), E>;
        StreamCall::new(self.call(method, params, attachment, end), decode)
    }

    /// A call of `method` with `params`, which are encoded right away.
    pub fn call<P: Serialize, T, E>(
        &self,
        method: impl Into<MethodRef>,
        params: &P,
        attachment: Attachment,
        decode: Decode<T, E>,
    ) -> Call<T, E> {
        let method = method.into();
        let params = serialize::to_bytes(&self.serializer, params).map_err(|error| {
            let message = format!("the parameters of `{}` cannot be encoded: {error}", method.name);
            RpcError::new(Code::BadRequest, Executed::No, message)
        });
        Call {
            dispatch: Arc::clone(&self.dispatch),
            route: Arc::clone(&self.route),
            serializer: self.serializer.clone(),
            method,
            params,
            attachment,
            meta: Meta::default(),
            timeout: None,
            hash_key: None,
            target: Target::Any,
            recovery: Recovery::default(),
            decode,
        }
    }
}
