//! The deduplication store of `consumer-core` on Redis 7.0 or newer: a single node, Sentinel, or Cluster.
//!
//! *At-least-once; each key's handler completes once unless a process dies between the side effect and `complete`, or
//! Redis is away between the two for longer than the lease, a handler outlives its lease, an attempt that failed or timed
//! out had its effect all the same, Redis loses state, or a duplicate comes after the retention.*
//!
//! ```no_run
//! # async fn example() -> Result<(), dedup_redis::ConnectError> {
//! use dedup_redis::{EvictionCheck, RedisStore};
//!
//! let store = RedisStore::connect("redis://localhost:6379").await?;
//! let strict = RedisStore::builder("rediss://consumer:secret@redis.example:6380")
//!     .eviction(EvictionCheck::Refuse)
//!     .connect()
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! - **Atomic.** The two steps of a fresh message are native commands: `SET … NX GET PX` claims, `SET … GET PX` completes.
//!   Everything else is one Lua script (`src/lua/`) that reads and writes in one step.
//! - **Group commit.** Whatever waits goes out together as soon as one of a few pipelines is free; nothing lingers.
//! - **Driven.** An operation is enqueued by the call. Claims and renewals are tried until their deadline (1 s), then
//!   answered with an error; completions and releases until they are recorded, over outages, whatever is dropped.
//! - **Down is seen.** While no pipeline can reach Redis, or Redis refuses what is written,
//!   [`poll_available`](consumer_core::dedup::DedupStore::poll_available) is pending, which pauses the source. Connections
//!   come back by themselves; the store is up again when a script and a write on a probe key have worked.
//! - **A Cluster goes on without a lost node.** The keys of that node get errors, renewals of their claims no answer, and
//!   their completions wait; all others are served. Slots that move cost no errors.
//! - **Parked keys** are lists in sorted sets: to see that a key is free is one `ZRANGE`, the rest one script. A failover may
//!   lose the last steps, and with them the order of those keys, but no message. Where it loses that a message has left its
//!   list, the key stays parked until the lifetime of the list ends, and its messages wait.
//! - **Recent completions are recorded again** when another server answers after an outage (restarted, or a replica that
//!   was promoted): those of the last 2 s before it, at most 65,536, by the process that made them, before it asks for
//!   anything else.
//!
//! **What a failover can lose.** Redis replicates without waiting, so a replica that is promoted may lack the last writes of
//! its primary. Of these
//!
//! - a completion is recorded again. The message may run again if it comes in between to another process, which was quicker
//!   to reconnect; if the process that made it is gone too; or if the replica was more than 2 s behind;
//! - a claim is gone: while its handler runs, another process may run the same message. Those are at most what was in flight;
//! - numbers of a failed message (attempts, crashes) are as they were before, and a message that was dead-lettered or deferred
//!   may run again if it comes again.
//!
//! No message is lost by it, and none but those of parked keys is held up. Measured under the load of two consumers with 16
//! messages in flight each, where every message comes twice and the primary is killed when it has recorded 100 completions
//! more than its replica: 40 failovers behind a Sentinel lost 4,945 completions, all of which were recorded again; 149 messages
//! ran twice, 148 of them before the process that had made their completion had reconnected. 40 failovers in a Cluster, each of
//! which concerns a third of the keys, lost 1,576, and one message ran twice. (`FAILOVERS=20 cargo test -p dedup-redis --test
//! failover -- --ignored --nocapture`)
//!
//! A user with restricted rights needs, on keys with the prefix:
//!
//! | where | commands |
//! |---|---|
//! | everywhere | `SET`, `GET`, `PTTL`, `EVAL`, `EVALSHA`, `SCRIPT LOAD`, `TIME`, `INFO` |
//! | for [parking](consumer_core::DelayedRetryLayer::parking) | `ZRANGE`, `ZADD`, `ZREM`, `ZSCORE`, `ZCOUNT`, `PEXPIRE` |
//! | a database other than 0 | `SELECT` |
//! | with a [name](RedisStoreBuilder::name) | `CLIENT SETNAME` |
//! | behind Sentinels | `ROLE` |
//! | a Cluster | `CLUSTER SLOTS`, `ASKING` |

mod availability;
mod builder;
mod clock;
mod cluster;
mod connection;
mod driver;
mod error;
pub mod format;
#[cfg(test)]
mod fuzz;
mod greeting;
mod operation;
mod parking;
mod pipeline;
mod queue;
mod recent;
mod scripts;
mod stats;
mod store;
mod target;

pub use builder::{EvictionCheck, RedisStoreBuilder};
pub use error::ConnectError;
pub use stats::Stats;
pub use store::RedisStore;
