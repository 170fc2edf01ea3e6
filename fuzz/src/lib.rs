//! What the property tests of parsers share.
//!
//! A [`Target`] is one parser of outside input. It is run against inputs of a strategy, and fails on a panic, on a broken
//! property, and when parsing holds more memory at one time than the target's bound, which is so many bytes for each
//! byte of the input and so many beside. Targets are unit tests named `fuzz_…` in a module `fuzz` of their crate: with
//! `cargo test` each runs a few hundred inputs, with `cargo xtask fuzz` for as long as one likes.
//!
//! Linking this crate puts an allocator in place that counts.

mod input;

use std::{
    cell::Cell,
    env, fs,
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

pub use input::{bytes, mutated, text};
use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};

/// Inputs of one round, which has a seed of its own; `cargo test` runs one round.
const ROUND: u32 = 256;

/// A parser of outside input under test.
#[derive(Debug, Clone)]
#[must_use]
pub struct Target {
    name: &'static str,
    per_byte: u64,
    beside: u64,
}

impl Target {
    /// By default, 8 bytes for each byte of the input and 4 KiB beside.
    pub fn new(name: &'static str) -> Self {
        Self { name, per_byte: 8, beside: 4096 }
    }

    /// How many bytes may be held at one time: for each byte of the input, and beside.
    pub fn at_most(self, per_byte: u64, beside: u64) -> Self {
        Self { per_byte, beside, ..self }
    }

    /// Runs `test` on inputs of `strategy`: as many, for as long, and from the seed that `FUZZ_CASES`, `FUZZ_SECONDS` and
    /// `FUZZ_SEED` say. What was tried is printed, or written to the file `FUZZ_REPORT`.
    ///
    /// # Panics
    /// When an input fails, with the smallest one found that does and the command that shows it again.
    pub fn run<S: Strategy>(self, strategy: S, test: impl Fn(&Meter, S::Value) -> Result<(), TestCaseError>) {
        let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let first = number("FUZZ_SEED").unwrap_or_else(|| RandomState::new().hash_one(self.name) >> 32);
        let seconds = number("FUZZ_SECONDS").map(Duration::from_secs);
        let cases = number("FUZZ_CASES").unwrap_or(ROUND.into());
        let meter = Meter { target: self, most: Cell::new((0, 0)), inputs: Cell::new(0) };
        let start = Instant::now();
        let mut seed = first;
        loop {
            meter.round(seed, &strategy, &test);
            seed = seed.wrapping_add(1);
            let is_over = match seconds {
                Some(limit) => start.elapsed() >= limit,
                None => meter.inputs.get() >= cases,
            };
            if is_over {
                break;
            }
        }
        let (most, of) = meter.most.get();
        let Target { name, per_byte, beside } = meter.target;
        let line = format!(
            "fuzz {name}: {} inputs in {} s from seed {first}; most held: {most} bytes for {of}, bound {per_byte} × n + {beside}\n",
            meter.inputs.get(),
            start.elapsed().as_secs(),
        );
        match env::var_os("FUZZ_REPORT") {
            Some(file) => fs::write(file, line).expect("the report can be written"),
            None => print!("{line}"),
        }
    }
}

/// Measures what a target allocates.
#[derive(Debug)]
pub struct Meter {
    target: Target,
    most: Cell<(u64, usize)>,
    inputs: Cell<u64>,
}

impl Meter {
    /// Parses an input of `length` bytes within the bound of the target.
    ///
    /// # Panics
    /// When more is held at one time, and when `parse` panics.
    pub fn parse<T>(&self, length: usize, parse: impl FnOnce() -> T) -> T {
        let mut parsed = None;
        let used = allocation_counter::measure(|| {
            // Unwound through, the counter would count on.
            parsed = Some(catch_unwind(AssertUnwindSafe(parse)));
        });
        let held = used.bytes_max;
        let bound = self.target.per_byte * length as u64 + self.target.beside;
        match parsed {
            Some(Ok(parsed)) => {
                assert!(
                    held <= bound,
                    "{held} bytes held for an input of {length} bytes: the bound is {bound}"
                );
                if held > self.most.get().0 {
                    self.most.set((held, length));
                }
                parsed
            }
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("what is measured is run"),
        }
    }

    fn round<S: Strategy>(
        &self,
        seed: u64,
        strategy: &S,
        test: &impl Fn(&Meter, S::Value) -> Result<(), TestCaseError>,
    ) {
        let config = Config { cases: ROUND, failure_persistence: None, ..Config::default() };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let outcome = TestRunner::new_with_rng(config, rng).run(strategy, |input| {
            self.inputs.set(self.inputs.get() + 1);
            test(self, input)
        });
        if let Err(error) = outcome {
            let name = self.target.name;
            panic!(
                "fuzz {name}: {error}\nagain: cargo xtask fuzz --only {name} --seed {seed} --cases {ROUND}\n"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, panic::catch_unwind};

    use proptest::prelude::*;

    use super::*;

    fn failure(test: impl Fn(&Meter, Vec<u8>) -> Result<(), TestCaseError>) -> String {
        let run = || Target::new("selftest").at_most(2, 100).run(bytes(&["0123456789"], &[]), &test);
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        panic.downcast_ref::<String>().unwrap().clone()
    }

    #[test]
    fn too_much_memory_is_a_failure_with_a_way_to_see_it_again() {
        let why = failure(|meter, input| {
            meter.parse(input.len(), || black_box(vec![0_u8; 3 * input.len() + 100]));
            Ok(())
        });
        assert!(
            why.contains("bytes held") && why.contains("cargo xtask fuzz --only selftest --seed "),
            "{why}"
        );
    }

    #[test]
    fn a_panic_is_a_failure_and_the_counting_goes_on_after_it() {
        for _ in 0..3 {
            let why = failure(|meter, input| {
                meter.parse(input.len(), || assert!(!input.contains(&b'7'), "a seven"));
                Ok(())
            });
            assert!(why.contains("a seven"), "{why}");
        }
    }

    #[test]
    fn what_keeps_to_the_bound_passes() {
        Target::new("selftest").at_most(2, 100).run(bytes(&["0123456789"], &["x"]), |meter, input| {
            meter.parse(input.len(), || black_box(input.clone()));
            prop_assert!(input.len() < 100_000);
            Ok(())
        });
    }
}
