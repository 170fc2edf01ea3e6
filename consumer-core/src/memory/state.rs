//! The state of the in-memory broker, under one lock.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    assignment::{Assignment, Settled},
    clock::Clock,
    faults::Faults,
    group::share,
};
use crate::{Delivery, Event, Headers, Message, Origin, Outgoing, Settlement, Tag};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

pub(super) struct State {
    pub(super) clock: Clock,
    pub(super) topics: Vec<Topic>,
    pub(super) groups: Vec<Group>,
    pub(super) members: Map<u64, Member>,
    assignments: Map<u64, Assignment>,
    /// Messages for later, by when they are due.
    delayed: BTreeMap<(Instant, u64), (usize, Draft)>,
    pub(super) faults: Faults,
    pub(super) closing_within: Duration,
    /// How many assignments are being given up: they have a deadline.
    closing: usize,
    next_id: u64,
    /// To be woken once the lock is given back.
    pub(super) wake: Vec<Waker>,
}

pub(super) struct Topic {
    pub(super) name: Arc<str>,
    pub(super) partitions: Vec<Vec<Option<Message>>>,
    pub(super) max_bytes: Option<usize>,
    next: usize,
}

pub(super) struct Group {
    pub(super) name: Arc<str>,
    members: Vec<u64>,
    slots: BTreeMap<(usize, usize), Slot>,
}

/// A partition as a group sees it.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) committed: Option<u64>,
    scope: Option<u64>,
    /// Who should have it.
    target: Option<u64>,
}

/// A member of a group, or one that has left or crashed.
#[derive(Default)]
pub(super) struct Member {
    group: usize,
    pub(super) topics: Vec<usize>,
    /// Whether the group knows it.
    joined: bool,
    /// Whether it will never come back.
    pub(super) gone: bool,
    scopes: Vec<u64>,
    /// Its scopes that have ended and are not released.
    ended: Vec<u64>,
    /// An ack was lost since the last flush.
    lost: bool,
    /// The scope that is read first the next time.
    turn: usize,
    pub(super) events: VecDeque<Event>,
    waker: Option<Waker>,
}

/// A message that has no place in a log yet.
pub(super) struct Draft {
    message: Message,
    headers: Headers,
}

