//! What is looked at while it runs, and what is made of it. Pure, but for the reading of one file.

use super::super::Fallible;

/// The state at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sample {
    /// Since the load began, in seconds.
    pub(super) at: f64,
    /// Resident, in MiB.
    pub(super) resident: f64,
    /// Tasks alive in the consumer's runtime.
    pub(super) tasks: f64,
    /// Confirmed and not dealt with.
    pub(super) lag: f64,
    /// Of Redis, in MiB, beyond what an empty one has.
    pub(super) redis: f64,
    /// In Redis.
    pub(super) keys: f64,
}

/// One figure in the first and in the last third of the steady part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Drift {
    pub(super) first: f64,
    pub(super) last: f64,
}

/// The medians of a figure at the beginning and at the end; None for too few samples.
pub(super) fn drift(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> Option<Drift> {
    let third = samples.len() / 3;
    (third > 0).then(|| Drift {
        first: median(samples[..third].iter().map(&of)),
        last: median(samples[samples.len() - third..].iter().map(&of)),
    })
}

/// What has come after the retention has passed twice: before that Redis fills.
pub(super) fn steady(samples: &[Sample], from: f64) -> &[Sample] {
    &samples[samples.partition_point(|sample| sample.at < from)..]
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Of this process, in MiB.
pub(super) fn resident() -> Fallible<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(value.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growing(by: f64) -> Vec<Sample> {
        (0..90)
            .map(|n| Sample {
                at: f64::from(n) * 10.0,
                resident: 50.0 + by * f64::from(n),
                ..Sample::default()
            })
            .collect()
    }

    #[test]
    fn a_leak_is_a_drift_and_a_spike_is_none() {
        let leaking = drift(&growing(1.0), |sample| sample.resident).unwrap();
        assert_eq!(leaking, Drift { first: 65.0, last: 125.0 });
        let mut flat = growing(0.0);
        flat[80].resident = 500.0;
        assert_eq!(drift(&flat, |sample| sample.resident), Some(Drift { first: 50.0, last: 50.0 }));
        assert_eq!(drift(&flat[..2], |sample| sample.resident), None);
    }

    #[test]
    fn the_time_in_which_redis_fills_is_left_out() {
        let samples = growing(0.0);
        assert_eq!(steady(&samples, 240.0)[0].at, 240.0);
        assert!(steady(&samples, 10_000.0).is_empty());
    }
}
