use super::*;
use crate::history::{Letter, Published};

const LIMITS: Limits =
    Limits { lease: Duration::from_secs(3), in_flight: 2, slack: Duration::from_millis(500) };

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn published(id: &str, key: usize, kind: Kind) -> Published {
    Published { id: id.to_owned(), key, kind, confirmed: Some(ms(1)) }
}

fn effect(id: &str, consumer: usize, epoch: u64, seen: u64) -> Effect {
    Effect { id: id.to_owned(), consumer, epoch, seen: ms(seen) }
}

fn trouble(cause: Cause, consumer: usize, from: u64, until: u64) -> Trouble {
    Trouble { cause, consumer, from: ms(from), until: ms(until) }
}

fn letter(id: &str, error: &str) -> Letter {
    Letter { id: id.to_owned(), reason: "attempts-exhausted".to_owned(), error: error.to_owned() }
}

/// Messages `a`, `b`, `c` of one key.
fn history(effects: Vec<Effect>, troubles: Vec<Trouble>) -> History {
    let published = ["a", "b", "c"].map(|id| published(id, 0, Kind::Good)).to_vec();
    History { ordered: true, published, effects, troubles, ..History::default() }
}

fn once_each() -> Vec<Effect> {
    vec![effect("a", 0, 1, 10), effect("b", 0, 1, 20), effect("c", 0, 1, 30)]
}

/// `a` twice, by consumer 0 and then by consumer 1.
fn twice(first: u64, second: u64) -> Vec<Effect> {
    let mut effects = once_each();
    effects[0].seen = ms(first);
    effects.push(effect("a", 1, 2, second));
    effects
}

#[test]
fn once_each_in_order_is_clean() {
    assert!(judge(&history(once_each(), Vec::new()), LIMITS).is_clean());
}

#[test]
fn a_confirmed_message_without_effect_is_lost_unless_it_was_set_aside() {
    let mut history = history(once_each(), Vec::new());
    history.effects.pop();
    history.published.push(published("bounced", 0, Kind::Bouncing));
    history.published.push(Published { confirmed: None, ..published("never confirmed", 0, Kind::Good) });
    assert_eq!(judge(&history, LIMITS).lost, ["c", "bounced"]);
    history.letters = vec![letter("bounced", "no such mailbox")];
    assert_eq!(judge(&history, LIMITS).lost, ["c"]);
}

#[test]
fn a_message_that_can_be_mailed_is_not_set_aside_but_for_what_it_kills() {
    let mut history = history(once_each(), Vec::new());
    history.letters = vec![letter("a", "it is down"), letter("b", "process died 3 times while …")];
    let verdict = judge(&history, LIMITS);
    assert_eq!(verdict.wrongly_set_aside, ["a: attempts-exhausted, it is down"]);
    assert!(!verdict.is_clean());
}

#[test]
fn an_effect_of_what_nobody_published_or_of_what_bounces_is_foreign() {
    let mut history = history(once_each(), Vec::new());
    history.effects.extend([effect("x", 0, 1, 40), effect("bounced", 0, 1, 41)]);
    history.published.push(published("bounced", 0, Kind::Bouncing));
    assert_eq!(judge(&history, LIMITS).foreign, ["bounced", "x"]);
}

#[test]
fn a_repeated_effect_needs_a_reason() {
    let verdict = judge(&history(twice(10, 9_000), Vec::new()), LIMITS);
    assert_eq!(verdict.unexplained.len(), 1);
    assert!(!verdict.is_clean());
}

