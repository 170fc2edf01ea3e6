use std::{
    fs,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use consumer_core::{
    DynPublisher, Message, Outgoing, Publisher,
    dead_letters::{BoxFuture, DeadLetter, DeadLetters, DeadLettersError, Letters, Place, Settled},
    memory::{MemoryBroker, PublishFault},
    message::wire,
};
use tokio_util::sync::CancellationToken;

use crate::{Discard, Filter, Import, Redrive, Stats, discard, export, import, redrive};

/// `count` dead letters of `orders`, every third of them for a reason of its own.
async fn broker(count: u64) -> MemoryBroker {
    let broker = MemoryBroker::new();
    broker.create_topic("orders", 2);
    broker.create_topic("orders.dead", 2);
    for id in 0..count {
        let reason = if id % 3 == 0 { "permanent" } else { "attempts-exhausted" };
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(id);
        let dead = Message::builder()
            .payload(format!("o-{id}"))
            .key(format!("k-{}", id % 5))
            .header("trace", "a")
            .header("trace", "b")
            .id(format!("id-{id}"))
            .header("dead-letter-reason", reason)
            .header("dead-letter-error", format!("Provider said {id}"))
            .header("dead-letter-consumer", "mails")
            .header("dead-letter-last-failed-at", wire::format_time(at))
            .header("dead-letter-source", "memory")
            .header("dead-letter-topic", "orders")
            .build();
        broker.publisher().publish(Outgoing::new("orders.dead", dead)).await.unwrap();
    }
    broker
}

async fn open(broker: &MemoryBroker) -> Box<dyn Letters> {
    broker.dead_letters("orders.dead").open().await.unwrap()
}

fn publisher(broker: &MemoryBroker) -> DynPublisher {
    DynPublisher::new(broker.publisher())
}

fn ids(broker: &MemoryBroker, topic: &str) -> Vec<String> {
    let mut ids: Vec<String> = broker
        .records(topic)
        .iter()
        .map(|message| String::from_utf8(message.id().unwrap().to_vec()).unwrap())
        .collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn every_part_of_a_filter_has_to_fit() {
    let broker = broker(30).await;
    let count = async |filter: Filter| {
        let mut letters = open(&broker).await;
        let mut count = 0;
        while let Some(letter) = letters.next().await.unwrap() {
            count += u64::from(filter.fits(&letter));
        }
        count
    };
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(count(Filter::default()).await, 30);
    assert_eq!(count(Filter::default().reason("permanent")).await, 10);
    assert_eq!(count(Filter::default().error("provider SAID 1")).await, 11, "1 and 10 to 19");
    assert_eq!(count(Filter::default().key("k-2")).await, 6);
    assert_eq!(count(Filter::default().id("id-7")).await, 1);
    assert_eq!(count(Filter::default().consumer("others")).await, 0);
    assert_eq!(count(Filter::default().since(at(10)).until(at(20))).await, 10);
    assert_eq!(count(Filter::default().reason("permanent").key("k-0")).await, 2);
}

#[tokio::test]
async fn fm29_a_redrive_goes_on_where_another_ended() {
    let broker = broker(30).await;
    let stop = CancellationToken::new();
    let how = Redrive::default().stop(stop.clone()).limit(12);
    let first =
        redrive(open(&broker).await, publisher(&broker), &Filter::default(), &how, |_| {}).await.unwrap();
    assert_eq!((first.redriven, first.targets["orders"]), (12, 12));
    assert_eq!(broker.records("orders.dead").len(), 18);
    let again = Redrive::default();
    let second =
        redrive(open(&broker).await, publisher(&broker), &Filter::default(), &again, |_| {}).await.unwrap();
    assert_eq!((second.redriven, second.failed), (18, 0));
    assert!(broker.records("orders.dead").is_empty());
    assert_eq!(ids(&broker, "orders").len(), 30);
    assert!(broker.records("orders").iter().all(|m| m.headers().get_str("redrive-count") == Some("1")));
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let broker = broker(30).await;
    let how = Redrive::default().dry_run(true);
    let filter = Filter::default().reason("permanent");
    let report = redrive(open(&broker).await, publisher(&broker), &filter, &how, |_| {}).await.unwrap();
    assert_eq!((report.read, report.matched, report.redriven), (30, 10, 10));
    assert_eq!((broker.records("orders").len(), broker.records("orders.dead").len()), (0, 30));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_confirmed_is_not_settled() {
    let broker = broker(3).await;
    broker.fail_next_publishes(2, PublishFault::Unavailable);
    let how = Redrive::default();
    let report =
        redrive(open(&broker).await, publisher(&broker), &Filter::default(), &how, |_| {}).await.unwrap();
    assert_eq!((report.redriven, broker.records("orders").len()), (3, 3), "an outage is waited out");

    let broker = self::broker(3).await;
    broker.fail_next_publishes(usize::MAX, PublishFault::Unavailable);
    let refused = redrive(open(&broker).await, publisher(&broker), &Filter::default(), &how, |_| {}).await;
    assert!(refused.is_err());
    assert_eq!(broker.records("orders.dead").len(), 3);

    let broker = self::broker(3).await;
    let how = how.to("nowhere");
    let report =
        redrive(open(&broker).await, publisher(&broker), &Filter::default(), &how, |_| {}).await.unwrap();
    assert_eq!((report.redriven, report.failed, report.errors.len()), (0, 3, 3));
    assert_eq!(broker.records("orders.dead").len(), 3, "they are still there");
}

#[tokio::test(start_paused = true)]
async fn a_letter_from_another_kind_of_broker_has_no_way_back_here() {
    let broker = broker(2).await;
    let how = Redrive::default().system("amqp");
    let report =
        redrive(open(&broker).await, publisher(&broker), &Filter::default(), &how, |_| {}).await.unwrap();
    assert_eq!((report.redriven, report.failed), (0, 2));
    let how = how.to("orders");
    let report =
        redrive(open(&broker).await, publisher(&broker), &Filter::default(), &how, |_| {}).await.unwrap();
    assert_eq!(report.redriven, 2);
}

#[tokio::test]
async fn a_stop_finishes_what_is_on_its_way_and_takes_no_more() {
    let broker = broker(30).await;
    let stop = CancellationToken::new();
    let how = Redrive::default().stop(stop.clone()).rate(NonZeroU32::new(1).unwrap());
    let report = redrive(open(&broker).await, publisher(&broker), &Filter::default(), &how, |report| {
        if report.redriven == 1 {
            stop.cancel();
        }
    })
    .await
    .unwrap();
    assert!(report.is_stopped);
    assert_eq!((report.redriven, report.matched), (1, 1));
    assert_eq!((broker.records("orders").len(), broker.records("orders.dead").len()), (1, 29));
}

#[tokio::test]
async fn what_is_discarded_is_in_the_file_and_comes_back_by_import() {
    let broker = broker(30).await;
    let before = broker.records("orders.dead");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discarded.jsonl");
    let filter = Filter::default().reason("permanent");
    let how = Discard::because("test orders");
    let file = fs::File::create(&path).unwrap();
    let report = discard(open(&broker).await, &filter, &how, file, |_| {}).await.unwrap();
    assert_eq!((report.read, report.discarded), (30, 10));
    assert_eq!(broker.records("orders.dead").len(), 20);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 10);
    assert!(text.lines().all(|line| line.contains(r#""discarded_because":"test orders""#)));

    let report = import(&path, publisher(&broker), &Import::to("orders.dead"), |_| {}).await.unwrap();
    assert_eq!((report.lines, report.imported), (10, 10));
    assert_eq!(ids(&broker, "orders.dead").len(), 30);
    for message in before {
        let after = broker.records("orders.dead");
        let same = after.iter().find(|other| other.id() == message.id()).unwrap();
        assert_eq!(
            (same.payload(), same.key(), same.headers()),
            (message.payload(), message.key(), message.headers())
        );
    }
}

#[tokio::test]
async fn an_import_of_a_broken_file_publishes_nothing_and_names_the_line() {
    let broker = broker(3).await;
    broker.create_topic("copy", 1);
    let mut lines = Vec::new();
    assert_eq!(export(open(&broker).await, &Filter::default(), None, &mut lines).await.unwrap(), 3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letters.jsonl");
    for broken in ["{}", "{\"headers\":[],\"payload\":\"%\"}", "\n"] {
        fs::write(&path, [&lines[..], broken.as_bytes(), b"\n"].concat()).unwrap();
        let refused = import(&path, publisher(&broker), &Import::to("copy"), |_| {}).await.unwrap_err();
        assert!(refused.chain().contains("line 4"), "{}", refused.chain());
        assert!(broker.records("copy").is_empty());
    }
    fs::write(&path, &lines).unwrap();
    let report = import(&path, publisher(&broker), &Import::to("copy").skip(2), |_| {}).await.unwrap();
    assert_eq!((report.lines, report.imported), (3, 1));

    // Where they came from, each would be acked as a duplicate.
    let refused = import(&path, publisher(&broker), &Import::to("orders"), |_| {}).await.unwrap_err();
    assert!(refused.is_usage() && refused.to_string().contains("redrive"), "{refused}");
    assert!(broker.records("orders").is_empty());
}

#[tokio::test]
async fn an_exported_letter_keeps_bytes_nulls_and_tombstones() {
    let broker = MemoryBroker::new();
    broker.create_topic("orders.dead", 1);
    broker.create_topic("copy", 1);
    let mut headers = consumer_core::Headers::new();
    headers.append("binary", vec![0xff, 0]);
    headers.append_null("nothing");
    let odd = Message::builder().headers(headers).key(vec![0xfe]).build();
    broker.publisher().publish(Outgoing::copy("orders.dead", odd.clone())).await.unwrap();
    let mut lines = Vec::new();
    export(open(&broker).await, &Filter::default(), None, &mut lines).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letters.jsonl");
    fs::write(&path, &lines).unwrap();
    import(&path, publisher(&broker), &Import::to("copy"), |_| {}).await.unwrap();
    let copy = &broker.records("copy")[0];
    assert!(copy.is_tombstone());
    assert_eq!((copy.key(), copy.headers()), (odd.key(), odd.headers()));
}

#[tokio::test]
async fn stats_take_errors_that_differ_by_a_number_together() {
    let broker = broker(30).await;
    let mut stats = Stats::default();
    let mut letters = open(&broker).await;
    while let Some(letter) = letters.next().await.unwrap() {
        stats.add(&letter);
    }
    let groups = stats.groups();
    assert_eq!((stats.total(), groups.len()), (30, 2));
    assert_eq!(
        (&*groups[0].reason, &*groups[0].error, groups[0].count),
        ("attempts-exhausted", "Provider said #", 20)
    );
    assert_eq!(groups[1].first, Some(SystemTime::UNIX_EPOCH));
}

/// Letters that can be read and not settled, as with no right to write.
#[derive(Debug)]
struct ReadOnly(Box<dyn Letters>);

#[async_trait::async_trait]
impl Letters for ReadOnly {
    fn expected(&self) -> Option<u64> {
        self.0.expected()
    }

    async fn next(&mut self) -> Result<Option<DeadLetter>, DeadLettersError> {
        self.0.next().await
    }

    fn prepare(&mut self) -> BoxFuture<Result<(), DeadLettersError>> {
        Box::pin(std::future::ready(Err(DeadLettersError::new("this user may only read"))))
    }

    fn settle(&mut self, _: Place, _: Settled) -> BoxFuture<Result<(), DeadLettersError>> {
        self.prepare()
    }

    async fn close(self: Box<Self>) -> Result<(), DeadLettersError> {
        self.0.close().await
    }
}

#[tokio::test]
async fn where_nothing_can_be_settled_nothing_is_published_or_thrown_away() {
    let broker = broker(3).await;
    let read_only = async || Box::new(ReadOnly(open(&broker).await)) as Box<dyn Letters>;
    let how = Redrive::default();
    let refused = redrive(read_only().await, publisher(&broker), &Filter::default(), &how, |_| {}).await;
    assert!(refused.unwrap_err().chain().contains("may only read"));
    assert!(broker.records("orders").is_empty());
    let file = tempfile::tempfile().unwrap();
    let how = Discard::because("tests");
    let refused = discard(read_only().await, &Filter::default(), &how, file, |_| {}).await;
    assert!(refused.unwrap_err().chain().contains("may only read"));
    let how = Redrive::default().dry_run(true);
    let plan =
        redrive(read_only().await, publisher(&broker), &Filter::default(), &how, |_| {}).await.unwrap();
    assert_eq!((plan.redriven, broker.records("orders.dead").len()), (3, 3));
}

/// A target of one letter is away; the others are on their way.
#[tokio::test(start_paused = true)]
async fn an_error_ends_a_redrive_only_when_what_is_on_its_way_is_settled() {
    #[derive(Clone)]
    struct OneIsAway(DynPublisher);

    impl Publisher for OneIsAway {
        fn publish(
            &self,
            outgoing: Outgoing,
        ) -> impl Future<Output = Result<(), consumer_core::PublishError>> + Send + 'static + use<> {
            let is_away = outgoing.message().id().is_some_and(|id| id == "id-0");
            let published = (!is_away).then(|| self.0.publish(outgoing));
            async move {
                // The others are confirmed only after that one has been given up.
                tokio::time::sleep(Duration::from_secs(if is_away { 1 } else { 60 })).await;
                match published {
                    None => Err(consumer_core::PublishError::unavailable("away")),
                    Some(published) => published.await,
                }
            }
        }
    }

    let broker = broker(30).await;
    let publisher = DynPublisher::new(OneIsAway(publisher(&broker)));
    let mut told = 0;
    let how = Redrive::default().patience(Duration::from_secs(5));
    let outcome =
        redrive(open(&broker).await, publisher, &Filter::default(), &how, |r| told = r.redriven).await;
    assert!(outcome.unwrap_err().to_string().contains("orders"));
    let (sent, left) = (broker.records("orders").len(), broker.records("orders.dead").len());
    assert_eq!((told, sent, left), (29, 29, 1), "nothing was published and left unsettled");
}

#[tokio::test(start_paused = true)]
async fn a_redrive_that_is_cut_is_gone_on_with_by_the_next() {
    let broker = broker(30).await;
    let how = Redrive::default().rate(NonZeroU32::new(1).unwrap()).hold(Duration::ZERO);
    let cut =
        redrive(open(&broker).await, publisher(&broker), &Filter::default(), &how, |_| {}).await.unwrap();
    assert!(cut.is_cut && !cut.is_stopped);
    assert_eq!((cut.redriven, broker.records("orders.dead").len()), (0, 30));
    let rest =
        redrive(open(&broker).await, publisher(&broker), &Filter::default(), &Redrive::default(), |_| {})
            .await;
    let all = rest.unwrap().and_before(cut);
    assert_eq!((all.redriven, all.targets["orders"], all.is_cut), (30, 30, false));
}

#[tokio::test]
async fn what_a_broker_set_aside_has_its_way_back_after_an_import() {
    use consumer_core::dead_letters::{BrokerDeath, redriven};

    let death = BrokerDeath::new("orders", "delivery_limit").at(SystemTime::UNIX_EPOCH);
    let place = Place { scope: 0, seq: 0 };
    let letter =
        DeadLetter::new(place, Message::builder().payload("x").id("1").build()).with_death(Some(death));
    let message = crate::ExportedLetter::new(&letter).message().unwrap();
    let again = DeadLetter::new(place, message);
    assert_eq!((again.reason(), again.origin(), again.error()), ("broker", Some("orders"), letter.error()));
    assert_eq!(again.last_failed_at(), Some(SystemTime::UNIX_EPOCH));
    assert_eq!(redriven(&again, None, SystemTime::now()).unwrap().target(), "orders");
}

/// Letters that look into the file when they are settled.
#[derive(Debug)]
struct Watching(Box<dyn Letters>, std::path::PathBuf);

#[async_trait::async_trait]
impl Letters for Watching {
    fn expected(&self) -> Option<u64> {
        self.0.expected()
    }

    async fn next(&mut self) -> Result<Option<DeadLetter>, DeadLettersError> {
        self.0.next().await
    }

    fn settle(&mut self, place: Place, how: Settled) -> BoxFuture<Result<(), DeadLettersError>> {
        let written = fs::read_to_string(&self.1).unwrap();
        let place_of = format!("\"place\":\"{place}\"");
        assert!(
            written.lines().any(|line| line.contains(&place_of)),
            "{place} is settled and not in the file"
        );
        self.0.settle(place, how)
    }

    async fn close(self: Box<Self>) -> Result<(), DeadLettersError> {
        self.0.close().await
    }
}

#[tokio::test]
async fn a_letter_is_in_the_file_before_it_is_settled() {
    let broker = broker(700).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("discarded.jsonl");
    let file = fs::File::create(&path).unwrap();
    let letters = Box::new(Watching(open(&broker).await, path));
    let how = Discard::because("tests");
    let report = discard(letters, &Filter::default(), &how, file, |_| {}).await.unwrap();
    assert_eq!((report.discarded, broker.records("orders.dead").len()), (700, 0));
}

/// Letters that tell whether they were closed.
#[derive(Debug)]
struct Closing(Box<dyn Letters>, Arc<AtomicBool>);

#[async_trait::async_trait]
impl Letters for Closing {
    fn expected(&self) -> Option<u64> {
        self.0.expected()
    }

    async fn next(&mut self) -> Result<Option<DeadLetter>, DeadLettersError> {
        self.0.next().await
    }

    fn settle(&mut self, place: Place, how: Settled) -> BoxFuture<Result<(), DeadLettersError>> {
        self.0.settle(place, how)
    }

    async fn close(self: Box<Self>) -> Result<(), DeadLettersError> {
        self.1.store(true, Relaxed);
        self.0.close().await
    }
}

#[tokio::test]
async fn an_export_that_cannot_write_closes_the_letters() {
    let (broker, closed) = (broker(3).await, Arc::new(AtomicBool::new(false)));
    let letters = Box::new(Closing(open(&broker).await, closed.clone()));
    let mut full: &mut [u8] = &mut [0; 10];
    assert!(export(letters, &Filter::default(), None, &mut full).await.is_err());
    assert!(closed.load(Relaxed));
}
