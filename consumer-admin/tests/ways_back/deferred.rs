//! failed → copy published → confirmed → recorded as deferred → original acked.

use super::{
    fuse::Step,
    world::{KAFKA, MESSAGES, RABBITMQ, World},
};

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm10_fm34_kafka_loses_and_doubles_nothing_wherever_a_deferral_is_cut() {
    cut_at_each_step(KAFKA);
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn fm10_fm34_rabbitmq_loses_and_doubles_nothing_wherever_a_deferral_is_cut() {
    cut_at_each_step(RABBITMQ);
}

fn cut_at_each_step(kind: &str) {
    std::thread::scope(|scope| {
        for step in Step::ALL {
            scope.spawn(move || cut_at(kind, step));
        }
    });
}

fn cut_at(kind: &str, step: Step) {
    let world = World::new(kind);
    world.publish();
    assert!(!world.run("defer", Some(step)), "{step:?} was not reached");
    assert!(world.run("defer", None));
    let calls = world.calls();
    assert_eq!(calls.len(), MESSAGES, "{step:?}: {calls:?}");
    for (id, calls) in &calls {
        let effects = calls.iter().filter(|(_, ok)| *ok).count();
        assert_eq!(effects, 1, "{step:?}, {id}: {calls:?}");
        assert!(
            calls.is_sorted_by_key(|(attempt, _)| *attempt),
            "{step:?}, {id}: the count restarted: {calls:?}"
        );
        // What was handled and not recorded when the process died is handled once more, and no more often.
        assert!(calls.len() <= 3, "{step:?}, {id}: {calls:?}");
    }
    assert_eq!(world.dead_letters(), [], "{step:?}");
}
