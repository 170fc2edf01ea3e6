//! What went wrong with a message, as one type through the whole stack.

use std::{
    error::Error,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    BoxError,
    dedup::{HeldClaim, SharedClaim},
    layers::delayed_retry::Seat,
    plain::{Plain, acts},
};

/// Why a message was not processed.
///
/// Any error becomes a *transient* failure through `?`; [`permanent`](Self::permanent) and
/// [`undecodable`](Self::undecodable) say otherwise. The source of a failure is kept and its chain printed.
///
/// `Failure` is not itself an [`Error`], so that `?` can convert every error into it; it converts into
/// [`BoxError`], so that third-party tower layers take it, and [`Failure::from_error`] finds it again behind them.
///
/// ```
/// use consumer_core::{Failure, ResultExt};
///
/// fn charge(amount: &str) -> Result<u32, Failure> {
///     let amount = amount.parse().permanent()?; // trying again will not help
///     Ok(amount)
/// }
/// assert!(charge("ten").unwrap_err().is_permanent());
/// ```
pub struct Failure(Box<FailureError>);

/// The error inside a [`Failure`]: what is found in the source chain of a foreign error that wraps one.
pub struct FailureError {
    kind: FailureKind,
    retry_after: Option<Duration>,
    attempts: Option<u32>,
    first_failed_at: Option<SystemTime>,
    dead_letter_to: Option<Box<str>>,
    consumer: Option<Arc<str>>,
    redrive: Option<u32>,
    is_given_up: bool,
    claim: Option<SharedClaim>,
    seat: Option<Seat>,
    source: Option<BoxError>,
}

/// The class of a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// May succeed when tried again: the default for any error.
    Transient,
    /// Will not succeed, however often it is tried.
    Permanent,
    /// The message could not be read.
    Undecodable,
    /// Its idempotency key stands for another payload.
    Conflict,
    /// It has no idempotency key.
    NoKey,
    /// Its attempts are used up.
    Exhausted,
    /// It was handed back: shutdown, rebalance, or a claim that ran out. Not a failure of the message: it is never
    /// counted, retried in place or dead-lettered.
    Cancelled,
}

impl FailureKind {
    /// Whether trying again in place makes sense.
    pub fn is_transient(self) -> bool {
        self == FailureKind::Transient
    }
}

impl Failure {
    fn new(kind: FailureKind, source: Option<BoxError>) -> Self {
        Self(Box::new(FailureError {
            kind,
            retry_after: None,
            attempts: None,
            first_failed_at: None,
            dead_letter_to: None,
            consumer: None,
            redrive: None,
            is_given_up: false,
            claim: None,
            seat: None,
            source,
        }))
    }

    /// May succeed when tried again.
    pub fn transient(error: impl Into<BoxError>) -> Self {
        Self::new(FailureKind::Transient, Some(error.into()))
    }

