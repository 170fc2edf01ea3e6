//! Throwing dead letters away, on paper first.

use std::{fs::File, io::BufWriter, io::Write, time::SystemTime};

use consumer_core::dead_letters::{DeadLetter, Letters, Settled};
use futures_util::future::try_join_all;
use tokio_util::sync::CancellationToken;

use super::exported::ExportedLetter;
use crate::{AdminError, Filter};

/// Letters written and synced at once.
const BATCH: usize = 500;

/// How to discard.
#[derive(Debug, Clone)]
#[must_use]
pub struct Discard {
    because: String,
    limit: Option<u64>,
    stop: CancellationToken,
}

impl Discard {
    /// For this reason, which is written beside each letter.
    pub fn because(reason: impl Into<String>) -> Self {
        Self { because: reason.into(), limit: None, stop: CancellationToken::new() }
    }

    /// At most so many.
    pub fn limit(mut self, letters: u64) -> Self {
        self.limit = Some(letters);
        self
    }

    /// When this is cancelled, no further letter is taken.
    pub fn stop(mut self, token: CancellationToken) -> Self {
        self.stop = token;
        self
    }
}

/// What a discard did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Discarded {
    /// Letters that were read.
    pub read: u64,
    /// Written to the file and settled.
    pub discarded: u64,
    /// It was stopped before it had read all.
    pub is_stopped: bool,
}

/// Throws away the letters that fit. Each is in `file` and the file on the disk ([`File::sync_data`]) before it is settled.
///
/// # Errors
/// When the letters cannot be read or settled, or the file cannot be written. What was not settled is still there, and may
/// be in the file as well. Starting again, with another file, is safe.
///
/// # Cancel safety
/// Dropped, some letters may be in the file and not settled; none is settled and not in the file.
pub async fn discard(
    mut letters: Box<dyn Letters>,
    filter: &Filter,
    options: &Discard,
    file: File,
    mut progress: impl FnMut(&Discarded),
) -> Result<Discarded, AdminError> {
    let mut report = Discarded::default();
    let mut file = BufWriter::new(file);
    let work = async {
        loop {
            let batch = take(&mut *letters, filter, options, &mut report).await?;
            let Some(batch) = batch else { return Ok(()) };
            if report.discarded == 0 {
                letters.prepare().await?;
            }
            for letter in &batch {
                let line = ExportedLetter::new(letter).discarded(&options.because, SystemTime::now());
                line.write_to(&mut file)?;
            }
            let synced = file.flush().and_then(|()| file.get_ref().sync_data());
            synced.map_err(|error| AdminError::new("the letters cannot be written").with_source(error))?;
            let settled: Vec<_> =
                batch.iter().map(|letter| letters.settle(letter.place(), Settled::Discarded)).collect();
            try_join_all(settled).await.map_err(|error| {
                AdminError::new("a letter is in the file, but could not be settled").with_source(error)
            })?;
            report.discarded += batch.len() as u64;
            progress(&report);
        }
    };
    let outcome: Result<(), AdminError> = work.await;
    let closed = letters.close().await;
    outcome?;
    closed.map_err(|error| {
        AdminError::new("letters that are in the file may not be settled: they may be there again")
            .with_source(error)
    })?;
    Ok(report)
}

/// The next letters that fit; `None` at the end.
async fn take(
    letters: &mut dyn Letters,
    filter: &Filter,
    options: &Discard,
    report: &mut Discarded,
) -> Result<Option<Vec<DeadLetter>>, AdminError> {
    let mut batch = Vec::new();
    while batch.len() < BATCH
        && options.limit.is_none_or(|limit| report.discarded + (batch.len() as u64) < limit)
    {
        let letter = tokio::select! {
            biased;
            () = options.stop.cancelled() => {
                report.is_stopped = true;
                None
            }
            letter = letters.next() => letter?,
        };
        let Some(letter) = letter else { break };
        report.read += 1;
        if filter.fits(&letter) {
            batch.push(letter);
        }
    }
    Ok((!batch.is_empty()).then_some(batch))
}
