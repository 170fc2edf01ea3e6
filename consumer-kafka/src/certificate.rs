//! Why the certificate of a broker is not trusted. The driver says only that it is not, so it is looked at once more, by
//! a handshake that goes no further than the certificate: neither user nor password is sent.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
#[cfg(feature = "tls")]
use std::{sync::mpsc, thread};

use rdkafka::ClientConfig;

/// How long one look counts: the driver tries every two seconds.
const COUNTS: Duration = Duration::from_secs(30);

/// Whom the driver trusts.
#[derive(Default)]
pub(crate) struct Trust {
    anchors: Anchors,
    last: Mutex<Option<Look>>,
}

#[derive(Clone, Default)]
struct Anchors {
    authority: Option<String>,
    pem: Option<String>,
    any_name: bool,
}

/// At which broker, when, and what was seen.
type Look = (String, Instant, Option<&'static str>);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("authority", &self.anchors.authority).finish_non_exhaustive()
    }
}

impl Trust {
    pub(crate) fn of(config: &ClientConfig) -> Self {
        let value = |name: &str| config.get(name).map(str::to_owned);
        let name_check = value("ssl.endpoint.identification.algorithm");
        let anchors = Anchors {
            authority: value("ssl.ca.location").filter(|path| path != "probe"),
            pem: value("ssl.ca.pem"),
            any_name: name_check.is_some_and(|check| check == "none"),
        };
        Self { anchors, last: Mutex::default() }
    }

    /// In words, if `reason`, what the driver says, is about a certificate. Blocks for a few seconds at most.
    pub(crate) fn why_not(&self, reason: &str) -> Option<&'static str> {
        if !reason.contains("certificate verify failed") {
            return None;
        }
        // Such as `ssl://broker:9093/bootstrap: SSL handshake failed: …`.
        let broker = reason.split_once("ssl://").and_then(|(_, rest)| rest.split(['/', ' ']).next())?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, at, why)) = &*last
            && of == broker
            && at.elapsed() < COUNTS
        {
            return *why;
        }
        let why = self.look(broker);
        *last = Some((broker.to_owned(), Instant::now(), why));
        why
    }

    #[cfg(not(feature = "tls"))]
    fn look(&self, _broker: &str) -> Option<&'static str> {
        let Anchors { authority: _, pem: _, any_name: _ } = &self.anchors;
        None
    }

    #[cfg(feature = "tls")]
    fn look(&self, broker: &str) -> Option<&'static str> {
        // In a thread of its own, since the driver waits: nobody says how long a name takes, or a broker that sends a byte
        // now and then.
        let (anchors, broker, (tell, told)) = (self.anchors.clone(), broker.to_owned(), mpsc::channel());
        let look = move || tell.send(handshake::refused(&anchors, &broker).and_then(handshake::in_words));
        thread::Builder::new().name("kafka-certificate".to_owned()).spawn(look).ok()?;
        told.recv_timeout(handshake::LIMIT * 2).ok().flatten()
    }
}

#[cfg(feature = "tls")]
mod handshake {
    use std::{
        net::{IpAddr, TcpStream, ToSocketAddrs},
        path::Path,
        time::Duration,
    };

    use openssl::{
        ssl::{HandshakeError, Ssl, SslContext, SslMethod, SslVerifyMode},
        x509::{X509, X509VerifyResult},
    };

    use super::Anchors;

    pub(super) const LIMIT: Duration = Duration::from_secs(2);

    /// With the settings that the driver gives to the same library.
    pub(super) fn refused(trust: &Anchors, broker: &str) -> Option<X509VerifyResult> {
        let (host, _) = broker.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut context = SslContext::builder(SslMethod::tls_client()).ok()?;
        context.set_verify(SslVerifyMode::PEER);
        if let Some(path) = trust.authority.as_deref().map(Path::new) {
            let (file, dir) = if path.is_dir() { (None, Some(path)) } else { (Some(path), None) };
            context.load_verify_locations(file, dir).ok()?;
        }
        for authority in trust.pem.iter().flat_map(|pem| X509::stack_from_pem(pem.as_bytes())).flatten() {
            context.cert_store_mut().add_cert(authority).ok()?;
        }
        if trust.authority.is_none() && trust.pem.is_none() {
            context.set_default_verify_paths().ok()?;
        }
        let mut ssl = Ssl::new(&context.build()).ok()?;
        match host.parse::<IpAddr>() {
            Ok(ip) if !trust.any_name => ssl.param_mut().set_ip(ip).ok()?,
            Err(_) => {
                ssl.set_hostname(host).ok()?;
                if !trust.any_name {
                    ssl.param_mut().set_host(host).ok()?;
                }
            }
            Ok(_) => {}
        }
        let stream = TcpStream::connect_timeout(&broker.to_socket_addrs().ok()?.next()?, LIMIT).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        stream.set_write_timeout(Some(LIMIT)).ok()?;
        match ssl.connect(stream) {
            Err(HandshakeError::Failure(ended)) => Some(ended.ssl().verify_result()),
            _ => None,
        }
    }

    /// By the codes of X509_STORE_CTX_get_error(3).
    pub(super) fn in_words(result: X509VerifyResult) -> Option<&'static str> {
        Some(match result.as_raw() {
            9 => "the broker's certificate is not valid yet: is the clock here right?",
            10 => "the broker's certificate has expired: renew it, or see whether the clock here is right",
            62 | 64 => "the broker's certificate is not for this name: connect by a name that is in it",
            2 | 18..=21 => {
                "the broker's certificate is from an authority that is not trusted: name the file with that \
                 authority's certificate by `ssl.ca.location`"
            }
            _ => return None,
        })
    }
}
