//! Sending dead letters back.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc, time::Duration, time::SystemTime};

use consumer_core::{
    DynPublisher, PublishError,
    dead_letters::{DeadLetter, DeadLettersError, Letters, Place, Settled, redriven},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio_util::sync::CancellationToken;

use tokio::time::{Instant, sleep_until};

use super::sending::publish;
use crate::{AdminError, Filter};

/// Letters on their way at once. A SIGKILL makes at most so many go out a second time.
const IN_FLIGHT: usize = 1_000;
/// Errors of single letters that are kept for the report.
const ERRORS: usize = 10;

/// How to redrive.
#[derive(Debug, Clone)]
#[must_use]
pub struct Redrive {
    to: Option<Arc<str>>,
    system: Option<&'static str>,
    limit: Option<u64>,
    rate: Option<NonZeroU32>,
    dry_run: bool,
    patience: Duration,
    hold: Option<Duration>,
    stop: CancellationToken,
}

/// To the origin of each letter, all of them, as fast as the broker confirms; a broker that is away is waited for 30 s.
impl Default for Redrive {
    fn default() -> Self {
        Self {
            to: None,
            system: None,
            limit: None,
            rate: None,
            dry_run: false,
            patience: Duration::from_secs(30),
            hold: None,
            stop: CancellationToken::new(),
        }
    }
}

impl Redrive {
    /// To this topic or queue instead of the origin.
    pub fn to(mut self, target: impl Into<Arc<str>>) -> Self {
        self.to = Some(target.into());
        self
    }

    /// Letters from another kind of broker than this one have no origin here.
    pub fn system(mut self, system: &'static str) -> Self {
        self.system = Some(system);
        self
    }

    /// At most so many.
    pub fn limit(mut self, letters: u64) -> Self {
        self.limit = Some(letters);
        self
    }

    /// At most so many in a second.
    pub fn rate(mut self, per_second: NonZeroU32) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// Publishes and settles nothing; the report says what would be done.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// How long a broker that is away is waited for.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Takes no further letter after this time, and says so in [`Redriven::is_cut`]: a queue's letters are held while it
    /// is read, and RabbitMQ ends a reading that holds one for longer than its `consumer_timeout`.
    pub fn hold(mut self, at_most: Duration) -> Self {
        self.hold = Some(at_most);
        self
    }

    /// When this is cancelled, what is on its way is finished, and no further letter is taken.
    pub fn stop(mut self, token: CancellationToken) -> Self {
        self.stop = token;
        self
    }
}

/// What a redrive did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Redriven {
    /// Letters that were read.
    pub read: u64,
    /// Letters that fit.
    pub matched: u64,
    /// Published, confirmed and settled; in a dry run, what would be.
    pub redriven: u64,
    /// Could not go back and are still there.
    pub failed: u64,
    /// Why, of the first ten.
    pub errors: Vec<String>,
    /// How many went to which topic or queue.
    pub targets: BTreeMap<String, u64>,
    /// It was stopped before it had read all.
    pub is_stopped: bool,
    /// It was cut off by [`Redrive::hold`] before it had read all: another one goes on with the rest.
    pub is_cut: bool,
}

impl Redriven {
    /// Together with what another one did before that was cut off. What that one has left has been read again by this one:
    /// of its numbers those of the redriven letters count.
    #[must_use]
    pub fn and_before(mut self, before: Self) -> Self {
        self.read += before.redriven;
        self.matched += before.redriven;
        self.redriven += before.redriven;
        for (target, count) in before.targets {
            *self.targets.entry(target).or_default() += count;
        }
        self
    }
}

/// Sends back the letters that fit: publishes each, and settles it once that is confirmed. `progress` is called whenever
/// the numbers have changed.
///
/// # Errors
/// When the letters cannot be read further, or the broker takes nothing for longer than the patience. What was on its way
/// is finished first, and `progress` has told of it. What was redriven stays so; starting again goes on with the rest.
///
/// # Cancel safety
/// Dropped, or killed with its process, it may have published letters that it has not settled. They are published again by
/// the next redrive, with the same `redrive-count`: a consumer that deduplicates runs each once.
pub async fn redrive(
    letters: Box<dyn Letters>,
    publisher: DynPublisher,
    filter: &Filter,
    options: &Redrive,
    mut progress: impl FnMut(&Redriven),
) -> Result<Redriven, AdminError> {
    let mut work = Work::new(letters, publisher, options);
    let outcome = work.run(filter, &mut progress).await;
    let Work { letters, report, .. } = work;
    // What is not settled goes back in its order whatever happened.
    let closed = letters.close().await;
    outcome?;
    closed.map_err(|error| {
        AdminError::new(
            "letters that were published may not be settled: they are published again by the next redrive",
        )
        .with_source(error)
    })?;
    Ok(report)
}

type Pending<T> = FuturesUnordered<std::pin::Pin<Box<dyn Future<Output = T> + Send>>>;

struct Work<'a> {
    letters: Box<dyn Letters>,
    publisher: DynPublisher,
    options: &'a Redrive,
    limiter: Option<DefaultDirectRateLimiter>,
    publishing: Pending<(Place, Arc<str>, Result<(), PublishError>)>,
    settling: Pending<(Arc<str>, Result<(), DeadLettersError>)>,
    report: Redriven,
    error: Option<AdminError>,
}

enum Next {
    Letter(DeadLetter),
    /// One that does not fit.
    Other,
    End,
}

