//! failed → dead letter published → confirmed → recorded → acked; read → published → confirmed → settled.

use super::{
    fuse::Step,
    world::{KAFKA, MESSAGES, RABBITMQ, World},
};

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm27_kafka_loses_nothing_wherever_a_dead_letter_is_cut() {
    each(&Step::ALL, |step| dead_letter_cut_at(KAFKA, step));
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm27_rabbitmq_loses_nothing_wherever_a_dead_letter_is_cut() {
    each(&Step::ALL, |step| dead_letter_cut_at(RABBITMQ, step));
}

const REDRIVE: [Step; 4] = [Step::Begun, Step::Published, Step::Confirmed, Step::Recorded];

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm09_fm29_kafka_runs_each_letter_once_wherever_a_redrive_is_cut() {
    each(&REDRIVE, |step| redrive_cut_at(KAFKA, step));
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm09_fm29_rabbitmq_runs_each_letter_once_wherever_a_redrive_is_cut() {
    each(&REDRIVE, |step| redrive_cut_at(RABBITMQ, step));
}

fn each(steps: &[Step], cut: impl Fn(Step) + Sync) {
    std::thread::scope(|scope| {
        for step in steps {
            scope.spawn(|| cut(*step));
        }
    });
}

fn dead_letter_cut_at(kind: &str, step: Step) {
    let world = World::new(kind);
    world.publish();
    assert!(!world.run("bounce", Some(step)), "{step:?} was not reached");
    assert!(world.run("bounce", None));
    let mut ids: Vec<String> = world.dead_letters().into_iter().map(|(id, _)| id).collect();
    let written = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), MESSAGES, "{step:?}: lost");
    // One that nobody knew of when the process died is written once more. (Until the signal arrives, the process goes on
    // with the others: at any step some may be published and not recorded.)
    assert!(written <= 2 * MESSAGES, "{step:?}: {written} letters");
    // The second letter of a message does no harm: the redrive of one is the redrive of the other.
    assert!(world.run("redrive", None) && world.run("repaired", None));
    let calls = world.calls();
    for (id, calls) in &calls {
        assert_eq!(calls.iter().filter(|(_, ok)| *ok).count(), 1, "{step:?}, {id}: {calls:?}");
    }
    assert_eq!((calls.len(), world.dead_letters().len()), (MESSAGES, 0), "{step:?}");
}

fn redrive_cut_at(kind: &str, step: Step) {
    let world = World::new(kind);
    world.publish();
    assert!(world.run("bounce", None));
    assert_eq!(world.dead_letters().len(), MESSAGES);
    assert!(!world.run("redrive", Some(step)), "{step:?} was not reached");
    assert!(world.run("redrive", None));
    assert_eq!(world.dead_letters(), [], "{step:?}");
    assert!(world.run("repaired", None));
    let calls = world.calls();
    assert_eq!(calls.len(), MESSAGES, "{step:?}: lost");
    for (id, calls) in &calls {
        assert_eq!(
            calls,
            &[(1, false), (1, true)],
            "{step:?}, {id}: a redrive starts the count anew, and runs once"
        );
    }
}