    /// Will not succeed: goes to the dead letters without another attempt.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Self::new(FailureKind::Permanent, Some(error.into()))
    }

    /// The message could not be read: goes to the dead letters without another attempt.
    pub fn undecodable(error: impl Into<BoxError>) -> Self {
        Self::new(FailureKind::Undecodable, Some(error.into()))
    }

    /// The message is handed back and counts nothing.
    pub fn cancelled(why: impl Into<BoxError>) -> Self {
        Self::new(FailureKind::Cancelled, Some(why.into()))
    }

    /// Its idempotency key stands for another payload: for layers that deduplicate.
    pub fn conflict(error: impl Into<BoxError>) -> Self {
        Self::new(FailureKind::Conflict, Some(error.into()))
    }

    /// It has no idempotency key: for layers that deduplicate.
    pub fn no_key(error: impl Into<BoxError>) -> Self {
        Self::new(FailureKind::NoKey, Some(error.into()))
    }

    pub(crate) fn of_kind(kind: FailureKind, error: impl Into<BoxError>) -> Self {
        Self::new(kind, Some(error.into()))
    }

    /// Takes any error for what it is: a `Failure` that travelled as a [`BoxError`] is unboxed; one deeper in the
    /// source chain gives its class; any other error is transient.
    pub fn from_error(error: impl Into<BoxError>) -> Self {
        match error.into().downcast::<FailureError>() {
            Ok(failure) => Self(failure),
            Err(error) => {
                let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
                while let Some(current) = cause {
                    if let Some(inner) = current.downcast_ref::<FailureError>() {
                        let mut failure = Self::new(inner.kind, None);
                        failure.0.retry_after = inner.retry_after;
                        failure.0.attempts = inner.attempts;
                        failure.0.first_failed_at = inner.first_failed_at;
                        failure.0.dead_letter_to.clone_from(&inner.dead_letter_to);
                        failure.0.consumer.clone_from(&inner.consumer);
                        failure.0.redrive = inner.redrive;
                        failure.0.is_given_up = inner.is_given_up;
                        failure.0.claim.clone_from(&inner.claim);
                        failure.0.seat.clone_from(&inner.seat);
                        failure.0.source = Some(error);
                        return failure;
                    }
                    cause = current.source();
                }
                Self::transient(error)
            }
        }
    }

    /// The class.
    pub fn kind(&self) -> FailureKind {
        self.0.kind
    }

    /// Whether it may succeed when tried again.
    pub fn is_transient(&self) -> bool {
        self.0.kind.is_transient()
    }

    /// Whether it will not succeed, whatever is tried.
    pub fn is_permanent(&self) -> bool {
        matches!(self.0.kind, FailureKind::Permanent | FailureKind::Undecodable)
    }

    /// Whether the message was handed back.
    pub fn is_cancelled(&self) -> bool {
        self.0.kind == FailureKind::Cancelled
    }

    /// Asks for the next attempt not before `wait` has passed, as a `Retry-After` header does.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// The wait that was asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Names the dead-letter target for this message, instead of the layer's. One that does not exist is passed over for
    /// the layer's, with a warning.
    #[must_use]
    pub fn dead_letter_to(mut self, target: impl Into<Box<str>>) -> Self {
        self.0.dead_letter_to = Some(target.into());
        self
    }

    /// The dead-letter target named for this message.
    pub fn dead_letter_target(&self) -> Option<&str> {
        self.0.dead_letter_to.as_deref()
    }

    /// Failed calls this failure stands for, when a layer has counted them.
    pub fn attempts(&self) -> Option<u32> {
        self.0.attempts
    }

    pub(crate) fn set_attempts(&mut self, attempts: u32) {
        self.0.attempts = Some(attempts);
    }

    /// The logical consumer that failed, when a layer has said so.
    pub(crate) fn consumer(&self) -> Option<&Arc<str>> {
        self.0.consumer.as_ref()
    }

    /// Names the logical consumer that failed, for the dead letter. What was named first counts.
    #[must_use]
    pub fn with_consumer(mut self, consumer: impl Into<Arc<str>>) -> Self {
        self.0.consumer.get_or_insert_with(|| consumer.into());
        self
    }

    pub(crate) fn set_consumer(&mut self, consumer: Arc<str>) {
        self.0.consumer = Some(consumer);
    }

    /// How often the message was redriven, as the store knows.
    pub(crate) fn redrive_count(&self) -> Option<u32> {
        self.0.redrive
    }

    /// No further call will be made, however long the message waits.
    pub(crate) fn is_given_up(&self) -> bool {
        self.0.is_given_up
    }

    pub(crate) fn set_given_up(&mut self) {
        self.0.is_given_up = true;
    }

    pub(crate) fn first_failed_at(&self) -> Option<SystemTime> {
        self.0.first_failed_at
    }

    pub(crate) fn set_first_failed_at(&mut self, at: SystemTime) {
        self.0.first_failed_at.get_or_insert(at);
    }

    /// Puts the claim of the message into its failure: whoever deals with the failure resolves it.
    pub(crate) fn set_claim(&mut self, claim: HeldClaim) {
        self.0.redrive = Some(claim.claim().redrive);
        self.0.claim = Some(SharedClaim::new(claim));
    }

    pub(crate) fn take_claim(&mut self) -> Option<HeldClaim> {
        self.0.claim.take().and_then(|claim| claim.take())
    }

    /// Puts the place of the message among the parked ones of its key into its failure: it is given up when the message
    /// is set aside for good.
    pub(crate) fn set_seat(&mut self, seat: Seat) {
        self.0.seat = Some(seat);
    }

    pub(crate) fn seat(&self) -> Option<&Seat> {
        self.0.seat.as_ref()
    }

    /// The first error of type `E` in the chain of sources.
    pub fn find<E: Error + 'static>(&self) -> Option<&E> {
        let mut cause = self.0.source();
        while let Some(current) = cause {
            if let Some(found) = current.downcast_ref() {
                return Some(found);
            }
            cause = current.source();
        }
        None
    }

    pub(crate) fn into_permanent(mut self) -> Self {
        self.0.kind = FailureKind::Permanent;
        self
    }

    /// The failure of a message that is `cancelled`: a transient one is how its call came back, and counts nothing.
    pub(crate) fn or_handed_back(mut self, cancelled: bool) -> Self {
        if cancelled && self.is_transient() {
            self.0.kind = FailureKind::Cancelled;
        }
        self
    }

    /// The error itself, for wrapping it in an error type of one's own.
    pub fn into_error(self) -> FailureError {
        *self.0
    }

    /// The chain of errors in one line, outermost first. Control characters and marks that turn the direction of writing
    /// are escaped: what an error quotes of a message adds no line to a log and does not act on a terminal.
    pub fn chain(&self) -> String {
        chain(&*self.0)
    }

    /// As [`chain`](Self::chain), without the name of the class in front.
    pub fn cause(&self) -> String {
        chain(self.0.source.as_deref().map_or(&*self.0 as &(dyn Error + 'static), |source| source))
    }
}

/// Joins the messages of an error and its sources, outermost first, leaving out repetitions of the one before. In one line,
/// of characters that only show.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut cause = error.source();
    while let Some(current) = cause {
        let own = current.to_string();
        if own != last && !own.is_empty() {
            text.push_str(": ");
            text.push_str(&own);
            last = own;
        }
        cause = current.source();
    }
    if text.chars().any(acts) { Plain(&text).to_string() } else { text }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure").field("kind", &self.0.kind).field("chain", &self.chain()).finish()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for FailureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailureError")
            .field("kind", &self.kind)
            .field("attempts", &self.attempts)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for FailureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            FailureKind::Transient => "transient failure",
            FailureKind::Permanent => "permanent failure",
            FailureKind::Undecodable => "undecodable message",
            FailureKind::Conflict => "idempotency key stands for another payload",
            FailureKind::NoKey => "message has no idempotency key",
            FailureKind::Exhausted => "attempts exhausted",
            FailureKind::Cancelled => "message handed back",
        })
    }
}

