//! Makes sure that queues and exchanges are there, and are what was asked for.
//!
//! Declaring changes nothing that exists: where it differs from our arguments, the broker refuses, closes the channel and
//! names the first difference. Asked again with that property as it is, it names the next. So each question has a
//! channel of its own.

use lapin::{
    Channel,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use crate::{
    error::{AmqpError, Kind, said},
    mismatch::Mismatch,
    topology::{Binding, DELIVERY_LIMIT_ARGUMENT, Exchange, ExchangeKind, Queue, TYPE},
};

/// What may be done about the topology.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Policy {
    /// Nothing is declared.
    pub(crate) check_only: bool,
    /// A queue that differs is taken, with a warning.
    pub(crate) accept_foreign: bool,
}

pub(crate) const PASSIVE: QueueDeclareOptions = options(true);
const ACTIVE: QueueDeclareOptions = options(false);
/// More properties than a queue has.
const DIFFERENCES: usize = 20;

const fn options(passive: bool) -> QueueDeclareOptions {
    QueueDeclareOptions { passive, durable: true, exclusive: false, auto_delete: false, nowait: false }
}

/// The queue, its dead-letter queue, its exchanges and its bindings.
///
/// # Errors
/// With `is_missing()` or `is_mismatch()`, naming both sides.
pub(crate) async fn queue(
    connection: &lapin::Connection,
    queue: &Queue,
    policy: Policy,
) -> Result<(), AmqpError> {
    if policy.check_only && depth(connection, &queue.name).await?.is_none() {
        return Err(missing("queue", &queue.name));
    }
    judge(queue, &differences(connection, queue).await?, policy)?;
    if let Some(dead) = queue.dead_letter_queue() {
        dead_letter_queue(connection, &Queue::dead_letters(dead), policy).await?;
    }
    for Binding { exchange: from, routing_key } in &queue.bindings {
        exchange(connection, from, policy.check_only).await?;
        if !policy.check_only {
            bind(connection, &queue.name, from, routing_key).await?;
        }
    }
    Ok(())
}

/// The queue without what belongs to it.
///
/// # Errors
/// With `is_mismatch()`, naming both sides.
pub(crate) async fn alone(connection: &lapin::Connection, queue: &Queue) -> Result<(), AmqpError> {
    judge(queue, &differences(connection, queue).await?, Policy::default())
}

/// The limit on deliveries of a queue that exists, as its arguments have it, where that is not the one of our queues for dead
/// letters; `Some(None)` where they have none. It is `None` too where it cannot be found out.
pub(crate) async fn delivery_limit(connection: &lapin::Connection, queue: &str) -> Option<Option<i64>> {
    let ours = Queue::dead_letters(queue);
    let found = differences(connection, &ours).await.ok()?;
    if found.iter().any(|mismatch| mismatch.property == TYPE) {
        return None; // only quorum queues have one
    }
    let limit = found.iter().find(|mismatch| mismatch.property == DELIVERY_LIMIT_ARGUMENT)?;
    match limit.current(ours.arguments().inner().get(DELIVERY_LIMIT_ARGUMENT))? {
        Some(AMQPValue::LongLongInt(limit)) => Some(Some(limit)),
        _ => Some(None),
    }
}

/// Any queue will do: what keeps a dead letter need not be of our making.
async fn dead_letter_queue(
    connection: &lapin::Connection,
    queue: &Queue,
    policy: Policy,
) -> Result<(), AmqpError> {
    if policy.check_only {
        return match depth(connection, &queue.name).await? {
            Some(_) => Ok(()),
            None => Err(missing("dead-letter queue", &queue.name)),
        };
    }
    match declare(connection, queue, ACTIVE, queue.arguments()).await {
        Err(error) if error.is_denied() && depth(connection, &queue.name).await?.is_some() => Ok(()),
        declared => declared.map(drop),
    }
}

fn missing(what: &str, name: &str) -> AmqpError {
    AmqpError::new(Kind::Missing, format!("the {what} `{name}` does not exist, and is only to be checked"))
}

/// How many messages are ready in a queue; `None` where there is no such queue.
pub(crate) async fn depth(connection: &lapin::Connection, name: &str) -> Result<Option<u64>, AmqpError> {
    let channel = channel(connection).await?;
    match channel.queue_declare(name.into(), PASSIVE, FieldTable::default()).await {
        Ok(queue) => {
            close(channel).await;
            Ok(Some(queue.message_count().into()))
        }
        Err(error) => match AmqpError::driver(format!("the queue `{name}` cannot be looked at"), error) {
            error if error.is_missing() => Ok(None),
            error => Err(error),
        },
    }
}

