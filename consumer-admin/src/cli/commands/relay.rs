//! The relay, and the tables that it works on.

use std::process::ExitCode;

use consumer_admin::AdminError;
use serde_json::json;

use super::{
    super::{
        args::{self, Output},
        json, pager,
    },
    interrupted,
};

pub(super) async fn run(options: args::Relay) -> Result<ExitCode, AdminError> {
    let database = options.database.open()?;
    let broker = options.broker.open()?;
    let stop = interrupted();
    let report = database.relay(broker.publisher()?, options.options(), stop.cancelled()).await?;
    match options.output.output {
        Output::Table => pager::out(&format!("{report}\n"))?,
        Output::Json => json::print(&json!({
            "published": report.published,
            "failed": report.failed,
            "quarantined": report.quarantined,
        }))?,
    }
    Ok(ExitCode::from(u8::from(options.until_empty && report.quarantined > 0)))
}

pub(super) async fn migrate(options: args::Migrate) -> Result<ExitCode, AdminError> {
    let database = options.database.open()?;
    if options.print {
        if let Some(schema) = options.database.schema() {
            pager::out(&format!("CREATE SCHEMA IF NOT EXISTS {schema};\n\n"))?;
        }
        for (version, title, sql) in database.migrations()? {
            pager::out(&format!("-- {version} {title}\n\n{}\n\n", sql.trim_end()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    database.migrate().await?;
    pager::out("the tables are of this version\n")?;
    Ok(ExitCode::SUCCESS)
}
