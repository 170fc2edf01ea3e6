//! Builds a stack in the right order and says in words what it guarantees.
//!
//! # Why
//! The order of layers decides what a stack guarantees: a retry outside the dedup layer finds its own claim, a rate
//! limit outside it charges duplicates, a timeout around a backoff cuts it. [`Pipeline`] takes the layers in any order
//! and puts them where they belong, from the outside in:
//!
//! trace → metrics → dead-letter → dedup → retry → rate limit → concurrency limit → inbox → timeout → catch-panic → handler
//!
//! | place | because |
//! |---|---|
//! | dead-letter outside dedup | the claim outlives the failure until the dead letter is confirmed |
//! | dedup outside retry | one claim covers all attempts in this process |
//! | rate limit inside retry | every attempt takes a token, and no duplicate does |
//! | concurrency limit inside both | what waits holds no permit |
//! | inbox inside the limits | a connection is held only while the message runs |
//! | timeout inside the inbox | it cannot drop a commit half way |
//! | timeout inside the limits | waiting for a turn is not running |
//! | catch-panic innermost | a panic is a failure like any other for everything outside |
//!
//! [`explain`](Pipeline::explain) says what the result guarantees, what it does not, and what is missing.
//!
//! # Example
//! ```
//! use std::time::Duration;
//! use consumer_core::{Failure, Message, Pipeline, RateLimitLayer, RetryLayer, TimeoutLayer, handler::handler};
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Failure> {
//! async fn confirm() {}
//!
//! let pipeline = Pipeline::new()
//!     .timeout(TimeoutLayer::new(Duration::from_secs(10)))
//!     .retry(RetryLayer::exponential(Duration::from_secs(1)))
//!     .rate_limit(RateLimitLayer::per_second(100))
//!     .concurrency(32);
//! println!("{}", pipeline.explain());
//! assert!(pipeline.explain().missing().iter().any(|gap| gap.contains("deduplication")));
//!
//! pipeline.service(handler(confirm)).oneshot(Message::new("{}")).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Any tower layer fits into any slot. One that does not say what it does needs [`Foreign`] around it before
//! `explain` can be asked.

mod explanation;
mod facts;
mod layers;
#[cfg(test)]
mod tests;

use tower::{
    Layer,
    layer::util::{Identity, Stack},
};

pub use explanation::Explanation;
pub use facts::{
    DeadLetterFacts, DedupFacts, DelayedRetryFacts, Explain, Facts, InboxFacts, RateFacts, RetryFacts,
};
pub use layers::{Concurrency, Foreign};

use crate::CatchPanicLayer;

/// A stack in the making: a slot for each layer, named in any order. See the [module](self) for the order they get.
///
/// A slot that is named twice has what was named last.
#[derive(Debug, Clone)]
#[must_use = "a pipeline does nothing until `service` or `into_layer` is called"]
pub struct Pipeline<
    Trace = Identity,
    Metrics = Identity,
    DeadLetter = Identity,
    Delay = Identity,
    Dedup = Identity,
    Retry = Identity,
    Rate = Identity,
    Limit = Identity,
    Inbox = Identity,
    Timeout = Identity,
    Catch = CatchPanicLayer,
> {
    trace: Trace,
    metrics: Metrics,
    dead_letter: DeadLetter,
    delayed_retry: Delay,
    dedup: Dedup,
    retry: Retry,
    rate_limit: Rate,
    concurrency_limit: Limit,
    inbox: Inbox,
    timeout: Timeout,
    catch_panic: Catch,
}

/// The layer that a [`Pipeline`] becomes: innermost first, as tower stacks them.
pub type Stacked<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Limit, Inbox, Timeout, Catch> = Stack<
    Catch,
    Stack<
        Timeout,
        Stack<
            Inbox,
            Stack<
                Limit,
                Stack<
                    Rate,
                    Stack<Retry, Stack<Dedup, Stack<Delay, Stack<DeadLetter, Stack<Metrics, Trace>>>>>,
                >,
            >,
        >,
    >,
>;

impl Pipeline {
    /// A pipeline with nothing but catch-panic.
    pub fn new() -> Self {
        Self {
            trace: Identity::new(),
            metrics: Identity::new(),
            dead_letter: Identity::new(),
            delayed_retry: Identity::new(),
            dedup: Identity::new(),
            retry: Identity::new(),
            rate_limit: Identity::new(),
            concurrency_limit: Identity::new(),
            inbox: Identity::new(),
            timeout: Identity::new(),
            catch_panic: CatchPanicLayer::new(),
        }
    }
}

impl Default for Pipeline {
    fn default() -> Self {
        Self::new()
    }
}

/// One method for each slot: it replaces the slot's type and moves the others over.
macro_rules! slots {
    ($($(#[$docs:meta])* $slot:ident [$($before:ident)*] [$($after:ident)*] $($other:ident)*;)*) => {
        impl<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Limit, Inbox, Timeout, Catch>
            Pipeline<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Limit, Inbox, Timeout, Catch>
        {
            $(
                $(#[$docs])*
                pub fn $slot<L>(self, layer: L) -> Pipeline<$($before,)* L, $($after,)*> {
                    Pipeline { $slot: layer, $($other: self.$other,)* }
                }
            )*
        }
    };
}

slots! {
    /// Sets the trace layer, [`TraceLayer`](crate::TraceLayer).
    trace [] [Metrics DeadLetter Delay Dedup Retry Rate Limit Inbox Timeout Catch]
        metrics dead_letter delayed_retry dedup retry rate_limit concurrency_limit inbox timeout catch_panic;
    /// Sets the metrics layer, `MetricsLayer`.
    metrics [Trace] [DeadLetter Delay Dedup Retry Rate Limit Inbox Timeout Catch]
        trace dead_letter delayed_retry dedup retry rate_limit concurrency_limit inbox timeout catch_panic;
    /// Sets the dead-letter layer.
    dead_letter [Trace Metrics] [Delay Dedup Retry Rate Limit Inbox Timeout Catch]
        trace metrics delayed_retry dedup retry rate_limit concurrency_limit inbox timeout catch_panic;
    /// Sets the delayed-retry layer, [`DelayedRetryLayer`](crate::DelayedRetryLayer).
    delayed_retry [Trace Metrics DeadLetter] [Dedup Retry Rate Limit Inbox Timeout Catch]
        trace metrics dead_letter dedup retry rate_limit concurrency_limit inbox timeout catch_panic;
    /// Sets the dedup layer.
    dedup [Trace Metrics DeadLetter Delay] [Retry Rate Limit Inbox Timeout Catch]
        trace metrics dead_letter delayed_retry retry rate_limit concurrency_limit inbox timeout catch_panic;
    /// Sets the retry layer, [`RetryLayer`](crate::RetryLayer).
    retry [Trace Metrics DeadLetter Delay Dedup] [Rate Limit Inbox Timeout Catch]
        trace metrics dead_letter delayed_retry dedup rate_limit concurrency_limit inbox timeout catch_panic;
    /// Sets the rate limit, `RateLimitLayer`.
    rate_limit [Trace Metrics DeadLetter Delay Dedup Retry] [Limit Inbox Timeout Catch]
        trace metrics dead_letter delayed_retry dedup retry concurrency_limit inbox timeout catch_panic;
    /// Sets the concurrency limit; [`concurrency`](Self::concurrency) is shorter.
    concurrency_limit [Trace Metrics DeadLetter Delay Dedup Retry Rate] [Inbox Timeout Catch]
        trace metrics dead_letter delayed_retry dedup retry rate_limit inbox timeout catch_panic;
    /// Sets the inbox, a layer that opens a transaction for the handler: `InboxLayer` in the crate `consumer-sql`.
    inbox [Trace Metrics DeadLetter Delay Dedup Retry Rate Limit] [Timeout Catch]
        trace metrics dead_letter delayed_retry dedup retry rate_limit concurrency_limit timeout catch_panic;
    /// Sets the timeout of one attempt, [`TimeoutLayer`](crate::TimeoutLayer).
    timeout [Trace Metrics DeadLetter Delay Dedup Retry Rate Limit Inbox] [Catch]
        trace metrics dead_letter delayed_retry dedup retry rate_limit concurrency_limit inbox catch_panic;
    /// Replaces the layer that catches panics. Default: [`CatchPanicLayer`].
    catch_panic [Trace Metrics DeadLetter Delay Dedup Retry Rate Limit Inbox Timeout] []
        trace metrics dead_letter delayed_retry dedup retry rate_limit concurrency_limit inbox timeout;
}

impl<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Limit, Inbox, Timeout, Catch>
    Pipeline<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Limit, Inbox, Timeout, Catch>
{
    /// At most `max` calls run at once. A call that waits in a backoff or for the rate limit is not running.
    ///
    /// # Panics
    /// When the stack is built, if `max` is 0 or above tokio's bound for semaphores.
    pub fn concurrency(
        self,
        max: usize,
    ) -> Pipeline<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Concurrency, Inbox, Timeout, Catch>
    {
        self.concurrency_limit(Concurrency::new(max))
    }

    /// Catches no panics: they are left to the runtime, which knows of no retry and no dead letter.
    pub fn without_catch_panic(
        self,
    ) -> Pipeline<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Limit, Inbox, Timeout, Identity>
    {
        self.catch_panic(Identity::new())
    }

    /// The layers as one, in order.
    pub fn into_layer(
        self,
    ) -> Stacked<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Limit, Inbox, Timeout, Catch> {
        let outer = Stack::new(self.metrics, self.trace);
        let outer = Stack::new(self.delayed_retry, Stack::new(self.dead_letter, outer));
        let outer = Stack::new(self.dedup, outer);
        let outer = Stack::new(self.rate_limit, Stack::new(self.retry, outer));
        let outer = Stack::new(self.inbox, Stack::new(self.concurrency_limit, outer));
        Stack::new(self.catch_panic, Stack::new(self.timeout, outer))
    }

    /// The stack around `handler`.
    #[expect(clippy::type_complexity, reason = "there is one parameter for each slot")]
    pub fn service<S>(
        self,
        handler: S,
    ) -> <Stacked<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Limit, Inbox, Timeout, Catch> as Layer<S>>::Service
    where
        Stacked<Trace, Metrics, DeadLetter, Delay, Dedup, Retry, Rate, Limit, Inbox, Timeout, Catch>: Layer<S>,
    {
        self.into_layer().layer(handler)
    }

    /// What the layers say of themselves.
    pub fn facts(&self) -> Facts
    where
        Trace: Explain,
        Metrics: Explain,
        DeadLetter: Explain,
        Delay: Explain,
        Dedup: Explain,
        Retry: Explain,
        Rate: Explain,
        Limit: Explain,
        Inbox: Explain,
        Timeout: Explain,
        Catch: Explain,
    {
        let mut facts = Facts::default();
        let slots: [&dyn Explain; 11] = [
            &self.trace,
            &self.metrics,
            &self.dead_letter,
            &self.delayed_retry,
            &self.dedup,
            &self.retry,
            &self.rate_limit,
            &self.concurrency_limit,
            &self.inbox,
            &self.timeout,
            &self.catch_panic,
        ];
        for slot in slots {
            slot.explain(&mut facts);
        }
        facts
    }

    /// Says in words what the stack guarantees, what it does not, and what is missing.
    pub fn explain(&self) -> Explanation
    where
        Trace: Explain,
        Metrics: Explain,
        DeadLetter: Explain,
        Delay: Explain,
        Dedup: Explain,
        Retry: Explain,
        Rate: Explain,
        Limit: Explain,
        Inbox: Explain,
        Timeout: Explain,
        Catch: Explain,
    {
        Explanation::of(&self.facts())
    }
}