/// Declares the queue; gives the difference that the broker names, if it is another one.
async fn declare(
    connection: &lapin::Connection,
    queue: &Queue,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> Result<Option<Mismatch>, AmqpError> {
    let name = &queue.name;
    let channel = channel(connection).await?;
    match channel.queue_declare(name.as_str().into(), options, arguments).await {
        Ok(_) => {
            close(channel).await;
            Ok(None)
        }
        Err(error) => match said(&error).and_then(|text| Mismatch::parse(&text)) {
            Some(mismatch) => Ok(Some(mismatch)),
            None => Err(AmqpError::driver(format!("the queue `{name}` cannot be declared"), error)),
        },
    }
}

/// Declares the queue and gives all differences from what exists, as far as the broker tells them.
async fn differences(connection: &lapin::Connection, queue: &Queue) -> Result<Vec<Mismatch>, AmqpError> {
    let name = &queue.name;
    let mut found: Vec<Mismatch> = Vec::new();
    let mut options = ACTIVE;
    let mut arguments = queue.arguments();
    while found.len() < DIFFERENCES {
        let mismatch = match declare(connection, queue, options, arguments.clone()).await {
            Ok(None) => break,
            Ok(Some(mismatch)) => mismatch,
            // Declaring needs the right to configure, consuming does not.
            Err(error) if error.is_denied() && depth(connection, name).await?.is_some() => {
                if queue.is_single_active_consumer() {
                    return Err(unknown_order(name).with_source(error));
                }
                tracing::warn!(queue = %name, "the user may not declare the queue: its properties are not compared");
                break;
            }
            Err(error) => return Err(error),
        };
        let current = mismatch.current(arguments.inner().get(mismatch.property.as_str()));
        let understood = match (mismatch.current_flag(), &*mismatch.property, current) {
            (Some(flag), "durable", _) => {
                options.durable = flag;
                true
            }
            (Some(flag), "auto_delete", _) => {
                options.auto_delete = flag;
                true
            }
            (_, name, Some(value)) => {
                arguments = with(&arguments, name, value);
                true
            }
            _ => false,
        };
        let again = found.iter().any(|known| known.property == mismatch.property);
        let is_the_order = mismatch.breaks_order();
        found.push(mismatch);
        if !understood || again {
            if queue.is_single_active_consumer() && !is_the_order {
                return Err(unknown_order(name));
            }
            break;
        }
    }
    Ok(found)
}

fn unknown_order(name: &str) -> AmqpError {
    AmqpError::new(
        Kind::Mismatch,
        format!(
            "whether the queue `{name}` has a single active consumer cannot be found out: its order is not certain"
        ),
    )
}

/// A classic queue is often declared without naming its type.
fn is_the_same(mismatch: &Mismatch, queue: &Queue) -> bool {
    mismatch.property == TYPE && !queue.is_quorum() && mismatch.current(None) == Some(None)
}

fn with(arguments: &FieldTable, name: &str, value: Option<AMQPValue>) -> FieldTable {
    let mut changed = arguments.inner().clone();
    changed.retain(|known, _| known.as_str() != name);
    if let Some(value) = value {
        changed.insert(name.into(), value);
    }
    changed.into()
}

fn judge(queue: &Queue, found: &[Mismatch], policy: Policy) -> Result<(), AmqpError> {
    let name = &queue.name;
    let found: Vec<&Mismatch> = found.iter().filter(|mismatch| !is_the_same(mismatch, queue)).collect();
    let refused =
        |mismatch: &&&Mismatch| mismatch.breaks_order() || (mismatch.is_serious() && !policy.accept_foreign);
    if found.iter().any(|mismatch| refused(&mismatch)) {
        let all: Vec<_> = found.iter().map(ToString::to_string).collect();
        let way_out = if found.iter().any(|mismatch| mismatch.breaks_order()) {
            "an order needs a queue that was declared for one consumer at a time: consume without an order, or let \
             the queue run empty, delete it and have it declared anew"
        } else {
            "delete it, ask for what it is, or accept it as foreign"
        };
        return Err(AmqpError::new(
            Kind::Mismatch,
            format!("the queue `{name}` exists and is another one: {}; {way_out}", all.join("; ")),
        ));
    }
    for mismatch in found {
        tracing::warn!(queue = %name, "the queue is not as asked for: {mismatch}");
    }
    Ok(())
}

/// The exchange.
pub(crate) async fn exchange(
    connection: &lapin::Connection,
    exchange: &Exchange,
    check_only: bool,
) -> Result<(), AmqpError> {
    let name = &exchange.name;
    let kind = match exchange.kind {
        ExchangeKind::Direct => lapin::ExchangeKind::Direct,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
    };
    let options = ExchangeDeclareOptions {
        passive: check_only,
        durable: true,
        auto_delete: false,
        internal: false,
        nowait: false,
    };
    let channel = channel(connection).await?;
    match channel.exchange_declare(name.as_str().into(), kind, options, FieldTable::default()).await {
        Ok(()) => {
            close(channel).await;
            Ok(())
        }
        Err(error) => Err(match said(&error).and_then(|text| Mismatch::parse(&text)) {
            Some(mismatch) => AmqpError::new(
                Kind::Mismatch,
                format!("the exchange `{name}` exists and is another one: {mismatch}"),
            ),
            None => AmqpError::driver(format!("the exchange `{name}` cannot be declared"), error),
        }),
    }
}

async fn bind(
    connection: &lapin::Connection,
    queue: &str,
    exchange: &Exchange,
    routing_key: &str,
) -> Result<(), AmqpError> {
    let channel = channel(connection).await?;
    let names = (queue.into(), exchange.name.as_str().into(), routing_key.into());
    let options = QueueBindOptions { nowait: false };
    match channel.queue_bind(names.0, names.1, names.2, options, FieldTable::default()).await {
        Ok(()) => {
            close(channel).await;
            Ok(())
        }
        Err(error) => {
            let what = format!("the queue `{queue}` cannot be bound to the exchange `{}`", exchange.name);
            Err(AmqpError::driver(what, error))
        }
    }
}

/// A channel to throw away: what the broker refuses closes it.
pub(crate) async fn channel(connection: &lapin::Connection) -> Result<Channel, AmqpError> {
    connection
        .create_channel()
        .await
        .map_err(|error| AmqpError::driver("rabbitmq does not open a channel", error))
}

/// Before its connection: a channel that is dropped is closed by the driver, which may lose the answer to the closing of the
/// connection over it.
pub(crate) async fn close(channel: Channel) {
    // What was asked for is done.
    let _ = channel.close(200, "closed".into()).await;
}
