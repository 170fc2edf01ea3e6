//! What becomes of a delivery that is settled, or is not.

use consumer_core::{Settlement, Source};

use super::super::broker::{BrokerUnderTest, Case, numbers, sorted};

/// An ack that was flushed holds.
pub async fn what_was_acked_does_not_come_again<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "what_was_acked_does_not_come_again", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..200).await;
    let mut member = case.member(&group).await;
    let taken = member.take(200, case.rule).await;
    member.ack(&taken);
    member.flush().await;
    member.close().await;
    case.nothing_is_left(&group, 200).await;
}

/// An ack holds once the source is closed, whether or not it was flushed before: closing waits until the broker has
/// taken the last ack. Several times over, since a broker may be too late only now and then.
pub async fn closing_settles_what_was_acked<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "closing_settles_what_was_acked", 1).await;
    let group = case.group().await;
    for round in 0..5 {
        let (first, end) = (round * 100, round * 100 + 100);
        case.publish_numbers(first..end).await;
        let mut member = case.member(&group).await;
        let taken = member.take(100, case.rule).await;
        assert_eq!(sorted(&taken), (first..end).collect::<Vec<_>>(), "closing_settles_what_was_acked");
        member.ack(&taken);
        member.close().await;
    }
    case.nothing_is_left(&group, 500).await;
}

/// Closing does not ack what is still held.
pub async fn what_was_not_acked_comes_again<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "what_was_not_acked_comes_again", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..4).await;
    let mut member = case.member(&group).await;
    let taken = member.take(4, case.rule).await;
    member.ack(&taken[..2]);
    member.close().await;
    let mut next = case.member(&group).await;
    let again = next.take(2, case.rule).await;
    assert_eq!(sorted(&again), [2, 3], "what_was_not_acked_comes_again");
    next.close().await;
}

/// A rejected message is done with.
pub async fn a_rejected_message_does_not_come_again<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_rejected_message_does_not_come_again", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..1).await;
    let mut member = case.member(&group).await;
    let taken = member.take(1, case.rule).await;
    member.settle(taken[0].tag, Settlement::Reject);
    member.flush().await;
    member.close().await;
    case.nothing_is_left(&group, 1).await;
}

/// A nacked message comes again, without anything being closed, and is not lost by what is acked behind it.
pub async fn a_nacked_message_comes_again<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_nacked_message_comes_again", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..3).await;
    let mut member = case.member(&group).await;
    let taken = member.take(3, case.rule).await;
    member.settle(taken[0].tag, Settlement::Nack);
    member.ack(&taken[1..]);
    let again = member.take(1, case.rule).await;
    assert_eq!(numbers(&again), [0], "a_nacked_message_comes_again");
    member.ack(&again);
    member.flush().await;
    member.close().await;
    case.nothing_is_left(&group, 3).await;
}

/// Acks in another order commit nothing that is not acked (failure mode 12).
pub async fn acks_out_of_order_lose_nothing<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "acks_out_of_order_lose_nothing", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..6).await;
    let mut member = case.member(&group).await;
    let taken = member.take(6, case.rule).await;
    member.ack(taken.iter().rev().take(4));
    member.ack(&taken[..1]);
    member.flush().await;
    member.close().await;
    let mut next = case.member(&group).await;
    let again = next.take(1, case.rule).await;
    assert_eq!(numbers(&again), [1], "acks_out_of_order_lose_nothing: 1 was never acked");
    next.close().await;
}

/// A tag that names nothing settles nothing.
pub async fn stale_tags_are_ignored<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "stale_tags_are_ignored", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..2).await;
    let mut member = case.member(&group).await;
    let taken = member.take(2, case.rule).await;
    for mut tag in [taken[0].tag, taken[1].tag] {
        tag.scope = tag.scope.wrapping_add(1_000_000);
        member.settle(tag, Settlement::Ack);
    }
    member.source().release(taken[0].tag.scope.wrapping_add(1_000_000));
    member.flush().await;
    member.close().await;

    let mut next = case.member(&group).await;
    // The scope of the closed source has ended: a late settlement of it (failure mode 14) must not be mistaken for
    // one of the new assignment.
    let again = next.take(2, case.rule).await;
    if again[0].tag != taken[0].tag {
        next.ack(&taken);
    }
    next.flush().await;
    next.close().await;
    let mut last = case.member(&group).await;
    let last_taken = last.take(2, "stale_tags_are_ignored: a stale tag has acked").await;
    last.ack(&last_taken);
    last.close().await;
}

/// Only the first settlement of a delivery counts, and a second one does no harm.
pub async fn settling_twice_changes_nothing<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "settling_twice_changes_nothing", 1).await;
    let group = case.group().await;
    case.publish_numbers(0..2).await;
    let mut member = case.member(&group).await;
    let taken = member.take(2, case.rule).await;
    member.ack(&taken);
    member.ack(&taken);
    member.settle(taken[0].tag, Settlement::Nack);
    member.flush().await;
    case.publish_numbers(2..3).await;
    let next = member.take(1, case.rule).await;
    assert_eq!(numbers(&next), [2], "settling_twice_changes_nothing");
    member.ack(&next);
    member.close().await;
    case.nothing_is_left(&group, 3).await;
}

/// A group that comes back goes on behind what it had acked.
pub async fn a_group_goes_on_where_it_stopped<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_group_goes_on_where_it_stopped", 1).await;
    let group = case.group().await;
    for round in 0..3 {
        case.publish_numbers(round * 10..round * 10 + 10).await;
        let mut member = case.member(&group).await;
        let taken = member.take(10, case.rule).await;
        let expected: Vec<_> = (round * 10..round * 10 + 10).collect();
        assert_eq!(numbers(&taken), expected, "a_group_goes_on_where_it_stopped: round {round}");
        member.ack(&taken);
        member.close().await;
    }
}
