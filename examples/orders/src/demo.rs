//! The demo: the whole story in memory, in about a second.
//!
//! What is printed is the same in every run: each part begins when the one before is settled, and only what does not
//! depend on the order of things is counted.

use std::{
    collections::HashSet,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use consumer::{
    Consumer, DynPublisher, Failure, Message, Outcome, Report,
    dedup::{DynStore, Gate},
    handler::handler,
    memory::{CrashHandle, MemoryBroker, MemorySource, MemoryStore},
    message::wire,
    runtime::Stack,
};
use tokio::sync::oneshot;
use tower::Service;

use crate::{
    block_on,
    handler::confirm,
    logs,
    mail::{MailLog, Mailer},
    plan::{Mixture, Planned},
    produce::publish,
    stack::{Settings, stack},
    stop::Stop,
};

const TOPIC: &str = "orders.placed";
const DEAD: &str = "orders.placed.dead";
const GROUP: &str = "order-mails";
const LEASE: Duration = Duration::from_secs(1);
/// What each part of the demo may take; reached only if something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

const FIRST: Mixture = Mixture { count: 48, duplicates: 8, undecodable: 0, flaky: 0, bouncing: 0 };
const IN_HAND: Mixture = Mixture { count: 8, duplicates: 0, undecodable: 0, flaky: 0, bouncing: 0 };
const REST: Mixture = Mixture { count: 40, duplicates: 6, undecodable: 2, flaky: 4, bouncing: 3 };
/// Of the first orders, published once more with the rest.
const LATE: usize = 3;

pub(crate) fn run() -> Result<(), Stop> {
    logs::start("off");
    block_on(play())
}

async fn play() -> Result<(), Stop> {
    let shop = Shop::new();
    let first: Vec<Planned> = FIRST.messages(1).collect();
    println!("40 orders are placed, 8 of them twice: a confirm was lost, and the shop sent again.");
    let a = ConsumerA::start(&shop)?;
    shop.publish(&first).await?;
    shop.settled().await?;
    let by_a = shop.mailer.sent().len();
    let known = first.len() - by_a;
    println!("  Consumer A mails {by_a} confirmations and recognises {known} duplicates.");

    let in_hand: Vec<Planned> = IN_HAND.messages(2).collect();
    println!("8 more are placed. Consumer A takes them, and crashes before a mail is out.");
    let crash = a.crash_at(in_hand.len());
    shop.publish(&in_hand).await?;
    crash.await?;

    let down = Planned::order("o-down", "ann@down.example");
    let rest: Vec<Planned> = REST.messages(3).chain([down]).chain(first[..LATE].to_vec()).collect();
    println!(
        "44 more messages come: 9 duplicates, 2 that nobody can read, and 8 addresses that are trouble."
    );
    shop.publish(&rest).await?;
    let report = shop.consumer_b().await?;
    println!(
        "  Consumer B gets {} messages, those 8 again among them. It waits until A's claims on them have",
        report.received
    );
    println!("  run out, handles them one by one, as any of them may have been the killer, and ends.");

    let ledger = Ledger::read(&shop, &in_hand, known as u64 + report.duplicates);
    println!("\n{ledger}");
    ledger.check(&[first, in_hand, rest].concat())?;
    println!("\nEvery order with an address that works was mailed, and none of them twice.");
    Ok(())
}

/// What both consumers share.
struct Shop {
    broker: MemoryBroker,
    store: MemoryStore,
    mailer: Mailer,
    settings: Settings,
}

impl Shop {
    fn new() -> Self {
        let broker = MemoryBroker::new();
        broker.create_topic(TOPIC, 4);
        broker.create_topic(DEAD, 1);
        let settings = Settings {
            group: GROUP.to_owned(),
            dead_letter: DEAD.to_owned(),
            attempts: 3,
            backoff: Duration::from_millis(50),
            rate: 0,
            lease: LEASE,
            retention: Duration::from_secs(3600),
            delays: Vec::new(),
        };
        let mailer = Mailer::new(MailLog::memory(), Duration::ZERO, false);
        Self { broker, store: MemoryStore::new(), mailer, settings }
    }

    async fn publish(&self, messages: &[Planned]) -> Result<(), Stop> {
        publish(&DynPublisher::new(self.broker.publisher()), TOPIC, messages.iter().cloned()).await
    }

    fn source(&self) -> MemorySource {
        self.broker.source(GROUP, [TOPIC])
    }

    /// The stack of one process.
    fn stack<H: Stack>(&self, process: u128, handler: H) -> impl Stack + use<H> {
        let dedup = self.settings.dedup(DynStore::new(self.store.clone())).as_process(process, Gate::new());
        stack(&self.settings, DynPublisher::new(self.broker.publisher()), dedup, handler).0
    }

    /// Waits until the group has settled all that was published.
    async fn settled(&self) -> Result<(), Stop> {
        in_time(async {
            while self.broker.lag(GROUP, TOPIC) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
    }

    async fn consumer_b(&self) -> Result<Report, Stop> {
        let stack = self.stack(2, handler(confirm).with_state(self.mailer.clone()));
        let consumer = Consumer::new(self.source().finite(), stack).name("B");
        in_time(consumer.run()).await?.map_err(|error| Stop::from_error(&error))
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Stop> {
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| Stop::failed("the demo does not get on"))
}

/// A process of its own as far as broker and store can tell: a thread that can stop dead.
struct ConsumerA {
    source: CrashHandle,
    fuse: Fuse,
}

impl ConsumerA {
    fn start(shop: &Shop) -> Result<Self, Stop> {
        let fuse = Fuse::default();
        let doomed = Doomed { inner: handler(confirm).with_state(shop.mailer.clone()), fuse: fuse.clone() };
        let stack = shop.stack(1, doomed);
        let source = shop.source();
        let handle = source.crash_handle();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Stop::from_error(&error))?;
        let consumer = Consumer::new(source, stack).name("A");
        thread::spawn(move || runtime.block_on(consumer.run()));
        Ok(Self { source: handle, fuse })
    }

    /// Lets it die with so many messages in hand; resolves when it is dead.
    fn crash_at(self, in_hand: usize) -> impl Future<Output = Result<(), Stop>> {
        let (died, dead) = oneshot::channel();
        *self.fuse.died.lock().unwrap_or_else(PoisonError::into_inner) = Some(died);
        self.fuse.left.store(in_hand, Ordering::Release);
        async move {
            in_time(dead).await?.map_err(|error| Stop::from_error(&error))?;
            self.source.crash();
            Ok(())
        }
    }
}

/// Decides when the process dies.
#[derive(Debug, Clone, Default)]
struct Fuse {
    /// Calls until then; 0 while it is not lit.
    left: Arc<AtomicUsize>,
    died: Arc<Mutex<Option<oneshot::Sender<()>>>>,
}

/// The handler of consumer A: as its inner one until the fuse is lit.
#[derive(Clone)]
struct Doomed<S> {
    inner: S,
    fuse: Fuse,
}

impl<S> Service<Message> for Doomed<S>
where
    S: Service<Message, Response = Outcome, Error = Failure, Future: Send + 'static>,
{
    type Response = Outcome;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Outcome, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        match self.fuse.left.load(Ordering::Acquire) {
            0 => return Box::pin(self.inner.call(message)),
            1 => {}
            left => {
                self.fuse.left.store(left - 1, Ordering::Release);
                return Box::pin(std::future::pending());
            }
        }
        let died = self.fuse.died.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = died.map(|died| died.send(()));
        // Nothing of this thread's runtime runs any more: no claim is renewed or released, nothing is acked.
        loop {
            thread::park();
        }
    }
}

/// What can be seen from outside once all is done.
struct Ledger {
    mails: Vec<String>,
    for_a: usize,
    third_attempt: usize,
    duplicates: u64,
    dead: Vec<(&'static str, usize)>,
}

impl Ledger {
    fn read(shop: &Shop, in_hand: &[Planned], duplicates: u64) -> Self {
        let sent = shop.mailer.sent();
        let in_hand: HashSet<&str> = in_hand.iter().map(|planned| &*planned.id).collect();
        let dead = shop.broker.records(DEAD);
        let because = |reason| {
            let wanted = |m: &&Message| m.headers().get_str(wire::DEAD_LETTER_REASON) == Some(reason);
            (reason, dead.iter().filter(wanted).count())
        };
        Self {
            for_a: sent.iter().filter(|mail| in_hand.contains(&*mail.message_id)).count(),
            third_attempt: sent.iter().filter(|mail| mail.attempt == 3).count(),
            mails: sent.into_iter().map(|mail| mail.message_id).collect(),
            duplicates,
            dead: ["undecodable", "permanent", "attempts-exhausted"].map(because).to_vec(),
        }
    }

    fn dead(&self) -> usize {
        self.dead.iter().map(|(_, count)| count).sum()
    }

    fn total(&self) -> u64 {
        (self.mails.len() + self.dead()) as u64 + self.duplicates
    }

    fn check(&self, published: &[Planned]) -> Result<(), Stop> {
        let mailed: HashSet<&str> = self.mails.iter().map(String::as_str).collect();
        let due: HashSet<&str> =
            published.iter().filter(|planned| planned.can_be_mailed()).map(|planned| &*planned.id).collect();
        if mailed != due || mailed.len() != self.mails.len() || self.total() != published.len() as u64 {
            return Err(Stop::failed("this is not what should have happened"));
        }
        Ok(())
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, count: u64| writeln!(f, "{name:<40}{count:>4}");
        row("mailed", self.mails.len() as u64)?;
        row("  by B for A", self.for_a as u64)?;
        row("  at the third attempt", self.third_attempt as u64)?;
        row("recognised as duplicates", self.duplicates)?;
        row("set aside as dead letters", self.dead() as u64)?;
        for (reason, count) in &self.dead {
            row(&format!("  {reason}"), *count as u64)?;
        }
        write!(f, "{:<40}{:>4}", "published", self.total())
    }
}
