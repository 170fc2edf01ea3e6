//! What the processes of a server are and where they listen, by what the kernel tells.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The processes that live, or were started, with this folder as their home.
pub(crate) fn with_home(home: &Path) -> Vec<PathBuf> {
    let variable = format!("HOME={}", home.display());
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_one = |process: &PathBuf| {
        // Empty for one that has ended and is not collected yet.
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes())
    };
    all.filter(is_one).collect()
}

/// Waits until none of them is left.
pub(crate) fn wait_until_none(home: &Path) {
    let begin = Instant::now();
    while !with_home(home).is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(60), "still there: {:?}", with_home(home));
        thread::sleep(Duration::from_millis(20));
    }
}

/// The addresses they listen on, in hexadecimal as the kernel shows them.
pub(crate) fn listening(processes: &[PathBuf]) -> Vec<String> {
    let handles = processes.iter().filter_map(|process| fs::read_dir(process.join("fd")).ok());
    let targets = handles.flatten().flatten().filter_map(|handle| fs::read_link(handle.path()).ok());
    let sockets: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    let mut addresses = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines() {
            // number, local address, remote address, state (0A is LISTEN), …, the socket's number as the tenth
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" && sockets.contains(&format!("socket:[{}]", fields[9])) {
                addresses.push(fields[1].split(':').next().unwrap().to_owned());
            }
        }
    }
    addresses
}
