//! The protocol written down once more, as what goes in and what comes out: the models and the stores compare themselves
//! with the function, so only this says when the function is wrong.

use super::*;
use crate::dedup::StoreKey;

const NOW: u64 = 1_000;
const LEASE: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(70);
const LEASE_UNTIL: u64 = NOW + 30_000;

const US: Owner = Owner { process: 1, seq: 1 };
const BESIDE_US: Owner = Owner { process: 1, seq: 2 };
const ELSEWHERE: Owner = Owner { process: 2, seq: 1 };

const NUMBERS: Numbers =
    Numbers { epoch: 5, attempts: 2, crashes: 1, suspect: false, fingerprint: Some(7), redrive: 3 };

fn request() -> ClaimRequest {
    ClaimRequest {
        key: StoreKey::new("c".into(), "k".into()),
        owner: US,
        fingerprint: Some(7),
        lease: LEASE,
        grace: GRACE,
        attempt: 1,
        redrive: 0,
    }
}

fn corrected() -> ClaimRequest {
    ClaimRequest { fingerprint: Some(8), attempt: 4, ..request() }
}

/// What a corrected message starts with.
const CORRECTED: Numbers =
    Numbers { epoch: 6, attempts: 3, crashes: 0, suspect: false, fingerprint: Some(8), redrive: 0 };

fn claimed(owner: Owner, mode: Mode, lease_until: u64) -> State {
    State::Claimed(Claimed { owner, lease_until, mode, numbers: NUMBERS })
}

fn claim(state: State, request: &ClaimRequest) -> (ClaimReply, Option<Write>) {
    match transition(&state, &Operation::Claim(request), NOW) {
        (Reply::Claim(reply), write) => (reply, write),
        other => panic!("{other:?}"),
    }
}

/// A claim of ours with these numbers, and what is written for it.
fn granted(numbers: Numbers, mode: Mode) -> (ClaimReply, Option<Write>) {
    let claim = Claim {
        key: request().key,
        owner: US,
        epoch: numbers.epoch,
        attempts: numbers.attempts,
        crashes: numbers.crashes,
        suspect: mode != Mode::Normal,
        fingerprint: numbers.fingerprint,
        redrive: numbers.redrive,
        lease: LEASE,
        grace: GRACE,
    };
    let held = Claimed { owner: US, lease_until: LEASE_UNTIL, mode, numbers };
    let write = Write { state: State::Claimed(held), lifetime: LEASE + GRACE };
    (ClaimReply::Claimed(claim), Some(write))
}

