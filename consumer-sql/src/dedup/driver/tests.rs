//! The driver on a database that does what a test asks for.
#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    io,
    sync::{Arc, Mutex, MutexGuard},
    task::Poll,
};

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, DedupStore, Mode, Owner, RenewRequest, Renewal, Resolution, Resolved,
    StoreKey,
    protocol::{Claimed, State},
};

use super::*;
use crate::dedup::{
    Handle, dedup_store,
    record::{Kept, Row, Unreadable},
};

#[derive(Clone)]
struct Store(Handle);

dedup_store!(Store);

type Other = Box<dyn FnOnce(&mut Database) + Send>;

#[derive(Default)]
struct Database {
    rows: HashMap<u128, Result<Row<Kept>, Unreadable>>,
    now: u64,
    down: bool,
    /// The next write happens, and nobody is told.
    loses_an_answer: bool,
    /// Another process, which comes between the next load and its write.
    other: Option<Other>,
    largest_batch: usize,
    /// So many portions.
    expired: u32,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Database>>);

impl Fake {
    fn lock(&self) -> MutexGuard<'_, Database> {
        self.0.lock().unwrap()
    }

    fn store(&self) -> Store {
        self.lock().now = 1_000;
        Store(Handle::start(self.clone(), "the dedup store in memory cannot be used".to_owned()))
    }

    fn state(&self, id: u32) -> State {
        self.lock().rows[&key(id).hash()].as_ref().unwrap().record.state
    }
}

fn gone() -> sqlx::Error {
    io::Error::from(io::ErrorKind::ConnectionReset).into()
}

impl Backend for Fake {
    async fn load(&mut self, keys: &Keys) -> Result<Loaded, sqlx::Error> {
        // As a real one, which takes a while.
        tokio::task::yield_now().await;
        let mut database = self.lock();
        if database.down {
            return Err(gone());
        }
        database.largest_batch = database.largest_batch.max(keys.states.len());
        let found = keys.states.iter().filter_map(|hash| Some((*hash, database.rows.get(hash)?.clone())));
        Ok(Loaded { now: database.now, states: found.collect(), ..Loaded::default() })
    }

    async fn write(&mut self, changes: &Changes) -> Result<Keys, sqlx::Error> {
        let mut database = self.lock();
        if let Some(other) = database.other.take() {
            other(&mut database);
        }
        let mut conflicts = Keys::default();
        for (hash, row) in &changes.states {
            let has_changed = match database.rows.get(hash) {
                Some(found) => found.as_ref().is_ok_and(|found| found.version != row.version - 1),
                None => false,
            };
            if has_changed {
                conflicts.states.push(*hash);
            } else {
                database.rows.insert(*hash, Ok(row.clone()));
            }
        }
        if std::mem::take(&mut database.loses_an_answer) { Err(gone()) } else { Ok(conflicts) }
    }

    async fn sweep(&mut self, _now: u64) -> Result<bool, sqlx::Error> {
        let mut database = self.lock();
        database.expired = database.expired.saturating_sub(1);
        Ok(database.expired > 0)
    }

    async fn close(self) {}
}

const LIFETIME: Duration = Duration::from_secs(600);

fn key(id: u32) -> StoreKey {
    StoreKey::new("c".into(), id.to_string().into())
}

fn request(id: u32, process: u128) -> ClaimRequest {
    ClaimRequest {
        key: key(id),
        owner: Owner { process, seq: 1 },
        fingerprint: Some(7),
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(60),
        attempt: 1,
        redrive: 0,
    }
}