#[test]
fn what_was_in_flight_at_a_kill_may_be_repeated() {
    let killed = |from| vec![trouble(Cause::Killed, 0, from, from + 5)];
    let verdict = judge(&history(twice(1_000, 5_000), killed(1_020)), LIMITS);
    assert!(verdict.is_clean());
    assert_eq!(verdict.explained_by(Cause::Killed), 1);
    // Long before the kill.
    assert_eq!(judge(&history(twice(1_000, 9_000), killed(4_100)), LIMITS).unexplained.len(), 1);
    // Seen long after it.
    assert_eq!(judge(&history(twice(2_000, 9_000), killed(1_000)), LIMITS).unexplained.len(), 1);
    // Another one was killed.
    let other = vec![trouble(Cause::Killed, 1, 1_020, 1_025)];
    assert_eq!(judge(&history(twice(1_000, 5_000), other), LIMITS).unexplained.len(), 1);
}

#[test]
fn nobody_else_gets_the_key_before_the_claim_of_the_dead_has_run_out() {
    let killed = vec![trouble(Cause::Killed, 0, 1_020, 1_025)];
    assert_eq!(judge(&history(twice(1_000, 2_000), killed), LIMITS).unexplained.len(), 1);
}

#[test]
fn a_stop_or_an_outage_explains_only_if_a_claim_can_run_out_in_it() {
    for cause in [Cause::Stopped, Cause::StoreAway] {
        let away = |length: u64| vec![trouble(cause, 0, 1_000, 1_000 + length)];
        assert!(judge(&history(twice(990, 5_000), away(3_500)), LIMITS).is_clean());
        // By the one that was stopped, when it goes on; the other one had it meanwhile.
        assert!(judge(&history(twice(4_600, 4_000), away(3_500)), LIMITS).is_clean());
        assert_eq!(judge(&history(twice(990, 5_000), away(1_400)), LIMITS).unexplained.len(), 1);
        assert_eq!(judge(&history(twice(5_100, 4_000), away(3_500)), LIMITS).unexplained.len(), 1);
    }
}

#[test]
fn epochs_say_which_effect_was_the_first_and_not_the_order_in_which_they_are_seen() {
    let mut effects = twice(4_600, 4_000);
    effects.swap(0, 3);
    let mut history = history(effects, vec![trouble(Cause::Stopped, 0, 1_000, 4_500)]);
    history.ordered = false;
    assert_eq!(judge(&history, LIMITS).explained_by(Cause::Stopped), 1);
}

#[test]
fn one_claim_never_has_two_effects() {
    let mut effects = twice(1_000, 5_000);
    effects[3].epoch = 1;
    let killed = vec![trouble(Cause::Killed, 0, 1_020, 1_025)];
    assert_eq!(judge(&history(effects, killed), LIMITS).unexplained.len(), 1);
}

#[test]
fn a_kill_repeats_no_more_than_was_in_flight() {
    let mut effects: Vec<_> = once_each();
    effects.extend(["a", "b", "c"].map(|id| effect(id, 1, 2, 5_000)));
    let killed = vec![trouble(Cause::Killed, 0, 40, 45)];
    let verdict = judge(&history(effects, killed), LIMITS);
    assert_eq!((verdict.explained.len(), verdict.unexplained.len()), (2, 1));
}

#[test]
fn the_first_effects_of_a_key_come_in_its_order() {
    let swapped = vec![effect("b", 0, 1, 10), effect("a", 0, 1, 20), effect("c", 0, 1, 30)];
    let mut history = history(swapped, Vec::new());
    let verdict = judge(&history, LIMITS);
    assert_eq!(verdict.disorder.len(), 1);
    assert!(!verdict.is_clean());
    history.ordered = false;
    assert!(judge(&history, LIMITS).is_clean());
    history.ordered = true;
    history.published.iter_mut().for_each(|published| published.key = 1);
    assert_eq!(judge(&history, LIMITS).disorder.len(), 1);
    history.published[1].key = 2;
    assert!(judge(&history, LIMITS).is_clean());
}

#[test]
fn what_comes_again_is_not_out_of_order() {
    let mut effects = once_each();
    effects.push(effect("a", 0, 2, 5_000));
    let away = vec![trouble(Cause::StoreAway, 0, 5, 4_000)];
    assert!(judge(&history(effects, away), LIMITS).is_clean());
}
