//! Everything that runs: servers, the proxies before them, consumers; and the log of what was done to them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use consumer_testing::proxy::Proxy;
use tokio::task::block_in_place;

use crate::{
    CONSUMERS, Fallible, IN_FLIGHT, LEASE,
    consumer::{Consumer, mail_log},
    history::{Cause, Lane, Life, Mark, Trouble},
    plan::End,
    servers::{Broker, BrokerKind, Store, StoreKind, TOPIC},
    tail::Tail,
};

/// How long a consumer may take to end when it is asked to; it drains for 10 s.
const END: Duration = Duration::from_secs(40);

/// What a run is on.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) broker: BrokerKind,
    pub(crate) store: StoreKind,
    pub(crate) ordered: bool,
    /// Each consumer remembers for itself alone: for the judge to find out.
    pub(crate) broken: bool,
    pub(crate) orders: PathBuf,
    pub(crate) folder: PathBuf,
}

#[derive(Debug)]
pub(crate) struct World {
    setup: Setup,
    pub(crate) began: Instant,
    pub(crate) broker: Broker,
    pub(crate) store: Store,
    broker_proxy: Proxy,
    /// One for each place of a consumer.
    store_proxies: Vec<Proxy>,
    /// By their places; the last is for one that joins for a while.
    consumers: BTreeMap<usize, Consumer>,
    pub(crate) tail: Tail,
    pub(crate) lives: Vec<Life>,
    pub(crate) troubles: Vec<Trouble>,
    pub(crate) marks: Vec<Mark>,
    /// What must not happen: consumers that end by themselves, or not when they should.
    pub(crate) complaints: Vec<String>,
}

