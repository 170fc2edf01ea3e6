//! Free loopback ports.

use std::{
    collections::HashSet,
    fs,
    hash::{BuildHasher, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    sync::{Mutex, PoisonError},
};

static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A TCP port of 127.0.0.1 on which nothing listens now; never the same one twice in a process.
///
/// It lies below the range from which the kernel takes the ports of outgoing connections. A server that is stopped and
/// started again would otherwise find its port taken by some client, and a client that keeps connecting to a stopped
/// server can even connect to itself.
///
/// # Errors
/// When no free port was found in 1,000 tries.
pub fn free_port() -> io::Result<u16> {
    let range = candidates(&fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default());
    let random = RandomState::new();
    for attempt in 0..1_000_u32 {
        let offset = random.hash_one(attempt) % u64::from(range.end - range.start);
        let port = range.start + u16::try_from(offset).map_err(io::Error::other)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
            if given.get_or_insert_default().insert(port) {
                return Ok(port);
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port found in 1,000 tries"))
}

/// The ports to choose from, given the kernel's range for outgoing connections ("32768\t60999").
fn candidates(outgoing: &str) -> Range<u16> {
    let lowest = outgoing.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32_768);
    // A machine whose outgoing range starts very low leaves no room: then an overlap is the lesser evil.
    10_240..if lowest < 12_000 { 32_768 } else { lowest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_differ() {
        let ports: HashSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, *ports.iter().next().unwrap()));
        assert!(taken.is_ok());
    }

    #[test]
    fn outgoing_ports_are_left_alone() {
        assert_eq!(candidates("32768\t60999\n"), 10_240..32_768);
        assert_eq!(candidates("20000 60999"), 10_240..20_000);
        assert_eq!(candidates("1024 65535"), 10_240..32_768);
        assert_eq!(candidates(""), 10_240..32_768);
    }
}
