//! A Redis Cluster that loses a node, and one whose slots move.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{Direct, LEASE, claim, eventually, is_available, key, owner, renewal, request, within};
use consumer_core::dedup::{
    Claim, ClaimReply, DedupStore, ParkOperation, ParkReply, ParkRequest, Renewal, Resolution, Resolved,
    StoreKey,
};
use consumer_testing::conformance::store::{self, StoreUnderTest};
use dedup_redis::RedisStore;
use redis::cmd;
use xtask::servers::{Redis, RedisCluster};

fn url(cluster: &RedisCluster) -> String {
    let hosts: Vec<_> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    format!("redis+cluster://{}", hosts.join(","))
}

async fn on_cluster<T: Send + 'static>(
    cluster: &Arc<RedisCluster>,
    call: impl FnOnce(&RedisCluster) -> T + Send + 'static,
) -> T {
    let cluster = cluster.clone();
    tokio::task::spawn_blocking(move || call(&cluster)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm31_a_cluster_goes_on_without_a_node_that_is_gone_or_hangs() {
    let cluster = Arc::new(RedisCluster::start().unwrap());
    for node in cluster.nodes() {
        node.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).unwrap();
    }
    for hangs in [false, true] {
        let builder = RedisStore::builder(url(&cluster)).response_timeout(Duration::from_millis(500));
        let store = builder.clone().connect().await.unwrap();
        let mut node = Direct::to(&cluster.nodes()[0].url()).await;
        let (mut served, mut cut_off): (Vec<Claim>, Vec<Claim>) = (Vec::new(), Vec::new());
        for number in 0..40 {
            let claim = claim(&store, &key(&format!("{hangs}-{number}")), owner(1, number)).await;
            if node.holds(&claim.key).await { cut_off.push(claim) } else { served.push(claim) }
        }
        assert!(served.len() > 10 && cut_off.len() > 5);
        on_cluster(
            &cluster,
            move |cluster| {
                if hangs { cluster.nodes()[0].pause() } else { cluster.nodes()[0].kill() }
            },
        )
        .await;

        // One batch for claims of all nodes: the answers of those that are left do not get lost with it.
        let requests: Vec<_> = served.iter().chain(&cut_off).map(renewal).collect();
        let expected = [vec![Renewal::Held; served.len()], vec![Renewal::Unanswered; cut_off.len()]].concat();
        let split = || async { store.renew(requests.clone()).await.unwrap_or_default() == expected };
        eventually("renewals are split by node", split).await;
        // Each pipeline has to meet the node once.
        let failed = || async { store.claim(request(&cut_off[0].key, owner(2, 1))).await.is_err() };
        eventually("the node is missed", failed).await;
        assert!(failed().await);
        let mut pending: Vec<_> = cut_off
            .iter()
            .map(|claim| Box::pin(store.resolve(claim.clone(), Resolution::Completed, common::RETENTION)))
            .collect();
        for round in 0..20 {
            for claim in &served {
                let reply = store.claim(request(&claim.key, owner(2, round))).await.unwrap();
                assert!(matches!(reply, ClaimReply::Busy { .. }), "{reply:?}");
            }
            assert!(is_available(&store).await);
        }
        assert!(failed().await);
        // A consumer that starts now can work too.
        let late = builder.connect().await.unwrap();
        assert!(matches!(
            late.claim(request(&served[0].key, owner(3, 1))).await.unwrap(),
            ClaimReply::Busy { .. }
        ));

        on_cluster(&cluster, move |cluster| {
            let node = &cluster.nodes()[0];
            if hangs {
                node.resume()
            } else {
                node.start_again_empty().unwrap()
            }
            cluster.wait_until_whole().unwrap();
        })
        .await;
        for pending in &mut pending {
            assert_eq!(within("recorded", pending).await.unwrap(), Resolved::Applied);
        }
        for claim in served {
            assert_eq!(common::complete(&store, claim).await, Resolved::Applied);
        }
    }
}

/// What the slot's node is asked to do, and the others.
struct Move {
    slot: String,
    from: Direct,
    to: Direct,
    third: Direct,
    from_id: String,
    to_id: String,
    to_port: u16,
}

impl Move {
    async fn new(nodes: &[Redis], key: &str) -> Self {
        let slot = nodes[0].cli(&["CLUSTER", "KEYSLOT", key]).unwrap();
        let owner = nodes.iter().position(|node| {
            node.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]).is_ok_and(|keys| !keys.is_empty())
        });
        let from = owner.unwrap();
        let (to, third) = ((from + 1) % 3, (from + 2) % 3);
        let id = |node: usize| nodes[node].cli(&["CLUSTER", "MYID"]).unwrap();
        Self {
            from: Direct::to(&nodes[from].url()).await,
            to: Direct::to(&nodes[to].url()).await,
            third: Direct::to(&nodes[third].url()).await,
            from_id: id(from),
            to_id: id(to),
            to_port: nodes[to].port(),
            slot,
        }
    }

    fn set(&self, what: &[&str]) -> redis::Cmd {
        let mut command = cmd("CLUSTER");
        command.arg("SETSLOT").arg(&self.slot).arg(what);
        command
    }

    async fn begin(&mut self) {
        let (import, migrate) =
            (self.set(&["IMPORTING", &self.from_id]), self.set(&["MIGRATING", &self.to_id]));
        let () = self.to.run(&mut import.clone()).await;
        let () = self.from.run(&mut migrate.clone()).await;
    }

    /// Moves up to so many keys; how many there were.
    async fn keys(&mut self, limit: usize) -> usize {
        let mut ask = cmd("CLUSTER");
        let keys: Vec<Vec<u8>> = self.from.run(ask.arg("GETKEYSINSLOT").arg(&self.slot).arg(limit)).await;
        if !keys.is_empty() {
            let mut migrate = cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(self.to_port).arg("").arg(0).arg(5000).arg("KEYS").arg(&keys);
            let _: String = self.from.run(&mut migrate).await;
        }
        keys.len()
    }

    async fn end(&mut self) {
        let done = self.set(&["NODE", &self.to_id]);
        let () = self.to.run(&mut done.clone()).await;
        let () = self.from.run(&mut done.clone()).await;
        let () = self.third.run(&mut done.clone()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_slot_that_moves_under_load_costs_no_error_and_no_double() {
    let cluster = RedisCluster::start().unwrap();
    // All keys in one slot.
    let connect = || RedisStore::builder(url(&cluster)).key_prefix("{m}").connect();
    let stores = [connect().await.unwrap(), connect().await.unwrap()];
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let work = |worker: u64| {
        let (stores, stop, rounds) = (stores.clone(), stop.clone(), rounds.clone());
        tokio::spawn(async move {
            let mut claims = Vec::new();
            for number in 0.. {
                if stop.load(SeqCst) {
                    break;
                }
                let key: StoreKey = key(&format!("{worker}-{number}"));
                let asked: Vec<_> = stores
                    .iter()
                    .zip(1..)
                    .map(|(store, process)| store.claim(request(&key, owner(process, worker << 32 | number))))
                    .collect();
                let mut granted = Vec::new();
                for answer in asked {
                    match answer.await.unwrap() {
                        ClaimReply::Claimed(claim) => granted.push(claim),
                        ClaimReply::Busy { .. } => {}
                        other => panic!("{other:?}"),
                    }
                }
                assert_eq!(granted.len(), 1, "{key:?}");
                let claim = granted.remove(0);
                assert_eq!(stores[0].renew(vec![renewal(&claim)]).await.unwrap(), [Renewal::Held]);
                assert_eq!(common::complete(&stores[1], claim).await, Resolved::Applied);
                claims.push(key);
                rounds.fetch_add(1, SeqCst);
            }
            claims
        })
    };
    let workers: Vec<_> = (0..4).map(work).collect();
    let more_work = async || {
        let goal = rounds.load(SeqCst) + 100;
        eventually("work goes on", || {
            let done = rounds.load(SeqCst) >= goal || workers.iter().any(|worker| worker.is_finished());
            async move { done }
        })
        .await;
    };
    more_work().await;
    let mut moved = Move::new(cluster.nodes(), "{m}").await;
    moved.begin().await;
    more_work().await;
    while moved.keys(20).await > 0 {}
    more_work().await;
    while moved.keys(20).await > 0 {}
    moved.end().await;
    more_work().await;
    stop.store(true, SeqCst);
    for worker in workers {
        for key in worker.await.unwrap() {
            let reply = stores[0].claim(request(&key, owner(9, 9))).await.unwrap();
            assert_eq!(reply, ClaimReply::Completed);
        }
    }
    assert_eq!(moved.keys(1).await, 0, "the node that has given it away got nothing afterwards");
    for store in &stores {
        assert!(is_available(store).await);
    }
}

/// A node that gives its slot away refuses what a script does to a key that it has itself removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn the_last_parked_message_leaves_while_its_slot_moves() {
    let cluster = RedisCluster::start().unwrap();
    let store = RedisStore::builder(url(&cluster)).key_prefix("{m}").connect().await.unwrap();
    let ask = |operation| store.park(ParkRequest { key: key("parked"), id: 1, operation, lifetime: LEASE });
    ask(ParkOperation::Defer { wait: LEASE }).await.unwrap();
    Move::new(cluster.nodes(), "{m}").await.begin().await;
    assert_eq!(ask(ParkOperation::Leave).await.unwrap(), ParkReply::Done);
    assert_eq!(ask(ParkOperation::Enter { limit: 1 }).await.unwrap(), ParkReply::Free);
}

/// A store whose keys are all in one slot.
struct OneSlot(String);

impl StoreUnderTest for OneSlot {
    type Store = RedisStore;

    async fn store(&self) -> RedisStore {
        RedisStore::builder(self.0.clone()).key_prefix("{m}").connect().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn the_rules_are_kept_while_the_slot_of_all_keys_moves_from_node_to_node() {
    let cluster = Arc::new(RedisCluster::start().unwrap());
    let subject = OneSlot(url(&cluster));
    claim(&subject.store().await, &key("first"), owner(1, 1)).await;
    let (stop, moves) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let moving = tokio::spawn({
        let (stop, moves) = (stop.clone(), moves.clone());
        async move {
            while !stop.load(SeqCst) {
                let mut moved = Move::new(cluster.nodes(), "{m}").await;
                moved.begin().await;
                while moved.keys(3).await > 0 {}
                moved.end().await;
                moves.fetch_add(1, SeqCst);
            }
        }
    });
    store::run_all(&subject).await;
    stop.store(true, SeqCst);
    moving.await.unwrap();
    let moves = moves.load(SeqCst);
    println!("the slot has moved {moves} times");
    assert!(moves >= 10, "{moves}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn the_documented_rights_are_enough_on_a_cluster() {
    let cluster = RedisCluster::start().unwrap();
    let rights = "+set +get +pttl +eval +evalsha +script|load +time +info +cluster|slots +asking";
    for node in cluster.nodes() {
        let mut rule = vec!["ACL", "SETUSER", "limited", "on", ">pass", "~ic1:*"];
        rule.extend(rights.split(' '));
        node.cli(&rule).unwrap();
    }
    let url = url(&cluster).replace("://", "://limited:pass@");
    let store = RedisStore::connect(url).await.unwrap();
    for number in 0..20 {
        let claim = claim(&store, &key(&number.to_string()), owner(1, number)).await;
        assert_eq!(store.renew(vec![renewal(&claim)]).await.unwrap(), [Renewal::Held]);
        assert_eq!(common::complete(&store, claim).await, Resolved::Applied);
    }
}

/// Hosts of the URL are asked at once, and the first answer counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn hosts_that_say_nothing_hold_up_no_other() {
    let cluster = RedisCluster::start().unwrap();
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let mut hosts: Vec<_> = silent.iter().map(|host| host.local_addr().unwrap().to_string()).collect();
    hosts.push(format!("127.0.0.1:{}", cluster.nodes()[2].port()));
    // So long that nobody would wait for one of them.
    let builder = RedisStore::builder(format!("redis+cluster://{}", hosts.join(",")))
        .connect_timeout(Duration::from_secs(3600));
    let store = within("connected", builder.connect()).await.unwrap();
    claim(&store, &key("silent"), owner(1, 1)).await;
}
