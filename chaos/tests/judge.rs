//! The whole harness against consumers that are known to be wrong: it has to say so.

use std::process::Command;

/// Consumers that do not share what they remember repeat what the producer sends twice.
#[test]
#[ignore = "needs servers: cargo xtask test"]
fn consumers_that_do_not_share_a_store_are_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--broker", "amqp", "--store", "redis", "--cycles", "1", "--seed", "2", "--broken", "--out"])
        .arg(folder.path())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert_eq!(run.status.code(), Some(1), "{stdout}\n{stderr}");
    let figures: serde_json::Value = serde_json::from_str(stdout.trim()).unwrap();
    assert!(figures["doubled_unexplained"].as_u64().unwrap() > 0, "{figures}");
    assert_eq!(figures["lost"], 0, "{figures}");
    assert!(stderr.contains("UNEXPLAINED: "), "{stderr}");
    assert!(stderr.contains("--broker amqp --store redis --cycles 1 --seed 2 --broken"), "{stderr}");
    let picture = std::fs::read_to_string(folder.path().join("amqp-redis-2/timeline.svg")).unwrap();
    assert!(picture.contains("#d00000"), "what is wrong is red");
}
