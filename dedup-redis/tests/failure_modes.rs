//! The failure modes that a store can show, against a real Redis. Named after their numbers in docs/failure-modes.md.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    Direct, GRACE, Proxy, RETENTION, available, blocking, claim, complete, eventually, is_available, key,
    known_down, owner, renewal, request, unique, within,
};
use consumer_core::dedup::{ClaimReply, DedupStore, Mode, RenewRequest, Renewal, Resolution, Resolved};
use dedup_redis::{EvictionCheck, RedisStore, format::Record};
use xtask::servers::{Redis, shared_redis};

async fn two_stores() -> (RedisStore, RedisStore) {
    let url = shared_redis();
    (RedisStore::connect(url.clone()).await.unwrap(), RedisStore::connect(url).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm01_of_two_who_ask_at_once_one_claims() {
    let (one, two) = two_stores().await;
    for round in 0..200 {
        let key = unique("fm01");
        let ours = one.claim(request(&key, owner(1, round)));
        let theirs = two.claim(request(&key, owner(2, round)));
        let (ours, theirs) = (ours.await.unwrap(), theirs.await.unwrap());
        let (winner, claim, loser) = match (ours, theirs) {
            (ClaimReply::Claimed(claim), ClaimReply::Busy { .. }) => (&one, claim, &two),
            (ClaimReply::Busy { .. }, ClaimReply::Claimed(claim)) => (&two, claim, &one),
            other => panic!("{other:?}"),
        };
        assert_eq!(complete(winner, claim).await, Resolved::Applied);
        assert_eq!(loser.claim(request(&key, owner(3, round))).await.unwrap(), ClaimReply::Completed);
    }
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn fm02_the_claim_of_a_dead_process_is_busy_and_then_taken_over() {
    let (dead, alive) = two_stores().await;
    let mut direct = Direct::to(&shared_redis()).await;
    let key = unique("fm02");
    let first = claim(&dead, &key, owner(1, 1)).await;
    let ClaimReply::Busy { remaining } = alive.claim(request(&key, owner(2, 1))).await.unwrap() else {
        panic!("not busy");
    };
    assert!(remaining > Duration::ZERO && remaining <= common::LEASE);
    direct.end_lease(&key, GRACE).await;
    let second = claim(&alive, &key, owner(2, 1)).await;
    assert_eq!((second.epoch, second.crashes, second.suspect), (first.epoch + 1, 0, true));
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn fm03_a_claim_whose_reply_was_lost_recognises_itself() {
    let redis = Redis::start().unwrap();
    let mut direct = Direct::to(&redis.url()).await;
    let proxy = Proxy::to(redis.port()).await;
    let store = RedisStore::builder(proxy.url()).pipelines(1).connect().await.unwrap();
    proxy.swallow(1);
    let claim = claim(&store, &key("fm03"), owner(1, 1)).await;
    assert!(proxy.swallowed_all());
    assert_eq!((store.stats().retries, store.stats().reconnects), (1, 1));
    let Some(Ok(Record::Claimed { owner: holder, numbers, .. })) = direct.record(&key("fm03")).await else {
        panic!("no claim is stored");
    };
    assert_eq!((holder, numbers.epoch), (owner(1, 1), claim.epoch));
    proxy.swallow(1);
    assert_eq!(complete(&store, claim).await, Resolved::Applied);
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn fm04_a_stalled_owner_that_fails_does_not_touch_the_new_claim() {
    let (stalled, other) = two_stores().await;
    let mut direct = Direct::to(&shared_redis()).await;
    for resolution in [
        Resolution::Failed { attempts: 3 },
        Resolution::Returned { attempts: 3 },
        Resolution::DeadLettered,
        Resolution::Deferred { attempt: 4 },
    ] {
        let key = unique("fm04");
        let old = claim(&stalled, &key, owner(1, 1)).await;
        direct.end_lease(&key, GRACE).await;
        let new = claim(&other, &key, owner(2, 1)).await;
        let before = direct.record(&key).await;
        assert_eq!(stalled.resolve(old, resolution, RETENTION).await.unwrap(), Resolved::NotOwner);
        assert_eq!(direct.record(&key).await, before);
        assert_eq!(other.renew(vec![renewal(&new)]).await.unwrap(), [Renewal::Held]);
    }
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn fm05_a_stalled_owner_that_succeeds_is_recorded_and_the_overlap_is_told() {
    let (stalled, other) = two_stores().await;
    let mut direct = Direct::to(&shared_redis()).await;
    let key = unique("fm05");
    let old = claim(&stalled, &key, owner(1, 1)).await;
    direct.end_lease(&key, GRACE).await;
    let new = claim(&other, &key, owner(2, 1)).await;
    assert_eq!(complete(&stalled, old).await, Resolved::Overlapped);
    assert_eq!(other.renew(vec![renewal(&new)]).await.unwrap(), [Renewal::Completed]);
    assert_eq!(complete(&other, new).await, Resolved::AlreadyCompleted);
    assert_eq!(other.claim(request(&key, owner(3, 1))).await.unwrap(), ClaimReply::Completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm06_a_completed_key_stays_completed_whoever_writes_at_the_same_time() {
    let (one, two) = two_stores().await;
    let mut direct = Direct::to(&shared_redis()).await;
    for round in 0..100 {
        let key = unique("fm06");
        let ours = claim(&one, &key, owner(1, round)).await;
        let renewals: Vec<_> = (0..3).map(|_| two.renew(vec![renewal(&ours)])).collect();
        let claims: Vec<_> = (0..3).map(|_| two.claim(request(&key, owner(2, round)))).collect();
        let done = one.resolve(ours.clone(), Resolution::Completed, RETENTION);
        let failed = two.resolve(ours.clone(), Resolution::Failed { attempts: 1 }, RETENTION);
        let more: Vec<_> = (0..3).map(|_| one.claim(request(&key, owner(3, round)))).collect();
        assert!(done.await.is_ok() && failed.await.is_ok());
        for answer in renewals {
            answer.await.unwrap();
        }
        for answer in claims.into_iter().chain(more) {
            answer.await.unwrap();
        }
        assert_eq!(direct.record(&key).await, Some(Ok(Record::Completed { fingerprint: Some(7) })));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm08_a_completion_during_an_outage_is_recorded_after_it() {
    let redis = Arc::new(Redis::start().unwrap());
    let store = RedisStore::connect(redis.url()).await.unwrap();
    let claims = [claim(&store, &key("a"), owner(1, 1)).await, claim(&store, &key("b"), owner(1, 2)).await];
    blocking(&redis, |redis| redis.stop()).await;
    let mut pending = claims.map(|claim| Box::pin(store.resolve(claim, Resolution::Completed, RETENTION)));
    known_down(&store).await;
    for pending in &mut pending {
        assert!(tokio::time::timeout(Duration::ZERO, pending).await.is_err(), "there is nobody to record it");
    }
    blocking(&redis, |redis| redis.start_again_empty()).await.unwrap();
    for pending in pending {
        assert_eq!(within("recorded", pending).await.unwrap(), Resolved::Applied);
    }
    available(&store).await;
    assert_eq!(store.claim(request(&key("a"), owner(1, 3))).await.unwrap(), ClaimReply::Completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm08_a_completion_that_redis_has_no_memory_for_is_recorded_later() {
    let redis = Redis::start().unwrap();
    let store = RedisStore::builder(redis.url())
        .response_timeout(Duration::from_millis(300))
        .connect()
        .await
        .unwrap();
    let held = claim(&store, &key("full"), owner(1, 1)).await;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let mut pending = Box::pin(store.resolve(held, Resolution::Completed, RETENTION));
    known_down(&store).await;
    let error = store.claim(request(&key("other"), owner(1, 2))).await.unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("OOM"));
    assert!(tokio::time::timeout(Duration::ZERO, &mut pending).await.is_err());
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    assert_eq!(within("recorded", pending).await.unwrap(), Resolved::Applied);
    available(&store).await;
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn fm18_a_redis_that_may_evict_is_refused_on_request() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let redis =
            Redis::builder().option("maxmemory", "50mb").option("maxmemory-policy", policy).start().unwrap();
        let refused =
            RedisStore::builder(redis.url()).eviction(EvictionCheck::Refuse).connect().await.unwrap_err();
        assert!(refused.is_eviction());
        assert_eq!(
            refused.to_string(),
            format!(
                "redis at {} may evict remembered ids: maxmemory-policy {policy}, maxmemory 52428800",
                redis.url()
            )
        );
        RedisStore::connect(redis.url()).await.unwrap();
    }
    let redis = Redis::builder().option("maxmemory", "50mb").start().unwrap();
    RedisStore::builder(redis.url()).eviction(EvictionCheck::Refuse).connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm18_what_a_restart_has_lost_of_the_last_moments_is_recorded_again() {
    let redis = Arc::new(Redis::start().unwrap());
    let store = RedisStore::builder(redis.url()).pipelines(1).connect().await.unwrap();
    for number in 0..1000 {
        let claim = claim(&store, &key(&number.to_string()), owner(1, number)).await;
        complete(&store, claim).await;
    }
    blocking(&redis, |redis| redis.kill()).await;
    blocking(&redis, |redis| redis.start_again_empty()).await.unwrap();
    let last = store.claim(request(&key("999"), owner(1, 2000)));
    assert_eq!(within("an answer", last).await.unwrap(), ClaimReply::Completed);
    let again = store.stats().reasserted;
    assert!((1..=1000).contains(&again), "{again} recorded again");
    let mut direct = Direct::to(&redis.url()).await;
    // What the probe has written is gone at once, but counted until redis notices.
    let count =
        || async { Direct::to(&redis.url()).await.run::<u64>(&mut redis::cmd("DBSIZE")).await == again };
    eventually("nothing else is stored", count).await;
    let left = Duration::from_millis(direct.ttl(&key("999")).await.try_into().unwrap());
    assert!(left < RETENTION && left + Duration::from_secs(600) > RETENTION);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm31_an_outage_is_seen_and_waited_out() {
    for hangs in [false, true] {
        let redis = Arc::new(Redis::start().unwrap());
        let store =
            RedisStore::builder(redis.url()).response_timeout(Duration::from_millis(300)).connect().await;
        let store = store.unwrap();
        assert!(is_available(&store).await);
        blocking(&redis, move |redis| if hangs { redis.pause() } else { redis.stop() }).await;
        known_down(&store).await;
        let error = store.claim(request(&key("fm31"), owner(1, 1))).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{} gave no answer in time", redis.url()));
        assert!(std::error::Error::source(&error).is_some());
        assert!(!is_available(&store).await);
        blocking(&redis, move |redis| if hangs { redis.resume() } else { redis.start_again().unwrap() })
            .await;
        // Nothing is sent meanwhile: the store finds out by itself.
        available(&store).await;
        claim(&store, &key("after"), owner(1, 2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm35_a_completion_is_recorded_though_all_futures_and_handles_are_dropped() {
    let redis = Arc::new(Redis::start().unwrap());
    let store = RedisStore::connect(redis.url()).await.unwrap();
    let claim = claim(&store, &key("fm35"), owner(1, 1)).await;
    blocking(&redis, |redis| redis.stop()).await;
    drop(store.resolve(claim, Resolution::Completed, RETENTION));
    let flushed = store.flush();
    drop(store);
    blocking(&redis, |redis| redis.start_again_empty()).await.unwrap();
    within("flushed", flushed).await.unwrap();
    let mut direct = Direct::to(&redis.url()).await;
    assert_eq!(direct.record(&key("fm35")).await, Some(Ok(Record::Completed { fingerprint: Some(7) })));
    // The tasks of the store end, and their connections with them.
    let clients = redis.clone();
    eventually("no connection is left", || {
        let clients = clients.clone();
        async move {
            let list = tokio::task::spawn_blocking(move || clients.cli(&["CLIENT", "LIST"])).await.unwrap();
            // Ours, and that of redis-cli.
            list.unwrap().lines().count() == 2
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn fm37_no_answer_is_an_error_and_only_a_take_over_is_lost() {
    let redis = Arc::new(Redis::start().unwrap());
    let builder = RedisStore::builder(redis.url()).response_timeout(Duration::from_millis(300));
    let (cut_off, other) = (builder.clone().connect().await.unwrap(), builder.connect().await.unwrap());
    let ours = claim(&cut_off, &key("fm37"), owner(1, 1)).await;
    blocking(&redis, |redis| redis.pause()).await;
    assert!(cut_off.renew(vec![renewal(&ours)]).await.is_err());
    blocking(&redis, |redis| redis.resume()).await;
    available(&cut_off).await;
    let alone = RenewRequest { attempts: 2, mode: Mode::Alone, ..renewal(&ours) };
    let held = || async { cut_off.renew(vec![alone.clone()]).await.unwrap_or_default() == [Renewal::Held] };
    eventually("still held", held).await;
    Direct::to(&redis.url()).await.end_lease(&key("fm37"), GRACE).await;
    available(&other).await;
    let theirs = claim(&other, &key("fm37"), owner(2, 1)).await;
    assert_eq!((theirs.epoch, theirs.attempts, theirs.crashes), (ours.epoch + 1, 2, 1));
    assert_eq!(cut_off.renew(vec![renewal(&ours)]).await.unwrap(), [Renewal::Lost]);
}
