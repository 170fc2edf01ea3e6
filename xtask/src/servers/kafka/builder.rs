//! Options of a Kafka node, and the way from them to a running one.

use super::{
    Kafka,
    properties::{Ports, Sasl, server_properties},
};
use crate::servers::{
    Certificates, ServerCertificate, ServerError, free_port, kafka_libs,
    process::{self, Slot},
    scratch::Scratch,
};
use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// 16 bytes in base64, as Kafka wants it. Every node is a cluster of its own, so one name does for all.
const CLUSTER_ID: &str = "Y29uc3VtZXItdGVzdHMtMQ";
/// Quiet, but for the line that says that the server has started.
const LOGGING: &str = "\
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{HH:mm:ss,SSS} %p %m (%c{1})%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
logger.started.name=kafka.server.KafkaRaftServer
logger.started.level=info
";

/// Options of a [`Kafka`] to be started.
#[derive(Debug, Clone)]
#[must_use]
pub struct KafkaBuilder {
    properties: BTreeMap<String, String>,
    sasl: Option<Sasl>,
    tls: bool,
    tls_client_certificate: bool,
    server_certificate: ServerCertificate,
    heap_mib: u32,
    advertised: Option<u16>,
}

impl Default for KafkaBuilder {
    fn default() -> Self {
        Self {
            properties: BTreeMap::new(),
            sasl: None,
            tls: false,
            tls_client_certificate: false,
            server_certificate: ServerCertificate::default(),
            heap_mib: 512,
            advertised: None,
        }
    }
}

impl KafkaBuilder {
    /// Sets a property of the broker (`server.properties`), over ours if we set it too.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// Asks clients for this user and password by SASL/PLAIN: `SASL_PLAINTEXT`, or `SASL_SSL` with
    /// [`KafkaBuilder::tls`].
    pub fn sasl_plain(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.sasl = Some(Sasl::Plain { user: user.into(), password: password.into() });
        self
    }

    /// The same by SASL/SCRAM-SHA-256, with which the password itself does not travel.
    pub fn sasl_scram(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.sasl = Some(Sasl::Scram { user: user.into(), password: password.into() });
        self
    }

    /// Takes TLS connections only, from clients with and without a certificate. [`Kafka::certificates`] has the files.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Like [`KafkaBuilder::tls`], and refuses clients without a certificate.
    pub fn tls_with_client_certificate(mut self) -> Self {
        self.tls_client_certificate = true;
        self.tls()
    }

    /// What a server with TLS shows to its clients. Default: a certificate that is as it should be.
    pub fn server_certificate(mut self, kind: ServerCertificate) -> Self {
        self.server_certificate = kind;
        self
    }

    /// The JVM's largest heap in MiB. Default: 512.
    pub fn heap_mib(mut self, mib: u32) -> Self {
        self.heap_mib = mib;
        self
    }

    /// Has clients connect to this port of 127.0.0.1, where a proxy to [`Kafka::bootstrap`] listens: a client that has
    /// come in by any address goes on by the one that the broker names.
    pub fn advertise(mut self, port: u16) -> Self {
        self.advertised = Some(port);
        self
    }

    /// Starts the broker and waits until it answers.
    ///
    /// # Errors
    /// When Java or the jars are missing, a property is refused, or the broker is not ready within 60 s. Not retried,
    /// but for a port that was taken meanwhile (once).
    pub fn start(self) -> Result<Kafka, ServerError> {
        match self.try_start() {
            Err(error) if error.is_clash() => self.try_start(),
            outcome => outcome,
        }
    }

    fn try_start(&self) -> Result<Kafka, ServerError> {
        let libs = kafka_libs()?;
        let free = || free_port().map_err(|error| ServerError::io("no port for kafka", error));
        let ports = Ports { client: free()?, internal: free()?, controller: free()? };
        let scratch = Scratch::new()?;
        let dir = scratch.path();
        let certificates = self.tls.then(|| Certificates::make(dir, self.server_certificate)).transpose()?;
        let config = self.config(ports, dir, certificates.as_ref())?;
        write(&dir.join("server.properties"), &config)?;
        write(&dir.join("log4j2.properties"), LOGGING)?;
        let java = java(&libs, dir, self.heap_mib);
        format_storage(&java, dir, self.sasl.as_ref())?;
        let process = Slot::new("kafka", dir.join("log"));
        let kafka = Kafka { process, ports, java, certificates, scratch };
        kafka.start_again()?;
        Ok(kafka)
    }

