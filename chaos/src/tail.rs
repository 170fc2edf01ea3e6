//! Reads the mail logs while they grow, so that the time of each effect is known by the harness' own clock.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::history::Effect;

const PAUSE: Duration = Duration::from_millis(10);

/// All mail logs of a run.
#[derive(Debug)]
pub(crate) struct Tail {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    logs: Vec<Log>,
    effects: Vec<Effect>,
    ids: HashSet<String>,
    /// What is no line of a mail log.
    broken: Option<String>,
}

#[derive(Debug)]
struct Log {
    consumer: usize,
    path: PathBuf,
    file: Option<File>,
    /// The begin of a line whose end has not been read.
    rest: Vec<u8>,
    /// Its process has ended: nothing more comes.
    ended: bool,
}

impl Tail {
    pub(crate) fn start(began: Instant) -> Self {
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { began, stop: AtomicBool::new(false), state });
        let its = shared.clone();
        let reader = thread::spawn(move || {
            while !its.stop.load(Ordering::Relaxed) {
                its.read();
                thread::sleep(PAUSE);
            }
        });
        Self { shared, reader: Some(reader) }
    }

    /// Reads the log of one more process.
    pub(crate) fn watch(&self, consumer: usize, path: PathBuf) {
        self.shared.lock().logs.push(Log { consumer, path, file: None, rest: Vec::new(), ended: false });
    }

    /// Reads what the process, which has ended, has left, and no more of it.
    pub(crate) fn ended(&self, consumer: usize) {
        for log in self.shared.lock().logs.iter_mut().filter(|log| log.consumer == consumer) {
            log.ended = true;
        }
        self.shared.read();
    }

    /// Whether each of these has had an effect.
    pub(crate) fn has_all<'a>(&self, mut ids: impl Iterator<Item = &'a str>) -> bool {
        let state = self.shared.lock();
        ids.all(|id| state.ids.contains(id))
    }

    /// Those of these that have had no effect.
    pub(crate) fn missing<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let state = self.shared.lock();
        ids.filter(|id| !state.ids.contains(*id)).collect()
    }

    /// Everything so far.
    pub(crate) fn effects(&self) -> io::Result<Vec<Effect>> {
        self.shared.read();
        let state = self.shared.lock();
        match &state.broken {
            Some(line) => Err(io::Error::other(format!("no line of a mail log: {line}"))),
            None => Ok(state.effects.clone()),
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // It panics nowhere.
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) {
        let mut state = self.lock();
        let State { logs, effects, ids, broken } = &mut *state;
        for log in logs.iter_mut() {
            let lines = log.lines();
            let seen = self.began.elapsed();
            for line in lines {
                match effect(&line, log.consumer, seen) {
                    Some(effect) => {
                        ids.insert(effect.id.clone());
                        effects.push(effect);
                    }
                    None => drop(broken.get_or_insert(line)),
                }
            }
        }
        logs.retain(|log| !log.ended);
    }
}

impl Log {
    /// Whole lines that were written since the last call.
    fn lines(&mut self) -> Vec<String> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Vec::new() };
        if file.read_to_end(&mut self.rest).is_err() {
            return Vec::new();
        }
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

fn effect(line: &str, consumer: usize, seen: Duration) -> Option<Effect> {
    let mail: Value = serde_json::from_str(line).ok()?;
    Some(Effect {
        id: mail["message_id"].as_str()?.to_owned(),
        consumer,
        epoch: mail["epoch"].as_u64()?,
        seen,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write};

    use super::*;

    #[test]
    fn a_log_is_read_in_its_order_and_by_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mails.jsonl");
        let tail = Tail::start(Instant::now());
        tail.watch(3, path.clone());
        let mut log = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        log.write_all(b"{\"message_id\":\"a\",\"epoch\":7,\"attempt\":1}\n{\"message_id\":\"b\",\"ep")
            .unwrap();
        assert_eq!(tail.effects().unwrap().len(), 1);
        assert_eq!(tail.missing(["a", "b"].into_iter()), ["b"]);
        log.write_all(b"och\":8}\n").unwrap();
        tail.ended(3);
        let effects = tail.effects().unwrap();
        assert!(tail.has_all(["a", "b"].into_iter()));
        let read: Vec<_> =
            effects.iter().map(|effect| (&*effect.id, effect.consumer, effect.epoch)).collect();
        assert_eq!(read, [("a", 3, 7), ("b", 3, 8)]);
    }

    #[test]
    fn what_is_no_mail_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mails.jsonl");
        std::fs::write(&path, "{\"message_id\":\"a\"}\n").unwrap();
        let tail = Tail::start(Instant::now());
        tail.watch(0, path);
        assert!(tail.effects().is_err());
    }
}
