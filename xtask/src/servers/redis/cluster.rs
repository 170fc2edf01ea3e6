//! Redis Cluster.

use super::{
    Redis,
    sentinel::{follows, role},
};
use crate::servers::{ServerError, process};
use std::{process::Command, time::Duration};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A Redis Cluster of three primaries, all slots assigned, with or without a replica for each. Killed on drop.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts three nodes, joins them, and waits until each of them sees the whole cluster.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`](super::RedisBuilder::start), and when the nodes do not agree within 60 s.
    pub fn start() -> Result<Self, ServerError> {
        Self::create(0)
    }

    /// The same with three nodes more, each of them the replica of another primary: a primary that is gone for 2 s is
    /// replaced by its own.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_replicas() -> Result<Self, ServerError> {
        Self::create(1)
    }

    fn create(replicas: usize) -> Result<Self, ServerError> {
        let node = || {
            let node = Redis::builder().cluster().option("cluster-node-timeout", "2000");
            node.option("repl-diskless-sync-delay", "0").start()
        };
        let nodes = (0..3 * (1 + replicas)).map(|_| node()).collect::<Result<_, _>>()?;
        let cluster = Self { nodes };
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create
            .args(cluster.nodes.iter().map(|node| format!("127.0.0.1:{}@{}", node.port(), node.bus_port())));
        process::output(create.args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"]))?;
        cluster.wait_until_whole()?;
        Ok(cluster)
    }

    /// Waits until every node answers, knows all others, and sees all slots served, and the replicas follow.
    ///
    /// # Errors
    /// After 60 s.
    pub fn wait_until_whole(&self) -> Result<(), ServerError> {
        let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
        let whole = |node: &Redis| {
            node.cli(&["CLUSTER", "INFO"])
                .is_ok_and(|info| info.contains("cluster_state:ok") && info.contains(&known))
        };
        let agree = || self.nodes.iter().all(whole) && self.pairs().is_some();
        process::wait_until(READY_TIMEOUT, || agree().then_some(()))
            .ok_or_else(|| ServerError::timeout("the nodes of the redis cluster do not agree after 60 s"))
    }

    /// Each replica behind its primary, once they follow; none where one does not.
    fn pairs(&self) -> Option<Vec<(&Redis, &Redis)>> {
        let mut pairs = Vec::new();
        let (primaries, replicas): (Vec<_>, Vec<_>) =
            self.nodes.iter().partition(|node| role(node) == "master");
        for replica in replicas {
            let port = replica.cli(&["ROLE"]).ok()?.lines().nth(2)?.parse::<u16>().ok()?;
            let primary = primaries.iter().find(|primary| primary.port() == port)?;
            follows(replica, primary).then(|| pairs.push((*primary, replica)))?;
        }
        (pairs.len() == self.nodes.len() - 3).then_some(pairs)
    }

    /// A primary and its replica, whatever nodes those are now.
    ///
    /// # Errors
    /// When there are no replicas, or one does not follow within 60 s.
    pub fn pair(&self) -> Result<(&Redis, &Redis), ServerError> {
        let pair = || self.pairs()?.pop();
        process::wait_until(READY_TIMEOUT, pair).ok_or_else(|| {
            ServerError::timeout("no replica of the redis cluster follows its primary after 60 s")
        })
    }

    /// Waits until `replica` has become a primary, and all nodes that run see all slots served.
    ///
    /// # Errors
    /// After 60 s.
    pub fn wait_until_promoted(&self, replica: &Redis) -> Result<(), ServerError> {
        let serves = |node: &Redis| {
            !node.is_running()
                || node.cli(&["CLUSTER", "INFO"]).is_ok_and(|info| info.contains("cluster_state:ok"))
        };
        let promoted = || role(replica) == "master" && self.nodes.iter().all(serves);
        process::wait_until(READY_TIMEOUT, || promoted().then_some(()))
            .ok_or_else(|| ServerError::timeout("no replica of the redis cluster is promoted after 60 s"))
    }

    /// The nodes, in the order of the slots they were given.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// The URLs of the nodes.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// Runs one command on the node that serves its key; otherwise as [`Redis::cli`].
    ///
    /// # Errors
    /// As [`Redis::cli`].
    pub fn cli(&self, command: &[&str]) -> Result<String, ServerError> {
        self.nodes[0].run_cli(&["-c"], command)
    }
}
