//! The broker in memory: topics, partitions, groups, and ways to make it misbehave.

use std::{
    fmt,
    future::{Future, ready},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::{faults::PublishFault, source::MemorySource, state::State};
use crate::{Message, Outgoing, PublishError, Publisher, WallClock};

/// A partitioned log with consumer groups, in this process. Clones are handles to one broker.
///
/// It behaves as Kafka does where consumers can tell: messages of one key share a partition, a group shares the
/// partitions among its members, a position is committed only up to the first delivery that is not settled, and what
/// was not committed is delivered again. A partition moves to another member once its present one has released it.
/// A group starts with the earliest message. Time is tokio's, paused or not.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use consumer_core::{Message, Outgoing, Publisher, memory::{MemoryBroker, PublishFault}};
///
/// let broker = MemoryBroker::new();
/// broker.create_topic("mails", 1);
/// broker.fail_next_publishes(1, PublishFault::Unavailable);
/// let publisher = broker.publisher();
/// assert!(publisher.publish(Outgoing::new("mails", Message::new("a"))).await.is_err());
/// publisher.publish(Outgoing::new("mails", Message::new("b"))).await?;
/// assert_eq!(&broker.records("mails")[0].payload()[..], b"b");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryBroker {
    state: Arc<Mutex<State>>,
}

/// Publishes to a [`MemoryBroker`]. A message with a key goes to the partition of that key, the others in turn.
///
/// With [`Outgoing::not_before`], the message enters its topic when that time has come on tokio's clock.
#[derive(Debug, Clone)]
pub struct MemoryPublisher {
    broker: MemoryBroker,
}

impl MemoryBroker {
    /// A broker without topics.
    pub fn new() -> Self {
        Self { state: Arc::new(Mutex::new(State::new())) }
    }

    /// Creates a topic with this many partitions, at least one. A topic that exists stays as it is.
    pub fn create_topic(&self, name: &str, partitions: usize) {
        self.lock().create_topic(name, partitions);
    }

    /// A publisher to all topics.
    pub fn publisher(&self) -> MemoryPublisher {
        MemoryPublisher { broker: self.clone() }
    }

    /// A new member of `group`, which reads `topics`. It joins when it is polled first.
    pub fn source<T: AsRef<str>>(&self, group: &str, topics: impl IntoIterator<Item = T>) -> MemorySource {
        let topics = topics.into_iter().map(|topic| topic.as_ref().into()).collect();
        MemorySource::new(self.clone(), group, topics)
    }

    /// Everything in a topic, partition by partition; nothing if there is no such topic.
    pub fn records(&self, topic: &str) -> Vec<Message> {
        let state = self.lock();
        let Some(topic) = state.topic(topic) else { return Vec::new() };
        state.topics[topic].partitions.iter().flatten().flatten().cloned().collect()
    }

    /// The offset from which `group` would go on reading; `None` before it has committed any.
    pub fn committed(&self, group: &str, topic: &str, partition: u32) -> Option<u64> {
        let state = self.lock();
        let topic = state.topic(topic)?;
        state.committed(group, topic, partition as usize)
    }

    /// How many messages of a topic `group` has not committed.
    pub fn lag(&self, group: &str, topic: &str) -> u64 {
        let state = self.lock();
        state.topic(topic).map_or(0, |topic| state.lag(group, topic))
    }

    /// The wall clock by which delayed messages become due: it goes on with tokio's clock. To be given to layers in tests
    /// on the paused clock, so that both mean the same time.
    pub fn clock(&self) -> impl WallClock + Clone + use<> {
        let clock = self.lock().clock.clone();
        move || clock.wall()
    }

    /// How long a member is told it may take to give up a partition; 10 s by default. After twice that time the
    /// partition is taken from it.
    pub fn set_closing_within(&self, within: Duration) {
        self.lock().closing_within = within;
    }

