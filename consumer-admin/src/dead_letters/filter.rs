//! Which dead letters are meant.

use std::time::SystemTime;

use consumer_core::dead_letters::{DeadLetter, Place};

/// Which dead letters are meant: those that fit everything that is given. By default, all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Filter {
    reason: Option<String>,
    error: Option<String>,
    consumer: Option<String>,
    key: Option<String>,
    id: Option<String>,
    place: Option<Place>,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
}

impl Filter {
    /// With this reason: `permanent`, `undecodable`, `attempts-exhausted`, `conflict`, `no-key`, `broker`, `unknown`.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// With this text somewhere in the error, in upper or lower case.
    pub fn error(mut self, text: impl AsRef<str>) -> Self {
        self.error = Some(text.as_ref().to_lowercase());
        self
    }

    /// Set aside by this consumer.
    pub fn consumer(mut self, consumer: impl Into<String>) -> Self {
        self.consumer = Some(consumer.into());
        self
    }

    /// With this message key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With this message id.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The one at this place. On a queue a place means something only while it is read.
    pub fn place(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// That failed last at this time or later. One that does not say when it failed does not fit.
    pub fn since(mut self, at: SystemTime) -> Self {
        self.since = Some(at);
        self
    }

    /// That failed last before this time. One that does not say when it failed does not fit.
    pub fn until(mut self, at: SystemTime) -> Self {
        self.until = Some(at);
        self
    }

    /// Whether every letter fits.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this letter is meant.
    pub fn fits(&self, letter: &DeadLetter) -> bool {
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        let error = |wanted: &str| letter.error().is_some_and(|error| error.to_lowercase().contains(wanted));
        let time = |test: &dyn Fn(SystemTime) -> bool| letter.last_failed_at().is_some_and(test);
        same(&self.reason, Some(letter.reason()))
            && same(&self.consumer, letter.consumer())
            && same(&self.key, letter.key().as_deref())
            && same(&self.id, letter.id().as_deref())
            && self.place.is_none_or(|place| place == letter.place())
            && self.error.as_deref().is_none_or(error)
            && self.since.is_none_or(|since| time(&|at| at >= since))
            && self.until.is_none_or(|until| time(&|at| at < until))
    }
}
