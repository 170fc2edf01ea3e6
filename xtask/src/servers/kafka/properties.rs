//! What is in `server.properties`.

use std::{collections::BTreeMap, fmt, path::Path};

/// Clients use `client`, whatever its security; `internal` is plain, for the broker itself and the readiness check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) client: u16,
    pub(super) internal: u16,
    pub(super) controller: u16,
}

#[derive(Clone)]
pub(super) enum Sasl {
    Plain { user: String, password: String },
    Scram { user: String, password: String },
}

impl Sasl {
    fn mechanism(&self) -> &'static str {
        match self {
            Self::Plain { .. } => "PLAIN",
            Self::Scram { .. } => "SCRAM-SHA-256",
        }
    }

    fn login_module(&self) -> String {
        const MODULES: &str = "org.apache.kafka.common.security";
        match self {
            Self::Plain { user, password } => {
                let password = password.replace('\\', "\\\\").replace('"', "\\\"");
                format!("{MODULES}.plain.PlainLoginModule required user_{user}=\"{password}\";")
            }
            // The users are in the cluster's own records.
            Self::Scram { .. } => format!("{MODULES}.scram.ScramLoginModule required;"),
        }
    }

    /// What the storage is formatted with, so that the user is there from the start.
    pub(super) fn scram_record(&self) -> Option<String> {
        match self {
            Self::Plain { .. } => None,
            Self::Scram { user, password } => {
                Some(format!("{}=[name=\"{user}\",password=\"{password}\"]", self.mechanism()))
            }
        }
    }
}

/// Leaves the password out.
impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Plain { user, .. } | Self::Scram { user, .. }) = self;
        f.debug_struct("Sasl")
            .field("mechanism", &self.mechanism())
            .field("user", user)
            .finish_non_exhaustive()
    }
}

/// Everything but TLS and what a test adds.
pub(super) fn server_properties(
    ports: Ports,
    dir: &Path,
    sasl: Option<&Sasl>,
    tls: bool,
) -> BTreeMap<String, String> {
    let Ports { client, internal, controller } = ports;
    let listeners = format!("CLIENT://127.0.0.1:{client},INTERNAL://127.0.0.1:{internal}");
    let protocol = match (sasl.is_some(), tls) {
        (false, false) => "PLAINTEXT",
        (false, true) => "SSL",
        (true, false) => "SASL_PLAINTEXT",
        (true, true) => "SASL_SSL",
    };
    let mut all: BTreeMap<String, String> =
        DEFAULTS.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut set = |name: &str, value: String| all.insert(name.to_owned(), value);
    set("controller.quorum.bootstrap.servers", format!("127.0.0.1:{controller}"));
    set("listeners", format!("{listeners},CONTROLLER://127.0.0.1:{controller}"));
    set("advertised.listeners", listeners);
    set(
        "listener.security.protocol.map",
        format!("CLIENT:{protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT"),
    );
    set("log.dirs", dir.join("data").display().to_string());
    if let Some(sasl) = sasl {
        let mechanism = sasl.mechanism();
        set("sasl.enabled.mechanisms", mechanism.to_owned());
        set("listener.name.client.sasl.enabled.mechanisms", mechanism.to_owned());
        let login = format!("listener.name.client.{}.sasl.jaas.config", mechanism.to_lowercase());
        set(&login, sasl.login_module());
    }
    all
}

const DEFAULTS: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    ("controller.listener.names", "CONTROLLER"),
    ("inter.broker.listener.name", "INTERNAL"),
    ("auto.create.topics.enable", "false"),
    ("num.partitions", "1"),
    // One node is all there is.
    ("offsets.topic.replication.factor", "1"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
    // Internal topics of 50 partitions each take seconds to make on a small machine.
    ("offsets.topic.num.partitions", "4"),
    ("transaction.state.log.num.partitions", "4"),
    ("share.coordinator.state.topic.num.partitions", "4"),
    // Large messages; a topic may go up to these.
    ("message.max.bytes", "5242880"),
    ("replica.fetch.max.bytes", "8388608"),
    // Quick groups.
    ("group.initial.rebalance.delay.ms", "0"),
    ("group.min.session.timeout.ms", "1000"),
    ("group.consumer.session.timeout.ms", "6000"),
    ("group.consumer.min.session.timeout.ms", "6000"),
    ("group.consumer.heartbeat.interval.ms", "1000"),
    ("group.consumer.min.heartbeat.interval.ms", "1000"),
    // A killed broker may come back under its id only after its old session has ended.
    ("broker.session.timeout.ms", "4000"),
    ("broker.heartbeat.interval.ms", "500"),
    // Compaction is looked for every 15 s otherwise, with a buffer of 128 MiB.
    ("log.cleaner.backoff.ms", "500"),
    ("log.cleaner.dedupe.buffer.size", "8388608"),
];

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports { client: 1, internal: 2, controller: 3 };

    #[test]
    fn everything_listens_on_loopback() {
        let all = server_properties(PORTS, Path::new("/x"), None, false);
        assert_eq!(all["listeners"], "CLIENT://127.0.0.1:1,INTERNAL://127.0.0.1:2,CONTROLLER://127.0.0.1:3");
        assert!(all["listener.security.protocol.map"].starts_with("CLIENT:PLAINTEXT,"));
    }

    #[test]
    fn only_the_listener_of_clients_is_secured() {
        let sasl = Sasl::Scram { user: "ann".into(), password: "p".into() };
        let all = server_properties(PORTS, Path::new("/x"), Some(&sasl), true);
        assert_eq!(
            all["listener.security.protocol.map"],
            "CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT"
        );
        assert!(all["listener.name.client.scram-sha-256.sasl.jaas.config"].ends_with("required;"));
    }

    #[test]
    fn a_password_is_quoted_for_the_login_module() {
        let sasl = Sasl::Plain { user: "ann".into(), password: r#"a"b\c"#.into() };
        assert!(sasl.login_module().ends_with(r#"user_ann="a\"b\\c";"#), "{}", sasl.login_module());
    }
}
