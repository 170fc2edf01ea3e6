//! PostgreSQL.

use std::{fs, thread, time::Duration};
use xtask::servers::Postgres;

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn postgres_keeps_what_is_committed_over_a_kill_and_a_stop() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    assert!(url.starts_with("postgres://postgres@127.0.0.1:"), "{url}");
    postgres.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)").unwrap();
    assert_eq!(postgres.sql("SHOW max_connections").unwrap(), "200");
    assert_eq!(postgres.sql("SHOW fsync").unwrap(), "on");
    // A client is connected and busy all the while.
    let client = thread::scope(|scope| {
        let client = scope
            .spawn(|| postgres.sql("SELECT 'the busy one', count(*) FROM generate_series(1, 300000000)"));
        let running =
            "SELECT pid FROM pg_stat_activity WHERE query LIKE '%the busy one%' AND pid <> pg_backend_pid()";
        let server = loop {
            match postgres.sql(running).unwrap() {
                pid if pid.is_empty() => thread::sleep(Duration::from_millis(20)),
                pid => break pid,
            }
        };
        postgres.kill();
        assert!(!is_running(&server), "{server} goes on");
        client.join().unwrap()
    });
    assert!(client.is_err());
    assert!(!postgres.is_running());
    assert!(postgres.sql("SELECT 1").is_err());
    postgres.start_again().unwrap();
    assert!(postgres.start_again().is_err(), "it is running");
    assert_eq!(postgres.url(), url);
    assert_eq!(postgres.sql("SELECT n FROM kept").unwrap(), "1");
    postgres.stop();
    assert!(postgres.sql("SELECT 1").is_err());
    postgres.start_again().unwrap();
    assert_eq!(postgres.sql("SELECT n FROM kept").unwrap(), "1");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn postgres_takes_options_a_password_and_tls() {
    let postgres =
        Postgres::builder().option("max_connections", "30").password("s3cret").tls().start().unwrap();
    assert_eq!(postgres.sql("SHOW max_connections").unwrap(), "30");
    assert!(!format!("{postgres:?}").contains("s3cret"));
    let tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(postgres.sql(tls).unwrap(), "t");
    let wrong = postgres.url().replace("s3cret", "guess");
    let done =
        std::process::Command::new("psql").args(["-X", "-d", &wrong, "-c", "SELECT 1"]).output().unwrap();
    assert!(String::from_utf8_lossy(&done.stderr).contains("password authentication failed"), "{done:?}");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_bad_option_of_postgres_is_an_error_with_the_reason() {
    let error = Postgres::builder().option("no_such_option", "1").start().unwrap_err();
    assert!(error.to_string().contains("no_such_option"), "{error}");
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_dropped_postgres_leaves_neither_processes_nor_shared_memory() {
    let segments = || fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let is_there = |id: &str| segments().lines().any(|line| line.split_whitespace().nth(1) == Some(id));
    let postgres = Postgres::start().unwrap();
    let pids = postgres.sql("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()").unwrap();
    // Its seventh line has the key and the number of the segment.
    let told = postgres.sql("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 7)").unwrap();
    let segment = told.split_whitespace().nth(1).unwrap();
    assert!(is_there(segment));
    drop(postgres);
    assert!(!is_there(segment));
    for pid in pids.lines() {
        assert!(!is_running(pid), "{pid} is still there");
    }
}

/// Whether a process is there and has not ended.
fn is_running(pid: &str) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}
