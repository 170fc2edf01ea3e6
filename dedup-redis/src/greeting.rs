//! What is asked of a server when a connection has been opened: who it is, what time it has, whether it may evict.

use std::collections::BTreeSet;

use redis::{Cmd, ErrorKind, RedisError, Value, cmd};
use tokio::time::{Instant, timeout};

use crate::{
    builder::EvictionCheck,
    clock::Clock,
    connection::{Connection, Opener, Reply, Settings, Trouble},
    error::{ConnectError, Kind, distrust},
    scripts,
    target::{Deployment, Target},
};

/// Oldest server with `SET … NX GET`.
const OLDEST: (u32, u32) = (7, 0);

/// What the servers behind a connection said of themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// Names this run of the server, or of each node of a Cluster: another one may have lost data.
    pub(crate) runs: BTreeSet<String>,
    /// The policy that may evict, if there is one, in words.
    pub(crate) evicts: Option<String>,
}

/// Opens a connection, loads the scripts, reads the clock.
///
/// # Errors
/// When that fails, takes longer than the connect timeout, or the server is none that can be used.
pub(crate) async fn connect(
    opener: &mut Opener,
    settings: &Settings,
    clock: &Clock,
) -> Result<(Connection, Greeting), ConnectError> {
    let steps = match settings.target.deployment {
        Deployment::Single => 1,
        // It may have to be asked after others that are gone.
        Deployment::Sentinel { .. } => u32::try_from(settings.target.hosts.len()).unwrap_or(u32::MAX),
        // The map, the nodes, and their greetings: each of them has its own limit, so that one node holds up no other.
        Deployment::Cluster => 3,
    };
    let patience = settings.connect_timeout.saturating_mul(steps);
    let attempt = async {
        let mut connection = opener.open().await.map_err(|error| failed(&error, settings))?;
        let greeting = greet(&mut connection, settings, clock).await?;
        Ok((connection, greeting))
    };
    timeout(patience, attempt).await.unwrap_or_else(|_| {
        let message = format!("no answer from {} within {patience:?}", settings.target);
        Err(ConnectError::new(Kind::Unreachable, message))
    })
}

async fn greet(
    connection: &mut Connection,
    settings: &Settings,
    clock: &Clock,
) -> Result<Greeting, ConnectError> {
    let mut commands = vec![info("server"), info("memory"), info("replication"), time()];
    commands.extend(scripts::load_commands());
    if let (Some(name), Connection::Single(_)) = (&settings.name, &*connection) {
        let mut command = cmd("CLIENT");
        command.arg("SETNAME").arg(name);
        commands.push(command);
    }
    let sent = Instant::now();
    let replies = connection.run(settings, commands).await.map_err(|why| {
        let message = format!("{} cannot be reached", settings.target);
        ConnectError::new(Kind::Unreachable, message).with_source(why)
    })?;
    let received = Instant::now();
    let mut replies = replies.into_iter();
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil));

    let greeting = inspect([next(), next(), next()], settings)?;
    let millis = next().map_err(|trouble| refused("TIME", trouble, settings))?;
    let millis = parse_time(&millis)
        .ok_or_else(|| ConnectError::new(Kind::Refused, format!("{} gives no time", settings.target)))?;
    clock.set(millis, sent, received);
    for reply in replies.take(scripts::COUNT) {
        reply.map_err(|trouble| refused("SCRIPT LOAD", trouble, settings))?;
    }
    Ok(greeting)
}

