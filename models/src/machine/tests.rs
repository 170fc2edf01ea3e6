use std::time::Duration;

use consumer_core::dedup::{
    ClaimRequest, Owner as Nonce, StoreKey,
    protocol::{Operation, State, transition},
};

use super::{
    record::{Numbers, Op, Owner, Record, What, decide},
    world::{Delivery, Phase, World},
};

fn records() -> Vec<Record> {
    let numbers = Numbers { attempts: 1, crashes: 1, suspect: true, redrive: 1 };
    let owner = Owner { process: 1, claim: 3 };
    let mut records = vec![
        Record::Absent,
        Record::Completed,
        Record::Released(numbers),
        Record::Deferred { attempt: 2, numbers },
        Record::DeadLettered(numbers),
    ];
    for (left, mode) in [(0, 0), (1, 1), (2, 2)] {
        records.push(Record::Claimed { owner, left, mode, numbers });
    }
    records
}

#[test]
fn a_record_is_as_good_as_the_state() {
    for record in records() {
        assert_eq!(Record::of(&record.state(0)), record);
    }
}

/// The model leaves out how high the epoch is and what time it is: the protocol decides alike, whatever they are.
#[test]
fn neither_the_time_nor_the_epoch_matters() {
    let later = |state: State| match state {
        State::Claimed(mut held) => {
            held.lease_until += 77;
            held.numbers.epoch += 5;
            State::Claimed(held)
        }
        State::Released(mut numbers) => {
            numbers.epoch += 5;
            State::Released(numbers)
        }
        other => other,
    };
    let now = 1 << 40;
    let request = ClaimRequest {
        key: StoreKey::new("c".into(), "k".into()),
        owner: Nonce { process: 9, seq: 9 },
        fingerprint: Some(1),
        lease: Duration::from_secs(20),
        grace: Duration::from_secs(20),
        attempt: 1,
        redrive: 0,
    };
    for record in records() {
        let state = record.state(0);
        let (_, write) = transition(&state, &Operation::Claim(&request), now);
        let (_, written) = transition(&later(state), &Operation::Claim(&request), now + 77);
        let small = |write: Option<consumer_core::dedup::protocol::Write>, now: u64| {
            write.map(|write| match write.state {
                State::Claimed(held) => (held.lease_until - now, held.numbers.attempts, held.numbers.crashes),
                other => panic!("a claim wrote {other:?}"),
            })
        };
        assert_eq!(small(write, now), small(written, now + 77), "{record:?}");
    }
}

#[test]
fn a_claim_knows_itself_and_no_other() {
    let own = Op { owner: Owner { process: 0, claim: 0 }, what: What::Claim { attempt: 1, redrive: 0 } };
    let taken = decide(Record::Absent, 0, own);
    assert!(taken.epoch.is_some_and(|epoch| epoch > 0));
    let (record, _) = taken.write.unwrap();
    assert_eq!(record.held_by(), Some(own.owner));
    assert!(decide(record, 0, own).write.is_some());
    assert!(decide(record, 0, Op { owner: Owner { process: 1, claim: 0 }, ..own }).write.is_none());
}

/// Nonces that nobody uses any more stay different from each other and from those in use.
#[test]
fn an_old_nonce_is_never_taken_for_a_new_one() {
    let mut world = World::new(vec![Delivery::new(0, 0, 1, 0), Delivery::new(1, 0, 1, 0)], 0);
    let numbers = Numbers { attempts: 0, crashes: 0, suspect: false, redrive: 0 };
    for _ in 0..3 {
        let owner = world.owner(0);
        world.keys[0].record = Record::Claimed { owner, left: 2, mode: 0, numbers };
        assert!(world.holds(0));
        world.retire(0);
        assert!(!world.holds(0));
        world.late.push(super::Late { key: 0, op: Op { owner, what: What::Complete } });
        world.bury(0);
    }
    let owners: Vec<Owner> = world.owners().map(|owner| *owner).collect();
    assert!(owners.iter().all(|owner| owner.process >= 2), "{owners:?}");
    assert_eq!(world.deliveries[0].phase, Phase::Waiting);
}
