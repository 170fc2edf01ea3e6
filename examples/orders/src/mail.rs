//! The mail provider and the log of what it has sent.
//!
//! Addresses decide how the provider behaves, as test card numbers do with a payment provider.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use consumer::message::wire;
use serde::Serialize;

/// A mail that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Mail {
    pub(crate) message_id: String,
    pub(crate) order_id: String,
    pub(crate) epoch: u64,
    pub(crate) attempt: u32,
}

/// A line of the log.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    mail: &'a Mail,
    /// When it was sent: RFC 3339 in UTC.
    at: String,
}

/// Sends mails. Clones are one provider.
#[derive(Debug, Clone)]
pub(crate) struct Mailer {
    log: Arc<MailLog>,
    delay: Duration,
    repaired: bool,
}

/// Where mails are written down.
#[derive(Debug)]
pub(crate) enum MailLog {
    /// Opened for appending, so that lines of several processes do not mix.
    File(File),
    Memory(Mutex<Vec<Mail>>),
}

/// What an address makes the provider do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Works,
    /// Fails at attempts 1 and 2.
    Flaky,
    Down,
    Bounces,
    Panics,
    Aborts,
}

/// A mail that was not sent.
#[derive(Debug)]
pub(crate) enum MailError {
    /// The provider is having trouble.
    Unavailable(&'static str),
    /// There is no such mailbox, now and for ever.
    Bounced,
    Log(io::Error),
}

impl Mailer {
    /// A provider that takes `delay` for each mail; `repaired`, it accepts every address.
    pub(crate) fn new(log: MailLog, delay: Duration, repaired: bool) -> Self {
        Self { log: Arc::new(log), delay, repaired }
    }

    /// Sends the mail to an address and writes it down.
    pub(crate) async fn send(&self, email: &str, mail: &Mail) -> Result<(), MailError> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let behaviour = if self.repaired { Behaviour::Works } else { Behaviour::of(email) };
        match behaviour {
            Behaviour::Works => {}
            Behaviour::Flaky if mail.attempt > 2 => {}
            Behaviour::Flaky => return Err(MailError::Unavailable("the connection was reset")),
            Behaviour::Down => return Err(MailError::Unavailable("it is down")),
            Behaviour::Bounces => return Err(MailError::Bounced),
            Behaviour::Panics => panic!("the mail library hit a bug with order {}", mail.order_id),
            Behaviour::Aborts => {
                tracing::error!(order_id = mail.order_id, "the mail library kills the process");
                std::process::abort()
            }
        }
        self.log.append(mail).map_err(MailError::Log)
    }

    /// What was sent, if it is kept in memory.
    pub(crate) fn sent(&self) -> Vec<Mail> {
        match &*self.log {
            MailLog::File(_) => Vec::new(),
            MailLog::Memory(mails) => mails.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl MailLog {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self::File)
    }

    pub(crate) fn memory() -> Self {
        Self::Memory(Mutex::default())
    }

    /// One write for each line: those of several processes do not mix. A reader may see the beginning of the last one alone.
    fn append(&self, mail: &Mail) -> io::Result<()> {
        match self {
            Self::Memory(mails) => {
                mails.lock().unwrap_or_else(PoisonError::into_inner).push(mail.clone());
                Ok(())
            }
            Self::File(file) => {
                let at = wire::format_time(SystemTime::now());
                let mut line = serde_json::to_vec(&Line { mail, at })?;
                line.push(b'\n');
                loop {
                    let mut file: &File = file;
                    match file.write(&line) {
                        Ok(written) if written == line.len() => return Ok(()),
                        Ok(_) => {
                            return Err(io::Error::new(io::ErrorKind::WriteZero, "a line was cut short"));
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
}

impl Behaviour {
    fn of(email: &str) -> Self {
        let domain = email.rsplit_once('@').map_or("", |(_, domain)| domain);
        match &*domain.to_ascii_lowercase() {
            "flaky.example" => Self::Flaky,
            "down.example" => Self::Down,
            "bounces.example" => Self::Bounces,
            "panics.example" => Self::Panics,
            "aborts.example" => Self::Aborts,
            _ => Self::Works,
        }
    }
}

impl fmt::Display for MailError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "the mail provider did not take the mail: {why}"),
            Self::Bounced => f.write_str("the mail provider knows no such mailbox"),
            Self::Log(_) => f.write_str("the mail log could not be written"),
        }
    }
}

impl std::error::Error for MailError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Log(error) => Some(error),
            Self::Unavailable(_) | Self::Bounced => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(attempt: u32) -> Mail {
        let text = str::to_owned;
        Mail { message_id: text("m-1"), order_id: text("o-1"), epoch: 7, attempt }
    }

    fn mailer(repaired: bool) -> Mailer {
        Mailer::new(MailLog::memory(), Duration::ZERO, repaired)
    }

    #[tokio::test]
    async fn addresses_decide() {
        let mailer = mailer(false);
        for (email, attempt, works) in [
            ("ann@example.com", 1, true),
            ("no address at all", 1, true),
            ("x@flaky.example.com", 1, true),
            ("x@flaky.example", 1, false),
            ("x@flaky.example", 2, false),
            ("x@flaky.example", 3, true),
            ("x@DOWN.example", 9, false),
            ("x@bounces.example", 9, false),
        ] {
            assert_eq!(mailer.send(email, &mail(attempt)).await.is_ok(), works, "{email} {attempt}");
        }
        assert_eq!(mailer.sent().len(), 4);
        assert!(matches!(mailer.send("x@bounces.example", &mail(1)).await, Err(MailError::Bounced)));
    }

    #[tokio::test]
    async fn a_repaired_provider_takes_every_address() {
        let mailer = mailer(true);
        for domain in ["flaky", "down", "bounces", "panics", "aborts"] {
            mailer.send(&format!("x@{domain}.example"), &mail(1)).await.unwrap();
        }
        assert_eq!(mailer.sent().len(), 5);
    }

    #[tokio::test]
    #[should_panic(expected = "hit a bug")]
    async fn an_address_that_panics() {
        let _ = mailer(false).send("x@panics.example", &mail(1)).await;
    }

    #[tokio::test]
    async fn the_file_has_one_line_for_each_mail_and_keeps_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mails.jsonl");
        for attempt in [1, 2] {
            let mailer = Mailer::new(MailLog::open(&path).unwrap(), Duration::ZERO, false);
            mailer.send("ann@example.com", &mail(attempt)).await.unwrap();
        }
        let log = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), 2);
        for (line, attempt) in lines.iter().zip([1, 2]) {
            let begin =
                format!(r#"{{"message_id":"m-1","order_id":"o-1","epoch":7,"attempt":{attempt},"at":""#);
            let at = line.strip_prefix(&*begin).and_then(|rest| rest.strip_suffix("\"}")).unwrap();
            assert!(wire::parse_time(at).is_ok(), "{line}");
        }
    }
}
