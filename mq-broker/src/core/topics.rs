//! The topics of the state, published so that a request finds its queues without waiting for the core.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use mq_common::api::{Page, PageRequest};
use mq_common::ids::TopicName;

use crate::state::{State, Topic};

/// All topics by name, including tombstones.
#[derive(Debug, Default)]
pub struct Topics {
    by_name: RwLock<BTreeMap<TopicName, Arc<Topic>>>,
}

impl Topics {
    /// A topic that is not deleted.
    #[must_use]
    pub fn live(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.any(name).filter(|topic| !topic.declaration.deleted)
    }

    /// A topic or its tombstone.
    #[must_use]
    pub fn any(&self, name: &TopicName) -> Option<Arc<Topic>> {
        let topics = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        topics.get(name).cloned()
    }

    /// One page of them in order of name, starting after `page.after`.
    #[must_use]
    pub fn page(&self, page: &PageRequest<TopicName>) -> Page<Arc<Topic>, TopicName> {
        let topics = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let start = page.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let behind = topics
            .range((start, Bound::Unbounded))
            .map(|(_, topic)| Arc::clone(topic));
        Page::cut(
            behind,
            page.max,
            |topic| topic.declaration.name.clone(),
            |topic| topic.declaration.homes.len(),
        )
    }

    /// Copies these topics from the state.
    pub(super) fn publish(&self, state: &State, names: &[TopicName]) {
        if names.is_empty() {
            return;
        }
        let mut topics = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            match state.topic_or_tombstone(name) {
                Some(topic) => drop(topics.insert(name.clone(), Arc::new(topic.clone()))),
                None => drop(topics.remove(name)),
            }
        }
    }
}
