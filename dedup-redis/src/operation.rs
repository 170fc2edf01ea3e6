//! One operation of the store: which commands it takes, and what their replies mean.

use std::time::Duration;

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, ParkReply, ParkRequest, RenewRequest, Renewal, Resolution, Resolved,
    StoreError, StoreKey, protocol::Numbers,
};
use redis::{Cmd, Value};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    connection::{Reply, Trouble},
    format::{self, Encoded, MAX_NUMBER, Record},
    parking, scripts,
};

pub(crate) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// An operation on its way. It has been enqueued and will be carried out, whatever becomes of the caller's future.
pub(crate) struct Operation {
    pub(crate) work: Work,
    /// A claim or renewal is answered with an error at this time; a resolution means nothing any more after it.
    pub(crate) until: Instant,
    /// Which `flush` waits for it.
    pub(crate) generation: u64,
    /// It was sent before and its outcome is unknown.
    in_doubt: bool,
    /// The server did not know a script: send its source.
    whole_script: bool,
}

pub(crate) enum Work {
    Claim {
        request: ClaimRequest,
        /// Something other than a completed record was found: only the script can tell.
        contested: bool,
        /// The epoch that was sent for a new record.
        epoch: u64,
        answer: Option<Answer<ClaimReply>>,
    },
    Resolve {
        claim: Claim,
        resolution: Resolution,
        lifetime: Duration,
        answer: Option<Answer<Resolved>>,
    },
    Renew {
        requests: Vec<RenewRequest>,
        replies: Vec<Option<Renewal>>,
        answer: Option<Answer<Vec<Renewal>>>,
    },
    Park {
        request: ParkRequest,
        /// Somebody waits: only the script can tell.
        contested: bool,
        answer: Option<Answer<ParkReply>>,
    },
}

/// What is to be done with an operation whose replies have come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is answered.
    Done,
    /// It has to be sent again at once.
    Again,
    /// The server could not serve it: send it again later.
    Later,
}

/// The parts of a key and the clock, as commands need them.
pub(crate) struct Sending<'a> {
    pub(crate) prefix: &'a [u8],
    /// The store's time.
    pub(crate) now: u64,
}

/// The replies to one batch, and what they tell about the server.
pub(crate) struct Replies<I> {
    pub(crate) replies: I,
    /// The first trouble that was not the command's own fault.
    pub(crate) trouble: Option<(String, bool)>,
}

impl Operation {
    pub(crate) fn new(work: Work, until: Instant) -> Self {
        Self { work, until, generation: 0, in_doubt: false, whole_script: false }
    }

