//! What was measured: one table, or one JSON object a line.

use std::io::Write;

use serde_json::json;

/// Collects rows; in JSON they are printed as they come.
pub(crate) struct Report {
    json: bool,
    only: Option<String>,
    rows: Vec<Row>,
}

/// One figure.
#[derive(Debug, Clone)]
#[must_use]
pub(crate) struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    against: Option<(String, f64)>,
    goal: Option<Goal>,
}

#[derive(Debug, Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
    RatioAtLeast(f64),
    RatioAtMost(f64),
}

impl Report {
    pub(crate) fn new(json: bool, only: Option<String>) -> Self {
        Self { json, only, rows: Vec::new() }
    }

    /// Whether a group of this name is asked for.
    pub(crate) fn wants(&self, group: &str) -> bool {
        self.only.as_deref().is_none_or(|only| group.contains(only))
    }

    pub(crate) fn add(&mut self, row: Row) {
        if self.json {
            println!("{}", row.json());
            let _ = std::io::stdout().flush();
        } else {
            eprintln!("{}: {} {}", row.name, number(row.value), row.unit);
        }
        self.rows.push(row);
    }

    /// Prints the table.
    pub(crate) fn finish(&self) {
        if self.json {
            return;
        }
        let head = ["what", "value", "unit", "against", "ratio", "goal", "reached"].map(str::to_owned);
        let lines: Vec<[String; 7]> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        println!();
        for line in &lines {
            let cells = line.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
                1 | 4 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            });
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, against: None, goal: None }
    }

    /// Compares with another figure of the same unit.
    pub(crate) fn against(mut self, name: impl Into<String>, value: f64) -> Self {
        self.against = Some((name.into(), value));
        self
    }

    pub(crate) fn at_least(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::AtLeast(goal));
        self
    }

    pub(crate) fn at_most(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::AtMost(goal));
        self
    }

    /// The goal is a multiple of what it is compared with.
    pub(crate) fn ratio_at_least(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::RatioAtLeast(goal));
        self
    }

    /// As [`ratio_at_least`](Self::ratio_at_least), from the other side.
    pub(crate) fn ratio_at_most(mut self, goal: f64) -> Self {
        self.goal = Some(Goal::RatioAtMost(goal));
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.against.as_ref().map(|(_, other)| self.value / other)
    }

    fn goal(&self) -> Option<String> {
        self.goal.map(|goal| match goal {
            Goal::AtLeast(limit) => format!(">= {} {}", number(limit), self.unit),
            Goal::AtMost(limit) => format!("<= {} {}", number(limit), self.unit),
            Goal::RatioAtLeast(limit) => format!(">= {} x", number(limit)),
            Goal::RatioAtMost(limit) => format!("<= {} x", number(limit)),
        })
    }

    fn reached(&self) -> Option<bool> {
        match self.goal? {
            // As precisely as it is printed.
            Goal::AtLeast(limit) => Some(rounded(self.value) >= limit),
            Goal::AtMost(limit) => Some(rounded(self.value) <= limit),
            Goal::RatioAtLeast(limit) => self.ratio().map(|ratio| rounded(ratio) >= limit),
            Goal::RatioAtMost(limit) => self.ratio().map(|ratio| rounded(ratio) <= limit),
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "against": self.against.as_ref().map(|(name, _)| name),
            "ratio": self.ratio().map(rounded),
            "goal": self.goal(),
            "reached": self.reached(),
        })
    }

    fn cells(&self) -> [String; 7] {
        let against = self.against.as_ref();
        [
            self.name.clone(),
            number(self.value),
            self.unit.to_owned(),
            against.map_or(String::new(), |(name, value)| format!("{name} ({})", number(*value))),
            self.ratio().map_or(String::new(), |ratio| format!("{} x", number(ratio))),
            self.goal().unwrap_or_default(),
            self.reached().map_or("", |reached| if reached { "yes" } else { "NO" }).to_owned(),
        ]
    }
}

/// Three significant digits, and all of those before the point.
fn number(value: f64) -> String {
    let decimals = if value == 0.0 { 0 } else { (2 - value.abs().log10().floor() as i32).clamp(0, 6) };
    let text = format!("{value:.*}", decimals as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn rounded(value: f64) -> f64 {
    number(value).parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_compared_with_the_value_or_the_ratio() {
        let row = Row::new("x", 30.0, "ns");
        assert_eq!(row.clone().at_most(30.0).reached(), Some(true));
        assert_eq!(row.clone().at_most(29.0).reached(), Some(false));
        assert_eq!(row.clone().against("y", 3.0).ratio_at_least(10.0).reached(), Some(true));
        assert_eq!(row.clone().against("y", 4.0).ratio_at_least(10.0).reached(), Some(false));
        assert_eq!(row.reached(), None);
    }

    #[test]
    fn json_has_the_agreed_fields() {
        let row = Row::new("x", 1234.5678, "ns").against("y", 1000.0).at_most(300.0);
        let expected = json!({"name": "x", "value": 1235.0, "unit": "ns", "against": "y", "ratio": 1.23,
            "goal": "<= 300 ns", "reached": false});
        assert_eq!(row.json(), expected);
    }

    #[test]
    fn numbers_have_three_digits() {
        let text = [0.0, 0.012345, 1.0, 23.456, 161.3, 123456.7].map(number);
        assert_eq!(text, ["0", "0.0123", "1", "23.5", "161", "123457"]);
    }
}
