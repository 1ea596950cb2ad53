//! Lists that are longer than one answer.

use mq_common::api::group::{GroupMode, HeartbeatRequest, StartAt};
use mq_common::api::page::all_pages;
use mq_common::api::transaction::SendHalfRequest;
use mq_common::api::{Page, PageRequest};
use mq_common::ids::{Durability, GroupName, MemberId};
use mq_common::limits::PAGE_PARTS_MAX;
use rpc_core::Attachment;

use crate::support::{BrokerProcess, Client, batch, topic, topic_batches};

const fn two_after<C>(after: Option<C>) -> PageRequest<C> {
    PageRequest { after, max: Some(2) }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_groups_and_transactions_come_page_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let names: Vec<_> = (0..5).map(|number| format!("t{number}")).collect();
    for name in &names {
        let topic = topic(name);
        client.create_topic(&topic, 1, Durability::Memory).await;
        let heartbeat = HeartbeatRequest {
            group: GroupName::new(name.as_str()).unwrap(),
            member: MemberId("m".to_owned()),
            topic: topic.clone(),
            mode: GroupMode::Stream,
            start: Some(StartAt::Earliest),
            owned: Vec::new(),
            leaving: false,
        };
        client.group.heartbeat(heartbeat).await.unwrap();
        let half = batch(&["x"]);
        let request = SendHalfRequest {
            producer_group: GroupName::new("p").unwrap(),
            key: None,
            digest: None,
            topics: vec![topic_batches(&topic, &[(0, &half)])],
            check_after_ms: None,
        };
        let attachment = Attachment::from(vec![half.into_bytes()]);
        client.transaction.send_half(request, attachment).await.unwrap();
    }

    let Page { items, next } = client.admin.topics(two_after(None)).await.unwrap();
    assert_eq!((items.len(), next.as_ref()), (2, Some(&topic("t1"))));
    let all = all_pages(|page| client.admin.topics(two_after(page.after)))
        .await
        .unwrap();
    assert_eq!(
        all.iter().map(|topic| topic.name.as_str()).collect::<Vec<_>>(),
        names
    );

    let Page { items, next } = client.group.list(two_after(None)).await.unwrap();
    assert_eq!((items.len(), next.is_some()), (2, true));
    let all = all_pages(|page| client.group.list(two_after(page.after)))
        .await
        .unwrap();
    assert_eq!(
        all.iter().map(|group| group.group.as_str()).collect::<Vec<_>>(),
        names
    );

    let Page { items, next } = client.transaction.list(two_after(None)).await.unwrap();
    assert_eq!((items.len(), next.is_some()), (2, true));
    let all = all_pages(|page| client.transaction.list(two_after(page.after)))
        .await
        .unwrap();
    let topics: Vec<_> = all.iter().map(|open| open.topics[0].as_str()).collect();
    assert_eq!(topics, names, "oldest first");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_with_many_queues_do_not_share_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(&folder.path().join("data"));
    let client = Client::connect(&broker).await;
    let queues = u32::try_from(PAGE_PARTS_MAX * 2 / 3).unwrap();
    let (one, two) = (topic("one"), topic("two"));
    client.create_topic(&one, queues, Durability::Memory).await;
    client.create_topic(&two, queues, Durability::Memory).await;
    let first = client.admin.topics(PageRequest::default()).await.unwrap();
    assert_eq!((first.items.len(), first.next), (1, Some(one)));
    let all = all_pages(|page| client.admin.topics(page)).await.unwrap();
    assert_eq!(all.len(), 2);
}