    /// Whether the time of its answer has come, and it is not to be sent any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.until <= now
    }

    pub(crate) fn is_resolution(&self) -> bool {
        matches!(self.work, Work::Resolve { .. })
    }

    /// It was sent, and nobody knows what became of it. Sending it again is safe: claims recognise their owner, and
    /// what else there is changes nothing the second time.
    pub(crate) fn doubt(&mut self) {
        self.in_doubt = true;
    }

    /// Answers with an error, if it is not answered yet.
    pub(crate) fn fail(&mut self, error: impl FnOnce() -> StoreError) {
        match &mut self.work {
            Work::Claim { answer, .. } => send(answer, || Err(error())),
            Work::Resolve { answer, .. } => send(answer, || Err(error())),
            Work::Renew { answer, .. } => send(answer, || Err(error())),
            Work::Park { answer, .. } => send(answer, || Err(error())),
        }
    }

    /// Appends the commands it takes now.
    pub(crate) fn write(&mut self, sending: &Sending<'_>, out: &mut Vec<Cmd>) {
        match &mut self.work {
            Work::Claim { request, contested: false, epoch, .. } => {
                *epoch = sending.now;
                out.push(fresh_claim(request, sending));
            }
            Work::Claim { request, epoch, .. } => {
                *epoch = sending.now;
                out.push(contested_claim(request, sending, self.whole_script));
            }
            Work::Resolve { claim, resolution: Resolution::Completed, lifetime, .. } => {
                out.push(completion(claim.key.hash(), claim.fingerprint, *lifetime, true, sending.prefix));
            }
            Work::Resolve { claim, resolution, lifetime, .. } => {
                let key = key(sending.prefix, claim.key.hash());
                let (what, number) = wording(*resolution);
                let mut call = scripts::RESOLVE.call(self.whole_script, key.as_ref());
                call.arg(&format::encode_owner(&claim.owner)[..])
                    .arg(what)
                    .arg(number)
                    .arg(self::lifetime(millis(*lifetime)));
                out.push(call);
            }
            Work::Renew { requests, replies, .. } => {
                let open = requests.iter().zip(replies).filter(|(_, reply)| reply.is_none());
                out.extend(open.map(|(request, _)| renewal(request, sending.prefix, self.whole_script)));
            }
            Work::Park { request, contested, .. } => {
                out.push(parking::command(request, *contested, sending, self.whole_script));
            }
        }
    }

    /// Reads as many replies as [`write`](Self::write) has written commands, and answers if that is the end of it.
    pub(crate) fn read<I: Iterator<Item = Reply>>(&mut self, from: &mut Replies<I>) -> Next {
        let in_doubt = self.in_doubt;
        match &mut self.work {
            Work::Claim { request, contested, epoch, answer } => match from.next() {
                Ok(value) => match read_claim(request, *contested, *epoch, &value) {
                    Ok(Some(reply)) => {
                        send(answer, || Ok(reply));
                        Next::Done
                    }
                    Ok(None) => {
                        *contested = true;
                        Next::Again
                    }
                    Err(error) => self.give_up(&error),
                },
                Err(trouble) => self.troubled(trouble),
            },
            Work::Resolve { claim, resolution, answer, .. } => match from.next() {
                Ok(value) => match read_resolution(claim, *resolution, &value) {
                    Ok(resolved) => {
                        send(answer, || Ok(if in_doubt { was_applied(resolved) } else { resolved }));
                        Next::Done
                    }
                    Err(error) => self.give_up(&error),
                },
                Err(trouble) => self.troubled(trouble),
            },
            Work::Park { request, contested, answer } => match from.next() {
                Ok(value) => match parking::read(request, *contested, &value) {
                    Ok(Some(reply)) => {
                        send(answer, || Ok(reply));
                        Next::Done
                    }
                    Ok(None) => {
                        *contested = true;
                        Next::Again
                    }
                    Err(error) => self.give_up(&error),
                },
                Err(trouble) => self.troubled(trouble),
            },
            Work::Renew { requests, replies, answer } => {
                let (mut unknown_script, mut unanswered) = (false, None);
                for (request, reply) in
                    requests.iter().zip(replies.iter_mut()).filter(|(_, reply)| reply.is_none())
                {
                    *reply = match from.next() {
                        Ok(Value::Int(1)) => Some(Renewal::Held),
                        Ok(Value::Int(2)) => Some(Renewal::Completed),
                        Ok(Value::Int(0)) => Some(Renewal::Lost),
                        Ok(_) => Some(foreign(request, "a reply that means nothing")),
                        Err(Trouble::Refused(why)) => Some(foreign(request, &why)),
                        Err(Trouble::NoScript) if !self.whole_script => {
                            unknown_script = true;
                            None
                        }
                        Err(trouble) => {
                            unanswered = Some(trouble);
                            None
                        }
                    };
                }
                if unknown_script {
                    self.whole_script = true;
                    return Next::Again;
                }
                match unanswered {
                    // What a node of a Cluster cannot say now must not keep the others' answers back.
                    Some(trouble) if replies.iter().all(Option::is_none) => self.troubled(trouble),
                    _ => {
                        let replies = replies.iter().map(|reply| reply.unwrap_or(Renewal::Unanswered));
                        send(answer, || Ok(replies.collect()));
                        Next::Done
                    }
                }
            }
        }
    }

    fn troubled(&mut self, trouble: Trouble) -> Next {
        match trouble {
            Trouble::NoScript if !self.whole_script => {
                self.whole_script = true;
                Next::Again
            }
            Trouble::NoScript => self.give_up("the server does not keep scripts"),
            Trouble::Refused(why) => self.give_up(&why),
            Trouble::Missing(_) => Next::Later,
            Trouble::Unavailable { in_doubt, .. } => {
                self.in_doubt |= in_doubt;
                Next::Later
            }
        }
    }

    fn give_up(&mut self, why: &str) -> Next {
        if let Work::Resolve { claim, resolution, .. } = &self.work {
            tracing::error!(key = ?claim.key, ?resolution, error = why, "redis refuses to record what became of a claim");
        }
        self.fail(|| StoreError::new("redis refuses the operation").with_source(why.to_owned()));
        Next::Done
    }

    /// The completion it has just recorded, if it is one.
    pub(crate) fn completion(&self) -> Option<(&StoreKey, Option<u128>, Duration)> {
        match &self.work {
            Work::Resolve { claim, resolution: Resolution::Completed, lifetime, .. } => {
                Some((&claim.key, claim.fingerprint, *lifetime))
            }
            _ => None,
        }
    }
}

