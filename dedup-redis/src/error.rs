//! Errors of connecting.

use std::fmt;

use consumer_core::BoxError;

/// A connection that could not be opened. Never shows a password.
pub struct ConnectError {
    kind: Kind,
    message: String,
    source: Option<BoxError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Configuration,
    Unreachable,
    Authentication,
    UnsupportedVersion,
    WrongServer,
    Eviction,
    Refused,
}

impl ConnectError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the URL or an option is wrong, which was found without the network.
    pub fn is_configuration(&self) -> bool {
        self.kind == Kind::Configuration
    }

    /// Whether no server answered in time. Trying again later may help.
    pub fn is_unreachable(&self) -> bool {
        self.kind == Kind::Unreachable
    }

    /// Whether user or password are wrong or missing.
    pub fn is_authentication(&self) -> bool {
        self.kind == Kind::Authentication
    }

    /// Whether the server is older than Redis 7.0.
    pub fn is_unsupported_version(&self) -> bool {
        self.kind == Kind::UnsupportedVersion
    }

    /// Whether what answers cannot be used as this URL says: a cluster node, a Sentinel or a replica behind `redis://`, or
    /// no cluster behind `redis+cluster://`.
    pub fn is_wrong_server(&self) -> bool {
        self.kind == Kind::WrongServer
    }

    /// Whether the server may evict keys and [`EvictionCheck::Refuse`](crate::EvictionCheck::Refuse) was asked for.
    pub fn is_eviction(&self) -> bool {
        self.kind == Kind::Eviction
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
             certificate by `cacertfile` or `authority`",
        ),
    ];
    WHY.iter().find(|(sign, _)| words.contains(sign)).map(|(_, why)| *why)
}

impl fmt::Debug for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectError")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}
