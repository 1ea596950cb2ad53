//! Every serializer over TCP: chosen for an invoker, for one client of it, and answered in the request's own.

use std::collections::BTreeMap;

use bytes::Bytes;
use rpc_core::serialize::SerializerRef;
use rpc_core::{CallError, Code, Executed, Invoker, Provider};
use serde::{Deserialize, Serialize};

use crate::raw::{Raw, request, response};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    lines: BTreeMap<String, i32>,
    note: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum ShopError {
    Closed { until: String },
}

#[rpc_core::service(name = "test.Shop")]
trait Shop {
    async fn place(&self, order: Order, express: bool) -> Result<Order, ShopError>;
    async fn bytes(&self, bytes: Bytes) -> Result<Bytes, ShopError>;
    async fn nothing(&self);
}

struct Open;

impl Shop for Open {
    async fn place(&self, order: Order, express: bool) -> Result<Order, ShopError> {
        if express {
            let until = "monday".to_owned();
            return Err(ShopError::Closed { until });
        }
        Ok(order)
    }

    async fn bytes(&self, bytes: Bytes) -> Result<Bytes, ShopError> {
        if bytes == "closed?" {
            let until = "monday".to_owned();
            return Err(ShopError::Closed { until });
        }
        Ok(bytes)
    }

    async fn nothing(&self) {}
}

fn order() -> Order {
    Order {
        id: u64::MAX,
        lines: BTreeMap::from([("tea".to_owned(), -3)]),
        note: None,
    }
}

fn closed() -> CallError<ShopError> {
    let until = "monday".to_owned();
    CallError::App(ShopError::Closed { until })
}

async fn provider() -> Provider {
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .serve(ShopServer::new(Open));
    provider.start().await.unwrap()
}

async fn invoker(provider: &Provider, serializer: &str) -> Invoker {
    let invoker = Invoker::builder().direct([provider.local_addr()]);
    invoker.serializer(serializer).build().await.unwrap()
}

#[tokio::test]
async fn values_and_typed_errors_cross_in_every_serializer() {
    let provider = provider().await;
    for serializer in ["msgpack", "msgpack-named", "json"] {
        let invoker = invoker(&provider, serializer).await;
        let shop = ShopClient::refer(&invoker);
        assert_eq!(shop.place(order(), false).await, Ok(order()), "{serializer}");
        assert_eq!(shop.place(order(), true).await, Err(closed()), "{serializer}");
        assert_eq!(shop.nothing().await, Ok(()), "{serializer}");
        let bytes = Bytes::from_static(&[0, 0xff]);
        assert_eq!(shop.bytes(bytes.clone()).await, Ok(bytes), "{serializer}");
    }
}

#[tokio::test]
async fn one_client_of_an_invoker_may_have_another_serializer() {
    let provider = provider().await;
    let invoker = invoker(&provider, "msgpack").await;
    let shop = ShopClient::refer(&invoker);
    let raw = shop.clone().serializer(SerializerRef::named("raw").unwrap());
    let json = shop.clone().serializer(SerializerRef::Json);
    let bytes = Bytes::from_static(b"\xc1 is no msgpack");
    assert_eq!(raw.bytes(bytes.clone()).await, Ok(bytes));
    assert_eq!(json.place(order(), true).await, Err(closed()));
    assert_eq!(shop.place(order(), false).await, Ok(order()));
    assert_eq!(raw.nothing().await, Ok(()));
    let local = ShopClient::local(Open).serializer(SerializerRef::named("msgpack-named").unwrap());
    assert_eq!(local.place(order(), true).await, Err(closed()));
}

#[tokio::test]
async fn raw_carries_bytes_and_refuses_the_rest_before_it_is_sent() {
    let provider = provider().await;
    let invoker = invoker(&provider, "raw").await;
    let shop = ShopClient::refer(&invoker);
    for bytes in [Bytes::new(), Bytes::from(vec![0x93; 100_000])] {
        assert_eq!(shop.bytes(bytes.clone()).await, Ok(bytes));
    }
    let CallError::Rpc(refused) = shop.place(order(), false).await.unwrap_err() else {
        panic!("it went through");
    };
    assert_eq!((refused.code, refused.executed), (Code::BadRequest, Executed::No));
    assert!(refused.message.contains("2 values"), "{refused}");
    // A typed error that cannot be bytes arrives in words.
    let CallError::Rpc(failed) = shop.bytes(Bytes::from_static(b"closed?")).await.unwrap_err() else {
        panic!("it was typed");
    };
    assert_eq!((failed.code, failed.executed), (Code::App, Executed::Yes));
    assert!(failed.message.contains("monday"), "{failed}");
}

#[tokio::test]
async fn raw_params_and_result_are_one_bin_each() {
    let provider = provider().await;
    let mut peer = Raw::connect(provider.local_addr()).await;
    let mut frame = request(7, "bytes", b"\xc4\x02hi", None);
    // The helper calls `test.Wire` in msgpack: another service of as many letters, another serializer.
    let wire = frame.windows(9).position(|text| text == b"test.Wire").unwrap();
    frame[wire..wire + 9].copy_from_slice(b"test.Shop");
    let head = [&frame[..13], &[0, 0, 0, 3], b"raw", &frame[24..]].concat();
    peer.send(&head).await;
    let answer = peer.next().await.unwrap();
    let expected = response(7, answer.status, "raw", b"\x93\xc4\x02hi\xc0\xc0");
    assert_eq!(answer.body, expected[24..]);
    assert_eq!(answer.name.as_str(), "raw");
}