impl<I: Iterator<Item = Reply>> Replies<I> {
    fn next(&mut self) -> Reply {
        let missing =
            || Trouble::Unavailable { why: "a reply is missing".to_owned(), reopen: true, in_doubt: true };
        let reply = self.replies.next().unwrap_or_else(|| Err(missing()));
        if let Err(Trouble::Unavailable { why, reopen, .. }) = &reply
            && self.trouble.as_ref().is_none_or(|(_, seen)| *reopen && !seen)
        {
            self.trouble = Some((why.clone(), *reopen));
        }
        reply
    }
}

/// What is stored at the key is no record of ours any more: a claim that is lost, and no reason to fail others with it.
fn foreign(request: &RenewRequest, why: &str) -> Renewal {
    tracing::error!(key = ?request.claim.key, error = why, "redis refuses to renew a claim: it is lost");
    Renewal::Lost
}

fn send<T>(answer: &mut Option<Answer<T>>, result: impl FnOnce() -> Result<T, StoreError>) {
    if let Some(answer) = answer.take() {
        // Nobody may be waiting any more.
        let _ = answer.send(result());
    }
}

fn fresh_claim(request: &ClaimRequest, sending: &Sending<'_>) -> Cmd {
    let record = Record::Claimed {
        owner: request.owner,
        mode: consumer_core::dedup::Mode::Normal,
        numbers: fresh_numbers(request, sending.now),
        grace_ms: millis(request.grace),
    };
    let lifetime = lifetime(millis(request.lease).saturating_add(millis(request.grace)));
    let mut command = set(key(sending.prefix, request.key.hash()).as_ref(), record.encode(), lifetime);
    command.arg("NX").arg("GET");
    command
}

fn contested_claim(request: &ClaimRequest, sending: &Sending<'_>, whole: bool) -> Cmd {
    let mut call = scripts::CLAIM.call(whole, key(sending.prefix, request.key.hash()).as_ref());
    call.arg(&format::encode_owner(&request.owner)[..]);
    match request.fingerprint {
        Some(fingerprint) => call.arg(&fingerprint.to_be_bytes()[..]),
        None => call.arg(""),
    };
    call.arg(lease_millis(request.lease))
        .arg(millis(request.grace))
        .arg(request.attempt)
        .arg(request.redrive)
        .arg(sending.now);
    call
}

fn renewal(request: &RenewRequest, prefix: &[u8], whole: bool) -> Cmd {
    let claim = &request.claim;
    let mut call = scripts::RENEW.call(whole, key(prefix, claim.key.hash()).as_ref());
    call.arg(&format::encode_owner(&claim.owner)[..])
        .arg(request.attempts)
        .arg(format::encode_mode(request.mode))
        .arg(lease_millis(claim.lease))
        .arg(millis(claim.grace));
    call
}

/// `SET` of a completed record; with `GET` it also tells what was there.
pub(crate) fn completion(
    key: u128,
    fingerprint: Option<u128>,
    lifetime: Duration,
    get: bool,
    prefix: &[u8],
) -> Cmd {
    let key = self::key(prefix, key);
    let mut command =
        set(key.as_ref(), Record::Completed { fingerprint }.encode(), self::lifetime(millis(lifetime)));
    if get {
        command.arg("GET");
    }
    command
}

/// A call of a script and a write, neither of which changes anything: the record expires at once.
pub(crate) fn probe(key: &[u8]) -> [Cmd; 2] {
    let mut call = scripts::RENEW.call(false, key);
    call.arg(&[0_u8; 24][..]).arg(0).arg(0).arg(1).arg(1);
    [call, set(key, Record::Completed { fingerprint: None }.encode(), 1)]
}

fn set(key: &[u8], value: Encoded, lifetime: u64) -> Cmd {
    let mut command = Cmd::with_capacity(7, 128);
    command.arg("SET").arg(key).arg(value.as_ref()).arg("PX").arg(lifetime);
    command
}

/// The longest prefix there may be.
pub(crate) const MAX_PREFIX: usize = 32;

