//! The dedup store on a real PostgreSQL.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod outages;
mod refusals;
mod sharing;

use std::time::Duration;

use consumer_core::dedup::{Claim, ClaimReply, ClaimRequest, DedupStore, Owner, StoreKey};
use consumer_sql::{PostgresStore, Tables};
use sqlx::{Connection, PgConnection};
use xtask::servers::shared_postgres;

const LIFETIME: Duration = Duration::from_secs(600);

/// A schema of the test's own on the server that tests share.
pub(crate) fn own_tables() -> Tables {
    let schema = consumer_testing::unique("dedup").replace('-', "_");
    Tables::new().in_schema(schema).unwrap()
}

pub(crate) async fn store(tables: &Tables) -> PostgresStore {
    PostgresStore::builder(shared_postgres()).tables(tables.clone()).connect().await.unwrap()
}

pub(crate) async fn raw() -> PgConnection {
    PgConnection::connect(&shared_postgres()).await.unwrap()
}

pub(crate) fn request(id: u32, process: u128) -> ClaimRequest {
    ClaimRequest {
        key: StoreKey::new("c".into(), id.to_string().into()),
        owner: Owner { process, seq: u64::from(id) },
        fingerprint: Some(7),
        lease: Duration::from_secs(60),
        grace: Duration::from_secs(60),
        attempt: 1,
        redrive: 0,
    }
}

pub(crate) async fn claimed(store: &PostgresStore, id: u32) -> Claim {
    match store.claim(request(id, 1)).await.unwrap() {
        ClaimReply::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}
