//! A Redis Cluster: one connection to each primary, commands grouped by the node that serves their slot.
//!
//! The driver's own cluster client refuses a pipeline over several slots, and replaces a node behind its connection
//! without a word. Here a lost node stays lost: its keys are not served until the map has been read anew by opening
//! another connection, and the completions that the new node may lack have been recorded again. The other nodes go on
//! meanwhile.

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisError, Value, aio::MultiplexedConnection, cmd};

use crate::connection::{Reply, Settings, Trouble, connect_node, in_time, reply};

const SLOTS: usize = 16_384;
const NOBODY: u16 = u16::MAX;

/// Connections to all primaries, as one node saw them.
pub(crate) struct Cluster {
    /// The primaries of the map, then nodes that others have sent us to.
    nodes: Vec<Node>,
    /// For each slot the index of its node.
    slots: Vec<u16>,
    /// Why the map does not hold any more.
    outdated: Option<String>,
}

struct Node {
    address: (String, u16),
    /// The connection, or why there is none.
    link: Result<MultiplexedConnection, String>,
}

/// Where a command goes.
enum Route {
    Slot(usize),
    Everywhere,
}

/// Where a node sends us.
#[derive(Debug, PartialEq, Eq)]
struct Redirect {
    address: (String, u16),
    /// A key on its way to another node, which serves it to those who say that they were sent.
    asking: bool,
}

impl Cluster {
    /// Asks all seeds at once for the map, and connects to all primaries that the first answer names, as far as they
    /// can be reached.
    pub(crate) async fn open(settings: &Settings, seeds: &[&(String, u16)]) -> Result<Self, RedisError> {
        let mut asked: FuturesUnordered<_> = seeds.iter().map(|seed| map(settings, seed)).collect();
        let mut last = None;
        while let Some(answer) = asked.next().await {
            let (addresses, slots) = match answer {
                Ok(map) => map,
                Err(error) => {
                    last = Some(error);
                    continue;
                }
            };
            drop(asked);
            let links = join_all(addresses.iter().map(|address| connect_node(settings, address))).await;
            if links.iter().any(Result::is_ok) {
                let links = links.into_iter().map(|link| link.map_err(|error| settings.describe(&error)));
                let nodes = addresses.into_iter().zip(links).map(|(address, link)| Node { address, link });
                return Ok(Self { nodes: nodes.collect(), slots, outdated: None });
            }
            last = links.into_iter().find_map(Result::err);
            break;
        }
        Err(last.unwrap_or_else(|| (ErrorKind::InvalidClientConfig, "no host").into()))
    }

