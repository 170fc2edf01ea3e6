//! What the driver calls back: rebalances, statistics, errors. All on the source's thread.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError as DriverError, RDKafkaErrorCode},
    statistics::Broker,
    types::RDKafkaRespErr,
};

use crate::{
    assignment::{Assignment, Commit},
    builder::{GroupProtocol, Options},
    partition::Partition,
    shared::{Control, Shared},
    start,
    trouble::{self, Trouble},
};

pub(crate) struct Callbacks {
    pub(crate) brokers: String,
    pub(crate) options: Arc<Options>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) trouble: Trouble,
    assignment: Mutex<Assignment>,
    /// Held while offsets are committed, and while partitions go: a commit that was begun before must not reach the
    /// broker when another member has gone on from a later offset.
    turn: Mutex<()>,
    /// All partitions are paused since the buffer is full.
    pub(crate) holding: AtomicBool,
    connected: AtomicBool,
    joined: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Callbacks {
    pub(crate) fn new(brokers: String, trouble: Trouble, options: Arc<Options>, shared: Arc<Shared>) -> Self {
        Self {
            brokers,
            options,
            shared,
            trouble,
            assignment: Mutex::default(),
            turn: Mutex::default(),
            holding: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            joined: AtomicBool::new(false),
        }
    }

    pub(crate) fn assignment(&self) -> MutexGuard<'_, Assignment> {
        lock(&self.assignment)
    }

    /// Commits what is still ours of it. What was committed.
    pub(crate) fn commit(
        &self,
        consumer: &BaseConsumer<Self>,
        commit: Commit,
    ) -> (Commit, Result<(), DriverError>) {
        let _turn = lock(&self.turn);
        self.commit_in_turn(consumer, commit)
    }

    fn commit_in_turn(
        &self,
        consumer: &BaseConsumer<Self>,
        mut commit: Commit,
    ) -> (Commit, Result<(), DriverError>) {
        self.assignment().keep_ours(&mut commit);
        let outcome = if commit.entries.is_empty() {
            Ok(())
        } else {
            consumer.commit(&commit.list(), CommitMode::Sync)
        };
        (commit, outcome)
    }

    pub(crate) fn has_joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }

    /// The broker has answered as it does when all is well.
    pub(crate) fn up(&self) {
        if !self.connected.swap(true, Ordering::Relaxed) {
            self.trouble.clear();
            if self.has_joined() {
                tracing::info!(brokers = self.brokers, "kafka is reachable again");
                self.shared.control(Control::Connected);
            }
        }
    }

    fn down(&self, reason: &str) {
        if self.has_joined() && self.connected.swap(false, Ordering::Relaxed) {
            tracing::warn!(brokers = self.brokers, reason, "kafka is not reachable");
            self.shared.control(Control::Disconnected);
        }
    }

    /// The first assignment is there, be it of no partition.
    fn join(&self) {
        if !self.joined.swap(true, Ordering::Relaxed) {
            self.connected.store(true, Ordering::Relaxed);
            self.trouble.clear();
            self.shared.control(Control::Connected);
        }
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) {
        // The position is looked up, and committed, before the partitions are assigned: from then on messages come,
        // and after a crash the same ones have to come again.
        if let Err(error) = start::resolve(consumer, self, list) {
            self.shared.fail(&error);
            // The driver waits for an answer to its assignment.
            *list = TopicPartitionList::new();
        }
        for elem in list.elements() {
            let partition = Partition::new(elem.topic().into(), elem.partition());
            // Looked up here; without one it is the committed offset.
            let start = match elem.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            tracing::info!(topic = elem.topic(), partition = elem.partition(), start, "partition assigned");
            self.assignment().add(partition.clone(), self.options.retry.delay_of(elem.topic()));
            self.shared.control(Control::Assigned(partition));
        }
        let outcome = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            _ => consumer.assign(list),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "kafka did not take the assignment");
        }
        // A partition stays paused over a rebalance.
        let paused =
            if self.holding.load(Ordering::Relaxed) { consumer.pause(list) } else { consumer.resume(list) };
        if let Err(error) = paused {
            tracing::warn!(%error, "newly assigned partitions could not be resumed");
        }
        self.join();
        self.up();
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let lost = consumer.assignment_lost();
        let mut closing: Vec<Arc<Partition>> = Vec::new();
        for elem in list.elements() {
            if let Some(slot) = self.assignment().find(elem.topic(), elem.partition()) {
                closing.push(slot.partition.clone());
            }
        }
        let within = if lost { Duration::ZERO } else { self.options.drain };
        for partition in &closing {
            tracing::info!(topic = &*partition.topic, partition = partition.id, lost, "partition revoked");
            self.shared.control(Control::Closing { partition: partition.clone(), within });
        }
        if !lost {
            self.shared.wait_for_release(&closing, within);
        }
        let _turn = lock(&self.turn);
        if !lost {
            self.commit_last(consumer, &closing);
        }
        for elem in list.elements() {
            self.assignment().remove(elem.topic(), elem.partition());
        }
        let outcome = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            _ => consumer.unassign(),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "kafka did not take the revocation");
        }
    }

    fn commit_last(&self, consumer: &BaseConsumer<Self>, closing: &[Arc<Partition>]) {
        let commit = self.assignment().to_commit().and_then(|mut commit| {
            commit.entries.retain(|(partition, _)| closing.iter().any(|c| c.scope == partition.scope));
            (!commit.entries.is_empty()).then_some(commit)
        });
        let Some(commit) = commit else { return };
        match self.commit_in_turn(consumer, commit) {
            (commit, Ok(())) => self.assignment().committed(&commit),
            // The group has moved on: another member starts at the last committed offset.
            (_, Err(error)) => tracing::warn!(%error, "offsets of revoked partitions were not committed"),
        }
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        trouble::log(level, facility, line);
    }

    fn error(&self, error: DriverError, reason: &str) {
        self.trouble.record(&error, reason);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.down(reason);
        }
        tracing::debug!(%error, reason, "kafka client error");
    }

    fn stats(&self, statistics: Statistics) {
        let group = statistics.cgrp.as_ref();
        let up = group.is_some_and(|group| group.state == "up")
            && statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP");
        if up {
            // With no partition for this member the consumer protocol calls nothing back: a second heartbeat means
            // that the first, by which it joins, was answered. They are the only requests to the coordinator that
            // the statistics do not count by name.
            let unnamed = |broker: &Broker| broker.tx as i64 - broker.req.values().sum::<i64>();
            let heartbeats = statistics.brokers.get("GroupCoordinator").map_or(0, unnamed);
            let new_protocol = self.options.protocol == GroupProtocol::Consumer;
            if group.is_some_and(|group| group.join_state == "steady") || new_protocol && heartbeats > 1 {
                self.join();
            }
            self.up();
        }
        for slot in self.assignment().slots() {
            let partition = &slot.partition;
            let Some(stats) = statistics
                .topics
                .get(&*partition.topic)
                .and_then(|topic| topic.partitions.get(&partition.id))
            else {
                continue;
            };
            let end = if stats.ls_offset >= 0 { stats.ls_offset } else { stats.hi_offset };
            partition.end.store(end, Ordering::Relaxed);
            // Nothing was taken yet: where fetching begins. Then the first message tells.
            if slot.last_offset.is_none() {
                partition.begin.store(stats.next_offset, Ordering::Relaxed);
            }
            if stats.fetchq_cnt == 0 {
                partition.caught_up(slot.last_offset.map_or(0, |last| last + 1), stats.next_offset);
            }
        }
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, list);
        } else {
            self.revoke(consumer, list);
        }
    }
}
