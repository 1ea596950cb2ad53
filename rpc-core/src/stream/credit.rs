//! How much of a stream may still be sent. Pure, and the same at both ends, so that they never disagree.

use crate::frame::Window;

/// Remaining credit. Items are counted, and the bytes of their bodies; an item may pass while there is credit
/// of both, however large it is, so the bytes may become negative by one item. Otherwise an item above the
/// window could never pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Credit {
    items: u64,
    bytes: i64,
}

impl Credit {
    /// The credit of one window.
    pub(crate) fn of(window: Window) -> Self {
        let mut credit = Self::default();
        credit.grant(window);
        credit
    }

    /// Adds more. A peer may grant without limit: it only gets what it asked for.
    pub(crate) fn grant(&mut self, window: Window) {
        self.items = self.items.saturating_add(u64::from(window.items));
        self.bytes = self.bytes.saturating_add(i64::from(window.bytes));
    }

    /// Undoes a grant that the sender has not received.
    pub(crate) fn revoke(&mut self, window: Window) {
        self.items = self.items.saturating_sub(u64::from(window.items));
        self.bytes = self.bytes.saturating_sub(i64::from(window.bytes));
    }

    /// Whether one more item may be sent.
    pub(crate) const fn is_open(&self) -> bool {
        self.items > 0 && self.bytes > 0
    }

    /// Deducts the cost of an item with a body of this many bytes; `false` if it may not be sent.
    pub(crate) fn spend(&mut self, bytes: usize) -> bool {
        if !self.is_open() {
            return false;
        }
        self.items -= 1;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn item_larger_than_the_window_passes_alone() {
        let mut credit = Credit::of(Window { items: 9, bytes: 10 });
        assert!(credit.spend(1000));
        assert!(!credit.is_open() && !credit.spend(0));
        credit.grant(Window { items: 0, bytes: 990 });
        assert!(!credit.is_open());
        credit.grant(Window { items: 0, bytes: 1 });
        assert!(credit.spend(0));
    }

    #[test]
    fn credit_without_end_does_not_wrap() {
        let mut credit = Credit {
            items: u64::MAX,
            bytes: i64::MAX,
        };
        credit.grant(Window {
            items: u32::MAX,
            bytes: u32::MAX,
        });
        assert!(credit.spend(usize::MAX));
        assert!(!credit.spend(1));
    }

    proptest! {
        /// Whatever is granted and sent, no more than the grants passes, except for the excess of one item.
        #[test]
        fn no_more_passes_than_was_granted(steps in vec((any::<bool>(), 0_u32..50, 0_u32..500), 0..200)) {
            let (mut credit, mut granted, mut sent) = (Credit::default(), (0_u64, 0_u64), (0_u64, 0_u64));
            let mut largest = 0;
            for (grant, items, bytes) in steps {
                if grant {
                    credit.grant(Window { items, bytes });
                    granted = (granted.0 + u64::from(items), granted.1 + u64::from(bytes));
                } else if credit.spend(bytes as usize) {
                    sent = (sent.0 + 1, sent.1 + u64::from(bytes));
                    largest = largest.max(u64::from(bytes));
                }
                prop_assert!(sent.0 <= granted.0);
                prop_assert!(sent.1 <= granted.1 + largest);
            }
        }
    }
}
