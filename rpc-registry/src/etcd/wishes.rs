//! The desired state of this process in etcd, and how much of it is fulfilled. Announcing and withdrawing
//! only change wishes; the registrar asks for the next step under the lease it holds. Pure: no clock, no
//! etcd.
//!
//! The one invariant: a key that may exist under the current lease is never forgotten before it was deleted.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// The progress of a wish, as its waiter sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not yet fulfilled; and the last obstacle.
    Waiting(Option<String>),
    /// The key exists; or is deleted, if that was the wish.
    Done,
    /// etcd refuses it, and would refuse it again.
    Refused(String),
}

/// One thing to do, and the wish it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Put {
        key: String,
        value: Vec<u8>,
        change: u64,
    },
    Delete {
        key: String,
        change: u64,
    },
}

#[derive(Debug)]
struct Wish {
    /// `None`: the key is to be deleted.
    value: Option<Vec<u8>>,
    /// The number of this change, so that a step taken for an earlier one does not count for it.
    change: u64,
    /// The lease under which the key may exist: set before a put is sent.
    under: Option<i64>,
    done: bool,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
pub(super) struct Wishes {
    by_key: BTreeMap<String, Wish>,
    changes: u64,
}

impl Wishes {
    /// From now on `key` is to exist with `value`.
    pub(super) fn want(&mut self, key: &str, value: Vec<u8>) -> watch::Receiver<Progress> {
        self.change(key, Some(value))
    }

    /// From now on `key` is not to exist; `None` if it was not wanted anyway.
    pub(super) fn forget(&mut self, key: &str) -> Option<watch::Receiver<Progress>> {
        self.by_key.contains_key(key).then(|| self.change(key, None))
    }

    fn change(&mut self, key: &str, value: Option<Vec<u8>>) -> watch::Receiver<Progress> {
        self.changes += 1;
        let wish = Wish {
            value,
            change: self.changes,
            under: self.by_key.get(key).and_then(|wish| wish.under),
            done: false,
            progress: watch::Sender::new(Progress::Waiting(None)),
        };
        let progress = wish.progress.subscribe();
        if wish.value.is_none() && wish.under.is_none() {
            wish.progress.send_replace(Progress::Done);
            self.by_key.remove(key);
        } else {
            self.by_key.insert(key.to_owned(), wish);
        }
        progress
    }

    /// Whether there is a reason to hold a lease.
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The next step under `lease`, or `None` if everything is fulfilled. Keys to delete that were put under
    /// an earlier lease end with it.
    pub(super) fn next_step(&mut self, lease: i64) -> Option<Step> {
        self.by_key.retain(|_, wish| {
            let ended = wish.value.is_none() && wish.under != Some(lease);
            if ended {
                wish.progress.send_replace(Progress::Done);
            }
            !ended
        });
        let (key, wish) = self
            .by_key
            .iter_mut()
            .find(|(_, wish)| !wish.done || (wish.value.is_some() && wish.under != Some(lease)))?;
        let (key, change) = (key.clone(), wish.change);
        Some(match &wish.value {
            None => Step::Delete { key, change },
            Some(value) => {
                wish.under = Some(lease);
                wish.done = false;
                Step::Put {
                    key,
                    value: value.clone(),
                    change,
                }
            }
        })
    }

    /// The step taken for `change` of `key` has succeeded.
    pub(super) fn taken(&mut self, key: &str, change: u64) {
        let Some(wish) = self.by_key.get_mut(key).filter(|wish| wish.change == change) else {
            return;
        };
        wish.done = true;
        wish.progress.send_replace(Progress::Done);
        if wish.value.is_none() {
            self.by_key.remove(key);
        }
    }

    /// etcd finally refused the step for `change` of `key`: the wish is given up.
    pub(super) fn refused(&mut self, key: &str, change: u64, reason: &str) {
        let Some(wish) = self.by_key.get_mut(key).filter(|wish| wish.change == change) else {
            return;
        };
        wish.progress.send_replace(Progress::Refused(reason.to_owned()));
        self.by_key.remove(key);
    }

    /// Records an obstacle to everything that is not done yet.
    pub(super) fn delayed(&self, reason: &str) {
        for wish in self.by_key.values().filter(|wish| !wish.done) {
            wish.progress
                .send_replace(Progress::Waiting(Some(reason.to_owned())));
        }
    }

