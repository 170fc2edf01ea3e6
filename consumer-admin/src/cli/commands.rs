//! What each command does.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use consumer_admin::{
    AdminError, Broker, Discard, Filter, Import, Redrive, Redriven, Stats, discard, export, import, redrive,
};
use consumer_core::{
    dead_letters::{DeadLetter, DeadLetters, Letters},
    message::wire,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    args::{self, Cli, Command, Output},
    ask, json, pager, progress, show, table,
    text::plain,
};

/// More than so many are not redriven without a question.
const UNASKED: u64 = 100;

pub(crate) async fn run(cli: Cli) -> Result<ExitCode, AdminError> {
    let Command::DeadLetters(command) = cli.command;
    match command {
        args::DeadLetters::List(options) => list(options).await,
        args::DeadLetters::Show(options) => show_letters(options).await,
        args::DeadLetters::Stats(options) => stats(options).await,
        args::DeadLetters::Redrive(options) => redrive_letters(options).await,
        args::DeadLetters::Discard(options) => discard_letters(options).await,
        args::DeadLetters::Export(options) => export_letters(options).await,
        args::DeadLetters::Import(options) => import_letters(options).await,
    }
}

async fn open(letters: &dyn DeadLetters) -> Result<Box<dyn Letters>, AdminError> {
    let letters = letters.open().await?;
    if let Some(notice) = letters.notice() {
        eprintln!("note: {}", plain(notice));
    }
    Ok(letters)
}

/// Reads what fits, up to `limit`, and gives everything back.
async fn read(
    from: &args::From,
    filter: &Filter,
    limit: Option<u64>,
    mut each: impl FnMut(&DeadLetter) -> Result<(), AdminError>,
) -> Result<u64, AdminError> {
    let broker = Broker::from_url(&*from.broker)?;
    let letters = broker.dead_letters(&from.name)?;
    let mut letters = open(&*letters).await?;
    let bar = progress::bar(letters.expected());
    let mut count = 0;
    let mut outcome = Ok(());
    while limit.is_none_or(|limit| count < limit)
        && let Some(letter) = letters.next().await?
    {
        bar.inc(1);
        if filter.fits(&letter) {
            count += 1;
            outcome = each(&letter);
            if outcome.is_err() {
                break;
            }
        }
    }
    bar.finish_and_clear();
    letters.close().await?;
    outcome.map(|()| count)
}

