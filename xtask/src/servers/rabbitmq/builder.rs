//! Options of a RabbitMQ server, and its configuration file.

use super::{
    RabbitMq,
    node::{Node, Ports},
};
use crate::servers::{
    Certificates, ServerCertificate, ServerError, free_port, process::Slot, scratch::Scratch,
};
use std::{collections::BTreeMap, fmt, time::Duration};

/// Options of a [`RabbitMq`] to be started.
#[derive(Clone)]
#[must_use]
pub struct RabbitMqBuilder {
    options: BTreeMap<String, String>,
    user: String,
    password: String,
    tls: Option<ClientCertificates>,
    server_certificate: ServerCertificate,
    tick: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
enum ClientCertificates {
    Optional,
    Required,
}

impl Default for RabbitMqBuilder {
    fn default() -> Self {
        Self {
            options: DEFAULTS.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            user: "guest".to_owned(),
            password: "guest".to_owned(),
            tls: None,
            server_certificate: ServerCertificate::default(),
            tick: None,
        }
    }
}

/// Leaves out the password and the values of options, one of which may be another.
impl fmt::Debug for RabbitMqBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqBuilder")
            .field("options", &self.options.keys())
            .field("user", &self.user)
            .field("tls", &self.tls)
            .field("tick", &self.tick)
            .finish_non_exhaustive()
    }
}

const DEFAULTS: &[(&str, &str)] = &[
    // Else a share of the machine's memory; either is only the limit from which publishers are blocked.
    ("vm_memory_high_watermark.absolute", "2GB"),
    ("disk_free_limit.absolute", "50MB"),
    // What quorum queues hold in memory until it goes to files of its own; 512 MB otherwise.
    ("raft.wal_max_size_bytes", "67108864"),
];

impl RabbitMqBuilder {
    /// Sets a line of `rabbitmq.conf`, such as `("heartbeat", "2")`, over ours if we set it too.
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }

    /// The one user there is, who may do everything. Default: `guest`, `guest`.
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = user.into();
        self.password = password.into();
        self
    }

    /// Takes TLS connections too, on a port of their own, from clients with and without a certificate.
    /// [`RabbitMq::tls_url`] has the address, [`RabbitMq::certificates`] the files.
    pub fn tls(mut self) -> Self {
        self.tls = Some(ClientCertificates::Optional);
        self
    }

    /// Like [`RabbitMqBuilder::tls`], and refuses TLS clients without a certificate.
    pub fn tls_with_client_certificate(mut self) -> Self {
        self.tls = Some(ClientCertificates::Required);
        self
    }

    /// What a server with TLS shows to its clients. Default: a certificate that is as it should be.
    pub fn server_certificate(mut self, kind: ServerCertificate) -> Self {
        self.server_certificate = kind;
        self
    }

    /// Closes the channel of a consumer that has not settled a delivery for so long (by the millisecond), and looks for
    /// those twice in that time: the server's own pace is once a minute. Its default is 30 minutes.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.tick = Some((timeout / 2).clamp(Duration::from_millis(10), Duration::from_secs(60)));
        self.option("consumer_timeout", timeout.as_millis().to_string())
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// When RabbitMQ is not installed, refuses an option, or is not ready within 60 s. Not retried, but for a port that
    /// was taken meanwhile (once).
    pub fn start(self) -> Result<RabbitMq, ServerError> {
        match self.try_start() {
            Err(error) if error.is_clash() => self.try_start(),
            outcome => outcome,
        }
    }

    fn try_start(&self) -> Result<RabbitMq, ServerError> {
        let free = || free_port().map_err(|error| ServerError::io("no port for rabbitmq", error));
        let ports = Ports { plain: free()?, tls: free()?, node: free()?, mapper: free()? };
        let scratch = Scratch::new()?;
        let certificates = self.tls.map(|_| Certificates::make(scratch.path(), self.server_certificate));
        let certificates = certificates.transpose()?;
        let node = Node {
            ports,
            dir: scratch.path().to_owned(),
            user: self.user.clone(),
            password: self.password.clone(),
        };
        node.write_files(&self.config(ports, certificates.as_ref()), &self.advanced_config())?;
        let process = Slot::new("rabbitmq", scratch.path().join("log"));
        let port_mapper = Slot::new("epmd", scratch.path().join("epmd.log"));
        let rabbitmq = RabbitMq { process, port_mapper, node, certificates, _scratch: scratch };
        rabbitmq.start_again()?;
        Ok(rabbitmq)
    }

    fn config(&self, ports: Ports, tls: Option<&Certificates>) -> String {
        let mut all = BTreeMap::new();
        let mut set = |name: &str, value: String| all.insert(name.to_owned(), value);
        set("listeners.tcp.1", format!("127.0.0.1:{}", ports.plain));
        if let Some(certificates) = tls {
            set("listeners.ssl.1", format!("127.0.0.1:{}", ports.tls));
            set("ssl_options.cacertfile", certificates.authority().display().to_string());
            set("ssl_options.certfile", certificates.server_certificate().display().to_string());
            set("ssl_options.keyfile", certificates.server_key().display().to_string());
            set("ssl_options.verify", "verify_peer".to_owned());
            let required = matches!(self.tls, Some(ClientCertificates::Required));
            set("ssl_options.fail_if_no_peer_cert", required.to_string());
        }
        all.extend(self.options.clone());
        all.iter().map(|(name, value)| format!("{name} = {value}\n")).collect()
    }

    /// What `rabbitmq.conf` has no name for, and what it would misread: a `#` starts a comment there.
    fn advanced_config(&self) -> String {
        let mut settings =
            format!("{{default_user, {}}}, {{default_pass, {}}}", binary(&self.user), binary(&self.password));
        if let Some(tick) = self.tick {
            settings.push_str(&format!(", {{channel_tick_interval, {}}}", tick.as_millis()));
        }
        format!("[{{rabbit, [{settings}]}}].\n")
    }
}

/// A text as an Erlang term.
fn binary(text: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    format!("<<{}>>", bytes.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports { plain: 1, tls: 2, node: 3, mapper: 4 };

    #[test]
    fn an_option_of_the_test_wins() {
        let config = RabbitMq::builder().option("disk_free_limit.absolute", "1KB").config(PORTS, None);
        assert_eq!(config.matches("disk_free_limit").count(), 1);
        assert!(config.contains("disk_free_limit.absolute = 1KB\n"), "{config}");
    }

    #[test]
    fn everything_listens_on_loopback() {
        let config = RabbitMq::builder().config(PORTS, None);
        assert!(config.contains("listeners.tcp.1 = 127.0.0.1:1\n"), "{config}");
        assert!(!config.contains("listeners.ssl"), "{config}");
    }

    #[test]
    fn debug_does_not_show_the_password() {
        let shown = format!("{:?}", RabbitMq::builder().user("ann", "s3cret"));
        assert!(shown.contains("ann") && !shown.contains("s3cret"), "{shown}");
    }
}
