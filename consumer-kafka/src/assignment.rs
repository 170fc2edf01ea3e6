//! What the thread knows of the partitions it has.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{Offset, TopicPartitionList};

use crate::{partition::Partition, retry::waiting::Waiting, shared::Queued, tracker::Progress};

/// The partitions of this member, each with what became of its messages.
#[derive(Debug, Default)]
pub(crate) struct Assignment {
    slots: Vec<Slot>,
    /// Messages come in runs of one partition.
    last: usize,
    /// Partitions that have gone, each with what was committed of it, while something may still be acked in them.
    ended: Vec<(Arc<Partition>, Progress)>,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) partition: Arc<Partition>,
    /// Messages that went on to the runtime.
    pub(crate) taken: u64,
    /// Of the last message taken from the driver.
    pub(crate) last_offset: Option<u64>,
    pub(crate) committed: Progress,
    /// Paused since too much is uncommitted, or enough waits until it is due.
    pub(crate) paused: bool,
    /// In a retry topic: taken from the driver, and not due yet.
    pub(crate) waiting: Option<Waiting>,
}

impl Slot {
    fn new(partition: Arc<Partition>, delay: Option<Duration>) -> Self {
        Self {
            partition,
            taken: 0,
            last_offset: None,
            committed: Progress::default(),
            paused: false,
            waiting: delay.map(Waiting::new),
        }
    }

    /// Lets what is due go on, unless too much is uncommitted.
    pub(crate) fn release_due(&mut self, now: Instant, limit: u64, batch: &mut Vec<Queued>) {
        while self.uncommitted() < limit
            && let Some(queued) = self.waiting.as_mut().and_then(|waiting| waiting.pop_due(now))
        {
            self.taken += 1;
            batch.push(queued);
        }
    }

    /// Whether there is a reason to pause the partition. In a retry topic, what is due heeds the limit by itself.
    pub(crate) fn is_over(&self, limit: u64) -> bool {
        self.waiting.as_ref().map_or(self.uncommitted() >= limit, Waiting::is_full)
    }

    /// Whether there is no reason any more to keep it paused.
    pub(crate) fn is_below(&self, limit: u64) -> bool {
        self.waiting.as_ref().map_or(self.uncommitted() <= limit / 2, Waiting::is_low)
    }

    pub(crate) fn uncommitted(&self) -> u64 {
        self.taken.saturating_sub(self.committed.settled)
    }
}

/// Offsets on their way to the broker.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) entries: Vec<(Arc<Partition>, Progress)>,
}

impl Commit {
    pub(crate) fn list(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(self.entries.len());
        for (partition, progress) in &self.entries {
            let offset = progress.next.and_then(|next| i64::try_from(next).ok()).unwrap_or_default();
            // An offset that is not negative is representable.
            let _ = list.add_partition_offset(&partition.topic, partition.id, Offset::Offset(offset));
        }
        list
    }
}

impl Assignment {
    /// Messages of a retry topic wait for `delay`.
    pub(crate) fn add(&mut self, partition: Arc<Partition>, delay: Option<Duration>) {
        self.remove(&partition.topic, partition.id);
        self.slots.push(Slot::new(partition, delay));
        self.last = 0;
    }

    pub(crate) fn find(&mut self, topic: &str, id: i32) -> Option<&mut Slot> {
        let is = |slot: &Slot| slot.partition.id == id && &*slot.partition.topic == topic;
        if !self.slots.get(self.last).is_some_and(is) {
            self.last = self.slots.iter().position(is)?;
        }
        self.slots.get_mut(self.last)
    }

    pub(crate) fn remove(&mut self, topic: &str, id: i32) {
        if self.find(topic, id).is_some() {
            let slot = self.slots.swap_remove(self.last);
            self.ended.push((slot.partition, slot.committed));
            self.last = 0;
        }
    }

    /// What was acked in partitions that have gone and is committed by nobody, with how many messages that are; it is told
    /// once. To be asked when no commit is on its way.
    pub(crate) fn take_lost(&mut self) -> Vec<(Arc<Partition>, u64)> {
        let mut lost = Vec::new();
        self.ended.retain_mut(|(partition, committed)| {
            // In this order: nothing is acked any more in what is released.
            let is_over = partition.is_released();
            let progress = partition.progress();
            if progress.is_news(*committed) {
                lost.push((partition.clone(), progress.settled.saturating_sub(committed.settled)));
            }
            *committed = progress;
            !is_over
        });
        lost
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }

    /// What can be committed now and is not.
    pub(crate) fn to_commit(&self) -> Option<Commit> {
        let entries: Vec<_> = self
            .slots
            .iter()
            .map(|slot| (slot, slot.partition.progress()))
            .filter(|(slot, progress)| progress.is_news(slot.committed))
            .map(|(slot, progress)| (slot.partition.clone(), progress))
            .collect();
        (!entries.is_empty()).then_some(Commit { entries })
    }

    /// Drops from a commit what is not assigned any more.
    pub(crate) fn keep_ours(&self, commit: &mut Commit) {
        let ours = |scope: u64| self.slots.iter().any(|slot| slot.partition.scope == scope);
        commit.entries.retain(|(partition, _)| ours(partition.scope));
    }

