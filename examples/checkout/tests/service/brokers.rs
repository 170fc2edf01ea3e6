//! On real brokers: the event arrives, also where the broker was away when the order was placed.

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

fn a_broker_that_goes_and_comes_back(broker: &impl Broker) {
    let folder = tempfile::tempdir().unwrap();
    let url = broker.url();
    let arguments = ["--broker", &url, "--queue", "orders,more.orders"];
    broker.kill();
    // Nobody has declared the queues yet.
    let service = Service::start(folder.path(), &arguments);
    assert_eq!(service.place("1", TRACE).0, 201);
    broker.start_again();
    let first = &events(broker.read("orders"), &["placed-o-1"])["placed-o-1"][0];
    let parent = TRACE.split("\r\n").next().unwrap().strip_prefix("traceparent: ");
    assert_eq!(first.headers().get_str("traceparent"), parent);
    assert_eq!(first.headers().get_str("tracestate"), Some("a=1"));
    assert_eq!(first.key().unwrap(), "o-1");

    broker.kill();
    assert_eq!(service.place("2", "").0, 201);
    // A stop does not wait for a broker that is away.
    service.terminate();
    assert!(service.ends());
    broker.start_again();
    let service = Service::start(folder.path(), &arguments);
    let payload = r#"{"order_id":"o-2","email":"ann@example.com","total":1999}"#;
    let second = &events(broker.read("orders"), &["placed-o-2"])["placed-o-2"];
    // Once more, should the confirm have been lost: under one id, with one payload.
    assert!(second.iter().all(|event| event.payload() == payload));
    events(broker.read("more.orders"), &["placed-o-1", "placed-o-2"]);

    // The web service keeps no balances where there is a broker.
    assert_eq!(service.balance(), 0);
    let database = format!("sqlite:{}", folder.path().join("checkout.db").display());
    let balances = ["balances", "--broker", &url, "--queue", "more.balances", "--database", &database];
    let mut balances = checkout(&balances).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    service.terminate();
    assert!(service.ends());
    let service = Service::start(folder.path(), &["--broker", &url, "--queue", "more.balances"]);
    assert_eq!(service.place("3", "").0, 201);
    wait_for("the balance", || service.balance() == 1999);
    assert!(
        Command::new("kill").args(["-s", "TERM", &balances.id().to_string()]).status().unwrap().success()
    );
    assert!(end_of(&mut balances).success());
}

#[cfg(feature = "kafka")]
mod kafka {
    use std::sync::atomic::{AtomicU32, Ordering};

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
            // The one before has not left its group, as its broker was killed.
            static READS: AtomicU32 = AtomicU32::new(0);
            let group = format!("reader-{}", READS.fetch_add(1, Ordering::Relaxed));
            Box::new(KafkaSource::builder(self.bootstrap()).group(group).topic(queue).build().unwrap())
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