impl Draft {
    /// What counts towards a limit of size.
    pub(super) fn bytes(&self) -> usize {
        let headers =
            self.headers.iter().map(|(name, value)| name.len() + value.map_or(0, bytes::Bytes::len));
        self.message.payload().len()
            + self.message.key().map_or(0, bytes::Bytes::len)
            + headers.sum::<usize>()
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            clock: Clock::new(),
            topics: Vec::new(),
            groups: Vec::new(),
            members: Map::default(),
            assignments: Map::default(),
            delayed: BTreeMap::new(),
            faults: Faults::default(),
            closing_within: Duration::from_secs(10),
            closing: 0,
            next_id: 0,
            wake: Vec::new(),
        }
    }

    pub(super) fn topic(&self, name: &str) -> Option<usize> {
        self.topics.iter().position(|topic| &*topic.name == name)
    }

    pub(super) fn create_topic(&mut self, name: &str, partitions: usize) {
        if self.topic(name).is_none() {
            let partitions = (0..partitions.max(1)).map(|_| Vec::new()).collect();
            self.topics.push(Topic { name: name.into(), partitions, max_bytes: None, next: 0 });
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    // ---- time

    /// The first moment at which something happens by itself.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let delayed = self.delayed.keys().next().map(|(due, _)| *due);
        let closing = (self.closing > 0)
            .then(|| self.assignments.values().filter_map(|assignment| assignment.closing).min())
            .flatten();
        delayed.into_iter().chain(closing).min()
    }

    /// Does what is due by now.
    pub(super) fn advance(&mut self) {
        if self.delayed.is_empty() && self.closing == 0 {
            return;
        }
        let now = Instant::now();
        while let Some(entry) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now) {
            let (topic, draft) = entry.remove();
            self.append(topic, draft);
        }
        let over = |assignment: &Assignment| assignment.closing.is_some_and(|at| at <= now);
        let late: Vec<u64> =
            self.assignments.iter().filter(|(_, a)| over(a)).map(|(scope, _)| *scope).collect();
        for scope in late {
            self.hand_over(scope);
        }
    }

    // ---- log

    pub(super) fn draft(outgoing: &Outgoing) -> Draft {
        Draft { message: outgoing.message().clone(), headers: outgoing.headers() }
    }

    pub(super) fn delay(&mut self, topic: usize, draft: Draft, due: Instant) {
        let id = self.id();
        self.delayed.insert((due, id), (topic, draft));
        // They have to set their timers anew.
        self.wake.extend(self.members.values_mut().filter_map(|member| member.waker.take()));
    }

    pub(super) fn append(&mut self, topic: usize, draft: Draft) {
        let wall = self.clock.wall();
        let Topic { name, partitions, next, .. } = &mut self.topics[topic];
        let count = partitions.len();
        let partition = match draft.message.key() {
            Some(key) => (xxh3_64(key) % count as u64) as usize,
            None => {
                *next += 1;
                (*next - 1) % count
            }
        };
        let log = &mut partitions[partition];
        let origin = Origin::Log {
            system: "memory",
            topic: name.clone(),
            partition: partition as u32,
            offset: log.len() as u64,
        };
        let mut builder = Message::builder()
            .headers(draft.headers)
            .timestamp(draft.message.timestamp().unwrap_or(wall))
            .origin(origin);
        if !draft.message.is_tombstone() {
            builder = builder.payload(draft.message.payload().clone());
        }
        if let Some(key) = draft.message.key() {
            builder = builder.key(key.clone());
        }
        log.push(Some(builder.build()));
        self.wake_readers(topic, partition);
    }

    pub(super) fn wake_member(&mut self, id: u64) {
        self.wake.extend(self.members.get_mut(&id).and_then(|member| member.waker.take()));
    }

    fn wake_readers(&mut self, topic: usize, partition: usize) {
        for group in &self.groups {
            let scope = group.slots.get(&(topic, partition)).and_then(|slot| slot.scope);
            let member = scope.and_then(|scope| self.assignments.get(&scope)).map(|a| a.member);
            let waker = member.and_then(|id| self.members.get_mut(&id)).and_then(|m| m.waker.take());
            self.wake.extend(waker);
        }
    }

    // ---- groups

    pub(super) fn group(&mut self, name: &str) -> usize {
        self.groups.iter().position(|group| &*group.name == name).unwrap_or_else(|| {
            self.groups.push(Group { name: name.into(), members: Vec::new(), slots: BTreeMap::new() });
            self.groups.len() - 1
        })
    }

    pub(super) fn committed(&self, group: &str, topic: usize, partition: usize) -> Option<u64> {
        let group = self.groups.iter().find(|g| &*g.name == group)?;
        group.slots.get(&(topic, partition))?.committed
    }

    /// How many messages of a topic a group has not committed.
    pub(super) fn lag(&self, group: &str, topic: usize) -> u64 {
        let logs = self.topics[topic].partitions.iter().enumerate();
        logs.map(|(p, log)| log.len() as u64 - self.committed(group, topic, p).unwrap_or(0)).sum()
    }

    /// A member that has not joined yet.
    pub(super) fn new_member(&mut self, group: usize) -> u64 {
        let id = self.id();
        self.members.insert(id, Member { group, ..Member::default() });
        id
    }

    /// Lets a member join, if it is not in the group and the broker is up.
    pub(super) fn join(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.joined || member.gone || self.faults.down {
            return;
        }
        member.joined = true;
        let group = member.group;
        for topic in &member.topics {
            for partition in 0..self.topics[*topic].partitions.len() {
                self.groups[group].slots.entry((*topic, partition)).or_default();
            }
        }
        self.groups[group].members.push(id);
        self.rebalance(group);
        if let Some(member) = self.members.get_mut(&id) {
            member.events.push_back(Event::Connected);
        }
    }

    /// Takes a member out of its group, with everything that is assigned to it.
    pub(super) fn leave(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.joined) else { return };
        member.joined = false;
        let group = member.group;
        for scope in std::mem::take(&mut member.scopes) {
            self.end(scope);
        }
        self.groups[group].members.retain(|member| *member != id);
        self.rebalance(group);
    }

    /// The member is cut off: what it holds can no longer be settled. It joins again when it is polled.
    pub(super) fn disconnect(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.joined) else { return };
        let closing =
            member.scopes.iter().map(|scope| Event::Closing { scope: *scope, within: Duration::ZERO });
        let closing: Vec<_> = closing.collect();
        member.events.retain(|event| matches!(event, Event::Unsettled { .. }));
        member.events.push_back(Event::Disconnected);
        member.events.extend(closing);
        self.wake.extend(member.waker.take());
        self.leave(id);
    }

    /// Ends an assignment without telling its member.
    fn end(&mut self, scope: u64) {
        let Some(ended) = self.assignments.remove(&scope) else { return };
        self.closing -= usize::from(ended.closing.is_some());
        if let Some(slot) = self.groups[ended.group].slots.get_mut(&(ended.topic, ended.partition)) {
            slot.scope = None;
        }
        if let Some(member) = self.members.get_mut(&ended.member) {
            member.ended.push(scope);
        }
    }

    /// Nothing of this scope runs any more.
    pub(super) fn release(&mut self, id: u64, scope: u64) {
        self.hand_over(scope);
        if let Some(member) = self.members.get_mut(&id) {
            member.ended.retain(|ended| *ended != scope);
        }
    }

    /// If this scope is being given up, another member gets the partition.
    fn hand_over(&mut self, scope: u64) {
        let Some(assignment) = self.assignments.get(&scope).filter(|a| a.closing.is_some()) else { return };
        let (member, group) = (assignment.member, assignment.group);
        self.end(scope);
        if let Some(member) = self.members.get_mut(&member) {
            member.scopes.retain(|held| *held != scope);
        }
        self.hand_out(group);
    }

    fn rebalance(&mut self, group: usize) {
        let topics: Vec<usize> = {
            let mut topics: Vec<usize> = self.groups[group].slots.keys().map(|(topic, _)| *topic).collect();
            topics.dedup();
            topics
        };
        for topic in topics {
            let subscribed = |id: &&u64| self.members.get(id).is_some_and(|m| m.topics.contains(&topic));
            let members: Vec<u64> = self.groups[group].members.iter().filter(subscribed).copied().collect();
            let slots = self.groups[group].slots.range((topic, 0)..=(topic, usize::MAX));
            let owner = |slot: &Slot| slot.scope.and_then(|s| self.assignments.get(&s)).map(|a| a.member);
            let owners: Vec<_> = slots.map(|(_, slot)| owner(slot)).collect();
            let shared = share(&owners, &members);
            let slots = self.groups[group].slots.range_mut((topic, 0)..=(topic, usize::MAX));
            for ((_, slot), target) in slots.zip(shared) {
                slot.target = target;
            }
        }
        self.revoke(group);
        self.hand_out(group);
        // Somebody may have to set a timer for a partition that another one gives up.
        let members = &mut self.members;
        let wakers = self.groups[group].members.iter().filter_map(|id| members.get_mut(id)?.waker.take());
        self.wake.extend(wakers);
    }

    /// Asks for the partitions that should be elsewhere.
    fn revoke(&mut self, group: usize) {
        for slot in self.groups[group].slots.values() {
            let Some(scope) = slot.scope else { continue };
            let Some(assignment) = self.assignments.get_mut(&scope) else { continue };
            if slot.target == Some(assignment.member) || assignment.closing.is_some() {
                continue;
            }
            // Twice the time its member is told, so that what is settled in the last moment still counts.
            assignment.closing = Some(Instant::now() + self.closing_within * 2);
            self.closing += 1;
            if let Some(member) = self.members.get_mut(&assignment.member) {
                member.events.push_back(Event::Closing { scope, within: self.closing_within });
            }
        }
    }

    /// Gives the partitions that nobody has to those who should have them.
    fn hand_out(&mut self, group: usize) {
        let free: Vec<(usize, usize)> =
            self.groups[group].slots.iter().filter(|(_, s)| s.scope.is_none()).map(|(at, _)| *at).collect();
        for (topic, partition) in free {
            let scope = self.id();
            let Some(slot) = self.groups[group].slots.get_mut(&(topic, partition)) else { continue };
            let Some(target) = slot.target else { continue };
            let Some(member) = self.members.get_mut(&target).filter(|member| member.joined) else { continue };
            slot.scope = Some(scope);
            let position = slot.committed.unwrap_or(0);
            self.assignments.insert(scope, Assignment::new(target, group, topic, partition, position));
            member.scopes.push(scope);
            self.wake.extend(member.waker.take());
        }
    }

    // ---- deliveries

    /// Keeps the waker of a member until something happens for it.
    pub(super) fn park(&mut self, id: u64, waker: &Waker) {
        if let Some(member) = self.members.get_mut(&id) {
            match &mut member.waker {
                Some(kept) => kept.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
    }

    /// Takes at most `room` messages for a member; tells whether there was any.
    pub(super) fn fetch(&mut self, id: u64, room: usize, out: &mut Vec<Delivery>) -> bool {
        let Some(member) = self.members.get_mut(&id) else { return false };
        let before = out.len();
        let count = member.scopes.len();
        for turn in 0..count {
            let scope = member.scopes[(member.turn + turn) % count];
            let Some(assignment) = self.assignments.get_mut(&scope).filter(|a| a.closing.is_none()) else {
                continue;
            };
            let log = &self.topics[assignment.topic].partitions[assignment.partition];
            while out.len() - before < room {
                let offset = assignment.take_again().or_else(|| {
                    let ahead = log.get(assignment.position as usize..)?;
                    Some(assignment.position + ahead.iter().position(Option::is_some)? as u64)
                });
                let Some(offset) = offset else { break };
                let Some(Some(message)) = log.get(offset as usize) else { continue };
                let first = offset >= assignment.position;
                let tag = Tag { scope, seq: assignment.deliver(offset) };
                out.push(Delivery { tag, message: message.clone() });
                if first && self.faults.next_duplicate() {
                    assignment.deliver_twice(offset);
                }
            }
        }
        member.turn = member.turn.wrapping_add(1);
        out.len() > before
    }

    pub(super) fn settle(&mut self, id: u64, tag: Tag, how: Settlement) {
        let Some(assignment) = self.assignments.get_mut(&tag.scope).filter(|a| a.member == id) else {
            let late = |member: &Member| how != Settlement::Nack && member.ended.contains(&tag.scope);
            if let Some(member) = self.members.get_mut(&id).filter(|member| late(member)) {
                member.lost = true;
                member.events.push_back(Event::Unsettled { scope: tag.scope, messages: 1 });
                self.wake.extend(member.waker.take());
            }
            return;
        };
        let lost = self.faults.next_settlement_is_lost();
        let lost_ack = lost && how != Settlement::Nack;
        let how = if lost { Settlement::Nack } else { how };
        let settled = assignment.settle(tag.seq, how);
        let (group, topic, partition) = (assignment.group, assignment.topic, assignment.partition);
        if let Some(member) = self.members.get_mut(&id).filter(|_| lost_ack && settled != Settled::Ignored) {
            member.lost = true;
            member.events.push_back(Event::Unsettled { scope: tag.scope, messages: 1 });
            self.wake.extend(member.waker.take());
        }
        match settled {
            Settled::Ignored | Settled::Kept => {}
            Settled::Again => self.wake_member(id),
            Settled::Commit(offset) => {
                let slot = self.groups[group].slots.entry((topic, partition)).or_default();
                slot.committed = Some(offset);
                let log = &self.topics[topic].partitions[partition];
                if log[offset as usize..].iter().all(Option::is_none) {
                    // A finite source may be at its end.
                    let members = &mut self.members;
                    let group = &self.groups[group];
                    self.wake.extend(group.members.iter().filter_map(|id| members.get_mut(id)?.waker.take()));
                }
            }
        }
    }

    /// Whether an ack was lost since this was last asked.
    pub(super) fn take_lost(&mut self, id: u64) -> bool {
        self.members.get_mut(&id).is_some_and(|member| std::mem::take(&mut member.lost))
    }

    /// How many messages wait for a member behind what it was given.
    pub(super) fn ahead(&self, id: u64) -> u64 {
        let Some(member) = self.members.get(&id) else { return 0 };
        let assignments = member.scopes.iter().filter_map(|scope| self.assignments.get(scope));
        assignments
            .map(|a| {
                let end = self.topics[a.topic].partitions[a.partition].len() as u64;
                end - a.position + a.waiting_again() as u64
            })
            .sum()
    }

    /// Whether the group has committed everything in the member's topics, with nothing to come later.
    pub(super) fn all_read(&self, id: u64) -> bool {
        let Some(member) = self.members.get(&id) else { return true };
        let group = &self.groups[member.group];
        let later = || self.delayed.values().any(|(topic, _)| member.topics.contains(topic));
        let read = |topic: &usize| {
            self.topics[*topic].partitions.iter().enumerate().all(|(partition, log)| {
                let committed = group.slots.get(&(*topic, partition)).and_then(|slot| slot.committed);
                let committed = committed.unwrap_or(0) as usize;
                log[committed.min(log.len())..].iter().all(Option::is_none)
            })
        };
        member.topics.iter().all(read) && !later()
    }
}
