//! What the Kafka source and its thread share, with the trackers behind it. The thread is played: the driver is no part of
//! this.
#![cfg(shuttle)]

#[path = "../src/explore.rs"]
mod explore;
#[path = "../../consumer-kafka/src/intake.rs"]
mod intake;
#[path = "../../consumer-kafka/src/partition.rs"]
#[expect(dead_code, reason = "not all of it has to do with threads")]
mod partition;
#[path = "../../consumer-kafka/src/shared.rs"]
mod shared;
#[path = "../../consumer-kafka/src/tracker.rs"]
#[expect(dead_code, reason = "not all of it has to do with threads")]
mod tracker;

mod sync {
    pub(crate) use shuttle::{
        sync::{Mutex, MutexGuard, atomic},
        thread,
    };
}

/// Of an error they only need the text.
mod error {
    use std::fmt;

    pub(crate) struct KafkaError(&'static str);

    impl KafkaError {
        pub(crate) fn config(text: &'static str) -> Self {
            Self(text)
        }
    }

    impl fmt::Display for KafkaError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }
}

mod concurrency {
    use std::{
        collections::{BTreeSet, HashMap},
        future::poll_fn,
        sync::{
            Arc, Mutex,
            atomic::{AtomicU64, Ordering::SeqCst},
        },
        task::Poll,
        time::Duration,
    };

    use consumer_core::{Delivery, Event, Message, Settlement, SourceError, Tag};
    use shuttle::{
        future::block_on,
        rand::{Rng, thread_rng},
        thread,
    };

    use crate::{
        error::KafkaError,
        explore::explore,
        intake::Intake,
        partition::Partition,
        shared::{Control, Queued, Shared},
    };

    const LONG: Duration = Duration::from_secs(3600);
    /// Two of this size fill the buffer.
    const LARGE: usize = 5 << 20;
    const END: u64 = 4;
    /// How many messages the runtime holds.
    const ROOM: usize = 2;

    /// What was acked, by scope and offset. It is no part of what is tested, so the scheduler does not see it.
    type Acked = Arc<Mutex<BTreeSet<(u64, u64)>>>;
    /// How many losses were told. No part of it either.
    type Told = Arc<std::sync::atomic::AtomicU64>;

    /// The thread with a log of messages in one partition, as a broker sees it.
    struct Thread {
        shared: Arc<Shared>,
        partition: Arc<Partition>,
        acked: Acked,
        /// Where the next batch begins.
        next: u64,
        /// Where the partition's assignment began.
        begin: u64,
        committed: Arc<AtomicU64>,
        /// The last assignment that has ended, and what of it is committed or was told.
        ended: Option<(Arc<Partition>, u64)>,
        told: Told,
    }

    impl Thread {
        fn new(shared: Arc<Shared>, acked: Acked, committed: Arc<AtomicU64>, told: Told) -> Self {
            let partition = Partition::new("t".into(), 0);
            shared.control(Control::Assigned(partition.clone()));
            Self { shared, partition, acked, next: 0, begin: 0, committed, ended: None, told }
        }

        /// The next owner of the partition begins where the last one has committed.
        fn assign(&mut self) {
            self.partition = Partition::new("t".into(), 0);
            self.begin = self.committed.load(SeqCst);
            self.next = self.begin;
            self.shared.control(Control::Assigned(self.partition.clone()));
        }

        /// Takes over what may be committed: nothing that is not done.
        fn commit(&mut self) {
            if let Some(next) = self.partition.progress().next {
                let acked = self.acked.lock().unwrap();
                for offset in self.begin..next {
                    assert!(acked.contains(&(self.partition.scope, offset)), "{next} passes {offset}");
                }
                assert!(self.committed.swap(next, SeqCst) <= next, "a commit went back");
            }
        }

        fn serve(&mut self) {
            let wanted = self.shared.flush_wanted();
            if wanted != self.shared.flush_done() {
                self.tell_lost();
                self.commit();
                self.shared.flush_answered(wanted, Ok(()));
            }
        }

        /// What was acked in the assignment that has ended, and was not committed with it.
        fn tell_lost(&mut self) {
            let Some((ended, committed)) = self.ended.take() else { return };
            let is_over = ended.is_released();
            let next = ended.progress().next.unwrap_or(committed);
            if next > committed {
                self.told.fetch_add(1, SeqCst);
                let messages = next - committed;
                self.shared.control(Control::Unsettled { scope: ended.scope, messages });
                self.shared.lost("it was acked too late".to_owned());
            }
            self.ended = Some((ended, next)).filter(|_| !is_over);
        }