async fn list(options: args::List) -> Result<ExitCode, AdminError> {
    let mut rows = Vec::new();
    let count = read(&options.from, &options.which.filter(), options.limit, |letter| {
        match options.output {
            Output::Json => json::print(&json::letter(letter))?,
            Output::Table => rows.push(table::Row::new(letter)),
        }
        Ok(())
    })
    .await?;
    if options.output == Output::Table {
        let text = match count {
            0 => "no dead letters\n".to_owned(),
            _ => table::list(rows),
        };
        pager::print(&text, options.no_pager)
            .map_err(|error| AdminError::new("stdout").with_source(error))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_letters(options: args::Show) -> Result<ExitCode, AdminError> {
    let count = read(&options.from, &options.which.filter(), Some(options.limit), |letter| {
        match options.output {
            Output::Table => println!("{}", show::letter(letter)),
            Output::Json => {
                let whole = serde_json::to_value(consumer_admin::ExportedLetter::new(letter));
                json::print(&whole.map_err(|error| AdminError::new("the letter").with_source(error))?)?;
            }
        }
        Ok(())
    })
    .await?;
    if count == 0 {
        return Err(AdminError::new("no dead letter is like that"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn stats(options: args::Stats) -> Result<ExitCode, AdminError> {
    let mut stats = Stats::default();
    read(&options.from, &options.which.filter(), None, |letter| {
        stats.add(letter);
        Ok(())
    })
    .await?;
    match options.output {
        Output::Table => print!("{}", table::stats(&stats)),
        Output::Json => stats.groups().iter().try_for_each(|group| json::print(&json::group(group)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Cancelled by the first SIGINT or SIGTERM; the second ends the process.
fn interrupted() -> CancellationToken {
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        consumer_core::runtime::signal::terminate().await;
        eprintln!("stopping: what is on its way is finished first; again to stop at once");
        stop.cancel();
        consumer_core::runtime::signal::terminate().await;
        std::process::exit(1);
    });
    token
}

async fn redrive_letters(options: args::Redrive) -> Result<ExitCode, AdminError> {
    let filter = options.which.filter();
    let broker = Broker::from_url(&*options.from.broker)?;
    if options.to.as_deref() == Some(&*options.from.name) {
        return Err(AdminError::usage("--to names the dead letters themselves: they would never end"));
    }
    if !options.yes && !options.dry_run && options.limit.is_none_or(|limit| limit > UNASKED) {
        let limit = options.limit.unwrap_or(u64::MAX);
        let count = read(&options.from, &filter, Some(limit), |_| Ok(())).await?;
        if count > UNASKED && !ask::go_on(&format!("{count} dead letters will be sent back. Go on?"))? {
            return Ok(ExitCode::from(1));
        }
    }
    let mut how = Redrive::default().system(broker.system()).dry_run(options.dry_run).stop(interrupted());
    if let Some(to) = &options.to {
        how = how.to(&**to);
    }
    if let Some(limit) = options.limit {
        how = how.limit(limit);
    }
    if let Some(rate) = options.rate {
        how = how.rate(rate);
    }
    let letters = open(&*broker.dead_letters(&options.from.name)?).await?;
    let bar = progress::bar(letters.expected());
    let report = redrive(letters, broker.publisher()?, &filter, &how, |report| {
        bar.set_position(report.read);
        bar.set_message(format!("{} redriven", report.redriven));
    })
    .await;
    bar.finish_and_clear();
    report_redrive(&report?, &options)
}

fn report_redrive(report: &Redriven, options: &args::Redrive) -> Result<ExitCode, AdminError> {
    for error in &report.errors {
        eprintln!("not redriven: {}", plain(error));
    }
    match options.output {
        Output::Json => json::print(&json!({
            "read": report.read,
            "matched": report.matched,
            "redriven": report.redriven,
            "failed": report.failed,
            "targets": report.targets,
            "dry_run": options.dry_run,
            "stopped": report.is_stopped,
        }))?,
        Output::Table => {
            let done = if options.dry_run { "would be redriven" } else { "redriven" };
            println!("{} of {} read: {done}", report.redriven, report.read);
            for (target, count) in &report.targets {
                println!("  {count} to {}", plain(target));
            }
            if report.failed > 0 {
                println!("{} could not go back and are still there", report.failed);
            }
            if report.is_stopped {
                println!("stopped before the end: the same command goes on with the rest");
            }
        }
    }
    Ok(ExitCode::from(u8::from(report.failed > 0 || report.is_stopped)))
}

fn create(path: &PathBuf) -> Result<File, AdminError> {
    OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| {
        AdminError::new(format!("{} cannot be created anew", path.display())).with_source(error)
    })
}

async fn discard_letters(options: args::Discard) -> Result<ExitCode, AdminError> {
    let filter = options.which.filter();
    let broker = Broker::from_url(&*options.from.broker)?;
    if filter.is_all() && !options.all {
        return Err(AdminError::usage("nothing says which letters: name some, as by --reason, or say --all"));
    }
    let from = &options.from.name;
    if !options.yes {
        let count = read(&options.from, &filter, options.limit, |_| Ok(())).await?;
        if count == 0 {
            println!("no dead letter is like that");
            return Ok(ExitCode::SUCCESS);
        }
        if !ask::go_on(&format!("{count} dead letters will be thrown away. Go on?"))? {
            return Ok(ExitCode::from(1));
        }
    }
    let stamp = wire::format_time(SystemTime::now()).replace(':', "");
    let legal = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = format!("discarded-{from}-{stamp}.jsonl").chars().map(legal).collect();
    let path = options.file.clone().unwrap_or_else(|| name.into());
    let mut how = Discard::because(&*options.because).stop(interrupted());
    if let Some(limit) = options.limit {
        how = how.limit(limit);
    }
    let letters = open(&*broker.dead_letters(from)?).await?;
    let file = create(&path)?;
    let bar = progress::bar(letters.expected());
    let report = discard(letters, &filter, &how, file, |report| bar.set_position(report.read)).await;
    bar.finish_and_clear();
    let report = report?;
    match options.output {
        Output::Json => json::print(&json!({
            "read": report.read,
            "discarded": report.discarded,
            "file": path.display().to_string(),
            "stopped": report.is_stopped,
        }))?,
        Output::Table => println!("{} thrown away; they are in {}", report.discarded, path.display()),
    }
    Ok(ExitCode::from(u8::from(report.is_stopped)))
}

async fn export_letters(options: args::Export) -> Result<ExitCode, AdminError> {
    let broker = Broker::from_url(&*options.from.broker)?;
    let letters = open(&*broker.dead_letters(&options.from.name)?).await?;
    let mut to: Box<dyn Write + Send> = match &options.file {
        Some(path) => Box::new(BufWriter::new(create(path)?)),
        None => Box::new(BufWriter::new(std::io::stdout())),
    };
    let count = export(letters, &options.which.filter(), options.limit, &mut *to).await?;
    eprintln!("{count} exported");
    Ok(ExitCode::SUCCESS)
}

async fn import_letters(options: args::Import) -> Result<ExitCode, AdminError> {
    let broker = Broker::from_url(&*options.broker)?;
    let how = Import::to(&*options.to).skip(options.skip);
    let bar = progress::bar(None);
    let report = import(&options.file, broker.publisher()?, &how, |report| {
        bar.set_position(report.imported);
    })
    .await;
    bar.finish_and_clear();
    let report = report?;
    match options.output {
        Output::Json => json::print(&json!({ "lines": report.lines, "imported": report.imported }))?,
        Output::Table => println!("{} of {} lines imported", report.imported, report.lines),
    }
    Ok(ExitCode::SUCCESS)
}
