//! The open connections, for reports.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::connection::Connection;

/// Changed when a connection opens or ends, never by a call.
#[derive(Debug, Default)]
pub(super) struct Open {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    by_number: BTreeMap<u64, Weak<Connection>>,
}

/// One connection's entry in the list; dropping it removes the entry.
#[derive(Debug)]
pub(super) struct Listed<'a> {
    open: &'a Open,
    number: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let gone = self.open.table().by_number.remove(&self.number);
        // Freed outside the lock.
        drop(gone);
    }
}

impl Open {
    pub(super) fn list(&self, connection: &Arc<Connection>) -> Listed<'_> {
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.by_number.insert(number, Arc::downgrade(connection));
        Listed { open: self, number }
    }

    /// All, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Connection>> {
        self.table()
            .by_number
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
