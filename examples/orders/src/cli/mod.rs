//! The command line.

mod args;
#[cfg(test)]
mod fuzz;
mod value;

pub(crate) use args::{Broker, Cli, Command, Consume, Produce};
#[cfg(test)]
pub(crate) use value::fraction;
pub(crate) use value::{Fraction, Order};
