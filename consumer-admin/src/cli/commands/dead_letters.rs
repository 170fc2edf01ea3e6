//! Dead letters.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use consumer_admin::{
    AdminError, Broker, Discard, Discarded, Filter, Import, Redrive, Redriven, Stats, discard, export,
    import, redrive,
};
use consumer_core::{
    dead_letters::{DeadLetter, DeadLetters, Letters},
    message::wire,
};
use serde_json::json;

use super::{
    super::{
        args::{self, Output},
        ask, json, pager, progress, show, table,
        text::plain,
    },
    UNASKED, interrupted,
};

pub(super) async fn run(command: args::DeadLetters) -> Result<ExitCode, AdminError> {
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

/// Reads what fits, up to `limit`, and gives everything back. How many fit.
async fn read(
    from: &args::From,
    filter: &Filter,
    limit: Option<u64>,
    mut each: impl FnMut(&DeadLetter) -> Result<(), AdminError>,
) -> Result<u64, AdminError> {
    let broker = from.broker.open()?;
    let mut letters = open(&*broker.dead_letters(&from.name)?).await?;
    let expected = letters.expected();
    let bar = progress::bar(expected);
    let (mut count, mut seen, mut is_all) = (0, 0, false);
    let mut outcome = Ok(());
    while outcome.is_ok() && limit.is_none_or(|limit| count < limit) {
        let Some(letter) = letters.next().await? else {
            is_all = true;
            break;
        };
        seen += 1;
        bar.inc(1);
        if filter.fits(&letter) {
            count += 1;
            outcome = each(&letter);
        }
    }
    bar.finish_and_clear();
    let is_shared = letters.notice().is_some();
    letters.close().await?;
    if let Some(expected) = expected.filter(|expected| is_all && is_shared && *expected > seen) {
        eprintln!(
            "note: {} letters fewer than were there: others hold them, or they have gone",
            expected - seen
        );
    }
    outcome.map(|()| count)
}

async fn list(options: args::List) -> Result<ExitCode, AdminError> {
    // While it is paged nothing is held any more, so the lines wait here; without a pager they need not.
    let is_paged = !options.pager.no_pager && std::io::stdout().is_terminal();
    let mut lines = table::list_head();
    let count = read(&options.from, &options.which.filter(), options.limit.limit, |letter| {
        if options.output.output == Output::Json {
            return json::print(&json::letter(letter));
        }
        lines.push_str(&table::list_row(letter));
        if is_paged { Ok(()) } else { pager::out(&std::mem::take(&mut lines)) }
    })
    .await?;
    match options.output.output {
        Output::Table if count == 0 => pager::out("no dead letters\n")?,
        Output::Table => pager::print(&lines, options.pager.no_pager)?,
        Output::Json => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_letters(options: args::Show) -> Result<ExitCode, AdminError> {
    let count = read(&options.from, &options.which.filter(), Some(options.limit), |letter| {
        match options.output.output {
            Output::Table => pager::out(&format!("{}\n", show::letter(letter))),
            Output::Json => {
                let whole = serde_json::to_value(consumer_admin::ExportedLetter::new(letter));
                json::print(&whole.map_err(|error| AdminError::new("the letter").with_source(error))?)
            }
        }
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
    match options.output.output {
        Output::Table => pager::out(&table::stats(&stats))?,
        Output::Json => stats.groups().iter().try_for_each(|group| json::print(&json::group(group)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How long letters are held in one reading of a queue: well below RabbitMQ's default `consumer_timeout` of 30 min.
const HOLD: Duration = Duration::from_secs(600);

/// On a queue a place is gone with the reading that gave it.
fn refuse_place(broker: &Broker, which: &args::Which) -> Result<(), AdminError> {
    if which.place.is_some() && broker.system() == "amqp" {
        return Err(AdminError::usage(
            "--place means nothing on RabbitMQ once the list is over: another letter may lie there. Name it by --id",
        ));
    }
    Ok(())
}

async fn redrive_letters(options: args::Redrive) -> Result<ExitCode, AdminError> {
    let filter = options.which.filter();
    let broker = options.from.broker.open()?;
    refuse_place(&broker, &options.which)?;
    if options.to.as_deref() == Some(&*options.from.name) {
        return Err(AdminError::usage("--to names the dead letters themselves: they would never end"));
    }
    let mut limit = options.limit.limit;
    if !options.yes && !options.dry_run && limit.is_none_or(|limit| limit > UNASKED) {
        let count = read(&options.from, &filter, limit, |_| Ok(())).await?;
        if count > UNASKED && !ask::go_on(&format!("{count} dead letters will be sent back. Go on?"))? {
            return Ok(ExitCode::from(1));
        }
        // No more than was said, whatever comes meanwhile.
        limit = Some(count);
    }
    let stop = interrupted();
    let publisher = broker.publisher()?;
    let mut done = Redriven::default();
    loop {
        let mut how = Redrive::default().system(broker.system()).dry_run(options.dry_run).stop(stop.clone());
        if broker.system() == "amqp" && !options.dry_run {
            how = how.hold(HOLD);
        }
        if let Some(to) = &options.to {
            how = how.to(&**to);
        }
        if let Some(limit) = limit {
            how = how.limit(limit.saturating_sub(done.redriven));
        }
        if let Some(rate) = options.rate {
            how = how.rate(rate);
        }
        let letters = open(&*broker.dead_letters(&options.from.name)?).await?;
        let bar = progress::bar(letters.expected());
        let mut last = Redriven::default();
        let outcome = redrive(letters, publisher.clone(), &filter, &how, |report| {
            bar.set_position(report.read);
            bar.set_message(format!("{} redriven", report.redriven));
            last.clone_from(report);
        })
        .await;
        bar.finish_and_clear();
        let report = match outcome {
            Ok(report) => report,
            Err(error) => {
                report_redrive(&last.and_before(done), &options)?;
                return Err(error);
            }
        };
        // Cut off with nothing sent, the next one would not get further.
        let goes_on = report.is_cut && report.redriven > 0;
        done = report.and_before(done);
        if !goes_on {
            break;
        }
    }
    let code = report_redrive(&done, &options)?;
    if options.dry_run {
        for target in done.targets.keys() {
            if !broker.exists(target).await? {
                eprintln!("`{}` does not exist: letters for it could not go back", plain(target));
                return Ok(ExitCode::from(1));
            }
        }
    }
    Ok(code)
}

fn report_redrive(report: &Redriven, options: &args::Redrive) -> Result<ExitCode, AdminError> {
    for error in &report.errors {
        eprintln!("not redriven: {}", plain(error));
    }
    match options.output.output {
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
            let mut text = format!("{} {done}\n", report.redriven);
            for (target, count) in &report.targets {
                text.push_str(&format!("  {count} to {}\n", plain(target)));
            }
            if report.failed > 0 {
                text.push_str(&format!("{} could not go back and are still there\n", report.failed));
            }
            if report.is_stopped || report.is_cut {
                text.push_str("stopped before the end: the same command goes on with the rest\n");
            }
            pager::out(&text)?;
        }
    }
    Ok(ExitCode::from(u8::from(report.failed > 0 || report.is_stopped || report.is_cut)))
}

/// Opens the letters for a file that was made for them before: giving letters back costs a reading of all.
async fn open_for(letters: &dyn DeadLetters, path: &Path) -> Result<Box<dyn Letters>, AdminError> {
    let opened = open(letters).await;
    if opened.is_err() {
        // Nothing is in it yet.
        let _ = std::fs::remove_file(path);
    }
    opened
}

fn create(path: &Path) -> Result<File, AdminError> {
    let cannot =
        |error| AdminError::new(format!("{} cannot be created anew", path.display())).with_source(error);
    let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(cannot)?;
    // The name has to be on the disk as well as the content.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot)?;
    Ok(file)
}

async fn discard_letters(options: args::Discard) -> Result<ExitCode, AdminError> {
    let filter = options.which.filter();
    let broker = options.from.broker.open()?;
    refuse_place(&broker, &options.which)?;
    if filter.is_all() && !options.all {
        return Err(AdminError::usage("nothing says which letters: name some, as by --reason, or say --all"));
    }
    let from = &options.from.name;
    let mut limit = options.limit.limit;
    if !options.yes {
        let count = read(&options.from, &filter, limit, |_| Ok(())).await?;
        if count == 0 {
            pager::out("no dead letter is like that\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        if !ask::go_on(&format!("{count} dead letters will be thrown away. Go on?"))? {
            return Ok(ExitCode::from(1));
        }
        limit = Some(count);
    }
    let stamp = wire::format_time(SystemTime::now()).replace(':', "");
    let legal = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = format!("discarded-{from}-{stamp}.jsonl").chars().map(legal).collect();
    let path: PathBuf = options.file.clone().unwrap_or_else(|| name.into());
    let mut how = Discard::because(&*options.because).stop(interrupted());
    if let Some(limit) = limit {
        how = how.limit(limit);
    }
    let file = create(&path)?;
    let letters = open_for(&*broker.dead_letters(from)?, &path).await?;
    let bar = progress::bar(letters.expected());
    let mut last = Discarded::default();
    let outcome = discard(letters, &filter, &how, file, |report| {
        bar.set_position(report.read);
        last = *report;
    })
    .await;
    bar.finish_and_clear();
    if outcome.is_err() {
        eprintln!("{} were thrown away before that; they are in {}", last.discarded, path.display());
    }
    let report = outcome?;
    match options.output.output {
        Output::Json => json::print(&json!({
            "read": report.read,
            "discarded": report.discarded,
            "file": path.display().to_string(),
            "stopped": report.is_stopped,
        }))?,
        Output::Table => {
            pager::out(&format!("{} thrown away; they are in {}\n", report.discarded, path.display()))?;
        }
    }
    Ok(ExitCode::from(u8::from(report.is_stopped)))
}

async fn export_letters(options: args::Export) -> Result<ExitCode, AdminError> {
    let broker = options.from.broker.open()?;
    let dead_letters = broker.dead_letters(&options.from.name)?;
    let (letters, mut to): (_, Box<dyn Write + Send>) = match &options.file {
        Some(path) => {
            let file = create(path)?;
            (open_for(&*dead_letters, path).await?, Box::new(BufWriter::new(file)))
        }
        None => (open(&*dead_letters).await?, Box::new(BufWriter::new(std::io::stdout()))),
    };
    let count = export(letters, &options.which.filter(), options.limit.limit, &mut *to).await?;
    eprintln!("{count} exported");
    Ok(ExitCode::SUCCESS)
}

async fn import_letters(options: args::Import) -> Result<ExitCode, AdminError> {
    let broker = options.broker.open()?;
    let how = Import::to(&*options.to).skip(options.skip).stop(interrupted());
    let bar = progress::bar(None);
    let report = import(&options.file, broker.publisher()?, &how, |report| {
        bar.set_position(report.imported);
    })
    .await;
    bar.finish_and_clear();
    let report = report?;
    match options.output.output {
        Output::Json => json::print(&json!({ "lines": report.lines, "imported": report.imported }))?,
        Output::Table => pager::out(&format!("{} of {} lines imported\n", report.imported, report.lines))?,
    }
    Ok(ExitCode::SUCCESS)
}