    /// Refuses messages to a topic whose payload, key and headers are longer than this in bytes.
    pub fn set_max_message_bytes(&self, topic: &str, bytes: usize) {
        let mut state = self.lock();
        if let Some(topic) = state.topic(topic) {
            state.topics[topic].max_bytes = Some(bytes);
        }
    }

    /// Removes one message and leaves a gap, as compaction does.
    pub fn remove_record(&self, topic: &str, partition: u32, offset: u64) {
        let mut state = self.lock();
        let Some(topic) = state.topic(topic) else { return };
        let log = state.topics[topic].partitions.get_mut(partition as usize);
        if let Some(record) = log.and_then(|log| log.get_mut(offset as usize)) {
            *record = None;
        }
    }

    /// The next `n` publishes fail.
    pub fn fail_next_publishes(&self, n: usize, fault: PublishFault) {
        self.lock().faults.fail_publishes(n, fault);
    }

    /// The next `n` messages are delivered twice to the member that gets them.
    pub fn inject_duplicate_delivery(&self, n: usize) {
        self.lock().faults.duplicate_deliveries(n);
    }

    /// Delivers each message twice with this probability (0 to 1); the same seed gives the same choices.
    pub fn inject_duplicates(&self, rate: f64, seed: u64) {
        self.lock().faults.duplicate_rate(rate, seed);
    }

    /// The next `n` settlements do not reach the broker: the source says so, and the messages are delivered again.
    pub fn lose_next_settlements(&self, n: usize) {
        self.lock().faults.lose_settlements(n);
    }

    /// Starts or ends an outage: all members are disconnected and publishing fails until it ends.
    pub fn set_down(&self, down: bool) {
        let mut state = self.lock();
        state.faults.down = down;
        let members: Vec<u64> = state.members.keys().copied().collect();
        for id in members {
            if down {
                state.disconnect(id);
            } else {
                state.wake_member(id);
            }
        }
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.advance();
        Locked(Some(state))
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        let topics: Vec<&str> = state.topics.iter().map(|topic| &*topic.name).collect();
        f.debug_struct("MemoryBroker").field("topics", &topics).finish_non_exhaustive()
    }
}

impl Publisher for MemoryPublisher {
    fn publish(
        &self,
        outgoing: Outgoing,
    ) -> impl Future<Output = Result<(), PublishError>> + Send + 'static + use<> {
        ready(self.broker.publish(&outgoing))
    }
}

impl MemoryBroker {
    fn publish(&self, outgoing: &Outgoing) -> Result<(), PublishError> {
        let target = outgoing.target();
        let mut state = self.lock();
        let fault = match state.faults.down {
            true => Some(PublishFault::Unavailable),
            false => state.faults.next_publish(),
        };
        if let Some(fault) = fault.filter(|fault| *fault != PublishFault::LostConfirm) {
            return Err(fault.error(target));
        }
        let Some(topic) = state.topic(target) else { return Err(PublishFault::Unroutable.error(target)) };
        let draft = State::draft(outgoing);
        if state.topics[topic].max_bytes.is_some_and(|limit| draft.bytes() > limit) {
            return Err(PublishFault::TooLarge.error(target));
        }
        let wait = outgoing.due().map(|due| due.duration_since(state.clock.wall()).unwrap_or_default());
        let wait = wait.or(outgoing.delay_by());
        match wait.filter(|wait| !wait.is_zero()) {
            Some(wait) => state.delay(topic, draft, Instant::now() + wait),
            None => state.append(topic, draft),
        }
        fault.map_or(Ok(()), |fault| Err(fault.error(target)))
    }
}

/// The state, locked. Who has to be woken is woken after the lock is given back.
pub(super) struct Locked<'a>(Option<MutexGuard<'a, State>>);

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.0.as_deref().expect("only taken by drop")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.0.as_deref_mut().expect("only taken by drop")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let wake = self.0.take().map(|mut state| std::mem::take(&mut state.wake));
        wake.into_iter().flatten().for_each(Waker::wake);
    }
}