    /// More hosts to ask for the map the next time.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &(String, u16)> {
        self.nodes.iter().map(|node| &node.address)
    }

    pub(crate) fn lacks(&self) -> Option<&str> {
        let missing = self.nodes.iter().find_map(|node| node.link.as_ref().err());
        missing.or(self.outdated.as_ref()).map(String::as_str)
    }

    /// A key for each node that can be reached.
    pub(crate) fn probe_keys(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        let mut wanted: Vec<_> = self.nodes.iter().map(|node| node.link.is_ok()).collect();
        let mut keys = Vec::new();
        // A node with few slots takes some search; a prefix with braces puts all keys on one node.
        for number in 0..4 * SLOTS {
            if !wanted.contains(&true) {
                break;
            }
            let key = [prefix, b"probe", number.to_string().as_bytes()].concat();
            if let Some(wanted) = wanted.get_mut(usize::from(self.slots[slot(&key)]))
                && std::mem::take(wanted)
            {
                keys.push(key);
            }
        }
        keys
    }

    /// Sends each command to the node of its key, one pipeline for each node; those without a key go to all of them.
    ///
    /// # Errors
    /// When no node is left.
    pub(crate) async fn run(&mut self, settings: &Settings, commands: &[Cmd]) -> Result<Vec<Reply>, String> {
        let mut parts: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        let mut answers: Vec<Vec<Reply>> = vec![Vec::new(); commands.len()];
        for (index, command) in commands.iter().enumerate() {
            match route(command) {
                Route::Slot(slot) => match self.node_of(slot) {
                    Ok(node) => parts[node].push(index),
                    Err(why) => answers[index].push(Err(Trouble::Missing(why))),
                },
                Route::Everywhere => {
                    let live = self.nodes.iter().zip(&mut parts).filter(|(node, _)| node.link.is_ok());
                    live.for_each(|(_, part)| part.push(index));
                }
            }
        }
        let mut running: FuturesUnordered<_> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(node, _)| !parts[*node].is_empty())
            .filter_map(|(index, node)| Some((index, node.link.as_ref().ok()?.clone())))
            .map(|(node, link)| {
                let commands: Vec<_> = parts[node].iter().map(|index| &commands[*index]).collect();
                async move { (node, pipeline(settings, link, &commands).await) }
            })
            .collect();
        let mut finished = Vec::with_capacity(running.len());
        while let Some(outcome) = running.next().await {
            finished.push(outcome);
        }
        drop(running);
        let mut redirects: Vec<(Redirect, Vec<usize>)> = Vec::new();
        for (node, values) in finished {
            let part = &parts[node];
            let values = match values {
                Ok(values) => values,
                Err(why) => {
                    part.iter().for_each(|index| answers[*index].push(Err(in_doubt(&why))));
                    self.nodes[node].link = Err(why);
                    continue;
                }
            };
            for (index, value) in part.iter().zip(values) {
                let value = value.extract_error();
                match value.as_ref().err().and_then(|error| redirect(error, &self.nodes[node].address.0)) {
                    None => answers[*index].push(self.noting(reply(value))),
                    Some(to) => match redirects.iter_mut().find(|(redirect, _)| *redirect == to) {
                        Some((_, part)) => part.push(*index),
                        None => redirects.push((to, vec![*index])),
                    },
                }
            }
        }
        for (to, part) in redirects {
            let replies =
                self.follow(settings, &to, part.iter().map(|index| &commands[*index]).collect()).await;
            for (index, reply) in part.iter().zip(replies) {
                answers[*index].push(reply);
            }
        }
        if let Some(why) = self.lacks()
            && self.nodes.iter().all(|node| node.link.is_err())
        {
            return Err(why.to_owned());
        }
        Ok(answers.into_iter().map(combine).collect())
    }

    /// # Errors
    /// Why nobody serves the slot.
    fn node_of(&mut self, slot: usize) -> Result<usize, String> {
        let index = usize::from(self.slots[slot]);
        match self.nodes.get(index) {
            Some(Node { link: Err(why), address: (host, port) }) => Err(format!("{host}:{port}: {why}")),
            Some(_) => Ok(index),
            None => {
                let why = "no node of the cluster serves the key";
                self.outdated = Some(why.to_owned());
                Err(why.to_owned())
            }
        }
    }

    /// Where another connection has to be opened for it, that is done for the whole Cluster, in its own time.
    fn noting(&mut self, mut reply: Reply) -> Reply {
        if let Err(Trouble::Unavailable { why, reopen, .. }) = &mut reply
            && (std::mem::take(reopen) || why.contains("CLUSTERDOWN"))
        {
            self.outdated = Some(why.clone());
        }
        reply
    }

    /// Sends commands where they were sent on to.
    async fn follow(&mut self, settings: &Settings, to: &Redirect, commands: Vec<&Cmd>) -> Vec<Reply> {
        let (host, port) = &to.address;
        if !to.asking {
            self.outdated = Some(format!("a slot has moved to {host}:{port}"));
        }
        let known = self.nodes.iter().position(|node| node.address == to.address);
        let node = match known {
            Some(node) => node,
            None if to.asking => {
                let link = connect_node(settings, &to.address).await;
                let link = link.map_err(|error| settings.describe(&error));
                self.nodes.push(Node { address: to.address.clone(), link });
                self.nodes.len() - 1
            }
            // It may be a replica that was promoted, which may lack the last completions: first it has to be greeted.
            None => {
                let why = format!("the key has moved to {host}:{port}, which is not known yet");
                return vec![Err(Trouble::Missing(why)); commands.len()];
            }
        };
        let link = match &self.nodes[node].link {
            Ok(link) => link.clone(),
            Err(why) => return vec![Err(Trouble::Missing(format!("{host}:{port}: {why}"))); commands.len()],
        };
        let asking = cmd("ASKING");
        let sent: Vec<_> = if to.asking {
            commands.iter().flat_map(|command| [&asking, *command]).collect()
        } else {
            commands.clone()
        };
        match pipeline(settings, link, &sent).await {
            Ok(values) => {
                let step = sent.len() / commands.len();
                let values = values.into_iter().skip(step - 1).step_by(step);
                values.map(|value| self.noting(reply(Ok(value)))).collect()
            }
            Err(why) => {
                let replies = vec![Err(in_doubt(&why)); commands.len()];
                self.nodes[node].link = Err(why);
                replies
            }
        }
    }
}

/// # Errors
/// When the connection is lost, or does not answer in time.
async fn pipeline(
    settings: &Settings,
    mut connection: MultiplexedConnection,
    commands: &[&Cmd],
) -> Result<Vec<Value>, String> {
    let mut pipeline = Pipeline::with_capacity(commands.len());
    for command in commands {
        pipeline.add_command((*command).clone());
    }
    let values = in_time(settings, connection.send_packed_commands(&pipeline, 0, commands.len())).await?;
    if values.len() == commands.len() {
        return Ok(values);
    }
    Err("the node gave another number of replies than it got commands".to_owned())
}