        /// One round: sleeps when the buffer is full, else delivers something if there is something.
        fn round(&mut self, bytes: usize) {
            self.serve();
            if self.shared.is_full() {
                self.shared.wait_for_room(LONG);
            } else if self.next < END {
                self.push(bytes);
            } else {
                thread::yield_now();
            }
        }

        fn push(&mut self, bytes: usize) {
            let tag = Tag { scope: self.partition.scope, seq: self.next };
            self.next += 1;
            self.shared.push(&mut vec![Queued { tag, message: Message::new("x"), bytes }]);
        }

        fn run(mut self, bytes: usize) {
            while !self.shared.is_closing() {
                self.round(bytes);
            }
            self.shared.closed(Ok(()));
        }

        fn revoke(&mut self) {
            let partition = self.partition.clone();
            self.shared.control(Control::Closing { partition: partition.clone(), within: LONG });
            self.shared.wait_for_release(&[partition], LONG);
            self.commit();
            self.ended = Some((self.partition.clone(), self.committed.load(SeqCst)));
            // Taken from the driver before the partition went.
            if self.next < END {
                self.push(1);
            }
        }
    }

    /// The runtime, which owns the source's side.
    struct Runtime {
        intake: Intake,
        acked: Acked,
        /// Delivered and not settled.
        held: Vec<Tag>,
        /// How often a message is still to come: once, and once more for each nack.
        due: HashMap<Tag, i32>,
        closed: BTreeSet<u64>,
        /// What was acked before a flush that failed.
        lost: BTreeSet<(u64, u64)>,
        failed: u64,
        told: Told,
        /// By scope, how many acks are said to have reached nobody.
        unsettled: HashMap<u64, u64>,
    }

    impl Runtime {
        fn new(shared: Arc<Shared>, acked: Acked, told: Told) -> Self {
            Self {
                intake: Intake::new(shared),
                acked,
                held: Vec::new(),
                due: HashMap::new(),
                closed: BTreeSet::new(),
                lost: BTreeSet::new(),
                failed: 0,
                told,
                unsettled: HashMap::new(),
            }
        }

        /// The next event; what was delivered with it is held. `None` when nothing came and something is held, which may be
        /// settled meanwhile.
        fn next(&mut self) -> Option<Result<Event, SourceError>> {
            let (mut delivered, room) = (Vec::new(), ROOM - self.held.len());
            let event = block_on(poll_fn(|cx| match self.intake.poll_event(cx, room, &mut delivered) {
                Poll::Ready(event) => Poll::Ready(Some(event)),
                Poll::Pending if self.has_something_to_do() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }));
            assert!(delivered.len() <= room);
            for Delivery { tag, .. } in delivered {
                assert!(!self.closed.contains(&tag.scope), "{tag:?} comes after its scope was closed");
                let due = self.due.entry(tag).or_insert(1);
                *due -= 1;
                assert_eq!(*due, 0, "{tag:?} came too often");
                self.held.push(tag);
            }
            event
        }

        fn has_something_to_do(&self) -> bool {
            !self.held.is_empty() || self.is_acked()
        }

        /// Whether every message was acked at some time.
        fn is_acked(&self) -> bool {
            let acked = self.acked.lock().unwrap();
            (0..END).all(|offset| acked.iter().any(|(_, seq)| *seq == offset))
        }

        fn settle(&mut self, nth: usize, how: Settlement) {
            let tag = self.held.swap_remove(nth);
            match how {
                Settlement::Nack => *self.due.get_mut(&tag).unwrap() += 1,
                _ => assert!(self.acked.lock().unwrap().insert((tag.scope, tag.seq))),
            }
            self.intake.settle(tag, how);
        }

        fn settle_some(&mut self, at_least: usize) {
            for _ in 0..thread_rng().gen_range(at_least..=self.held.len()) {
                let nth = thread_rng().gen_range(0..self.held.len());
                let how = if thread_rng().gen_bool(0.2) { Settlement::Nack } else { Settlement::Ack };
                self.settle(nth, how);
            }
        }

