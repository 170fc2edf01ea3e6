//! What Redis says of itself.

use std::collections::HashMap;

use redis::{Client, Connection};

use super::Fallible;

pub(super) struct RedisServer(Connection);

impl RedisServer {
    pub(super) fn connect(url: &str) -> Fallible<Self> {
        Ok(Self(Client::open(url)?.get_connection()?))
    }

    /// Forgets everything, the counters included.
    pub(super) fn reset(&mut self) -> Fallible<()> {
        redis::cmd("FLUSHALL").query::<()>(&mut self.0)?;
        redis::cmd("CONFIG").arg("RESETSTAT").query::<()>(&mut self.0)?;
        Ok(())
    }

    pub(super) fn used_memory(&mut self) -> Fallible<u64> {
        let info: String = redis::cmd("INFO").arg("memory").query(&mut self.0)?;
        let value = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        Ok(value.ok_or("INFO without used_memory")?.trim().parse()?)
    }

    pub(super) fn keys(&mut self) -> Fallible<u64> {
        Ok(redis::cmd("DBSIZE").query(&mut self.0)?)
    }

    /// Calls by command since the last reset.
    pub(super) fn calls(&mut self) -> Fallible<HashMap<String, u64>> {
        let info: String = redis::cmd("INFO").arg("commandstats").query(&mut self.0)?;
        Ok(info.lines().filter_map(calls_of).collect())
    }
}

/// `cmdstat_set:calls=2,usec=…`
fn calls_of(line: &str) -> Option<(String, u64)> {
    let (name, stats) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
    Some((name.to_owned(), stats.split(',').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_statistics_are_read() {
        let line = "cmdstat_set:calls=190000,usec=123,usec_per_call=0.5";
        assert_eq!(calls_of(line), Some(("set".into(), 190_000)));
        assert_eq!(calls_of("# Commandstats"), None);
    }
}