    fn config(&self, ports: Ports, dir: &Path, tls: Option<&Certificates>) -> Result<String, ServerError> {
        let mut all = server_properties(ports, dir, self.sasl.as_ref(), tls.is_some());
        if let Some(port) = self.advertised {
            let listeners = format!("CLIENT://127.0.0.1:{port},INTERNAL://127.0.0.1:{}", ports.internal);
            all.insert("advertised.listeners".to_owned(), listeners);
        }
        if let Some(certificates) = tls {
            let read = |path| {
                fs::read_to_string(path).map_err(|error| ServerError::io("a certificate is gone", error))
            };
            let both = read(certificates.server_key())? + &read(certificates.server_certificate())?;
            let keystore = dir.join("keystore.pem");
            write(&keystore, &both)?;
            let mut set =
                |name: &str, value: String| all.insert(format!("listener.name.client.ssl.{name}"), value);
            set("keystore.type", "PEM".to_owned());
            set("keystore.location", keystore.display().to_string());
            set("truststore.type", "PEM".to_owned());
            set("truststore.location", certificates.authority().display().to_string());
            let clients = if self.tls_client_certificate { "required" } else { "requested" };
            set("client.auth", clients.to_owned());
        }
        all.extend(self.properties.clone());
        // A backslash starts an escape in this format.
        Ok(all.iter().map(|(name, value)| format!("{name}={}\n", value.replace('\\', "\\\\"))).collect())
    }
}

fn write(path: &Path, text: &str) -> Result<(), ServerError> {
    fs::write(path, text)
        .map_err(|error| ServerError::io("the configuration of kafka could not be written", error))
}

/// The JVM and its options, up to the class to run.
fn java(libs: &Path, dir: &Path, heap_mib: u32) -> Vec<String> {
    let mut java = vec![
        "java".to_owned(),
        format!("-Xmx{heap_mib}m"),
        // No file in the shared temporary folder that a killed JVM would leave.
        "-XX:-UsePerfData".to_owned(),
        format!("-Djava.io.tmpdir={}", dir.display()),
        format!("-Dlog4j2.configurationFile={}", dir.join("log4j2.properties").display()),
    ];
    java.extend(["-cp".to_owned(), libs.join("*").display().to_string()]);
    java
}

fn format_storage(java: &[String], dir: &Path, sasl: Option<&Sasl>) -> Result<(), ServerError> {
    let mut tool = Command::new(&java[0]);
    tool.args(&java[1..])
        .args(["kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER_ID, "-c"])
        .arg(dir.join("server.properties"));
    if let Some(scram) = sasl.and_then(Sasl::scram_record) {
        tool.args(["--add-scram", &scram]);
    }
    process::output(&mut tool).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports { client: 1, internal: 2, controller: 3 };

    #[test]
    fn a_property_of_the_test_wins() {
        let builder = Kafka::builder().property("num.partitions", "9");
        let config = builder.config(PORTS, Path::new("/x"), None).unwrap();
        assert_eq!(config.matches("\nnum.partitions=").count(), 1);
        assert!(config.contains("\nnum.partitions=9\n"), "{config}");
    }

    #[test]
    fn clients_are_sent_to_the_proxy_and_the_broker_itself_is_not() {
        let config = Kafka::builder().advertise(9).config(PORTS, Path::new("/x"), None).unwrap();
        assert!(config.contains("\nlisteners=CLIENT://127.0.0.1:1,INTERNAL://127.0.0.1:2,"), "{config}");
        assert!(config.contains("advertised.listeners=CLIENT://127.0.0.1:9,INTERNAL://127.0.0.1:2\n"));
    }

    #[test]
    fn a_backslash_survives_the_file_format() {
        let builder = Kafka::builder().property("x", r"a\b");
        assert!(builder.config(PORTS, Path::new("/x"), None).unwrap().contains("\nx=a\\\\b\n"));
    }

    #[test]
    fn debug_does_not_show_the_password() {
        let shown = format!("{:?}", Kafka::builder().sasl_plain("ann", "s3cret"));
        assert!(shown.contains("ann") && !shown.contains("s3cret"), "{shown}");
    }
}
