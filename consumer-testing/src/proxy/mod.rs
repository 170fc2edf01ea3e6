//! A TCP proxy to put between a client and a server, for tests of what a bad network does.
//!
//! It listens on a free port of 127.0.0.1 and passes every connection on to its upstream. What it does to them is
//! changed from the test, while they run: [cut](Proxy::cut), [refuse](Proxy::refuse), [hang](Proxy::hang),
//! [delay](Proxy::delay), [throttle](Proxy::throttle). What happened is [counted](Proxy::counts) and can be
//! [waited for](Proxy::until), so that no test has to sleep.
//!
//! An answer that is lost after the server has done its work (an ack, a confirm):
//!
//! ```
//! use consumer_testing::proxy::{Direction, Proxy};
//! use tokio::{
//!     io::{AsyncReadExt, AsyncWriteExt},
//!     net::{TcpListener, TcpStream},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = TcpListener::bind("127.0.0.1:0").await?;
//! let proxy = Proxy::start(server.local_addr()?).await?;
//! let mut client = TcpStream::connect(proxy.addr()).await?;
//! let (mut server, _) = server.accept().await?;
//!
//! proxy.hang(Direction::ToClient);
//! client.write_all(b"store it").await?;
//! let mut request = [0; 8];
//! server.read_exact(&mut request).await?;
//! server.write_all(b"stored").await?;
//!
//! // The server has answered; the client has not heard of it and never will.
//! proxy.until(|counts| counts.to_client.held == 6).await;
//! proxy.cut().await;
//! assert!(client.read(&mut request).await.is_err());
//! # Ok(())
//! # }
//! ```
//!
//! A server that tells its clients where to connect to, as Kafka does, has to be told to name the proxy: start the proxy
//! first, and [set its upstream](Proxy::set_upstream) when the server's port is known.

use std::{
    fmt,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use self::connection::Connection;

mod connection;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// What the client sends.
    ToServer,
    /// What the server sends.
    ToClient,
    /// Both ways.
    Both,
}

/// What has passed in one direction, over all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Flow {
    /// Bytes that the proxy has read from the sender.
    pub received: u64,
    /// Bytes that it has written to the other side.
    pub delivered: u64,
    /// Bytes that it holds now: read, and not written because of a hang, a delay, a throttle or a slow reader.
    pub held: u64,
}

/// What has happened at a proxy since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Connections that were accepted, the refused ones not among them.
    pub accepted: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Connections that are there now.
    pub open: usize,
    /// What clients have sent.
    pub to_server: Flow,
    /// What servers have sent.
    pub to_client: Flow,
}

/// A TCP proxy under a test's control; see the [module](self). Dropped, it takes its port and its connections with it.
///
/// It runs on the tokio runtime that it was started on, and on the real clock. Connections that are over keep their part
/// in the counts. What is closed or reset by one side is closed or reset at the other, in its place in the stream: a hang
/// and a delay hold it up as they do bytes.
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    connections: Connections,
    accepting: JoinHandle<()>,
}

type Connections = Arc<Mutex<Vec<Connection>>>;

/// What the connections share with the proxy.
struct Shared {
    control: watch::Sender<Control>,
    counts: watch::Sender<Counts>,
}

#[derive(Debug, Clone, Copy)]
struct Control {
    upstream: SocketAddr,
    refuse: bool,
    to_server: Rules,
    to_client: Rules,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rules {
    hung: bool,
    delay: Duration,
    bytes_per_second: Option<u64>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes connections on to `upstream`, which may come later than the proxy.
    ///
    /// # Errors
    /// When the machine has no port left.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, there is no proxy.
    pub async fn start(upstream: impl Into<SocketAddr>) -> io::Result<Self> {
        let upstream = upstream.into();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let control =
            Control { upstream, refuse: false, to_server: Rules::default(), to_client: Rules::default() };
        let shared = Arc::new(Shared {
            control: watch::Sender::new(control),
            counts: watch::Sender::new(Counts::default()),
        });
        let connections = Connections::default();
        let accepting = tokio::spawn(accept_all(listener, shared.clone(), connections.clone()));
        Ok(Self { addr, shared, connections, accepting })
    }

    /// Where clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Passes connections that come from now on to another server; those that are there stay where they are.
    pub fn set_upstream(&self, upstream: impl Into<SocketAddr>) {
        let upstream = upstream.into();
        self.change(|control| control.upstream = upstream);
    }

    /// Resets every connection (RST, not a close), at both sides. What the proxy holds of them is lost. The answer, once
    /// they are gone, is how many there were.
    ///
    /// New ones are accepted as before. To keep a client out for a while, [`refuse`](Self::refuse) first.
    ///
    /// # Cancel safety
    /// The connections are cut by the call; the future only waits for it.
    pub fn cut(&self) -> impl Future<Output = usize> + Send + use<> {
        let connections = std::mem::take(&mut *lock(&self.connections));
        let cut: Vec<_> = connections.into_iter().map(Connection::cut).collect();
        async move {
            let mut count = 0;
            for cut in cut {
                count += usize::from(cut.await);
            }
            count
        }
    }

    /// Refuses new connections until [`accept`](Self::accept): the proxy keeps its port, so a client's connect succeeds
    /// and is followed by a reset at once. Those that are there stay.
    pub fn refuse(&self) {
        self.change(|control| control.refuse = true);
    }

    /// Accepts new connections again.
    pub fn accept(&self) {
        self.change(|control| control.refuse = false);
    }

    /// Holds everything that is received from now on, until [`resume`](Self::resume). Nothing is lost unless the
    /// connection is cut.
    ///
    /// New connections hang as well. The proxy holds up to 1 MiB of a connection in each direction and then stops reading,
    /// so that the sender is slowed down as by any peer that does not read.
    pub fn hang(&self, direction: Direction) {
        self.change_rules(direction, |rules| rules.hung = true);
    }

    /// Delivers what was held, and all that follows.
    pub fn resume(&self, direction: Direction) {
        self.change_rules(direction, |rules| rules.hung = false);
    }

    /// Delivers everything this much later; zero, as at the start, delivers at once. What is held already is due by the
    /// new delay.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.change_rules(direction, |rules| rules.delay = delay);
    }

