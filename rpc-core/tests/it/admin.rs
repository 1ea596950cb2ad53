//! The reports of a provider about itself.

use std::sync::Arc;
use std::time::Duration;

use rpc_core::provider::admin::{self, AdminClient, MethodReport};
use rpc_core::registry::{Instance, InstanceId, Registry, RegistryError, ServiceKey, Snapshot};
use rpc_core::{CallError, Code, Invoker, Provider};

use crate::net::{self, Handlers, Watch, WireServer, value};

fn method<'a>(services: &'a [admin::ServiceReport], service: &str, method: &str) -> &'a MethodReport {
    let service = services.iter().find(|report| report.name == service).unwrap();
    service
        .methods
        .iter()
        .find(|report| report.name == method)
        .unwrap()
}

#[tokio::test]
async fn every_provider_tells_its_services_and_what_became_of_their_calls() {
    let (provider, watch, invoker, client) = net::pair().await;
    let admin = AdminClient::refer(&invoker);
    client.echo("x".into()).await.unwrap();
    client.echo("y".into()).await.unwrap();
    assert!(client.fail("z".into()).await.is_err());
    assert!(client.panic().await.is_err());
    let waiting = client.wait().future();
    watch.until(|watch| value(&watch.started) == 1).await;
    let services = admin.services().await.unwrap();
    let names: Vec<(&str, &str, &str)> = services
        .iter()
        .map(|service| (&*service.name, &*service.version, &*service.group))
        .collect();
    assert_eq!(
        names,
        [("test.Wire", "1.0", "default"), ("_admin", "1.0", "default")]
    );
    let echo = method(&services, "test.Wire", "echo");
    assert_eq!(
        (echo.calls, echo.in_flight, echo.app_errors, echo.failures),
        (2, 0, 0, 0)
    );
    assert_eq!(method(&services, "test.Wire", "fail").app_errors, 1);
    assert_eq!(method(&services, "test.Wire", "panic").failures, 1);
    let wait = method(&services, "test.Wire", "wait");
    assert_eq!((wait.calls, wait.in_flight), (1, 1));
    assert!(method(&services, "test.Wire", "block").blocking);
    assert!(method(&services, "_admin", "overview").idempotent);
    let overview = admin.overview().await.unwrap();
    assert_eq!(overview.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(overview.address, provider.local_addr());
    assert_eq!(
        (overview.in_flight, overview.connections, overview.draining),
        (2, 1, false)
    );
    assert_eq!(overview.limits.idle_timeout_ms, 60_000);
    watch.gate.add_permits(1);
    waiting.await.unwrap();
}

#[tokio::test]
async fn connections_and_plug_ins_are_listed() {
    let (provider, watch, invoker, client) = net::pair().await;
    let other = net::invoker(provider.local_addr()).await;
    let waiting = client.wait().future();
    watch.until(|watch| value(&watch.started) == 1).await;
    let admin = AdminClient::refer(&other);
    let connections = admin.connections().await.unwrap();
    let [first, second] = &connections[..] else {
        panic!("{connections:?}")
    };
    assert_eq!((first.calls, first.in_flight, first.greeted), (1, 1, true));
    assert_eq!((second.calls, second.in_flight, second.greeted), (1, 1, true));
    assert!(first.peer.starts_with("127.0.0.1:") && first.peer != second.peer);
    let plugins = admin.plugins().await.unwrap();
    assert!(
        plugins
            .iter()
            .any(|plugin| plugin.kind == "filter" && plugin.name == "access_log")
    );
    watch.gate.add_permits(1);
    waiting.await.unwrap();
    invoker.shutdown().await;
    while provider.insight().connections().len() > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(admin.connections().await.unwrap().len(), 1);
}

#[tokio::test]
async fn slow_and_refused_calls_show() {
    let watch = Watch::default();
    let provider = Provider::builder()
        .serve(WireServer::new(Handlers(watch.clone())))
        .limit_method("test.Wire", "wait", 1)
        .name("alpha")
        .start()
        .await
        .unwrap();
    let invoker = net::invoker(provider.local_addr()).await;
    let (client, admin) = (net::WireClient::refer(&invoker), AdminClient::refer(&invoker));
    let waiting = client.wait().future();
    watch.until(|watch| value(&watch.started) == 1).await;
    assert!(client.wait().await.is_err());
    let services = admin.services().await.unwrap();
    let wait = method(&services, "test.Wire", "wait");
    assert_eq!(
        (wait.in_flight_max, wait.in_flight, wait.refused, wait.calls),
        (1, 1, 1, 1)
    );
    assert!(!wait.slow);
    assert_eq!(admin.overview().await.unwrap().name, "alpha");
    watch.gate.add_permits(1);
    waiting.await.unwrap();
}

#[tokio::test]
async fn token_guards_it_and_a_provider_may_go_without() {
    let wire = || WireServer::new(Handlers(Watch::default()));
    let guarded = Provider::builder()
        .serve(wire())
        .token("secret")
        .start()
        .await
        .unwrap();
    let code = |outcome: Result<admin::Overview, CallError>| {
        outcome.err().and_then(|error| error.rpc().map(|rpc| rpc.code))
    };
    let invoker = net::invoker(guarded.local_addr()).await;
    let outcome = AdminClient::refer(&invoker).overview().await;
    assert_eq!(code(outcome), Some(Code::Unauthenticated));
    let builder = Invoker::builder().direct([guarded.local_addr()]).token("secret");
    let invoker = builder.build().await.unwrap();
    assert_eq!(code(AdminClient::refer(&invoker).overview().await), None);
    let mute = Provider::builder()
        .serve(wire())
        .without_admin()
        .start()
        .await
        .unwrap();
    let invoker = net::invoker(mute.local_addr()).await;
    let outcome = AdminClient::refer(&invoker).overview().await;
    assert_eq!(code(outcome), Some(Code::NotFound));
}

#[tokio::test]
async fn insight_shows_the_drain_and_ends_with_the_provider() {
    let (provider, watch, _invoker, client) = net::pair().await;
    let insight = provider.insight();
    let waiting = client.wait().future();
    watch.until(|watch| value(&watch.started) == 1).await;
    assert!(!insight.overview().unwrap().draining);
    let mut stopping = tokio::task::JoinSet::new();
    stopping.spawn(provider.shutdown(Duration::from_secs(10)));
    while !insight.overview().unwrap().draining {
        tokio::task::yield_now().await;
    }
    assert_eq!(insight.overview().unwrap().in_flight, 1);
    watch.gate.add_permits(1);
    waiting.await.unwrap();
    stopping.join_next().await.unwrap().unwrap();
    let patience = std::time::Instant::now() + Duration::from_secs(10);
    while insight.overview().is_some() {
        assert!(
            std::time::Instant::now() < patience,
            "somebody holds the provider"
        );
        tokio::task::yield_now().await;
    }
    assert!(insight.services().is_empty() && insight.connections().is_empty());
}

/// Records the announcements.
#[derive(Debug, Default)]
struct Noting(std::sync::Mutex<Vec<String>>);

#[async_trait::async_trait]
impl Registry for Noting {
    async fn register(&self, key: &ServiceKey, _: &Instance, _: Duration) -> Result<(), RegistryError> {
        self.0.lock().unwrap().push(key.service.clone());
        Ok(())
    }

    async fn deregister(&self, _: &ServiceKey, _: &InstanceId) -> Result<(), RegistryError> {
        Ok(())
    }

    fn subscribe(&self, _: &ServiceKey) -> Result<tokio::sync::watch::Receiver<Snapshot>, RegistryError> {
        Err(RegistryError::Closed)
    }

    async fn close(&self) {}
}

#[tokio::test]
async fn admin_is_not_announced() {
    let registry = Arc::new(Noting::default());
    let provider = Provider::builder()
        .serve(WireServer::new(Handlers(Watch::default())))
        .registry(Arc::clone(&registry))
        .start()
        .await
        .unwrap();
    assert_eq!(*registry.0.lock().unwrap(), ["test.Wire"]);
    drop(provider);
}
