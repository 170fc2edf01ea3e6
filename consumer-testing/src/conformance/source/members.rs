//! Several members of one group, and several groups.

use std::{collections::BTreeSet, time::Duration};

use consumer_core::Event;
use tokio::time::timeout;

use super::super::broker::{BrokerUnderTest, Case, distinct, number, numbers, sorted};
use crate::drive::{Driven, drive_until};

/// How long members may take to get a share before more is published for them.
const ROUND: Duration = Duration::from_secs(1);

impl<T: BrokerUnderTest> Case<'_, T> {
    /// Publishes numbers from 0 on until every member has got some, and all have got all. The answer is the next number.
    async fn shared(&self, members: &mut [&mut Driven<T::Source>]) -> u32 {
        let rule = self.rule;
        let joined = drive_until(members, |members| members.iter().all(|m| connected(m))).await;
        assert!(joined, "{rule}: every member is connected");
        let mut next = 0;
        for _ in 0..self.subject.patience().as_secs().max(1) {
            self.publish_keys(next..next + 40).await;
            next += 40;
            let all = drive_until(members, |members| distinct(members).len() >= next as usize).await;
            assert!(all, "{rule}: {} of {next} came to the members together", distinct(members).len());
            // A member may be connected before it has its share.
            let shared =
                drive_until(members, |members| members.iter().all(|member| !member.payloads.is_empty()));
            if timeout(ROUND, shared).await == Ok(true) {
                return next;
            }
        }
        let shares: Vec<_> = members.iter().map(|member| member.payloads.len()).collect();
        panic!("{rule}: every member gets a share, got {shares:?}");
    }
}

fn connected<S>(member: &Driven<S>) -> bool {
    member.events.contains(&Event::Connected)
}

fn asked_to_close<S>(member: &Driven<S>) -> bool {
    member.events.iter().any(|event| matches!(event, Event::Closing { .. }))
}

/// Groups do not take messages from each other.
pub async fn every_group_gets_every_message<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "every_group_gets_every_message", 2).await;
    let groups = [case.group().await, case.group().await];
    case.publish_numbers(0..20).await;
    for group in &groups {
        let mut member = case.member(group).await;
        let taken = member.take(20, case.rule).await;
        assert_eq!(sorted(&taken), (0..20).collect::<Vec<_>>(), "every_group_gets_every_message");
        member.ack(&taken);
        member.close().await;
    }
}

/// Five members of a group share: each gets something, and every message comes exactly once among them while all of
/// them ack.
pub async fn many_members_share<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "many_members_share", 10).await;
    let group = case.group().await;
    let mut members = Vec::new();
    for _ in 0..5 {
        members.push(case.member(&group).await.acking());
    }
    let mut members: Vec<_> = members.iter_mut().collect();
    let published = case.shared(&mut members).await;
    let delivered: usize = members.iter().map(|member| member.payloads.len()).sum();
    assert_eq!(delivered, published as usize, "many_members_share: what was acked came again");
    for member in members {
        member.close().await;
    }
}

/// What a member held when it closed goes to the one that stays, and what it had acked does not.
pub async fn a_member_that_leaves_gives_back_what_it_held<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_member_that_leaves_gives_back_what_it_held", 2).await;
    let group = case.group().await;
    case.publish_keys(0..40).await;
    let mut leaves = case.member(&group).await;
    let taken = leaves.take(20, case.rule).await;
    let (done, _) = taken.split_at(10);
    leaves.ack(done);
    let mut stays = case.member(&group).await.acking();
    let joined =
        drive_until(&mut [&mut leaves, &mut stays], |members| members.iter().all(|m| connected(m))).await;
    assert!(joined, "a_member_that_leaves_gives_back_what_it_held: both are connected");
    leaves.close().await;
    let rest = drive_until(&mut [&mut stays], |members| distinct(members).len() >= 30).await;
    let done: BTreeSet<_> = numbers(done).into_iter().collect();
    let expected: Vec<_> = (0..40).filter(|n| !done.contains(n)).collect();
    let got = distinct(&[&mut stays]);
    assert!(rest, "a_member_that_leaves_gives_back_what_it_held: {} of 30", got.len());
    assert_eq!(got, expected, "a_member_that_leaves_gives_back_what_it_held: what was acked came again");
    stays.close().await;
}

