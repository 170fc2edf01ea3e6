//! What a client last said about its connections: the reason behind a call that merely timed out.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError as DriverError, RDKafkaErrorCode},
};

use crate::{
    certificate::Trust,
    error::{KafkaError, Kind, code_of},
};

/// The most telling error since the last success.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
    trust: Trust,
}

fn weight(code: RDKafkaErrorCode) -> u8 {
    match code {
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => 3,
        RDKafkaErrorCode::SSL => 2,
        RDKafkaErrorCode::AllBrokersDown => 0,
        _ => 1,
    }
}

impl Trouble {
    pub(crate) fn new(config: &ClientConfig) -> Self {
        Self { last: Mutex::default(), trust: Trust::of(config) }
    }

    /// From a thread that may block: a certificate that is refused is looked at.
    pub(crate) fn record(&self, error: &DriverError, reason: &str) {
        let Some(code) = code_of(error) else { return };
        let reason = self.trust.why_not(reason).unwrap_or(reason);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(old, _)| weight(code) >= weight(*old)) {
            *last = Some((code, reason.to_owned()));
        }
    }

    pub(crate) fn clear(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether waiting longer is no use.
    pub(crate) fn refused(&self) -> bool {
        self.last().is_some_and(|(code, _)| weight(code) == 3)
    }

    fn last(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The error for what could not be done at `brokers`.
    pub(crate) fn explain(&self, brokers: &str, doing: &str, fallback: &DriverError) -> KafkaError {
        match self.last() {
            Some((code, reason)) if weight(code) == 3 => KafkaError::new(
                Kind::Authentication,
                format!("kafka at {brokers} refused the user or the password ({doing}): {reason}"),
            ),
            Some((RDKafkaErrorCode::SSL, reason)) => KafkaError::new(
                Kind::Unreachable,
                format!("no TLS connection to kafka at {brokers} ({doing}): {reason}"),
            ),
            Some((_, reason)) => KafkaError::new(
                Kind::Unreachable,
                format!("kafka at {brokers} is not reachable ({doing}): {reason}"),
            ),
            None => KafkaError::new(
                Kind::Unreachable,
                format!("kafka at {brokers} does not answer ({doing}): {fallback}"),
            ),
        }
    }
}

/// Lets the client say why there was no answer: it tells only who polls it, and each call serves one event.
pub(crate) fn listen<C: ConsumerContext>(consumer: &BaseConsumer<C>) {
    for _ in 0..64 {
        let _ = consumer.poll(Duration::ZERO);
    }
}

/// Passes a line of the driver's log on. Failed connections repeat every second, so they are for debugging: the
/// adapter says once that the connection is gone.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "librdkafka", facility, "{line}");
        }
        RDKafkaLogLevel::Error if facility != "FAIL" && facility != "ERROR" => {
            tracing::warn!(target: "librdkafka", facility, "{line}");
        }
        _ => tracing::debug!(target: "librdkafka", facility, "{line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_password_outweighs_what_follows_from_it() {
        let trouble = Trouble::default();
        let global = DriverError::Global;
        trouble.record(&global(RDKafkaErrorCode::BrokerTransportFailure), "connection refused");
        trouble.record(&global(RDKafkaErrorCode::Authentication), "invalid credentials");
        trouble.record(&global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert!(trouble.refused());
        let error = trouble.explain("h:1", "topic t", &DriverError::Canceled);
        assert!(error.is_authentication(), "{error:?}");
        assert!(error.to_string().contains("h:1") && error.to_string().contains("invalid credentials"));
        trouble.clear();
        assert!(!trouble.refused());
    }
}
