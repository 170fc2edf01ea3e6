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