struct Key {
    bytes: [u8; MAX_PREFIX + 16],
    length: usize,
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn key(prefix: &[u8], hash: u128) -> Key {
    let mut bytes = [0; MAX_PREFIX + 16];
    let length = prefix.len() + 16;
    bytes[..prefix.len()].copy_from_slice(prefix);
    bytes[prefix.len()..length].copy_from_slice(&hash.to_be_bytes());
    Key { bytes, length }
}

fn fresh_numbers(request: &ClaimRequest, epoch: u64) -> Numbers {
    Numbers {
        epoch,
        attempts: request.attempt.saturating_sub(1),
        crashes: 0,
        suspect: false,
        fingerprint: request.fingerprint,
        redrive: request.redrive,
    }
}

/// None: something is there that only the script can deal with.
pub(crate) fn read_claim(
    request: &ClaimRequest,
    contested: bool,
    epoch: u64,
    value: &Value,
) -> Result<Option<ClaimReply>, String> {
    let bytes = match value {
        Value::Nil if !contested => {
            return Ok(Some(claimed(request, &fresh_numbers(request, epoch), false)));
        }
        Value::Int(-1) => return Ok(Some(ClaimReply::Completed)),
        Value::Int(-2) => return Ok(Some(ClaimReply::Conflict)),
        Value::Int(-3) => return Ok(Some(ClaimReply::Superseded)),
        Value::Int(-4) => return Ok(Some(ClaimReply::DeadLettered)),
        Value::Int(remaining) => {
            let remaining = Duration::from_millis(u64::try_from(*remaining).unwrap_or(0));
            return Ok(Some(ClaimReply::Busy { remaining }));
        }
        Value::BulkString(bytes) => bytes,
        _ => return Err("a reply that means nothing".to_owned()),
    };
    match Record::from_bytes(bytes).map_err(|error| error.to_string())? {
        // Nothing leads away from completed, so this needs no second look.
        Record::Completed { fingerprint } => Ok(Some(match (fingerprint, request.fingerprint) {
            (Some(theirs), Some(ours)) if theirs != ours => ClaimReply::Conflict,
            _ => ClaimReply::Completed,
        })),
        Record::Claimed { mode, numbers, .. } if contested => {
            let suspect = mode != consumer_core::dedup::Mode::Normal;
            Ok(Some(claimed(request, &numbers, suspect)))
        }
        _ if contested => Err("a reply that means nothing".to_owned()),
        _ => Ok(None),
    }
}

pub(crate) fn claimed(request: &ClaimRequest, numbers: &Numbers, suspect: bool) -> ClaimReply {
    ClaimReply::Claimed(Claim {
        key: request.key.clone(),
        owner: request.owner,
        epoch: numbers.epoch,
        attempts: numbers.attempts,
        crashes: numbers.crashes,
        suspect,
        fingerprint: numbers.fingerprint,
        redrive: numbers.redrive,
        lease: request.lease,
        grace: request.grace,
    })
}

pub(crate) fn read_resolution(
    claim: &Claim,
    resolution: Resolution,
    value: &Value,
) -> Result<Resolved, String> {
    match (resolution, value) {
        (Resolution::Completed, Value::Nil) => Ok(Resolved::Applied),
        (Resolution::Completed, Value::BulkString(before)) => Ok(match Record::from_bytes(before) {
            Ok(Record::Claimed { owner, .. }) if owner == claim.owner => Resolved::Applied,
            Ok(Record::Completed { .. }) => Resolved::AlreadyCompleted,
            Ok(_) => Resolved::Overlapped,
            Err(error) => {
                tracing::error!(key = ?claim.key, %error, "a completion has replaced a record of an unknown format");
                Resolved::Overlapped
            }
        }),
        (Resolution::Completed, _) => Err("a reply that means nothing".to_owned()),
        (_, Value::Int(1)) => Ok(Resolved::Applied),
        (_, Value::Int(0)) => Ok(Resolved::NotOwner),
        _ => Err("a reply that means nothing".to_owned()),
    }
}

/// The second time, an operation meets what it has done itself the first time.
fn was_applied(resolved: Resolved) -> Resolved {
    match resolved {
        Resolved::AlreadyCompleted | Resolved::NotOwner => Resolved::Applied,
        other => other,
    }
}

fn wording(resolution: Resolution) -> (&'static str, u32) {
    match resolution {
        Resolution::Returned { attempts } => ("returned", attempts),
        Resolution::Failed { attempts } => ("failed", attempts),
        Resolution::Deferred { attempt } => ("deferred", attempt),
        Resolution::DeadLettered => ("dead-lettered", 0),
        // Refused by the script.
        _ => ("unknown", 0),
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(MAX_NUMBER / 4)
}

/// Redis refuses an expiry of 0.
fn lifetime(millis: u64) -> u64 {
    millis.max(1)
}

fn lease_millis(lease: Duration) -> u64 {
    lifetime(millis(lease))
}
