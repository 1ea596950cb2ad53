//! Per-call handling of failures: fault tolerance other than the invoker's, and a value instead of the error
//! (hc-rpc's "degradation", Dubbo's mock, Kitex's fallback).

use std::sync::Arc;

use crate::call::{Call, Decode};
use crate::dispatch::Answer;
use crate::error::{CallError, RpcError};
use crate::fault::{Failfast, Failover, FaultTolerance};
use crate::serialize::SerializerRef;

/// Maps an error to the value returned instead, if there is one.
pub(crate) type Fallback<T, E> = Arc<dyn Fn(&CallError<E>) -> Option<T> + Send + Sync>;

/// How one call handles its failure.
pub(crate) struct Recovery<T, E> {
    pub(crate) fault_tolerance: Option<Arc<dyn FaultTolerance>>,
    pub(crate) fallback: Option<Fallback<T, E>>,
}

impl<T, E> Default for Recovery<T, E> {
    fn default() -> Self {
        Self {
            fault_tolerance: None,
            fallback: None,
        }
    }
}

impl<T, E> Clone for Recovery<T, E> {
    fn clone(&self) -> Self {
        Self {
            fault_tolerance: self.fault_tolerance.clone(),
            fallback: self.fallback.clone(),
        }
    }
}

impl<T, E> Call<T, E> {
    /// Retries this call up to `times` times, as [`Failover`] does, whatever the invoker's fault tolerance
    /// is. A call that may have been executed is repeated only if the method is idempotent; the call's time
    /// and the retry budget limit it as usual. Calls within the process are not repeated.
    ///
    /// ```
    /// # use rpc_core::{Invoker, Provider};
    /// # #[rpc_core::service(name = "doc.Shop")]
    /// # pub trait Shop {
    /// #     async fn price(&self, item: String) -> u32;
    /// # }
    /// # struct Kiosk;
    /// # impl Shop for Kiosk {
    /// #     async fn price(&self, _item: String) -> u32 {
    /// #         7
    /// #     }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let provider = Provider::builder().listen("127.0.0.1:0").serve(ShopServer::new(Kiosk)).start().await?;
    /// // Nothing listens at the first address.
    /// let invoker = Invoker::builder().direct(["127.0.0.1:1", provider.local_addr()]).build().await?;
    /// let shop = ShopClient::refer(&invoker);
    /// for _ in 0..3 {
    ///     assert_eq!(shop.price("tea".to_owned()).retry(2).await?, 7);
    /// }
    /// # invoker.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub fn retry(self, times: u32) -> Self {
        self.fault_tolerance(Arc::new(Failover::new(times)))
    }

    /// Returns this call's first failure to the caller, whatever the invoker's fault tolerance is.
    pub fn no_retry(self) -> Self {
        self.fault_tolerance(Arc::new(Failfast))
    }

    /// Uses this strategy for this call instead of the invoker's.
    ///
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use rpc_core::Invoker;
    /// use rpc_core::fault::Hedging;
    /// # #[rpc_core::service(name = "doc.Shop")]
    /// # pub trait Shop {
    /// #     #[rpc(idempotent)]
    /// #     async fn price(&self, item: String) -> u32;
    /// # }
    /// # async fn ask(invoker: &Invoker) -> Result<u32, rpc_core::CallError> {
    /// // Kept and reused, so that it is built once.
    /// let hedging = Arc::new(Hedging::after(Duration::from_millis(20)));
    /// let shop = ShopClient::refer(invoker);
    /// shop.price("tea".to_owned()).fault_tolerance(hedging.clone()).await
    /// # }
    /// ```
    pub fn fault_tolerance(mut self, strategy: Arc<dyn FaultTolerance>) -> Self {
        self.recovery.fault_tolerance = Some(strategy);
        self
    }

    /// Returns this value to the caller instead of an error of the framework, after all attempts. A method's
    /// own error is an answer and is not replaced. Applies to every form with a result: awaited, future,
    /// callback, and for each instance of a broadcast.
    ///
    /// ```
    /// # use rpc_core::Invoker;
    /// # #[rpc_core::service(name = "doc.Shop")]
    /// # pub trait Shop {
    /// #     async fn price(&self, item: String) -> u32;
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Nothing listens there.
    /// let invoker = Invoker::builder().direct(["127.0.0.1:1"]).build().await?;
    /// let shop = ShopClient::refer(&invoker);
    /// assert_eq!(shop.price("tea".to_owned()).fallback(5).await?, 5);
    /// # invoker.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub fn fallback(self, value: T) -> Self
    where
        T: Clone + Send + Sync + 'static,
    {
        self.fallback_with(move |_| value.clone())
    }

    /// Like [`Call::fallback`], with a value computed from the error.
    ///
    /// ```
    /// # use rpc_core::{Code, Invoker};
    /// # #[rpc_core::service(name = "doc.Shop")]
    /// # pub trait Shop {
    /// #     async fn price(&self, item: String) -> u32;
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let invoker = Invoker::builder().direct(["127.0.0.1:1"]).build().await?;
    /// # let shop = ShopClient::refer(&invoker);
    /// let usual = |error: &rpc_core::RpcError| if error.code == Code::Overloaded { 9 } else { 5 };
    /// assert_eq!(shop.price("tea".to_owned()).fallback_with(usual).await?, 5);
    /// # invoker.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub fn fallback_with(self, value: impl Fn(&RpcError) -> T + Send + Sync + 'static) -> Self {
        self.fallback_for(move |error| error.rpc().map(&value))
    }

    /// Like [`Call::fallback_with`], but also for the method's own error; `None` leaves the error as it is.
    ///
    /// ```
    /// # use rpc_core::CallError;
    /// # #[rpc_core::service(name = "doc.Shop")]
    /// # pub trait Shop {
    /// #     async fn price(&self, item: String) -> Result<u32, String>;
    /// # }
    /// # struct Empty;
    /// # impl Shop for Empty {
    /// #     async fn price(&self, item: String) -> Result<u32, String> {
    /// #         Err(format!("no {item}"))
    /// #     }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), CallError<String>> {
    /// let shop = ShopClient::local(Empty);
    /// let nothing = |error: &CallError<String>| matches!(error, CallError::App(_)).then_some(0);
    /// assert_eq!(shop.price("tea".to_owned()).fallback_for(nothing).await?, 0);
    /// # Ok(()) }
    /// ```
    pub fn fallback_for(
        mut self,
        value: impl Fn(&CallError<E>) -> Option<T> + Send + Sync + 'static,
    ) -> Self {
        self.recovery.fallback = Some(Arc::new(value));
        self
    }
}

/// The outcome that the caller gets.
pub(crate) fn outcome<T, E>(
    (decode, fallback): (Decode<T, E>, Option<&Fallback<T, E>>),
    serializer: &SerializerRef,
    mut answer: Answer,
) -> Result<T, CallError<E>> {
    let Some(fallback) = fallback else {
        return decode(serializer, answer);
    };
    if let Err(error) = &mut answer {
        // The caller's own value takes precedence over the empty one.
        error.ignored = false;
    }
    decode(serializer, answer).or_else(|error| match fallback(&error) {
        Some(value) => {
            if let CallError::Rpc(error) = &error {
                tracing::warn!(%error, "call failed; its fallback is used");
            }
            Ok(value)
        }
        None => Err(error),
    })
}
