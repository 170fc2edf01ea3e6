//! One connection through the proxy: two streams, and what is on its way between them.

use std::{
    collections::VecDeque,
    future::pending,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{Control, Counts, Direction, Flow, Rules, Shared, reset};

/// What is held of a connection in one direction before the proxy stops reading.
const HELD: usize = 1 << 20;
/// How much is read at once.
const READ: usize = 16 << 10;
/// How long a cut waits for a connection that is being made to the upstream.
const CONNECT: Duration = Duration::from_secs(1);
/// A throttled direction is written to this many times a second.
const PIECES_PER_SECOND: u64 = 50;

/// A connection that runs in a task of its own. Dropped, it is cut.
pub(super) struct Connection {
    stop: oneshot::Sender<()>,
    task: JoinHandle<bool>,
}

impl Connection {
    pub(super) fn open(client: TcpStream, shared: Arc<Shared>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let open = Open::new(shared);
        let task = tokio::spawn(run(client, open, stopped));
        Self { stop, task }
    }

    pub(super) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Cuts it; the future waits until it is gone, and tells whether it was there.
    pub(super) fn cut(self) -> impl Future<Output = bool> + Send {
        drop(self.stop);
        async { self.task.await.unwrap_or(false) }
    }
}

/// Counts a connection while it is there.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        shared.counts.send_modify(|counts| {
            counts.accepted += 1;
            counts.open += 1;
        });
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counts.send_modify(|counts| counts.open -= 1);
    }
}

/// Tells whether it was cut.
async fn run(mut client: TcpStream, open: Open, mut stopped: oneshot::Receiver<()>) -> bool {
    let upstream = open.0.control.borrow().upstream;
    let mut connecting = pin!(TcpStream::connect(upstream));
    let server = tokio::select! {
        server = &mut connecting => server,
        _ = &mut stopped => {
            reset(client);
            // The server may have accepted it already, and a stream that is not there yet cannot be reset.
            if let Ok(Ok(server)) = timeout(CONNECT, connecting).await {
                reset(server);
            }
            return true;
        }
    };
    let Ok(mut server) = server else {
        reset(client);
        return false;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let broken = AtomicBool::new(false);
    let (passed, cut) = {
        // Borrowed halves: an owned one says goodbye when it is dropped, and a cut has none.
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let there = Way::new(&open.0, Direction::ToServer, &broken).pass(from_client, to_server);
        let back = Way::new(&open.0, Direction::ToClient, &broken).pass(from_server, to_client);
        tokio::select! {
            passed = async { tokio::try_join!(there, back) } => (passed.is_ok(), false),
            _ = &mut stopped => (false, true),
        }
    };
    // They are closed before the count says so.
    if passed && !broken.into_inner() {
        drop((client, server));
    } else {
        reset(client);
        reset(server);
    }
    cut
}

/// Something on its way, in its order.
enum Item {
    Bytes(Bytes),
    Closed,
    Reset,
}

/// One direction of a connection.
struct Way<'a> {
    shared: &'a Shared,
    direction: Direction,
    control: watch::Receiver<Control>,
    /// Whether a write of the connection has failed, in either direction.
    broken: &'a AtomicBool,
    /// With the time each was received.
    held: VecDeque<(Instant, Item)>,
    held_bytes: usize,
    /// When a throttled direction may go on.
    free: Instant,
}

impl<'a> Way<'a> {
    fn new(shared: &'a Shared, direction: Direction, broken: &'a AtomicBool) -> Self {
        let control = shared.control.subscribe();
        Self {
            shared,
            direction,
            control,
            broken,
            held: VecDeque::new(),
            held_bytes: 0,
            free: Instant::now(),
        }
    }

    /// Passes everything on until the sender has closed.
    ///
    /// What is received after the rules have changed goes by the new ones: they are read after it, in each turn.
    async fn pass(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        let mut reading = true;
        loop {
            let rules = of(&self.control.borrow_and_update(), self.direction);
            buffer.reserve(READ);
            tokio::select! {
                read = from.read_buf(&mut buffer), if reading && self.held_bytes < HELD => {
                    reading = matches!(read, Ok(1..));
                    let item = match read {
                        Ok(1..) => Item::Bytes(buffer.split().freeze()),
                        // Where a write has met the reset, a read finds a mere end.
                        Ok(0) if !self.broken.load(Ordering::Relaxed) => Item::Closed,
                        _ => Item::Reset,
                    };
                    self.hold(item);
                }
                written = deliver(self.held.front(), rules, self.free, &mut to) => match written {
                    Ok(0) => return Ok(()),
                    Ok(n) => self.delivered(n, rules),
                    Err(reset) if matches!(self.held.front(), Some((_, Item::Reset))) => return Err(reset),
                    // The receiver is gone, which the way back passes on when it may.
                    Err(_) => {
                        self.broken.store(true, Ordering::Relaxed);
                        return Ok(());
                    }
                },
                // It cannot fail: the sender is in `shared`.
                _ = self.control.changed() => {}
            }
        }
    }

    fn hold(&mut self, item: Item) {
        if let Item::Bytes(bytes) = &item {
            self.held_bytes += bytes.len();
            let n = bytes.len() as u64;
            self.count(|flow| {
                flow.received += n;
                flow.held += n;
            });
        }
        self.held.push_back((Instant::now(), item));
    }

    fn delivered(&mut self, n: usize, rules: Rules) {
        if let Some((_, Item::Bytes(bytes))) = self.held.front_mut() {
            bytes.advance(n);
            if bytes.is_empty() {
                self.held.pop_front();
            }
        }
        self.held_bytes -= n;
        if let Some(rate) = rules.bytes_per_second {
            self.free = self.free.max(Instant::now()) + Duration::from_secs_f64(n as f64 / rate as f64);
        }
        self.count(|flow| {
            flow.delivered += n as u64;
            flow.held -= n as u64;
        });
    }

    fn count(&self, change: impl FnOnce(&mut Flow)) {
        self.shared.counts.send_modify(|counts: &mut Counts| match self.direction {
            Direction::ToServer => change(&mut counts.to_server),
            _ => change(&mut counts.to_client),
        });
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        let lost = self.held_bytes as u64;
        self.count(|flow| flow.held -= lost);
    }
}

fn of(control: &Control, direction: Direction) -> Rules {
    match direction {
        Direction::ToServer => control.to_server,
        _ => control.to_client,
    }
}

/// Delivers some of what comes next once it may; zero bytes when the stream has been closed. Dropped before it is ready,
/// nothing was delivered.
async fn deliver(
    next: Option<&(Instant, Item)>,
    rules: Rules,
    free: Instant,
    to: &mut WriteHalf<'_>,
) -> io::Result<usize> {
    let Some((received, item)) = next.filter(|_| !rules.hung) else { return pending().await };
    let mut due = *received + rules.delay;
    if rules.bytes_per_second.is_some() {
        due = due.max(free);
    }
    if due > Instant::now() {
        sleep_until(due).await;
    }
    match item {
        Item::Bytes(bytes) => {
            let piece = rules.bytes_per_second.map_or(u64::MAX, |rate| (rate / PIECES_PER_SECOND).max(1));
            let piece = usize::try_from(piece).unwrap_or(usize::MAX).min(bytes.len());
            to.write(&bytes[..piece]).await
        }
        Item::Closed => to.shutdown().await.map(|()| 0),
        Item::Reset => Err(io::ErrorKind::ConnectionReset.into()),
    }
}
