//! Redis Cluster.

use super::Redis;
use crate::servers::{ServerError, process};
use std::{process::Command, time::Duration};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A Redis Cluster of three nodes without replicas, all slots assigned. Killed on drop.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the nodes, joins them, and waits until each of them sees the whole cluster.
    ///
    /// # Errors
    /// As [`RedisBuilder::start`](super::RedisBuilder::start), and when the nodes do not agree within 60 s.
    pub fn start() -> Result<Self, ServerError> {
        let node = || Redis::builder().cluster().option("cluster-node-timeout", "2000").start();
        let cluster = Self { nodes: vec![node()?, node()?, node()?] };
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create
            .args(cluster.nodes.iter().map(|node| format!("127.0.0.1:{}@{}", node.port(), node.bus_port())));
        process::output(create.args(["--cluster-replicas", "0", "--cluster-yes"]))?;
        cluster.wait_until_whole()?;
        Ok(cluster)
    }

    /// Waits until every node answers, knows the two others, and sees all slots served.
    ///
    /// # Errors
    /// After 60 s.
    pub fn wait_until_whole(&self) -> Result<(), ServerError> {
        let whole = |node: &Redis| {
            node.cli(&["CLUSTER", "INFO"])
                .is_ok_and(|info| info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3"))
        };
        process::wait_until(READY_TIMEOUT, || self.nodes.iter().all(whole).then_some(()))
            .ok_or_else(|| ServerError::timeout("the nodes of the redis cluster do not agree after 60 s"))
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
