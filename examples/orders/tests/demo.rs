//! The demo prints the same in every run, and what the README shows.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod common;

use common::run;

const STORY: &str = include_str!("demo.txt");

#[test]
fn the_demo_tells_its_story_in_a_few_seconds() {
    let done = run([]).ok();
    assert_eq!(done.stdout, STORY);
    assert_eq!(done.stderr, "");
}
