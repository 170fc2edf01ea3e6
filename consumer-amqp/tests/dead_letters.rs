//! Dead letters against a real RabbitMQ: read, settled, and given back in their order.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::time::{Duration, SystemTime};

use common::{LIMIT, admin, by_proxy, drive, log, number, produce, publisher, unique, until_depth};
use consumer_amqp::{AmqpSource, Queue};
use consumer_core::{
    Message, Outgoing, Publisher, Settlement,
    dead_letters::{DeadLetter, DeadLetters, DeadLettersError, Letters, Settled, redriven},
};
use lapin::{
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;
use xtask::servers::shared_rabbitmq;

/// A queue with `0..count` in it.
async fn filled(url: &str, queue: Queue, count: u32) -> String {
    log();
    let name = queue.name().to_owned();
    admin(url).ensure_queue(queue).await.unwrap();
    let publisher = publisher(url);
    for from in (0..count).step_by(10_000) {
        produce(&publisher, &name, from..count.min(from + 10_000)).await;
    }
    name
}

fn dead() -> Queue {
    Queue::dead_letters(unique("dead"))
}

async fn open(url: &str, queue: &str) -> Box<dyn Letters> {
    timeout(LIMIT, admin(url).dead_letters(queue).open()).await.expect("it opens").unwrap()
}

async fn next(letters: &mut Box<dyn Letters>) -> Option<DeadLetter> {
    timeout(LIMIT, letters.next()).await.expect("it goes on").unwrap()
}

async fn take(letters: &mut Box<dyn Letters>, count: usize) -> Vec<DeadLetter> {
    let mut all = Vec::new();
    while all.len() < count
        && let Some(letter) = next(letters).await
    {
        all.push(letter);
    }
    all
}

async fn close(letters: Box<dyn Letters>) {
    timeout(LIMIT, letters.close()).await.expect("it closes").unwrap();
}

fn numbers(letters: &[DeadLetter]) -> Vec<u32> {
    letters.iter().map(|letter| number(letter.message())).collect()
}

async fn list(url: &str, queue: &str) -> Vec<u32> {
    let mut letters = open(url, queue).await;
    let all = take(&mut letters, usize::MAX).await;
    assert_eq!(letters.expected(), Some(all.len() as u64));
    close(letters).await;
    numbers(&all)
}

async fn settle(letters: &mut Box<dyn Letters>, settled: impl IntoIterator<Item = &DeadLetter>) {
    let answers: Vec<_> =
        settled.into_iter().map(|letter| letters.settle(letter.place(), Settled::Discarded)).collect();
    for answer in answers {
        timeout(LIMIT, answer).await.expect("it is told").unwrap();
    }
}

fn up_to(count: u32) -> Vec<u32> {
    (0..count).collect()
}

async fn stays_as_it_is(queue: Queue, count: u32) {
    let url = shared_rabbitmq();
    let name = filled(&url, queue, count).await;
    for time in 1..=3 {
        assert!(list(&url, &name).await == up_to(count), "another order at list {time}");
        assert_eq!(admin(&url).depth(&name).await.unwrap(), Some(count.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_list_leaves_everything_in_its_order_over_several_consumers() {
    stays_as_it_is(dead(), 5_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_list_leaves_the_order_of_a_classic_queue_and_of_one_with_a_single_active_consumer() {
    stays_as_it_is(Queue::classic(unique("dead")).without_dead_letter(), 5_000).await;
    stays_as_it_is(dead().single_active_consumer(), 5_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_order_stays_over_several_channels_and_what_is_settled_on_the_first_is_gone() {
    let url = shared_rabbitmq();
    let name = filled(&url, dead(), 66_000).await;
    for done in [0, 30_000] {
        let mut letters = open(&url, &name).await;
        let first = take(&mut letters, 30_000).await;
        while next(&mut letters).await.is_some() {}
        settle(&mut letters, first.iter().take(done)).await;
        // Every consumer is full: nothing is waited for before the close.
        close(letters).await;
    }
    assert!(list(&url, &name).await == (30_000..66_000).collect::<Vec<_>>());
}

/// A quorum queue as others declare it: with these arguments and no more.
async fn foreign(url: &str, limit: Option<i64>) -> Result<String, lapin::Error> {
    let connection = lapin::Connection::connect(url, Default::default()).await?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    if let Some(limit) = limit {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
    }
    let name = unique("dead");
    let options = QueueDeclareOptions {
        durable: true,
        passive: false,
        exclusive: false,
        auto_delete: false,
        nowait: false,
    };
    channel.queue_declare(name.as_str().into(), options, arguments).await?;
    Ok(name)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_limit_on_deliveries_is_told_of_and_the_order_stays_without_one() {
    let url = shared_rabbitmq();
    let notice = async |name: &str| {
        let letters = open(&url, name).await;
        let notice = letters.notice().unwrap().to_owned();
        close(letters).await;
        assert!(notice.contains(name) && notice.contains("get nothing"), "{notice}");
        notice
    };
    let ours = filled(&url, dead(), 0).await;
    assert!(!notice(&ours).await.contains("limit"));
    let classic = filled(&url, Queue::classic(unique("dead")).without_dead_letter(), 0).await;
    assert!(!notice(&classic).await.contains("limit"));
    let limited = foreign(&url, Some(7)).await.unwrap();
    assert!(notice(&limited).await.contains("limit of 7"));
    let unset = foreign(&url, None).await.unwrap();
    assert!(notice(&unset).await.contains("without a delivery limit"));
    produce(&publisher(&url), &unset, 0..5_000).await;
    for _ in 0..2 {
        assert!(list(&url, &unset).await == up_to(5_000));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_look_at_the_first_few_leaves_the_order() {
    let url = shared_rabbitmq();
    let name = filled(&url, dead(), 5_000).await;
    // What was given back before lies elsewhere in the queue than what was not: a few after all, and after a few.
    assert!(list(&url, &name).await == up_to(5_000));
    for few in [3, 3, 0, 2_001, 1, 3_500, 10, 2_000, 10] {
        let mut letters = open(&url, &name).await;
        assert_eq!(numbers(&take(&mut letters, few).await), up_to(few as u32));
        close(letters).await;
    }
    assert!(list(&url, &name).await == up_to(5_000));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_is_on_its_way_when_it_closes_keeps_its_place() {
    let url = shared_rabbitmq();
    for _ in 0..10 {
        let name = filled(&url, dead(), 5_000).await;
        let mut letters = open(&url, &name).await;
        let few = take(&mut letters, 1_500).await;
        // This makes room for as many.
        settle(&mut letters, few.iter().take(1_000)).await;
        close(letters).await;
        assert!(list(&url, &name).await == (1_000..5_000).collect::<Vec<_>>());
        admin(&url).delete_queue(&name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_is_settled_is_gone_and_the_rest_is_there_in_its_order() {
    let url = shared_rabbitmq();
    let name = filled(&url, dead(), 7_000).await;
    let mut letters = open(&url, &name).await;
    let mut kept = Vec::new();
    // Settled while further ones are read, by consumers that are read and by those before.
    while let Some(letter) = next(&mut letters).await {
        if number(letter.message()).is_multiple_of(3) {
            settle(&mut letters, [&letter]).await;
        } else {
            kept.push(letter);
        }
    }
    let (late, kept): (Vec<_>, Vec<_>) =
        kept.into_iter().partition(|letter| number(letter.message()) % 3 == 1);
    settle(&mut letters, &late).await;
    // Again, which is nothing new.
    settle(&mut letters, late.iter().take(10)).await;
    close(letters).await;
    assert!(list(&url, &name).await == numbers(&kept), "something is gone, or there again, or elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn after_a_close_nothing_that_was_settled_comes_again_in_50_runs() {
    let url = shared_rabbitmq();
    for run in 0..50 {
        let name = filled(&url, dead(), 4_000).await;
        let mut letters = open(&url, &name).await;
        let all = take(&mut letters, usize::MAX).await;
        // Of the first consumer only: the second stays full, and nothing is waited for before the close.
        let is_settled = |n: u32| n < 400 && !(n + run).is_multiple_of(3);
        let (settled, kept): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|letter| is_settled(number(letter.message())));
        settle(&mut letters, &settled).await;
        close(letters).await;
        let left = list(&url, &name).await;
        let more: Vec<_> = numbers(&settled).into_iter().filter(|n| left.contains(n)).collect();
        assert!(more.is_empty(), "settled, and there again in run {run}: {more:?}");
        assert!(left == numbers(&kept), "there are {} of {} in run {run}", left.len(), kept.len());
        admin(&url).delete_queue(&name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn dropped_without_a_close_it_gives_everything_back() {
    let url = shared_rabbitmq();
    let name = filled(&url, dead(), 5_000).await;
    let mut letters = open(&url, &name).await;
    take(&mut letters, 4_500).await;
    drop(letters);
    until_depth(&url, &name, 5_000).await;
    let mut all = list(&url, &name).await;
    all.sort_unstable();
    assert!(all == up_to(5_000));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn wherever_an_opening_is_given_up_nothing_is_held_after_it() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let name = filled(&direct, dead(), 5).await;
    proxy.delay(consumer_testing::proxy::Direction::ToClient, Duration::from_millis(20));
    for step in 1.. {
        let admin = admin(&url);
        if timeout(step * Duration::from_millis(10), admin.dead_letters(&name).open()).await.is_ok() {
            break;
        }
    }
    until_depth(&direct, &name, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_queue_that_is_empty_has_none_and_one_that_is_missing_says_so() {
    let url = shared_rabbitmq();
    let name = filled(&url, dead(), 0).await;
    assert!(list(&url, &name).await.is_empty());
    let error = admin(&url).dead_letters(unique("nowhere")).open().await.unwrap_err();
    assert!(error.is_missing() && error.to_string().contains("nowhere"), "{error:?}");
    assert!(!admin(&url).dead_letters("").open().await.unwrap_err().is_missing());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_others_hold_is_left_out_and_not_waited_for() {
    let url = shared_rabbitmq();
    let name = filled(&url, dead(), 100).await;
    let described = Queue::dead_letters(&name);
    let mut other = drive(AmqpSource::builder(&url).queue(described).prefetch(30));
    let theirs = other.take(30, "what another consumer takes").await;
    let mut letters = open(&url, &name).await;
    assert_eq!(letters.expected(), Some(70));
    assert_eq!(numbers(&take(&mut letters, usize::MAX).await), (30..100).collect::<Vec<_>>());
    other.ack(&theirs);
    close(letters).await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn letters_that_vanish_meanwhile_are_not_waited_for() {
    let url = shared_rabbitmq();
    let name = filled(&url, dead(), 3_000).await;
    let mut letters = open(&url, &name).await;
    take(&mut letters, 100).await;
    admin(&url).purge_queue(&name).await.unwrap();
    assert!(take(&mut letters, usize::MAX).await.len() >= 1_900, "the prefetch was here");
    assert_eq!(letters.expected(), Some(3_000));
    close(letters).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_queue_that_another_consumer_has_alone_is_an_error_and_no_end() {
    let url = shared_rabbitmq();
    let described = dead().single_active_consumer();
    let name = filled(&url, described.clone(), 50).await;
    let mut other = drive(AmqpSource::builder(&url).queue(described).prefetch(10));
    other.set_room(10);
    let theirs = other.take(10, "what the other has").await;
    let mut letters = open(&url, &name).await;
    let error = timeout(LIMIT, letters.next()).await.expect("it does not hang").unwrap_err();
    assert!(error.to_string().contains("alone"), "{error}");
    close(letters).await;
    other.ack(&theirs);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_connection_that_breaks_is_an_error_and_no_end() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let name = filled(&direct, dead(), 5_000).await;
    let mut letters = open(&url, &name).await;
    let read = take(&mut letters, 2_500).await;
    proxy.cut().await;
    let error: DeadLettersError = timeout(LIMIT, async {
        loop {
            match letters.next().await {
                Ok(letter) => assert!(letter.is_some(), "it ends as if that were all"),
                Err(error) => return error,
            }
        }
    })
    .await
    .expect("it ends");
    assert!(error.is_transient(), "{error:?}");
    let answer = letters.settle(read[0].place(), Settled::Redriven).await;
    assert!(answer.unwrap_err().is_transient());
    assert!(letters.close().await.unwrap_err().is_transient());
    let mut all = list(&direct, &name).await;
    all.sort_unstable();
    assert!(all == up_to(5_000));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_the_broker_set_aside_says_where_and_why() {
    let url = shared_rabbitmq();
    let name = unique("q");
    let short = Queue::quorum(&name).argument("x-message-ttl", 300).delivery_limit(1);
    admin(&url).ensure_queue(short.clone()).await.unwrap();
    produce(&publisher(&url), &name, [1]).await;
    // One is rejected, one delivered too often, one expires.
    let rejecting = || drive(AmqpSource::builder(&url).queue(short.clone()));
    let mut member = rejecting();
    let got = member.take(1, "the one to reject").await;
    member.settle(got[0].tag, Settlement::Reject);
    member.close().await;
    produce(&publisher(&url), &name, [2]).await;
    let dead = format!("{name}.dead");
    let mut reasons = Vec::new();
    until_depth(&url, &dead, 2).await;
    let mut letters = open(&url, &dead).await;
    while let Some(letter) = next(&mut letters).await {
        assert_eq!((letter.reason(), letter.origin()), ("broker", Some(&*name)));
        assert!(letter.last_failed_at().is_some());
        reasons.push(letter.error().unwrap().into_owned());
    }
    close(letters).await;
    assert!(reasons[0].ends_with("rejected") && reasons[1].ends_with("expired"), "{reasons:?}");
}

/// Takes the one message of a queue, and puts a copy back that comes after a moment.
async fn defer(url: &str, described: &Queue) -> Message {
    let mut member = drive(AmqpSource::builder(url).queue(described.clone()));
    let got = member.take(1, "it comes, and again after each delay").await;
    let copy = Outgoing::copy(described.name(), got[0].message.clone()).delay(Duration::from_millis(100));
    publisher(url).publish(copy).await.unwrap();
    member.ack(&got);
    member.close().await;
    got[0].message.clone()
}

/// RabbitMQ 3 believes the `x-death` that a client publishes, and drops what has been in a queue before unless it was
/// rejected there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm09_what_was_delivered_too_often_is_redriven_and_then_deferred_again_and_again() {
    let url = shared_rabbitmq();
    let name = unique("q");
    let described = Queue::quorum(&name).delivery_limit(1);
    admin(&url).ensure_queue(described.clone()).await.unwrap();
    produce(&publisher(&url), &name, [1]).await;
    defer(&url, &described).await;
    defer(&url, &described).await;
    defer(&url, &described).await;
    let dead = format!("{name}.dead");
    for _ in 0..2 {
        let mut member = drive(AmqpSource::builder(&url).queue(described.clone()));
        member.take(1, "the one whose consumer goes").await;
        member.close().await;
    }
    until_depth(&url, &dead, 1).await;
    let mut letters = open(&url, &dead).await;
    let letter = next(&mut letters).await.unwrap();
    assert_eq!(letter.error().as_deref(), Some("the broker dead-lettered it: delivery_limit"));
    let outgoing = redriven(&letter, None, SystemTime::now()).unwrap();
    assert_eq!(outgoing.target(), name);
    publisher(&url).publish(outgoing).await.unwrap();
    settle(&mut letters, [&letter]).await;
    close(letters).await;
    for _ in 0..3 {
        let message = defer(&url, &described).await;
        assert_eq!(message.headers().get_str("redrive-count"), Some("1"));
    }
    until_depth(&url, &name, 1).await;
    assert_eq!(admin(&url).depth(&dead).await.unwrap(), Some(0));
}
