//! Options, and connecting.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    clock::Clock,
    connection::{Opener, Settings, Tls},
    driver::{self, Shared},
    error::{ConnectError, Kind},
    greeting,
    operation::MAX_PREFIX,
    store::RedisStore,
    target::{Target, non_empty},
};

const PREFIX: &str = "ic1:";
const PIPELINES: usize = 2;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// What to do about a Redis whose `maxmemory-policy` allows it to evict remembered ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvictionCheck {
    /// Warn in the log whenever another run of the server is met.
    #[default]
    Warn,
    /// Refuse to connect, also after an outage: then the store stays down, and its errors say why.
    Refuse,
}

/// Options of a [`RedisStore`]; from [`RedisStore::builder`].
///
/// | option | default | why |
/// |---|---|---|
/// | [`pipelines`](Self::pipelines) | 2 | one gathers while the other waits; more make smaller batches, and help only where round trips are long |
/// | [`response_timeout`](Self::response_timeout) | 1 s | far above a healthy round trip, far below a lease |
/// | [`connect_timeout`](Self::connect_timeout) | 2 s | name lookup, TCP, TLS and login |
/// | [`key_prefix`](Self::key_prefix) | `ic1:` | 4 bytes; the 1 is the version of the [format](crate::format) |
/// | [`eviction`](Self::eviction) | warn | a shared cache works, but loses ids under memory pressure |
#[derive(Clone)]
#[must_use = "a builder does nothing until `connect`"]
pub struct RedisStoreBuilder {
    url: String,
    user: Option<String>,
    password: Option<String>,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
    tls: Tls,
    name: Option<String>,
    prefix: Vec<u8>,
    pipelines: usize,
    response_timeout: Duration,
    connect_timeout: Duration,
    eviction: EvictionCheck,
}

impl RedisStoreBuilder {
    pub(crate) fn new(url: String) -> Self {
        Self {
            url,
            user: None,
            password: None,
            sentinel_user: None,
            sentinel_password: None,
            tls: Tls::default(),
            name: None,
            prefix: PREFIX.into(),
            pipelines: PIPELINES,
            response_timeout: RESPONSE_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            eviction: EvictionCheck::default(),
        }
    }

    /// The user to log in as, instead of one in the URL. An empty one counts as none.
    pub fn user(self, user: impl Into<String>) -> Self {
        Self { user: non_empty(user.into()), ..self }
    }

    /// The password to log in with, instead of one in the URL. An empty one counts as none. Never shown in errors, logs or
    /// `Debug`.
    pub fn password(self, password: impl Into<String>) -> Self {
        Self { password: non_empty(password.into()), ..self }
    }

    /// User and password for the Sentinels, empty ones counting as none; user and password of the URL are for Redis
    /// itself.
    pub fn sentinel_login(self, user: Option<String>, password: impl Into<String>) -> Self {
        Self {
            sentinel_user: user.and_then(non_empty),
            sentinel_password: non_empty(password.into()),
            ..self
        }
    }

    /// The certificate of the authority that signed the server's, as PEM, instead of the well-known ones.
    pub fn authority(self, pem: impl Into<Vec<u8>>) -> Self {
        Self { tls: Tls { authority: Some(pem.into()), ..self.tls }, ..self }
    }

    /// The certificate by which this client identifies itself and its key, both as PEM.
    pub fn client_certificate(self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        Self { tls: Tls { client: Some((certificate.into(), key.into())), ..self.tls }, ..self }
    }

    /// The name that `CLIENT LIST` shows for the connections. None by default; not set on a Cluster.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// What the keys begin with, `ic1:` by default. All consumers that share ids need the same. Above six bytes each
    /// remembered id costs more memory.
    pub fn key_prefix(self, prefix: impl AsRef<[u8]>) -> Self {
        Self { prefix: prefix.as_ref().to_vec(), ..self }
    }

    /// How many pipelines, each with its own connection, there are. 2 by default, at least 1.
    pub fn pipelines(self, pipelines: usize) -> Self {
        Self { pipelines: pipelines.max(1), ..self }
    }