fn in_doubt(why: &str) -> Trouble {
    Trouble::Unavailable { why: why.to_owned(), reopen: false, in_doubt: true }
}

fn combine(answers: Vec<Reply>) -> Reply {
    let mut values = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    match values.len() {
        0 => Err(Trouble::Missing("no node answers".to_owned())),
        1 => Ok(values.swap_remove(0)),
        _ => Ok(Value::Array(values)),
    }
}

/// An empty host is that of the node that sends us.
fn redirect(error: &RedisError, sender: &str) -> Option<Redirect> {
    let asking = match error.code() {
        Some("ASK") => true,
        Some("MOVED") => false,
        _ => return None,
    };
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    let host = if host.is_empty() { sender } else { host };
    Some(Redirect { address: (host.to_owned(), port.parse().ok()?), asking })
}

fn route(command: &Cmd) -> Route {
    let argument = |at: usize| match command.args_iter().nth(at) {
        Some(Arg::Simple(bytes)) => bytes,
        _ => &[],
    };
    match argument(0) {
        b"SET" | b"ZRANGE" => Route::Slot(slot(argument(1))),
        b"EVALSHA" | b"EVAL" => Route::Slot(slot(argument(3))),
        _ => Route::Everywhere,
    }
}

/// CRC-16 (XMODEM) of the key, or of what stands between its first braces.
fn slot(key: &[u8]) -> usize {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then_some(&rest[..close])
    });
    let crc = tag.unwrap_or(key).iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    usize::from(crc) % SLOTS
}

pub(crate) type Map = (Vec<(String, u16)>, Vec<u16>);

async fn map(settings: &Settings, seed: &(String, u16)) -> Result<Map, RedisError> {
    let mut connection = connect_node(settings, seed).await?;
    let mut ask = cmd("CLUSTER");
    ask.arg("SLOTS");
    let value = connection.send_packed_command(&ask).await?.extract_error()?;
    let map = read_map(&value, &seed.0);
    map.ok_or_else(|| (ErrorKind::UnexpectedReturnType, "the map of the cluster cannot be read").into())
}

/// `CLUSTER SLOTS`: for each range its first and last slot, then its nodes, the primary first.
pub(crate) fn read_map(value: &Value, seed: &str) -> Option<Map> {
    let mut addresses: Vec<(String, u16)> = Vec::new();
    let mut slots = vec![NOBODY; SLOTS];
    for range in array(value)? {
        let range = array(range)?;
        let (first, last) = (number(range.first()?)?, number(range.get(1)?)?);
        let primary = array(range.get(2)?)?;
        let host = match primary.first()? {
            Value::BulkString(host) if !host.is_empty() => String::from_utf8(host.clone()).ok()?,
            // The node does not know its own name: that by which we have reached it.
            _ => seed.to_owned(),
        };
        let address = (host, u16::try_from(number(primary.get(1)?)?).ok()?);
        let index = addresses.iter().position(|known| *known == address).unwrap_or_else(|| {
            addresses.push(address);
            addresses.len() - 1
        });
        slots.get_mut(first..=last)?.fill(u16::try_from(index).ok()?);
    }
    (!addresses.is_empty()).then_some((addresses, slots))
}

fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn number(value: &Value) -> Option<usize> {
    match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // From the cluster specification.
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b"{foo}bar"), 12_182);
        assert_eq!(slot(b"x{foo}"), 12_182);
        assert_ne!(slot(b"{}foo"), slot(b"foo"));
        assert_eq!(slot(b""), 0);
    }

    #[test]
    fn the_map_is_read_with_gaps_and_nameless_nodes() {
        let text = |text: &str| Value::BulkString(text.into());
        let node = |host: &str, port| Value::Array(vec![text(host), Value::Int(port), text("id")]);
        let range = |first, last, node| Value::Array(vec![Value::Int(first), Value::Int(last), node]);
        let value = Value::Array(vec![
            range(0, 99, node("a", 1)),
            range(100, 199, node("", 2)),
            range(300, 16_383, node("a", 1)),
        ]);
        let (addresses, slots) = read_map(&value, "seed").unwrap();
        assert_eq!(addresses, [("a".to_owned(), 1), ("seed".to_owned(), 2)]);
        assert_eq!((slots[99], slots[100], slots[250], slots[16_383]), (0, 1, NOBODY, 0));
        assert!(read_map(&Value::Array(vec![range(0, 16_384, node("a", 1))]), "seed").is_none());
        assert!(read_map(&Value::Array(vec![]), "seed").is_none());
    }
}
