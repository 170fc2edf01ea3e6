//! (c) The limit: the same Redis commands, pipelined, with nothing else to do.

use std::process::Command;

use super::{Fallible, Servers};

const REQUESTS: &str = "400000";

/// Messages a second, if a fresh message costs a claim and a completion.
pub(super) fn run(servers: &Servers) -> Fallible<f64> {
    // A key of 16 bytes and a prefix, values of 17 bytes, as in the store.
    let key = "bench:__rand_int__";
    let claim = rate(servers, &["SET", key, "claimed-by-owner1", "NX", "GET", "PX", "3630000"])?;
    let complete = rate(servers, &["SET", key, "completed-for-fp1", "GET", "PX", "86400000"])?;
    Ok(1.0 / (1.0 / claim + 1.0 / complete))
}

fn rate(servers: &Servers, command: &[&str]) -> Fallible<f64> {
    let address =
        servers.redis.rsplit(['/', '@']).find(|part| part.contains(':')).ok_or("no port in the URL")?;
    let (host, port) = address.rsplit_once(':').ok_or("no port in the URL")?;
    let output = Command::new("redis-benchmark")
        .args(["-h", host, "-p", port, "-n", REQUESTS, "-r", "100000000", "-P", "50", "--csv"])
        .args(command)
        .output()
        .map_err(|error| format!("redis-benchmark could not be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| format!("redis-benchmark said: {text}").into())
}

/// The second column of the last line; the first line names the columns.
fn parse(csv: &str) -> Option<f64> {
    let line = csv.lines().rfind(|line| line.contains("\",\""))?;
    line.split("\",\"").nth(1)?.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_found() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET key v NX GET\",\"316455.69\",\"7.1\"\n";
        assert_eq!(parse(csv), Some(316_455.69));
        assert_eq!(parse("Could not connect"), None);
    }
}
