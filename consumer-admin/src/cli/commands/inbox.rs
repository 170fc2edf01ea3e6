//! The inbox.

use std::process::ExitCode;

use consumer_admin::{AdminError, InboxPurge};
use serde_json::json;

use super::{
    super::{
        args::{self, Output},
        ask, json, pager, table,
    },
    LISTED, UNASKED, note_the_end,
};

pub(super) async fn run(command: args::Inbox) -> Result<ExitCode, AdminError> {
    match command {
        args::Inbox::Stats(options) => stats(options).await,
        args::Inbox::List(options) => list(options).await,
        args::Inbox::Purge(options) => purge(options).await,
    }
}

async fn stats(options: args::InboxStats) -> Result<ExitCode, AdminError> {
    let stats = options.database.open()?.inbox_stats().await?;
    match options.output.output {
        Output::Table if stats.is_empty() => pager::out("no records\n")?,
        Output::Table => pager::out(&table::inbox_stats(&stats))?,
        Output::Json => stats.iter().try_for_each(|stats| json::print(&json::inbox_stats(stats)))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(options: args::InboxList) -> Result<ExitCode, AdminError> {
    let database = options.database.open()?;
    let limit = options.limit.limit.unwrap_or(LISTED);
    let key = options.key.as_deref().map(str::as_bytes);
    let records = database.inbox_list(options.consumer.as_deref(), key, limit).await?;
    match options.output.output {
        Output::Table if records.is_empty() => pager::out("no records\n")?,
        Output::Table => pager::print(&table::inbox(&records), options.pager.no_pager)?,
        Output::Json => records.iter().try_for_each(|record| json::print(&json::inbox_record(record)))?,
    }
    note_the_end(records.len(), limit);
    Ok(ExitCode::SUCCESS)
}

async fn purge(options: args::InboxPurge) -> Result<ExitCode, AdminError> {
    let database = options.database.open()?;
    let what = match (options.key, options.older_than) {
        (Some(key), _) => InboxPurge::Key(key.into_bytes()),
        (None, Some(age)) => InboxPurge::OlderThan(age),
        (None, None) => return Err(AdminError::usage("say --older-than or --key")),
    };
    if !options.yes {
        let count = database.inbox_count(&options.consumer, &what).await?;
        let question =
            format!("{count} records will be deleted: their messages can take effect again. Go on?");
        if count > UNASKED && !ask::go_on(&question)? {
            return Ok(ExitCode::from(1));
        }
    }
    let purged = database.inbox_purge(&options.consumer, &what).await?;
    match options.output.output {
        Output::Table => pager::out(&format!("{purged} records purged\n"))?,
        Output::Json => json::print(&json!({ "purged": purged }))?,
    }
    Ok(ExitCode::SUCCESS)
}
