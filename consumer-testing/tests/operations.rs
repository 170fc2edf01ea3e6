//! The operator's page names log lines, metrics, options and commands that exist.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{fs, path::Path};

const PAGE: &str = include_str!("../../docs/operations.md");

/// All sources of the workspace's library crates, broken string literals put together.
fn sources() -> String {
    let mut text = String::new();
    const CRATES: [&str; 6] =
        ["consumer-core", "consumer-admin", "consumer-sql", "consumer-kafka", "consumer-amqp", "dedup-redis"];
    for krate in CRATES {
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(krate).join("src"), &mut text);
    }
    let mut joined = String::with_capacity(text.len());
    for part in text.split("\\\n") {
        joined.push_str(part.trim_start_matches(' '));
    }
    joined
}

fn read(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// What stands between backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn every_metric_and_log_line_is_one() {
    let sources = sources();
    let (mut metrics, mut lines) = (0, 0);
    for row in PAGE.lines().filter(|line| line.starts_with("| ")) {
        for text in quoted(row) {
            if text.starts_with("consumer_") || text.starts_with("relay_") {
                assert!(sources.contains(&format!("\"{text}\"")), "no metric {text}");
                metrics += 1;
            } else if text.contains(' ') && !text.contains("--") && !text.contains('…') && !text.contains('=')
            {
                assert!(sources.contains(text), "nothing logs: {text}");
                lines += 1;
            }
        }
    }
    assert!(metrics > 10 && lines > 10, "the page is not read as it should: {metrics}, {lines}");
}

#[test]
fn every_metric_of_the_relay_is_explained() {
    let meter = include_str!("../../consumer-sql/src/relay/meter.rs");
    let names: Vec<_> = meter.split('"').filter(|text| text.starts_with("relay_")).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(PAGE.contains(&format!("`{name}`")), "nothing explains {name}");
    }
}

#[test]
fn every_option_is_one() {
    let sources = sources();
    let mut options = 0;
    for word in PAGE.split(|c: char| c.is_whitespace() || "`(),;".contains(c)) {
        let Some(option) = word.strip_prefix("--").filter(|option| !option.is_empty()) else { continue };
        let (field, renamed) = (option.replace('-', "_"), format!("long = \"{option}\""));
        let is_one = sources.contains(&format!(" {field}: ")) || sources.contains(&renamed);
        assert!(is_one, "no option --{option}");
        options += 1;
    }
    assert!(options > 20, "the page is not read as it should: {options}");
}

#[test]
fn every_reason_has_its_row() {
    for reason in
        ["permanent", "undecodable", "attempts-exhausted", "conflict", "no-key", "broker", "unknown"]
    {
        assert!(PAGE.contains(&format!("\n| `{reason}` |")), "no row for {reason}");
    }
}
