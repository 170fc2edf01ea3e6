//! Timing in interleaved rounds: A B A B …, and of each the median.

use std::time::Duration;

/// Runs each of `contestants` once a round and answers their median times.
///
/// Interleaved, because another load on the machine then hits all of them alike.
pub(crate) fn medians<const N: usize>(
    rounds: usize,
    mut round: impl FnMut(usize) -> Duration,
) -> [Duration; N] {
    let mut times = [(); N].map(|()| Vec::with_capacity(rounds));
    for _ in 0..rounds {
        for (contestant, times) in times.iter_mut().enumerate() {
            times.push(round(contestant));
        }
    }
    times.map(median)
}

/// The middle one; the upper of two.
pub(crate) fn median<T: PartialOrd + Copy + Default>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied().unwrap_or_default()
}
