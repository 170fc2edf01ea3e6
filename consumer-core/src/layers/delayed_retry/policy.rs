//! Which delay comes next.

use std::time::{Duration, SystemTime};

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

/// How a parked message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parked {
    /// Which of the delays it asks for: where the broker holds it.
    pub(super) delay: Duration,
    /// When it is due, never after the delay has ended.
    pub(super) wait: Duration,
}

/// How long a message is parked whose key waits for about `remaining`. `None` without delays.
///
/// All that are parked at one time are due at one time: messages that come back each at its own time would never catch up.
/// While the first one waits that is just behind it; once it is due, at the next multiple of the shortest delay.
pub(super) fn parked(delays: &[Duration], remaining: Duration, now: SystemTime) -> Option<Parked> {
    let (shortest, longest) = (*delays.first()?, *delays.last()?);
    if remaining.is_zero() {
        return Some(Parked { delay: shortest, wait: until_multiple(shortest, now) });
    }
    let margin = Duration::from_secs(1).min(shortest / 10);
    // In a longer delay than that of the first one it would wait behind messages that wait for longer.
    let delay = delays.iter().copied().find(|delay| *delay >= remaining).unwrap_or(longest);
    Some(Parked { delay, wait: remaining.saturating_add(margin).min(delay) })
}

/// Not zero, and at most `step`.
fn until_multiple(step: Duration, now: SystemTime) -> Duration {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let past = since.as_nanos() % step.as_nanos().max(1);
    // Shorter than `step`.
    let past = Duration::new((past / 1_000_000_000) as u64, (past % 1_000_000_000) as u32);
    step - past
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
    fn parked_messages_are_due_together_just_behind_the_first_or_at_the_next_multiple() {
        let millis = |remaining, now: u64| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now);
            let parked = parked(&DELAYS, Duration::from_millis(remaining), now).unwrap();
            (parked.delay.as_secs(), parked.wait.as_millis())
        };
        assert_eq!([1, 20_000].map(|left| millis(left, 7)), [(30, 1001), (30, 21_000)]);
        assert_eq!(
            [29_500, 30_000].map(|left| millis(left, 7)),
            [(30, 30_000); 2],
            "no longer than the delay"
        );
        assert_eq!([30_001, 300_000].map(|left| millis(left, 7)), [(300, 31_001), (300, 300_000)]);
        assert_eq!(millis(9_999_999, 7), (3600, 3_600_000));
        assert_eq!([0, 1, 29_999].map(|now| millis(0, 60_000 + now)), [(30, 30_000), (30, 29_999), (30, 1)]);
        assert_eq!(parked(&[], Duration::from_secs(30), SystemTime::UNIX_EPOCH), None);
        let short = parked(&[Duration::from_secs(2)], Duration::from_secs(1), SystemTime::UNIX_EPOCH);
        assert_eq!(short.unwrap().wait, Duration::from_millis(1200), "a tenth of a short delay");
    }

    #[test]
    fn what_is_asked_for_is_rounded_up_and_capped() {
        assert_eq!(seconds(0, Some(1)), Some((30, 1, false)), "never sooner than planned");
        assert_eq!(seconds(0, Some(31)), Some((300, 1, false)));
        assert_eq!(seconds(1, Some(300)), Some((300, 2, false)));
        assert_eq!(seconds(0, Some(7200)), Some((3600, 1, true)));
    }
}