    /// The broker has taken the commit. Later assignments of the same partitions are not concerned. The answer may come
    /// after that to the last commit, which was for more.
    pub(crate) fn committed(&mut self, commit: &Commit) {
        for (partition, progress) in &commit.entries {
            let slots = self.slots.iter_mut().map(|slot| (&slot.partition, &mut slot.committed));
            let ended = self.ended.iter_mut().map(|(partition, committed)| (&*partition, committed));
            let known = slots.chain(ended).find(|(known, _)| known.scope == partition.scope);
            if let Some((_, committed)) = known
                && progress.settled > committed.settled
            {
                *committed = *progress;
            }
        }
    }

    /// The partitions for which `which` holds.
    pub(crate) fn list(&self, which: impl Fn(&Slot) -> bool) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for slot in self.slots.iter().filter(|slot| which(slot)) {
            list.add_partition(&slot.partition.topic, slot.partition.id);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use consumer_core::{Message, Tag};

    use super::*;

    fn assignment() -> (Assignment, Arc<Partition>) {
        let mut assignment = Assignment::default();
        let partition = Partition::new("t".into(), 0);
        assignment.add(partition.clone(), None);
        (assignment, partition)
    }

    fn messages(lost: Vec<(Arc<Partition>, u64)>) -> Vec<u64> {
        lost.into_iter().map(|(_, messages)| messages).collect()
    }

    #[test]
    fn nothing_is_committed_twice() {
        let (mut assignment, partition) = assignment();
        assert!(assignment.to_commit().is_none());
        partition.advance(Progress { next: Some(7), settled: 7 });
        let commit = assignment.to_commit().unwrap();
        assignment.committed(&commit);
        assert!(assignment.to_commit().is_none());
    }

    #[test]
    fn fm14_the_answer_to_a_commit_of_an_old_assignment_changes_nothing() {
        let (mut assignment, old) = assignment();
        old.advance(Progress { next: Some(7), settled: 7 });
        let mut commit = assignment.to_commit().unwrap();
        assignment.remove("t", 0);
        let new = Partition::new("t".into(), 0);
        assert_ne!(new.scope, old.scope);
        assignment.add(new.clone(), None);
        assignment.committed(&commit);
        assert_eq!(assignment.find("t", 0).unwrap().committed, Progress::default());
        old.advance(Progress { next: Some(9), settled: 9 });
        assert!(assignment.to_commit().is_none());
        assignment.keep_ours(&mut commit);
        assert!(commit.entries.is_empty(), "it was on its way when the partition went");
    }

    #[test]
    fn what_is_acked_and_not_committed_when_its_partition_goes_is_lost_and_that_is_told_once() {
        let (mut assignment, partition) = assignment();
        partition.advance(Progress { next: Some(7), settled: 7 });
        assert!(assignment.take_lost().is_empty(), "it can still be committed");
        assignment.remove("t", 0);
        assert_eq!(messages(assignment.take_lost()), [7]);
        assert!(assignment.take_lost().is_empty(), "told once");
        partition.advance(Progress { next: Some(8), settled: 8 });
        partition.release();
        assert_eq!(messages(assignment.take_lost()), [1], "the runtime did not know yet that it had gone");
        assert!(assignment.take_lost().is_empty() && assignment.ended.is_empty());
        let again = Partition::new("t".into(), 0);
        assignment.add(again.clone(), None);
        again.advance(Progress { next: Some(9), settled: 1 });
        assignment.add(Partition::new("t".into(), 0), None);
        assert_eq!(messages(assignment.take_lost()), [1], "assigned anew, with nothing said of an end");
    }

    #[test]
    fn what_was_committed_of_a_partition_that_has_gone_is_not_lost_though_the_answer_comes_later() {
        let (mut assignment, partition) = assignment();
        partition.advance(Progress { next: Some(7), settled: 7 });
        let commit = assignment.to_commit().unwrap();
        partition.release();
        assignment.remove("t", 0);
        assignment.committed(&commit);
        assert!(assignment.take_lost().is_empty() && assignment.ended.is_empty());
    }

    #[test]
    fn the_late_answer_to_an_earlier_commit_takes_nothing_back() {
        let (mut assignment, partition) = assignment();
        partition.advance(Progress { next: Some(5), settled: 5 });
        let early = assignment.to_commit().unwrap();
        partition.advance(Progress { next: Some(8), settled: 8 });
        let last = assignment.to_commit().unwrap();
        assignment.committed(&last);
        assignment.remove("t", 0);
        assignment.committed(&early);
        assert!(assignment.take_lost().is_empty(), "all of it is at the broker");
    }

    #[test]
    fn a_retry_partition_is_paused_by_what_waits_and_what_is_due_heeds_the_limit() {
        let (mut slot, now) =
            (Slot::new(Partition::new("r".into(), 0), Some(Duration::from_secs(30))), Instant::now());
        for seq in 0..256 {
            assert!(!slot.is_over(10));
            let queued = Queued { tag: Tag { scope: 1, seq }, message: Message::new("x"), bytes: 1 };
            slot.waiting.as_mut().unwrap().push(now, queued);
        }
        assert!(slot.is_over(10) && slot.uncommitted() == 0, "what waits has not been delivered");
        let mut batch = Vec::new();
        slot.release_due(now, 10, &mut batch);
        assert_eq!((batch.len(), slot.uncommitted()), (10, 10));
        slot.committed.settled = 10;
        slot.release_due(now, 1000, &mut batch);
        assert!(batch.iter().map(|queued| queued.tag.seq).eq(0..256));
        assert!(slot.is_below(10), "nothing waits any more");
    }
}