        /// Until everything is committed.
        fn run(&mut self, committed: &AtomicU64) {
            loop {
                match thread_rng().gen_range(0..10) {
                    0 => self.flush_all(committed),
                    // Begun, and given up.
                    1 => drop(block_on(poll_fn(|cx| Poll::Ready(self.intake.poll_flush(cx))))),
                    _ => {}
                }
                match self.next().map(Result::unwrap) {
                    Some(Event::Delivered) => self.settle_some(0),
                    Some(Event::Closing { scope, .. }) => {
                        self.closed.insert(scope);
                        // What is not settled in time is given up.
                        self.settle_some(0);
                        self.held.clear();
                        self.intake.release(scope);
                        // What comes too late for it is heard no more.
                        self.intake.settle(Tag { scope, seq: 0 }, Settlement::Ack);
                    }
                    Some(Event::Unsettled { scope, messages }) => {
                        *self.unsettled.entry(scope).or_default() += messages;
                        self.check_unsettled(scope);
                    }
                    Some(event) => panic!("{event:?}"),
                    None if !self.held.is_empty() => self.settle_some(1),
                    None => {
                        self.flush_all(committed);
                        if committed.load(SeqCst) == END {
                            return;
                        }
                    }
                }
            }
        }

        /// No more than was acked in the scope and is committed by nobody: it comes, or came, with the next one.
        fn check_unsettled(&self, scope: u64) {
            let again = self.due.keys().filter(|tag| tag.scope > scope).map(|tag| tag.seq).min();
            let acked = self.acked.lock().unwrap();
            let lost = acked.range((scope, again.unwrap_or(0))..(scope, u64::MAX)).count() as u64;
            assert!(self.unsettled[&scope] <= lost, "{} are told of {lost}", self.unsettled[&scope]);
        }

        /// What was acked before is committed then, or it is said that it was lost.
        fn flush_all(&mut self, committed: &AtomicU64) {
            let flushed = self.flush();
            let acked = self.acked.lock().unwrap();
            if flushed.is_err() {
                self.lost.extend(acked.iter());
                self.failed += 1;
                assert!(self.failed <= self.told.load(SeqCst), "a loss that there was not, or told twice");
            }
            let end = committed.load(SeqCst);
            for tag in self.due.keys().filter(|tag| !self.lost.contains(&(tag.scope, tag.seq))) {
                let mut before =
                    self.due.keys().filter(|other| other.scope == tag.scope && other.seq <= tag.seq);
                let is_done = before.all(|other| acked.contains(&(other.scope, other.seq)));
                assert!(
                    !is_done || end > tag.seq,
                    "{tag:?} was acked before the flush, and {end} is committed"
                );
            }
        }

        fn flush(&mut self) -> Result<(), SourceError> {
            block_on(poll_fn(|cx| self.intake.poll_flush(cx)))
        }

        fn close(&mut self) -> Result<(), SourceError> {
            block_on(poll_fn(|cx| self.intake.poll_close(cx)))
        }
    }

    /// A runtime and a thread, and how far the thread has committed.
    fn start(
        work: impl FnOnce(Thread) + Send + 'static,
    ) -> (Runtime, thread::JoinHandle<()>, Arc<AtomicU64>) {
        let (shared, acked, committed): (Arc<Shared>, Acked, Arc<AtomicU64>) = Default::default();
        let told = Told::default();
        let runtime = Runtime::new(shared.clone(), acked.clone(), told.clone());
        let (of_thread, to) = (shared.clone(), committed.clone());
        let thread = thread::spawn(move || work(Thread::new(of_thread, acked, to, told)));
        shared.set_thread(thread.thread().clone());
        (runtime, thread, committed)
    }

    #[test]
    fn whatever_fits_into_the_buffer_everything_comes_once_and_a_flush_commits_what_is_acked() {
        explore(5, || {
            let (mut runtime, thread, committed) = start(|thread| thread.run(LARGE));
            runtime.run(&committed);
            assert!(runtime.lost.is_empty(), "no flush fails while nothing is revoked");
            runtime.close().unwrap();
            thread.join().unwrap();
        });
    }

    #[test]
    fn a_partition_that_goes_is_released_and_what_was_not_committed_comes_again_with_the_next_assignment() {
        explore(1, || {
            let (mut runtime, thread, committed) = start(|mut thread| {
                for _ in 0..thread_rng().gen_range(0..END) {
                    thread.round(1);
                }
                thread.revoke();
                thread.assign();
                thread.run(1);
            });
            runtime.run(&committed);
            runtime.close().unwrap();
            thread.join().unwrap();
        });
    }

    #[test]
    fn whoever_waits_for_the_thread_is_told_when_it_fails() {
        explore(1, || {
            let (mut runtime, thread, _) = start(|thread| {
                thread.shared.fail(&KafkaError::config("it cannot go on"));
                while !thread.shared.is_closing() {
                    thread::yield_now();
                }
                thread.shared.closed(Err("it has not gone on".to_owned()));
            });
            if thread_rng().gen_bool(0.5) {
                runtime.flush().unwrap_err();
            }
            runtime.next().unwrap().unwrap_err();
            runtime.close().unwrap_err();
            thread.join().unwrap();
        });
    }
}
