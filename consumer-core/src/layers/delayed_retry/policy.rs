//! Which delay comes next.

use std::time::Duration;

/// A wait that was asked for, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) delay: Duration,
    /// 1 for the first delayed retry.
    pub(super) round: u32,
    /// What was asked for is longer than every delay.
    pub(super) is_capped: bool,
}

/// `done` rounds have been waited for. `None` when there is no further one.
pub(super) fn next(delays: &[Duration], done: u32, asked: Option<Duration>) -> Option<Next> {
    let planned = *delays.get(usize::try_from(done).ok()?)?;
    let round = done + 1;
    let Some(asked) = asked.filter(|asked| *asked > planned) else {
        return Some(Next { delay: planned, round, is_capped: false });
    };
    match delays.iter().find(|delay| **delay >= asked) {
        Some(delay) => Some(Next { delay: *delay, round, is_capped: false }),
        None => Some(Next { delay: *delays.last()?, round, is_capped: true }),
    }
}

/// For how long a message is parked whose key waits for about `remaining`: not much longer, and not needlessly often. The
/// shortest delay where nobody knows. `None` without delays.
pub(super) fn parked(delays: &[Duration], remaining: Duration) -> Option<Duration> {
    delays.iter().rfind(|delay| **delay <= remaining).or(delays.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAYS: [Duration; 3] =
        [Duration::from_secs(30), Duration::from_secs(300), Duration::from_secs(3600)];

    fn seconds(done: u32, asked: Option<u64>) -> Option<(u64, u32, bool)> {
        let next = next(&DELAYS, done, asked.map(Duration::from_secs))?;
        Some((next.delay.as_secs(), next.round, next.is_capped))
    }

    #[test]
    fn each_round_has_its_delay_and_then_there_is_none() {
        let all: Vec<_> = (0..5).map(|done| seconds(done, None).map(|(delay, ..)| delay)).collect();
        assert_eq!(all, [Some(30), Some(300), Some(3600), None, None]);
        assert_eq!(next(&[], 0, None), None);
        assert_eq!(seconds(u32::MAX, None), None);
    }

    #[test]
    fn a_parked_message_comes_back_about_when_its_key_goes_on() {
        let seconds = |remaining| parked(&DELAYS, Duration::from_secs(remaining)).unwrap().as_secs();
        assert_eq!([0, 29, 30, 299, 300, 3601].map(seconds), [30, 30, 30, 30, 300, 3600]);
        assert_eq!(parked(&[], Duration::from_secs(30)), None);
    }

    #[test]
    fn what_is_asked_for_is_rounded_up_and_capped() {
        assert_eq!(seconds(0, Some(1)), Some((30, 1, false)), "never sooner than planned");
        assert_eq!(seconds(0, Some(31)), Some((300, 1, false)));
        assert_eq!(seconds(1, Some(300)), Some((300, 2, false)));
        assert_eq!(seconds(0, Some(7200)), Some((3600, 1, true)));
    }
}
