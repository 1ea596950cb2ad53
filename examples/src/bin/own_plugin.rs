//! Plug-ins from a separate crate, chosen by name: a serializer and a load balancer that rpc-core knows
//! nothing about. The crate is `examples/plugins`; naming it below is all it takes to link it.
//!
//! `cargo run -p examples --bin own_plugin`
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::error::Error;
use std::time::Duration;

use rpc_core::balance::LoadBalancerPlugin;
use rpc_core::{Invoker, Provider};

// Names alone are not linked: these two lines link the separate crate's plug-ins and our own.
use own_plugins as _;
use rpc_loadbalance as _;

/// Returns the name of the instance that answers.
#[rpc_core::service(name = "hc.WhoAmI")]
pub trait WhoAmI {
    /// The instance's name.
    async fn name(&self) -> String;
}

struct Instance(&'static str);

impl WhoAmI for Instance {
    async fn name(&self) -> String {
        self.0.to_owned()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "load balancers that are linked in: {}",
        LoadBalancerPlugin::names()?.join(", ")
    );

    // The caller finds the two instances through a registry within this process.
    let registry = rpc_registry::local("own_plugin");
    let start = |name: &'static str| {
        Provider::builder()
            .listen("127.0.0.1:0")
            .registry(registry.clone())
            .name(name)
            .serve(WhoAmIServer::new(Instance(name)))
            .start()
    };
    let spare = start("b-spare").await?;
    let primary = start("a-primary").await?;

    let invoker = Invoker::builder()
        .registry(registry.clone())
        .load_balancer("primary_first")
        .serializer("checked_json")
        .fault_tolerance("failover")
        .build()
        .await?;
    let who = WhoAmIClient::refer(&invoker);
    for _ in 0..3 {
        let name = who.name().await?;
        println!("answered by {name}");
        assert_eq!(name, "a-primary");
    }

    primary.shutdown(Duration::from_secs(5)).await;
    let name = who.name().await?;
    println!("the primary is gone: answered by {name}");
    assert_eq!(name, "b-spare");

    // A name that is not linked is an error that says what to do.
    let unknown = Invoker::builder()
        .registry(registry)
        .load_balancer("by_moon_phase")
        .build()
        .await;
    println!(
        "{}",
        unknown.err().ok_or("a balancer of that name should not exist")?
    );

    invoker.shutdown().await;
    spare.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