fn ours() -> Claim {
    match granted(NUMBERS, Mode::Normal).0 {
        ClaimReply::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_unknown_begins_with_what_the_message_says() {
    let asked = ClaimRequest { attempt: 4, redrive: 2, ..request() };
    let numbers =
        Numbers { epoch: NOW, attempts: 3, crashes: 0, suspect: false, fingerprint: Some(7), redrive: 2 };
    assert_eq!(claim(State::Absent, &asked), granted(numbers, Mode::Normal));
}

#[test]
fn what_is_completed_stays_so_and_another_payload_is_a_conflict_where_both_are_known() {
    let completed = State::Completed { fingerprint: Some(7) };
    assert_eq!(claim(completed, &request()), (ClaimReply::Completed, None));
    assert_eq!(claim(completed, &corrected()), (ClaimReply::Conflict, None));
    let unknown = ClaimRequest { fingerprint: None, ..request() };
    assert_eq!(claim(completed, &unknown), (ClaimReply::Completed, None));
    assert_eq!(claim(State::Completed { fingerprint: None }, &request()), (ClaimReply::Completed, None));
}

#[test]
fn an_owner_that_asks_again_has_its_claim_as_it_was() {
    // Whatever the payload, and whether or not the lease has ended.
    for lease_until in [0, NOW, LEASE_UNTIL - 1] {
        for asked in [request(), ClaimRequest { attempt: 9, redrive: 9, ..corrected() }] {
            let state = claimed(US, Mode::Alone, lease_until);
            assert_eq!(claim(state, &asked), granted(NUMBERS, Mode::Alone));
        }
    }
}

#[test]
fn what_another_owner_holds_is_busy_until_its_lease_ends() {
    for owner in [BESIDE_US, ELSEWHERE] {
        let busy = |millis| (ClaimReply::Busy { remaining: Duration::from_millis(millis) }, None);
        assert_eq!(claim(claimed(owner, Mode::Normal, NOW + 500), &request()), busy(500));
        assert_eq!(claim(claimed(owner, Mode::Normal, NOW + 1), &request()), busy(1));
        for lease_until in [NOW + 500, NOW, NOW - 1] {
            let state = claimed(owner, Mode::Normal, lease_until);
            assert_eq!(claim(state, &corrected()), (ClaimReply::Conflict, None));
        }
    }
}

#[test]
fn a_death_counts_when_the_message_ran_alone_in_another_process() {
    for (owner, mode, crashes, suspect) in [
        (BESIDE_US, Mode::Normal, 1, false),
        (BESIDE_US, Mode::Suspect, 1, true),
        (BESIDE_US, Mode::Alone, 1, true),
        (ELSEWHERE, Mode::Normal, 1, true),
        (ELSEWHERE, Mode::Suspect, 1, true),
        (ELSEWHERE, Mode::Alone, 2, true),
    ] {
        for lease_until in [NOW, NOW - 1] {
            let mode_then = if suspect { Mode::Suspect } else { Mode::Normal };
            let numbers = Numbers { epoch: 6, crashes, suspect, ..NUMBERS };
            let state = claimed(owner, mode, lease_until);
            assert_eq!(claim(state, &request()), granted(numbers, mode_then), "{owner:?} {mode:?}");
        }
    }
}

#[test]
fn the_next_claim_of_what_was_released_goes_on_with_its_numbers() {
    let released = State::Released(NUMBERS);
    let next = Numbers { epoch: 6, ..NUMBERS };
    assert_eq!(claim(released, &request()), granted(next, Mode::Normal));
    let later = ClaimRequest { attempt: 9, ..request() };
    assert_eq!(claim(released, &later), granted(Numbers { attempts: 8, ..next }, Mode::Normal));
    let suspect = State::Released(Numbers { suspect: true, ..NUMBERS });
    assert_eq!(claim(suspect, &request()), granted(Numbers { suspect: true, ..next }, Mode::Suspect));
    // A payload that is known stays known.
    let unknown = ClaimRequest { fingerprint: None, ..request() };
    assert_eq!(claim(released, &unknown), granted(next, Mode::Normal));
    let never_known = State::Released(Numbers { fingerprint: None, ..NUMBERS });
    assert_eq!(claim(never_known, &request()), granted(next, Mode::Normal));
    assert_eq!(claim(released, &corrected()), granted(CORRECTED, Mode::Normal));
}

#[test]
fn a_redrive_not_seen_yet_starts_counting_anew() {
    let fresh =
        Numbers { epoch: 6, attempts: 0, crashes: 0, suspect: false, fingerprint: Some(7), redrive: 4 };
    for state in [
        State::Released(Numbers { suspect: true, ..NUMBERS }),
        State::Deferred { attempt: 3, numbers: NUMBERS },
        State::DeadLettered(NUMBERS),
        claimed(ELSEWHERE, Mode::Alone, NOW),
    ] {
        let redriven = ClaimRequest { redrive: 4, ..request() };
        assert_eq!(claim(state, &redriven), granted(fresh, Mode::Normal), "{state:?}");
    }
    let seen = ClaimRequest { redrive: 3, ..request() };
    let next = granted(Numbers { epoch: 6, ..NUMBERS }, Mode::Normal);
    assert_eq!(claim(State::Released(NUMBERS), &seen), next);
}

#[test]
fn a_delayed_copy_is_waited_for_and_what_came_before_it_is_superseded() {
    let deferred = State::Deferred { attempt: 3, numbers: NUMBERS };
    for redrive in [0, 3] {
        let copy = |attempt| ClaimRequest { attempt, redrive, ..request() };
        assert_eq!(claim(deferred, &copy(2)), (ClaimReply::Superseded, None));
        let next = Numbers { epoch: 6, ..NUMBERS };
        assert_eq!(claim(deferred, &copy(3)), granted(next, Mode::Normal));
        assert_eq!(claim(deferred, &copy(4)), granted(Numbers { attempts: 3, ..next }, Mode::Normal));
    }
    assert_eq!(claim(deferred, &corrected()), (ClaimReply::Conflict, None));
}

#[test]
fn a_dead_letter_stays_one_until_it_is_redriven_or_corrected() {
    let dead = State::DeadLettered(NUMBERS);
    for redrive in [0, 3] {
        let again = ClaimRequest { redrive, ..request() };
        assert_eq!(claim(dead, &again), (ClaimReply::DeadLettered, None));
    }
    assert_eq!(claim(dead, &corrected()), granted(CORRECTED, Mode::Normal));
}

fn resolve(state: State, resolution: Resolution) -> (Resolved, Option<Write>) {
    match transition(&state, &Operation::Resolve(&ours(), resolution, GRACE), NOW) {
        (Reply::Resolve(reply), write) => (reply, write),
        other => panic!("{other:?}"),
    }
}

#[test]
fn completion_is_recorded_whatever_has_become_of_the_claim() {
    for (state, reply) in [
        (claimed(US, Mode::Normal, 0), Resolved::Applied),
        (State::Absent, Resolved::Applied),
        (State::Completed { fingerprint: Some(9) }, Resolved::AlreadyCompleted),
        (claimed(BESIDE_US, Mode::Normal, LEASE_UNTIL), Resolved::Overlapped),
        (claimed(ELSEWHERE, Mode::Normal, 0), Resolved::Overlapped),
        (State::Released(NUMBERS), Resolved::Overlapped),
        (State::Deferred { attempt: 3, numbers: NUMBERS }, Resolved::Overlapped),
        (State::DeadLettered(NUMBERS), Resolved::Overlapped),
    ] {
        let write = Write { state: State::Completed { fingerprint: Some(7) }, lifetime: GRACE };
        assert_eq!(resolve(state, Resolution::Completed), (reply, Some(write)), "{state:?}");
    }
}

#[test]
fn nothing_else_is_recorded_by_one_that_does_not_hold_the_claim() {
    for state in [
        State::Absent,
        State::Completed { fingerprint: Some(7) },
        claimed(BESIDE_US, Mode::Normal, 0),
        claimed(ELSEWHERE, Mode::Normal, LEASE_UNTIL),
        State::Released(NUMBERS),
        State::Deferred { attempt: 3, numbers: NUMBERS },
        State::DeadLettered(NUMBERS),
    ] {
        for resolution in [
            Resolution::Returned { attempts: 1 },
            Resolution::Failed { attempts: 1 },
            Resolution::DeadLettered,
            Resolution::Deferred { attempt: 2 },
        ] {
            assert_eq!(resolve(state, resolution), (Resolved::NotOwner, None), "{state:?} {resolution:?}");
        }
    }
}

#[test]
fn what_becomes_of_a_claim_keeps_the_numbers_that_still_mean_something() {
    let suspect = Numbers { suspect: true, ..NUMBERS };
    let held = |mode| State::Claimed(Claimed { owner: US, lease_until: 0, mode, numbers: suspect });
    let with = |attempts, suspect| Numbers { attempts, suspect, ..NUMBERS };
    let buried = Numbers { attempts: 0, crashes: 0, suspect: false, ..NUMBERS };
    for (mode, resolution, next) in [
        // Not run, or not to the end: as suspect as it was held.
        (Mode::Normal, Resolution::Returned { attempts: 9 }, State::Released(with(9, false))),
        (Mode::Suspect, Resolution::Returned { attempts: 0 }, State::Released(with(2, true))),
        (Mode::Alone, Resolution::Returned { attempts: 0 }, State::Released(with(2, true))),
        // It has run and nobody died.
        (Mode::Alone, Resolution::Failed { attempts: 9 }, State::Released(with(9, false))),
        (Mode::Alone, Resolution::Failed { attempts: 0 }, State::Released(with(2, false))),
        (Mode::Alone, Resolution::DeadLettered, State::DeadLettered(buried)),
        (
            Mode::Alone,
            Resolution::Deferred { attempt: 5 },
            State::Deferred { attempt: 5, numbers: with(4, false) },
        ),
        (
            Mode::Alone,
            Resolution::Deferred { attempt: 1 },
            State::Deferred { attempt: 1, numbers: with(2, false) },
        ),
    ] {
        let write = Write { state: next, lifetime: GRACE };
        assert_eq!(resolve(held(mode), resolution), (Resolved::Applied, Some(write)), "{resolution:?}");
    }
}

fn renew(state: State, attempts: u32, mode: Mode) -> (Renewal, Option<Write>) {
    let request = RenewRequest { claim: ours(), attempts, mode };
    match transition(&state, &Operation::Renew(&request), NOW) {
        (Reply::Renew(reply), write) => (reply, write),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_renewal_prolongs_what_is_ours_and_tells_what_has_become_of_the_rest() {
    // Ours even if the lease has ended: nobody has taken it over.
    for lease_until in [0, LEASE_UNTIL] {
        for (attempts, then) in [(0, 2), (9, 9)] {
            let numbers = Numbers { attempts: then, ..NUMBERS };
            let held = Claimed { owner: US, lease_until: LEASE_UNTIL, mode: Mode::Alone, numbers };
            let write = Write { state: State::Claimed(held), lifetime: LEASE + GRACE };
            let state = claimed(US, Mode::Normal, lease_until);
            assert_eq!(renew(state, attempts, Mode::Alone), (Renewal::Held, Some(write)));
        }
    }
    for (state, reply) in [
        (State::Completed { fingerprint: None }, Renewal::Completed),
        (State::Absent, Renewal::Lost),
        (claimed(BESIDE_US, Mode::Normal, LEASE_UNTIL), Renewal::Lost),
        (claimed(ELSEWHERE, Mode::Normal, 0), Renewal::Lost),
        (State::Released(NUMBERS), Renewal::Lost),
        (State::Deferred { attempt: 3, numbers: NUMBERS }, Renewal::Lost),
        (State::DeadLettered(NUMBERS), Renewal::Lost),
    ] {
        assert_eq!(renew(state, 0, Mode::Normal), (reply, None), "{state:?}");
    }
}

#[test]
fn no_time_is_too_long() {
    let asked = ClaimRequest { lease: Duration::MAX, grace: GRACE, ..request() };
    let (_, write) = claim(State::Absent, &asked);
    let Some(Write { state: State::Claimed(held), lifetime: Duration::MAX }) = write else {
        panic!("{write:?}")
    };
    assert_eq!(held.lease_until, u64::MAX);
}
