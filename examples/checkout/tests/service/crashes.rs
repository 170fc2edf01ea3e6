//! The embedded default: one process and one file, and SIGKILL.

use super::*;

/// What is committed when the process dies is published by the next one, once, as far as a balance can tell.
#[test]
fn an_event_that_was_not_published_before_a_crash_is_published_after_it() {
    let folder = tempfile::tempdir().unwrap();
    // Between the commit and the publish, for as long as the test likes.
    let service = Service::start(folder.path(), &["--no-relay"]);
    assert_eq!(service.place("1", "").0, 201);
    assert_eq!(service.balance(), 0);
    service.kill();

    let service = Service::start(folder.path(), &[]);
    wait_for("the event", || service.balance() == 1999);
    // The answer may not have arrived.
    assert_eq!(service.place("1", "").0, 201);
    assert_eq!(service.place("2", "").0, 201);
    wait_for("the next event", || service.balance() == 2 * 1999);
    service.terminate();
    assert!(service.ends());
}

/// Ten deaths at moments that nobody chooses: in a commit, between that and the handler, in the handler.
#[test]
fn no_moment_of_a_crash_loses_or_doubles_an_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut next = 0;
    for death in 0..10 {
        let service = Service::start(folder.path(), &[]);
        std::thread::scope(|scope| {
            let address = service.address.clone();
            // The first is a repetition of what may have been cut off.
            let first = next;
            let placed = scope.spawn(move || {
                let all = first..first + 1_000;
                all.take_while(|key| post(&address, &key.to_string(), ORDER, "").is_some()).last()
            });
            std::thread::sleep(Duration::from_millis(20 + 13 * death));
            service.kill();
            next = placed.join().unwrap().map_or(first, |last| last + 1);
        });
    }
    let service = Service::start(folder.path(), &[]);
    assert_eq!(service.place(&next.to_string(), "").0, 201);
    let expected = i64::from(next + 1) * 1999;
    wait_for("every event", || service.balance() >= expected);
    service.terminate();
    assert!(service.ends());
    // What was not yet relayed would come now.
    let service = Service::start(folder.path(), &[]);
    assert_eq!(service.place("last", "").0, 201);
    wait_for("the last event", || service.balance() >= expected + 1999);
    assert_eq!(service.balance(), expected + 1999);
}
