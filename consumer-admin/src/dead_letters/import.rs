//! Publishing what was exported.

use std::{
    fs::File,
    io::{BufRead, BufReader, Lines},
    path::Path,
    sync::Arc,
    time::Duration,
};

use consumer_core::{
    DynPublisher, Message, Outgoing,
    dead_letters::{DeadLetter, Place},
};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{exported::ExportedLetter, sending::publish};
use crate::AdminError;

/// Lines on their way at once.
const BATCH: usize = 500;

/// How to import.
#[derive(Debug, Clone)]
#[must_use]
pub struct Import {
    to: Arc<str>,
    skip: u64,
    patience: Duration,
    stop: CancellationToken,
}

impl Import {
    /// To this topic or queue of dead letters, which has to exist. From there they are redriven.
    pub fn to(target: impl Into<Arc<str>>) -> Self {
        Self { to: target.into(), skip: 0, patience: Duration::from_secs(30), stop: CancellationToken::new() }
    }

    /// When this is cancelled, what is on its way is finished; the error then says where to go on.
    pub fn stop(mut self, token: CancellationToken) -> Self {
        self.stop = token;
        self
    }

    /// Leaves out so many lines at the beginning, as an import before has said.
    pub fn skip(mut self, lines: u64) -> Self {
        self.skip = lines;
        self
    }
}

/// What an import did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Lines in the file.
    pub lines: u64,
    /// Published and confirmed.
    pub imported: u64,
}

/// Publishes the letters in a file that [`export`](crate::export) or [`discard`](crate::discard) wrote, as they were. The
/// whole file is checked first: where one line cannot be read, nothing is published.
///
/// # Errors
/// When the file cannot be read, naming the line, a letter came from the target itself (with `is_usage()`), or the broker
/// does not take a letter. The error says from which line to
/// go on; lines behind it that were on their way may have arrived.
///
/// # Cancel safety
/// Dropped, some letters are published. Importing again publishes them again, under the same ids.
pub async fn import(
    path: &Path,
    publisher: DynPublisher,
    options: &Import,
    mut progress: impl FnMut(&Imported),
) -> Result<Imported, AdminError> {
    let mut report = Imported { lines: check(path, &options.to)?, imported: 0 };
    let mut lines = letters(path)?.skip(usize::try_from(options.skip).unwrap_or(usize::MAX));
    loop {
        let done = options.skip + report.imported;
        let batch: Vec<Message> = lines.by_ref().take(BATCH).collect::<Result<_, _>>()?;
        if batch.is_empty() {
            return Ok(report);
        }
        let publishes = batch.into_iter().map(|message| {
            publish(&publisher, Outgoing::copy(options.to.clone(), message), options.patience)
        });
        for (index, answer) in join_all(publishes).await.into_iter().enumerate() {
            answer.map_err(|error| {
                let line = done + index as u64;
                let skip = if error.is_transient() {
                    format!("go on with --skip {line}")
                } else {
                    format!("--skip {} goes on without it", line + 1)
                };
                let message = format!("line {} was not published to `{}`; {skip}", line + 1, options.to);
                AdminError::new(message).with_source(error)
            })?;
            report.imported += 1;
        }
        progress(&report);
        if options.stop.is_cancelled() {
            let line = options.skip + report.imported;
            return Err(AdminError::new(format!("stopped; go on with --skip {line}")));
        }
    }
}

/// A dead letter that is published to its origin as it is would be acked there as a duplicate, and be gone.
fn check(path: &Path, to: &str) -> Result<u64, AdminError> {
    let mut count = 0;
    for letter in letters(path)? {
        count += 1;
        let letter = DeadLetter::new(Place { scope: 0, seq: count }, letter?);
        if letter.origin() == Some(to) {
            return Err(AdminError::usage(format!(
                "line {count} came from `{to}`: imported there it would be taken for a duplicate. Import into a topic or \
                 queue of dead letters, and redrive from there"
            )));
        }
    }
    Ok(count)
}

fn letters(path: &Path) -> Result<impl Iterator<Item = Result<Message, AdminError>>, AdminError> {
    let cannot = |error| AdminError::new(format!("{} cannot be read", path.display())).with_source(error);
    let lines: Lines<_> = BufReader::new(File::open(path).map_err(cannot)?).lines();
    let path = path.display().to_string();
    Ok(lines.enumerate().map(move |(index, line)| {
        let wrong = |error: Box<dyn std::error::Error + Send + Sync>| {
            AdminError::new(format!("{path}, line {}, is no exported letter", index + 1)).with_source(error)
        };
        let line = line.map_err(|error| wrong(error.into()))?;
        let letter: ExportedLetter = serde_json::from_str(&line).map_err(|error| wrong(error.into()))?;
        letter.message().map_err(|error| wrong(error.into()))
    }))
}
