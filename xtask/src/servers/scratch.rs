//! Temporary folders that are removed even if their owner was killed.

use super::ServerError;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
    sync::Once,
};
use tempfile::TempDir;

const PREFIX: &str = "consumer-server-";
const LOCK: &str = "owner.lock";

/// A temporary folder, removed on drop. Its owner holds a lock on a file in it; the kernel lets go of that when the
/// owner dies, and the next process that makes a folder removes those nobody owns.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: TempDir,
    _lock: File,
}

impl Scratch {
    pub(super) fn new() -> Result<Self, ServerError> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(remove_abandoned);
        Self::new_in(&std::env::temp_dir())
            .map_err(|error| ServerError::io("a temporary folder could not be made", error))
    }

    fn new_in(parent: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // Locked under another name first: under its final one it is never seen unlocked while the owner lives.
        let lock = File::create(dir.path().join("new.lock"))?;
        lock.lock()?;
        fs::rename(dir.path().join("new.lock"), dir.path().join(LOCK))?;
        Ok(Self { dir, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes the temporary folders of servers whose owner was killed. Starting a server does this too.
pub fn remove_abandoned() {
    sweep(&std::env::temp_dir());
}

/// Removes the folders whose owners are dead. What cannot be removed is left for the next time.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        match lock.try_lock() {
            Ok(()) => drop(fs::remove_dir_all(entry.path())),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_without_an_owner_are_swept() {
        let parent = TempDir::new().unwrap();
        let owned = Scratch::new_in(parent.path()).unwrap();
        let orphan = parent.path().join("consumer-server-orphan");
        fs::create_dir(&orphan).unwrap();
        File::create(orphan.join(LOCK)).unwrap();
        let foreign = parent.path().join("somebody-elses");
        fs::create_dir(&foreign).unwrap();
        File::create(foreign.join(LOCK)).unwrap();

        sweep(parent.path());

        assert!(owned.path().exists());
        assert!(!orphan.exists());
        assert!(foreign.exists());
    }
}
