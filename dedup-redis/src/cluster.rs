//! A Redis Cluster: one connection to each primary, commands grouped by the node that serves their slot.
//!
//! The driver's own cluster client refuses a pipeline over several slots, and replaces a node behind its connection
//! without a word. Here a lost node is a lost connection: the map is read anew, and the completions that the new node may
//! lack are recorded again before anything else is sent.

use futures_util::{StreamExt, future::try_join_all, stream::FuturesUnordered};
use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisError, Value, aio::MultiplexedConnection, cmd};

use crate::connection::{Reply, Settings, Trouble, connect_node, reply};

const SLOTS: usize = 16_384;
const NOBODY: u16 = u16::MAX;

/// Connections to all primaries, as one node saw them.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    /// For each slot the index of its node.
    slots: Vec<u16>,
}

#[derive(Clone)]
struct Node {
    address: (String, u16),
    connection: MultiplexedConnection,
}

/// Where a command goes.
enum Route {
    Slot(usize),
    Everywhere,
}

impl Cluster {
    /// Asks the first node that answers for the map, and connects to all primaries in it.
    pub(crate) async fn open(settings: &Settings, seeds: &[(String, u16)]) -> Result<Self, RedisError> {
        let mut last = None;
        for seed in seeds {
            match map(settings, seed).await {
                Ok((addresses, slots)) => {
                    let connects = addresses.into_iter().map(|address| async move {
                        let connection = connect_node(settings, &address).await?;
                        Ok::<_, RedisError>(Node { address, connection })
                    });
                    return Ok(Self { nodes: try_join_all(connects).await?, slots });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| (ErrorKind::InvalidClientConfig, "no host").into()))
    }

    /// The primaries: more hosts to ask for the map the next time.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &(String, u16)> {
        self.nodes.iter().map(|node| &node.address)
    }

    /// Sends each command to the node of its key, one pipeline for each node; those without a key go to all of them.
    pub(crate) async fn run(&mut self, settings: &Settings, commands: &[Cmd]) -> Vec<Reply> {
        let mut parts: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        let mut answers: Vec<Vec<Result<Value, RedisError>>> = vec![Vec::new(); commands.len()];
        for (index, command) in commands.iter().enumerate() {
            match route(command) {
                Route::Slot(slot) => {
                    if let Some(part) = parts.get_mut(usize::from(self.slots[slot])) {
                        part.push(index);
                    }
                }
                Route::Everywhere => parts.iter_mut().for_each(|part| part.push(index)),
            }
        }
        let mut running: FuturesUnordered<_> = self
            .nodes
            .iter()
            .zip(&parts)
            .filter(|(_, part)| !part.is_empty())
            .map(|(node, part)| async move {
                let commands: Vec<_> = part.iter().map(|index| &commands[*index]).collect();
                (part, pipeline(node.connection.clone(), &commands).await)
            })
            .collect();
        while let Some((part, values)) = running.next().await {
            match values {
                Ok(values) => {
                    for (index, value) in part.iter().zip(values) {
                        answers[*index].push(value.extract_error());
                    }
                }
                Err(error) => part.iter().for_each(|index| answers[*index].push(Err(error.clone()))),
            }
        }
        drop(running);
        let mut replies = Vec::with_capacity(commands.len());
        for (command, answers) in commands.iter().zip(answers) {
            replies.push(match asked_elsewhere(&answers) {
                Some(address) => reply(self.ask(settings, &address, command).await),
                None => combine(answers),
            });
        }
        replies
    }

    /// A key on its way to another node, which serves it to those who say that they were sent.
    async fn ask(
        &self,
        settings: &Settings,
        address: &(String, u16),
        command: &Cmd,
    ) -> Result<Value, RedisError> {
        let connection = match self.nodes.iter().find(|node| node.address == *address) {
            Some(node) => node.connection.clone(),
            None => connect_node(settings, address).await?,
        };
        let values = pipeline(connection, &[&cmd("ASKING"), command]).await?;
        values.into_iter().nth(1).unwrap_or(Value::Nil).extract_error()
    }
}

async fn pipeline(
    mut connection: MultiplexedConnection,
    commands: &[&Cmd],
) -> Result<Vec<Value>, RedisError> {
    let mut pipeline = Pipeline::with_capacity(commands.len());
    for command in commands {
        pipeline.add_command((*command).clone());
    }
    connection.send_packed_commands(&pipeline, 0, commands.len()).await
}

fn combine(answers: Vec<Result<Value, RedisError>>) -> Reply {
    let mut values = Vec::with_capacity(answers.len());
    for answer in answers {
        values.push(reply(answer)?);
    }
    match values.len() {
        0 => Err(Trouble::Unavailable {
            why: "no node of the cluster serves the key".to_owned(),
            reopen: true,
            in_doubt: false,
        }),
        1 => values.pop().ok_or(Trouble::NoScript),
        _ => Ok(Value::Array(values)),
    }
}

fn asked_elsewhere(answers: &[Result<Value, RedisError>]) -> Option<(String, u16)> {
    let [Err(error)] = answers else { return None };
    if error.code() != Some("ASK") {
        return None;
    }
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

fn route(command: &Cmd) -> Route {
    let argument = |at: usize| match command.args_iter().nth(at) {
        Some(Arg::Simple(bytes)) => bytes,
        _ => &[],
    };
    match argument(0) {
        b"SET" => Route::Slot(slot(argument(1))),
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

type Map = (Vec<(String, u16)>, Vec<u16>);

async fn map(settings: &Settings, seed: &(String, u16)) -> Result<Map, RedisError> {
    let mut connection = connect_node(settings, seed).await?;
    let mut ask = cmd("CLUSTER");
    ask.arg("SLOTS");
    let value = connection.send_packed_command(&ask).await?.extract_error()?;
    let map = read_map(&value, &seed.0);
    map.ok_or_else(|| (ErrorKind::UnexpectedReturnType, "the map of the cluster cannot be read").into())
}

/// `CLUSTER SLOTS`: for each range its first and last slot, then its nodes, the primary first.
fn read_map(value: &Value, seed: &str) -> Option<Map> {
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