impl<'a> Work<'a> {
    fn new(letters: Box<dyn Letters>, publisher: DynPublisher, options: &'a Redrive) -> Self {
        // No burst: a rate is asked for to protect what comes behind.
        let quota = |rate| Quota::per_second(rate).allow_burst(NonZeroU32::MIN);
        Self {
            letters,
            publisher,
            options,
            limiter: options.rate.filter(|_| !options.dry_run).map(|rate| RateLimiter::direct(quota(rate))),
            publishing: FuturesUnordered::new(),
            settling: FuturesUnordered::new(),
            report: Redriven::default(),
            error: None,
        }
    }

    async fn run(&mut self, filter: &Filter, progress: &mut dyn FnMut(&Redriven)) -> Result<(), AdminError> {
        let until = self.options.hold.map(|hold| Instant::now() + hold);
        let mut waiting: Option<DeadLetter> = None;
        let mut is_read = false;
        loop {
            progress(&self.report);
            let in_flight = self.publishing.len() + self.settling.len();
            let is_stopped = self.options.stop.is_cancelled();
            let is_cut = until.is_some_and(|until| Instant::now() >= until);
            if (is_stopped || is_cut || self.error.is_some()) && !is_read {
                // One that waits for its turn by the rate was not sent.
                self.report.matched -= u64::from(waiting.take().is_some());
                self.report.is_stopped = is_stopped;
                self.report.is_cut = is_cut && !is_stopped;
                is_read = true;
            }
            is_read |= self.options.limit.is_some_and(|limit| self.report.matched >= limit);
            let more = !is_read && waiting.is_none() && in_flight < IN_FLIGHT;
            if is_read && waiting.is_none() && in_flight == 0 {
                return self.error.take().map_or(Ok(()), Err);
            }
            tokio::select! {
                Some((place, target, answer)) = self.publishing.next() => self.published(place, target, answer),
                Some((target, answer)) = self.settling.next() => self.settled(target, answer),
                () = turn(self.limiter.as_ref()), if waiting.is_some() => {
                    if let Some(letter) = waiting.take() {
                        self.send(&letter);
                    }
                }
                letter = self.letters.next(), if more => match self.matching(letter, filter).await {
                    Ok(Next::End) => is_read = true,
                    Ok(Next::Other) => {}
                    Ok(Next::Letter(letter)) => waiting = Some(letter),
                    Err(error) => self.stop_for(error),
                },
                () = self.options.stop.cancelled(), if !is_stopped => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() && !is_cut => {}
            }
        }
    }

    async fn matching(
        &mut self,
        letter: Result<Option<DeadLetter>, DeadLettersError>,
        filter: &Filter,
    ) -> Result<Next, AdminError> {
        let Some(letter) = letter? else { return Ok(Next::End) };
        self.report.read += 1;
        if !filter.fits(&letter) {
            return Ok(Next::Other);
        }
        if self.report.matched == 0 && !self.options.dry_run {
            self.letters.prepare().await?;
        }
        self.report.matched += 1;
        Ok(Next::Letter(letter))
    }

    /// What is on its way is finished before the error is told: it would be published again for nothing.
    fn stop_for(&mut self, error: AdminError) {
        self.error.get_or_insert(error);
    }

    fn send(&mut self, letter: &DeadLetter) {
        let foreign =
            |system: &str| self.options.to.is_none() && letter.source().is_some_and(|from| from != system);
        if let Some(system) = self.options.system.filter(|system| foreign(system)) {
            let from = letter.source().unwrap_or_default();
            return self
                .failed(letter.place(), &format!("it came from {from}, this is {system}: name a target"));
        }
        if let Some(defect) = letter.message().defect() {
            return self.failed(letter.place(), &format!("it would lose a part: {}", defect.reason()));
        }
        let outgoing = match redriven(letter, self.options.to.clone(), SystemTime::now()) {
            Ok(outgoing) => outgoing,
            Err(error) => return self.failed(letter.place(), &error.to_string()),
        };
        let target: Arc<str> = outgoing.target().into();
        if self.options.dry_run {
            self.done(&target);
            return;
        }
        let (publisher, place, patience) = (self.publisher.clone(), letter.place(), self.options.patience);
        self.publishing
            .push(Box::pin(async move { (place, target, publish(&publisher, outgoing, patience).await) }));
    }

    fn published(&mut self, place: Place, target: Arc<str>, answer: Result<(), PublishError>) {
        match answer {
            Ok(()) => {
                let settled = self.letters.settle(place, Settled::Redriven);
                self.settling.push(Box::pin(async move { (target, settled.await) }));
            }
            Err(error) if error.is_transient() => {
                let message = format!("nothing was published to `{target}` for {:?}", self.options.patience);
                self.stop_for(AdminError::new(message).with_source(error));
            }
            Err(error) => self.failed(place, &format!("`{target}` does not take it: {error}")),
        }
    }

    fn settled(&mut self, target: Arc<str>, answer: Result<(), DeadLettersError>) {
        match answer {
            Ok(()) => self.done(&target),
            Err(error) => self.stop_for(
                AdminError::new(
                    "a letter was published, but could not be settled: it will be published again",
                )
                .with_source(error),
            ),
        }
    }

    fn done(&mut self, target: &str) {
        self.report.redriven += 1;
        match self.report.targets.get_mut(target) {
            Some(count) => *count += 1,
            None => {
                self.report.targets.insert(target.to_owned(), 1);
            }
        }
    }

    fn failed(&mut self, place: Place, why: &str) {
        self.report.failed += 1;
        if self.report.errors.len() < ERRORS {
            self.report.errors.push(format!("{place}: {why}"));
        }
    }
}

async fn turn(limiter: Option<&DefaultDirectRateLimiter>) {
    if let Some(limiter) = limiter {
        limiter.until_ready().await;
    }
}
