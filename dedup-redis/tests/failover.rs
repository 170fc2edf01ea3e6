//! Failovers under load: what asynchronous replication loses is counted, and so is what becomes of it.
//!
//! Each failover cuts the replica off, lets the primary record some more completions that nobody else ever hears of, and
//! kills it. With `FAILOVERS=20` there are 20 of them instead of two; the counts are printed.
#![allow(missing_docs, clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use std::{
    collections::HashMap,
    env,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{Direct, eventually};
use consumer_core::{
    Consumer, DedupLayer, Failure, Message, Outcome, Outgoing, Publisher,
    dedup::{Gate, StoreKey},
    memory::MemoryBroker,
};
use dedup_redis::{RedisStore, format::Record};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use xtask::servers::{Redis, RedisCluster, RedisSentinel};

const TOPIC: &str = "orders";
const SCOPE: &str = "mails";
const GROUP: &str = "order-mails";
/// Of each consumer.
const IN_FLIGHT: usize = 16;
/// A message comes for the second time when so many others have come.
const GAP: u64 = 150;
/// Where that is not at once, as of each so many one does.
const AT_ONCE: u64 = 50;
/// What the primary records after its replica was cut off. Far below what is done within two seconds.
const UNHEARD: usize = 100;

enum Servers {
    Sentinel(Box<RedisSentinel>),
    Cluster(RedisCluster),
}

impl Servers {
    fn url(&self) -> String {
        match self {
            Self::Sentinel(set) => {
                format!("redis+sentinel://127.0.0.1:{}/{}", set.sentinel().port(), RedisSentinel::MASTER_NAME)
            }
            Self::Cluster(cluster) => {
                let hosts: Vec<_> =
                    cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
                format!("redis+cluster://{}", hosts.join(","))
            }
        }
    }

    fn node(&self, port: u16) -> &Redis {
        let nodes = match self {
            Self::Sentinel(set) => &set.nodes()[..],
            Self::Cluster(cluster) => cluster.nodes(),
        };
        nodes.iter().find(|node| node.port() == port).unwrap()
    }

    /// A primary and its replica, which has all that was written so far.
    fn pair(&self) -> (u16, u16) {
        let (primary, replica) = match self {
            Self::Sentinel(set) => {
                set.wait_until_replicated().unwrap();
                set.pair().unwrap()
            }
            Self::Cluster(cluster) => {
                cluster.wait_until_whole().unwrap();
                cluster.pair().unwrap()
            }
        };
        (primary.port(), replica.port())
    }

    fn wait_until_promoted(&self, old: u16, replica: u16) {
        match self {
            Self::Sentinel(set) => set.wait_for_new_primary(old).unwrap(),
            Self::Cluster(cluster) => cluster.wait_until_promoted(self.node(replica)).unwrap(),
        }
    }
}

/// What an outsider knows: how often each effect has happened, and what the store has said is recorded.
#[derive(Debug, Default)]
struct Ledger(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    effects: HashMap<Bytes, u32>,
    /// In their order.
    recorded: Vec<Bytes>,
}

