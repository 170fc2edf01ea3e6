//! Options of a Redis server, and its configuration file.

use super::{Access, Redis};
use crate::servers::{
    Certificates, ServerCertificate, ServerError, free_port, process::Slot, scratch::Scratch,
};
use std::{fs, path::Path};

/// Options of a [`Redis`] to be started.
#[derive(Clone, Default)]
#[must_use]
pub struct RedisBuilder {
    options: Vec<(String, String)>,
    tls: Option<ClientCertificates>,
    server_certificate: ServerCertificate,
    mode: Mode,
}

/// Leaves the values of options out: one of them may be a password.
impl std::fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.options.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RedisBuilder")
            .field("options", &names)
            .field("tls", &self.tls)
            .field("mode", &self.mode)
            .finish()
    }
}

#[derive(Debug, Clone, Copy)]
enum ClientCertificates {
    Optional,
    Required,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Single,
    ClusterNode,
    Sentinel,
}

impl RedisBuilder {
    /// Adds a line of `redis.conf`, such as `("maxmemory-policy", "allkeys-lru")`. The value is written as it is, so
    /// one with spaces that is a single argument must come with its quotes.
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((name.into(), value.into()));
        self
    }

    /// Asks clients for a password. [`Redis::url`] has it.
    pub fn password(self, password: impl Into<String>) -> Self {
        self.option("requirepass", password)
    }

    /// Keeps the data over a restart, even one by SIGKILL: every write is on disk before it is answered.
    pub fn append_only(self) -> Self {
        self.option("appendonly", "yes").option("appendfsync", "always")
    }

    /// Takes TLS connections only, from clients with and without a certificate. [`Redis::certificates`] has the files.
    pub fn tls(mut self) -> Self {
        self.tls = Some(ClientCertificates::Optional);
        self
    }

    /// Like [`RedisBuilder::tls`], and refuses clients without a certificate.
    pub fn tls_with_client_certificate(mut self) -> Self {
        self.tls = Some(ClientCertificates::Required);
        self
    }

    /// What a server with TLS shows to its clients. Default: a certificate that is as it should be.
    pub fn server_certificate(mut self, kind: ServerCertificate) -> Self {
        self.server_certificate = kind;
        self
    }

    pub(super) fn cluster(mut self) -> Self {
        self.mode = Mode::ClusterNode;
        self
    }

    pub(super) fn sentinel(mut self) -> Self {
        self.mode = Mode::Sentinel;
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// When `redis-server` is not installed, refuses an option, or is not ready within 30 s. Not retried, but for a
    /// port that was taken meanwhile (once).
    pub fn start(self) -> Result<Redis, ServerError> {
        match self.try_start() {
            Err(error) if error.is_clash() => self.try_start(),
            outcome => outcome,
        }
    }

    fn try_start(&self) -> Result<Redis, ServerError> {
        let free = || free_port().map_err(|error| ServerError::io("no port for redis", error));
        let (port, bus_port) = (free()?, free()?);
        let scratch = Scratch::new()?;
        let certificates = self.tls.map(|_| Certificates::make(scratch.path(), self.server_certificate));
        let certificates = certificates.transpose()?;
        let mut config = self.config(port, bus_port, scratch.path());
        if let Some(certificates) = &certificates {
            config.push(("tls-ca-cert-file".to_owned(), quoted(&certificates.authority())));
            config.push(("tls-cert-file".to_owned(), quoted(&certificates.server_certificate())));
            config.push(("tls-key-file".to_owned(), quoted(&certificates.server_key())));
        }
        let text: String = config.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        fs::write(scratch.path().join("redis.conf"), text)
            .map_err(|error| ServerError::io("the configuration of redis could not be written", error))?;
        let password =
            self.options.iter().rfind(|(name, _)| name == "requirepass").map(|(_, value)| value.clone());
        let process = Slot::new("redis-server", scratch.path().join("log"));
        let access = Access { port, bus_port, password, certificates };
        let redis = Redis { process, access, is_sentinel: self.mode == Mode::Sentinel, scratch };
        redis.start_again()?;
        Ok(redis)
    }

    fn config(&self, port: u16, bus_port: u16, dir: &Path) -> Vec<(String, String)> {
        let mut config = Vec::new();
        let mut set = |name: &str, value: &str| config.push((name.to_owned(), value.to_owned()));
        set("bind", "127.0.0.1");
        set("dir", &quoted(dir));
        match self.tls {
            None => set("port", &port.to_string()),
            Some(clients) => {
                set("port", "0");
                set("tls-port", &port.to_string());
                let clients = match clients {
                    ClientCertificates::Optional => "optional",
                    ClientCertificates::Required => "yes",
                };
                set("tls-auth-clients", clients);
            }
        }
        if self.mode != Mode::Sentinel {
            set("save", "\"\"");
        }
        if self.mode == Mode::ClusterNode {
            set("cluster-enabled", "yes");
            set("cluster-config-file", "nodes.conf");
            // Not the default (port + 10,000), which nobody has looked at.
            set("cluster-port", &bus_port.to_string());
        }
        config.extend(self.options.iter().cloned());
        config
    }
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(builder: &RedisBuilder) -> Vec<String> {
        let config = builder.config(7000, 7001, Path::new("/a b"));
        config.into_iter().map(|(name, value)| format!("{name} {value}")).collect()
    }

    #[test]
    fn nothing_is_kept_unless_asked_for() {
        let plain = lines(&Redis::builder());
        assert_eq!(plain, ["bind 127.0.0.1", "dir \"/a b\"", "port 7000", "save \"\""]);
        assert!(lines(&Redis::builder().append_only()).contains(&"appendonly yes".to_owned()));
    }

    #[test]
    fn tls_leaves_no_plain_port() {
        let tls = lines(&Redis::builder().tls_with_client_certificate());
        assert!(tls.contains(&"port 0".to_owned()), "{tls:?}");
        assert!(tls.contains(&"tls-port 7000".to_owned()), "{tls:?}");
        assert!(tls.contains(&"tls-auth-clients yes".to_owned()), "{tls:?}");
    }

    #[test]
    fn a_sentinel_takes_no_data_options() {
        assert!(!lines(&Redis::builder().sentinel()).iter().any(|line| line.starts_with("save")));
    }

    #[test]
    fn debug_does_not_show_the_password() {
        let shown = format!("{:?}", Redis::builder().password("s3cret"));
        assert!(shown.contains("requirepass") && !shown.contains("s3cret"), "{shown}");
    }
}
