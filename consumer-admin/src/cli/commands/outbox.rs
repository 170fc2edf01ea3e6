//! The outbox.

use std::process::ExitCode;

use consumer_admin::{AdminError, OutboxChange, OutboxPurge, OutboxState};
use serde_json::json;

use super::{
    super::{
        args::{self, Output, State},
        ask, json, pager, show, table,
    },
    LISTED, UNASKED, note_the_end,
};

pub(super) async fn run(command: args::Outbox) -> Result<ExitCode, AdminError> {
    match command {
        args::Outbox::Stats(options) => stats(options).await,
        args::Outbox::List(options) => list(options).await,
        args::Outbox::Show(options) => show_rows(options).await,
        args::Outbox::Requeue(options) => requeue(options).await,
        args::Outbox::Purge(options) => purge(options).await,
    }
}

async fn stats(options: args::OutboxStats) -> Result<ExitCode, AdminError> {
    let stats = options.database.open()?.outbox_stats().await?;
    match options.output.output {
        Output::Table => pager::out(&table::outbox_stats(&stats))?,
        Output::Json => json::outbox_stats(&stats).iter().try_for_each(json::print)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(options: args::OutboxList) -> Result<ExitCode, AdminError> {
    let database = options.database.open()?;
    let limit = options.limit.limit.unwrap_or(LISTED);
    let rows = database.outbox_list(&options.which.filter(), limit).await?;
    match options.output.output {
        Output::Table if rows.is_empty() => pager::out("no rows\n")?,
        Output::Table => pager::print(&table::outbox(&rows), options.pager.no_pager)?,
        Output::Json => rows.iter().try_for_each(|row| json::print(&json::outbox_row(row)))?,
    }
    note_the_end(rows.len(), limit);
    Ok(ExitCode::SUCCESS)
}

async fn show_rows(options: args::OutboxShow) -> Result<ExitCode, AdminError> {
    let database = options.database.open()?;
    let rows = database.outbox_list(&options.which.filter(), options.limit).await?;
    if rows.is_empty() {
        return Err(AdminError::new("no row is like that"));
    }
    for row in rows {
        // What was published meanwhile is gone.
        let Some(message) = database.outbox_show(row.id).await? else { continue };
        match options.output.output {
            Output::Table => pager::out(&format!("{}\n", show::outbox_message(&message)))?,
            Output::Json => json::print(&json::outbox_message(&message))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn requeue(options: args::OutboxRequeue) -> Result<ExitCode, AdminError> {
    let database = options.database.open()?;
    let filter = options.which.filter();
    let failed = match options.which.state {
        None => vec![OutboxState::Quarantined, OutboxState::Retrying],
        Some(state @ (State::Quarantined | State::Retrying)) => vec![state.state()],
        Some(_) => {
            return Err(AdminError::usage(
                "only rows that the broker has refused are requeued: those with --state quarantined or retrying",
            ));
        }
    };
    if !options.yes {
        let mut count = 0;
        for state in failed {
            count += database.outbox_count(&filter.clone().state(state)).await?;
        }
        if count > UNASKED && !ask::go_on(&format!("{count} rows will be tried again. Go on?"))? {
            return Ok(ExitCode::from(1));
        }
    }
    let change = database.outbox_requeue(&filter).await?;
    report(change, "requeued", options.output.output)
}

async fn purge(options: args::OutboxPurge) -> Result<ExitCode, AdminError> {
    let database = options.database.open()?;
    let what = what(&options)?;
    let mut filter = options.which.filter();
    if filter.is_all() && options.older_than.is_none() && !options.all {
        return Err(AdminError::usage("nothing says which rows: name some, as by --key, or say --all"));
    }
    if what == OutboxPurge::Quarantined {
        filter = filter.state(OutboxState::Quarantined);
    }
    if !options.yes {
        let count = database.outbox_purgeable(&filter, what).await?;
        let what = if matches!(what, OutboxPurge::Published(_)) {
            "published rows will be deleted"
        } else {
            "rows will be deleted, and their messages never be published"
        };
        if count > UNASKED && !ask::go_on(&format!("{count} {what}. Go on?"))? {
            return Ok(ExitCode::from(1));
        }
    }
    let change = database.outbox_purge(&filter, what).await?;
    report(change, "purged", options.output.output)
}

fn what(options: &args::OutboxPurge) -> Result<OutboxPurge, AdminError> {
    let wrong = |what: &str| Err(AdminError::usage(what));
    match (options.which.state, options.older_than) {
        (Some(State::Published), Some(_)) if options.unpublished => {
            wrong("--unpublished and --state published exclude each other")
        }
        (Some(State::Published), Some(age)) => Ok(OutboxPurge::Published(age)),
        (Some(State::Published), None) => wrong("--state published wants --older-than, as 7d"),
        (_, Some(_)) => wrong("--older-than is for --state published alone"),
        (_, None) if options.unpublished => Ok(OutboxPurge::Unpublished),
        (None | Some(State::Quarantined), None) => Ok(OutboxPurge::Quarantined),
        (Some(State::Waiting | State::Held | State::Retrying), None) => {
            wrong("these rows would still be published: say --unpublished if their messages shall be lost")
        }
    }
}

fn report(change: OutboxChange, done: &str, output: Output) -> Result<ExitCode, AdminError> {
    match output {
        Output::Table => {
            pager::out(&format!("{} rows {done}, {} freed behind them\n", change.rows, change.freed))?;
        }
        Output::Json => json::print(&json!({ done: change.rows, "freed": change.freed }))?,
    }
    Ok(ExitCode::SUCCESS)
}
