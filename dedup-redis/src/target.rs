//! Where the store is: URLs, taken apart by hand so that no error can repeat a password.

use std::{fmt, fs, io, path::PathBuf};

use crate::{
    connection::Tls,
    error::{ConnectError, Kind},
};

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26379;

/// A URL in parts.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) deployment: Deployment,
    pub(crate) tls: bool,
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) database: i64,
    pub(crate) files: Files,
}

/// Files in PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Files {
    authority: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Deployment {
    Single,
    Sentinel { primary: String },
    Cluster,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, ConnectError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let (tls, plain) = match scheme.strip_prefix("rediss") {
            Some(kind) => (true, kind),
            None => (false, scheme.strip_prefix("redis").ok_or_else(unknown_scheme)?),
        };
        // A password may hold an unescaped @ or /; hosts cannot.
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        if credentials.is_some_and(|credentials| credentials.contains(['?', '#'])) || rest.contains('#') {
            return Err(wrong("a ? or # in a user or password is written as %3F or %23"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let files = Files::parse(query)?;
        if !tls && files != Files::default() {
            return Err(wrong("it names certificates, but is not rediss://"));
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut path = path.split('/').filter(|part| !part.is_empty());
        let deployment = match plain {
            "" => Deployment::Single,
            "+cluster" => Deployment::Cluster,
            "+sentinel" => {
                let primary = path.next().ok_or_else(|| {
                    wrong(
                        "it names no primary: redis+sentinel://host:port[,host:port]/primary-name[/database]",
                    )
                })?;
                Deployment::Sentinel { primary: decoded(primary)? }
            }
            _ => return Err(unknown_scheme()),
        };
        let database = match path.next() {
            None => 0,
            Some(number) => match number.parse::<u32>() {
                Ok(number) => i64::from(number),
                Err(_) => return Err(wrong("its database is no number")),
            },
        };
        if path.next().is_some() {
            return Err(wrong("its path has too many parts"));
        }
        if deployment == Deployment::Cluster && database != 0 {
            return Err(wrong("a cluster has database 0 only"));
        }
        let default_port = match deployment {
            Deployment::Sentinel { .. } => DEFAULT_SENTINEL_PORT,
            _ => DEFAULT_PORT,
        };
        let hosts =
            hosts.split(',').map(|host| parse_host(host, default_port)).collect::<Result<Vec<_>, _>>()?;
        if deployment == Deployment::Single && hosts.len() > 1 {
            return Err(wrong("it names several hosts: use redis+sentinel:// or redis+cluster://"));
        }
        let (user, password) = match credentials {
            None => (None, None),
            Some(credentials) => {
                let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
                (non_empty(decoded(user)?), non_empty(decoded(password)?))
            }
        };
        Ok(Self { deployment, tls, hosts, user, password, database, files })
    }
}

impl Files {
    fn parse(query: &str) -> Result<Self, ConnectError> {
        let mut files = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let file = match name {
                "cacertfile" => &mut files.authority,
                "certfile" => &mut files.certificate,
                "keyfile" => &mut files.key,
                // Not shown: it may be a part of a password.
                _ => return Err(wrong("what may stand behind ? is cacertfile, certfile and keyfile")),
            };
            *file = Some(PathBuf::from(decoded(value)?));
        }
        if files.certificate.is_some() != files.key.is_some() {
            return Err(wrong("certfile and keyfile belong together"));
        }
        Ok(files)
    }

    pub(crate) fn read(&self) -> Result<Tls, ConnectError> {
        let read = |path: &PathBuf| {
            fs::read(path).map_err(|error: io::Error| {
                let message = format!("the certificate file {} cannot be read", path.display());
                ConnectError::new(Kind::Configuration, message).with_source(error)
            })
        };
        let authority = self.authority.as_ref().map(read).transpose()?;
        let client = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        Ok(Tls { authority, client })
    }
}

/// The hosts, as in errors and logs: without user and password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "rediss" } else { "redis" })?;
        f.write_str(match self.deployment {
            Deployment::Single => "://",
            Deployment::Sentinel { .. } => "+sentinel://",
            Deployment::Cluster => "+cluster://",
        })?;
        for (index, (host, port)) in self.hosts.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "," })?;
            if host.contains(':') { write!(f, "[{host}]:{port}")? } else { write!(f, "{host}:{port}")? }
        }
        if let Deployment::Sentinel { primary } = &self.deployment {
            write!(f, "/{primary}")?;
        }
        if self.database != 0 {
            write!(f, "/{}", self.database)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn wrong(why: &str) -> ConnectError {
    ConnectError::new(Kind::Configuration, format!("the redis url is not valid: {why}"))
}

/// It is not shown: what stands before :// may be a mistyped password.
fn unknown_scheme() -> ConnectError {
    wrong("its scheme is not one of redis, rediss, redis+sentinel, redis+cluster")
}

fn parse_host(text: &str, default_port: u16) -> Result<(String, u16), ConnectError> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(|| wrong("a bracket is not closed"))?;
        (host, port.strip_prefix(':'))
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err(wrong("a host is empty"));
    }
    let port = match port {
        None => default_port,
        Some(port) => port.parse().map_err(|_| wrong("a port is no number from 0 to 65535"))?,
    };
    Ok((host.to_owned(), port))
}

