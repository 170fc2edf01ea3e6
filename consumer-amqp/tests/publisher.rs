//! The publisher against a real RabbitMQ.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::time::{Duration, SystemTime};

use common::{admin, by_proxy, connected, consumer, contents, drive, produce, publisher, queue, unique};
use consumer_amqp::{AmqpDelivery, AmqpPublisher, AmqpSource, Exchange, Queue};
use consumer_core::{Message, Outgoing, PublishError, Publisher};
use consumer_testing::proxy::Direction;
use xtask::servers::shared_rabbitmq;

fn outgoing(queue: &str, payload: impl Into<bytes::Bytes>) -> Outgoing {
    Outgoing::new(queue, Message::builder().payload(payload).build())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_is_confirmed_is_in_the_queue_in_the_order_of_the_calls() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    produce(&publisher(&url), &queue, 0..5_000).await;
    let got = contents(&url, &queue).await;
    assert_eq!(got.iter().map(common::number).collect::<Vec<_>>(), (0..5_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm20_what_no_queue_takes_is_an_error_and_nothing_else_is() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    let publisher = publisher(&url);
    let nowhere = unique("nowhere");
    for round in 0..20 {
        let sent: Vec<_> = (0..300_u32)
            .map(|n| {
                // Runs of either kind, so that one confirm stands for some of both.
                let lost = (n + round) % 7 < 3;
                let target = if lost { &nowhere } else { &queue };
                (lost, publisher.publish(outgoing(target, n.to_string())))
            })
            .collect();
        for (lost, answer) in sent {
            match answer.await {
                Ok(()) => assert!(!lost, "confirmed, and no queue took it"),
                Err(error) => assert!(lost && error.is_unroutable(), "{error:?}"),
            }
        }
    }
    let error = publisher.publish(outgoing(&nowhere, "x")).await.unwrap_err();
    assert!(error.to_string().contains(&nowhere) && error.to_string().contains("NO_ROUTE"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn an_exchange_that_does_not_exist_is_an_error_of_every_publish_to_it() {
    let url = shared_rabbitmq();
    let publisher = AmqpPublisher::builder(&url).exchange(unique("nowhere")).build().unwrap();
    let sent: Vec<_> = (0..50).map(|n: u32| publisher.publish(outgoing("key", n.to_string()))).collect();
    for answer in sent {
        let error = answer.await.unwrap_err();
        assert!(error.is_unroutable() && error.to_string().contains("no exchange"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn the_error_over_one_message_finds_that_message() {
    let server = xtask::servers::RabbitMq::builder().option("max_message_size", "100000").start().unwrap();
    let url = server.url();
    let queue = queue(&url).await;
    let publisher = publisher(&url);
    let sent: Vec<_> = (0..60_u32)
        .map(|n| {
            let large = n % 20 == 13;
            let payload = if large { vec![0; 100_001] } else { n.to_string().into_bytes() };
            (large, publisher.publish(outgoing(&queue, payload)))
        })
        .collect();
    for (large, answer) in sent {
        match answer.await {
            Ok(()) => assert!(!large),
            Err(error) => assert!(large && error.is_too_large(), "{error:?}"),
        }
    }
    let mut got: Vec<u32> = contents(&url, &queue).await.iter().map(common::number).collect();
    // The broker had taken some before it closed the channel: those come twice, under one id.
    got.sort_unstable();
    got.dedup();
    assert_eq!(got, (0..60).filter(|n| n % 20 != 13).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn headers_that_no_frame_holds_are_the_error_of_their_message_alone() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    let publisher = AmqpPublisher::builder(&url).timeout(Duration::from_secs(10)).build().unwrap();
    let with = |count: usize, length: usize| {
        let value = "v".repeat(length);
        let mut message = Message::builder().payload("x");
        for n in 0..count {
            message = message.header(format!("header-{n}"), value.clone());
        }
        publisher.publish(Outgoing::new(queue.as_str(), message.build()))
    };
    // RabbitMQ agrees on frames of 131,072 bytes; what is around the value takes 130 of them.
    let sizes =
        [(1, 10), (1, 1 << 20), (10_000, 10), (1, 10), (1, 131_072), (1, 130_942), (1, 130_943), (1, 10)];
    let sent: Vec<_> =
        sizes.into_iter().map(|(count, length)| (count * length, with(count, length))).collect();
    for (size, answer) in sent {
        match answer.await {
            Ok(()) => assert!(size <= 130_942, "{size}"),
            Err(error) => {
                assert!(size >= 100_000 && error.is_too_large(), "{size}: {error:?}");
                assert!(error.to_string().contains("frame_max"), "{error}");
            }
        }
    }
    publisher.publish(outgoing(&queue, vec![7; 10_000_000])).await.unwrap();
    let got = contents(&url, &queue).await;
    assert_eq!(got.len(), 5);
    assert_eq!(got.iter().map(|message| message.payload().len()).max(), Some(10_000_000));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_full_queue_that_rejects_is_an_error_that_may_pass() {
    let url = shared_rabbitmq();
    let name = unique("q");
    let full = Queue::classic(&name).without_dead_letter().argument("x-max-length", 5);
    // `x-overflow` is ours to set on quorum queues only.
    let full = full.argument("x-overflow", "reject-publish");
    let error = admin(&url).ensure_queue(full).await.unwrap_err();
    assert!(error.is_config() && error.to_string().contains("x-overflow"), "{error}");
    let full = Queue::quorum(&name).argument("x-max-length", 5);
    admin(&url).ensure_queue(full).await.unwrap();
    let publisher = publisher(&url);
    let mut refused: Vec<PublishError> = Vec::new();
    for n in 0..20_u32 {
        refused.extend(publisher.publish(outgoing(&name, n.to_string())).await.err());
    }
    // RabbitMQ lets a few more in than it should.
    let depth = admin(&url).depth(&name).await.unwrap().unwrap();
    assert_eq!(depth, 20 - refused.len() as u64);
    assert!(!refused.is_empty());
    assert!(refused.iter().all(PublishError::is_transient), "{refused:?}");
    assert!(refused[0].to_string().contains("nack"), "{}", refused[0]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_message_goes_through_with_all_that_amqp_can_carry() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000);
    let message = Message::builder()
        .payload("{}")
        .key("o-1")
        .timestamp(at)
        .header("message-id", "id-1")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("correlation-id", "c-1")
        .header("content-type", "application/json")
        .header("binary", &b"\0\xff"[..])
        .header("twice", "a")
        .header("twice", "b")
        .build();
    publisher(&url).publish(Outgoing::new(queue.as_str(), message)).await.unwrap();
    let got = contents(&url, &queue).await.remove(0);
    assert_eq!(got.key().map(|key| &key[..]), Some(&b"o-1"[..]));
    assert_eq!(got.id().map(|id| &id[..]), Some(&b"id-1"[..]));
    assert_eq!(got.timestamp(), Some(at));
    let headers = got.headers();
    for (name, value) in [
        ("message-id", "id-1"),
        ("message-key", "o-1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("correlation-id", "c-1"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(headers.get_str(name), Some(value), "{name}");
    }
    assert_eq!(headers.get("binary").map(|value| &value[..]), Some(&b"\0\xff"[..]));
    let twice: Vec<_> = headers.get_all("twice").flatten().map(|value| &value[..]).collect();
    assert_eq!(twice, [b"a", b"b"]);
    assert!(got.native::<AmqpDelivery>().is_some());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_fanout_exchange_gives_every_queue_a_copy() {
    let url = shared_rabbitmq();
    let exchange = unique("events");
    let mut services = Vec::new();
    for service in ["analytics", "inventory"] {
        let queue = Queue::quorum(unique(service)).bind(Exchange::fanout(&exchange), "");
        let mut member = drive(AmqpSource::builder(&url).queue(queue));
        connected(&mut member).await;
        services.push(member);
    }
    let publisher = AmqpPublisher::builder(&url).exchange(&exchange).build().unwrap();
    produce(&publisher, "orders.placed", 0..50).await;
    for member in &mut services {
        let got = member.take(50, "a copy of each").await;
        assert_eq!(common::numbers(&got), (0..50).collect::<Vec<_>>());
        member.ack(&got);
        member.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_waits_goes_out_when_the_last_publisher_is_dropped() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    let publisher = publisher(&url);
    for n in 0..200_u32 {
        // Never polled, and its answer is wanted by nobody.
        drop(publisher.publish(outgoing(&queue, n.to_string())));
    }
    drop(publisher);
    let mut reader = drive(consumer(&url, &queue));
    let got = reader.take(200, "all of them").await;
    reader.ack(&got);
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_named_when_the_time_is_up() {
    let port = xtask::servers::free_port().unwrap();
    let url = format!("amqp://shop:s3cret@127.0.0.1:{port}");
    let publisher = AmqpPublisher::builder(url).timeout(Duration::from_millis(300)).build().unwrap();
    let error = publisher.publish(outgoing("orders", "x")).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let text = format!("{error} {error:?} {publisher:?}");
    assert!(text.contains(&format!("127.0.0.1:{port}")) && text.contains("`orders`"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_refused_password_is_an_error_at_once() {
    let url = shared_rabbitmq();
    let publisher = AmqpPublisher::builder(&url).credentials("guest", "wr0ng").build().unwrap();
    let error = publisher.publish(outgoing("orders", "x")).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("password"), "{error}");
    assert!(!format!("{error:?}").contains("wr0ng"));
}

#[tokio::test]
async fn what_amqp_cannot_carry_is_refused_by_name() {
    let publisher = AmqpPublisher::builder("amqp://127.0.0.1:1").build().unwrap();
    let refused = |outgoing| async { publisher.publish(outgoing).await.unwrap_err() };
    let error = refused(outgoing(&"q".repeat(256), "x")).await;
    assert!(error.is_unroutable() && error.to_string().contains("256 bytes"), "{error}");
    assert!(refused(outgoing("", "x")).await.is_unroutable());
    let long = Message::builder().payload("x").header("h".repeat(256), "v").build();
    let error = refused(Outgoing::new("orders", long)).await;
    assert!(!error.is_transient() && error.to_string().contains("256 bytes"), "{error}");
    let later = outgoing("orders", "x").not_before(SystemTime::now() + Duration::from_secs(60));
    assert!(!refused(later).await.is_transient(), "it knows delays, not times");
    let to_exchange = AmqpPublisher::builder("amqp://127.0.0.1:1").exchange("events").build().unwrap();
    let delayed = outgoing("key", "x").delay(Duration::from_secs(60));
    assert!(!to_exchange.publish(delayed).await.unwrap_err().is_transient());
    let routed = Message::builder().payload("x").header("CC", "elsewhere").build();
    let error = refused(Outgoing::new("orders", routed)).await;
    assert!(error.to_string().contains("CC"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn an_innocent_is_not_blamed_for_one_that_was_given_up() {
    let server = xtask::servers::RabbitMq::builder().option("max_message_size", "100000").start().unwrap();
    let direct = server.url();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    let publisher = AmqpPublisher::builder(&url).timeout(Duration::from_secs(3)).build().unwrap();
    produce(&publisher, &queue, 0..1).await;
    proxy.hang(Direction::ToServer);
    let large = publisher.publish(outgoing(&queue, vec![0; 100_001]));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let small = publisher.publish(outgoing(&queue, "1"));
    assert!(large.await.unwrap_err().is_transient(), "its time is up");
    proxy.resume(Direction::ToServer);
    small.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_topic_that_is_forbidden_is_about_one_message() {
    let server = xtask::servers::RabbitMq::start().unwrap();
    let url = server.url();
    let (exchange, queue) = (unique("x"), unique("q"));
    let bound = Queue::quorum(&queue).bind(Exchange::topic(&exchange), "#");
    admin(&url).ensure_queue(bound).await.unwrap();
    server.ctl(&["set_topic_permissions", "guest", &exchange, "^good", ".*"]).unwrap();
    let publisher = AmqpPublisher::builder(&url).exchange(&exchange).build().unwrap();
    let sent: Vec<_> = (0..20_u32)
        .map(|n| {
            let topic = if n == 10 { "forbidden".to_owned() } else { format!("good.{n}") };
            (n, publisher.publish(outgoing(&topic, n.to_string())))
        })
        .collect();
    for (n, answer) in sent {
        match answer.await {
            Ok(()) => assert_ne!(n, 10),
            Err(error) => assert!(n == 10 && !error.is_transient(), "{n}: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_was_confirmed_before_the_channel_closed_is_done() {
    let server = xtask::servers::RabbitMq::builder().option("max_message_size", "100000").start().unwrap();
    let direct = server.url();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    let publisher = publisher(&url);
    produce(&publisher, &queue, 0..1).await;
    proxy.hang(Direction::ToClient);
    let sent: Vec<_> = (1..51_u32).map(|n| publisher.publish(outgoing(&queue, n.to_string()))).collect();
    // They are in the queue, so their confirms are on their way.
    let mut reader = drive(consumer(&direct, &queue));
    let got = reader.take(51, "all of them").await;
    let closed = proxy.counts().to_client.received;
    let large = publisher.publish(outgoing(&queue, vec![0; 100_001]));
    proxy.until(|counts| counts.to_client.received > closed).await;
    proxy.resume(Direction::ToClient);
    for answer in sent {
        answer.await.unwrap();
    }
    assert!(large.await.unwrap_err().is_too_large());
    reader.ack(&got);
    reader.close().await;
    assert_eq!(admin(&direct).depth(&queue).await.unwrap(), Some(0), "nothing was sent twice");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_return_is_told_from_its_like_by_the_headers() {
    let url = shared_rabbitmq();
    let (exchange, queue) = (unique("x"), queue(&url).await);
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let kind = lapin::ExchangeKind::Headers;
    let options = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(exchange.as_str().into(), kind, options, Default::default()).await.unwrap();
    let mut wanted = lapin::types::FieldTable::default();
    wanted.insert("x-match".into(), lapin::types::AMQPValue::LongString("all".into()));
    wanted.insert("kind".into(), lapin::types::AMQPValue::LongString("wanted".into()));
    let names = (queue.as_str().into(), exchange.as_str().into());
    channel.queue_bind(names.0, names.1, "".into(), Default::default(), wanted).await.unwrap();
    let publisher = AmqpPublisher::builder(&url).exchange(&exchange).build().unwrap();
    let tick = |kind: &'static str| {
        publisher
            .publish(Outgoing::copy("k", Message::builder().payload("tick").header("kind", kind).build()))
    };
    for _ in 0..20 {
        let (wanted, unwanted) = (tick("wanted"), tick("unwanted"));
        wanted.await.unwrap();
        assert!(unwanted.await.unwrap_err().is_unroutable());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn errors_over_messages_cost_no_connection() {
    let direct = shared_rabbitmq();
    let (proxy, url) = by_proxy(&direct).await;
    let publisher = AmqpPublisher::builder(&url).exchange(unique("nowhere")).build().unwrap();
    for n in 0..20_u32 {
        assert!(publisher.publish(outgoing("key", n.to_string())).await.unwrap_err().is_unroutable());
    }
    assert_eq!(proxy.counts().accepted, 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_broker_that_blocks_publishers_is_waited_for_and_named() {
    let server = xtask::servers::RabbitMq::start().unwrap();
    let direct = server.url();
    let (proxy, url) = by_proxy(&direct).await;
    let queue = queue(&direct).await;
    let patient = publisher(&url);
    let hasty = AmqpPublisher::builder(&direct).timeout(Duration::from_secs(2)).build().unwrap();
    produce(&patient, &queue, 0..1).await;
    produce(&hasty, &queue, 1..2).await;
    server.ctl(&["set_vm_memory_high_watermark", "0"]).unwrap();
    // The first message after the alarm makes the broker say that it blocks; it takes none.
    let first = patient.publish(outgoing(&queue, "2"));
    let error = hasty.publish(outgoing(&queue, "late")).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("blocks publishers"), "{error}");
    let before = proxy.counts().to_server.received;
    let large = vec![b'x'; 100_000];
    let mut waiting: Vec<_> = (0..10).map(|_| patient.publish(outgoing(&queue, large.clone()))).collect();
    waiting.push(first);
    hasty.publish(outgoing(&queue, "late")).await.unwrap_err();
    let sent = proxy.counts().to_server.received - before;
    assert!(sent < 100_000, "{sent} bytes were sent to a broker that asked for none");
    server.ctl(&["set_vm_memory_high_watermark", "0.9"]).unwrap();
    for answer in waiting {
        answer.await.unwrap();
    }
    produce(&hasty, &queue, 3..4).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_publisher_outlives_the_runtime_it_worked_on() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    let publisher = publisher(&url);
    let publish = |n: u32| {
        let (publisher, queue) = (publisher.clone(), queue.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move { publisher.publish(outgoing(&queue, n.to_string())).await })
        })
    };
    for n in 0..3 {
        publish(n).join().unwrap().unwrap();
    }
    assert_eq!(contents(&url, &queue).await.len(), 3);
}

#[tokio::test]
async fn what_waits_is_bounded() {
    let port = xtask::servers::free_port().unwrap();
    let publisher = AmqpPublisher::builder(format!("amqp://127.0.0.1:{port}")).build().unwrap();
    let waiting: Vec<_> = (0..16_384_u32).map(|n| publisher.publish(outgoing("q", n.to_string()))).collect();
    let error = publisher.publish(outgoing("q", "one too many")).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("does not keep up"), "{error}");
    drop(waiting);
    let port = xtask::servers::free_port().unwrap();
    let publisher = AmqpPublisher::builder(format!("amqp://127.0.0.1:{port}")).build().unwrap();
    // One that is larger than all of it is let in, alone.
    let _large = publisher.publish(outgoing("q", vec![0; 65 << 20]));
    let error = publisher.publish(outgoing("q", "x")).await.unwrap_err();
    assert!(error.to_string().contains("does not keep up"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_is_due_before_its_delay_ends_comes_then_and_behind_what_is_due_later() {
    let url = shared_rabbitmq();
    let queue = queue(&url).await;
    let publisher = publisher(&url);
    let began = std::time::Instant::now();
    let later = |payload: &str, delay: u64, wait: u64| {
        let due = SystemTime::now() + Duration::from_millis(wait);
        outgoing(&queue, payload.to_owned()).delay(Duration::from_secs(delay)).not_before(due)
    };
    // Its delay is longer than this test may take.
    publisher.publish(later("soon", 600, 700)).await.unwrap();
    publisher.publish(later("sooner", 600, 1)).await.unwrap();
    publisher.publish(later("again", 600, 2000)).await.unwrap();
    let mut seen: Vec<Message> = Vec::new();
    while seen.len() < 3 {
        assert!(began.elapsed() < Duration::from_secs(60), "{seen:?}");
        seen.extend(contents(&url, &queue).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(1900), "not before it is due");
    let payloads: Vec<_> = seen.iter().map(|message| message.payload().to_vec()).collect();
    assert_eq!(payloads, [&b"soon"[..], b"sooner", b"again"]);
    // The broker removes what has arrived.
    let waiting = format!("{queue}.retry.600s");
    while admin(&url).depth(&waiting).await.unwrap() != Some(0) {
        assert!(began.elapsed() < Duration::from_secs(60), "something is left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
