//! Headers: an ordered multimap with byte values.

use std::{fmt, sync::Arc};

use bytes::Bytes;

/// Ordered headers of a message. A name may occur more than once and a value may be null, as on Kafka.
///
/// Names are UTF-8 and compared byte by byte; values are bytes. Nothing is sorted, merged or normalised: what a
/// source delivered is what a dead letter or a redrive carries on.
///
/// ```
/// use consumer_core::Headers;
///
/// let mut headers = Headers::new();
/// headers.append("trace", "a");
/// headers.append("trace", "b");
/// assert_eq!(headers.get_str("trace"), Some("a"));
/// assert_eq!(headers.get_all("trace").count(), 2);
/// headers.insert("trace", "c");
/// assert_eq!(headers.get_all("trace").count(), 1);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(HeaderName, Option<Bytes>)>);

/// The name of a header: a static string costs nothing, any other one is shared by reference count.
#[derive(Clone)]
pub struct HeaderName(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
}

impl HeaderName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Static(name) => name,
            Repr::Shared(name) => name,
        }
    }
}

impl PartialEq for HeaderName {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for HeaderName {}

impl fmt::Debug for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl From<&'static str> for HeaderName {
    fn from(name: &'static str) -> Self {
        Self(Repr::Static(name))
    }
}

impl From<String> for HeaderName {
    fn from(name: String) -> Self {
        Self(Repr::Shared(name.into()))
    }
}

impl From<Arc<str>> for HeaderName {
    fn from(name: Arc<str>) -> Self {
        Self(Repr::Shared(name))
    }
}

impl Headers {
    /// No headers; does not allocate.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// No headers yet, with room for `capacity` of them.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// The number of headers, repetitions included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no header.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first value under `name`, if there is one that is not null.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|(n, _)| n.as_str() == name).and_then(|(_, value)| value.as_ref())
    }

    /// Like [`get`](Self::get), as text. A value that is not UTF-8 counts as absent.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All values under `name` in their order, nulls included.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Option<&'a Bytes>> {
        self.0.iter().filter(move |(n, _)| n.as_str() == name).map(|(_, value)| value.as_ref())
    }

    /// Whether a header of this name exists, be it null.
    pub fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n.as_str() == name)
    }

    /// All headers in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&Bytes>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_ref()))
    }

    /// Adds a header behind the others and keeps those of the same name.
    pub fn append(&mut self, name: impl Into<HeaderName>, value: impl Into<Bytes>) {
        self.0.push((name.into(), Some(value.into())));
    }

    /// Adds a header with a null value.
    pub fn append_null(&mut self, name: impl Into<HeaderName>) {
        self.0.push((name.into(), None));
    }

    /// Removes every header of this name and adds this one behind the others.
    pub fn insert(&mut self, name: impl Into<HeaderName>, value: impl Into<Bytes>) {
        let name = name.into();
        self.remove(name.as_str());
        self.0.push((name, Some(value.into())));
    }

    /// Removes every header of this name; tells whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|(n, _)| n.as_str() != name);
        before != self.0.len()
    }

    /// Removes every header whose name starts with `prefix`.
    pub fn remove_prefix(&mut self, prefix: &str) {
        self.0.retain(|(n, _)| !n.as_str().starts_with(prefix));
    }

    /// Adds all headers of `other`, each replacing those of its name.
    pub fn replace_with(&mut self, other: &Headers) {
        for (name, _) in &other.0 {
            self.remove(name.as_str());
        }
        self.0.extend(other.0.iter().cloned());
    }
}

/// Names and the lengths of values: a header may carry a credential, so its value stays out of logs.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(n, v)| (n, v.as_ref().map(Bytes::len)))).finish()
    }
}

impl<N: Into<HeaderName>, V: Into<Bytes>> FromIterator<(N, V)> for Headers {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(iter: T) -> Self {
        Self(iter.into_iter().map(|(n, v)| (n.into(), Some(v.into()))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_repetition_and_null_survive() {
        let mut headers = Headers::new();
        headers.append("b", "1");
        headers.append_null("a");
        headers.append("b", "2");
        let all: Vec<_> = headers.iter().map(|(n, v)| (n, v.map(|v| &v[..]))).collect();
        assert_eq!(all, [("b", Some(&b"1"[..])), ("a", None), ("b", Some(&b"2"[..]))]);
        assert!(headers.contains("a") && headers.get("a").is_none());
    }

    #[test]
    fn replace_with_takes_out_every_header_of_the_name() {
        let mut headers: Headers = [("x", "1"), ("y", "2"), ("x", "3")].into_iter().collect();
        headers.replace_with(&[("x", "4")].into_iter().collect());
        assert_eq!(headers.len(), 2);
        assert_eq!(headers.get_str("x"), Some("4"));
    }

    #[test]
    fn debug_shows_no_value() {
        let headers: Headers = [("authorization", "Bearer secret")].into_iter().collect();
        assert!(!format!("{headers:?}").contains("secret"));
    }
}
