//! Calls without the service's trait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rpc_core::generic::Value;
use rpc_core::serialize::SerializerRef;
use rpc_core::{CallError, Code, Executed, Invoker, Provider, RpcError, Stream};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    id: u64,
    note: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
enum ShopError {
    Unknown { id: u64 },
}

#[rpc_core::service(name = "test.Shop")]
trait Shop {
    async fn echo(&self, order: Order, times: u32) -> Result<Order, ShopError>;
    async fn nothing(&self);
    async fn shapes(
        &self,
    ) -> (
        bool,
        f64,
        i64,
        Option<u8>,
        BTreeMap<u32, String>,
        serde_bytes::ByteBuf,
    );
    async fn overloaded(&self) -> Result<(), CallError<ShopError>>;
    async fn orders(&self, end: u64) -> impl Stream<Item = Result<Order, ShopError>>;
    async fn number(&self, number: u64) -> u64;
}

struct Counter;

impl Shop for Counter {
    async fn echo(&self, order: Order, times: u32) -> Result<Order, ShopError> {
        match times {
            0 => Err(ShopError::Unknown { id: order.id }),
            _ => Ok(order),
        }
    }

    async fn nothing(&self) {}

    async fn shapes(
        &self,
    ) -> (
        bool,
        f64,
        i64,
        Option<u8>,
        BTreeMap<u32, String>,
        serde_bytes::ByteBuf,
    ) {
        let map = BTreeMap::from([(7, "seven".to_owned())]);
        (true, 1.5, -3, None, map, serde_bytes::ByteBuf::from([1, 2]))
    }

    async fn overloaded(&self) -> Result<(), CallError<ShopError>> {
        Err(CallError::Rpc(RpcError::new(
            Code::Overloaded,
            Executed::No,
            "busy",
        )))
    }

    async fn orders(&self, end: u64) -> impl Stream<Item = Result<Order, ShopError>> {
        tokio_stream::iter((0..=end).map(move |id| match id == end {
            false => Ok(Order { id, note: None }),
            true => Err(ShopError::Unknown { id }),
        }))
    }

    async fn number(&self, number: u64) -> u64 {
        number
    }
}

async fn start(serializer: &str) -> (Provider, Invoker) {
    let provider = Provider::builder()
        .serve(ShopServer::new(Counter).version("2.0").group("blue"))
        .start()
        .await
        .unwrap();
    let invoker = Invoker::builder()
        .direct([provider.local_addr()])
        .serializer(serializer)
        .timeout(Duration::from_secs(10))
        .build()
        .await
        .unwrap();
    (provider, invoker)
}

#[tokio::test]
async fn values_and_typed_errors_are_values_in_both_serializers() {
    for serializer in ["msgpack", "json"] {
        let (_provider, invoker) = start(serializer).await;
        let shop = invoker.generic("test.Shop").version("2.0").group("blue");
        let order = json!({"id": 5, "note": "fast"});
        let back = shop.call("echo", &(&order, 1)).await.unwrap();
        let wanted = match serializer {
            // A struct is a list of its fields there.
            "msgpack" => json!([5, "fast"]),
            _ => order.clone(),
        };
        assert_eq!(back, wanted, "{serializer}");
        let typed: Order = shop.call_as("echo", &json!([order, 1])).await.unwrap();
        assert_eq!((typed.id, typed.note.as_deref()), (5, Some("fast")));
        let error = shop.call("echo", &(&order, 0)).await.unwrap_err();
        let CallError::App(error) = error else {
            panic!("{error:?}")
        };
        assert!(error.message.contains("Unknown"), "{error}");
        assert_eq!(
            error.details["Unknown"]
                .get(0)
                .or(error.details["Unknown"].get("id")),
            Some(&json!(5))
        );
        assert_eq!(
            shop.call("nothing", &[(); 0]).await,
            Ok(Value::Null),
            "{serializer}"
        );
        let shapes = shop.call("shapes", &[(); 0]).await.unwrap();
        assert_eq!(
            shapes,
            json!([true, 1.5, -3, null, {"7": "seven"}, [1, 2]]),
            "{serializer}"
        );
    }
}

#[tokio::test]
async fn failures_of_the_framework_are_those_of_any_call() {
    let (_provider, invoker) = start("msgpack").await;
    let shop = invoker.generic("test.Shop").version("2.0").group("blue");
    for (call, code, executed) in [
        (shop.call("overloaded", &[(); 0]), Code::Overloaded, Executed::No),
        (shop.call("missing", &[(); 0]), Code::NotFound, Executed::No),
        (shop.call("echo", &[1, 2]), Code::BadRequest, Executed::No),
        (shop.call("number", &5), Code::BadRequest, Executed::No),
        (
            shop.call("number", &json!({"number": 5})),
            Code::BadRequest,
            Executed::No,
        ),
        (
            invoker.generic("test.Shop").call("number", &[5]),
            Code::NotFound,
            Executed::No,
        ),
    ] {
        let error = call.await.unwrap_err();
        let error = error.rpc().unwrap();
        assert_eq!((error.code, error.executed), (code, executed), "{error}");
    }
    let json = shop.clone().serializer(SerializerRef::Json);
    let error = json.call("number", &5).await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code, Code::BadRequest);
    assert_eq!(json.call("number", &[5]).await, Ok(json!(5)));
}

#[tokio::test]
async fn streams_are_values_too() {
    for serializer in ["msgpack", "json"] {
        let (_provider, invoker) = start(serializer).await;
        let shop = invoker.generic("test.Shop").version("2.0").group("blue");
        let mut orders = shop.stream("orders", &[1]).stream();
        assert!(orders.next().await.unwrap().is_ok());
        let Some(Err(CallError::App(error))) = orders.next().await else {
            panic!("the typed error")
        };
        assert!(error.message.contains("Unknown"), "{error}");
        assert!(orders.next().await.is_none());
    }
}

#[tokio::test]
async fn method_named_at_run_time_goes_with_its_call() {
    let (_provider, invoker) = start("msgpack").await;
    let shop = invoker.generic("test.Shop").version("2.0").group("blue");
    let name: Arc<str> = Arc::from("number");
    for number in 0..1000 {
        assert_eq!(shop.call(&*name, &[number]).await, Ok(Value::from(number)));
    }
    // Every form of a call is there.
    shop.call("nothing", &[(); 0]).oneway().await.unwrap();
    assert_eq!(shop.call("number", &[7]).future().await, Ok(json!(7)));
    let all = shop.call("number", &[7]).broadcast().await.unwrap();
    assert_eq!(all.len(), 1);
}
