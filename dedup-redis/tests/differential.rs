//! Random operations go through Redis and through the specification at once: same replies, same stored state.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{collections::HashMap, time::Duration};

use common::{Direct, owner, stored_key, unique};
use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, DedupStore, Mode, Owner, ParkOperation, ParkReply, ParkRequest,
    RenewRequest, Renewal, Resolution, StoreKey,
    parking::Parked,
    protocol::{Numbers, Operation, Reply, State, transition},
};
use dedup_redis::{
    RedisStore,
    format::{Record, list_key},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use xtask::servers::shared_redis;

/// The specification's clock stands still: leases end by `Step::EndLease` only.
const NOW: u64 = 1_000_000;
const KEYS: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    Claim { key: usize, owner: Owner, fingerprint: Option<u128>, grace: u64, attempt: u32, redrive: u32 },
    Resolve { key: usize, owner: Owner, fingerprint: Option<u128>, resolution: Resolution },
    Renew { key: usize, owner: Owner, attempts: u32, mode: Mode, grace: u64 },
    Park { id: u128, operation: ParkOperation },
    EndLease { key: usize },
    Forget { key: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS;
    let owner = || (1..=2_u128, 1..=3_u64).prop_map(|(process, seq)| owner(process, seq));
    let fingerprint = || prop_oneof![Just(None), Just(Some(1)), Just(Some(u128::MAX))];
    let grace = || prop_oneof![Just(600_000_u64), Just(3_600_000)];
    let resolution = prop_oneof![
        2 => Just(Resolution::Completed),
        2 => (0..4_u32).prop_map(|attempts| Resolution::Returned { attempts }),
        3 => (0..4_u32).prop_map(|attempts| Resolution::Failed { attempts }),
        3 => Just(Resolution::DeadLettered),
        3 => (0..4_u32).prop_map(|attempt| Resolution::Deferred { attempt }),
    ];
    let mode = prop_oneof![Just(Mode::Normal), Just(Mode::Suspect), Just(Mode::Alone)];
    let claim = (key.clone(), owner(), fingerprint(), grace(), 0..4_u32, 0..3_u32).prop_map(
        |(key, owner, fingerprint, grace, attempt, redrive)| Step::Claim {
            key,
            owner,
            fingerprint,
            grace,
            attempt,
            redrive,
        },
    );
    let resolve = (key.clone(), owner(), fingerprint(), resolution).prop_map(
        |(key, owner, fingerprint, resolution)| Step::Resolve { key, owner, fingerprint, resolution },
    );
    let renew = (key.clone(), owner(), 0..4_u32, mode, grace())
        .prop_map(|(key, owner, attempts, mode, grace)| Step::Renew { key, owner, attempts, mode, grace });
    let operation = prop_oneof![
        4 => (1..5_u32).prop_map(|limit| ParkOperation::Enter { limit }),
        3 => (0..1000_u64).prop_map(|wait| ParkOperation::Defer { wait: Duration::from_secs(wait) }),
        3 => Just(ParkOperation::Leave),
    ];
    let id = prop_oneof![1..6_u128, Just(u128::MAX), Just(u128::from(b'u'))];
    prop_oneof![
        6 => (id, operation).prop_map(|(id, operation)| Step::Park { id, operation }),
        6 => claim,
        5 => resolve,
        3 => renew,
        3 => key.clone().prop_map(|key| Step::EndLease { key }),
        1 => key.prop_map(|key| Step::Forget { key }),
    ]
}

struct World {
    store: RedisStore,
    direct: Direct,
    keys: Vec<StoreKey>,
    states: Vec<State>,
    /// Real epochs less those of the specification.
    ahead: HashMap<usize, u64>,
    parked: Parked,
    /// The longest a record may still live.
    lifetime: HashMap<usize, Duration>,
}

const LEASE: Duration = Duration::from_secs(1000);
const RETENTION: Duration = Duration::from_secs(2000);
/// How long one case may take without being mistaken for a wrong expiry.
const SLACK: Duration = Duration::from_secs(300);

impl World {
    async fn apply(&mut self, step: &Step) {
        match step {
            Step::EndLease { key } => {
                if let State::Claimed(held) = &mut self.states[*key] {
                    let Some(Ok(Record::Claimed { grace_ms, .. })) =
                        self.direct.record(&self.keys[*key]).await
                    else {
                        panic!("the record is no claim");
                    };
                    held.lease_until = NOW;
                    let grace = Duration::from_millis(grace_ms);
                    self.direct.end_lease(&self.keys[*key], grace).await;
                    self.lifetime.insert(*key, grace);
                }
            }
            Step::Forget { key } => {
                self.states[*key] = State::Absent;
                let () = self.direct.run(redis::cmd("DEL").arg(stored_key(&self.keys[*key]))).await;
            }
            Step::Claim { key, owner, fingerprint, grace, attempt, redrive } => {
                let request = ClaimRequest {
                    key: self.keys[*key].clone(),
                    owner: *owner,
                    fingerprint: *fingerprint,
                    lease: LEASE,
                    grace: Duration::from_millis(*grace),
                    attempt: *attempt,
                    redrive: *redrive,
                };
                let was_absent = self.states[*key] == State::Absent;
                let expected = self.specified(*key, &Operation::Claim(&request));
                let mut real = self.store.claim(request).await.unwrap();
                if let ClaimReply::Claimed(claim) = &mut real {
                    if was_absent {
                        self.ahead.insert(*key, claim.epoch - NOW);
                    }
                    claim.epoch -= self.ahead[key];
                }
                match (&expected, &real) {
                    (
                        Reply::Claim(ClaimReply::Busy { remaining: expected }),
                        ClaimReply::Busy { remaining: real },
                    ) => assert!(real <= expected && *real + SLACK > *expected, "{real:?} of {expected:?}"),
                    _ => assert_eq!(Reply::Claim(real), expected),
                }
            }
            Step::Park { id, operation } => {
                let key = self.keys[0].clone();
                let request = ParkRequest { key, id: *id, operation: *operation, lifetime: RETENTION };
                let expected = self.parked.apply(&request, NOW);
                let real = self.store.park(request).await.unwrap();
                match (expected, real) {
                    (ParkReply::Behind { remaining: expected }, ParkReply::Behind { remaining: real }) => {
                        assert!(real <= expected && real + SLACK > expected, "{real:?} of {expected:?}");
                    }
                    _ => assert_eq!(real, expected),
                }
                self.compare_parked().await;
            }
            Step::Resolve { key, owner, fingerprint, resolution } => {
                let claim = self.claim(*key, *owner, *fingerprint, 0);
                let expected = self.specified(*key, &Operation::Resolve(&claim, *resolution, RETENTION));
                let real = self.store.resolve(claim, *resolution, RETENTION).await.unwrap();
                assert_eq!(Reply::Resolve(real), expected);
            }
            Step::Renew { key, owner, attempts, mode, grace } => {
                let claim = self.claim(*key, *owner, None, *grace);
                let request = RenewRequest { claim, attempts: *attempts, mode: *mode };
                let expected = self.specified(*key, &Operation::Renew(&request));
                let real = self.store.renew(vec![request]).await.unwrap();
                assert_eq!(Reply::Renew(real[0]), expected);
            }
        }
        for key in 0..KEYS {
            self.compare(key).await;
        }
    }

    fn claim(&self, key: usize, owner: Owner, fingerprint: Option<u128>, grace: u64) -> Claim {
        Claim {
            key: self.keys[key].clone(),
            owner,
            epoch: 0,
            attempts: 0,
            crashes: 0,
            suspect: false,
            fingerprint,
            redrive: 0,
            lease: LEASE,
            grace: Duration::from_millis(grace),
        }
    }

    fn specified(&mut self, key: usize, operation: &Operation<'_>) -> Reply {
        let (reply, write) = transition(&self.states[key], operation, NOW);
        if let Some(write) = write {
            self.states[key] = write.state;
            self.lifetime.insert(key, write.lifetime);
        }
        reply
    }

    async fn compare_parked(&mut self) {
        let key = list_key(b"ic1:", &self.keys[0]);
        let stored: Vec<(Vec<u8>, f64)> =
            self.direct.run(redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).arg("WITHSCORES")).await;
        let (due, waiting): (Vec<_>, Vec<_>) = stored.into_iter().partition(|(member, _)| member == b"u");
        let ids: Vec<u128> =
            waiting.iter().map(|(id, _)| u128::from_be_bytes(id[..].try_into().unwrap())).collect();
        assert_eq!(ids, self.parked.ids);
        assert!(waiting.iter().all(|(_, place)| *place >= 1.0), "{waiting:?}");
        assert_eq!(due.len(), usize::from(self.parked.until > 0 && !ids.is_empty()));
        let left: i64 = self.direct.run(redis::cmd("PTTL").arg(&key)).await;
        if ids.is_empty() {
            assert_eq!(left, -2, "an empty list is no record");
            return;
        }
        let left = Duration::from_millis(u64::try_from(left).unwrap());
        let expected = Duration::from_millis(self.parked.expires_at - NOW);
        assert!(left <= expected && left + SLACK > expected, "{left:?} of {expected:?}");
    }

    async fn compare(&mut self, key: usize) {
        let stored = self.direct.record(&self.keys[key]).await;
        let Some(stored) = stored else {
            assert_eq!(self.states[key], State::Absent);
            return;
        };
        let left = Duration::from_millis(u64::try_from(self.direct.ttl(&self.keys[key]).await).unwrap());
        let expected = self.lifetime[&key];
        assert!(left <= expected && left + SLACK > expected, "{left:?} of {expected:?}");
        let left = u64::try_from(left.as_millis()).unwrap();
        let mut stored = stored.unwrap().to_state(NOW, left);
        let ahead = self.ahead.get(&key).copied().unwrap_or(0);
        match &mut stored {
            State::Claimed(held) => {
                held.numbers.epoch -= ahead;
                let State::Claimed(expected) = self.states[key] else { panic!("{:?}", self.states[key]) };
                assert!(held.lease_until <= expected.lease_until);
                held.lease_until = expected.lease_until;
            }
            State::Released(numbers) | State::DeadLettered(numbers) | State::Deferred { numbers, .. } => {
                numbers.epoch -= ahead;
            }
            _ => {}
        }
        assert_eq!(stored, self.states[key]);
    }
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn redis_does_what_the_specification_says() {
    let url = shared_redis();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (store, _guard) = (runtime.block_on(RedisStore::connect(url.clone())).unwrap(), runtime.enter());
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..40), |steps| {
            runtime.block_on(async {
                let mut world = World {
                    store: store.clone(),
                    direct: Direct::to(&url).await,
                    keys: (0..KEYS).map(|_| unique("differential")).collect(),
                    states: vec![State::Absent; KEYS],
                    ahead: HashMap::new(),
                    parked: Parked::default(),
                    lifetime: HashMap::new(),
                };
                for step in &steps {
                    world.apply(step).await;
                }
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn leases_of_any_length_are_taken() {
    let store = RedisStore::connect(shared_redis()).await.unwrap();
    let ends = [Duration::ZERO, Duration::MAX];
    for (lease, grace) in ends.into_iter().flat_map(|lease| ends.map(|grace| (lease, grace))) {
        let owner = owner(1, 1);
        let request = ClaimRequest {
            key: unique("long"),
            owner,
            fingerprint: None,
            lease,
            grace,
            attempt: 1,
            redrive: 0,
        };
        let ClaimReply::Claimed(claim) = store.claim(request.clone()).await.unwrap() else {
            panic!("not claimed")
        };
        let renewal = RenewRequest { claim, attempts: 0, mode: Mode::Normal };
        let (reply, write) = transition(&State::Absent, &Operation::Claim(&request), NOW);
        assert!(matches!(reply, Reply::Claim(ClaimReply::Claimed(_))));
        let (reply, _) = transition(&write.unwrap().state, &Operation::Renew(&renewal), NOW);
        assert_eq!(reply, Reply::Renew(Renewal::Held));
        // A claim of no time at all may be gone already.
        let renewed = store.renew(vec![renewal]).await.unwrap();
        assert!(renewed == [Renewal::Held] || lease.is_zero() && grace.is_zero());
    }
}

/// The record may expire between the native command and the script, so the script knows an absent key too.
#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn the_claim_script_makes_the_same_new_record_as_the_native_command() {
    let script = concat!(include_str!("../src/lua/record.lua"), "\n", include_str!("../src/lua/claim.lua"));
    let url = shared_redis();
    let mut direct = Direct::to(&url).await;
    for fingerprint in [None, Some(3_u128)] {
        let key = unique("absent");
        let mut owner = vec![0_u8; 24];
        owner[15] = 4;
        owner[23] = 5;
        let mut call = redis::cmd("EVAL");
        call.arg(script).arg(1).arg(stored_key(&key)).arg(owner);
        match fingerprint {
            Some(fingerprint) => call.arg(&fingerprint.to_be_bytes()[..]),
            None => call.arg(""),
        };
        let answer: Vec<u8> =
            direct.run(call.arg(1000).arg(60_000).arg(3).arg(2).arg(1_700_000_000_123_u64)).await;
        let numbers = Numbers {
            epoch: 1_700_000_000_123,
            attempts: 2,
            crashes: 0,
            suspect: false,
            fingerprint,
            redrive: 2,
        };
        let record = Record::Claimed {
            owner: Owner { process: 4, seq: 5 },
            mode: Mode::Normal,
            numbers,
            grace_ms: 60_000,
        };
        assert_eq!(answer, record.to_bytes());
        assert_eq!(direct.record(&key).await, Some(Ok(record)));
        assert!(direct.ttl(&key).await > 60_000);
    }
}

/// Two claims that meet at a key which the other has completed between the two steps.
#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn the_claim_script_knows_completed_keys() {
    let script = concat!(include_str!("../src/lua/record.lua"), "\n", include_str!("../src/lua/claim.lua"));
    let mut direct = Direct::to(&shared_redis()).await;
    for (stored, asked, expected) in
        [(None, Some(1_u128), -1), (Some(1_u128), Some(1), -1), (Some(1), None, -1), (Some(1), Some(2), -2)]
    {
        let key = unique("completed");
        let record = Record::Completed { fingerprint: stored };
        let () = direct
            .run(redis::cmd("SET").arg(stored_key(&key)).arg(record.to_bytes()).arg("PX").arg(60_000))
            .await;
        let asked = asked.map_or(Vec::new(), |asked| asked.to_be_bytes().to_vec());
        let mut call = redis::cmd("EVAL");
        call.arg(script).arg(1).arg(stored_key(&key)).arg(vec![0_u8; 24]).arg(asked);
        let answer: i64 = direct.run(call.arg(1000).arg(60_000).arg(1).arg(0).arg(5)).await;
        assert_eq!(answer, expected);
        assert_eq!(direct.record(&key).await, Some(Ok(record)));
    }
}
