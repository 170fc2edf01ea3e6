//! Where the broker is and how it is reached. Shared by a source, the publisher and the administration made from it.

use std::{
    cell::RefCell,
    fmt, fs,
    future::Future,
    io,
    path::PathBuf,
    task::{Context, Waker},
    time::Duration,
};

use lapin::{
    Channel, ConnectionProperties, runtime,
    tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig},
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use tracing::dispatcher::{self, DefaultGuard, Dispatch};

use crate::error::{AmqpError, Kind, chain, distrust, said};

const HEARTBEAT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broker is waited for that is asked for nothing more.
const LEAVE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) vhost: String,
    pub(crate) user: String,
    pub(crate) password: Secret,
    pub(crate) tls: Option<Tls>,
    pub(crate) heartbeat: Duration,
    /// For the whole way to an open connection.
    pub(crate) timeout: Duration,
    pub(crate) name: String,
}

/// Files in PEM, read anew at each connect: certificates are renewed while a service runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tls {
    pub(crate) authority: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// A password: nothing shows it.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
impl Secret {
    pub(crate) fn show(&self) -> &str {
        &self.0
    }
}

impl Connection {
    pub(crate) fn new(host: String, port: u16, tls: bool) -> Self {
        Self {
            host,
            port,
            vhost: "/".to_owned(),
            user: "guest".to_owned(),
            password: Secret("guest".to_owned()),
            tls: tls.then(Tls::default),
            heartbeat: HEARTBEAT,
            timeout: TIMEOUT,
            name: "consumer-amqp".to_owned(),
        }
    }

    pub(crate) fn tls_files(&mut self, option: &str) -> Result<&mut Tls, AmqpError> {
        self.tls.as_mut().ok_or_else(|| {
            AmqpError::config(format!(
                "`{option}` is for `amqps://`: with `amqp://` nothing would be encrypted"
            ))
        })
    }

    /// What can be found without the network.
    pub(crate) fn check(&self) -> Result<(), AmqpError> {
        if self.heartbeat.as_secs() == 0 || self.heartbeat.as_secs() > 3600 {
            return Err(AmqpError::config(
                "the heartbeat of an amqp connection is 1 to 3,600 whole seconds: without it a dead connection is \
                 never noticed",
            ));
        }
        if self.timeout.is_zero() {
            return Err(AmqpError::config("the connection timeout of amqp is zero"));
        }
        match &self.tls {
            None => Ok(()),
            Some(_) if cfg!(not(feature = "tls")) => {
                Err(AmqpError::config("`amqps://` needs the feature `tls` of consumer-amqp"))
            }
            Some(tls) => tls.read().map(drop),
        }
    }

    /// As errors name it: `127.0.0.1:5672`.
    pub(crate) fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Connects once; `role` tells this connection from others of the process in the broker's own lists.
    pub(crate) async fn connect(&self, role: &str) -> Result<lapin::Connection, AmqpError> {
        let address = self.address();
        let tls = self.tls.as_ref().map(Tls::read).transpose()?.unwrap_or_default();
        let runtime = runtime::default_runtime().map_err(|error| self.unreachable(error))?;
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{} {role}", self.name).into())
            .with_client_property("product".into(), "consumer-amqp".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let connecting = lapin::Connection::connector(
            self.uri(),
            runtime,
            async move |uri, runtime| {
                keep_this_thread_from_logging();
                let opened = AMQPUriTcpExt::connect_with_config_async(&uri, tls.as_ref(), &runtime).await;
                opened.map_err(lapin::Error::from)
            },
            properties,
        );
        match tokio::time::timeout(self.timeout, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.refused(error)),
            Err(_) => Err(AmqpError::new(
                Kind::Unreachable,
                format!("rabbitmq at {address} did not answer within {:?}", self.timeout),
            )),
        }
    }