impl Ledger {
    fn with<T>(&self, look: impl FnOnce(&mut Entries) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn recorded(&self) -> usize {
        self.with(|entries| entries.recorded.len())
    }

    /// How many effects have happened more often than once.
    fn doubles(&self) -> u32 {
        self.with(|entries| entries.effects.values().map(|times| times - 1).sum())
    }
}

/// A consumer as a process of its own, until `stop`. How many messages it has processed.
fn consume(
    broker: &MemoryBroker,
    group: &str,
    nonce: u128,
    store: RedisStore,
    ledger: &Arc<Ledger>,
    mut stop: watch::Receiver<bool>,
) -> JoinHandle<u64> {
    let (happened, ledger) = (ledger.clone(), ledger.clone());
    let effect = service_fn(move |message: Message| {
        let happened = happened.clone();
        async move {
            // Work, during which the claim is held.
            tokio::time::sleep(Duration::from_millis(5)).await;
            let id = message.id().unwrap().clone();
            happened.with(|entries| *entries.effects.entry(id).or_default() += 1);
            Ok::<_, Failure>(Outcome::Processed)
        }
    });
    let dedup = DedupLayer::new(store, SCOPE).as_process(nonce, Gate::new()).lease(Duration::from_secs(2));
    let stack = dedup.layer(effect);
    let noting = service_fn(move |message: Message| {
        let (mut stack, ledger) = (stack.clone(), ledger.clone());
        async move {
            let id = message.id().unwrap().clone();
            let outcome = stack.ready().await?.call(message).await?;
            if outcome == Outcome::Processed {
                ledger.with(|entries| entries.recorded.push(id));
            }
            Ok::<_, Failure>(outcome)
        }
    });
    let stop = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let run =
        Consumer::new(broker.source(group, [TOPIC]), noting).max_in_flight(IN_FLIGHT).shutdown(stop).run();
    tokio::spawn(async move { run.await.unwrap().processed })
}

/// Publishes messages twice each, no faster than they are consumed. How many there are.
async fn publish(broker: MemoryBroker, stop: watch::Receiver<bool>) -> u64 {
    let publisher = broker.publisher();
    let send = |number: u64, copy: &str| {
        let message =
            Message::builder().payload("{}").key(format!("{copy}-{number}")).id(format!("o-{number}"));
        publisher.publish(Outgoing::new(TOPIC, message.build()))
    };
    let mut number = 0;
    while !*stop.borrow() {
        if broker.lag(GROUP, TOPIC) > 64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        send(number, "first").await.unwrap();
        if number % AT_ONCE == 0 {
            send(number, "second").await.unwrap();
        }
        if let Some(earlier) = number.checked_sub(GAP) {
            send(earlier, "second").await.unwrap();
        }
        number += 1;
    }
    for earlier in number.saturating_sub(GAP)..number {
        send(earlier, "second").await.unwrap();
    }
    number
}

/// Of these, those that the node does not have as completed. A Cluster's replica speaks for the slots of its primary.
async fn lacking(node: &mut Direct, ids: &[Bytes]) -> usize {
    let mut lacking = 0;
    for id in ids {
        let is_recorded = |value: &[u8]| matches!(Record::from_bytes(value), Ok(Record::Completed { .. }));
        if let Some(value) = node.peek(&StoreKey::new(SCOPE.into(), id.clone())).await {
            lacking += usize::from(!value.as_deref().is_some_and(is_recorded));
        }
    }
    lacking
}

async fn blocking<T: Send + 'static>(
    servers: &Arc<Servers>,
    call: impl FnOnce(&Servers) -> T + Send + 'static,
) -> T {
    let servers = servers.clone();
    spawn_blocking(move || call(&servers)).await.unwrap()
}

async fn more(ledger: &Ledger, count: usize) {
    let goal = ledger.recorded() + count;
    eventually("work goes on", || async { ledger.recorded() >= goal }).await;
}

/// What a failover has lost.
struct Lost {
    /// Completions that the new primary did not have at first.
    completions: usize,
    /// What had been recorded last before it, with how often the effect had happened by then.
    last: Vec<(Bytes, u32)>,
}

