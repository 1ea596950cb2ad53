//! Decides the new start of a queue from settings, cursors, and the age and size of its messages. Pure.

use mq_common::api::TopicSettings;
use mq_common::ids::Offset;

/// The offsets of a queue that consumers may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// First valid offset.
    pub(super) start: Offset,
    /// First offset that is not visible yet: nothing from there on is deleted.
    pub(super) end: Offset,
}

/// What was looked up for a decision; the start of the queue where no setting needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boundaries {
    /// First offset that is not too old.
    pub(super) young: Offset,
    /// First offset within the limit of bytes.
    pub(super) near: Offset,
    /// First offset that is young enough to be held for groups.
    pub(super) below_ceiling: Offset,
}

/// The new start; the old one if nothing is to be deleted. `acknowledged` = first offset that some group has
/// not acknowledged; `None` = the topic has no group.
pub(super) fn new_start(
    settings: &TopicSettings,
    range: Range,
    boundaries: &Boundaries,
    acknowledged: Option<Offset>,
) -> Offset {
    let mut start = boundaries.young.max(boundaries.near);
    if let (Some(_), Some(cursor)) = (settings.hold_ms, acknowledged) {
        start = start.min(cursor.max(boundaries.below_ceiling));
    }
    if let (true, Some(cursor)) = (settings.consumed, acknowledged) {
        start = start.max(cursor);
    }
    start.min(range.end).max(range.start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Range = Range {
        start: Offset(10),
        end: Offset(100),
    };

    fn found(young: u64, near: u64, below_ceiling: u64) -> Boundaries {
        Boundaries {
            young: Offset(young),
            near: Offset(near),
            below_ceiling: Offset(below_ceiling),
        }
    }

    fn start(settings: &TopicSettings, boundaries: &Boundaries, acknowledged: Option<u64>) -> u64 {
        new_start(settings, ALL, boundaries, acknowledged.map(Offset)).0
    }

    #[test]
    fn whichever_of_age_and_bytes_lets_more_go_decides() {
        let settings = TopicSettings::of_new_topic();
        assert_eq!(start(&settings, &found(40, 10, 10), Some(12)), 40);
        assert_eq!(start(&settings, &found(40, 60, 10), None), 60);
        assert_eq!(start(&settings, &found(10, 10, 10), Some(99)), 10);
    }

    #[test]
    fn nothing_invisible_goes_and_no_start_goes_back() {
        let settings = TopicSettings::of_new_topic();
        assert_eq!(start(&settings, &found(200, 10, 10), None), 100);
        assert_eq!(start(&settings, &found(3, 4, 5), None), 10);
    }

    #[test]
    fn consumed_goes_up_to_the_slowest_group_and_only_if_there_is_one() {
        let settings = TopicSettings {
            consumed: true,
            ..TopicSettings::default()
        };
        assert_eq!(start(&settings, &found(10, 10, 10), Some(70)), 70);
        assert_eq!(start(&settings, &found(10, 10, 10), None), 10);
    }

    #[test]
    fn what_a_group_has_not_acknowledged_is_held_up_to_the_ceiling() {
        let settings = TopicSettings {
            hold_ms: Some(1),
            ..TopicSettings::of_new_topic()
        };
        assert_eq!(start(&settings, &found(50, 60, 10), Some(20)), 20, "held");
        assert_eq!(
            start(&settings, &found(50, 60, 30), Some(20)),
            30,
            "too old for that"
        );
        assert_eq!(start(&settings, &found(50, 10, 10), Some(90)), 50, "young enough");
        assert_eq!(
            start(&settings, &found(50, 10, 10), None),
            50,
            "nobody to hold it for"
        );
    }

    proptest! {
        #[test]
        fn held_messages_go_only_above_the_ceiling_or_when_acknowledged(
            (young, near, ceiling) in (0..120_u64, 0..120_u64, 0..120_u64),
            cursor in 10..100_u64,
            consumed: bool,
        ) {
            let settings = TopicSettings { hold_ms: Some(1), consumed, ..TopicSettings::of_new_topic() };
            let start = start(&settings, &found(young, near, ceiling), Some(cursor));
            prop_assert!((10..=100).contains(&start));
            prop_assert!(start <= cursor.max(ceiling).max(10));
        }
    }
}
