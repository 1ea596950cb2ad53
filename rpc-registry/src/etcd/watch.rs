//! The follower: one task per service that keeps its list up to date. It reads the full list, then watches
//! from the next revision, so nothing is missed in between; whatever interrupts that (a lost connection,
//! compaction, a wiped etcd) makes it start again with a full list, and the last list stays meanwhile.

use std::time::{Duration, Instant};

use etcd_client::{GetOptions, KeyValue, WatchOptions, WatchResponse, WatchStream};
use rpc_core::registry::Snapshot;
use tokio::sync::watch;

use super::layout;
use super::link::{Connection, Link, Trouble, answered};
use super::listing::{Found, Listing};
use crate::backoff::{Backoff, jittered};
use crate::cache;

/// Instances per request: their values stay far below gRPC's limit of 4 MiB per message.
const PAGE: i64 = 200;
/// A safety net in addition to the watch.
const LIST_EVERY: Duration = Duration::from_secs(300);
const RETRY_WITHIN: Duration = Duration::from_secs(2);

/// Why watching ended.
enum End {
    /// History is missing: the list has to be read again. The connection is fine.
    Gap(&'static str),
    Trouble(Trouble),
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

pub(super) struct Follower<'a> {
    link: &'a Link,
    prefix: String,
    shown: &'a watch::Sender<Snapshot>,
    listing: Listing,
    /// How long missing instances stay after etcd was wiped or away: one lease, within which the living ones
    /// return.
    grace: Duration,
    cut_off_since: Option<Instant>,
    backoff: Backoff,
}

impl<'a> Follower<'a> {
    pub(super) fn new(
        link: &'a Link,
        prefix: String,
        shown: &'a watch::Sender<Snapshot>,
        grace: Duration,
    ) -> Self {
        Self {
            link,
            prefix,
            shown,
            listing: Listing::default(),
            grace,
            cut_off_since: None,
            backoff: Backoff::new(RETRY_WITHIN),
        }
    }

    /// Works until it is dropped.
    pub(super) async fn run(mut self) -> std::convert::Infallible {
        loop {
            let end = match self.link.connection().await {
                Ok(mut connection) => {
                    let Err(end) = self.follow(&mut connection).await;
                    if matches!(end, End::Trouble(_)) {
                        self.link.forget(&connection);
                    }
                    end
                }
                Err(trouble) => End::Trouble(trouble),
            };
            match end {
                End::Gap(reason) => tracing::info!(prefix = self.prefix, reason, "reading the list again"),
                End::Trouble(trouble) => {
                    self.cut_off_since.get_or_insert_with(Instant::now);
                    cache::show_stale(self.shown);
                    tracing::warn!(
                        registry = %self.link.endpoints(), prefix = self.prefix, %trouble,
                        "trouble with the registry; the last known list stays"
                    );
                }
            }
            tokio::time::sleep(self.backoff.delay()).await;
        }
    }

    async fn follow(&mut self, connection: &mut Connection) -> Result<std::convert::Infallible, End> {
        self.list(connection).await?;
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.listing.next_revision())
            .with_progress_notify();
        let mut events = answered(connection.client.watch(self.prefix.as_str(), Some(options))).await?;
        let first = answered(events.message()).await?.ok_or(Trouble::Ended)?;
        self.check_created(&first)?;
        self.apply(&first)?;
        self.backoff.reset();
        let mut next_list = Instant::now() + jittered(LIST_EVERY);
        loop {
            self.show();
            match self.next(&mut events, next_list).await? {
                Next::Events(message) => self.apply(&message)?,
                Next::List => {
                    self.list(connection).await?;
                    next_list = Instant::now() + jittered(LIST_EVERY);
                }
                Next::Expiry => self.listing.expire(Instant::now()),
            }
        }
    }

