//! What can go wrong with Kafka, without the driver's types.

use std::fmt;

use consumer_core::{BoxError, SourceError};
use rdkafka::error::{KafkaError as DriverError, RDKafkaErrorCode};

/// An error of the Kafka adapter. Its text names broker, topic and partition where they are known, and no password.
pub struct KafkaError {
    kind: Kind,
    message: String,
    source: Option<BoxError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Found without the network.
    Config,
    Unreachable,
    Authentication,
    MissingTopic,
    Denied,
    Other,
}

impl KafkaError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the driver says about a configuration. Its own error shows the value, which may be a password.
    pub(crate) fn from_config(error: DriverError) -> Self {
        let message = match error {
            DriverError::ClientConfig(_, reason, property, value) => {
                let reason = if value.is_empty() { reason } else { reason.replace(&value, "…") };
                format!("kafka refuses the property `{property}`: {reason}")
            }
            DriverError::ClientCreation(reason) => format!("kafka refuses the configuration: {reason}"),
            other => format!("kafka refuses the configuration: {other}"),
        };
        let hint = if message.contains("not available at build time") {
            "; enable the feature `tls` of consumer-kafka"
        } else {
            ""
        };
        Self::config(message + hint)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the configuration is wrong, which is found without the network.
    pub fn is_config(&self) -> bool {
        self.kind == Kind::Config
    }

    /// Whether no broker could be reached in time; the same may succeed later.
    pub fn is_unreachable(&self) -> bool {
        self.kind == Kind::Unreachable
    }

    /// Whether the broker refused user or password.
    pub fn is_authentication(&self) -> bool {
        self.kind == Kind::Authentication
    }

    /// Whether a topic does not exist.
    pub fn is_missing_topic(&self) -> bool {
        self.kind == Kind::MissingTopic
    }

    /// Whether a right is missing.
    pub fn is_denied(&self) -> bool {
        self.kind == Kind::Denied
    }
}

impl fmt::Debug for KafkaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaError")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for KafkaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for KafkaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl From<KafkaError> for SourceError {
    fn from(error: KafkaError) -> Self {
        let new = SourceError::new(error.message);
        match error.source {
            Some(source) => new.with_source(source),
            None => new,
        }
    }
}

/// The code of a driver's error, if it has one.
pub(crate) fn code_of(error: &DriverError) -> Option<RDKafkaErrorCode> {
    match error {
        // The driver's own look leaves these out.
        DriverError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::types::RDKafkaConfRes;

    #[test]
    fn the_value_of_a_refused_property_is_not_shown() {
        let driver = DriverError::ClientConfig(
            RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
            "Invalid value \"s3cret\" for it".into(),
            "sasl.password".into(),
            "s3cret".into(),
        );
        let error = KafkaError::from_config(driver);
        assert!(error.is_config());
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        assert!(error.to_string().contains("`sasl.password`"));
    }
}
