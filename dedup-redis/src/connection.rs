//! Opens connections of each kind and speaks over them. The only file that knows single node, Sentinel and Cluster
//! apart.

use std::{fmt, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, ClientTlsConfig, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, TlsCertificates, TlsMode, Value,
    aio::MultiplexedConnection,
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::time::timeout;

use crate::{
    builder::EvictionCheck,
    cluster::Cluster,
    error::{ConnectError, Kind},
    operation,
    target::{Deployment, Target},
};

/// What every connection is opened with.
pub(crate) struct Settings {
    pub(crate) target: Target,
    pub(crate) tls: Tls,
    pub(crate) sentinel_user: Option<String>,
    pub(crate) sentinel_password: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) eviction: EvictionCheck,
}

/// Certificates in PEM.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    pub(crate) authority: Option<Vec<u8>>,
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
}

/// Opens connections, one after the other.
pub(crate) struct Opener {
    settings: Arc<Settings>,
    client: Client,
}

enum Client {
    Single(Box<redis::Client>),
    Sentinel(Box<SentinelClient>),
    /// The primaries of the last map: hosts to ask for the next one, besides those of the URL.
    Cluster(Vec<(String, u16)>),
}

/// One open connection.
pub(crate) enum Connection {
    Single(MultiplexedConnection),
    Cluster(Cluster),
}

/// What a server answered to one command.
pub(crate) type Reply = Result<Value, Trouble>;

/// Why a command was not carried out, or may not have been.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// The server does not know the script.
    NoScript,
    /// Nothing will change by asking again.
    Refused(String),
    /// The node of the Cluster that serves the key is known to be gone; it was not sent.
    Missing(String),
    /// The server cannot serve it now; or nobody knows.
    Unavailable {
        why: String,
        /// Whether another connection has to be opened for it.
        reopen: bool,
        /// Whether it may have been carried out all the same.
        in_doubt: bool,
    },
}

impl Opener {
    pub(crate) fn new(settings: Arc<Settings>) -> Result<Self, ConnectError> {
        let client = client(&settings).map_err(|error| {
            let message = "the redis or tls settings are not valid";
            ConnectError::new(Kind::Configuration, message).with_source(settings.describe(&error))
        })?;
        Ok(Self { settings, client })
    }