pub(crate) fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Resolves percent escapes; a stray % stands for itself.
fn decoded(text: &str) -> Result<String, ConnectError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        let digits = escape.filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).map_err(|_| wrong("its escapes are not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_node() {
        let target = Target::parse("redis://localhost").unwrap();
        assert_eq!(target.hosts, [("localhost".to_owned(), 6379)]);
        assert_eq!((target.tls, target.database, target.deployment), (false, 0, Deployment::Single));
        let target = Target::parse("rediss://ann:p%40ss%2Fw%25:rd@[::1]:7000/3").unwrap();
        assert_eq!(target.to_string(), "rediss://[::1]:7000/3");
        assert_eq!(target.user.as_deref(), Some("ann"));
        assert_eq!(target.password.as_deref(), Some("p@ss/w%:rd"));
        let target = Target::parse("redis://:s/e@cret@h").unwrap();
        assert_eq!((target.user, target.password.as_deref()), (None, Some("s/e@cret")));
    }

    #[test]
    fn certificates_are_files() {
        let target = Target::parse("rediss://h/3?cacertfile=%2Fa%20b.pem&certfile=c.pem&keyfile=/k").unwrap();
        assert_eq!((target.to_string(), target.database), ("rediss://h:6379/3".to_owned(), 3));
        assert_eq!(target.files.authority, Some("/a b.pem".into()));
        let missing = target.files.read().err().unwrap();
        assert!(missing.is_configuration() && missing.to_string().contains("/a b.pem"), "{missing:?}");
    }

    #[test]
    fn sentinel_and_cluster() {
        let target = Target::parse("redis+sentinel://a,b:7/mymaster/2").unwrap();
        assert_eq!(target.deployment, Deployment::Sentinel { primary: "mymaster".into() });
        assert_eq!(target.hosts, [("a".to_owned(), 26379), ("b".to_owned(), 7)]);
        assert_eq!(target.to_string(), "redis+sentinel://a:26379,b:7/mymaster/2");
        let target = Target::parse("rediss+cluster://a:1,b:2").unwrap();
        assert_eq!((target.deployment, target.tls), (Deployment::Cluster, true));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (url, why) in [
            ("localhost:6379", "it has no scheme"),
            ("kafka://:hunter2@h", "its scheme is not one of redis, rediss, redis+sentinel, redis+cluster"),
            (
                "redis+tls://:hunter2@h",
                "its scheme is not one of redis, rediss, redis+sentinel, redis+cluster",
            ),
            ("redis://:hunter2@h:x", "a port is no number from 0 to 65535"),
            ("redis://:hunter2@", "a host is empty"),
            ("redis://:hunter2@h/x", "its database is no number"),
            ("redis://:hunter2@h,i", "it names several hosts: use redis+sentinel:// or redis+cluster://"),
            ("redis+cluster://:hunter2@h/1", "a cluster has database 0 only"),
            ("redis://:hunter2?x@h", "a ? or # in a user or password is written as %3F or %23"),
            ("redis://h#hunter2", "a ? or # in a user or password is written as %3F or %23"),
            ("rediss://h?hunter2", "what may stand behind ? is cacertfile, certfile and keyfile"),
            ("rediss://h?certfile=/hunter2", "certfile and keyfile belong together"),
            ("redis://h?cacertfile=/hunter2", "it names certificates, but is not rediss://"),
        ] {
            let error = Target::parse(url).unwrap_err();
            assert!(error.is_configuration());
            assert_eq!(error.to_string(), format!("the redis url is not valid: {why}"));
            assert!(!format!("{error:?}").contains("hunter2"));
        }
        assert!(!format!("{:?}", Target::parse("redis://ann:hunter2@h").unwrap()).contains("hunter2"));
    }
}
