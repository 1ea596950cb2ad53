//! Reports messages that were deleted before a group acknowledged them: in the log once per group and entry,
//! and in the metrics.

use std::collections::BTreeMap;

use crate::ids::GroupKey;
use crate::state::effects::GroupChange;
use crate::state::{Effects, State};
use crate::telemetry::Metrics;

/// Reports losses.
#[derive(Debug)]
pub(super) struct Losses(pub(super) Metrics);

impl Losses {
    /// Reports the losses among an entry's effects. Not called during replay: they were reported when they
    /// happened.
    pub(super) fn tell(&self, state: &State, effects: &Effects) {
        for trimmed in &effects.trimmed {
            let records = trimmed.to.0.saturating_sub(trimmed.from.0);
            self.0.trimmed_records.inc_by(records);
        }
        let mut by_group: BTreeMap<GroupKey, (u64, u64)> = BTreeMap::new();
        for change in &effects.groups {
            if let GroupChange::Lost { group, from, to, .. } = change {
                let (queues, messages) = by_group.entry(*group).or_default();
                *queues += 1;
                *messages += to.0.saturating_sub(from.0);
            }
        }
        for (key, (queues, messages)) in by_group {
            self.0.expired_unread_records.inc_by(messages);
            let Some(group) = state.group(key) else { continue };
            tracing::warn!(
                group = %group.name, topic = %group.topic, queues, messages,
                "messages were deleted that the group had not acknowledged"
            );
        }
    }
}
