//! The calls that the broker's port has served, as metrics: what the RPC framework counts of each method
//! anyway, read on request. Counting them again in a filter would cost every call.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rpc_core::provider::Provider;
use rpc_core::provider::admin::{Insight, MethodReport, ServiceReport};

/// The figures of a provider that may not exist yet. Clones show the same provider.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<OnceLock<Insight>>);

/// Names of services and methods are the broker's own, so they are a closed set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    service: String,
    method: String,
}

/// One counter of every method.
struct PerMethod {
    name: &'static str,
    help: &'static str,
    value: fn(&MethodReport) -> u64,
}

const COUNTERS: [PerMethod; 5] = [
    PerMethod {
        name: "rpc_calls",
        help: "Calls admitted",
        value: |method| method.calls,
    },
    PerMethod {
        name: "rpc_calls_refused",
        help: "Calls refused because too many were running",
        value: |method| method.refused,
    },
    PerMethod {
        name: "rpc_calls_failed",
        help: "Calls that ended with an error of the RPC framework",
        value: |method| method.failures,
    },
    PerMethod {
        name: "rpc_calls_answered_with_error",
        help: "Calls that ended with the broker's own error",
        value: |method| method.app_errors,
    },
    PerMethod {
        name: "rpc_handlers_blocked",
        help: "Times that a handler blocked its thread; one call in 32 is checked",
        value: |method| method.blocked,
    },
];

impl Calls {
    /// Shows the figures of this provider from now on.
    pub fn show(&self, provider: &Provider) {
        let first = self.0.set(provider.insight());
        debug_assert!(first.is_ok(), "a broker has one provider");
    }
}

impl Collector for Calls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(insight) = self.0.get() else {
            return Ok(());
        };
        if let Some(overview) = insight.overview() {
            gauge(
                &mut encoder,
                "rpc_connections",
                "Open connections",
                overview.connections,
            )?;
            gauge(
                &mut encoder,
                "rpc_calls_in_flight",
                "Calls in progress",
                overview.in_flight,
            )?;
        }
        let services = insight.services();
        for counter in &COUNTERS {
            let mut family =
                encoder.encode_descriptor(counter.name, counter.help, None, MetricType::Counter)?;
            for (labels, method) in methods(&services) {
                let value = ConstCounter::new((counter.value)(method));
                value.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn methods(services: &[ServiceReport]) -> impl Iterator<Item = (MethodLabels, &MethodReport)> {
    services.iter().flat_map(|service| {
        service.methods.iter().map(|method| {
            let labels = MethodLabels {
                service: service.name.clone(),
                method: method.name.clone(),
            };
            (labels, method)
        })
    })
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    // No machine reaches more than i64 holds.
    let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    value.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[tokio::test]
    async fn methods_of_the_provider_are_shown_once_it_exists() {
        let (calls, mut registry) = (Calls::default(), Registry::with_prefix("hc_mq"));
        registry.register_collector(Box::new(calls.clone()));
        let text = |registry: &Registry| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            text
        };
        assert_eq!(text(&registry), "# EOF\n");
        let provider = Provider::builder().start().await.unwrap();
        calls.show(&provider);
        let shown = text(&registry);
        for line in [
            "hc_mq_rpc_connections 0",
            "# TYPE hc_mq_rpc_calls counter",
            "hc_mq_rpc_calls_total{service=\"_admin\",method=\"overview\"} 0",
            "hc_mq_rpc_handlers_blocked_total{service=\"_admin\",method=\"plugins\"} 0",
        ] {
            assert!(shown.lines().any(|found| found == line), "`{line}`: {shown}");
        }
    }
}
