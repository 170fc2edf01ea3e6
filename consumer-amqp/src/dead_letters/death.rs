//! What the broker wrote when it dead-lettered a message by itself: the header `x-death`.
//!
//! An array of tables, one for each queue and reason, the latest first. It comes over the network and anybody can publish
//! one: what is odd counts as absent.

use std::time::{Duration, SystemTime};

use consumer_core::dead_letters::BrokerDeath;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

use crate::topology::is_waiting;

pub(crate) const DEATHS: &str = "x-death";
/// Names of queues and reasons are shorter.
const LONGEST: usize = 255;

/// The latest death: it is why the message is where it is. One that only waited in a queue of a delayed retry did not die
/// there.
pub(crate) fn latest(properties: &BasicProperties) -> Option<BrokerDeath> {
    let AMQPValue::FieldArray(deaths) = properties.headers().as_ref()?.inner().get(DEATHS)? else {
        return None;
    };
    let mut deaths = deaths.as_slice().iter().filter_map(|death| match death {
        AMQPValue::FieldTable(death) => read(death),
        _ => None,
    });
    deaths.find(|death| death.reason != "expired" || !is_waiting(&death.queue))
}

fn read(table: &FieldTable) -> Option<BrokerDeath> {
    let death = BrokerDeath::new(text(table, "queue")?, text(table, "reason")?);
    let at = match table.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))
        }
        _ => None,
    };
    Some(match at {
        Some(at) => death.at(at),
        None => death,
    })
}

fn text<'a>(table: &'a FieldTable, name: &str) -> Option<&'a str> {
    let bytes = match table.inner().get(name)? {
        AMQPValue::LongString(text) => text.as_bytes(),
        AMQPValue::ShortString(text) => text.as_str().as_bytes(),
        _ => return None,
    };
    std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty() && text.len() <= LONGEST)
}

#[cfg(test)]
mod tests {
    use lapin::types::{FieldArray, LongString};

    use super::*;

    fn death(queue: &str, reason: &str) -> AMQPValue {
        let mut table = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        table.insert("queue".into(), text(queue));
        table.insert("reason".into(), text(reason));
        table.insert("time".into(), AMQPValue::Timestamp(17));
        table.insert("count".into(), AMQPValue::LongLongInt(1));
        AMQPValue::FieldTable(table)
    }

    fn of(header: AMQPValue) -> Option<BrokerDeath> {
        let mut table = FieldTable::default();
        table.insert(DEATHS.into(), header);
        latest(&BasicProperties::default().with_headers(table))
    }

    fn all(deaths: Vec<AMQPValue>) -> Option<BrokerDeath> {
        of(AMQPValue::FieldArray(FieldArray::from(deaths)))
    }

    #[test]
    fn the_latest_death_is_why_it_is_here() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(17);
        let expected = BrokerDeath::new("orders", "delivery_limit").at(at);
        assert_eq!(all(vec![death("orders", "delivery_limit"), death("first", "rejected")]), Some(expected));
    }

    #[test]
    fn nothing_dies_in_a_queue_in_which_it_waits_for_a_retry() {
        let waited = || death("orders.retry.300s", "expired");
        assert_eq!(all(vec![waited(), death("orders", "rejected")]).unwrap().queue, "orders");
        assert_eq!(all(vec![waited()]), None);
        assert_eq!(all(vec![death("orders.retry.300s", "rejected")]).unwrap().queue, "orders.retry.300s");
        assert_eq!(all(vec![death("orders.retry.later", "expired")]).unwrap().queue, "orders.retry.later");
    }

    #[test]
    fn what_is_odd_counts_as_absent() {
        for odd in [AMQPValue::Void, AMQPValue::LongInt(1), AMQPValue::FieldTable(FieldTable::default())] {
            assert_eq!(of(odd.clone()), None);
            assert_eq!(all(vec![odd.clone()]), None);
            assert_eq!(all(vec![odd, death("q", "maxlen")]).unwrap().queue, "q");
        }
        assert_eq!(all(Vec::new()), None);
        assert_eq!(all(vec![death("", "expired")]), None);
        assert_eq!(all(vec![death(&"q".repeat(256), "expired")]), None);
        assert_eq!(latest(&BasicProperties::default()), None);
        let mut late = FieldTable::default();
        late.insert("queue".into(), AMQPValue::ShortString("q".into()));
        late.insert("reason".into(), AMQPValue::ByteArray(b"x"[..].into()));
        assert_eq!(all(vec![AMQPValue::FieldTable(late.clone())]), None);
        late.insert("reason".into(), AMQPValue::ShortString("expired".into()));
        late.insert("time".into(), AMQPValue::Timestamp(u64::MAX));
        assert_eq!(all(vec![AMQPValue::FieldTable(late)]), Some(BrokerDeath::new("q", "expired")));
    }
}