/// From `INFO server`, `INFO memory` and `INFO replication`.
pub(crate) fn inspect(replies: [Reply; 3], settings: &Settings) -> Result<Greeting, ConnectError> {
    let target = &settings.target;
    let texts = |reply: Reply| reply.map(texts).map_err(|trouble| refused("INFO", trouble, settings));
    let [server, memory, replication] = replies;
    let (server, memory) = (texts(server)?, texts(memory)?);
    let mut runs = BTreeSet::new();
    for text in &server {
        let version = field(text, "redis_version").unwrap_or("unknown");
        if parse_version(version).is_none_or(|version| version < OLDEST) {
            let message = format!("redis {version} at {target} is too old: 7.0 or newer is needed");
            return Err(ConnectError::new(Kind::UnsupportedVersion, message));
        }
        let mode = field(text, "redis_mode").unwrap_or("standalone");
        let wrong = match (&target.deployment, mode) {
            (Deployment::Single, "cluster") => Some("is a cluster node: use redis+cluster://"),
            (_, "sentinel") => Some("is a sentinel: use redis+sentinel://"),
            (Deployment::Cluster, "standalone") => Some("is no cluster: use redis://"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(wrong_server(target, wrong));
        }
        runs.insert(field(text, "run_id").unwrap_or_default().to_owned());
    }
    // A replica serves reads, or forwards them: it would refuse each claim. (The map of a Cluster names primaries.)
    let is_replica = |text: &String| field(text, "role") == Some("slave");
    if target.deployment != Deployment::Cluster && texts(replication)?.iter().any(is_replica) {
        return Err(wrong_server(
            target,
            "is a replica: give the address of its primary, or use redis+sentinel://",
        ));
    }
    let evicts = memory.iter().find_map(|text| {
        let policy = field(text, "maxmemory_policy").unwrap_or("noeviction");
        let limit = field(text, "maxmemory").unwrap_or("0");
        (policy != "noeviction").then(|| format!("maxmemory-policy {policy}, maxmemory {limit}"))
    });
    if let (Some(evicts), EvictionCheck::Refuse) = (&evicts, settings.eviction) {
        let message = format!("redis at {target} may evict remembered ids: {evicts}");
        return Err(ConnectError::new(Kind::Eviction, message));
    }
    Ok(Greeting { runs, evicts })
}

fn wrong_server(target: &Target, what: &str) -> ConnectError {
    ConnectError::new(Kind::WrongServer, format!("the server at {target} {what}"))
}

fn failed(error: &RedisError, settings: &Settings) -> ConnectError {
    let target = &settings.target;
    let (kind, message) = match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => {
            (Kind::Authentication, format!("{target} refuses the user or password"))
        }
        (_, Some(_)) => (Kind::Refused, format!("{target} refuses the connection")),
        (ErrorKind::MasterNameNotFoundBySentinel, _) => {
            (Kind::Unreachable, format!("no sentinel of {target} names a primary"))
        }
        _ => match distrust(&error.to_string()) {
            Some(why) => (Kind::Unreachable, format!("no TLS connection to {target}: {why}")),
            None => (Kind::Unreachable, format!("{target} cannot be reached")),
        },
    };
    ConnectError::new(kind, message).with_source(settings.describe(error))
}

fn refused(command: &str, trouble: Trouble, settings: &Settings) -> ConnectError {
    let target = &settings.target;
    let why = match trouble {
        Trouble::NoScript => "NOSCRIPT".to_owned(),
        Trouble::Refused(why) | Trouble::Missing(why) | Trouble::Unavailable { why, .. } => {
            settings.redact(why)
        }
    };
    if why.contains("NOAUTH") {
        let message = format!("{target} wants a password");
        return ConnectError::new(Kind::Authentication, message).with_source(why);
    }
    ConnectError::new(Kind::Refused, format!("{target} refuses {command}")).with_source(why)
}

pub(crate) fn time() -> Cmd {
    cmd("TIME")
}

fn info(section: &str) -> Cmd {
    let mut command = cmd("INFO");
    command.arg(section);
    command
}

/// Milliseconds since the Unix epoch from the answer to `TIME`.
pub(crate) fn parse_time(value: &Value) -> Option<u64> {
    let Value::Array(parts) = value else { return None };
    // A Cluster gives one time for each node; their clocks are close enough for epochs.
    if let Some(first @ Value::Array(_)) = parts.first() {
        return parse_time(first);
    }
    let number = |at: usize| match parts.get(at)? {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    number(0)?.checked_mul(1000)?.checked_add(number(1)? / 1000)
}

/// All texts in a value: one of a single node, one for each node of a Cluster.
fn texts(value: Value) -> Vec<String> {
    match value {
        Value::BulkString(text) => vec![String::from_utf8_lossy(&text).into_owned()],
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => vec![text],
        Value::Array(nodes) => nodes.into_iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_in_milliseconds() {
        let part = |text: &str| Value::BulkString(text.into());
        assert_eq!(
            parse_time(&Value::Array(vec![part("1700000000"), part("123456")])),
            Some(1_700_000_000_123)
        );
        assert_eq!(parse_time(&Value::Array(vec![part("x"), part("1")])), None);
        assert_eq!(parse_time(&Value::Nil), None);
        let beyond = Value::Array(vec![Value::Int(i64::MAX), Value::Int(0)]);
        assert_eq!(parse_time(&beyond), None, "more milliseconds than there are numbers");
    }

    #[test]
    fn info_is_read_by_field() {
        let info = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nmaxmemory:5\r\nmaxmemory_policy:a\r\n";
        assert_eq!(field(info, "redis_version"), Some("7.0.15"));
        assert_eq!(field(info, "maxmemory"), Some("5"));
        assert_eq!(field(info, "redis"), None);
        assert_eq!(parse_version("6.2.14"), Some((6, 2)));
        assert!(parse_version("8.0.0-rc1").unwrap() > OLDEST);
        assert_eq!(parse_version("unknown"), None);
    }
}
