//! A dead letter as one line of JSON: what `export` and `discard` write and `import` reads.

use std::{io::Write, time::SystemTime};

use base64::{Engine, prelude::BASE64_STANDARD};
use consumer_core::{
    Headers, Message,
    dead_letters::{DeadLetter, Letters},
    message::wire,
};
use serde::{Deserialize, Serialize};

use crate::{AdminError, Filter, terminal};

/// A dead letter outside of its broker. Payload and key are in base64; a header that is no UTF-8 text is as well, under
/// `base64`. On RabbitMQ, what is a property and not a header (priority, reply-to, …) and the types of header values are
/// not carried; on Kafka, headers whose names are no UTF-8 text are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedLetter {
    /// Where it lay, for the reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    /// The id, where it is no header of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    headers: Vec<Header>,
    /// None is a tombstone.
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    discarded_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    discarded_because: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl ExportedLetter {
    /// From a letter that was read.
    pub fn new(letter: &DeadLetter) -> Self {
        let message = letter.message();
        let header = |(name, value): (&str, Option<&bytes::Bytes>)| {
            let text = value.and_then(|value| std::str::from_utf8(value).ok());
            let raw = value.filter(|_| text.is_none()).map(|value| BASE64_STANDARD.encode(value));
            Header { name: name.to_owned(), value: text.map(str::to_owned), base64: raw }
        };
        let is_header = message.headers().contains(wire::MESSAGE_ID);
        Self {
            place: Some(letter.place().to_string()),
            id: letter.id().filter(|_| !is_header).map(|id| id.into_owned()),
            key: message.key().map(|key| BASE64_STANDARD.encode(key)),
            headers: message.headers().iter().map(header).chain(told_by_the_broker(letter)).collect(),
            payload: (!message.is_tombstone()).then(|| BASE64_STANDARD.encode(message.payload())),
            discarded_at: None,
            discarded_because: None,
        }
    }

    pub(crate) fn discarded(mut self, because: &str, at: SystemTime) -> Self {
        self.discarded_at = Some(wire::format_time(at));
        self.discarded_because = Some(because.to_owned());
        self
    }

    /// The message as it was.
    ///
    /// # Errors
    /// With what is wrong when something is no base64.
    pub fn message(&self) -> Result<Message, AdminError> {
        let decode = |what: &str, text: &str| {
            BASE64_STANDARD
                .decode(text)
                .map_err(|error| AdminError::new(format!("the {what} is no base64")).with_source(error))
        };
        let mut headers = Headers::with_capacity(self.headers.len());
        for Header { name, value, base64 } in &self.headers {
            match (value, base64) {
                (_, Some(raw)) => headers.append(name.clone(), decode(&format!("header `{name}`"), raw)?),
                (Some(text), None) => headers.append(name.clone(), text.clone()),
                (None, None) => headers.append_null(name.clone()),
            }
        }
        let mut message = Message::builder().headers(headers);
        if let Some(id) = &self.id {
            message = message.fallback_id(id.clone());
        }
        if let Some(key) = &self.key {
            message = message.key(decode("key", key)?);
        }
        if let Some(payload) = &self.payload {
            message = message.payload(decode("payload", payload)?);
        }
        Ok(message.build())
    }

    /// Writes it as one line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_to(&self, to: &mut dyn Write) -> Result<(), AdminError> {
        let written = serde_json::to_string(self)
            .map_err(std::io::Error::other)
            .and_then(|line| to.write_all((terminal::json(line) + "\n").as_bytes()));
        written.map_err(|error| AdminError::new("the letter cannot be written").with_source(error))
    }
}

/// What a broker says of a letter it set aside is no header that can be published: it is written as ours are, so that the
/// letter has its way back after an import.
fn told_by_the_broker(letter: &DeadLetter) -> impl Iterator<Item = Header> {
    let text = |name: &str, value: String| Header { name: name.to_owned(), value: Some(value), base64: None };
    let mut headers = Vec::new();
    if let Some(death) = letter.death().filter(|_| !letter.is_ours()) {
        headers.push(text(wire::DEAD_LETTER_REASON, letter.reason().to_owned()));
        headers.extend(letter.error().map(|error| text(wire::DEAD_LETTER_ERROR, error.into_owned())));
        headers.push(text(wire::DEAD_LETTER_SOURCE, "amqp".to_owned()));
        headers.push(text("dead-letter-queue", death.queue.clone()));
        let at = letter.last_failed_at().map(wire::format_time);
        headers.extend(at.map(|at| text(wire::DEAD_LETTER_LAST_FAILED_AT, at)));
    }
    headers.into_iter()
}

/// Writes the letters that fit, one a line, and changes nothing. How many those were.
///
/// # Errors
/// When the broker or the writer does not let it go on. Trying again is safe.
///
/// # Cancel safety
/// Nothing is changed; the last line may be cut.
pub async fn export(
    mut letters: Box<dyn Letters>,
    filter: &Filter,
    limit: Option<u64>,
    to: &mut (dyn Write + Send),
) -> Result<u64, AdminError> {
    let written = write(&mut *letters, filter, limit, to).await;
    // They go back in their order whatever happened.
    let closed = letters.close().await;
    let count = written?;
    closed?;
    Ok(count)
}

async fn write(
    letters: &mut dyn Letters,
    filter: &Filter,
    limit: Option<u64>,
    to: &mut (dyn Write + Send),
) -> Result<u64, AdminError> {
    let mut count = 0;
    while limit.is_none_or(|limit| count < limit)
        && let Some(letter) = letters.next().await?
    {
        if filter.fits(&letter) {
            ExportedLetter::new(&letter).write_to(to)?;
            count += 1;
        }
    }
    to.flush().map_err(|error| AdminError::new("the letters cannot be written").with_source(error))?;
    Ok(count)
}
