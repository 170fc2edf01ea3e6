//! A Redis that serves in part: some connections, some commands, some keys.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{
    error::Error,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    Direct, Proxy, available, blocking, claim, complete, eventually, is_available, key, known_down, owner,
    request, unique, within,
};
use consumer_core::dedup::{ClaimReply, DedupStore, Resolved};
use dedup_redis::{EvictionCheck, RedisStore, format::Record};
use redis::cmd;
use xtask::servers::Redis;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_pipeline_that_cannot_reconnect_does_not_take_the_store_down() {
    let redis = Redis::start().unwrap();
    let mut direct = Direct::to(&redis.url()).await;
    let store = RedisStore::builder(redis.url()).name("two").connect().await.unwrap();
    let clients = direct.until_clients("two", 2).await;
    let set_password = |password: &str| {
        let mut set = cmd("CONFIG");
        set.arg("SET").arg("requirepass").arg(password);
        set
    };
    // Those who are connected stay so.
    let () = direct.run(&mut set_password("changed")).await;
    direct.kill_client(&clients[0]).await;
    let mut number = 0;
    let noticed = || {
        number += 1;
        let claim = store.claim(request(&unique("noticed"), owner(1, number)));
        async {
            assert!(matches!(claim.await.unwrap(), ClaimReply::Claimed(_)));
            store.stats().retries > 0
        }
    };
    eventually("the pipeline notices", noticed).await;
    let before = direct.connections().await;
    within("it tries to reconnect, in vain", async {
        while direct.connections().await < before + 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(is_available(&store).await);
    claim(&store, &key("after"), owner(2, 1)).await;
    let () = direct.run(&mut set_password("")).await;
    direct.until_clients("two", 2).await;
}

/// The server goes on to answer PING, and refuses what is written.
async fn stays_down_while(redis: &Redis, url: String, refuse: &[&[&str]], allow: &[&[&str]], why: &str) {
    let mut direct = Direct::to(&redis.url()).await;
    let store =
        RedisStore::builder(url).response_timeout(Duration::from_millis(300)).connect().await.unwrap();
    claim(&store, &unique("before"), owner(1, 1)).await;
    for command in refuse {
        redis.cli(command).unwrap();
    }
    known_down(&store).await;
    let before = direct.connections().await;
    within("it has tried some times", async {
        while direct.connections().await < before + 4 {
            assert!(!is_available(&store).await, "{why}: up while it refuses writes");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let error = store.claim(request(&unique("meanwhile"), owner(1, 2))).await.unwrap_err();
    assert!(error.source().unwrap().to_string().contains(why), "{why}: {error:?}");
    for command in allow {
        redis.cli(command).unwrap();
    }
    available(&store).await;
    claim(&store, &unique("after"), owner(1, 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm31_a_redis_that_refuses_writes_is_down_until_it_takes_them() {
    let redis = Redis::start().unwrap();
    let (url, limited) = (redis.url(), format!("redis://limited:pass@127.0.0.1:{}", redis.port()));
    redis.cli(&["ACL", "SETUSER", "limited", "on", ">pass", "~*", "+@all"]).unwrap();
    let set = |name: &'static str, value: &'static str| ["CONFIG", "SET", name, value];
    let (full, free) = (set("maxmemory", "1"), set("maxmemory", "0"));
    stays_down_while(&redis, url.clone(), &[&full], &[&free], "OOM").await;
    let (few, enough) = (set("min-replicas-to-write", "1"), set("min-replicas-to-write", "0"));
    stays_down_while(&redis, url.clone(), &[&few], &[&enough], "NOREPLICAS").await;
    let (forbid, permit) = (["ACL", "SETUSER", "limited", "-set"], ["ACL", "SETUSER", "limited", "+set"]);
    stays_down_while(&redis, limited, &[&forbid], &[&permit], "no permissions").await;
    stays_down_while(
        &redis,
        url,
        &[&["REPLICAOF", "127.0.0.1", "1"]],
        &[&["REPLICAOF", "NO", "ONE"]],
        "is a replica",
    )
    .await;
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn a_replica_is_refused() {
    let redis = Redis::builder().option("replicaof", "127.0.0.1 1").start().unwrap();
    let error = RedisStore::connect(redis.url()).await.unwrap_err();
    assert!(error.is_wrong_server() && !error.is_configuration());
    let expected = format!(
        "the server at {} is a replica: give the address of its primary, or use redis+sentinel://",
        redis.url()
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm18_a_redis_that_may_evict_after_a_restart_is_refused_too() {
    let redis = Arc::new(Redis::start().unwrap());
    let store = RedisStore::builder(redis.url())
        .eviction(EvictionCheck::Refuse)
        .response_timeout(Duration::from_millis(300))
        .connect()
        .await
        .unwrap();
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).unwrap();
    redis.cli(&["CONFIG", "REWRITE"]).unwrap();
    blocking(&redis, |redis| redis.kill()).await;
    blocking(&redis, |redis| redis.start_again_empty()).await.unwrap();
    known_down(&store).await;
    let shown = || async {
        let error = store.claim(request(&unique("evict"), owner(1, 1))).await.unwrap_err();
        error.source().unwrap().to_string().contains("may evict remembered ids: maxmemory-policy allkeys-lru")
    };
    eventually("the reason is shown", shown).await;
    assert!(!is_available(&store).await);
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).unwrap();
    available(&store).await;
    claim(&store, &unique("evict"), owner(1, 2)).await;
}

/// What is logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn count(&self, what: &str) -> usize {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().matches(what).count()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One thread: the subscriber is for it alone.
#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn fm18_each_run_of_a_redis_that_may_evict_is_warned_about_once() {
    let log = Log::default();
    let writer = log.clone();
    let _guard = tracing::subscriber::set_default(
        tracing_subscriber::fmt().with_writer(move || writer.clone()).finish(),
    );
    let redis = Redis::builder().option("maxmemory-policy", "allkeys-lru").start().unwrap();
    let redis = Arc::new(redis);
    let store = RedisStore::builder(redis.url()).name("warned").connect().await.unwrap();
    for run in 1..=2 {
        Direct::to(&redis.url()).await.until_clients("warned", 2).await;
        assert_eq!(log.count("may evict"), run);
        blocking(&redis, |redis| redis.kill()).await;
        known_down(&store).await;
        blocking(&redis, |redis| redis.start_again_empty()).await.unwrap();
        available(&store).await;
    }
}

/// One pipeline has left a server that the other still writes to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm18_each_pipeline_records_again_what_the_server_it_has_left_got_last() {
    let (old, new) = (Redis::start().unwrap(), Redis::start().unwrap());
    let (mut at_old, mut at_new) = (Direct::to(&old.url()).await, Direct::to(&new.url()).await);
    let proxy = Proxy::to(old.port()).await;
    let store = RedisStore::builder(proxy.url()).name("both").connect().await.unwrap();
    let clients = at_old.until_clients("both", 2).await;
    proxy.lead_to(new.port());
    at_old.kill_client(&clients[0]).await;
    let mut number = 0;
    let mut complete_one = async |store: &RedisStore| {
        number += 1;
        let key = key(&format!("key-{number}"));
        let claim = claim(store, &key, owner(1, number)).await;
        assert_ne!(complete(store, claim).await, Resolved::NotOwner);
        key
    };
    within("one has left", async {
        while at_new.clients("both").await.is_empty() {
            complete_one(&store).await;
        }
    })
    .await;
    let last = within("the other still writes there", async {
        loop {
            let key = complete_one(&store).await;
            if matches!(at_old.record(&key).await, Some(Ok(Record::Completed { .. }))) {
                return key;
            }
        }
    })
    .await;
    at_old.kill_client(&clients[1]).await;
    within("it is recorded again", async {
        while !matches!(at_new.record(&last).await, Some(Ok(Record::Completed { .. }))) {
            complete_one(&store).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn limits_of_options_are_harmless() {
    let redis = Redis::start().unwrap();
    for timeout in [Duration::MAX, Duration::ZERO] {
        let builder = RedisStore::builder(redis.url()).response_timeout(timeout).connect_timeout(timeout);
        // A millisecond may be too short; what counts is that it comes to an end.
        if let Ok(store) = builder.connect().await {
            let _ = store.claim(request(&unique("limits"), owner(1, 1))).await;
        }
    }
    let store = RedisStore::builder(redis.url()).user("").password("").connect().await.unwrap();
    claim(&store, &unique("no-password"), owner(1, 1)).await;
    let guarded = Redis::builder().password("s3cret").start().unwrap();
    RedisStore::builder(guarded.url()).password("").connect().await.unwrap();
}

/// Exactly what the crate's documentation asks for.
#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn the_documented_rights_are_enough() {
    let redis = Redis::start().unwrap();
    let rights = "+set +get +pttl +eval +evalsha +script|load +time +info +select +client|setname";
    let mut rule = vec!["ACL", "SETUSER", "limited", "on", ">pass", "~ic1:*"];
    rule.extend(rights.split(' '));
    redis.cli(&rule).unwrap();
    let url = format!("redis://limited:pass@127.0.0.1:{}/3", redis.port());
    let store = RedisStore::builder(url).name("limited").connect().await.unwrap();
    let key = unique("rights");
    let held = claim(&store, &key, owner(1, 1)).await;
    assert!(matches!(store.claim(request(&key, owner(2, 1))).await.unwrap(), ClaimReply::Busy { .. }));
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
    assert_eq!(complete(&store, held).await, Resolved::Applied);
    assert_eq!(store.claim(request(&key, owner(2, 2))).await.unwrap(), ClaimReply::Completed);
}
