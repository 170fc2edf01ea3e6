//! What can go wrong with RabbitMQ, without the driver's types.

use std::fmt;

use consumer_core::{BoxError, SourceError};
use lapin::{
    Error as DriverError, ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
};

/// An error of the RabbitMQ adapter. Its text names broker, vhost and queue where they are known, and no password.
pub struct AmqpError {
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
    Missing,
    Mismatch,
    Denied,
    Other,
}

impl AmqpError {
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

    /// The driver's error, with what was being done.
    pub(crate) fn driver(what: impl Into<String>, error: DriverError) -> Self {
        Self::new(kind_of(&error), what).with_source(error)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn into_parts(self) -> (String, Option<BoxError>) {
        (self.message, self.source)
    }

    /// Whether the configuration is wrong, which is found without the network.
    pub fn is_config(&self) -> bool {
        self.kind == Kind::Config
    }

    /// Whether the broker could not be reached in time; the same may succeed later.
    pub fn is_unreachable(&self) -> bool {
        self.kind == Kind::Unreachable
    }

    /// Whether the broker refused user or password.
    pub fn is_authentication(&self) -> bool {
        self.kind == Kind::Authentication
    }

    /// Whether a queue, an exchange or the vhost does not exist. One whose node is down is unreachable instead.
    pub fn is_missing(&self) -> bool {
        self.kind == Kind::Missing
    }

    /// Whether a queue or exchange exists with other properties than those asked for.
    pub fn is_mismatch(&self) -> bool {
        self.kind == Kind::Mismatch
    }

    /// Whether a right is missing.
    pub fn is_denied(&self) -> bool {
        self.kind == Kind::Denied
    }
}

/// Whether the broker has closed the channel over one frame that was sent to it.
pub(crate) fn is_about_a_frame(error: &DriverError) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => matches!(error.kind(), AMQPErrorKind::Soft(_)),
        _ => false,
    }
}

/// What the broker means by its code (AMQP 0-9-1, "reply code").
fn kind_of(error: &DriverError) -> Kind {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Kind::Denied,
            // The node of a classic queue is down: the queue comes back with it.
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) if has(error.get_message(), "inaccessible") => {
                Kind::Unreachable
            }
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Kind::Missing,
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::RESOURCELOCKED) => {
                Kind::Mismatch
            }
            // "connection limit (…) is reached"
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if has(error.get_message(), "limit") => {
                Kind::Unreachable
            }
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Kind::Denied,
            // Closed by an operator, the broker goes down or is not up yet, or is in trouble.
            AMQPErrorKind::Hard(
                AMQPHardError::CONNECTIONFORCED | AMQPHardError::INTERNALERROR | AMQPHardError::RESOURCEERROR,
            ) => Kind::Unreachable,
            _ => Kind::Other,
        },
        ErrorKind::IOError(_)
        | ErrorKind::RuntimeShutdownError(_)
        | ErrorKind::MissingHeartbeatError
        | ErrorKind::InvalidChannel(_)
        | ErrorKind::InvalidChannelState(..)
        | ErrorKind::InvalidConnectionState(_) => Kind::Unreachable,
        _ => Kind::Other,
    }
}

fn has(text: &lapin::types::ShortString, part: &str) -> bool {
    text.as_str().contains(part)
}

/// What the broker said, if it was the broker that refused.
pub(crate) fn said(error: &DriverError) -> Option<String> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_message().to_string()),
        _ => None,
    }
}

/// Why the server's certificate is not trusted, if the driver's words (those of rustls) are about that.
pub(crate) fn distrust(words: &str) -> Option<&'static str> {
    const WHY: [(&str, &str); 4] = [
        (
            "certificate expired",
            "its certificate has expired: renew it, or see whether the clock here is right",
        ),
        ("certificate not valid yet", "its certificate is not valid yet: is the clock here right?"),
        ("not valid for name", "its certificate is not for this name: connect by a name that is in it"),
        (
            "UnknownIssuer",
            "its certificate is from an authority that is not trusted: name the file with that authority's \
             certificate by `cacertfile`",
        ),
    ];
    WHY.iter().find(|(sign, _)| words.contains(sign)).map(|(_, why)| *why)
}

/// The error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl fmt::Debug for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpError")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AmqpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl From<AmqpError> for SourceError {
    fn from(error: AmqpError) -> Self {
        let new = SourceError::new(error.message);
        match error.source {
            Some(source) => new.with_source(source),
            None => new,
        }
    }
}
