//! Tables that fit the terminal.

use std::{borrow::Cow, time::SystemTime};

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use consumer_admin::{Group, Stats};
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

pub(crate) fn stats(stats: &Stats) -> String {
    let mut table = table(&["COUNT", "REASON", "CONSUMER", "FIRST", "LAST", "ERROR"]);
    for Group { reason, error, consumer, count, first, last, .. } in stats.groups() {
        let time = |at: Option<SystemTime>| at.map_or_else(|| "-".to_owned(), seconds);
        let text = |text: &str| cut(&plain(text), KEPT).into_owned();
        let mut row = comfy_table::Row::from([
            count.to_string(),
            text(&reason),
            text(&consumer),
            time(first),
            time(last),
            text(&error),
        ]);
        row.max_height(1);
        table.add_row(row);
    }
    for fixed in [0, 1, 3, 4] {
        if let Some(column) = table.column_mut(fixed) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    if let Some(column) = table.column_mut(0) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n{} in all\n", trimmed(&table), stats.total())
}

fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