impl Error for FailureError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::from_error(error)
    }
}

impl From<Failure> for BoxError {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

/// Classifies any error where it occurs; also those that `?` alone cannot convert (`&str`, `String`, `anyhow::Error`).
pub trait ResultExt<T> {
    /// The error may pass when tried again.
    ///
    /// # Errors
    /// With the error, as a transient failure (or as the class it has already).
    fn transient(self) -> Result<T, Failure>;

    /// The error will not pass: no further attempt is made.
    ///
    /// # Errors
    /// With the error, as a permanent failure.
    fn permanent(self) -> Result<T, Failure>;
}

impl<T, E: Into<BoxError>> ResultExt<T> for Result<T, E> {
    fn transient(self) -> Result<T, Failure> {
        self.map_err(Failure::from_error)
    }

    fn permanent(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::from_error(error).into_permanent())
    }
}

/// What a stack says of a message it has dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The handler ran and succeeded.
    Processed,
    /// The effect had happened before, or the message is set aside.
    Duplicate,
    /// A delayed copy with a later attempt stands for this one. Reports and metrics count it as a duplicate.
    Superseded,
    /// The message is set aside; the broker has confirmed it.
    DeadLettered,
    /// A delayed copy is confirmed.
    Deferred,
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Outcome::Processed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapper(BoxError);

    impl fmt::Display for Wrapper {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }

    impl Error for Wrapper {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.0)
        }
    }

    #[test]
    fn what_an_error_quotes_stays_in_its_line() {
        let quoted = Failure::permanent("no such user: \n\u{1b}[2J\u{9b}1m\u{202e}ü €\0");
        for text in [quoted.cause(), quoted.chain(), Failure::transient(quoted.into_error()).cause()] {
            let escaped = "no such user: \\n\\u{1b}[2J\\u{9b}1m\\u{202e}ü €\\u{0}";
            assert!(text.ends_with(escaped), "{text:?}");
        }
    }

    #[test]
    fn the_class_survives_a_foreign_wrapper_and_the_chain_keeps_all() {
        let inner = Failure::permanent("card expired").with_retry_after(Duration::from_secs(3));
        let outer = Failure::from_error(Wrapper(inner.into()));
        assert!(outer.is_permanent());
        assert_eq!(outer.retry_after(), Some(Duration::from_secs(3)));
        assert_eq!(outer.chain(), "permanent failure: wrapped: permanent failure: card expired");
    }

    #[test]
    fn a_boxed_failure_is_unboxed_unchanged() {
        let boxed: BoxError = Failure::undecodable("not json").into();
        let failure = Failure::from_error(boxed);
        assert_eq!(failure.kind(), FailureKind::Undecodable);
        assert_eq!(failure.chain(), "undecodable message: not json");
    }

    #[test]
    fn any_other_error_is_transient() {
        assert!(Failure::from(std::io::Error::other("reset")).is_transient());
        let said: Result<(), Failure> = Err("no").permanent();
        assert!(said.is_err_and(|f| f.is_permanent()));
    }
}
