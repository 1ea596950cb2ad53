//! Two versions of one trait, in both directions: what a service may become without its callers noticing.

use rpc_core::{CallError, Code, Executed, Invoker, Provider};
use serde::{Deserialize, Serialize};

/// The old version.
mod old {
    use super::{Deserialize, Serialize};

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub(super) struct Person {
        pub(super) name: String,
    }

    #[rpc_core::service(name = "test.Register")]
    pub(super) trait Register {
        async fn count(&self) -> u32;
        async fn gone(&self) -> u32;
        async fn oldest(&self, than: Person) -> Person;
    }
}

/// The new version: a method before all others, one removed, an additional field.
mod new {
    use super::{Deserialize, Serialize};

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub(super) struct Person {
        #[serde(default)]
        pub(super) title: Option<String>,
        pub(super) name: String,
    }

    #[rpc_core::service(name = "test.Register")]
    pub(super) trait Register {
        async fn added(&self, name: String) -> String;
        async fn oldest(&self, than: Person) -> Person;
        async fn count(&self) -> u32;
    }
}

struct Old;

impl old::Register for Old {
    async fn count(&self) -> u32 {
        1
    }
    async fn gone(&self) -> u32 {
        2
    }
    async fn oldest(&self, than: old::Person) -> old::Person {
        than
    }
}

struct New;

impl new::Register for New {
    async fn added(&self, name: String) -> String {
        name
    }
    async fn oldest(&self, than: new::Person) -> new::Person {
        new::Person {
            title: Some("Dr.".to_owned()),
            ..than
        }
    }
    async fn count(&self) -> u32 {
        3
    }
}

async fn invoker(provider: &Provider, serializer: &str) -> Invoker {
    let builder = Invoker::builder().direct([provider.local_addr()]);
    builder.serializer(serializer).build().await.unwrap()
}

fn unknown<T: std::fmt::Debug>(outcome: Result<T, CallError>) {
    match outcome {
        Err(CallError::Rpc(error)) => {
            assert_eq!(
                (error.code, error.executed),
                (Code::NotFound, Executed::No),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn traits_of_two_versions_understand_each_other() {
    let ann = old::Person {
        name: "Ann".to_owned(),
    };
    let before = Provider::builder().serve(old::RegisterServer::new(Old));
    let before = before.start().await.unwrap();
    let after = Provider::builder().serve(new::RegisterServer::new(New));
    let after = after.start().await.unwrap();
    for serializer in ["msgpack", "msgpack-named", "json"] {
        let caller = old::RegisterClient::refer(&invoker(&after, serializer).await);
        assert_eq!(caller.count().await, Ok(3), "methods go by name, not by place");
        unknown(caller.gone().await);
        let caller = new::RegisterClient::refer(&invoker(&before, serializer).await);
        assert_eq!(caller.count().await, Ok(1));
        unknown(caller.added("x".to_owned()).await);
    }
    // Fields too, where they have names.
    for serializer in ["msgpack-named", "json"] {
        let caller = old::RegisterClient::refer(&invoker(&after, serializer).await);
        assert_eq!(caller.oldest(ann.clone()).await, Ok(ann.clone()), "{serializer}");
        let caller = new::RegisterClient::refer(&invoker(&before, serializer).await);
        let titled = new::Person {
            title: Some("Dr.".to_owned()),
            name: "Ann".to_owned(),
        };
        let untitled = new::Person {
            title: None,
            ..titled.clone()
        };
        assert_eq!(caller.oldest(titled).await, Ok(untitled), "{serializer}");
    }
}
