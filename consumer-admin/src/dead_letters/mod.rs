//! One file for each thing that is done with dead letters.

pub(crate) mod discard;
pub(crate) mod exported;
pub(crate) mod filter;
pub(crate) mod import;
pub(crate) mod redrive;
pub(crate) mod sending;
pub(crate) mod stats;
#[cfg(test)]
mod tests;
