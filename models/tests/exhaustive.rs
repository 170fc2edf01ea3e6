//! Every state of every model, and a state that breaks a property for every mistake.
//!
//! A mistake is found or the test fails; so a property that cannot fail does not stay.

use models::{
    Explored, Variant, claim, redrive,
    watermark::{self, Variant as Watermark},
};

/// What was found is what `docs/models.md` says.
fn holds(model: &str, bounds: &str, found: Explored) {
    assert!(found.broken.is_empty(), "{model}, {bounds}: {:#?}", found.broken);
    in_the_docs(&format!(
        "| {model} | {bounds} | {} | {} | {} |",
        grouped(found.states),
        found.depth,
        found.longest
    ));
}

fn in_the_docs(row: &str) {
    let docs = include_str!("../../docs/models.md");
    assert!(docs.lines().any(|line| line == row), "docs/models.md does not have this line:\n{row}");
}

fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(",")
}

/// The model finds the mistake, by this property among others.
fn refutes(mistake: impl std::fmt::Debug, property: &str, found: &Explored) {
    let found: Vec<&str> = found.broken.iter().map(|(name, _)| *name).collect();
    assert!(found.contains(&property), "{mistake:?} breaks {found:?} and not {property:?}");
    in_the_docs(&format!("| `{mistake:?}` | {property} |"));
}

#[test]
fn every_property_is_broken_by_a_mistake() {
    let rows: Vec<_> =
        include_str!("../../docs/models.md").lines().filter(|line| line.starts_with("| ")).collect();
    let mut properties = 0;
    for row in rows.iter().filter(|row| row.as_bytes()[2].is_ascii_digit()) {
        let property = row.split(" | ").next().unwrap_or_default().trim_start_matches("| ");
        let refuted = format!("| {property} |");
        assert!(rows.iter().any(|row| row.starts_with("| `") && row.ends_with(&refuted)), "{property}");
        properties += 1;
    }
    assert!(properties > 10, "{properties}");
}

#[test]
fn claim_with_two_messages_and_two_faults() {
    holds("claim", "2 messages, 2 processes, 2 faults", claim::model(Variant::Code, 2, 2).explore());
}

#[test]
fn claim_with_one_message_and_three_faults() {
    holds("claim", "1 message, 2 processes, 3 faults", claim::model(Variant::Code, 1, 3).explore());
}

#[test]
#[ignore = "takes minutes"]
fn large_bounds_claim_with_one_message_and_four_faults() {
    let found = claim::model(Variant::Code, 1, 4).explore();
    assert!(found.broken.is_empty(), "{:#?}", found.broken);
}

#[test]
fn claim_finds_every_mistake() {
    for (mistake, property) in [
        (Variant::AckBeforeConfirm, "1: an ack has a reason"),
        (Variant::MarkFirst, "1: an ack has a reason"),
        (Variant::CompleteAsksForTheOwner, "2: completed stays completed"),
        (Variant::RunsWhatIsCompleted, "2: the effect happens once"),
        (Variant::TwoSteps, "3: one unexpired claim"),
        (Variant::WallClock, "3: one unexpired claim"),
        (Variant::ReleaseDoesNotAskForTheOwner, "3: a foreign claim is not touched"),
        (Variant::EpochStartsAnew, "4: epochs grow"),
        (Variant::ReturnCounts, "6: only failures count"),
        (Variant::NoLease, "6: every message is settled in time"),
    ] {
        refutes(mistake, property, &claim::model(mistake, 1, 2).explore());
    }
}

#[test]
fn redrive_with_three_faults() {
    holds(
        "redrive",
        "1 message, 2 processes, an operator, 3 faults",
        redrive::model(Variant::Code, 3).explore(),
    );
}

#[test]
fn redrive_finds_every_mistake() {
    for (mistake, property) in [
        (Variant::AckBeforeCopy, "1: an ack has a reason"),
        (Variant::SettleBeforeConfirm, "1: no message is lost"),
        (Variant::RedriveWithoutCount, "1: no message is lost"),
        (Variant::DeadLetteredIsFree, "2: a redrive is one run more"),
        (Variant::LetterWithItsOwnCount, "2: a redrive is one run more"),
    ] {
        refutes(mistake, property, &redrive::model(mistake, 3).explore());
    }
}

#[test]
fn watermark_with_one_rebalance() {
    let found = watermark::model(Watermark::Code, 1).explore();
    holds("watermark", "3 messages, 2 members, 1 rebalance, loss or death", found);
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn large_bounds_watermark_with_two_rebalances() {
    let found = watermark::model(Watermark::Code, 2).explore();
    assert!(found.broken.is_empty(), "{:#?}", found.broken);
}

#[test]
fn watermark_finds_every_mistake() {
    for (mistake, property) in [
        (Watermark::CommitTheHighest, "5: nothing is passed"),
        (Watermark::LateIsBooked, "5: nothing delivered is passed"),
        (Watermark::CommitUnasked, "5: a commit is of the assignment there is"),
        (Watermark::CommitsOverlap, "5: commits only grow"),
        (Watermark::NackIsDropped, "6: every message is settled in time"),
    ] {
        refutes(mistake, property, &watermark::model(mistake, 1).explore());
    }
}
