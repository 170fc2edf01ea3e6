//! Several stores on the same tables.

use std::{collections::HashMap, time::Duration};

use consumer_core::dedup::{
    ClaimReply, ClaimRequest, DedupStore, Mode, Owner, ParkOperation, ParkReply, ParkRequest, RenewRequest,
    Renewal, Resolution, Resolved, StoreKey,
};
use consumer_sql::PostgresStore;
use sqlx::{Row, postgres::PgPoolOptions};
use xtask::servers::shared_postgres;

use crate::{LIFETIME, claimed, own_tables, raw, request, store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn of_many_that_want_a_key_one_has_it() {
    hammer(shared_postgres()).await;
}

/// A database that is stricter than it need be gives up statements that could not be put in one order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn of_many_that_want_a_key_one_has_it_in_a_strict_database() {
    hammer(format!("{}?options[default_transaction_isolation]=serializable", shared_postgres())).await;
}

/// Each of a few keys is claimed by all at once, again and again: one has it at a time.
async fn hammer(url: String) {
    const STORES: u128 = 3;
    const KEYS: u32 = 40;
    const ROUNDS: u64 = 30;
    let tables = own_tables();
    let mut hammering = Vec::new();
    for process in 1..=STORES {
        let store = PostgresStore::builder(&url).tables(tables.clone()).connect().await.unwrap();
        hammering.push(tokio::spawn(async move {
            let mut epochs: HashMap<u32, Vec<u64>> = HashMap::new();
            for round in 0..ROUNDS {
                // All at once: in one batch, or in a few.
                let asked: Vec<_> = (0..KEYS)
                    .map(|id| {
                        let owner = Owner { process, seq: round * 1_000 + u64::from(id) };
                        store.claim(ClaimRequest { owner, ..request(id, process) })
                    })
                    .collect();
                let mut releasing = Vec::new();
                for (id, claim) in (0..KEYS).zip(asked) {
                    match claim.await.unwrap() {
                        ClaimReply::Claimed(claim) => {
                            epochs.entry(id).or_default().push(claim.epoch);
                            releasing.push(store.resolve(
                                claim,
                                Resolution::Returned { attempts: 0 },
                                LIFETIME,
                            ));
                        }
                        ClaimReply::Busy { .. } => {}
                        other => panic!("{other:?}"),
                    }
                }
                for released in releasing {
                    assert_eq!(released.await.unwrap(), Resolved::Applied);
                }
            }
            epochs
        }));
    }
    let mut all: HashMap<u32, Vec<u64>> = HashMap::new();
    for one in hammering {
        for (id, epochs) in one.await.unwrap() {
            all.entry(id).or_default().extend(epochs);
        }
    }
    assert_eq!(all.len(), KEYS as usize);
    for (id, mut epochs) in all {
        epochs.sort_unstable();
        // Each claim has an epoch of its own, and each epoch was somebody's: nobody has written over anybody.
        let first = epochs[0];
        let expected: Vec<u64> = (first..).take(epochs.len()).collect();
        assert_eq!(epochs, expected, "key {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn parked_messages_of_a_key_have_one_order_for_all() {
    const EACH: u32 = 50;
    let tables = own_tables();
    let key = StoreKey::new("c".into(), "account-7".into());
    let ask = |id: u128, operation| ParkRequest { key: key.clone(), id, operation, lifetime: LIFETIME };
    let stores = [store(&tables).await, store(&tables).await];
    let defer = ParkOperation::Defer { wait: Duration::from_secs(60) };
    assert_eq!(stores[0].park(ask(0, defer)).await.unwrap(), ParkReply::Done);
    let mut parking = Vec::new();
    for (nth, store) in stores.iter().enumerate() {
        for id in 0..EACH {
            let id = u128::from(id) * 2 + nth as u128 + 1;
            parking.push(store.park(ask(id, ParkOperation::Enter { limit: 1_000 })));
        }
    }
    for parked in parking {
        assert!(matches!(parked.await.unwrap(), ParkReply::Behind { .. }));
    }
    let sql = format!("SELECT length(ids) FROM {}.consumer_parked", tables.schema().unwrap());
    let length: i32 = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&mut raw().await).await.unwrap().get(0);
    assert_eq!(length, 16 * (2 * i32::try_from(EACH).unwrap() + 1), "nobody's place is lost");
}

/// A record that has expired and is still there; one that was forgotten and comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn expired_rows_mean_nothing_and_go_in_time() {
    let tables = own_tables();
    let store = store(&tables).await;
    let count = format!("SELECT count(*) FROM {}.consumer_dedup", tables.schema().unwrap());
    // More than go at once.
    let claiming: Vec<_> = (0..2_500).map(|id| store.claim(request(id, 1))).collect();
    for claim in claiming {
        let ClaimReply::Claimed(claim) = claim.await.unwrap() else { panic!("nobody else is there") };
        drop(store.resolve(claim, Resolution::Completed, Duration::from_millis(1)));
    }
    store.flush().await.unwrap();
    let mut raw = raw().await;
    wait_for("the rows to go", async || {
        claimed(&store, 0).await;
        let sql = sqlx::AssertSqlSafe(count.clone());
        sqlx::query(sql).fetch_one(&mut raw).await.unwrap().get::<i64, _>(0) == 1
    })
    .await;
}

/// The time is the server's: a store whose own clock is wrong sees the same leases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn leases_are_measured_by_the_clock_of_the_server() {
    let tables = own_tables();
    let store = store(&tables).await;
    let claim = claimed(&store, 1).await;
    let sql = format!(
        "SELECT lease_until - (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::BIGINT FROM {}.consumer_dedup",
        tables.schema().unwrap()
    );
    let left: i64 = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&mut raw().await).await.unwrap().get(0);
    assert!((1..=60_000).contains(&left), "{left}");
    let renewal = RenewRequest { claim, attempts: 0, mode: Mode::Normal };
    assert_eq!(store.renew(vec![renewal]).await.unwrap(), [Renewal::Held]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_store_from_a_pool_waits_for_nobody_who_uses_it() {
    let tables = own_tables();
    let options = PgPoolOptions::new().max_connections(1);
    let pool = options.connect(&shared_postgres()).await.unwrap();
    let _taken = pool.acquire().await.unwrap();
    let store = PostgresStore::with_pool(&pool).tables(tables.clone()).connect().await.unwrap();
    let claim = claimed(&store, 1).await;
    let done = store.resolve(claim, Resolution::Completed, LIFETIME).await.unwrap();
    assert_eq!(done, Resolved::Applied);
}

async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), waiting).await.is_ok(), "waited for {what}");
}
