//! What the tests against real servers share.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    future::{Future, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use consumer_core::dedup::{
    Claim, ClaimReply, ClaimRequest, DedupStore, Mode, Owner, RenewRequest, Resolution, StoreKey,
};
use dedup_redis::{
    RedisStore,
    format::{FormatError, Record},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use xtask::servers::Redis;

pub const LEASE: Duration = Duration::from_secs(30);
pub const GRACE: Duration = Duration::from_secs(3600);
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);
/// For what has to happen, but nobody says when.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn key(name: &str) -> StoreKey {
    StoreKey::new("tests".into(), name.to_owned().into())
}

/// A key nobody else uses, for servers that are shared.
pub fn unique(name: &str) -> StoreKey {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, SeqCst);
    let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    key(&format!("{name}-{}-{started}-{count}", std::process::id()))
}

pub fn owner(process: u128, seq: u64) -> Owner {
    Owner { process, seq }
}

pub fn request(key: &StoreKey, owner: Owner) -> ClaimRequest {
    ClaimRequest {
        key: key.clone(),
        owner,
        fingerprint: Some(7),
        lease: LEASE,
        grace: GRACE,
        attempt: 1,
        redrive: 0,
    }
}

pub async fn claim(store: &RedisStore, key: &StoreKey, owner: Owner) -> Claim {
    match store.claim(request(key, owner)).await.unwrap() {
        ClaimReply::Claimed(claim) => claim,
        other => panic!("not claimed: {other:?}"),
    }
}

pub async fn complete(store: &RedisStore, claim: Claim) -> consumer_core::dedup::Resolved {
    store.resolve(claim, Resolution::Completed, RETENTION).await.unwrap()
}

pub fn renewal(claim: &Claim) -> RenewRequest {
    RenewRequest { claim: claim.clone(), attempts: 0, mode: Mode::Normal }
}

pub fn stored_key(key: &StoreKey) -> Vec<u8> {
    [&b"ic1:"[..], &key.hash().to_be_bytes()].concat()
}

/// A second way to the same server, for looking and for meddling.
#[derive(Clone)]
pub struct Direct(redis::aio::MultiplexedConnection);

impl Direct {
    pub async fn to(url: &str) -> Self {
        let client = redis::Client::open(url).unwrap();
        Self(client.get_multiplexed_async_connection().await.unwrap())
    }

    pub async fn record(&mut self, key: &StoreKey) -> Option<Result<Record, FormatError>> {
        let value: Option<Vec<u8>> =
            redis::cmd("GET").arg(stored_key(key)).query_async(&mut self.0).await.unwrap();
        value.map(|value| Record::from_bytes(&value))
    }

    /// The value of a key; none where this node of a Cluster does not speak for its slot.
    pub async fn peek(&mut self, key: &StoreKey) -> Option<Option<Vec<u8>>> {
        redis::cmd("GET").arg(stored_key(key)).query_async(&mut self.0).await.ok()
    }

    /// A replica in a Cluster answers from then on. Others always do, and know no such command.
    pub async fn read_as_replica(&mut self) {
        let _ = redis::cmd("READONLY").query_async::<()>(&mut self.0).await;
    }

    /// Whether the node of a Cluster holds the key.
    pub async fn holds(&mut self, key: &StoreKey) -> bool {
        let found = redis::cmd("EXISTS").arg(stored_key(key)).query_async::<u64>(&mut self.0).await;
        found.is_ok_and(|found| found == 1)
    }

    /// How many connections the server has seen.
    pub async fn connections(&mut self) -> u64 {
        let info: String = self.run(redis::cmd("INFO").arg("stats")).await;
        let count = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        count.unwrap().trim().parse().unwrap()
    }

    /// The ids of the clients with this name.
    pub async fn clients(&mut self, name: &str) -> Vec<String> {
        let list: String = self.run(redis::cmd("CLIENT").arg("LIST")).await;
        let name = format!("name={name}");
        let named = list.lines().filter(|line| line.split(' ').any(|field| field == name));
        named.filter_map(|line| Some(line.split(' ').next()?.strip_prefix("id=")?.to_owned())).collect()
    }

    /// Waits until there are so many clients with this name, and gives their ids.
    pub async fn until_clients(&mut self, name: &str, count: usize) -> Vec<String> {
        within("the clients are there", async {
            loop {
                let clients = self.clients(name).await;
                if clients.len() == count {
                    return clients;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    pub async fn kill_client(&mut self, id: &str) {
        let _: u64 = self.run(redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id)).await;
    }

    pub async fn ttl(&mut self, key: &StoreKey) -> i64 {
        redis::cmd("PTTL").arg(stored_key(key)).query_async(&mut self.0).await.unwrap()
    }

    /// Ends the lease of a claimed key: its record has no more left than the grace.
    pub async fn end_lease(&mut self, key: &StoreKey, grace: Duration) {
        let millis = u64::try_from(grace.as_millis()).unwrap();
        let () =
            redis::cmd("PEXPIRE").arg(stored_key(key)).arg(millis).query_async(&mut self.0).await.unwrap();
    }

    pub async fn run<T: redis::FromRedisValue>(&mut self, command: &mut redis::Cmd) -> T {
        command.query_async(&mut self.0).await.unwrap()
    }
}

/// Runs a blocking call of a server without holding up the store's tasks.
pub async fn blocking<T: Send + 'static>(
    server: &Arc<Redis>,
    call: impl FnOnce(&Redis) -> T + Send + 'static,
) -> T {
    let server = server.clone();
    tokio::task::spawn_blocking(move || call(&server)).await.unwrap()
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

pub async fn available(store: &RedisStore) {
    within("the store is available", poll_fn(|cx| store.poll_available(cx))).await;
}

pub async fn is_available(store: &RedisStore) -> bool {
    poll_fn(|cx| Poll::Ready(store.poll_available(cx).is_ready())).await
}

/// Asks again until the store is known to be down.
pub async fn known_down(store: &RedisStore) {
    within("the store is known to be down", async {
        while is_available(store).await {
            let _ = store.claim(request(&unique("probe"), owner(99, 0))).await;
        }
    })
    .await;
}

/// Asks again until the condition holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    within(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Stands between store and server, and can swallow replies.
pub struct Proxy {
    pub port: u16,
    to: Arc<AtomicU16>,
    swallow: Arc<AtomicUsize>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Arc::new(AtomicU16::new(port));
        let proxy = Self { port: listener.local_addr().unwrap().port(), to, swallow: Arc::default() };
        let (to, swallow) = (proxy.to.clone(), proxy.swallow.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", to.load(SeqCst))).await {
                    tokio::spawn(pass_on(client, server, swallow.clone()));
                }
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// New connections lead to another server.
    pub fn lead_to(&self, port: u16) {
        self.to.store(port, SeqCst);
    }

    /// The next so many replies are swallowed, and their connections cut.
    pub fn swallow(&self, replies: usize) {
        self.swallow.store(replies, SeqCst);
    }

    pub fn swallowed_all(&self) -> bool {
        self.swallow.load(SeqCst) == 0
    }
}

async fn pass_on(mut client: TcpStream, mut server: TcpStream, swallow: Arc<AtomicUsize>) {
    let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(count) if count > 0 => server.write_all(&from_client[..count]).await.unwrap(),
                _ => return,
            },
            read = server.read(&mut from_server) => match read {
                Ok(count) if count > 0 => {
                    if swallow.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                        return;
                    }
                    client.write_all(&from_server[..count]).await.unwrap();
                }
                _ => return,
            },
        }
    }
}
