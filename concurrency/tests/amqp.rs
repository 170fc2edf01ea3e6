//! How the acks of the AMQP source are put together, with handlers that end in any order and connections that are lost.
//! The broker and the session are played: the driver is no part of this.
#![cfg(shuttle)]

#[path = "../src/explore.rs"]
mod explore;
#[path = "../../consumer-amqp/src/window.rs"]
mod window;

mod concurrency {
    use std::{
        collections::{BTreeMap, BTreeSet, VecDeque},
        sync::{Arc, Mutex},
    };

    use consumer_core::Message;
    use shuttle::{
        rand::{Rng, thread_rng},
        sync::mpsc::{Receiver, Sender, channel},
        thread,
    };
    use tokio::time::Instant;

    use crate::{
        explore::explore,
        window::{Ack, Window},
    };

    const MESSAGES: usize = 5;
    const PREFETCH: usize = 3;
    const HANDLERS: usize = 2;

    /// What the source hears.
    enum News {
        Delivered(u64),
        /// The connection is gone; what follows comes over the next one.
        Lost,
        /// A handler has dealt with a delivery of a connection.
        Done {
            scope: u64,
            tag: u64,
            ack: bool,
        },
        End,
    }

    /// What the broker hears, over the connection of this number.
    struct Told {
        scope: u64,
        ack: Ack,
    }

    /// What was acked by a handler, by connection and tag. It is no part of what is tested, so the scheduler does not see it.
    type Acked = Arc<Mutex<BTreeSet<(u64, u64)>>>;

    /// Delivers what it has until all of it is acked, and drops a connection now and then.
    struct Broker {
        source: Sender<News>,
        told: Receiver<Told>,
        acked: Acked,
        ready: VecDeque<usize>,
        scope: u64,
        /// The tag of the last delivery of the connection.
        last: u64,
        /// Those of the connection that are not acked.
        outstanding: BTreeMap<u64, usize>,
        losses: u32,
    }

    impl Broker {
        fn run(mut self) {
            while !(self.ready.is_empty() && self.outstanding.is_empty()) {
                if self.losses > 0 && thread_rng().gen_bool(0.2) {
                    self.lose();
                }
                while self.outstanding.len() < PREFETCH
                    && let Some(message) = self.ready.pop_front()
                {
                    self.last += 1;
                    self.outstanding.insert(self.last, message);
                    self.source.send(News::Delivered(self.last)).unwrap();
                }
                let told = self.told.recv().expect("the source has ended with messages that are not acked");
                // What was on its way when the connection went has gone with it.
                if told.scope == self.scope {
                    self.apply(told.ack);
                }
            }
            self.source.send(News::End).unwrap();
        }

        fn lose(&mut self) {
            self.losses -= 1;
            self.scope += 1;
            self.last = 0;
            for (_, message) in std::mem::take(&mut self.outstanding).into_iter().rev() {
                self.ready.push_front(message);
            }
            self.source.send(News::Lost).unwrap();
        }

        fn apply(&mut self, ack: Ack) {
            assert!(self.outstanding.contains_key(&ack.tag), "{ack:?} closes the channel: no such tag");
            let from = if ack.multiple { 0 } else { ack.tag };
            let reached: Vec<_> = self.outstanding.range(from..=ack.tag).map(|(tag, _)| *tag).collect();
            for tag in reached {
                let acked = self.acked.lock().unwrap().contains(&(self.scope, tag));
                assert!(acked, "{ack:?} reaches {tag}, which nobody has acked");
                self.outstanding.remove(&tag);
            }
        }
    }

    /// The session of a connection after another, as the source has them.
    struct Source {
        news: Receiver<News>,
        broker: Sender<Told>,
        handlers: Vec<Sender<(u64, u64)>>,
        scope: u64,
        window: Window,
    }

    impl Source {
        fn run(mut self) {
            loop {
                // Nothing else is on its way: the acks have waited for long enough.
                let news = self.news.try_recv().or_else(|_| {
                    self.tell(true);
                    self.news.recv()
                });
                match news.unwrap() {
                    News::Delivered(tag) => {
                        assert!(self.window.receive(tag, Message::new("x"), Instant::now()))
                    }
                    News::Lost => {
                        self.tell(true);
                        self.scope += 1;
                        self.window = Window::new();
                    }
                    // Of an earlier connection: its window is gone.
                    News::Done { scope, .. } if scope != self.scope => {}
                    News::Done { tag, ack: true, .. } => assert!(self.window.finish(tag)),
                    News::Done { tag, ack: false, .. } => self.window.give_back(tag),
                    News::End => return,
                }
                while let Some((tag, _)) = self.window.hand_over() {
                    let nth = thread_rng().gen_range(0..HANDLERS);
                    self.handlers[nth].send((self.scope, tag)).unwrap();
                }
                if thread_rng().gen_bool(0.3) {
                    self.tell(thread_rng().gen_bool(0.3));
                }
            }
        }

        fn tell(&mut self, all: bool) {
            let mut acks: Vec<_> = self.window.leading().into_iter().collect();
            if all {
                acks.extend(self.window.take_behind());
                assert_eq!(self.window.done(), 0, "something was acked and is not told");
            }
            for ack in acks {
                // A broker that has everything is gone.
                let _ = self.broker.send(Told { scope: self.scope, ack });
            }
        }
    }

    fn handle(jobs: Receiver<(u64, u64)>, source: Sender<News>, acked: Acked) {
        for (scope, tag) in jobs {
            let ack = thread_rng().gen_bool(0.8);
            if ack {
                assert!(acked.lock().unwrap().insert((scope, tag)), "{tag} was handed over after its ack");
            }
            // A source that has ended has nothing left to settle but what is of an earlier connection.
            let _ = source.send(News::Done { scope, tag, ack });
        }
    }

    #[test]
    fn every_ack_reaches_the_broker_once_and_none_of_them_a_later_connection() {
        explore(1, || {
            let acked = Acked::default();
            let (to_source, news) = channel();
            let (to_broker, told) = channel();
            let broker = Broker {
                source: to_source.clone(),
                told,
                acked: acked.clone(),
                ready: (0..MESSAGES).collect(),
                scope: 1,
                last: 0,
                outstanding: BTreeMap::new(),
                losses: 2,
            };
            let mut threads = vec![thread::spawn(|| broker.run())];
            let handlers = (0..HANDLERS).map(|_| {
                let (handler, jobs) = channel();
                let (source, acked) = (to_source.clone(), acked.clone());
                threads.push(thread::spawn(move || handle(jobs, source, acked)));
                handler
            });
            let handlers = handlers.collect();
            Source { news, broker: to_broker, handlers, scope: 1, window: Window::new() }.run();
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}
