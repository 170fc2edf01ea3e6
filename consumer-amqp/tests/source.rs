//! The source against a real RabbitMQ.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::time::Duration;

use common::{
    admin, by_proxy, connected, consumer, drive, number, numbers, produce, publisher, queue, until_depth,
};
use consumer_amqp::{AmqpDelivery, AmqpSource, Queue};
use consumer_core::{Demand, Event, Settlement, Source, runtime::Ordering};
use consumer_testing::proxy::Direction;
use tokio::time::timeout;
use xtask::servers::shared_rabbitmq;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_is_acked_is_gone_and_what_is_not_comes_again() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..10).await;
    let mut first = drive(consumer(&url, &queue));
    let got = first.take(10, "all").await;
    assert_eq!(numbers(&got), (0..10).collect::<Vec<_>>());
    first.ack(&got[..7]);
    first.close().await;
    let mut second = drive(consumer(&url, &queue));
    let got = second.take(3, "the rest").await;
    assert_eq!(numbers(&got), [7, 8, 9]);
    for delivery in &got {
        let native = delivery.message.native::<AmqpDelivery>().unwrap();
        assert!(native.is_redelivered());
        assert_eq!(native.delivery_count(), Some(1));
    }
    second.ack(&got);
    second.close().await;
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn after_a_clean_close_nothing_that_was_acked_comes_again_in_200_runs() {
    clean_closes(200, Queue::quorum(common::unique("q"))).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn after_a_clean_close_of_a_single_active_consumer_nothing_comes_again_either() {
    clean_closes(100, Queue::quorum(common::unique("q")).single_active_consumer()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn after_a_clean_close_nothing_comes_again_from_a_classic_queue() {
    clean_closes(50, Queue::classic(common::unique("q"))).await;
}

async fn clean_closes(runs: u32, described: Queue) {
    const EACH: u32 = 150;
    let url = shared_rabbitmq();
    let publisher = publisher(&url);
    admin(&url).ensure_queue(described.clone()).await.unwrap();
    let queue = described.name().to_owned();
    let consumer = || AmqpSource::builder(&url).queue(described.clone());
    for run in 0..runs {
        produce(&publisher, &queue, 0..EACH).await;
        let mut member = drive(consumer().prefetch(200));
        let got = member.take(EACH as usize, "all").await;
        // Two of three, so that the close begins with a hundred frames on their way.
        let (kept, acked): (Vec<_>, Vec<_>) =
            got.into_iter().partition(|d| (d.tag.seq + u64::from(run)) % 3 == 0);
        member.ack(&acked);
        member.close().await;
        let mut next = drive(consumer());
        let left = next.take(kept.len(), "what was not acked").await;
        assert_eq!(numbers(&left), numbers(&kept), "in run {run} something that was acked came again");
        next.ack(&left);
        next.close().await;
    }
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_flush_is_done_when_the_broker_has_every_ack() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..100).await;
    let mut member = drive(consumer(&url, &queue));
    let got = member.take(100, "all").await;
    member.ack(got.iter().rev().take(25));
    member.flush().await;
    // The connection goes without a word.
    drop(member);
    let mut next = drive(consumer(&url, &queue));
    assert_eq!(numbers(&next.take(75, "what was not acked").await), (0..75).collect::<Vec<_>>());
    next.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_nack_hands_it_over_again_before_others_and_a_reject_leads_to_the_dead_letters() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..4).await;
    let mut member = drive(consumer(&url, &queue));
    // One by one, or the third may be here before the first is handed back.
    member.set_room(1);
    let got = member.take(2, "the first two").await;
    member.settle(got[0].tag, Settlement::Nack);
    member.settle(got[1].tag, Settlement::Reject);
    let again = member.take(3, "the nacked one and the others").await;
    assert_eq!(numbers(&again), [0, 2, 3]);
    member.ack(&again);
    member.close().await;
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
    let dead = common::contents(&url, &format!("{queue}.dead")).await;
    assert_eq!(dead.iter().map(common::number).collect::<Vec<_>>(), [1]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_prefetch_bounds_what_is_taken_from_the_queue() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..100).await;
    let mut member = drive(consumer(&url, &queue)).demand(10);
    let got = member.take(10, "ten").await;
    let depth = async {
        while admin(&url).depth(&queue).await.unwrap() != Some(90) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(common::LIMIT, depth).await.expect("ten are taken, and no more");
    member.ack(&got);
    assert_eq!(numbers(&member.take(10, "ten more").await), (10..20).collect::<Vec<_>>());
    member.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn with_many_in_flight_more_are_sent_ahead() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..300).await;
    let mut member = drive(consumer(&url, &queue)).demand(64);
    member.set_room(64);
    let got = member.take(64, "as many as there is room for").await;
    let depth = async {
        while admin(&url).depth(&queue).await.unwrap() != Some(300 - 4 * 64) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(common::LIMIT, depth).await.expect("four times as many are here");
    member.ack(&got);
    member.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_is_done_behind_a_message_that_is_not_makes_room_for_more() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..300).await;
    let mut member = drive(consumer(&url, &queue).prefetch(20));
    let held = member.take(1, "the one that is held").await;
    for n in 1..300 {
        let got = member.take(1, "the next").await;
        assert_eq!(numbers(&got), [n]);
        member.ack(&got);
    }
    member.ack(&held);
    member.close().await;
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_lag_is_known() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..50).await;
    let mut member = drive(consumer(&url, &queue).prefetch(10));
    member.set_room(4);
    connected(&mut member).await;
    let known = std::future::poll_fn(|cx| {
        while member.poll(cx).is_ready() {}
        match member.source().lag() {
            Some(46) => std::task::Poll::Ready(()),
            _ => std::task::Poll::Pending,
        }
    });
    tokio::time::timeout(common::LIMIT, known).await.expect("46 wait behind the four that were handed over");
    member.close().await;
}

