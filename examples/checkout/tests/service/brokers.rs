//! On real brokers: the event arrives, and a broker that is away costs a 503 and no order.

use std::{collections::HashMap, future::poll_fn};

use consumer::{BoxSource, Message, Source};

use super::*;

const TRACE: &str =
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=1\r\n";

/// A broker of the test's own.
trait Broker {
    fn url(&self) -> String;
    fn kill(&self);
    fn start_again(&self);
    fn read(&self, queue: &str) -> BoxSource;
}

/// Reads until each of these ids has come, and gives what came under each.
fn events(mut source: BoxSource, ids: &[&str]) -> HashMap<String, Vec<Message>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut found: HashMap<String, Vec<Message>> = HashMap::new();
    runtime.block_on(async {
        while !ids.iter().all(|id| found.contains_key(*id)) {
            let mut delivered = Vec::new();
            let event = poll_fn(|cx| source.poll_event(cx, 100, &mut delivered));
            tokio::time::timeout(PATIENCE, event).await.expect("the events arrive").unwrap();
            for delivery in delivered {
                let id = String::from_utf8(delivery.message.id().unwrap().to_vec()).unwrap();
                found.entry(id).or_default().push(delivery.message);
            }
        }
    });
    runtime.shutdown_background();
    found
}

/// Sends the same order again until it is placed.
fn retry(service: &Service, key: &str) {
    let begin = Instant::now();
    loop {
        match service.place(key, "") {
            (201, head, _) => return assert!(head.contains(&format!("location: /orders/o-{key}")), "{head}"),
            (503, ..) => assert!(begin.elapsed() < PATIENCE, "the broker is back, and no order is taken"),
            (status, _, body) => panic!("{status} {body}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn a_broker_that_goes_and_comes_back(broker: &impl Broker) {
    let url = broker.url();
    let service = Service::start(&["--broker", &url, "--queue", "orders", "--confirm-timeout", "2s"]);
    let (status, head, body) = service.place("1", TRACE);
    assert_eq!(status, 201, "{body}");
    assert!(head.contains("location: /orders/o-1"), "{head}");

    broker.kill();
    let begin = Instant::now();
    let (status, head, body) = service.place("2", "");
    assert_eq!(status, 503, "{body}");
    assert!(head.contains("retry-after: 5") && head.contains("application/problem+json"), "{head}");
    // Above the 2 s only against hanging.
    assert!(begin.elapsed() < Duration::from_secs(20));
    broker.start_again();
    retry(&service, "2");

    let events = events(broker.read("orders"), &["placed-o-1", "placed-o-2"]);
    let first = &events["placed-o-1"][0];
    let parent = TRACE.split("\r\n").next().unwrap().strip_prefix("traceparent: ");
    assert_eq!(first.headers().get_str("traceparent"), parent);
    assert_eq!(first.headers().get_str("tracestate"), Some("a=1"));
    assert_eq!(first.key().unwrap(), "o-1");
    // The one that was retried may be there twice: under one id, with one payload.
    let payload = r#"{"order_id":"o-2","email":"ann@example.com","total":1999}"#;
    assert!(events["placed-o-2"].iter().all(|event| event.payload() == payload));

    // A stop that is asked for while a client waits lets it have its answer.
    broker.kill();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| service.place("3", ""));
        // Nothing outside tells that the request was taken.
        std::thread::sleep(Duration::from_millis(500));
        service.terminate();
        assert_eq!(asked.join().unwrap().0, 503);
    });
    assert!(service.ends());
}

#[cfg(feature = "kafka")]
mod kafka {
    use consumer::kafka::KafkaSource;
    use xtask::servers::Kafka;

    use super::*;

    impl Broker for Kafka {
        fn url(&self) -> String {
            format!("kafka://{}", self.bootstrap())
        }

        fn kill(&self) {
            Kafka::kill(self);
        }

        fn start_again(&self) {
            Kafka::start_again(self).unwrap();
        }

        fn read(&self, queue: &str) -> BoxSource {
            Box::new(KafkaSource::builder(self.bootstrap()).group("reader").topic(queue).build().unwrap())
        }
    }

    #[test]
    #[ignore = "needs servers: cargo xtask test"]
    fn kafka_goes_and_comes_back() {
        a_broker_that_goes_and_comes_back(&Kafka::start().unwrap());
    }
}

#[cfg(feature = "amqp")]
mod rabbitmq {
    use consumer::amqp::AmqpSource;
    use xtask::servers::RabbitMq;

    use super::*;

    impl Broker for RabbitMq {
        fn url(&self) -> String {
            RabbitMq::url(self)
        }

        fn kill(&self) {
            self.sync().unwrap();
            RabbitMq::kill(self);
        }

        fn start_again(&self) {
            RabbitMq::start_again(self).unwrap();
        }

        fn read(&self, queue: &str) -> BoxSource {
            Box::new(AmqpSource::builder(RabbitMq::url(self)).queue(queue).build().unwrap())
        }
    }

    #[test]
    #[ignore = "needs servers: cargo xtask test"]
    fn rabbitmq_goes_and_comes_back() {
        a_broker_that_goes_and_comes_back(&RabbitMq::start().unwrap());
    }
}
