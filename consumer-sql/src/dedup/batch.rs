//! Jobs applied to what was loaded for them: no input, no output, all decisions.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use consumer_core::dedup::{
    ClaimReply, ParkReply, ParkRequest, RenewRequest, Renewal, Resolved, StoreError,
    parking::Parked,
    protocol::{Operation, Reply, State, transition},
};

use super::{
    jobs::{Job, Keys, Resolving},
    record::{Kept, Row, Rows, Unreadable},
};

/// What the database has of the keys of a batch, and what time it is there.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) now: u64,
    pub(super) states: Rows<Kept>,
    pub(super) parked: Rows<Parked>,
}

/// What is to be written, in the order of the keys. The version of each row is one more than the one that was loaded.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) states: Vec<(u128, Row<Kept>)>,
    pub(super) parked: Vec<(u128, Row<Parked>)>,
}

/// What a job is answered once its changes are written.
enum Done {
    Claim(Result<ClaimReply, Unreadable>),
    Resolve(Result<Resolved, Unreadable>),
    Renew(Vec<Option<Renewal>>),
    Park(Result<ParkReply, Unreadable>),
    Flush,
}

/// Jobs on which is decided, and what it takes to make that true.
pub(super) struct Batch {
    jobs: Vec<(Job, Done)>,
    pub(super) changes: Changes,
}

impl Batch {
    pub(super) fn new(jobs: Vec<Job>, loaded: Loaded) -> Self {
        let mut records = Records {
            now: loaded.now,
            states: Table { rows: loaded.states, changed: HashMap::new() },
            parked: Table { rows: loaded.parked, changed: HashMap::new() },
        };
        let decided = jobs.into_iter().map(|job| {
            let done = records.decide(&job);
            (job, done)
        });
        let jobs = decided.collect();
        Self { jobs, changes: Changes { states: records.states.changes(), parked: records.parked.changes() } }
    }

    /// The changes are written, but those of keys that somebody else has written since they were loaded. The jobs of
    /// these are given back, and with them what has to wait for them.
    pub(super) fn written(self, conflicts: &Keys) -> Vec<Job> {
        let mut left = Vec::new();
        for (job, done) in self.jobs {
            // Whoever dropped its future does not want to know.
            match (job, done) {
                (job @ Job::Flush(_), _) if !left.is_empty() => left.push(job),
                (Job::Flush(answer), _) => drop(answer.send(Ok(()))),
                (Job::Claim(request, answer), _) if conflicts.has_state(request.key.hash()) => {
                    left.push(Job::Claim(request, answer));
                }
                (Job::Claim(_, answer), Done::Claim(reply)) => drop(answer.send(reply.map_err(unreadable))),
                (Job::Resolve(resolving, answer), _) if conflicts.has_state(resolving.claim.key.hash()) => {
                    left.push(Job::Resolve(resolving, answer));
                }
                (Job::Resolve(resolving, answer), Done::Resolve(reply)) => {
                    if let Err(error) = &reply {
                        let (resolution, scope) = (resolving.resolution, resolving.claim.key.scope());
                        tracing::error!(%error, ?resolution, scope, "not recorded: its row cannot be read");
                    }
                    drop(answer.send(reply.map_err(unreadable)));
                }
                (Job::Renew(mut renewing, answer), Done::Renew(renewals)) => {
                    for (nth, renewal) in renewals.into_iter().enumerate() {
                        if !conflicts.has_state(renewing.requests[nth].claim.key.hash()) {
                            renewing.renewals[nth] = renewal;
                        }
                    }
                    match renewing.renewals.iter().copied().collect::<Option<Vec<_>>>() {
                        Some(renewals) => drop(answer.send(Ok(renewals))),
                        None => left.push(Job::Renew(renewing, answer)),
                    }
                }
                (Job::Park(request, answer), _) if conflicts.has_parked(request.key.hash()) => {
                    left.push(Job::Park(request, answer));
                }
                (Job::Park(_, answer), Done::Park(reply)) => drop(answer.send(reply.map_err(unreadable))),
                _ => {}
            }
        }
        left
    }

    /// The write has failed, and nobody knows whether it has happened.
    pub(super) fn unknown(self) -> Vec<Job> {
        let Self { jobs, changes } = self;
        let states: HashMap<u128, Row<Kept>> = changes.states.into_iter().collect();
        let tried = |(job, done)| match (job, done) {
            (Job::Resolve(mut resolving, answer), Done::Resolve(reply)) => {
                let row = states.get(&resolving.claim.key.hash()).cloned();
                resolving.tried = reply.ok().zip(row).map(Box::new);
                Job::Resolve(resolving, answer)
            }
            (job, _) => job,
        };
        jobs.into_iter().map(tried).collect()
    }
}