#[tokio::test]
async fn what_cannot_be_consumed_as_asked_is_said_before_the_first_connection() {
    let source = |builder: consumer_amqp::AmqpSourceBuilder| builder.build().unwrap();
    let refused = |mut source: AmqpSource, demand| source.configure(demand).unwrap_err().to_string();
    let quorum = || AmqpSource::builder("amqp://localhost").queue("orders");
    let error = refused(source(quorum()), Demand::new(2_001));
    assert!(error.contains("2001") && error.contains("2000") && error.contains("orders"), "{error}");
    source(quorum()).configure(Demand::new(2_000)).unwrap();
    source(quorum().prefetch(100)).configure(Demand::new(5_000)).unwrap();
    let classic = || AmqpSource::builder("amqp://localhost").queue(Queue::classic("orders"));
    source(classic()).configure(Demand::new(2_001)).unwrap();
    assert!(refused(source(classic()), Demand::new(70_000)).contains("65,535"));
    let error = refused(source(quorum()), Demand::new(10).ordered(Ordering::Partition));
    assert!(error.contains("single_active_consumer"), "{error}");
    let single = Queue::quorum("orders").single_active_consumer();
    source(AmqpSource::builder("amqp://localhost").queue(single))
        .configure(Demand::new(10).ordered(Ordering::Partition))
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_second_consumer_of_a_single_active_queue_stands_by() {
    let url = shared_rabbitmq();
    let name = common::unique("q");
    let builder = || AmqpSource::builder(&url).queue(Queue::quorum(&name).single_active_consumer());
    let mut first = drive(builder());
    connected(&mut first).await;
    let mut second = drive(builder());
    connected(&mut second).await;
    produce(&publisher(&url), &name, 0..10).await;
    let got = first.take(10, "all at the first").await;
    first.ack(&got[..5]);
    first.close().await;
    let got = second.take(5, "the rest at the second, in order").await;
    assert_eq!(numbers(&got), [5, 6, 7, 8, 9]);
    assert_eq!(second.events, [Event::Connected]);
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_order_of_a_single_active_consumer_is_kept_over_a_close() {
    let url = shared_rabbitmq();
    let publisher = publisher(&url);
    let described = Queue::quorum(common::unique("q")).single_active_consumer();
    admin(&url).ensure_queue(described.clone()).await.unwrap();
    let consumer = || AmqpSource::builder(&url).queue(described.clone());
    for run in 0..10 {
        produce(&publisher, described.name(), 0..20).await;
        let mut member = drive(consumer().prefetch(10));
        let got = member.take(10, "as many as it may hold").await;
        assert_eq!(numbers(&got), (0..10).collect::<Vec<_>>(), "in run {run}");
        // Makes room at the broker, which sends two more as the close begins.
        member.ack(&got[..2]);
        member.close().await;
        let mut next = drive(consumer());
        let rest = next.take(18, "the rest").await;
        let came =
            rest.iter().map(|it| (it.tag, it.message.native::<AmqpDelivery>().unwrap().delivery_count()));
        let came: Vec<_> = came.collect();
        assert_eq!(
            numbers(&rest),
            (2..20).collect::<Vec<_>>(),
            "in run {run}, as {came:?}, {:?}",
            next.events
        );
        next.ack(&rest);
        next.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_order_of_a_single_active_consumer_is_kept_when_a_source_is_dropped() {
    let url = shared_rabbitmq();
    let described = Queue::quorum(common::unique("q")).single_active_consumer();
    admin(&url).ensure_queue(described.clone()).await.unwrap();
    produce(&publisher(&url), described.name(), 0..20).await;
    let consumer = || AmqpSource::builder(&url).queue(described.clone());
    let mut member = drive(consumer().prefetch(10));
    let got = member.take(10, "as many as it may hold").await;
    // It only stands by, and takes over at once.
    let mut next = drive(consumer());
    assert!(next.wait_for(|events| events.contains(&Event::Connected)).await);
    member.ack(&got[..2]);
    drop(member);
    let mut rest = next.take(18, "the rest").await;
    // The acks may have been lost with the channel: then they come again, in front.
    rest.retain(|delivery| number(&delivery.message) >= 2);
    while rest.len() < 18 {
        rest.extend(next.take(1, "the rest").await);
    }
    assert_eq!(numbers(&rest), (2..20).collect::<Vec<_>>());
    next.ack(&rest);
    next.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn wherever_a_start_is_given_up_nothing_is_held_after_it() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    produce(&publisher(&direct), &queue, 0..5).await;
    proxy.delay(Direction::ToClient, Duration::from_millis(20));
    for step in 1.. {
        let mut member = drive(consumer(&url, &queue));
        let _ = timeout(step * Duration::from_millis(8), member.wait_for(|_| false)).await;
        if member.events.contains(&Event::Connected) {
            break;
        }
    }
    until_depth(&direct, &queue, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_waits_for_room_for_too_long_is_handed_back_one_by_one() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..10).await;
    let builder = consumer(&url, &queue).prefetch(10).consumer_timeout(Duration::from_secs(2));
    let mut member = drive(builder);
    member.set_room(1);
    let held = member.take(1, "one").await;
    member.set_room(0);
    // The nine others go back after a second, and come anew.
    let begin = tokio::time::Instant::now();
    let waited = std::future::poll_fn(|cx| {
        while member.poll(cx).is_ready() {}
        if begin.elapsed() > Duration::from_millis(1_500) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    });
    let _ = tokio::time::timeout(Duration::from_millis(1_600), waited).await;
    member.set_room(20);
    let others = member.take(9, "the others").await;
    assert_eq!(member.events, [Event::Connected], "the session goes on");
    for delivery in &others {
        assert_eq!(delivery.tag.scope, held[0].tag.scope);
        assert!(delivery.message.native::<AmqpDelivery>().unwrap().delivery_count() >= Some(1));
    }
    member.ack(&held);
    member.ack(&others);
    member.close().await;
    assert_eq!(admin(&url).depth(&queue).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_broker_without_a_consumer_timeout_can_be_said() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..1).await;
    let mut member = drive(consumer(&url, &queue).consumer_timeout(Duration::MAX));
    let got = member.take(1, "one").await;
    assert_eq!(got[0].message.hold_until(), None);
    member.ack(&got);
    member.close().await;
}
