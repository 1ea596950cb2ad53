//! The consumers: they only record what arrives.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use mq_client::{Client, ConsumeError, Consumer, Delivery};

use crate::input::Input;
use crate::ledger::{Arrival, Ledger};
use crate::publish::LINE;

/// The groups and the number of members of each.
pub(crate) const GROUPS: [(&str, usize); 2] = [("readers", 2), ("archive", 1)];

/// Starts one member of the group with this index.
pub(crate) async fn start(
    client: &Client,
    topic: &str,
    group: usize,
    input: &Arc<Input>,
    ledger: &Arc<Ledger>,
) -> Result<Consumer, Box<dyn std::error::Error>> {
    let (input, ledger) = (Arc::clone(input), Arc::clone(ledger));
    let handler = move |delivery: Delivery| {
        ledger.arrived(group, arrival(&delivery, &input));
        async { Ok::<(), Infallible>(()) }
    };
    let started: Result<Consumer, ConsumeError> = client.consumer(topic, GROUPS[group].0)?.run(handler).await;
    Ok(started?)
}

fn arrival(delivery: &Delivery, input: &Input) -> Arrival {
    let line = delivery.properties.iter().find(|(name, _)| name == LINE);
    let line = line.and_then(|(_, value)| value.parse::<u32>().ok());
    let sent = line.and_then(|line| input.lines.get(line as usize));
    let section = line.and_then(|line| input.sections.get(line as usize));
    let key = section.map(|section| format!("section-{section}"));
    Arrival {
        line: line.filter(|_| sent.is_some()),
        unchanged: sent.is_some_and(|sent| *sent == delivery.payload)
            && delivery.key.as_deref() == key.as_deref().map(str::as_bytes),
        queue: delivery.queue.0,
        offset: delivery.offset.0,
        at: Instant::now(),
    }
}
