//! What the README shows is what is printed.

use std::process::Command;

#[test]
fn the_readme_shows_the_output_of_the_demo() {
    let readme = include_str!("../../../README.md");
    let (_, after) = readme.split_once("$ cargo run -p orders\n").expect("the README starts with the demo");
    let (shown, _) = after.split_once("```").expect("the block ends");
    let output = Command::new(env!("CARGO_BIN_EXE_orders")).output().expect("the demo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), shown);
}

#[test]
fn the_first_command_and_its_output_stand_within_thirty_lines() {
    let readme = include_str!("../../../README.md");
    let end = readme.lines().position(|line| line == "```").expect("the block ends");
    assert!(end < 30, "the first block ends in line {}", end + 1);
}

/// What stands between the fences of each block of this language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    text.split(&*opening).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// The compiler sees the README's code on Kafka and `rabbitmq.rs`; between them is what the diff says, and nothing else.
#[test]
fn the_broker_is_changed_by_what_the_readme_shows() {
    let readme = include_str!("../../../README.md");
    let mut code = blocks(readme, "rust,no_run")[0].to_owned();
    let changes: Vec<_> = blocks(readme, "diff")
        .into_iter()
        .map(|block| {
            let mut lines = block.lines();
            let mut next = |sign| {
                lines.next().and_then(|line| line.strip_prefix(sign)).expect("a line and its successor")
            };
            let change = (next('-'), next('+'));
            assert_eq!(lines.next(), None, "one line becomes another");
            change
        })
        .collect();
    let [(features, other_features), (source, other_source)] = changes[..] else { panic!("{changes:?}") };
    assert_eq!(features.replace("kafka", "amqp"), other_features);
    assert!(code.contains(source), "the code has no such line: {source}");
    code = code.replace(source, other_source);

    let (_, rabbitmq) =
        include_str!("../../../consumer/examples/rabbitmq.rs").split_once("\n\n").expect("docs first");
    assert_eq!(without_format(rabbitmq), without_format(&code));
}

/// The formatter writes one line over several.
fn without_format(code: &str) -> String {
    let dense: String = code.split_whitespace().collect();
    dense.replace(",}", "}")
}