impl World {
    /// Starts servers, proxies and consumers.
    pub(crate) async fn start(setup: Setup) -> Fallible<Self> {
        let broker_proxy = Proxy::start((Ipv4Addr::LOCALHOST, 1)).await?;
        let port = broker_proxy.port();
        let broker = tokio::task::spawn_blocking(move || Broker::start(setup.broker, port));
        let store = block_in_place(|| Store::start(setup.store))?;
        let broker = broker.await??;
        broker_proxy.set_upstream(local(broker.port()?));
        let mut store_proxies = Vec::new();
        for _ in 0..=CONSUMERS {
            store_proxies.push(Proxy::start(local(store.port())).await?);
        }
        broker.prepare(setup.ordered).await?;
        let began = Instant::now();
        let mut world = Self {
            setup,
            began,
            broker,
            store,
            broker_proxy,
            store_proxies,
            consumers: BTreeMap::new(),
            tail: Tail::start(began),
            lives: Vec::new(),
            troubles: Vec::new(),
            marks: Vec::new(),
            complaints: Vec::new(),
        };
        for slot in 0..CONSUMERS {
            world.start_consumer(slot)?;
        }
        Ok(world)
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn start_consumer(&mut self, slot: usize) -> Fallible<()> {
        let number = self.lives.len();
        let options = self.options(slot);
        let consumer = Consumer::start(number, &self.setup.orders, &self.setup.folder, &options)?;
        self.tail.watch(number, mail_log(&self.setup.folder, number));
        self.lives.push(Life { slot, from: self.now(), until: None });
        self.consumers.insert(slot, consumer);
        Ok(())
    }

    fn options(&self, slot: usize) -> Vec<String> {
        let store = if self.setup.broken {
            "memory:".to_owned()
        } else {
            self.store.url_by(self.store_proxies[slot].port())
        };
        let ordering = if self.setup.ordered { "key" } else { "none" };
        let (lease, in_flight) = (format!("{}ms", LEASE.as_millis()), IN_FLIGHT.to_string());
        let options = [
            ("--broker", &*self.broker.url_by(self.broker_proxy.port())),
            ("--store", &*store),
            ("--topic", TOPIC),
            ("--group", TOPIC),
            ("--ordering", ordering),
            ("--lease", &*lease),
            ("--max-in-flight", &*in_flight),
            ("--handler-delay", "50ms"),
            ("--backoff", "50ms"),
        ];
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect()
    }

    /// SIGKILL of these, at once; they are not started again.
    pub(crate) async fn kill_consumers(&mut self, slots: &[usize]) -> Fallible<()> {
        let mut killed = Vec::new();
        let from = self.now();
        for slot in slots {
            if let Some(mut consumer) = self.consumers.remove(slot) {
                consumer.kill()?;
                killed.push((*slot, consumer));
            }
        }
        for (slot, mut consumer) in killed {
            consumer.wait(END).await?;
            let until = self.ended(consumer.number);
            let number = consumer.number;
            self.troubles.push(Trouble { cause: Cause::Killed, consumer: number, from, until });
            self.mark(Lane::Consumer(slot), "SIGKILL", from);
        }
        Ok(())
    }

    /// SIGSTOP, and SIGCONT after `length`.
    pub(crate) async fn stop_consumer(&mut self, slot: usize, length: Duration) -> Fallible<()> {
        let Some(consumer) = self.consumers.get(&slot) else { return Ok(()) };
        let (number, from) = (consumer.number, self.began.elapsed());
        consumer.signal("STOP")?;
        tokio::time::sleep(length).await;
        consumer.signal("CONT")?;
        let until = self.now();
        self.troubles.push(Trouble { cause: Cause::Stopped, consumer: number, from, until });
        self.mark(Lane::Consumer(slot), "SIGSTOP", from);
        Ok(())
    }

    /// SIGTERM to these: each has to end well.
    pub(crate) async fn end_consumers(&mut self, slots: &[usize]) -> Fallible<()> {
        let mut leaving = Vec::new();
        for slot in slots {
            if let Some(consumer) = self.consumers.remove(slot) {
                consumer.signal("TERM")?;
                leaving.push((*slot, consumer, self.now()));
            }
        }
        for (slot, mut consumer, from) in leaving {
            let number = consumer.number;
            match consumer.wait(END).await? {
                Some(status) if status.success() => {}
                Some(status) => self.complain(format!("consumer #{number} ended on SIGTERM with {status}")),
                None => self.complain(format!("consumer #{number} did not end within {END:?} of SIGTERM")),
            }
            drop(consumer);
            self.ended(number);
            self.mark(Lane::Consumer(slot), "SIGTERM", from);
        }
        Ok(())
    }

    pub(crate) fn slots(&self) -> Vec<usize> {
        self.consumers.keys().copied().collect()
    }

    /// What has ended without being told to is complained about, and started again as an orchestrator does.
    pub(crate) fn look_after_consumers(&mut self) -> Fallible<()> {
        for slot in self.slots() {
            let Some(consumer) = self.consumers.get_mut(&slot) else { continue };
            let number = consumer.number;
            if let Some(status) = consumer.ended()? {
                self.complain(format!("consumer #{number} has ended by itself with {status}"));
                self.ended(number);
                self.start_consumer(slot)?;
            }
        }
        Ok(())
    }

    /// The number of one that does not take part yet.
    pub(crate) fn not_ready(&mut self) -> Option<usize> {
        self.consumers.values_mut().find_map(|consumer| (!consumer.is_ready()).then_some(consumer.number))
    }

    fn ended(&mut self, number: usize) -> Duration {
        self.tail.ended(number);
        let now = self.now();
        self.lives[number].until = Some(now);
        now
    }

    pub(crate) fn complain(&mut self, what: String) {
        eprintln!("         {what}");
        self.complaints.push(what);
    }

    /// The proxies of an end.
    pub(crate) fn proxies(&self, end: End) -> Vec<&Proxy> {
        match end {
            End::Broker => vec![&self.broker_proxy],
            End::Store => self.store_proxies.iter().collect(),
            End::StoreOf(slot) => vec![&self.store_proxies[slot]],
        }
    }

    /// Nobody, or one consumer, has reached the store since then.
    pub(crate) fn store_was_away(&mut self, end: End, from: Duration) {
        let until = self.now();
        let slots = match end {
            End::Broker => return,
            End::Store => self.slots(),
            End::StoreOf(slot) => vec![slot],
        };
        for slot in slots {
            if let Some(consumer) = self.consumers.get(&slot) {
                let consumer = consumer.number;
                self.troubles.push(Trouble { cause: Cause::StoreAway, consumer, from, until });
            }
        }
    }

    /// Notes a fault for the picture, which lasts until now.
    pub(crate) fn mark(&mut self, lane: Lane, what: impl Into<String>, from: Duration) {
        let until = self.now();
        self.marks.push(Mark { lane, what: what.into(), from, until });
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