    /// How long a claim or a renewal may take, waiting and retries included, before it is answered with an error. 1 s by
    /// default. Completions and releases have no such limit: they are retried until they are recorded or mean nothing
    /// any more. From 1 ms to 1 h: what is beyond is taken for the nearest of them.
    pub fn response_timeout(self, timeout: Duration) -> Self {
        Self { response_timeout: timeout.clamp(SHORTEST_TIMEOUT, LONGEST_TIMEOUT), ..self }
    }

    /// How long opening a connection may take, for each host of the URL. 2 s by default; from 1 ms to 1 h, as above.
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        Self { connect_timeout: timeout.clamp(SHORTEST_TIMEOUT, LONGEST_TIMEOUT), ..self }
    }

    /// Whether a Redis that may evict ids is warned about (the default) or refused.
    pub fn eviction(self, check: EvictionCheck) -> Self {
        Self { eviction: check, ..self }
    }

    /// Looks at the URL and the options, without the network.
    ///
    /// # Errors
    /// When the URL or an option is wrong: [`ConnectError::is_configuration`].
    pub fn check(&self) -> Result<(), ConnectError> {
        self.clone().openers().map(drop)
    }

    /// Connects, checks the server, and starts the store's tasks on the current tokio runtime.
    ///
    /// # Errors
    /// When the URL or an option is wrong, no server answers within the connect timeout, it refuses the login, it is
    /// older than Redis 7.0, a replica or otherwise not what the URL says, or it may evict and that was to be refused.
    /// Trying again is safe.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it has opened.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(self) -> Result<RedisStore, ConnectError> {
        let prefix = self.prefix.clone();
        let (settings, mut openers) = self.openers()?;
        let clock = Clock::default();
        let Some(first) = openers.first_mut() else {
            return Err(ConnectError::new(Kind::Configuration, "there is no pipeline"));
        };
        let (connection, greeting) = greeting::connect(first, &settings, &clock).await?;
        let shared = Arc::new(Shared::new(settings, prefix, clock, openers.len()));
        driver::spawn(&shared, openers, connection, greeting);
        Ok(RedisStore::new(shared))
    }

    /// One for each pipeline.
    fn openers(self) -> Result<(Arc<Settings>, Vec<Opener>), ConnectError> {
        if self.prefix.len() > MAX_PREFIX {
            let message = format!("the key prefix is longer than {MAX_PREFIX} bytes");
            return Err(ConnectError::new(Kind::Configuration, message));
        }
        let pipelines = self.pipelines;
        let settings = Arc::new(self.into_settings()?);
        let openers = (0..pipelines).map(|_| Opener::new(settings.clone())).collect::<Result<_, _>>()?;
        Ok((settings, openers))
    }

    fn into_settings(self) -> Result<Settings, ConnectError> {
        let mut target = Target::parse(&self.url)?;
        target.user = self.user.or(target.user);
        target.password = self.password.or(target.password);
        let files = target.files.read()?;
        let tls = Tls {
            authority: self.tls.authority.or(files.authority),
            client: self.tls.client.or(files.client),
        };
        let without_tls = !target.tls && (tls.authority.is_some() || tls.client.is_some());
        if without_tls {
            let message = "certificates are given, but the url is not rediss://";
            return Err(ConnectError::new(Kind::Configuration, message));
        }
        if self.name.as_ref().is_some_and(|name| !name.bytes().all(|byte| byte.is_ascii_graphic())) {
            let message = "the connection name has characters that redis does not allow";
            return Err(ConnectError::new(Kind::Configuration, message));
        }
        Ok(Settings {
            target,
            tls,
            sentinel_user: self.sentinel_user,
            sentinel_password: self.sentinel_password,
            name: self.name,
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
            eviction: self.eviction,
        })
    }
}

/// Without URL, passwords and keys.
impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoreBuilder")
            .field("target", &Target::parse(&self.url).ok())
            .field("pipelines", &self.pipelines)
            .field("response_timeout", &self.response_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("eviction", &self.eviction)
            .finish_non_exhaustive()
    }
}
