//! The table of rules and brokers in a document, held against the capabilities.

use super::{Capabilities, publisher, rules::Rule, source};

/// Checks a broker's column in a document with tables of rules, in Markdown: the first cell of a row is a rule's name, the
/// first row names the brokers.
///
/// Every rule of sources and publishers must have a row. Its cell is `yes` where the rule applies, and `no: ` with the
/// name of the missing capability where not; more words may follow.
///
/// # Panics
/// When the document says anything else of this broker, with all that is wrong in it.
pub fn check_column(document: &str, broker: &str, capabilities: Capabilities) {
    let column = read_column(document, broker);
    let rules = || source::RULES.iter().chain(publisher::RULES);
    let mut wrong = Vec::new();
    for rule in rules() {
        let cells: Vec<_> = column.iter().filter(|(name, _)| *name == rule.name).collect();
        match cells[..] {
            [] => wrong.push(format!("{} has no row", rule.name)),
            [(_, cell)] => wrong.extend(fault(rule, cell, &capabilities)),
            _ => wrong.push(format!("{} has more than one row", rule.name)),
        }
    }
    let unknown = column.iter().filter(|(name, _)| !rules().any(|rule| rule.name == *name));
    wrong.extend(unknown.map(|(name, _)| format!("there is no rule {name}")));
    assert!(wrong.is_empty(), "the column {broker} is wrong:\n{}", wrong.join("\n"));
}

fn fault(rule: &Rule, cell: &str, capabilities: &Capabilities) -> Option<String> {
    let name = rule.name;
    match rule.missing(capabilities) {
        None => (cell != "yes").then(|| format!("{name} applies, and the cell says `{cell}`")),
        Some(missing) => {
            let said = cell.strip_prefix("no: ").and_then(|rest| rest.split([',', ' ', ';']).next());
            (said != Some(missing.name()))
                .then(|| format!("{name} needs {missing}, which is missing, and the cell says `{cell}`"))
        }
    }
}

/// The first cell and the broker's cell of each row, from all tables that have such a column.
fn read_column<'a>(document: &'a str, broker: &str) -> Vec<(&'a str, &'a str)> {
    let mut column = Vec::new();
    let mut index = None;
    for line in document.lines() {
        let Some(row) = line.trim().strip_prefix('|') else {
            index = None;
            continue;
        };
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        match index {
            None => index = Some(cells.iter().position(|cell| *cell == broker)),
            Some(Some(at)) if !cells[0].starts_with('-') => {
                column.push((cells[0], cells.get(at).copied().unwrap_or_default()));
            }
            Some(_) => {}
        }
    }
    column
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(cell: impl Fn(&Rule) -> String) -> String {
        let rows = source::RULES.iter().chain(publisher::RULES);
        let rows = rows.map(|rule| format!("| `{}` | asks | yes | {} |\n", rule.name, cell(rule)));
        format!("| rule | what | Other | Mine |\n|---|---|---|---|\n{}\nmore", rows.collect::<String>())
    }

    fn says(document: &str) -> Option<String> {
        let capabilities = Capabilities { nack: false, ..Capabilities::default() };
        let checked = std::panic::catch_unwind(|| check_column(document, "Mine", capabilities));
        checked.err().map(|panic| *panic.downcast::<String>().unwrap())
    }

    #[test]
    fn a_column_is_right_only_if_every_cell_is() {
        let nack = |rule: &Rule| rule.name == "a_nacked_message_comes_again";
        let right = |rule: &Rule| if nack(rule) { "no: nack, it has none".into() } else { "yes".to_owned() };
        let right = document(right);
        assert_eq!(says(&right), None);
        let said = says(&document(|_| "yes".into())).unwrap();
        assert!(said.contains("a_nacked_message_comes_again needs nack"), "{said}");
        let said = says(&document(|_| "no: nack".into())).unwrap();
        assert!(said.contains("every_message_is_delivered applies"), "{said}");
        assert!(!said.contains("a_nacked"), "{said}");
        let said = says(&right.replace("every_message_is_delivered", "every_message")).unwrap();
        assert!(said.contains("every_message_is_delivered has no row"), "{said}");
        assert!(said.contains("there is no rule every_message"), "{said}");
        assert!(says(&format!("{right}\n{right}")).unwrap().contains("more than one row"));
        assert!(says("").is_some());
        check_column(&document(|_| "no: nack".into()), "Other", Capabilities::default());
    }
}