    /// Opens a connection. A Sentinel is asked each time for the primary of the moment, a Cluster for its map.
    pub(crate) async fn open(&mut self) -> Result<Connection, RedisError> {
        let config = self.settings.config();
        Ok(match &mut self.client {
            Client::Single(client) => {
                Connection::Single(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Client::Sentinel(client) => {
                Connection::Single(client.get_async_connection_with_config(&config).await?)
            }
            Client::Cluster(last) => {
                let new = last.iter().filter(|address| !self.settings.target.hosts.contains(address));
                let seeds: Vec<_> = self.settings.target.hosts.iter().chain(new).collect();
                let cluster = Cluster::open(&self.settings, &seeds).await?;
                *last = cluster.addresses().cloned().collect();
                Connection::Cluster(cluster)
            }
        })
    }
}

/// Connects to one node of a Cluster.
pub(crate) async fn connect_node(
    settings: &Settings,
    node: &(String, u16),
) -> Result<MultiplexedConnection, RedisError> {
    let client = single(settings, node)?;
    client.get_multiplexed_async_connection_with_config(&settings.config()).await
}

fn single(settings: &Settings, node: &(String, u16)) -> Result<redis::Client, RedisError> {
    let target = &settings.target;
    let mut redis = RedisConnectionInfo::default().set_db(target.database);
    if let Some(user) = &target.user {
        redis = redis.set_username(user);
    }
    if let Some(password) = &target.password {
        redis = redis.set_password(password);
    }
    let info = address(node, target.tls).into_connection_info()?;
    let info = info.set_redis_settings(redis).set_tcp_settings(tcp());
    if target.tls {
        redis::Client::build_with_tls(info, settings.certificates())
    } else {
        redis::Client::open(info)
    }
}

fn client(settings: &Settings) -> Result<Client, RedisError> {
    let target = &settings.target;
    if target.tls {
        use_a_crypto_provider();
    }
    let Some(first) = target.hosts.first() else {
        return Err((ErrorKind::InvalidClientConfig, "no host").into());
    };
    // Also for the others: it finds certificates that cannot be read.
    let single = single(settings, first)?;
    Ok(match &target.deployment {
        Deployment::Single => Client::Single(Box::new(single)),
        Deployment::Sentinel { primary } => Client::Sentinel(Box::new(sentinel(settings, primary)?)),
        Deployment::Cluster => Client::Cluster(Vec::new()),
    })
}

fn sentinel(settings: &Settings, primary: &str) -> Result<SentinelClient, RedisError> {
    let target = &settings.target;
    let addresses = target.hosts.iter().map(|host| address(host, target.tls));
    let mut builder = SentinelClientBuilder::new(addresses, primary, SentinelServerType::Master)?
        .set_client_to_redis_db(target.database)
        .set_client_to_redis_tcp_settings(tcp())
        .set_client_to_sentinel_tcp_settings(tcp());
    if let Some(user) = &target.user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = &target.password {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(user) = &settings.sentinel_user {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = &settings.sentinel_password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    if target.tls {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(settings.certificates())
            .set_client_to_sentinel_certificates(settings.certificates());
    }
    builder.build()
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn address((host, port): &(String, u16), tls: bool) -> ConnectionAddr {
    let (host, port) = (host.clone(), *port);
    if tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

/// The process may already have chosen one; with several compiled in, rustls would panic without a choice.
fn use_a_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

impl Connection {
    /// Sends all commands together; one reply for each, in order. Waits for them as long as for a response.
    ///
    /// # Errors
    /// When the connection is lost (on a Cluster: those to all nodes), in words: what became of the commands is not known.
    pub(crate) async fn run(
        &mut self,
        settings: &Settings,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Reply>, String> {
        let count = commands.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let replies: Vec<Reply> = match self {
            Self::Single(connection) => {
                let mut pipeline = Pipeline::with_capacity(count);
                for command in commands {
                    pipeline.add_command(command);
                }
                let values = in_time(settings, connection.send_packed_commands(&pipeline, 0, count)).await?;
                values.into_iter().map(|value| reply(Ok(value))).collect()
            }
            Self::Cluster(cluster) => cluster.run(settings, &commands).await?,
        };
        if replies.len() == count {
            return Ok(replies);
        }
        Err("the server gave another number of replies than it got commands".to_owned())
    }

    /// Why it does not serve all keys: a part of the Cluster is missing, or its map is outdated.
    pub(crate) fn lacks(&self) -> Option<&str> {
        match self {
            Self::Single(_) => None,
            Self::Cluster(cluster) => cluster.lacks(),
        }
    }

    /// Pairs of commands that show whether the server, or a node of the Cluster, takes scripts and writes. They leave
    /// nothing behind.
    pub(crate) fn probe(&self, prefix: &[u8]) -> Vec<Cmd> {
        let keys = match self {
            Self::Single(_) => vec![[prefix, b"probe"].concat()],
            Self::Cluster(cluster) => cluster.probe_keys(prefix),
        };
        keys.iter().flat_map(|key| operation::probe(key)).collect()
    }
}

/// # Errors
/// In words, without passwords.
pub(crate) async fn in_time<T>(
    settings: &Settings,
    exchange: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, String> {
    let limit = settings.response_timeout;
    match timeout(limit, exchange).await {
        Ok(answer) => answer.map_err(|error| settings.describe(&error)),
        Err(_) => Err(format!("no reply within {limit:?}")),
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoScript => f.write_str("the server does not keep scripts"),
            Self::Refused(why) | Self::Missing(why) | Self::Unavailable { why, .. } => f.write_str(why),
        }
    }
}

pub(crate) fn reply(answer: Result<Value, RedisError>) -> Reply {
    answer.and_then(Value::extract_error).map_err(|error| trouble(&error))
}

fn trouble(error: &RedisError) -> Trouble {
    let why = error.to_string();
    match error.code() {
        Some("NOSCRIPT") => Trouble::NoScript,
        Some("WRONGTYPE" | "BADRECORD" | "ERR" | "CROSSSLOT") => Trouble::Refused(why),
        // A primary that has become a replica, or a slot that has moved: the right node has to be found.
        Some("READONLY" | "MASTERDOWN" | "MOVED" | "ASK" | "NOAUTH") => {
            Trouble::Unavailable { why, reopen: true, in_doubt: false }
        }
        Some(_) => Trouble::Unavailable { why, reopen: false, in_doubt: false },
        None => Trouble::Unavailable { why, reopen: error.is_unrecoverable_error(), in_doubt: true },
    }
}

impl Settings {
    /// Deadlines of replies are the pipelines' business.
    fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(None)
    }

    fn certificates(&self) -> TlsCertificates {
        let client = self.tls.client.clone();
        let client_tls = client.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        TlsCertificates { root_cert: self.tls.authority.clone(), client_tls }
    }

    /// The words of the driver's error, with the password blotted out should it ever repeat one.
    pub(crate) fn describe(&self, error: &RedisError) -> String {
        self.redact(error.to_string())
    }

    pub(crate) fn redact(&self, text: String) -> String {
        let passwords = [&self.target.password, &self.sentinel_password];
        passwords.into_iter().flatten().fold(text, |text, password| text.replace(password.as_str(), "***"))
    }
}
