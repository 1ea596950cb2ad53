//! The reports of a running provider from its `_admin` service, as tables.
//!
//! `cargo run -p examples --bin provider_admin` serves something, calls it and asks for the reports; `cargo
//! run -p examples --bin provider_admin -- HOST:PORT [TOKEN]` asks a provider that runs elsewhere, such as a
//! broker.
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::error::Error;
use std::time::Duration;

use rpc_core::provider::admin::AdminClient;
use rpc_core::{Invoker, Provider};

/// A service to report on.
#[rpc_core::service(name = "hc.Kitchen")]
pub trait Kitchen {
    /// Cooks one portion; the stove has room for two.
    #[rpc(in_flight_max = 2)]
    async fn cook(&self, dish: String) -> Result<String, String>;
    /// The dishes on offer.
    #[rpc(idempotent)]
    async fn menu(&self) -> Vec<String>;
}

struct Cook;

impl Kitchen for Cook {
    async fn cook(&self, dish: String) -> Result<String, String> {
        if dish == "fugu" {
            return Err("better not".to_owned());
        }
        Ok(format!("one {dish}"))
    }

    async fn menu(&self) -> Vec<String> {
        vec!["soup".to_owned(), "salad".to_owned()]
    }
}

/// Rows under their headings, each column as wide as its widest cell.
fn table(title: &str, headings: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].len());
        cells.chain([headings[column].len()]).max().unwrap_or_default()
    };
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let width = width(column);
            format!("{cell:<width$}")
        });
        println!("  {}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    println!("{title}");
    line(headings.to_vec());
    rows.iter()
        .for_each(|row| line(row.iter().map(String::as_str).collect()));
    println!();
}

/// The provider and its services.
async fn show(admin: &AdminClient) -> Result<(), Box<dyn Error>> {
    let overview = admin.overview().await?;
    println!(
        "rpc-core {} at {}, up {} ms, {} connections, {} requests in flight (of {}), draining: {}\n",
        overview.version,
        overview.address,
        overview.uptime_ms,
        overview.connections,
        overview.in_flight,
        overview.limits.in_flight_max,
        overview.draining,
    );
    for service in admin.services().await? {
        let rows = service.methods.iter().map(|method| {
            let flags = [
                (method.idempotent, "idempotent"),
                (method.blocking, "blocking"),
                (method.streaming, "streaming"),
                (method.long_poll, "long_poll"),
                (method.slow, "SLOW"),
            ];
            let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name);
            vec![
                method.name.clone(),
                method.calls.to_string(),
                format!("{}/{}", method.in_flight, method.in_flight_max),
                method.app_errors.to_string(),
                method.failures.to_string(),
                method.refused.to_string(),
                method.slow_calls.to_string(),
                flags.collect::<Vec<_>>().join(","),
            ]
        });
        let title = format!(
            "service {} version {} group {}",
            service.name, service.version, service.group
        );
        let headings = [
            "method",
            "calls",
            "in flight",
            "errors",
            "failures",
            "refused",
            "slow",
            "flags",
        ];
        table(&title, &headings, &rows.collect::<Vec<_>>());
    }
    Ok(())
}

/// Its connections, the duration of calls, and the linked plug-ins.
async fn show_the_rest(admin: &AdminClient) -> Result<(), Box<dyn Error>> {
    let connections = admin.connections().await?;
    let rows = connections.iter().map(|connection| {
        vec![
            connection.peer.clone(),
            connection.age_ms.to_string(),
            connection.calls.to_string(),
            connection.in_flight.to_string(),
        ]
    });
    table(
        "connections",
        &["peer", "age ms", "calls", "in flight"],
        &rows.collect::<Vec<_>>(),
    );
    let figures = admin.metrics().await?;
    let rows = figures.iter().map(|figures| {
        let quantile = |share| {
            let end = figures.latency.quantile(share);
            end.map_or_else(|| "-".to_owned(), |end| format!("{end:?}"))
        };
        vec![
            format!("{}/{}", figures.service, figures.method),
            figures.ok.to_string(),
            figures.errors.values().sum::<u64>().to_string(),
            quantile(0.5),
            quantile(0.99),
        ]
    });
    table(
        "latency",
        &["method", "ok", "errors", "p50 <=", "p99 <="],
        &rows.collect::<Vec<_>>(),
    );
    let plugins = admin.plugins().await?;
    let rows = plugins
        .iter()
        .map(|plugin| vec![plugin.kind.clone(), plugin.name.clone(), plugin.origin.clone()]);
    table("plug-ins", &["kind", "name", "origin"], &rows.collect::<Vec<_>>());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    if let Some(address) = arguments.next() {
        let mut builder = Invoker::builder().direct([address]);
        if let Some(token) = arguments.next() {
            builder = builder.token(token);
        }
        let admin = AdminClient::refer(&builder.build().await?);
        show(&admin).await?;
        return show_the_rest(&admin).await;
    }
    let provider = Provider::builder()
        .listen("127.0.0.1:0")
        .serve(KitchenServer::new(Cook))
        .filter("metrics")
        .start()
        .await?;
    let invoker = Invoker::builder().direct([provider.local_addr()]).build().await?;
    let kitchen = KitchenClient::refer(&invoker);
    for dish in ["soup", "fugu"] {
        match kitchen.cook(dish.to_owned()).await {
            Ok(cooked) => println!("{dish}: {cooked}"),
            Err(error) => println!("{dish}: {error}"),
        }
    }
    let admin = AdminClient::refer(&invoker);
    show(&admin).await?;
    show_the_rest(&admin).await?;
    invoker.shutdown().await;
    provider.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