    async fn next(&self, events: &mut WatchStream, next_list: Instant) -> Result<Next, End> {
        let next_expiry = self.listing.next_expiry();
        Ok(tokio::select! {
            message = events.message() => {
                Next::Events(message.map_err(Trouble::from)?.ok_or(Trouble::Ended)?)
            }
            () = tokio::time::sleep_until(next_list.into()) => Next::List,
            () = tokio::time::sleep_until(next_expiry.unwrap_or(next_list).into()), if next_expiry.is_some() => Next::Expiry,
        })
    }

    /// Reads the full list at one revision, page by page.
    async fn list(&mut self, connection: &mut Connection) -> Result<(), End> {
        let mut found = Vec::new();
        let mut revision = 0;
        let mut from = self.prefix.clone().into_bytes();
        loop {
            let options = GetOptions::new()
                .with_range(self.prefix_end())
                .with_limit(PAGE)
                .with_revision(revision);
            let page = answered(connection.client.get(from.clone(), Some(options))).await?;
            if revision == 0 {
                revision = page.header().map_or(0, |header| header.revision());
            }
            found.extend(page.kvs().iter().filter_map(|kv| self.found(kv)));
            match page.kvs().last() {
                Some(last) if page.more() => {
                    from.clear();
                    from.extend_from_slice(last.key());
                    from.push(0);
                }
                _ => break,
            }
        }
        if self.listing.is_ahead_of(revision) {
            tracing::warn!(
                registry = %self.link.endpoints(), prefix = self.prefix, revision,
                "the registry has lost its data; missing instances stay for one lease time"
            );
        }
        let now = Instant::now();
        let cut_off = self.cut_off_since.take().map(|since| now - since);
        // Processes that were cut off together with us may have lost their lease; in less than a part of it
        // none did.
        if cut_off.is_some_and(|time| time >= self.grace / 4) {
            self.listing.keep_missing_until(now + self.grace);
        }
        self.listing.replace(found, revision, now, self.grace);
        self.show();
        Ok(())
    }

    /// The prefix ends with `/`; the next byte is `0`.
    fn prefix_end(&self) -> Vec<u8> {
        let mut end = self.prefix.clone().into_bytes();
        end.pop();
        end.push(b'/' + 1);
        end
    }

    fn found(&self, kv: &KeyValue) -> Option<Found> {
        let id = layout::decode_id(&self.prefix, kv.key())?;
        let instance = layout::decode(&self.prefix, kv.key(), kv.value());
        if instance.is_none() && kv.version() > 0 {
            tracing::warn!(key = %kv.key().escape_ascii(), "ignored: not an instance");
        }
        Some(Found {
            id,
            mod_revision: kv.mod_revision(),
            instance,
        })
    }

    /// Checks the answer to a new watch. A wiped etcd whose history is shorter than ours would answer this
    /// and then stay silent.
    fn check_created(&self, first: &WatchResponse) -> Result<(), End> {
        let revision = first.header().map_or(0, |header| header.revision());
        if first.canceled() || !first.created() {
            Err(End::Gap("the watch was not created"))
        } else if self.listing.is_ahead_of(revision) {
            Err(End::Gap("the registry is at an older revision than expected"))
        } else {
            Ok(())
        }
    }

    fn apply(&mut self, message: &WatchResponse) -> Result<(), End> {
        if message.compact_revision() > 0 {
            return Err(End::Gap("history was compacted"));
        }
        if message.canceled() {
            return Err(End::Gap("the watch was cancelled"));
        }
        for kv in message.events().iter().filter_map(|event| event.kv()) {
            // A deletion has version 0. (The event's type is an enum that panics on unknown numbers.)
            if let Some(found) = self.found(kv) {
                self.listing.apply(found, kv.version() == 0, Instant::now());
            }
        }
        let last = message
            .events()
            .iter()
            .filter_map(|event| event.kv())
            .map(KeyValue::mod_revision)
            .max();
        if let Some(last) = last {
            self.listing.reached(last);
        }
        Ok(())
    }

    fn show(&self) {
        let (instances, freshness) = self.listing.picture();
        cache::show(self.shown, &instances, freshness);
    }
}

enum Next {
    Events(WatchResponse),
    List,
    Expiry,
}
