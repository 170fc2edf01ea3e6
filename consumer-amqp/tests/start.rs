//! What goes wrong at the start, and queues that are other ones.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::{future::poll_fn, time::Duration};

use common::{LIMIT, admin, connected, consumer, drive, numbers, produce, publisher, queue, unique};
use consumer_amqp::{AmqpAdmin, AmqpError, AmqpPublisher, AmqpSource, AmqpSourceBuilder, Exchange, Queue};
use consumer_core::{Demand, Event, Source, SourceError, runtime::Ordering};
use consumer_testing::proxy::{Direction, Proxy};
use tokio::time::timeout;
use xtask::servers::{RabbitMq, ServerCertificate, shared_rabbitmq};

/// The error that ends the source; it does not hang.
async fn failure(builder: AmqpSourceBuilder) -> SourceError {
    common::log();
    let mut source = builder.build().unwrap();
    let mut out = Vec::new();
    loop {
        match timeout(LIMIT, poll_fn(|cx| source.poll_event(cx, 10, &mut out))).await.expect("in time") {
            Ok(event) => assert_ne!(event, Event::Connected),
            Err(error) => return error,
        }
    }
}

fn with_password(url: &str, password: &str) -> String {
    url.replace("guest:guest@", &format!("guest:{password}@"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_wrong_password_is_told_and_not_shown() {
    let url = with_password(&shared_rabbitmq(), "wr0ng");
    let error = failure(consumer(&url, "orders")).await;
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("password") && shown.contains("`guest`"), "{shown}");
    let error = admin(&url).depth("orders").await.unwrap_err();
    assert!(error.is_authentication(), "{error:?}");
    let shown = format!("{shown} {error} {error:?} {:?} {:?}", admin(&url), consumer(&url, "orders"));
    assert!(!shown.contains("wr0ng"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_vhost_that_does_not_exist_is_named() {
    let url = shared_rabbitmq().replace("/%2f", "/nowhere");
    let error = failure(consumer(&url, "orders")).await.to_string();
    assert!(error.contains("no vhost `nowhere`"), "{error}");
    assert!(admin(&url).depth("orders").await.unwrap_err().is_missing());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_named_after_the_start_timeout() {
    let url = format!("amqp://127.0.0.1:{}", xtask::servers::free_port().unwrap());
    let error = failure(consumer(&url, "orders").start_timeout(Duration::from_secs(1))).await.to_string();
    assert!(error.contains(&url["amqp://".len()..]) && error.contains("cannot be reached"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_broker_that_does_not_answer_is_given_up_after_the_start_timeout() {
    let url = shared_rabbitmq();
    let port: u16 = url.rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], port)).await.unwrap();
    proxy.hang(Direction::Both);
    let url = url.replace(&port.to_string(), &proxy.port().to_string());
    let error = failure(consumer(&url, "orders").start_timeout(Duration::from_secs(1))).await.to_string();
    assert!(error.contains(&proxy.port().to_string()) && error.contains("within"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_queue_that_is_another_one_is_an_error_that_shows_both_sides() {
    let url = shared_rabbitmq();
    let name = unique("q");
    let theirs = Queue::classic(&name).dead_letter(format!("{name}.theirs")).argument("x-max-length", 10);
    admin(&url).ensure_queue(theirs.clone()).await.unwrap();
    let error = failure(consumer(&url, &name)).await.to_string();
    for part in ["x-queue-type", "classic", "quorum", "x-dead-letter-routing-key", ".theirs", ".dead"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let refused: AmqpError = admin(&url).ensure_queue(Queue::quorum(&name)).await.unwrap_err();
    assert!(refused.is_mismatch(), "{refused:?}");

    // Taken on request, and not changed by that.
    produce(&publisher(&url), &name, 0..3).await;
    let mut member = drive(consumer(&url, &name).accept_foreign_queue());
    let got = member.take(3, "what is in the foreign queue").await;
    member.ack(&got);
    member.close().await;
    admin(&url).check_queue(theirs).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn an_order_is_not_taken_from_a_queue_that_several_may_consume() {
    let url = shared_rabbitmq();
    let name = queue(&url).await;
    let single = Queue::quorum(&name).single_active_consumer();
    let mut source = AmqpSource::builder(&url).queue(single).accept_foreign_queue().build().unwrap();
    source.configure(Demand::new(10).ordered(Ordering::Key)).unwrap();
    let mut out = Vec::new();
    let error = timeout(LIMIT, poll_fn(|cx| source.poll_event(cx, 10, &mut out))).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("x-single-active-consumer"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn what_is_only_checked_is_not_created() {
    let url = shared_rabbitmq();
    let name = unique("q");
    let error = failure(consumer(&url, &name).check_only()).await.to_string();
    assert!(error.contains(&format!("`{name}`")) && error.contains("does not exist"), "{error}");
    assert!(admin(&url).check_queue(&*name).await.unwrap_err().is_missing());
    assert_eq!(admin(&url).depth(&name).await.unwrap(), None);
    assert_eq!(admin(&url).depth(&format!("{name}.dead")).await.unwrap(), None);

    admin(&url).ensure_queue(&*name).await.unwrap();
    let mut member = drive(consumer(&url, &name).check_only());
    connected(&mut member).await;
    member.close().await;
    // Its dead letters would have nowhere to go.
    admin(&url).delete_queue(&format!("{name}.dead")).await.unwrap();
    let error = failure(consumer(&url, &name).check_only()).await.to_string();
    assert!(error.contains(&format!("`{name}.dead`")), "{error}");
    let bound = Queue::quorum(&name).without_dead_letter().bind(Exchange::fanout(unique("nowhere")), "");
    let error = failure(AmqpSource::builder(&url).queue(bound).check_only().accept_foreign_queue()).await;
    assert!(error.to_string().contains("exchange"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn an_exchange_of_another_kind_is_an_error() {
    let url = shared_rabbitmq();
    let name = unique("x");
    admin(&url).ensure_exchange(Exchange::fanout(&name)).await.unwrap();
    admin(&url).ensure_exchange(Exchange::fanout(&name)).await.unwrap();
    let error = admin(&url).ensure_exchange(Exchange::topic(&name)).await.unwrap_err();
    assert!(error.is_mismatch() && error.to_string().contains("fanout"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_user_that_may_only_read_consumes_what_is_there() {
    let server = RabbitMq::start().unwrap();
    let url = server.url();
    let name = queue(&url).await;
    produce(&publisher(&url), &name, 0..2).await;
    server.ctl(&["add_user", "reader", "r3ader"]).unwrap();
    server.ctl(&["set_permissions", "reader", "^$", "^$", ".*"]).unwrap();
    let reader = url.replace("guest:guest@", "reader:r3ader@");
    let mut member = drive(consumer(&reader, &name));
    let got = member.take(2, "all").await;
    assert_eq!(numbers(&got), [0, 1]);
    member.ack(&got);
    member.close().await;
    // It may not publish, and nothing else comes of that.
    let refused = publisher(&reader);
    let sent: Vec<_> = (0..3_u32)
        .map(|n| {
            let message = consumer_core::Message::builder().payload(n.to_string()).build();
            consumer_core::Publisher::publish(&refused, consumer_core::Outgoing::new(&*name, message))
        })
        .collect();
    for answer in sent {
        let error = answer.await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("ACCESS_REFUSED"), "{error:?}");
    }
    // A vhost that it may not enter.
    server.ctl(&["add_vhost", "closed"]).unwrap();
    let error = failure(consumer(&reader.replace("/%2f", "/closed"), &name)).await.to_string();
    assert!(error.contains("`reader`") && error.contains("`closed`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_queue_that_goes_with_its_last_consumer_is_another_one() {
    let url = shared_rabbitmq();
    let name = unique("q");
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options =
        lapin::options::QueueDeclareOptions { durable: true, auto_delete: true, ..Default::default() };
    let mut arguments = lapin::types::FieldTable::default();
    for (argument, value) in [
        ("x-queue-type", "classic".to_owned()),
        ("x-dead-letter-exchange", String::new()),
        ("x-dead-letter-routing-key", format!("{name}.dead")),
    ] {
        arguments.insert(argument.into(), lapin::types::AMQPValue::LongString(value.into()));
    }
    channel.queue_declare(name.as_str().into(), options, arguments).await.unwrap();
    let error = failure(AmqpSource::builder(&url).queue(Queue::classic(&name))).await.to_string();
    assert!(error.contains("auto_delete"), "{error}");
    let dead = admin(&url).depth(&format!("{name}.dead")).await.unwrap();
    assert_eq!(dead, None, "a start that fails leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_limit_of_connections_is_waited_out() {
    let server = RabbitMq::start().unwrap();
    let url = server.url();
    let name = queue(&url).await;
    server.ctl(&["set_vhost_limits", "-p", "/", r#"{"max-connections": 0}"#]).unwrap();
    let sending = tokio::spawn({
        let (url, name) = (url.clone(), name.clone());
        async move { produce(&publisher(&url), &name, 0..1).await }
    });
    let receiving = tokio::spawn({
        let (url, name) = (url.clone(), name.clone());
        async move { drive(consumer(&url, &name)).take(1, "one").await.len() }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.ctl(&["clear_vhost_limits", "-p", "/"]).unwrap();
    timeout(LIMIT, sending).await.unwrap().unwrap();
    assert_eq!(timeout(LIMIT, receiving).await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn names_that_amqp_cannot_carry_are_errors() {
    let admin = AmqpAdmin::new("amqp://127.0.0.1:1").unwrap();
    let long = "q".repeat(256);
    assert!(admin.depth(&long).await.unwrap_err().is_config());
    assert!(admin.delete_queue(&long).await.unwrap_err().is_config());
    assert!(admin.purge_queue("").await.unwrap_err().is_config());
    assert!(AmqpAdmin::new(format!("amqp://h/{long}")).unwrap_err().is_config());
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn tls_with_and_without_a_client_certificate() {
    let server = RabbitMq::builder().tls_with_client_certificate().start().unwrap();
    let certificates = server.certificates().unwrap();
    let url = server.tls_url().unwrap();
    let full = format!(
        "{url}?cacertfile={}&certfile={}&keyfile={}",
        certificates.authority().display(),
        certificates.client_certificate().display(),
        certificates.client_key().display()
    );
    let name = queue(&full).await;
    produce(&AmqpPublisher::builder(&full).build().unwrap(), &name, 0..3).await;
    let builder = AmqpSource::builder(&url)
        .queue(&*name)
        .ca_certificate(certificates.authority())
        .client_certificate(certificates.client_certificate(), certificates.client_key());
    let mut member = drive(builder);
    let got = member.take(3, "over TLS").await;
    member.ack(&got);
    member.close().await;

    // Without a certificate the broker ends the connection; without its authority we do.
    let without = format!("{url}?cacertfile={}", certificates.authority().display());
    let ended: &[&str] = &["cannot be reached", "within"];
    let not_trusted: &[&str] = &["an authority that is not trusted"];
    for (url, told) in [(without, ended), (url, not_trusted)] {
        let builder = consumer(&url, &name).start_timeout(Duration::from_secs(2));
        let error = failure(builder).await.to_string();
        assert!(told.iter().any(|told| error.contains(told)), "{error}");
    }
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_certificate_that_cannot_be_trusted_is_refused_and_it_is_said_why() {
    for (kind, trusts_other, why) in [
        (ServerCertificate::Expired, false, "has expired"),
        (ServerCertificate::OtherHost, false, "is not for this name"),
        (ServerCertificate::Valid, true, "is from an authority that is not trusted"),
    ] {
        let builder = RabbitMq::builder().user("ann", "hunter2").tls().server_certificate(kind);
        let server = builder.start().unwrap();
        let files = server.certificates().unwrap();
        let authority = if trusts_other { files.other_authority() } else { files.authority() };
        let url = format!("{}?cacertfile={}", server.tls_url().unwrap(), authority.display());
        let error = admin(&url).depth("orders").await.unwrap_err();
        let mut told = vec![error.to_string()];
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        let builder = consumer(&url, "orders").start_timeout(Duration::from_secs(1));
        told.push(failure(builder).await.to_string());
        let publisher = AmqpPublisher::builder(&url).timeout(Duration::from_secs(1)).build().unwrap();
        let message = consumer_core::Message::builder().payload("x").build();
        let sent = consumer_core::Publisher::publish(&publisher, consumer_core::Outgoing::new("q", message));
        told.push(sent.await.unwrap_err().to_string());
        for told in told {
            assert!(told.contains(why) && !told.contains("hunter2"), "{kind:?}: {told}");
        }
    }
}

/// A broker that hangs up at first, and then says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_has_no_time_left_tells_why_the_one_before_it_failed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://{}", listener.local_addr().unwrap());
    let silent = tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        let _held = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
    });
    let error = failure(consumer(&url, "orders").start_timeout(Duration::from_secs(2))).await.to_string();
    assert!(error.contains(" within 1") && error.contains("; before that: "), "{error}");
    silent.abort();
}

#[test]
fn what_is_found_without_the_network() {
    let refused = |builder: AmqpSourceBuilder| {
        let error = builder.build().unwrap_err();
        assert!(error.is_config(), "{error:?}");
        error.to_string()
    };
    let local = || AmqpSource::builder("amqp://localhost");
    assert!(refused(local()).contains("queue"));
    assert!(refused(AmqpSource::builder("http://ann:s3cret@h").queue("q")).contains("amqp://"));
    assert!(refused(local().queue("q").heartbeat(Duration::ZERO)).contains("heartbeat"));
    assert!(refused(local().queue("q").consumer_timeout(Duration::ZERO)).contains("consumer_timeout"));
    assert!(refused(local().queue("q").ca_certificate("ca.pem")).contains("amqps://"));
    let error = refused(AmqpSource::builder("amqps://localhost").queue("q").ca_certificate("no-such.pem"));
    assert!(error.contains("no-such.pem") || error.contains("feature `tls`"), "{error}");
    assert!(AmqpAdmin::new("amqp://h/a/b").unwrap_err().is_config());
    let error = AmqpPublisher::builder("amqp://localhost").timeout(Duration::ZERO).build().unwrap_err();
    assert!(error.is_config(), "{error:?}");
}