fn unreadable(error: Unreadable) -> StoreError {
    StoreError::new(format!("the row of this key in the dedup store cannot be read: {error}"))
}

/// The records of the keys, as the jobs so far leave them.
struct Records {
    now: u64,
    states: Table<Kept>,
    parked: Table<Parked>,
}

impl Records {
    fn decide(&mut self, job: &Job) -> Done {
        match job {
            Job::Claim(request, _) => {
                let reply = self.step(request.key.hash(), &Operation::Claim(request));
                Done::Claim(reply.and_then(|reply| match reply {
                    Reply::Claim(reply) => Ok(reply),
                    _ => Err(odd()),
                }))
            }
            Job::Resolve(resolving, _) => Done::Resolve(self.resolve(resolving)),
            Job::Renew(renewing, _) => {
                let one = |(request, known)| match (request, known) {
                    (_, Some(renewal)) => Some(renewal),
                    (request, None) => Some(self.renew(request)),
                };
                Done::Renew(
                    renewing.requests.iter().zip(renewing.renewals.iter().copied()).map(one).collect(),
                )
            }
            Job::Park(request, _) => Done::Park(self.park(request)),
            Job::Flush(_) => Done::Flush,
        }
    }

    /// The protocol is a pure function; all there is to do is to hand it what it needs and keep what it says.
    fn step(&mut self, hash: u128, operation: &Operation<'_>) -> Result<Reply, Unreadable> {
        let alive = self.states.get(hash)?.filter(|kept| kept.expires_at > self.now);
        let state = alive.map_or(State::Absent, |kept| kept.state);
        let (reply, write) = transition(&state, operation, self.now);
        if let Some(write) = write {
            let lifetime = u64::try_from(write.lifetime.as_millis()).unwrap_or(u64::MAX);
            let expires_at = self.now.saturating_add(lifetime);
            self.states.set(hash, Kept { state: write.state, expires_at });
        }
        Ok(reply)
    }

    fn resolve(&mut self, resolving: &Resolving) -> Result<Resolved, Unreadable> {
        let Resolving { claim, resolution, lifetime, tried } = resolving;
        if let Some((reply, row)) = tried.as_deref()
            && self.states.rows.get(&claim.key.hash()).is_some_and(|found| found.as_ref() == Ok(row))
        {
            return Ok(*reply);
        }
        match self.step(claim.key.hash(), &Operation::Resolve(claim, *resolution, *lifetime))? {
            Reply::Resolve(reply) => Ok(reply),
            _ => Err(odd()),
        }
    }

    fn park(&mut self, request: &ParkRequest) -> Result<ParkReply, Unreadable> {
        let hash = request.key.hash();
        let before = self.parked.get(hash)?.cloned().unwrap_or_default();
        let mut parked = before.clone();
        let reply = parked.apply(request, self.now);
        if parked.ids.is_empty() {
            // A row without any has expired.
            parked = Parked::default();
        }
        if parked != before {
            self.parked.set(hash, parked);
        }
        Ok(reply)
    }

    fn renew(&mut self, request: &RenewRequest) -> Renewal {
        match self.step(request.claim.key.hash(), &Operation::Renew(request)) {
            Ok(Reply::Renew(renewal)) => renewal,
            _ => Renewal::Unanswered,
        }
    }
}

fn odd() -> Unreadable {
    "the protocol answers another question".to_owned()
}

struct Table<T> {
    rows: Rows<T>,
    changed: HashMap<u128, T>,
}

impl<T> Table<T> {
    /// As it is now; `None` where there is no row.
    fn get(&self, hash: u128) -> Result<Option<&T>, Unreadable> {
        match (self.rows.get(&hash), self.changed.get(&hash)) {
            (Some(Err(error)), _) => Err(error.clone()),
            (_, Some(changed)) => Ok(Some(changed)),
            (Some(Ok(row)), None) => Ok(Some(&row.record)),
            (None, None) => Ok(None),
        }
    }

    fn set(&mut self, hash: u128, record: T) {
        self.changed.insert(hash, record);
    }

    fn changes(self) -> Vec<(u128, Row<T>)> {
        let random = RandomState::new();
        let version = |hash| match self.rows.get(&hash) {
            Some(Ok(row)) => row.version.wrapping_add(1),
            _ => (random.hash_one(hash) >> 2).cast_signed(),
        };
        let rows =
            self.changed.into_iter().map(|(hash, record)| (hash, Row { version: version(hash), record }));
        let mut changes: Vec<_> = rows.collect();
        changes.sort_unstable_by_key(|(hash, _)| *hash);
        changes
    }
}
