//! Values that options take.

use std::time::Duration;

use clap::ValueEnum;
use consumer::runtime::Ordering;

/// Which messages wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// A message never waits for another one
    None,
    /// Those of a partition, one after another
    Partition,
    /// Those of an order id, one after another
    Key,
}

impl From<Order> for Ordering {
    fn from(order: Order) -> Self {
        match order {
            Order::None => Ordering::None,
            Order::Partition => Ordering::Partition,
            Order::Key => Ordering::Key,
        }
    }
}

/// Reads `250ms`, `1.5s`, `10m`, `24h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const SHAPE: &str = "a duration is a number followed by ms, s, m or h, as in 250ms";
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(SHAPE)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(SHAPE.to_owned()),
    };
    // Whole numbers are exact, however long.
    if let Ok(whole) = number.parse::<u64>() {
        return match unit {
            "ms" => Ok(Duration::from_millis(whole)),
            _ => whole
                .checked_mul(seconds as u64)
                .map(Duration::from_secs)
                .ok_or_else(|| "too long".to_owned()),
        };
    }
    let number: f64 = number.parse().map_err(|_| SHAPE)?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "too long".to_owned())
}

/// Distances of delayed retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delays(pub(crate) Vec<Duration>);

/// Durations with commas between them; an empty text is none.
pub(crate) fn delays(text: &str) -> Result<Delays, String> {
    let parts = text.split(',').filter(|_| !text.is_empty());
    parts.map(|part| some_duration(part.trim())).collect::<Result<_, _>>().map(Delays)
}

/// Like [`duration`], but not zero.
pub(crate) fn some_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing".to_owned()),
        some => Ok(some),
    }
}

/// A number from 0 to 1 as it was written: in binary, 0.29 of 100 would be 28.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fraction {
    numerator: u64,
    denominator: u64,
}

impl Fraction {
    /// ⌊whole × self⌋.
    pub(crate) fn of(self, whole: u64) -> u64 {
        let product = u128::from(whole) * u128::from(self.numerator);
        product
            .checked_div(u128::from(self.denominator))
            .and_then(|part| u64::try_from(part).ok())
            .unwrap_or(0)
    }
}

/// Reads a decimal number from 0 to 1.
pub(crate) fn fraction(text: &str) -> Result<Fraction, String> {
    const SHAPE: &str = "a fraction is a decimal number from 0 to 1, as in 0.2";
    const DIGITS: usize = 15;
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit());
    if (whole.is_empty() && decimals.is_empty()) || !digits(whole) || !digits(decimals) {
        return Err(SHAPE.to_owned());
    }
    let decimals = decimals.trim_end_matches('0');
    if decimals.len() > DIGITS {
        return Err(format!("a fraction has at most {DIGITS} decimals"));
    }
    let denominator = 10_u64.pow(decimals.len() as u32);
    let number = |part: &str| if part.is_empty() { Ok(0) } else { part.parse::<u64>().map_err(|_| SHAPE) };
    let numerator =
        number(whole)?.checked_mul(denominator).and_then(|n| n.checked_add(number(decimals).ok()?));
    let numerator = numerator.filter(|n| *n <= denominator).ok_or(SHAPE)?;
    Ok(Fraction { numerator, denominator })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        for wrong in ["", "5", "s", "-1s", "1 s", "1d", "1.2.3s", "99999999999999999999h", "∞s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(some_duration("0ms").is_err() && some_duration("1ms").is_ok());
    }

    #[test]
    fn delays_are_durations_with_commas() {
        let seconds = |seconds: &[u64]| Ok(Delays(seconds.iter().map(|s| Duration::from_secs(*s)).collect()));
        assert_eq!((delays(""), delays("30s,5m, 1h")), (seconds(&[]), seconds(&[30, 300, 3600])));
        for wrong in [",", "30s,", "30s;5m", "0s", "30"] {
            assert!(delays(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fraction_is_taken_as_it_is_written() {
        let of = |text: &str, whole| fraction(text).unwrap().of(whole);
        assert_eq!(of("0.29", 100), 29);
        assert_eq!(of("0.2", 20_000), 4_000);
        assert_eq!(of("0.2", 4), 0);
        assert_eq!(of("0.999", 1000), 999);
        assert_eq!((of("1", 7), of("1.0", 7), of(".5", 7), of("0", 7)), (7, 7, 3, 0));
        assert_eq!(Fraction::default().of(7), 0);
        for wrong in ["", ".", "1.1", "2", "-0.1", "a", "0.2x", "1e-3", "NaN", "0.0000000000000001"] {
            assert!(fraction(wrong).is_err(), "{wrong}");
        }
    }
}
