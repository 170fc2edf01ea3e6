//! What the layers of a stack say of themselves.

use std::time::Duration;

use tower::{
    layer::util::{Identity, Stack},
    limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer},
    util::Either,
};

/// A layer that can say what it does, for [`Pipeline::explain`](super::Pipeline::explain).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot say what it guarantees",
    label = "this layer does not implement `Explain`",
    note = "wrap a layer of another crate as `pipeline::Foreign::new(\"what it does\", layer)`"
)]
pub trait Explain {
    /// Adds what this layer does to what is known of the stack.
    fn explain(&self, facts: &mut Facts);
}

/// What is known of a stack. `None` and `false` mean that there is no such layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// Spans are recorded.
    pub trace: bool,
    /// Metrics are recorded.
    pub metrics: bool,
    /// Failed messages are set aside.
    pub dead_letter: Option<DeadLetterFacts>,
    /// What fails comes again by the broker.
    pub delayed_retry: Option<DelayedRetryFacts>,
    /// Duplicates are recognised.
    pub dedup: Option<DedupFacts>,
    /// Record and effect are in one transaction.
    pub inbox: Option<InboxFacts>,
    /// Transient failures are tried again.
    pub retry: Option<RetryFacts>,
    /// Calls are spread over time.
    pub rate: Option<RateFacts>,
    /// How many calls run at once is limited, if known to how many.
    pub concurrency: Option<Option<usize>>,
    /// A call has this long.
    pub timeout: Option<Duration>,
    /// Panics become failures.
    pub catch_panic: bool,
    /// Layers of other crates, in the words they were given.
    pub foreign: Vec<String>,
}

/// What a delayed-retry layer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelayedRetryFacts {
    /// How long each round waits.
    pub delays: Vec<Duration>,
    /// How many messages of a key may be parked, where there is parking.
    pub parking: Option<u32>,
}

/// What a dead-letter layer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterFacts {
    /// The topic or queue.
    pub target: String,
}

/// What a dedup layer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupFacts {
    /// The logical consumer, which is the scope of the keys.
    pub consumer: String,
    /// What the key is taken from, in words: "the header `message-id`".
    pub key: String,
    /// How long a completed key is remembered.
    pub retention: Duration,
    /// How long a claim holds unless it is renewed.
    pub lease: Duration,
    /// Whether messages are processed without protection while the store is down, instead of waiting for it.
    pub bypass_on_outage: bool,
    /// Whether messages without a key are processed without protection, instead of being set aside.
    pub process_without_key: bool,
    /// Whether another payload under a known key is noticed.
    pub fingerprint: bool,
    /// Whether the store still knows its keys after the process was started anew.
    pub survives_restart: bool,
}

/// What an inbox says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxFacts {
    /// The logical consumer, which is the scope of the keys.
    pub consumer: String,
    /// What the key is taken from, in words: "the header `message-id`".
    pub key: String,
    /// How long a record is kept.
    pub retention: Duration,
    /// Whether messages without a key are processed without a record, instead of being set aside.
    pub process_without_key: bool,
    /// Whether another payload under a known key is noticed.
    pub fingerprint: bool,
    /// How many messages may share a transaction, where they do.
    pub batch: Option<usize>,
}

/// What a retry layer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryFacts {
    /// Calls of one message in all.
    pub max_attempts: u32,
    /// The longest time that all waits may take together, unless a failure asks for longer ones; `None` if unknown.
    pub horizon: Option<Duration>,
}

/// What a rate limit says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateFacts {
    /// So many calls ...
    pub calls: u32,
    /// ... in so much time.
    pub period: Duration,
    /// For each key on its own.
    pub per_key: bool,
}

impl Explain for Identity {
    fn explain(&self, _: &mut Facts) {}
}

impl<L: Explain + ?Sized> Explain for &L {
    fn explain(&self, facts: &mut Facts) {
        (**self).explain(facts);
    }
}

impl<A: Explain, B: Explain> Explain for Either<A, B> {
    fn explain(&self, facts: &mut Facts) {
        match self {
            Either::Left(layer) => layer.explain(facts),
            Either::Right(layer) => layer.explain(facts),
        }
    }
}

/// Tower's stack does not show its parts.
impl<A, B> Explain for Stack<A, B> {
    fn explain(&self, facts: &mut Facts) {
        facts.foreign.push("several layers combined beforehand".to_owned());
    }
}

impl Explain for ConcurrencyLimitLayer {
    fn explain(&self, facts: &mut Facts) {
        facts.concurrency = Some(None);
    }
}

impl Explain for GlobalConcurrencyLimitLayer {
    fn explain(&self, facts: &mut Facts) {
        facts.concurrency = Some(None);
    }
}