    /// Keys that should exist.
    pub(super) fn announced(&self) -> Vec<String> {
        let there = self
            .by_key
            .iter()
            .filter(|(_, wish)| wish.done && wish.value.is_some());
        there.map(|(key, _)| key.clone()).collect()
    }

    /// `key` should exist and does not: it was deleted by someone else.
    pub(super) fn vanished(&mut self, key: &str) {
        if let Some(wish) = self.by_key.get_mut(key) {
            wish.done = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(wishes: &mut Wishes, lease: i64) -> Option<(char, String, u64)> {
        wishes.next_step(lease).map(|step| match step {
            Step::Put { key, change, .. } => ('+', key, change),
            Step::Delete { key, change } => ('-', key, change),
        })
    }

    fn take(wishes: &mut Wishes, lease: i64) -> String {
        let mut taken = String::new();
        while let Some((what, key, change)) = step(wishes, lease) {
            wishes.taken(&key, change);
            taken.push(what);
            taken.push_str(&key);
        }
        taken
    }

    #[test]
    fn new_lease_puts_everything_again() {
        let mut wishes = Wishes::default();
        let a = wishes.want("a", vec![1]);
        wishes.want("b", vec![2]);
        assert_eq!(take(&mut wishes, 7), "+a+b");
        assert_eq!(*a.borrow(), Progress::Done);
        assert_eq!(take(&mut wishes, 7), "");
        assert_eq!(take(&mut wishes, 8), "+a+b");
    }

    #[test]
    fn taken_back_while_the_put_is_under_way_is_deleted_afterwards() {
        let mut wishes = Wishes::default();
        wishes.want("a", vec![1]);
        let (_, key, change) = step(&mut wishes, 7).unwrap();
        let gone = wishes.forget("a").unwrap();
        wishes.taken(&key, change);
        assert_eq!(
            *gone.borrow(),
            Progress::Waiting(None),
            "the put succeeded, not the wish"
        );
        assert_eq!(take(&mut wishes, 7), "-a");
        assert_eq!(*gone.borrow(), Progress::Done);
        assert!(wishes.is_empty());
    }

    #[test]
    fn replaced_while_the_put_is_under_way_is_put_again() {
        let mut wishes = Wishes::default();
        wishes.want("a", vec![1]);
        let (_, key, change) = step(&mut wishes, 7).unwrap();
        let second = wishes.want("a", vec![2]);
        wishes.taken(&key, change);
        assert_eq!(*second.borrow(), Progress::Waiting(None));
        assert!(matches!(wishes.next_step(7), Some(Step::Put { value, .. }) if value == [2]));
    }

    #[test]
    fn never_put_is_forgotten_at_once() {
        let mut wishes = Wishes::default();
        wishes.want("a", vec![1]);
        assert_eq!(*wishes.forget("a").unwrap().borrow(), Progress::Done);
        assert!(wishes.is_empty());
        assert!(wishes.forget("a").is_none());
    }

    #[test]
    fn taken_back_under_a_lost_lease_ends_with_it() {
        let mut wishes = Wishes::default();
        wishes.want("a", vec![1]);
        assert_eq!(take(&mut wishes, 7), "+a");
        let gone = wishes.forget("a").unwrap();
        assert_eq!(take(&mut wishes, 8), "", "the new lease never had it");
        assert_eq!(*gone.borrow(), Progress::Done);
    }

    #[test]
    fn waiting_ones_hear_what_stands_in_the_way() {
        let mut wishes = Wishes::default();
        let done = wishes.want("a", vec![1]);
        assert_eq!(take(&mut wishes, 7), "+a");
        let waiting = wishes.want("b", vec![1]);
        wishes.delayed("no route");
        assert_eq!(*done.borrow(), Progress::Done);
        assert_eq!(*waiting.borrow(), Progress::Waiting(Some("no route".into())));
        let (_, key, change) = step(&mut wishes, 7).unwrap();
        wishes.refused(&key, change, "no permission");
        assert_eq!(*waiting.borrow(), Progress::Refused("no permission".into()));
        assert_eq!(take(&mut wishes, 7), "", "given up");
    }

    #[test]
    fn deleted_by_hand_is_put_again() {
        let mut wishes = Wishes::default();
        wishes.want("a", vec![1]);
        assert_eq!(take(&mut wishes, 7), "+a");
        assert_eq!(wishes.announced(), ["a"]);
        wishes.vanished("a");
        assert_eq!(take(&mut wishes, 7), "+a");
    }
}
