//! Tables that fit the terminal.

use std::time::SystemTime;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use consumer_admin::{Group, Stats};
use consumer_core::{dead_letters::DeadLetter, message::wire};

use super::text::{cut, plain};

/// Characters of a text that are kept of a row: no terminal is as wide.
const KEPT: usize = 160;

/// A row of the list: what is kept of a letter.
pub(crate) struct Row([String; 7]);

impl Row {
    pub(crate) fn new(letter: &DeadLetter) -> Self {
        let text = |text: Option<&str>| cut(&plain(text.unwrap_or("-")), KEPT).into_owned();
        Self([
            letter.place().to_string(),
            letter.last_failed_at().map_or_else(|| "-".to_owned(), seconds),
            text(Some(letter.reason())),
            letter.attempts().map_or_else(|| "-".to_owned(), |attempts| attempts.to_string()),
            text(letter.consumer()),
            text(letter.id().as_deref()),
            text(letter.error().as_deref()),
        ])
    }
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

pub(crate) fn list(rows: Vec<Row>) -> String {
    let mut table = table(&["PLACE", "FAILED", "REASON", "ATTEMPTS", "CONSUMER", "ID", "ERROR"]);
    for Row(cells) in rows {
        let mut row = comfy_table::Row::from(cells);
        row.max_height(1);
        table.add_row(row);
    }
    // A time or a place that is broken in two is none.
    for fixed in [0, 1, 2, 3] {
        if let Some(column) = table.column_mut(fixed) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    if let Some(column) = table.column_mut(5) {
        column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(38)));
    }
    format!("{}\n", trimmed(&table))
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
