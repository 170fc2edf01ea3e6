//! The program as an operator calls it, as far as that needs no server.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::process::{Command, Output};

fn admin(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer-admin"));
    command.arg("dead-letters").args(arguments.split(' ')).env_clear().output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_wrong_without_the_network_ends_with_2_and_shows_no_password() {
    for (arguments, word) in [
        ("list --broker http://ann:s3cret@h --from dead", "kafka://"),
        ("list --broker s3cret --from dead", "kafka://"),
        ("list --broker amqp://ann:s3cret@h:x/%2f --from dead", "URL"),
        ("list --broker kafka://ann:s3cret@h:x --from dead", "URL"),
        ("list --from dead", "--broker"),
        ("list --broker kafka://h:1", "--from"),
        ("list --broker kafka://h:1 --from dead --since yesterday", "2h"),
        ("redrive --broker kafka://h:1 --from dead --to dead --yes", "never end"),
        ("redrive --broker kafka://h:1 --from dead --rate 0", "rate"),
        ("discard --broker kafka://h:1 --from dead", "--because"),
        ("discard --broker kafka://h:1 --from dead --because tests --yes", "--all"),
        ("import --broker http://h --to dead --file nothing", "kafka://"),
    ] {
        let output = admin(arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {said}");
        assert!(said.contains(word) && !said.contains("s3cret"), "{arguments}: {said}");
    }
}

#[test]
fn a_broker_that_is_not_there_is_named_and_its_password_is_not() {
    let output = admin("list --broker amqp://ann:s3cret@127.0.0.1:1/%2f --from dead");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("127.0.0.1:1") && !said.contains("s3cret"), "{said}");
}

#[test]
fn each_command_explains_itself() {
    for command in ["list", "show", "stats", "redrive", "discard", "export", "import"] {
        let output = admin(&format!("{command} --help"));
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && help.contains("--broker"), "{command}: {help}");
    }
}