async fn claimed(store: &Store, id: u32) -> Claim {
    match store.claim(request(id, 1)).await.unwrap() {
        ClaimReply::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}

fn renewal(claim: &Claim) -> RenewRequest {
    RenewRequest { claim: claim.clone(), attempts: 0, mode: Mode::Normal }
}

#[tokio::test(start_paused = true)]
async fn what_was_written_though_the_answer_was_lost_is_answered_as_if_it_had_not_been() {
    let database = Fake::default();
    let store = database.store();
    let (first, second) = (claimed(&store, 1).await, claimed(&store, 2).await);
    for (claim, resolution) in
        [(first, Resolution::Completed), (second.clone(), Resolution::Failed { attempts: 1 })]
    {
        database.lock().loses_an_answer = true;
        assert_eq!(store.resolve(claim, resolution, LIFETIME).await.unwrap(), Resolved::Applied);
    }
    // What is asked for once more is another thing.
    let again = store.resolve(second, Resolution::Failed { attempts: 1 }, LIFETIME).await.unwrap();
    assert_eq!(again, Resolved::NotOwner);
    database.lock().loses_an_answer = true;
    assert!(store.claim(request(3, 1)).await.is_err());
    let recognised = claimed(&store, 3).await;
    assert_eq!(recognised.owner.process, 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_not_made_up_when_somebody_else_has_written_since() {
    let database = Fake::default();
    let store = database.store();
    let claim = claimed(&store, 1).await;
    database.lock().loses_an_answer = true;
    let hash = claim.key.hash();
    let resolving = store.resolve(claim, Resolution::Failed { attempts: 1 }, LIFETIME);
    // The driver has failed and waits: the next process claims.
    let mut resolving = Box::pin(resolving);
    while database.lock().loses_an_answer {
        poll_fn(|cx| Poll::Ready(resolving.as_mut().poll(cx).is_pending())).await;
        tokio::task::yield_now().await;
    }
    let other = Fake(database.0.clone()).store();
    assert!(matches!(other.claim(request(1, 2)).await.unwrap(), ClaimReply::Claimed(_)));
    assert_eq!(resolving.await.unwrap(), Resolved::NotOwner);
    assert!(matches!(database.lock().rows[&hash].as_ref().unwrap().record.state, State::Claimed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_another_process_has_written_meanwhile_is_decided_anew() {
    let database = Fake::default();
    let store = database.store();
    // Both have found nothing.
    database.lock().other = Some(Box::new(|database| {
        let request = request(1, 2);
        let batch = Batch::new(
            vec![Job::Claim(request, oneshot::channel().0)],
            Loaded { now: database.now, ..Loaded::default() },
        );
        database.rows.extend(batch.changes.states.iter().map(|(hash, row)| (*hash, Ok(row.clone()))));
    }));
    let (one, other, flushed) = (store.claim(request(1, 1)), store.claim(request(2, 1)), store.flush());
    assert!(matches!(one.await.unwrap(), ClaimReply::Busy { .. }));
    assert!(matches!(other.await.unwrap(), ClaimReply::Claimed(_)));
    flushed.await.unwrap();
    assert!(matches!(database.state(1), State::Claimed(Claimed { owner: Owner { process: 2, .. }, .. })));
}

#[tokio::test(start_paused = true)]
async fn what_is_decided_anew_stays_in_order_and_a_flush_waits_for_it() {
    let database = Fake::default();
    let store = database.store();
    let claim = claimed(&store, 1).await;
    let prolong = |database: &mut Database| {
        for row in database.rows.values_mut().flatten() {
            row.version += 1;
        }
    };
    database.lock().other = Some(Box::new(prolong));
    drop(store.resolve(claim, Resolution::Returned { attempts: 0 }, LIFETIME));
    let next = store.claim(request(1, 2));
    store.flush().await.unwrap();
    assert!(matches!(database.state(1), State::Claimed(Claimed { owner: Owner { process: 2, .. }, .. })));
    assert!(matches!(next.await.unwrap(), ClaimReply::Claimed(_)));
}

#[tokio::test(start_paused = true)]
async fn renewals_of_which_some_are_decided_anew_are_answered_together_and_in_order() {
    let database = Fake::default();
    let store = database.store();
    let claims = [claimed(&store, 1).await, claimed(&store, 2).await, claimed(&store, 3).await];
    let hash = claims[1].key.hash();
    database.lock().other = Some(Box::new(move |database| {
        let Some(Ok(row)) = database.rows.get_mut(&hash) else { panic!("it is claimed") };
        *row = Row {
            version: row.version + 1,
            record: Kept { state: State::Completed { fingerprint: None }, ..row.record },
        };
    }));
    let renewing = store.renew(claims.iter().map(renewal).collect());
    // Asked for later: it is no answer to the renewal.
    let released = store.resolve(claims[0].clone(), Resolution::Returned { attempts: 0 }, LIFETIME);
    assert_eq!(renewing.await.unwrap(), [Renewal::Held, Renewal::Completed, Renewal::Held]);
    assert_eq!(released.await.unwrap(), Resolved::Applied);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_cannot_be_read_fails_what_is_about_its_key_and_nothing_else() {
    let database = Fake::default();
    let store = database.store();
    let (broken, sound) = (claimed(&store, 1).await, claimed(&store, 2).await);
    database.lock().rows.insert(broken.key.hash(), Err("the state 77 is not known".to_owned()));
    let renewing = store.renew(vec![renewal(&broken), renewal(&sound)]);
    let resolving = store.resolve(broken.clone(), Resolution::Completed, LIFETIME);
    let claiming = store.claim(request(1, 2));
    let other = store.resolve(sound, Resolution::Completed, LIFETIME);
    assert_eq!(renewing.await.unwrap(), [Renewal::Unanswered, Renewal::Held]);
    assert!(resolving.await.unwrap_err().to_string().contains("77"));
    assert!(claiming.await.unwrap_err().to_string().contains("77"));
    assert_eq!(other.await.unwrap(), Resolved::Applied);
    assert!(database.lock().rows[&broken.key.hash()].is_err(), "it is not written over");
    assert!(is_up(&store).await);
}

async fn is_up(store: &Store) -> bool {
    poll_fn(|cx| Poll::Ready(store.poll_available(cx).is_ready())).await
}

#[tokio::test(start_paused = true)]
async fn fm31_in_an_outage_all_that_has_happened_is_kept_and_claims_are_answered() {
    let database = Fake::default();
    let store = database.store();
    let count = 3 * u32::try_from(BATCH).unwrap() + 7;
    let claiming: Vec<_> = (0..count).map(|id| store.claim(request(id, 1))).collect();
    let mut claims = Vec::new();
    for claim in claiming {
        let ClaimReply::Claimed(claim) = claim.await.unwrap() else { panic!("nobody else is there") };
        claims.push(claim);
    }
    database.lock().down = true;
    let resolving: Vec<_> =
        claims.into_iter().map(|claim| store.resolve(claim, Resolution::Completed, LIFETIME)).collect();
    let flushing = store.flush();
    for id in count..count + 20 {
        let error = store.claim(request(id, 1)).await.unwrap_err().to_string();
        assert!(error.starts_with("the dedup store in memory cannot be used: the server"), "{error}");
        assert!(!is_up(&store).await, "the source pauses");
    }
    database.lock().down = false;
    for resolved in resolving {
        assert_eq!(resolved.await.unwrap(), Resolved::Applied);
    }
    flushing.await.unwrap();
    assert!(is_up(&store).await);
    assert_eq!(database.lock().largest_batch, BATCH);
    assert!((0..count).all(|id| matches!(database.state(id), State::Completed { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_up_again_says_so_though_nobody_asks() {
    let database = Fake::default();
    let store = database.store();
    database.lock().down = true;
    assert!(store.claim(request(1, 1)).await.is_err());
    assert!(!is_up(&store).await);
    database.lock().down = false;
    poll_fn(|cx| store.poll_available(cx)).await;
}

#[tokio::test(start_paused = true)]
async fn as_long_as_expired_rows_are_left_each_batch_deletes_some() {
    let database = Fake::default();
    let store = database.store();
    database.lock().expired = 5;
    store.flush().await.unwrap();
    assert_eq!(database.lock().expired, 5, "it is not time yet");
    tokio::time::advance(SWEEP).await;
    for _ in 0..6 {
        store.flush().await.unwrap();
    }
    assert_eq!(database.lock().expired, 0);
}
