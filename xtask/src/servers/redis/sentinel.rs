//! Redis Sentinel.

use super::Redis;
use crate::servers::{ServerError, process::wait_until};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A primary, its replica, and one Sentinel that watches them with a quorum of 1. Killed on drop.
///
/// A primary that does not answer for 3 s is taken for down.
#[derive(Debug)]
pub struct RedisSentinel {
    sentinel: Redis,
    nodes: [Redis; 2],
}

impl RedisSentinel {
    /// The name under which the Sentinel knows the primary.
    pub const MASTER_NAME: &str = "mymaster";

    /// Starts all three and waits until the Sentinel knows the replica, so that it can fail over.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`](super::RedisBuilder::start), and when that does not happen within 60 s.
    pub fn start() -> Result<Self, ServerError> {
        // Without the delay, a replica waits 5 s for others that might want the same copy.
        let node = || Redis::builder().option("repl-diskless-sync-delay", "0");
        let primary = node().start()?;
        let replica = node().option("replicaof", format!("127.0.0.1 {}", primary.port())).start()?;
        // The Sentinel asks the primary for its replicas at once, and then every 10 s only.
        wait_until(TIMEOUT, || follows(&replica, &primary).then_some(()))
            .ok_or_else(|| ServerError::timeout("the redis replica did not catch up within 60 s"))?;
        let name = Self::MASTER_NAME;
        let sentinel = Redis::builder()
            .sentinel()
            .option("sentinel", format!("monitor {name} 127.0.0.1 {} 1", primary.port()))
            // Three missed pings. With 1,000, one late answer on a busy machine made it fail over unasked.
            .option("sentinel", format!("down-after-milliseconds {name} 3000"))
            .option("sentinel", format!("failover-timeout {name} 5000"))
            .start()?;
        // Roles are looked at and put right every few seconds otherwise; before Redis 7.0 there is no way to say so.
        let _ = sentinel.cli(&["SENTINEL", "DEBUG", "info-period", "500", "publish-period", "500"]);
        let set = Self { sentinel, nodes: [primary, replica] };
        set.wait_until_replicated()?;
        Ok(set)
    }

    /// The Sentinel itself; clients get its [`Redis::url`] and [`RedisSentinel::MASTER_NAME`].
    pub fn sentinel(&self) -> &Redis {
        &self.sentinel
    }

    /// The two data nodes, whatever their roles are now.
    pub fn nodes(&self) -> &[Redis; 2] {
        &self.nodes
    }

    /// The primary of the moment and the other node.
    ///
    /// # Errors
    /// As [`primary`](Self::primary).
    pub fn pair(&self) -> Result<(&Redis, &Redis), ServerError> {
        let [first, second] = &self.nodes;
        Ok(if self.primary()?.port() == first.port() { (first, second) } else { (second, first) })
    }

    /// The node that the Sentinel names as the primary now.
    ///
    /// # Errors
    /// When the Sentinel does not answer, or names none of ours.
    pub fn primary(&self) -> Result<&Redis, ServerError> {
        let address = self.sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::MASTER_NAME])?;
        let named = |node: &&Redis| address.lines().nth(1) == Some(node.port().to_string().as_str());
        self.nodes
            .iter()
            .find(named)
            .ok_or_else(|| ServerError::failed(format!("the sentinel names an unknown primary: {address:?}")))
    }

    /// Has the Sentinel make the replica the primary; returns when the old one follows the new. What was written
    /// before the call is carried over; after a kill of the primary the latest writes may be lost.
    ///
    /// # Errors
    /// When a node is down, or it takes longer than 60 s a step.
    pub fn failover(&self) -> Result<(), ServerError> {
        self.wait_until_replicated()?;
        let old = self.primary()?.port();
        // Refused while an earlier failover is still being finished.
        let ask = || self.sentinel.cli(&["SENTINEL", "FAILOVER", Self::MASTER_NAME]).ok();
        wait_until(TIMEOUT, ask).ok_or_else(|| ServerError::timeout("the sentinel refuses to fail over"))?;
        self.wait_for_new_primary(old)?;
        self.wait_until_replicated()
    }

    /// Waits until a node other than that on the port `old` is the primary, after a kill for example.
    ///
    /// # Errors
    /// After 60 s.
    pub fn wait_for_new_primary(&self, old: u16) -> Result<(), ServerError> {
        let promoted =
            || self.primary().ok().filter(|node| node.port() != old && role(node) == "master").map(drop);
        wait_until(TIMEOUT, promoted).ok_or_else(|| ServerError::timeout("no new primary within 60 s"))
    }

    /// Waits until the other node follows the primary, has what was written so far, and the Sentinel knows so.
    ///
    /// # Errors
    /// After 60 s, as when a node is down.
    pub fn wait_until_replicated(&self) -> Result<(), ServerError> {
        let replicated = || {
            let primary = self.primary().ok()?;
            let other = self.nodes.iter().find(|node| node.port() != primary.port())?;
            let known = self.sentinel.cli(&["SENTINEL", "REPLICAS", Self::MASTER_NAME]).ok()?;
            let linked = known.lines().any(|line| line == format!("127.0.0.1:{}", other.port()))
                && known.contains("master-link-status\nok");
            (linked && follows(other, primary)).then_some(())
        };
        wait_until(TIMEOUT, replicated)
            .ok_or_else(|| ServerError::timeout("the sentinel sees no replica in order after 60 s"))
    }
}

/// `master`, `slave` or `sentinel`; empty without an answer.
pub(super) fn role(node: &Redis) -> String {
    let answer = node.cli(&["ROLE"]).unwrap_or_default();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// Whether both sides of the replication say that it runs: the replica is up to a second ahead of its primary in saying
/// so, and what is written meanwhile is not sent yet.
pub(super) fn follows(replica: &Redis, primary: &Redis) -> bool {
    let info = |node: &Redis| node.cli(&["INFO", "replication"]).unwrap_or_default();
    let sent = info(primary);
    let received = info(replica);
    sent.contains(&format!("port={},state=online", replica.port()))
        && received.contains("master_link_status:up")
        && number(&received, "slave_repl_offset:")
            .zip(number(&sent, "master_repl_offset:"))
            .is_some_and(|(received, sent)| received >= sent)
}

fn number(info: &str, field: &str) -> Option<u64> {
    info.lines().find_map(|line| line.trim_end().strip_prefix(field)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_info() {
        let info = "role:master\r\nmaster_repl_offset:587\r\n";
        assert_eq!(number(info, "master_repl_offset:"), Some(587));
        assert_eq!(number(info, "slave_repl_offset:"), None);
    }
}
