//! Quotas as text: `"100/min"`.

use std::{fmt, str::FromStr, time::Duration};

use super::{Algorithm, DEFAULT_SLOTS, Quota, QuotaError};

/// Why a text is no [`Quota`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseQuotaError {
    text: String,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reason {
    Form,
    Limit,
    Period,
    Algorithm,
    Quota(QuotaError),
}

impl fmt::Display for ParseQuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no quota: ", self.text)?;
        match &self.reason {
            Reason::Form => f.write_str("write it as \"100/min\" or \"5/10s\""),
            Reason::Limit => f.write_str("the limit is a whole number up to 4294967295"),
            Reason::Period => f.write_str(
                "the period is a unit (ms, s, min, h, day, week) with a number before it if it is not 1",
            ),
            Reason::Algorithm => f.write_str(
                "after the period comes nothing, or \"fixed\", \"strict\", \"log\" or \"burst N\"",
            ),
            Reason::Quota(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ParseQuotaError {}

const UNITS: [(&str, u64); 6] = [
    ("ms", 1),
    ("s", 1_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("day", 86_400_000),
    ("week", 604_800_000),
];

fn unit_ms(name: &str) -> Option<u64> {
    let name = match name {
        "sec" | "second" | "seconds" => "s",
        "m" | "minute" | "minutes" => "min",
        "hour" | "hours" => "h",
        "d" | "days" => "day",
        "w" | "weeks" => "week",
        name => name,
    };
    UNITS.iter().find(|(unit, _)| *unit == name).map(|(_, ms)| *ms)
}

impl FromStr for Quota {
    type Err = ParseQuotaError;

    /// Parses `LIMIT/PERIOD`, a sliding window, or with a word behind it another algorithm:
    /// `"100/min"`, `"5/10s"`, `"3/min strict"`, `"1000/h fixed"`, `"20/s burst 50"`,
    /// `"10/min log"`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| ParseQuotaError { text: text.chars().take(40).collect(), reason };
        let mut words = text.split_whitespace();
        let (limit, period) = words
            .next()
            .and_then(|rate| rate.split_once('/'))
            .ok_or_else(|| error(Reason::Form))?;
        let limit = number(limit).ok_or_else(|| error(Reason::Limit))?;
        let digits = period.bytes().take_while(u8::is_ascii_digit).count();
        let (count, unit) = period.split_at(digits);
        let count = if count.is_empty() { Some(1) } else { number(count) };
        let period_ms = count
            .zip(unit_ms(unit))
            .and_then(|(count, ms)| u64::from(count).checked_mul(ms))
            .ok_or_else(|| error(Reason::Period))?;
        let algorithm = match (words.next(), words.next(), words.next()) {
            (None, ..) => Algorithm::SlidingWindow,
            (Some("fixed"), None, _) => Algorithm::FixedWindow,
            (Some("strict"), None, _) => Algorithm::StrictWindow { slots: DEFAULT_SLOTS },
            (Some("log"), None, _) => Algorithm::SlidingLog,
            (Some("burst"), Some(burst), None) => Algorithm::TokenBucket {
                burst: number(burst).ok_or_else(|| error(Reason::Algorithm))?,
            },
            _ => return Err(error(Reason::Algorithm)),
        };
        Self::try_new(algorithm, limit, Duration::from_millis(period_ms))
            .map_err(|reason| error(Reason::Quota(reason)))
    }
}

/// Digits only: `u32`'s own parser also takes a sign.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for Quota {
    /// The form that [`from_str`](Self::from_str) reads, where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.algorithm {
            Algorithm::CalendarDay => return write!(f, "{}/calendar day", self.limit),
            Algorithm::CalendarMonth => return write!(f, "{}/calendar month", self.limit),
            _ => write!(f, "{}/{}", self.limit, PeriodText(self.period_us))?,
        }
        match self.algorithm {
            Algorithm::FixedWindow => f.write_str(" fixed"),
            Algorithm::StrictWindow { slots: DEFAULT_SLOTS } => f.write_str(" strict"),
            Algorithm::StrictWindow { slots } => write!(f, " strict in {slots} slots"),
            Algorithm::SlidingLog => f.write_str(" log"),
            Algorithm::TokenBucket { burst } => write!(f, " burst {burst}"),
            _ => Ok(()),
        }
    }
}

/// A period in the largest unit of which it is a whole multiple.
pub(crate) struct PeriodText(pub(crate) u64);

impl fmt::Display for PeriodText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().rev().find(|(_, ms)| self.0.is_multiple_of(ms * 1_000));
        match unit.map(|(unit, ms)| (unit, self.0 / (ms * 1_000))) {
            None => write!(f, "{}us", self.0),
            Some((unit, 1)) => f.write_str(unit),
            Some((unit, count)) => write!(f, "{count}{unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_parses_to_the_same_quota() {
        for text in [
            "100/min",
            "5/10s",
            "50/h",
            "7/250ms",
            "3/min strict",
            "1000/day fixed",
            "20/s burst 50",
            "10/2week log",
        ] {
            let quota: Quota = text.parse().unwrap();
            assert_eq!(quota.to_string(), text);
        }
        let strict = Algorithm::StrictWindow { slots: 20 };
        let printed = Quota::try_new(strict, 3, Duration::from_secs(60)).unwrap().to_string();
        assert_eq!(printed, "3/min strict in 20 slots");
        assert!(printed.parse::<Quota>().is_err(), "it would be another quota");
        assert_eq!("100/minute".parse(), "100/m".parse::<Quota>());
        assert_eq!(" 9/60s ".parse(), "9/min".parse::<Quota>());
    }

    #[test]
    fn what_is_no_quota_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "write it as"),
            ("100", "write it as"),
            ("per_second(5)", "write it as"),
            ("+5/s", "the limit is"),
            ("-1/s", "the limit is"),
            ("1e3/s", "the limit is"),
            ("4294967296/s", "the limit is"),
            ("0/s", "a quota of zero"),
            ("5/", "the period is"),
            ("5/fortnight", "the period is"),
            ("5/99999999999999999999s", "the period is"),
            ("5/0s", "out of range"),
            ("5/53week", "out of range"),
            ("5/s fixed please", "after the period"),
            ("5/s burst", "after the period"),
            ("5/s burst x", "after the period"),
            ("5/s burst 0", "a burst of zero"),
            ("1001/s log", "too long"),
        ] {
            let error = text.parse::<Quota>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        let long = "x".repeat(1 << 20).parse::<Quota>().unwrap_err().to_string();
        assert!(long.len() < 200);
    }
}
