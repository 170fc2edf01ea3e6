//! Tables that fit the terminal.

use std::{borrow::Cow, time::SystemTime};

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use consumer_admin::{Group, InboxRecord, InboxStats, OutboxRow, OutboxStats, Stats};
use consumer_core::{dead_letters::DeadLetter, message::wire};

use super::text::{cut, plain};

/// Characters of a text that are kept of a row: no terminal is as wide.
const KEPT: usize = 160;

/// The widths of the columns of a list but the last, which has what is left.
const WIDTHS: [usize; 6] = [8, 20, 18, 8, 20, 36];

/// The head of a list.
pub(crate) fn list_head() -> String {
    row(["PLACE", "FAILED", "REASON", "ATTEMPTS", "CONSUMER", "ID", "ERROR"].map(Cow::from))
}

/// A line of a list: of a letter no more than that is kept.
pub(crate) fn list_row(letter: &DeadLetter) -> String {
    let text = |text: Option<&str>| Cow::from(plain(text.unwrap_or("-")).into_owned());
    let number = |number: Option<u32>| number.map_or_else(|| "-".into(), |number| number.to_string().into());
    row([
        letter.place().to_string().into(),
        letter.last_failed_at().map_or_else(|| "-".into(), |at| seconds(at).into()),
        text(Some(letter.reason())),
        number(letter.attempts()),
        text(letter.consumer()),
        text(letter.id().as_deref()),
        text(letter.error().as_deref()),
    ])
}

/// On a terminal a line has one line; elsewhere nothing is cut.
fn row(cells: [Cow<'_, str>; 7]) -> String {
    let terminal = Table::new().width().map(usize::from);
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(WIDTHS) {
        let shown = if terminal.is_some() { cut(cell, width) } else { Cow::from(&**cell) };
        line.push_str(&format!("{shown:width$}  "));
    }
    let left = terminal.map_or(KEPT, |all| all.saturating_sub(line.chars().count()).max(20));
    line.push_str(&cut(&cells[6], left));
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// To the second: a list is for finding one's way.
fn seconds(at: SystemTime) -> String {
    let text = wire::format_time(at);
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table
}

/// Lines of one height each; `numbers` are to the right, `whole` are not cut.
fn lines<const N: usize>(
    header: [&str; N],
    numbers: &[usize],
    whole: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = table(&header);
    for cells in rows {
        let mut row = comfy_table::Row::from(cells);
        row.max_height(1);
        table.add_row(row);
    }
    for at in numbers.iter().chain(whole) {
        if let Some(column) = table.column_mut(*at) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    for at in numbers {
        if let Some(column) = table.column_mut(*at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n", trimmed(&table))
}

fn text(text: &str) -> String {
    cut(&plain(text), KEPT).into_owned()
}

fn key(key: Option<&[u8]>) -> String {
    key.map_or_else(|| "-".to_owned(), |key| text(&String::from_utf8_lossy(key)))
}

pub(crate) fn stats(stats: &Stats) -> String {
    let time = |at: Option<SystemTime>| at.map_or_else(|| "-".to_owned(), seconds);
    let rows =
        stats.groups().into_iter().map(|Group { reason, error, consumer, count, first, last, .. }| {
            [count.to_string(), text(&reason), text(&consumer), time(first), time(last), text(&error)]
        });
    let header = ["COUNT", "REASON", "CONSUMER", "FIRST", "LAST", "ERROR"];
    format!("{}{} in all\n", lines(header, &[0], &[1, 3, 4], rows), stats.total())
}

pub(crate) fn outbox_stats(stats: &OutboxStats) -> String {
    let lag = &stats.lag;
    let oldest = humantime::format_duration(std::time::Duration::from_secs(lag.oldest.as_secs()));
    let mut out = match lag.waiting {
        0 => "nothing is waiting".to_owned(),
        waiting => format!("{waiting} waiting, the oldest for {oldest}"),
    };
    out.push_str(&format!("; {} held, {} quarantined\n", lag.held, lag.quarantined));
    if !stats.rows.is_empty() {
        let rows =
            stats.rows.iter().map(|it| [it.count.to_string(), it.state.to_string(), text(&it.destination)]);
        out.push_str(&format!("\n{}", lines(["COUNT", "STATE", "DESTINATION"], &[0], &[1], rows)));
    }
    if !stats.errors.is_empty() {
        let rows =
            stats.errors.iter().map(|it| [it.count.to_string(), text(&it.destination), text(&it.error)]);
        out.push_str(&format!("\n{}", lines(["COUNT", "DESTINATION", "ERROR"], &[0], &[], rows)));
    }
    out
}

pub(crate) fn outbox(rows: &[OutboxRow]) -> String {
    let rows = rows.iter().map(|row| {
        [
            row.id.to_string(),
            row.state.to_string(),
            seconds(row.created_at),
            text(&row.destination),
            key(row.key.as_deref()),
            text(&row.message_id),
            row.attempts.to_string(),
            text(row.error.as_deref().unwrap_or("-")),
        ]
    });
    let header = ["ROW", "STATE", "WRITTEN", "DESTINATION", "KEY", "ID", "ATTEMPTS", "ERROR"];
    lines(header, &[0, 6], &[1], rows)
}

pub(crate) fn inbox_stats(stats: &[InboxStats]) -> String {
    let rows = stats
        .iter()
        .map(|it| [it.count.to_string(), seconds(it.oldest), seconds(it.newest), text(&it.consumer)]);
    lines(["COUNT", "OLDEST", "NEWEST", "CONSUMER"], &[0], &[1, 2], rows)
}

pub(crate) fn inbox(records: &[InboxRecord]) -> String {
    let rows = records.iter().map(|it| [seconds(it.recorded_at), text(&it.consumer), key(Some(&it.key))]);
    lines(["RECORDED", "CONSUMER", "KEY"], &[], &[0], rows)
}

fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
