//! The store, as it is and as it must not be.

use consumer_core::dedup::{ClaimReply, Resolved, protocol::Reply};

use super::{
    record::{Decided, Numbers, Op, Owner, RETENTION, Record, What, decide},
    world::{Rule, Unreplicated, World},
};

/// What is modelled: the code, or the code with one mistake in it, which a model has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Variant {
    /// As it is.
    #[default]
    Code,
    /// A key that another one has claimed counts as completed: marked first, handled later.
    MarkFirst,
    /// A worker runs what the store says is completed.
    RunsWhatIsCompleted,
    /// A claim is read in one step and written in another.
    TwoSteps,
    /// A completion of a claim that was taken over is refused.
    CompleteAsksForTheOwner,
    /// A release does not ask whose claim it is.
    ReleaseDoesNotAskForTheOwner,
    /// A claim has no lease: that of a dead process stands for ever.
    NoLease,
    /// Whether a lease has ended is asked of the client's wall clock.
    WallClock,
    /// A release deletes the record, and the next epoch is 1.
    EpochStartsAnew,
    /// What was handed back counts as failed.
    ReturnCounts,
    /// A dead letter is acked before it is confirmed.
    AckBeforeConfirm,
    /// A delayed copy is acked before it is confirmed.
    AckBeforeCopy,
    /// A message goes back with the redrive count it had.
    RedriveWithoutCount,
    /// A dead letter has the redrive count of the message that failed, though the key has seen a higher one.
    LetterWithItsOwnCount,
    /// A dead-lettered key is free for everybody.
    DeadLetteredIsFree,
    /// The operator settles a dead letter before the redriven message is confirmed.
    SettleBeforeConfirm,
}

impl World {
    /// One operation in the store: decided on `read`, or on what is there.
    pub(super) fn ask(&mut self, variant: Variant, key: usize, op: Op, read: Option<Record>) -> Reply {
        let there = self.keys[key].record;
        let seen = read.unwrap_or_else(|| self.seen(variant, key, op.owner));
        let mut decided = decide(seen, self.keys[key].behind, op);
        distort(variant, seen, op, &mut decided);
        let Some((mut record, lifetime)) = decided.write else { return decided.reply };
        if variant == Variant::EpochStartsAnew && matches!(record, Record::Released(_)) {
            record = Record::Absent;
            self.keys[key].behind = 1;
        }
        let before = self.keys[key];
        if there == Record::Completed && (record != there || lifetime < RETENTION) {
            self.broken = Some(Rule::Completed);
        }
        let is_claim = matches!(op.what, What::Claim { .. });
        let owns = matches!(there, Record::Claimed { owner, .. } if owner == op.owner);
        if is_claim && there.held_by().is_some_and(|owner| owner != op.owner) {
            self.broken = Some(Rule::OneClaim);
        }
        if !is_claim && op.what != What::Complete && !owns {
            self.broken = Some(Rule::Foreign);
        }
        let mut behind = before.behind;
        if is_claim && !owns {
            let mut epoch = decided.epoch.unwrap_or(i64::MIN);
            if variant == Variant::EpochStartsAnew && there == Record::Absent && behind > 0 {
                epoch = 0;
            }
            if epoch <= 0 && !before.lost {
                self.broken = Some(Rule::Epoch);
            }
            behind = u8::try_from(-epoch.min(0)).unwrap_or(u8::MAX);
        } else if matches!(record, Record::Absent | Record::Completed) && variant != Variant::EpochStartsAnew
        {
            behind = 0;
        }
        if self.faults > 0 {
            // A claim that is lost leaves its epoch above that of the record which comes back.
            let granted = is_claim && !owns && before.record.numbers().is_some();
            self.unreplicated = Some(Unreplicated {
                key: u8::try_from(key).unwrap_or(u8::MAX),
                record: before.record,
                behind: before.behind + u8::from(granted),
            });
        }
        (self.keys[key].record, self.keys[key].behind) = (record, behind);
        decided.reply
    }

    /// The record as the operation sees it.
    fn seen(&self, variant: Variant, key: usize, by: Owner) -> Record {
        let there = self.keys[key].record;
        let Record::Claimed { owner, left, mode, numbers } = there else { return there };
        let ahead = by.process < 2 && self.ahead[usize::from(by.process)];
        match variant {
            Variant::WallClock if ahead => Record::Claimed { owner, left: 0, mode, numbers },
            Variant::NoLease => Record::Claimed { owner, left: left.max(1), mode, numbers },
            _ => there,
        }
    }
}

/// What a mistake makes of a decision.
fn distort(variant: Variant, seen: Record, op: Op, decided: &mut Decided) {
    match (variant, &decided.reply) {
        (Variant::MarkFirst, Reply::Claim(ClaimReply::Busy { .. })) => {
            decided.reply = Reply::Claim(ClaimReply::Completed);
        }
        (Variant::CompleteAsksForTheOwner, Reply::Resolve(Resolved::Overlapped)) => decided.write = None,
        (Variant::ReleaseDoesNotAskForTheOwner, Reply::Resolve(Resolved::NotOwner)) => {
            if let (Record::Claimed { numbers, .. }, What::Return { .. } | What::Fail { .. }) =
                (seen, op.what)
            {
                decided.write = Some((Record::Released(numbers), RETENTION));
            }
        }
        (Variant::DeadLetteredIsFree, Reply::Claim(ClaimReply::DeadLettered)) => {
            let numbers =
                seen.numbers().unwrap_or(Numbers { attempts: 0, crashes: 0, suspect: false, redrive: 0 });
            *decided = decide(Record::Released(numbers), 0, op);
        }
        _ => {}
    }
}
