//! Fetching from it: long polls over its queues, for owners only.

use std::time::Duration;

use mq_common::api::fetch::{
    FROM_DISK_META, Fetch, FetchRequest, FetchResponse, Fetched, KNOWS_COMPACTED_META,
};
use mq_common::batch::stamp_header;
use mq_common::ids::{Offset, QueueNumber, Timestamp, TopicName};
use mq_common::{Error, ErrorCode};
use rpc_core::{Attachment, Context};

use super::Services;

impl Fetch for Services {
    async fn fetch(&self, request: FetchRequest) -> Result<(FetchResponse, Attachment), Error> {
        let from_disk = Context::current().meta().value(FROM_DISK_META).is_some();
        let queues = request.wants.iter().map(|want| want.queue.0).collect();
        self.0.lock().fetches.push((queues, from_disk));
        let deadline = tokio::time::Instant::now() + Duration::from_millis(u64::from(request.wait_ms));
        loop {
            let changed = self.0.changed.notified();
            let (response, attachment) = self.look(&request);
            if !response.answers.is_empty() {
                return Ok((response, attachment));
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok((response, attachment));
            }
        }
    }

    async fn offset_at(&self, topic: TopicName, queue: QueueNumber, _: Timestamp) -> Result<Offset, Error> {
        Ok(self.0.lock().end(&topic, queue))
    }
}

impl Services {
    fn look(&self, request: &FetchRequest) -> (FetchResponse, Attachment) {
        let mut state = self.0.lock();
        let mut attachment = Attachment::new();
        let mut answers = Vec::new();
        let knows_compacted = Context::current().meta().value(KNOWS_COMPACTED_META).is_some();
        let from_disk = Context::current().meta().value(FROM_DISK_META).is_some();
        for (index, want) in (0_u32..).zip(&request.wants) {
            let owner = request.member.as_ref().and_then(|(group, member)| {
                let owner = state.groups.get(group)?.owners.get(&want.queue)?;
                (owner.0 == *member && Some(owner.1) == want.epoch).then_some(())
            });
            if request.member.is_some() && owner.is_none() {
                answers.push((index, Err(Error::new(ErrorCode::Fenced, "not the owner"))));
                continue;
            }
            if state.refused.contains(&want.queue.0) {
                answers.push((index, Err(Error::new(ErrorCode::Overloaded, "not now"))));
                continue;
            }
            let end = state.end(&want.topic, want.queue);
            if want.offset >= end {
                continue;
            }
            if want.offset < state.start {
                let mut error = Error::new(ErrorCode::OffsetOutOfRange, "trimmed");
                error.range = Some((state.start.0, end.0));
                answers.push((index, Err(error)));
                continue;
            }
            let before = attachment.len();
            let mut spoiled = state.fetches_to_spoil > 0;
            state.fetches_to_spoil = state.fetches_to_spoil.saturating_sub(1);
            let log = &state.queues[&(want.topic.clone(), want.queue)];
            let mut next_offset = want.offset;
            let (mut holes, mut compacted) = (Vec::new(), Vec::new());
            for (stamp, batch) in log {
                let behind = stamp.base_offset.0 + u64::from(batch.record_count());
                if behind <= want.offset.0 || attachment.len() > request.bytes_max as usize {
                    continue;
                }
                next_offset = Offset(behind);
                let place = (want.topic.clone(), want.queue, stamp.base_offset);
                if let Some(is_compacted) = state.gone.get(&place) {
                    let hole = (stamp.base_offset.max(want.offset), next_offset);
                    holes.push(hole);
                    compacted.extend((*is_compacted && knows_compacted).then_some(hole));
                    continue;
                }
                if std::mem::take(&mut spoiled) {
                    continue;
                }
                let header = stamp_header(stamp, batch.header().region_bytes, batch.checksum());
                attachment.push(bytes::Bytes::copy_from_slice(&header));
                let mut region = batch.bytes().to_vec();
                if state.damaged_in_memory.contains(&want.queue.0) && !from_disk {
                    *region.last_mut().unwrap() ^= 1;
                }
                attachment.push(region.into());
            }
            let fetched = Fetched {
                bytes: u32::try_from(attachment.len() - before).unwrap(),
                next_offset,
                end,
                holes,
                compacted,
            };
            answers.push((index, Ok(fetched)));
        }
        (FetchResponse { answers }, attachment)
    }
}
