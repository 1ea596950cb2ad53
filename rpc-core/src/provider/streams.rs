//! The streams of one connection at their provider: what each may still send, and how its items are written.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes};
use tokio::sync::Notify;

use super::connection::Connection;
use crate::BoxFuture;
use crate::error::{Code, Executed, RpcError};
use crate::frame::{Draft, Kind, Status, Window};
use crate::limits::STREAM_UNWRITTEN_BYTES_MAX;
use crate::link::{self, Refused};
use crate::stream::{Credit, Item, Items, Sink};

/// The running streams, by their requests' ids.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<HashMap<i64, Arc<Grants>>>);

/// The credit that one caller has granted.
#[derive(Debug, Default)]
struct Grants {
    credit: Mutex<Credit>,
    /// Notified when more was granted; one handler waits.
    more: Notify,
}

impl Streams {
    /// Grants more to the stream with this id; `false` if there is none.
    pub(super) fn grant(&self, id: i64, window: Window) -> bool {
        let Some(grants) = self.table().get(&id).cloned() else {
            return false;
        };
        grants.credit().grant(window);
        grants.more.notify_one();
        true
    }

    /// The connection has ended and its outbox is closed: no more will be granted.
    pub(super) fn close(&self) {
        self.table().values().for_each(|grants| grants.more.notify_one());
    }

    fn table(&self) -> MutexGuard<'_, HashMap<i64, Arc<Grants>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Grants {
    fn credit(&self) -> MutexGuard<'_, Credit> {
        self.credit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sink for the items of the request `id`, which was opened with `window`.
pub(super) fn open(connection: &Arc<Connection>, id: i64, window: Window) -> Items {
    let grants = Arc::new(Grants::default());
    grants.credit().grant(window);
    connection.streams.table().insert(id, Arc::clone(&grants));
    Items::peer(Outflow {
        connection: Arc::clone(connection),
        id,
        grants,
        begun: AtomicBool::new(false),
    })
}

/// One outgoing stream.
#[derive(Debug)]
struct Outflow {
    connection: Arc<Connection>,
    id: i64,
    grants: Arc<Grants>,
    begun: AtomicBool,
}

impl Outflow {
    /// Whether little enough is unwritten that an item does not make others wait.
    fn has_room(&self) -> bool {
        self.connection.outbox.unwritten() <= STREAM_UNWRITTEN_BYTES_MAX
    }

    fn push(&self, item: &Item) -> Result<Option<BoxFuture<'_, ()>>, RpcError> {
        let parts = item.attachment.parts();
        let mut status = Status::NONE;
        if !parts.is_empty() {
            if !self.connection.understands(Status::ATTACHMENT) {
                let message = "an item has an attachment, and the caller did not announce that it takes any";
                return Err(RpcError::new(Code::Unsupported, Executed::Yes, message));
            }
            status = Status::ATTACHMENT;
        }
        let max = self.connection.answer_bytes_max();
        link::with_scratch(|out| {
            let draft = Draft::begin(out, Kind::StreamItem, status, self.id, "");
            let head = out.len();
            out.put_slice(&item.value);
            let attachment_bytes = parts.iter().map(Bytes::len).sum();
            let prefix = if status.has(Status::ATTACHMENT) { 4 } else { 0 };
            let body_bytes = prefix + out.len() - head + attachment_bytes;
            draft.finish(out, attachment_bytes, max).map_err(|bytes| {
                let message = format!("an item of {bytes} bytes, the caller takes {max}");
                RpcError::new(Code::TooLarge, Executed::Yes, message)
            })?;
            // Not urgent: the next items leave in the same write.
            match self.connection.outbox.push(out, parts, false) {
                Ok(_) => {
                    self.grants.credit().spend(body_bytes);
                    self.begun.store(true, Ordering::Relaxed);
                    Ok(None)
                }
                Err(Refused::Full { bytes }) => {
                    let outbox = &self.connection.outbox;
                    let room: BoxFuture<'_, ()> = Box::pin(outbox.room_for(bytes));
                    Ok(Some(room))
                }
                Err(Refused::Closed) => {
                    let message = "the connection of the stream has ended";
                    Err(RpcError::new(Code::Cancelled, Executed::Yes, message))
                }
            }
        })
    }
}

impl Sink for Outflow {
    fn is_ready(&self) -> bool {
        // Once closed, the next item gets the error: waiting would never end.
        (self.grants.credit().is_open() && self.has_room()) || self.connection.outbox.is_closed()
    }

    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let outbox = &self.connection.outbox;
            while !self.grants.credit().is_open() && !outbox.is_closed() {
                self.grants.more.notified().await;
            }
            outbox.below(STREAM_UNWRITTEN_BYTES_MAX).await;
        })
    }

    fn send(&self, item: &Item) -> Result<Option<BoxFuture<'_, ()>>, RpcError> {
        self.push(item)
    }

    fn has_sent(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    fn leaving(&self) -> BoxFuture<'static, ()> {
        let farewell = self.connection.core.farewell.clone();
        Box::pin(async move { farewell.cancelled().await })
    }
}

impl Drop for Outflow {
    fn drop(&mut self) {
        let mut table = self.connection.streams.table();
        // A peer that uses an id twice may have another stream under it by now.
        if table
            .get(&self.id)
            .is_some_and(|known| Arc::ptr_eq(known, &self.grants))
        {
            table.remove(&self.id);
        }
    }
}
