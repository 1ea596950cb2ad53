//! The load balancer `primary_first`: all calls go to one instance, and to the others only if it fails. For
//! services whose instances are not equal, such as a broker on fast disks with a slower standby.

use std::sync::Arc;

use rpc_core::balance::{LoadBalancer, LoadBalancerPlugin, Node, Pick, Picker};

rpc_core::plugin!(LoadBalancerPlugin, "primary_first", |settings| {
    settings.only(&[])?;
    Ok(Arc::new(PrimaryFirst))
});

/// The strategy: the primary is the instance whose name comes first in alphabetical order.
#[derive(Debug, Clone, Copy)]
pub struct PrimaryFirst;

impl LoadBalancer for PrimaryFirst {
    fn rebuild(&self, nodes: &[Arc<Node>], _previous: Option<&dyn Picker>) -> Arc<dyn Picker> {
        // An instance of weight 0 takes no calls.
        let mut nodes: Vec<_> = nodes
            .iter()
            .filter(|node| node.instance.weight > 0)
            .cloned()
            .collect();
        nodes.sort_by(|a, b| a.instance.name.cmp(&b.instance.name));
        Arc::new(InOrder { nodes })
    }
}

#[derive(Debug)]
struct InOrder {
    nodes: Vec<Arc<Node>>,
}

impl Picker for InOrder {
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Node>> {
        self.nodes
            .iter()
            .find(|node| !pick.tried.contains(&node.instance.id))
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use rpc_core::plugin::Settings;
    use rpc_core::registry::{Instance, InstanceId};

    use super::*;

    fn node(name: &str, weight: u32) -> Arc<Node> {
        Arc::new(Node::new(Arc::new(Instance {
            id: InstanceId::random(),
            address: "127.0.0.1:1".to_owned(),
            name: name.to_owned(),
            http: None,
            weight,
            zone: None,
            started_ms: 0,
            serializers: Vec::new(),
            meta: Default::default(),
        })))
    }

    #[test]
    fn the_spare_is_used_only_when_the_primary_was_tried() {
        let nodes = [node("b", 100), node("a", 100), node("0", 0)];
        let balancer = LoadBalancerPlugin::build("primary_first", &Settings::new()).unwrap();
        let picker = balancer.rebuild(&nodes, None);
        let pick = |tried: &[InstanceId]| {
            let node = picker.pick(&Pick {
                tried,
                ..Pick::first("m", std::time::Instant::now())
            });
            node.map(|node| node.instance.name.clone())
        };
        assert_eq!(pick(&[]).as_deref(), Some("a"));
        assert_eq!(pick(&[]).as_deref(), Some("a"));
        let first = nodes[1].instance.id.clone();
        assert_eq!(pick(std::slice::from_ref(&first)).as_deref(), Some("b"));
        assert_eq!(pick(&[first, nodes[0].instance.id.clone()]), None);
    }
}