/// Two members that close at the same time in the middle of their messages leave the rest to the next, and nothing that
/// they had acked.
pub async fn closing_at_once_loses_nothing<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "closing_at_once_loses_nothing", 2).await;
    let group = case.group().await;
    let (mut first, mut second) = (case.member(&group).await.acking(), case.member(&group).await.acking());
    let shared = case.shared(&mut [&mut first, &mut second]).await;
    first.set_acking(false);
    second.set_acking(false);
    case.publish_keys(shared..shared + 60).await;
    let published = shared + 60;
    let all =
        drive_until(&mut [&mut first, &mut second], |members| distinct(members).len() >= published as usize)
            .await;
    assert!(all, "closing_at_once_loses_nothing: all of it is held");
    let mut acked = BTreeSet::new();
    for member in [&mut first, &mut second] {
        let held = member.take_buffered();
        let done = &held[..held.len() / 2];
        member.ack(done);
        acked.extend(numbers(done));
    }
    tokio::join!(first.close(), second.close());

    let mut next = case.member(&group).await.acking();
    let expected: Vec<_> = (shared..published).filter(|n| !acked.contains(n)).collect();
    let all = drive_until(&mut [&mut next], |members| distinct(members).len() >= expected.len()).await;
    let got = distinct(&[&mut next]);
    assert!(all, "closing_at_once_loses_nothing: {} of {}", got.len(), expected.len());
    assert_eq!(got, expected, "closing_at_once_loses_nothing: what was acked came again");
    next.close().await;
}

/// A member that joins takes its share over from one that is asked to give it up, and one that leaves gives its share to
/// the others: nothing is lost, and what was acked before the handover does not come again.
pub async fn members_share_and_hand_over<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "members_share_and_hand_over", 4).await;
    let group = case.group().await;
    let mut first = case.member(&group).await.acking();
    let mut second = case.member(&group).await.acking();
    case.publish_keys(0..40).await;
    let all = drive_until(&mut [&mut first], |members| distinct(members).len() >= 40).await;
    assert!(all, "members_share_and_hand_over: one member alone gets everything");
    let shared = drive_until(&mut [&mut first, &mut second], |members| {
        asked_to_close(members[0]) && connected(members[1])
    })
    .await;
    assert!(shared, "members_share_and_hand_over: the first member is asked for a part");
    let mut next = 40;
    for _ in 0..20 {
        case.publish_keys(next..next + 40).await;
        next += 40;
        let got =
            drive_until(&mut [&mut first, &mut second], |members| distinct(members).len() >= next as usize)
                .await;
        assert!(got, "members_share_and_hand_over: both members together get everything");
        if !second.payloads.is_empty() {
            break;
        }
    }
    assert!(!second.payloads.is_empty(), "members_share_and_hand_over: the second member gets a share");
    let delivered = first.payloads.len() + second.payloads.len();
    assert_eq!(delivered, next as usize, "members_share_and_hand_over: what was acked came again");
    first.close().await;
    case.publish_keys(next..next + 40).await;
    next += 40;
    let before: BTreeSet<_> = first.payloads.iter().map(|payload| number(payload)).collect();
    let rest = drive_until(&mut [&mut second], |members| {
        let after = distinct(members);
        before.iter().chain(&after).collect::<BTreeSet<_>>().len() >= next as usize
    })
    .await;
    assert!(rest, "members_share_and_hand_over: the one that stays gets everything");
    second.close().await;
}

/// A member that is full is told to give up a part of its share all the same.
pub async fn a_full_member_learns_of_a_revoke<T: BrokerUnderTest>(subject: &T) {
    let case = Case::new(subject, "a_full_member_learns_of_a_revoke", 2).await;
    let group = case.group().await;
    case.publish_keys(0..10).await;
    let mut first = case.member(&group).await;
    // Some sources know of their partitions only with the first message.
    first.set_room(1);
    first.take(1, case.rule).await;
    first.set_room(0);
    let mut second = case.member(&group).await;
    let closing = drive_until(&mut [&mut first, &mut second], |members| asked_to_close(members[0])).await;
    assert!(closing, "a_full_member_learns_of_a_revoke: got {:?}", first.events);
    second.close().await;
    first.close().await;
}
