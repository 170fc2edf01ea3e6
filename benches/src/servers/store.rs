//! What the store on Redis costs: bytes for each id, and the wait of a single message.

use std::time::{Duration, Instant};

use consumer_core::{
    Message,
    dedup::{ClaimReply, ClaimRequest, DedupStore, Owner, Resolution, StoreKey, fingerprint},
};
use dedup_redis::RedisStore;
use futures_util::{StreamExt, stream};
use tokio::runtime::Runtime;
use tower::{Service, ServiceExt};

use super::{Fallible, Servers, redis_server::RedisServer};
use crate::{
    in_process::full_stack,
    report::{Report, Row},
    rounds::median,
};

const IDS: u64 = 1_000_000;
const AT_ONCE: usize = 1024;
const SINGLE: usize = 3_000;

pub(super) fn measure(
    report: &mut Report,
    servers: &Servers,
    runtime: &Runtime,
    redis: &mut RedisServer,
) -> Fallible<()> {
    redis.reset()?;
    let before = redis.used_memory()?;
    runtime.block_on(remember(servers))?;
    let keys = redis.keys()?;
    // The store's probe may not have expired yet.
    if !(IDS..IDS + 8).contains(&keys) {
        return Err(format!("{keys} keys instead of {IDS}").into());
    }
    let bytes = (redis.used_memory()? - before) as f64 / IDS as f64;
    report.add(Row::new("redis memory per remembered id, at 1,000,000", bytes, "bytes").at_most(165.0));

    redis.reset()?;
    let (plain, ours) = runtime.block_on(single(servers))?;
    let row = Row::new("kafka-less latency of a single message", ours.as_secs_f64() * 1e6, "us");
    report.add(row.against("both commands by hand", plain.as_secs_f64() * 1e6).ratio_at_most(2.0));
    Ok(())
}

/// Claims and completes a million ids.
async fn remember(servers: &Servers) -> Fallible<()> {
    let store = RedisStore::connect(servers.redis.as_str()).await?;
    let results = stream::iter(0..IDS).map(|n| remember_one(store.clone(), n)).buffer_unordered(AT_ONCE);
    let failed = results.filter_map(async |result: Fallible<()>| result.err());
    match std::pin::pin!(failed).next().await {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

async fn remember_one(store: RedisStore, n: u64) -> Fallible<()> {
    let request = ClaimRequest {
        key: StoreKey::new("order-mails".into(), format!("{n:032x}").into()),
        owner: Owner { process: 1, seq: n },
        fingerprint: Some(fingerprint(&n.to_le_bytes())),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(3600),
        attempt: 1,
        redrive: 0,
    };
    let ClaimReply::Claimed(claim) = store.claim(request).await? else { return Err("not claimed".into()) };
    store.resolve(claim, Resolution::Completed, Duration::from_secs(86_400)).await?;
    Ok(())
}

/// One message at a time: the two commands awaited one after the other, and the whole stack.
async fn single(servers: &Servers) -> Fallible<(Duration, Duration)> {
    let store = RedisStore::connect(servers.redis.as_str()).await?;
    let mut stack = full_stack(store);
    let mut plain = redis::Client::open(servers.redis.as_str())?.get_multiplexed_async_connection().await?;
    let (mut by_hand, mut ours) = (Vec::new(), Vec::new());
    tokio::spawn(async move {
        for n in 0..SINGLE {
            let from = Instant::now();
            let key = format!("plain:{n:026}");
            let claim =
                redis::cmd("SET").arg(&key).arg("claimed").arg(&["NX", "GET", "PX", "30000"]).to_owned();
            claim.query_async::<Option<String>>(&mut plain).await?;
            let complete = redis::cmd("SET").arg(&key).arg("done").arg(&["GET", "PX", "86400000"]).to_owned();
            complete.query_async::<Option<String>>(&mut plain).await?;
            by_hand.push(from.elapsed());

            let message = Message::builder().payload("{}").id(format!("{n:032}")).build();
            let from = Instant::now();
            let called = match stack.ready().await {
                Ok(ready) => ready.call(message).await,
                Err(failure) => Err(failure),
            };
            called.map_err(|failure| failure.chain().to_string())?;
            ours.push(from.elapsed());
        }
        Fallible::Ok((median(by_hand), median(ours)))
    })
    .await?
}
