//! What goes wrong at the start, and input that is odd.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::time::Duration;

use common::*;
use consumer_core::SourceError;
use consumer_kafka::{KafkaAdmin, KafkaPublisher, KafkaSource, KafkaSourceBuilder};
use tokio::time::timeout;
use xtask::servers::{Kafka, ServerCertificate, shared_kafka};

/// The error that ends the source; it does not hang.
async fn failure(builder: KafkaSourceBuilder) -> SourceError {
    let mut member = Member::new(builder);
    loop {
        match timeout(LIMIT, member.event(10)).await.expect("an error in time") {
            Ok(event) => assert_ne!(event, consumer_core::Event::Connected),
            Err(error) => return error,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_missing_topic_is_named() {
    let brokers = shared_kafka();
    let topic = unique("missing");
    let message = failure(member(&brokers, &topic, "g")).await.to_string();
    assert!(
        message.contains(&topic) && message.contains(&brokers) && message.contains("does not exist"),
        "{message}"
    );
    assert_eq!(
        KafkaAdmin::new(&brokers).unwrap().partitions(&topic).await.unwrap(),
        None,
        "it was not created"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn an_unreachable_broker_is_named_after_the_start_timeout() {
    let brokers = format!("127.0.0.1:{}", xtask::servers::free_port().unwrap());
    let builder = member(&brokers, "t", "g").start_timeout(Duration::from_secs(2));
    let message = failure(builder).await.to_string();
    assert!(message.contains(&brokers) && message.contains("not reachable"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_broker_that_hangs_is_given_up_after_the_start_timeout() {
    let kafka = Kafka::start().unwrap();
    kafka.pause();
    let builder = member(&kafka.bootstrap(), "t", "g").start_timeout(Duration::from_secs(2));
    let message = failure(builder).await.to_string();
    kafka.resume();
    assert!(message.contains(&kafka.bootstrap()), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_wrong_password_is_told_and_not_shown() {
    let kafka = Kafka::builder().sasl_scram("ann", "right").start().unwrap();
    let url =
        |password: &str| format!("kafka://ann:{password}@{}?sasl.mechanism=SCRAM-SHA-256", kafka.bootstrap());
    let admin = KafkaAdmin::from_url(url("right")).unwrap();
    let topic = unique("t");
    admin.ensure_topic(&topic, 1, &[]).await.unwrap();

    let wrong = KafkaSource::from_url(url("wr0ng")).group("g").topic(&topic);
    let error = failure(wrong).await;
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("password") && shown.contains(&kafka.bootstrap()), "{shown}");
    assert!(!shown.contains("wr0ng"), "{shown}");
    let error = KafkaAdmin::from_url(url("wr0ng")).unwrap().partitions(&topic).await.unwrap_err();
    assert!(error.is_authentication() && !format!("{error:?}").contains("wr0ng"), "{error:?}");

    let mut right = Member::new(KafkaSource::from_url(url("right")).group("g").topic(&topic));
    right.connected().await;
    let publisher = right.source.publisher().unwrap();
    produce(&publisher, &topic, 0..1).await;
    assert_eq!(number(&right.receive(1).await[0].message), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn tls_by_url() {
    let kafka = Kafka::builder().tls().start().unwrap();
    let authority = kafka.certificates().unwrap().authority().display().to_string().replace('/', "%2F");
    let url = format!("kafka+tls://{}?ssl.ca.location={authority}", kafka.bootstrap());
    let topic = unique("t");
    KafkaAdmin::from_url(&url).unwrap().ensure_topic(&topic, 1, &[]).await.unwrap();
    let mut source = Member::new(KafkaSource::from_url(&url).group("g").topic(&topic));
    source.connected().await;
    produce(&source.source.publisher().unwrap(), &topic, 0..1).await;
    assert_eq!(source.receive(1).await.len(), 1);

    // Without the authority the certificate is not trusted.
    let url = format!("kafka+tls://{}", kafka.bootstrap());
    let builder = KafkaSource::from_url(url).group("g").topic(&topic).start_timeout(Duration::from_secs(3));
    let message = failure(builder).await.to_string();
    assert!(message.contains("TLS"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_certificate_that_cannot_be_trusted_is_refused_and_it_is_said_why() {
    for (kind, trusts_other, why) in [
        (ServerCertificate::Expired, false, "has expired"),
        (ServerCertificate::OtherHost, false, "is not for this name"),
        (ServerCertificate::Valid, true, "is from an authority that is not trusted"),
    ] {
        let builder = Kafka::builder().sasl_plain("ann", "hunter2").tls().server_certificate(kind);
        let kafka = builder.start().unwrap();
        let files = kafka.certificates().unwrap();
        let authority = if trusts_other { files.other_authority() } else { files.authority() };
        let brokers = kafka.bootstrap();
        let authority = authority.display();
        let url =
            format!("kafka+tls://ann:hunter2@{brokers}?ssl.ca.location={authority}&message.timeout.ms=3000");
        let admin = KafkaAdmin::from_url(&url).unwrap().timeout(Duration::from_secs(3));
        let builder = KafkaSource::from_url(&url).group("g").topic("t").start_timeout(Duration::from_secs(3));
        let message = consumer_core::Message::builder().payload("x").build();
        let publisher = KafkaPublisher::from_url(&url).build().unwrap();
        let sent = consumer_core::Publisher::publish(&publisher, consumer_core::Outgoing::new("t", message));
        let (looked, consumed, sent) = tokio::join!(admin.partitions("t"), failure(builder), sent);
        let told = [looked.unwrap_err().to_string(), consumed.to_string(), sent.unwrap_err().to_string()];
        for told in told {
            assert!(told.contains(why) && !told.contains("hunter2"), "{kind:?}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn fm26_a_header_name_that_is_not_utf_8_makes_a_defect_and_the_rest_goes_on() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    raw::produce(&brokers, &topic, b"7", &[(b"good", b"1"), (b"b\xffd", b"2"), (b"message-id", b"m")]);
    produce(&publisher(&brokers), &topic, 8..9).await;
    let got = contents(&brokers, &topic, 2).await;
    let defect = got[0].defect().expect("a defect");
    assert_eq!(defect.dropped(), ["header 2 of 3, whose name is not UTF-8"]);
    assert_eq!(got[0].headers().iter().map(|(name, _)| name).collect::<Vec<_>>(), ["good", "message-id"]);
    assert_eq!((number(&got[0]), number(&got[1])), (7, 8));
    assert!(got[1].defect().is_none());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: cargo xtask test"]
async fn a_session_timeout_the_broker_does_not_take_is_an_error_and_not_a_hang() {
    let brokers = shared_kafka();
    let topic = topic(&brokers, 1).await;
    let builder = KafkaSource::builder(&brokers)
        .group(unique("g"))
        .topic(&topic)
        .property("session.timeout.ms", "500")
        .property("heartbeat.interval.ms", "100");
    let message = failure(builder).await.to_string();
    assert!(message.contains("session timeout"), "{message}");
}
