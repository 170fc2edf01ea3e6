//! The names of all metrics. They are public and stable.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// The label with the name of the logical consumer.
pub const CONSUMER: &str = "consumer";
/// The label with the outcome of a delivery.
pub const OUTCOME: &str = "outcome";
/// The label with the result of a call: `ok` or `failed`.
pub const RESULT: &str = "result";
/// The label with the operation of a store: `claim` or `complete`.
pub const OPERATION: &str = "operation";

/// Deliveries dealt with, by outcome.
pub const DELIVERIES: &str = "consumer_deliveries_total";
/// From the call of the stack to its outcome, in seconds.
pub const DELIVERY_DURATION: &str = "consumer_delivery_duration_seconds";
/// Failed calls behind a failure that leaves the stack.
pub const FAILED_ATTEMPTS: &str = "consumer_failed_attempts";
/// Calls of the handler, by result.
pub const ATTEMPTS: &str = "consumer_attempts_total";
/// Messages received and not settled.
pub const HELD: &str = "consumer_held";
/// Messages held that do not wait.
pub const EXECUTING: &str = "consumer_executing";
/// Seconds since anything was settled.
pub const SINCE_LAST_SETTLE: &str = "consumer_seconds_since_last_settle";
/// Messages that wait at the broker.
pub const LAG: &str = "consumer_lag";
/// Deliveries taken from the source.
pub const RECEIVED: &str = "consumer_received_total";
/// Settlements that did not reach the broker.
pub const UNSETTLED: &str = "consumer_unsettled_total";
/// Handlers stopped because their claim ran out or was taken over.
pub const CLAIMS_LOST: &str = "consumer_claims_lost_total";
/// Claims that found the key in other hands.
pub const BUSY: &str = "consumer_busy_total";
/// Completions after the claim was lost, or after another owner's.
pub const OVERLAP: &str = "consumer_overlap_total";
/// Messages processed without protection while the store was down.
pub const BYPASSED: &str = "consumer_bypassed_total";
/// Messages processed without an idempotency key.
pub const KEYLESS: &str = "consumer_keyless_total";
/// Messages whose handler succeeded without the transaction that the inbox holds for it.
pub const INBOX_UNUSED: &str = "consumer_inbox_unused_total";
/// Messages that had to run alone because a process died with them.
pub const CRASH_SUSPECTS: &str = "consumer_crash_suspects_total";
/// The time of a store's answers, in seconds.
pub const STORE_DURATION: &str = "consumer_store_duration_seconds";
/// Dead-letter publishes that were not confirmed.
pub const DEAD_LETTER_PUBLISH_FAILURES: &str = "consumer_dead_letter_publish_failures_total";
/// Messages too large to be set aside.
pub const DEAD_LETTER_STUCK: &str = "consumer_dead_letter_stuck_total";
/// Failures discarded on request.
pub const DISCARDED: &str = "consumer_discarded_total";

/// Gives the recorder that is installed the meaning and unit of every metric.
pub fn describe() {
    let counter = |name: &'static str, text: &'static str| describe_counter!(name, Unit::Count, text);
    counter(DELIVERIES, "deliveries dealt with, by outcome");
    counter(ATTEMPTS, "calls of the handler, by result");
    counter(RECEIVED, "deliveries taken from the source");
    counter(UNSETTLED, "settlements that did not reach the broker");
    counter(CLAIMS_LOST, "handlers stopped because their claim ran out or was taken over");
    counter(BUSY, "claims that found the key in other hands");
    counter(OVERLAP, "completions after the claim was lost: the effect may have happened twice");
    counter(BYPASSED, "messages processed without protection while the store was down");
    counter(KEYLESS, "messages processed without an idempotency key");
    counter(INBOX_UNUSED, "messages whose handler succeeded without the inbox's transaction");
    counter(CRASH_SUSPECTS, "messages that had to run alone because a process died with them");
    counter(DEAD_LETTER_PUBLISH_FAILURES, "dead-letter publishes that were not confirmed");
    counter(DEAD_LETTER_STUCK, "messages too large to be set aside");
    counter(DISCARDED, "failures discarded on request");
    describe_histogram!(FAILED_ATTEMPTS, Unit::Count, "failed calls behind a failure that leaves the stack");
    describe_histogram!(DELIVERY_DURATION, Unit::Seconds, "from the call of the stack to its outcome");
    describe_histogram!(STORE_DURATION, Unit::Seconds, "the time of the dedup store's answers");
    describe_gauge!(HELD, Unit::Count, "messages received and not settled");
    describe_gauge!(EXECUTING, Unit::Count, "messages held that do not wait");
    describe_gauge!(SINCE_LAST_SETTLE, Unit::Seconds, "time since anything was settled");
    describe_gauge!(LAG, Unit::Count, "messages that wait at the broker");
}
