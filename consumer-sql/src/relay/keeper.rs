//! Looks after the table: what is due again, the history, the lag.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    session::Session,
    worker::{Shared, within},
};
use crate::{Database, SqlError};

/// How often the lag is measured: it counts rows.
const LAG: Duration = Duration::from_secs(15);
const ROUND: Duration = Duration::from_millis(500);

/// Until nothing is left, where that was asked for; else for ever.
pub(super) async fn run<DB: Database, P>(shared: &Shared<DB, P>, session: DB::Session) {
    let mut session = Some(session);
    let mut measured = None;
    loop {
        match round(shared, &mut session, &mut measured).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                // The workers say it loudly.
                tracing::debug!(error = %SqlError::driver("the outbox cannot be looked after", error), "trying again");
                session = None;
            }
        }
        let round = if shared.config.until_empty { shared.config.poll.min(ROUND) } else { ROUND };
        sleep(round).await;
    }
}

/// Whether this was all.
async fn round<DB: Database, P>(
    shared: &Shared<DB, P>,
    session: &mut Option<DB::Session>,
    measured: &mut Option<Instant>,
) -> Result<bool, sqlx::Error> {
    let config = &shared.config;
    let session = match session {
        Some(session) => session,
        None => session.insert(within(DB::Session::open(&shared.pool, &config.tables)).await?),
    };
    while within(session.retry_due()).await? > 0 {
        shared.wake.send_modify(|times| *times += 1);
    }
    if let Some(keep) = config.history {
        while within(session.forget(keep)).await? > 0 {}
    }
    if measured.is_none_or(|at| at.elapsed() >= LAG) {
        *measured = Some(Instant::now());
        shared.meter.lag(&within(session.lag()).await?);
    }
    Ok(config.until_empty && !within(session.has_work()).await?)
}