/// Loses what the primary records last; in the end all of that is recorded again.
async fn fail_over(servers: &Arc<Servers>, ledger: &Ledger) -> Lost {
    let (old, new) = blocking(servers, Servers::pair).await;
    more(ledger, UNHEARD).await;
    let cut = blocking(servers, move |servers| {
        servers.node(new).pause();
        servers.node(old).cli(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap()
    });
    assert_eq!(cut.await, "1", "the replica was connected");
    more(ledger, UNHEARD).await;
    let url = blocking(servers, move |servers| {
        servers.node(old).kill();
        servers.node(new).resume();
        servers.node(new).url()
    })
    .await;
    // Until another primary is there, whatever is said to be recorded was recorded by the old one.
    let last = ledger.with(|Entries { effects, recorded }| {
        let last = &recorded[recorded.len().saturating_sub(3 * UNHEARD)..];
        last.iter().map(|id| (id.clone(), effects[id])).collect::<Vec<_>>()
    });
    let ids: Vec<_> = last.iter().map(|(id, _)| id.clone()).collect();
    let mut node = Direct::to(&url).await;
    node.read_as_replica().await;
    let completions = lacking(&mut node, &ids).await;
    blocking(servers, move |servers| servers.wait_until_promoted(old, new)).await;
    let again = || {
        let (mut node, ids) = (node.clone(), ids.clone());
        async move { lacking(&mut node, &ids).await == 0 }
    };
    eventually("what was lost is recorded again", again).await;
    more(ledger, UNHEARD).await;
    blocking(servers, move |servers| servers.node(old).start_again_empty()).await.unwrap();
    Lost { completions, last }
}

async fn failovers(servers: Servers) {
    let count = env::var("FAILOVERS").map_or(2, |count| count.parse().unwrap());
    let servers = Arc::new(servers);
    let broker = MemoryBroker::new();
    broker.create_topic(TOPIC, 4);
    let ledger = Arc::new(Ledger::default());
    let stores = [connect(&servers).await, connect(&servers).await];
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let consumers = [1, 2].map(|nonce| {
        let store = stores[nonce - 1].clone();
        consume(&broker, GROUP, nonce as u128, store, &ledger, ended.clone())
    });
    let published = tokio::spawn(publish(broker.clone(), stopped));
    let mut lost = Vec::new();
    for _ in 0..count {
        lost.push(fail_over(&servers, &ledger).await);
    }
    stop.send(true).unwrap();
    let published = published.await.unwrap();
    eventually("nothing is stuck", || async { broker.lag(GROUP, TOPIC) == 0 }).await;
    end.send(true).unwrap();
    for consumer in consumers {
        consumer.await.unwrap();
    }
    let doubles = ledger.doubles();
    let ran_again = ledger.with(|entries| {
        let last = lost.iter().flat_map(|lost| &lost.last);
        last.map(|(id, before)| entries.effects[id] - before).sum::<u32>()
    });
    let completions: Vec<_> = lost.iter().map(|lost| lost.completions).collect();
    let again: u64 = stores.iter().map(|store| store.stats().reasserted).sum();
    println!(
        "{count} failovers: {published} messages, {} completions lost {completions:?}, {again} recorded again; \
         {doubles} doubles, {ran_again} of them after a completion that was lost",
        completions.iter().sum::<usize>()
    );
    assert_eq!(
        ledger.with(|entries| entries.effects.len() as u64),
        published,
        "every message has had its effect"
    );
    assert!(completions.iter().all(|lost| *lost > 0), "each failover has lost something");
    // Until a consumer has recorded its completions again, another one knows nothing of them; and of the claims that are
    // lost nobody does.
    assert!(ran_again as usize <= completions.iter().sum());
    assert!((doubles - ran_again) as usize <= count * 2 * IN_FLIGHT, "{doubles} doubles, {ran_again}");

    // A third time: everything is known.
    let (end, ended) = watch::channel(false);
    let third = consume(&broker, "third", 3, connect(&servers).await, &ledger, ended);
    eventually("all are read again", || async { broker.lag("third", TOPIC) == 0 }).await;
    end.send(true).unwrap();
    assert_eq!(
        (third.await.unwrap(), ledger.doubles()),
        (0, doubles),
        "nothing that was recorded runs again"
    );
}

async fn connect(servers: &Servers) -> RedisStore {
    RedisStore::connect(servers.url()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm18_what_a_failover_of_a_sentinel_loses_is_recorded_again() {
    failovers(Servers::Sentinel(Box::new(RedisSentinel::start().unwrap()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm18_what_a_failover_in_a_cluster_loses_is_recorded_again() {
    failovers(Servers::Cluster(RedisCluster::start_with_replicas().unwrap())).await;
}
