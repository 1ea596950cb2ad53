//! The chain of filters, walked by slice: a call without filters pays nothing.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::{Filter, Next, Side};
use crate::BoxFuture;
use crate::dispatch::Answer;
use crate::error::{Code, Executed, RpcError};
use crate::message::Request;

/// Runs a request through `filters` and finally through `last`.
pub(crate) async fn through(
    filters: &[Arc<dyn Filter>],
    side: Side,
    request: Request,
    last: &dyn Next,
) -> Answer {
    let chain = Chain { filters, side, last };
    let caught = Caught {
        future: chain.run(request),
    };
    caught.await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(?side, panic = text.unwrap_or("(no text)"), "filter panicked");
        Err(RpcError::new(
            Code::Internal,
            Executed::Maybe,
            "a filter panicked; the log says more",
        ))
    })
}

/// The rest of the filters.
struct Chain<'c> {
    filters: &'c [Arc<dyn Filter>],
    side: Side,
    last: &'c dyn Next,
}

impl Next for Chain<'_> {
    fn run<'a>(&'a self, request: Request) -> BoxFuture<'a, Answer> {
        let Some((filter, rest)) = self.filters.split_first() else {
            return self.last.run(request);
        };
        Box::pin(async move {
            let next = Chain {
                filters: rest,
                side: self.side,
                last: self.last,
            };
            filter.call(self.side, request, &next).await
        })
    }
}

pin_project! {
    /// A future that returns a panic as a value.
    struct Caught<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, Box<dyn Any + Send>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.project().future;
        // After a panic the future is only dropped.
        match catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;

    use super::*;
    use crate::message::{Outcome, Response};
    use crate::testing::request;

    /// Records its name on the way in and out.
    #[derive(Debug)]
    struct Noting(&'static str, Arc<Mutex<Vec<String>>>);

    impl Filter for Noting {
        fn call<'a>(&'a self, side: Side, request: Request, next: &'a dyn Next) -> BoxFuture<'a, Answer> {
            Box::pin(async move {
                self.1.lock().unwrap().push(format!("{side:?} {} in", self.0));
                let answer = next.run(request).await;
                self.1.lock().unwrap().push(format!("{} out", self.0));
                answer
            })
        }
    }

    #[derive(Debug)]
    struct Refusing;

    impl Filter for Refusing {
        fn call<'a>(&'a self, _: Side, request: Request, _: &'a dyn Next) -> BoxFuture<'a, Answer> {
            assert!(request.meta.value("panic").is_none(), "on purpose");
            let error = RpcError::new(Code::Forbidden, Executed::No, "not you");
            Box::pin(std::future::ready(Err(error)))
        }
    }

    struct Last;

    impl Next for Last {
        fn run<'a>(&'a self, request: Request) -> BoxFuture<'a, Answer> {
            let mut response = Response::empty();
            response.outcome = Outcome::Ok(request.params);
            Box::pin(std::future::ready(Ok(response)))
        }
    }

    #[tokio::test]
    async fn first_filter_is_the_outermost() {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let filters: Vec<Arc<dyn Filter>> = vec![
            Arc::new(Noting("a", Arc::clone(&notes))),
            Arc::new(Noting("b", Arc::clone(&notes))),
        ];
        let answer = through(&filters, Side::Invoker, request(), &Last).await;
        assert!(matches!(answer.unwrap().outcome, Outcome::Ok(Bytes { .. })));
        assert_eq!(
            *notes.lock().unwrap(),
            ["Invoker a in", "Invoker b in", "b out", "a out"]
        );
    }

    #[tokio::test]
    async fn filter_may_answer_in_place_of_the_handler_and_its_panic_is_caught() {
        let filters: Vec<Arc<dyn Filter>> = vec![Arc::new(Refusing)];
        let error = through(&filters, Side::Provider, request(), &Last)
            .await
            .unwrap_err();
        assert_eq!(error.code, Code::Forbidden);
        let mut request = request();
        request.meta.0.push(("panic".to_owned(), "yes".to_owned()));
        let error = through(&filters, Side::Provider, request, &Last)
            .await
            .unwrap_err();
        assert_eq!(error.code, Code::Internal);
    }
}
