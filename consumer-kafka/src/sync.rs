//! What threads share. The crate `concurrency` takes the files in that use it, and puts a scheduler's in its place.

pub(crate) use std::{
    sync::{Mutex, MutexGuard, atomic},
    thread,
};
