//! The program as an operator calls it, as far as that needs no server.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::process::{Command, Output};

fn admin(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer-admin"));
    command.args(arguments.split(' ')).env_clear().output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_wrong_without_the_network_ends_with_2_and_shows_no_password() {
    for (arguments, word) in [
        ("dead-letters list --broker http://ann:s3cret@h --from dead", "kafka://"),
        ("dead-letters list --broker s3cret --from dead", "kafka://"),
        ("dead-letters list --broker amqp://ann:s3cret@h:x/%2f --from dead", "URL"),
        ("dead-letters list --broker kafka://ann:s3cret@h:x --from dead", "URL"),
        ("dead-letters list --from dead", "--broker"),
        ("dead-letters list --broker kafka://h:1", "--from"),
        ("dead-letters list --broker kafka://h:1 --from dead --since yesterday", "2h"),
        ("dead-letters redrive --broker kafka://h:1 --from dead --to dead --yes", "never end"),
        ("dead-letters redrive --broker kafka://h:1 --from dead --rate 0", "rate"),
        ("dead-letters discard --broker kafka://h:1 --from dead", "--because"),
        ("dead-letters discard --broker kafka://h:1 --from dead --because tests --yes", "--all"),
        ("dead-letters import --broker http://h --to dead --file nothing", "kafka://"),
        ("relay --broker kafka://h:1 --database mysql://ann:s3cret@h/d", "postgres://"),
        ("outbox stats --database sqlite:", "needs a file"),
        ("inbox stats --database sqlite::memory:", "needs a file"),
        ("relay --broker kafka://h:1 --database s3cret", "postgres://"),
        ("relay --broker kafka://h:1 --database postgres://ann:s3cret@h:x/d", "URL"),
        ("relay --broker kafka://h:1 --database postgres://ann:s3cret@h/d?sslmode=maybe", "URL"),
        ("relay --broker http://ann:s3cret@h --database postgres://h/d", "kafka://"),
        ("relay --broker kafka://h:1 --database postgres://h/d --workers 0", "--workers"),
        ("relay --broker kafka://h:1 --database postgres://h/d --history soon", "7d"),
        ("relay --broker kafka://h:1", "--database"),
        ("relay --database postgres://h/d", "--broker"),
        ("outbox stats --database http://ann:s3cret@h", "sqlite:"),
        ("outbox stats --database postgres:s://ann:s3cret@h", "postgres://"),
        ("outbox list --database postgres://h/d --tables-schema a-b", "schema"),
        ("outbox list --database postgres://h/d --tables-prefix A", "prefix"),
        ("outbox list --database sqlite:d --tables-schema a", "no schemas"),
        ("outbox list --database postgres://h/d --state lost", "quarantined"),
        ("outbox purge --database postgres://ann:s3cret@h/d", "--all"),
        ("outbox requeue --database postgres://h/d --state held", "refused"),
        ("inbox purge --database postgres://h/d --consumer mail", "--older-than"),
        (
            "inbox purge --database postgres://h/d --consumer mail --key a --older-than 1d",
            "cannot be used with",
        ),
        ("migrate --print --database ftp://ann:s3cret@h", "postgres://"),
    ] {
        let output = admin(arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {said}");
        assert!(said.contains(word) && !said.contains("s3cret"), "{arguments}: {said}");
    }
}

#[test]
fn a_broker_that_is_not_there_is_named_and_its_password_is_not() {
    let output = admin("dead-letters list --broker amqp://ann:s3cret@127.0.0.1:1/%2f --from dead");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("127.0.0.1:1") && !said.contains("s3cret"), "{said}");
}

#[test]
fn letters_that_cannot_be_opened_leave_no_file_and_a_file_that_is_there_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["export", "discard --all --yes --because tests"] {
        let file = folder.path().join("letters.jsonl");
        let broker = "--broker amqp://127.0.0.1:1/%2f --from dead";
        let arguments = format!("dead-letters {command} {broker} --file {}", file.display());
        let output = admin(&arguments);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("127.0.0.1:1") && !file.exists(), "{}", said(&output));
        std::fs::write(&file, "kept").unwrap();
        let output = admin(&arguments);
        assert!(said(&output).contains("letters.jsonl cannot be created anew"), "{}", said(&output));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_database_that_is_not_there_is_named_and_its_password_is_not() {
    for command in ["relay --broker kafka://h:1", "outbox stats", "inbox list", "migrate"] {
        let output = admin(&format!("{command} --database postgres://ann:s3cret@127.0.0.1:1/shop"));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("127.0.0.1:1/shop") && !said.contains("s3cret"), "{said}");
    }
}

#[test]
fn each_command_explains_itself() {
    let help = |command: &str| {
        let output = admin(&format!("{command} --help"));
        assert!(output.status.success(), "{command}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for command in ["list", "show", "stats", "redrive", "discard", "export", "import"] {
        assert!(help(&format!("dead-letters {command}")).contains("--broker"), "{command}");
    }
    for command in ["stats", "list", "show", "requeue", "purge"] {
        assert!(help(&format!("outbox {command}")).contains("--tables-schema"), "{command}");
    }
    assert!(help("relay").contains("--database") && help("relay").contains("--broker"));
    assert!(help("inbox purge").contains("take effect again"));
}