    /// What a failed handshake means.
    fn refused(&self, error: lapin::Error) -> AmqpError {
        let address = self.address();
        let text = said(&error).unwrap_or_default();
        let (kind, message) = if text.contains("NOT_ALLOWED") && text.contains("limit") {
            (Kind::Unreachable, format!("rabbitmq at {address} takes no more connections"))
        } else if text.contains("ACCESS_REFUSED") {
            let why = "refuses the user or the password";
            (Kind::Authentication, format!("rabbitmq at {address} {why} (user `{}`)", self.user))
        } else if text.contains("NOT_ALLOWED") && text.contains("not found") {
            (Kind::Missing, format!("rabbitmq at {address} has no vhost `{}`: create it", self.vhost))
        } else if text.contains("NOT_ALLOWED") {
            let (vhost, user) = (&self.vhost, &self.user);
            (Kind::Denied, format!("rabbitmq at {address} does not let `{user}` into the vhost `{vhost}`"))
        } else {
            return self.unreachable(error);
        };
        AmqpError::new(kind, message).with_source(error)
    }

    fn unreachable(&self, error: lapin::Error) -> AmqpError {
        let address = self.address();
        let message = match distrust(&chain(&error)) {
            Some(why) => format!("no TLS connection to rabbitmq at {address}: {why}"),
            None => format!("rabbitmq at {address} cannot be reached"),
        };
        AmqpError::driver(message, error)
    }

    fn uri(&self) -> AMQPUri {
        AMQPUri {
            scheme: if self.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: self.user.clone(), password: self.password.0.clone() },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: u16::try_from(self.heartbeat.as_secs()).ok(),
                ..AMQPQueryString::default()
            },
        }
    }
}

thread_local! {
    static UNHEARD: RefCell<Option<DefaultGuard>> = const { RefCell::new(None) };
}

/// For the thread that the driver has for each connection: at trace level it logs every frame that it sends, the one with
/// the password too. For as long as the thread lives, nothing it logs reaches a subscriber; what matters, the adapter says.
fn keep_this_thread_from_logging() {
    UNHEARD.with_borrow_mut(|unheard| {
        unheard.get_or_insert_with(|| dispatcher::set_default(&Dispatch::none()));
    });
}

/// Ends a connection over which all that was asked for is done. A broker that says nothing any more is not waited for.
pub(crate) async fn leave(connection: lapin::Connection) {
    let _ = tokio::time::timeout(LEAVE, connection.close(200, "closed".into())).await;
}

/// Tells the broker that the channel is closed, and does not wait for its answer.
///
/// A consumer that is dropped on an open channel is cancelled first, and what it holds comes back later, behind what went on
/// to others meanwhile.
pub(crate) fn close_now(channel: &Channel) {
    let mut closing = Box::pin(channel.close(200, "dropped".into()));
    // The driver queues the frame at the first poll.
    let _ = closing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

/// A channel while a consumer is asked for. If that is given up, the driver would keep the channel, and soon the consumer on
/// it, which holds messages for nobody.
pub(crate) struct Opening(Option<Channel>);

impl Opening {
    pub(crate) fn new(channel: &Channel) -> Self {
        Self(Some(channel.clone()))
    }

    pub(crate) fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(channel) = &self.0 {
            close_now(channel);
        }
    }
}

impl Tls {
    fn read(&self) -> Result<OwnedTLSConfig, AmqpError> {
        let read = |path: &PathBuf| {
            let text = fs::read_to_string(path).and_then(|text| {
                if text.contains("-----BEGIN ") { Ok(text) } else { Err(io::Error::other("no PEM in it")) }
            });
            text.map_err(|error| {
                AmqpError::config(format!("the certificate file {} cannot be read", path.display()))
                    .with_source(error)
            })
        };
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some(OwnedIdentity::PKCS8 {
                pem: read(certificate)?.into_bytes(),
                key: read(key)?.into_bytes(),
            }),
            (None, None) => None,
            _ => {
                return Err(AmqpError::config(
                    "a client certificate needs both files: the certificate and its key",
                ));
            }
        };
        Ok(OwnedTLSConfig { identity, cert_chain: self.authority.as_ref().map(read).transpose()? })
    }
}