    /// Delivers at most this many bytes a second on each connection; `None`, as at the start, is without a limit.
    ///
    /// # Panics
    /// With a limit of zero: that is [`hang`](Self::hang).
    pub fn throttle(&self, direction: Direction, bytes_per_second: impl Into<Option<u64>>) {
        let bytes_per_second = bytes_per_second.into();
        assert_ne!(bytes_per_second, Some(0), "a limit of zero bytes a second is a hang");
        self.change_rules(direction, |rules| rules.bytes_per_second = bytes_per_second);
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        *self.shared.counts.borrow()
    }

    /// Waits until the counts are as wanted. There is no bound on it: a test puts a timeout around itself.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn until(&self, wanted: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.shared.counts.subscribe();
        match counts.wait_for(wanted).await {
            Ok(counts) => *counts,
            Err(_) => unreachable!("the proxy has the sender"),
        }
    }

    /// Waits until `n` connections have been accepted since the start.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn until_connections(&self, n: u64) {
        self.until(|counts| counts.accepted >= n).await;
    }

    /// Waits until `n` bytes have been received in a direction since the start, delivered or not.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn until_received(&self, direction: Direction, n: u64) {
        self.until(|counts| counts.received(direction) >= n).await;
    }

    fn change(&self, change: impl FnOnce(&mut Control)) {
        self.shared.control.send_modify(change);
    }

    fn change_rules(&self, direction: Direction, change: impl Fn(&mut Rules)) {
        self.change(|control| {
            if direction != Direction::ToClient {
                change(&mut control.to_server);
            }
            if direction != Direction::ToServer {
                change(&mut control.to_client);
            }
        });
    }
}

impl Counts {
    /// Bytes received in a direction.
    pub fn received(&self, direction: Direction) -> u64 {
        self.sum(direction, |flow| flow.received)
    }

    /// Bytes delivered in a direction.
    pub fn delivered(&self, direction: Direction) -> u64 {
        self.sum(direction, |flow| flow.delivered)
    }

    /// Bytes held in a direction.
    pub fn held(&self, direction: Direction) -> u64 {
        self.sum(direction, |flow| flow.held)
    }

    fn sum(&self, direction: Direction, of: impl Fn(&Flow) -> u64) -> u64 {
        match direction {
            Direction::ToServer => of(&self.to_server),
            Direction::ToClient => of(&self.to_client),
            Direction::Both => of(&self.to_server) + of(&self.to_client),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections end with their list, of which the task has the other handle.
        self.accepting.abort();
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("addr", &self.addr)
            .field("upstream", &self.shared.control.borrow().upstream)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

async fn accept_all(listener: TcpListener, shared: Arc<Shared>, connections: Connections) {
    loop {
        // An error belongs to the one connection that was about to be accepted.
        let Ok((client, _)) = listener.accept().await else { continue };
        if shared.control.borrow().refuse {
            reset(client);
            shared.counts.send_modify(|counts| counts.refused += 1);
            continue;
        }
        let mut connections = lock(&connections);
        connections.retain(|connection| !connection.is_over());
        connections.push(Connection::open(client, shared.clone()));
    }
}

fn lock(connections: &Connections) -> std::sync::MutexGuard<'_, Vec<Connection>> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes with a reset, whatever is still unsent or unread.
fn reset(stream: TcpStream) {
    // It fails only on a socket that is gone already.
    let _ = stream.set_zero_linger();
}
