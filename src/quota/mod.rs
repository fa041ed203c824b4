//! Quotas, and what spending does to them: pure functions without I/O or clock.
//!
//! A [`Quota`] is a limit per period and an [`Algorithm`]. [`Quota::step`] takes the state of a
//! counter, the time and a [`Spend`] and returns the next state and a [`Verdict`]. The memory
//! backend runs these functions, [`emulate`](crate::storage::emulate) runs them over
//! compare-and-swap, and they are the oracle for the Lua of the Redis backend: the same integers
//! on both sides.
//!
//! # What each algorithm promises
//!
//! With limit L per period W, the most units that can be admitted in *any* time of length W:
//!
//! | algorithm | worst case in any W | memory | use it for |
//! |---|---|---|---|
//! | [`SlidingWindow`](Algorithm::SlidingWindow) | 2L - 1, and about 1.1 L under natural traffic | two counts | the default: "100 per minute" as people mean it |
//! | [`FixedWindow`](Algorithm::FixedWindow) | 2L | one count | quotas that are sold or billed |
//! | [`CalendarDay`](Algorithm::CalendarDay), [`CalendarMonth`](Algorithm::CalendarMonth) | L per calendar day or month (UTC): 2L in any 24 hours, 3L in 31 days (around February) | one count | plans |
//! | [`TokenBucket`](Algorithm::TokenBucket) | burst + L | one level | smoothing, with room for bursts |
//! | [`StrictWindow`](Algorithm::StrictWindow) | L, never more | slots + 1 counts | passwords, SMS |
//! | [`SlidingLog`](Algorithm::SlidingLog) | L, never more | up to L times | small exact limits |
//!
//! Units that were refunded do not count, and no refund, in whatever order, raises these numbers.
//! They do not hold across a clock that is set: forward, usage ends early; back, it lasts for at
//! most one more window (two of a sliding window, one refill of a bucket). Forced units are counted
//! and not limited; a bucket forgets those beyond its burst, and then also the receipts from before.
//!
//! A changed limit applies from the next step on, to the time since the last step too: a bucket
//! refills that time at the new rate.
//!
//! # Arithmetic
//!
//! Times are microseconds, counts are at most 2^32 - 1, and every number that decides stays within
//! 2^53, so that the doubles of Lua hold it exactly. (What a bucket drained in a long time can be
//! more; it is only compared with the debt, which is not.) To that end a sliding window or bucket divides its period
//! into at most 2^20 ticks of 1, 2 or 5 times a power of ten microseconds.

use std::{fmt, time::Duration};

mod bucket;
mod calendar;
mod fixed;
mod log;
mod parse;
mod sliding;
mod state;
mod strict;

#[cfg(feature = "rate-limit")]
pub(crate) use self::parse::PeriodText;
pub use self::{parse::ParseQuotaError, state::State};
use crate::storage::{Receipt, Spend, Verdict};

const SHORTEST_PERIOD: Duration = Duration::from_millis(1);
const LONGEST_PERIOD: Duration = Duration::from_secs(366 * 86_400);
const LONGEST_REFILL: Duration = Duration::from_secs(100 * 366 * 86_400);
const MOST_TICKS: u64 = 1 << 20;
/// A log grows with its limit.
const LONGEST_LOG: u32 = 1_000;
const MOST_SLOTS: u8 = 60;
/// Sub-windows of a strict window unless told otherwise.
pub const DEFAULT_SLOTS: u8 = 10;

/// A limit per period: so many units, however they are counted.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_keep::Quota;
///
/// let per_minute = Quota::sliding_window(100, Duration::from_secs(60));
/// assert_eq!("100/min".parse::<Quota>().unwrap(), per_minute);
/// assert_eq!(per_minute.to_string(), "100/min");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    algorithm: Algorithm,
    limit: u32,
    period_us: u64,
    /// What [`ticks`](Self::ticks) says; it follows from the period.
    tick_us: u32,
    ticks: u32,
}

/// How a [`Quota`] counts; the [module documentation](self) compares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// Two windows; the older one counts by the share of it that the last period still covers.
    SlidingWindow,
    /// One count that starts anew a period after the first unit.
    FixedWindow,
    /// One count for each day, UTC.
    CalendarDay,
    /// One count for each month, UTC.
    CalendarMonth,
    /// A bucket of `burst` tokens, refilled evenly with the limit per period (GCRA).
    TokenBucket {
        /// The most that can be taken at once.
        burst: u32,
    },
    /// Sub-windows, of which one more than needed is counted: never above the limit, at the price
    /// of at most 1/(slots + 1) of the throughput.
    StrictWindow {
        /// How many sub-windows, 1 to 60.
        slots: u8,
    },
    /// The time of every unit. Exact; the limit is at most 1,000.
    SlidingLog,
}

/// Why a [`Quota`] cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaError {
    /// The limit is zero: nothing would ever pass.
    ZeroLimit,
    /// The burst is zero: nothing would ever pass.
    ZeroBurst,
    /// The period is below one millisecond or above 366 days.
    PeriodOutOfRange(Duration),
    /// A sliding log holds at most 1,000 units.
    LogTooLong(u32),
    /// A strict window has 1 to 60 slots.
    SlotsOutOfRange(u8),
    /// A bucket of this burst would take more than 100 years to fill.
    RefillTooLong(u32),
}

impl fmt::Display for QuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroLimit => {
                f.write_str("a quota of zero lets nothing pass; to refuse somebody use a deny list")
            }
            Self::ZeroBurst => f.write_str(
                "a burst of zero lets nothing pass; a burst of 1 spaces requests evenly",
            ),
            Self::PeriodOutOfRange(period) => {
                write!(f, "a period of {period:?} is out of range: use 1 ms to 366 days")
            }
            Self::LogTooLong(limit) => write!(
                f,
                "a sliding log of {limit} is too long: use at most {LONGEST_LOG}, or a strict window"
            ),
            Self::SlotsOutOfRange(slots) => {
                write!(f, "a strict window of {slots} slots is out of range: use 1 to {MOST_SLOTS}")
            }
            Self::RefillTooLong(burst) => {
                write!(f, "a burst of {burst} takes more than 100 years to refill at this rate")
            }
        }
    }
}

impl std::error::Error for QuotaError {}

/// What a [`Quota::step`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// The counter afterwards. To be stored only if the whole call is granted.
    pub state: State,
    /// The verdict, as it is if the state is stored.
    pub verdict: Verdict,
    /// How long the state is worth keeping, in microseconds from now.
    pub keep_us: u64,
}

impl Quota {
    /// A quota of any algorithm. The calendar algorithms ignore the period.
    ///
    /// # Errors
    ///
    /// If a number is out of its range; the [`QuotaError`] says which.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_keep::quota::{Algorithm, Quota, QuotaError};
    ///
    /// let minute = Duration::from_secs(60);
    /// assert!(Quota::try_new(Algorithm::SlidingLog, 20, minute).is_ok());
    /// assert_eq!(Quota::try_new(Algorithm::SlidingLog, 0, minute), Err(QuotaError::ZeroLimit));
    /// ```
    pub const fn try_new(
        algorithm: Algorithm,
        limit: u32,
        period: Duration,
    ) -> Result<Self, QuotaError> {
        if limit == 0 {
            return Err(QuotaError::ZeroLimit);
        }
        let period = match algorithm {
            Algorithm::CalendarDay => Duration::from_secs(86_400),
            Algorithm::CalendarMonth => Duration::from_secs(31 * 86_400),
            _ => period,
        };
        if period.as_nanos() < SHORTEST_PERIOD.as_nanos()
            || period.as_nanos() > LONGEST_PERIOD.as_nanos()
        {
            return Err(QuotaError::PeriodOutOfRange(period));
        }
        match algorithm {
            Algorithm::TokenBucket { burst: 0 } => return Err(QuotaError::ZeroBurst),
            // The time to fill must fit into a time, and below 2^53 into a double.
            Algorithm::TokenBucket { burst }
                if burst as u128 * period.as_micros()
                    > LONGEST_REFILL.as_micros() * limit as u128 =>
            {
                return Err(QuotaError::RefillTooLong(burst));
            }
            Algorithm::StrictWindow { slots } if slots == 0 || slots > MOST_SLOTS => {
                return Err(QuotaError::SlotsOutOfRange(slots));
            }
            Algorithm::SlidingLog if limit > LONGEST_LOG => {
                return Err(QuotaError::LogTooLong(limit));
            }
            _ => {}
        }
        let period_us = period.as_micros() as u64;
        let tick_us = tick_of(period_us);
        // At most 5e7 and 2^20.
        let ticks = period_us.div_ceil(tick_us) as u32;
        Ok(Self { algorithm, limit, period_us, tick_us: tick_us as u32, ticks })
    }

    #[track_caller]
    const fn checked(algorithm: Algorithm, limit: u32, period: Duration) -> Self {
        match Self::try_new(algorithm, limit, period) {
            Ok(quota) => quota,
            Err(QuotaError::ZeroLimit) => {
                panic!("a quota of zero lets nothing pass; to refuse somebody use a deny list")
            }
            Err(QuotaError::ZeroBurst) => panic!("a burst of zero lets nothing pass"),
            Err(QuotaError::PeriodOutOfRange(_)) => {
                panic!("the period of a quota is 1 ms to 366 days")
            }
            Err(QuotaError::LogTooLong(_)) => {
                panic!("a sliding log holds at most 1,000 units; use a strict window")
            }
            Err(QuotaError::SlotsOutOfRange(_)) => panic!("a strict window has 1 to 60 slots"),
            Err(QuotaError::RefillTooLong(_)) => {
                panic!("a bucket of this burst takes more than 100 years to refill")
            }
        }
    }

    /// `limit` units in about any `period`: the default choice.
    ///
    /// # Panics
    ///
    /// If the limit is zero or the period is not between 1 ms and 366 days, as with all of these
    /// constructors. For numbers from outside use [`try_new`](Self::try_new) or
    /// [`parse`](str::parse).
    #[track_caller]
    pub const fn sliding_window(limit: u32, period: Duration) -> Self {
        Self::checked(Algorithm::SlidingWindow, limit, period)
    }

    /// `limit` units, counted anew a `period` after the first.
    ///
    /// # Panics
    ///
    /// As [`sliding_window`](Self::sliding_window).
    #[track_caller]
    pub const fn fixed_window(limit: u32, period: Duration) -> Self {
        Self::checked(Algorithm::FixedWindow, limit, period)
    }

    /// `limit` units a day, counted anew at midnight UTC.
    ///
    /// # Panics
    ///
    /// If the limit is zero.
    #[track_caller]
    pub const fn calendar_day(limit: u32) -> Self {
        Self::checked(Algorithm::CalendarDay, limit, Duration::ZERO)
    }

    /// `limit` units a month, counted anew on the first at midnight UTC.
    ///
    /// # Panics
    ///
    /// If the limit is zero.
    #[track_caller]
    pub const fn calendar_month(limit: u32) -> Self {
        Self::checked(Algorithm::CalendarMonth, limit, Duration::ZERO)
    }

    /// A bucket of `burst` tokens, refilled evenly with `limit` tokens each `period`.
    ///
    /// In any period at most `burst + limit` units pass.
    ///
    /// # Panics
    ///
    /// As [`sliding_window`](Self::sliding_window), and if the burst is zero or takes more than 100
    /// years to refill.
    #[track_caller]
    pub const fn token_bucket(limit: u32, period: Duration, burst: u32) -> Self {
        Self::checked(Algorithm::TokenBucket { burst }, limit, period)
    }

    /// Never more than `limit` units in any `period`, in ten sub-windows.
    ///
    /// # Panics
    ///
    /// As [`sliding_window`](Self::sliding_window).
    #[track_caller]
    pub const fn strict_window(limit: u32, period: Duration) -> Self {
        Self::checked(Algorithm::StrictWindow { slots: DEFAULT_SLOTS }, limit, period)
    }

    /// Exactly `limit` units in any `period`, for limits up to 1,000.
    ///
    /// # Panics
    ///
    /// As [`sliding_window`](Self::sliding_window), and if the limit is above 1,000.
    #[track_caller]
    pub const fn sliding_log(limit: u32, period: Duration) -> Self {
        Self::checked(Algorithm::SlidingLog, limit, period)
    }

    /// How the quota counts.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The units per period.
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// The period. A calendar month is stated as 31 days.
    pub const fn period(&self) -> Duration {
        Duration::from_micros(self.period_us)
    }

    /// The most units that can be there at once: the burst of a bucket, otherwise the limit.
    pub const fn capacity(&self) -> u32 {
        match self.algorithm {
            Algorithm::TokenBucket { burst } => burst,
            _ => self.limit,
        }
    }

    /// A short name of the counter that this quota needs: the algorithm and the period, without the
    /// limit, so that a change of the limit keeps what was used.
    pub fn counter_name(&self) -> String {
        let letter = match self.algorithm {
            Algorithm::SlidingWindow => "s",
            Algorithm::FixedWindow => "f",
            Algorithm::CalendarDay => return "day".into(),
            Algorithm::CalendarMonth => return "month".into(),
            Algorithm::TokenBucket { .. } => "b",
            Algorithm::StrictWindow { slots } => return format!("w{slots}.{}", self.period_us),
            Algorithm::SlidingLog => "l",
        };
        format!("{letter}{}", self.period_us)
    }

    /// Charges the counter at the time `now_us`, in microseconds since the Unix epoch.
    ///
    /// `None` is a counter that was never used. The caller stores the state if every enforced
    /// charge of its call was allowed. A state of another algorithm counts as never used; one from
    /// the future, after the clock was set back, as one of now.
    pub fn step(&self, state: Option<&State>, now_us: u64, spend: Spend) -> Step {
        match self.algorithm {
            Algorithm::SlidingWindow => sliding::step(self, state, now_us, spend),
            Algorithm::FixedWindow | Algorithm::CalendarDay | Algorithm::CalendarMonth => {
                fixed::step(self, state, now_us, spend)
            }
            Algorithm::TokenBucket { burst } => bucket::step(self, burst, state, now_us, spend),
            Algorithm::StrictWindow { slots } => strict::step(self, slots, state, now_us, spend),
            Algorithm::SlidingLog => log::step(self, state, now_us, spend),
        }
    }

    /// The verdict on a charge of a call that is refused as a whole: whether this quota had room,
    /// and where it stands with nothing taken.
    pub fn judge(&self, state: Option<&State>, now_us: u64, spend: Spend) -> Verdict {
        let verdict = self.step(state, now_us, spend).verdict;
        self.unspent(&verdict, state, now_us)
    }

    /// The verdict on a charge, with this state and nothing taken.
    pub(crate) fn unspent(&self, verdict: &Verdict, state: Option<&State>, now_us: u64) -> Verdict {
        let untouched = self.step(state, now_us, Spend::Take(0)).verdict;
        Verdict { allowed: verdict.allowed, retry_after: verdict.retry_after, ..untouched }
    }

    /// The tick of a sliding window or bucket in microseconds, and the ticks in its period.
    pub(crate) const fn ticks(&self) -> (u64, u64) {
        (self.tick_us as u64, self.ticks as u64)
    }
}

/// The shortest tick of 1, 2 or 5 times a power of ten that divides the period finely enough.
const fn tick_of(period_us: u64) -> u64 {
    let least = period_us.div_ceil(MOST_TICKS);
    let mut power = 1;
    while 5 * power < least {
        power *= 10;
    }
    if power >= least {
        power
    } else if 2 * power >= least {
        2 * power
    } else {
        5 * power
    }
}

/// What the algorithms have in common once each has brought its state up to `now`.
trait Counter {
    /// Units free, if any.
    fn free(&self) -> u32;
    /// Microseconds until `units` would be free. `None` if never.
    fn wait(&self, units: u32) -> Option<u64>;
    /// Microseconds until all is free.
    fn until_full(&self) -> u64;
    /// Takes units without asking, and says how many: fewer where the counter saturates.
    fn take(&mut self, units: u32) -> u32;
    /// Where a receipt for what was just taken points.
    fn receipt(&self, units: u32) -> Receipt;
    /// Gives back, as far as the receipt's place is still there.
    fn refund(&mut self, units: u32, receipt: &Receipt);
    /// Forgets all usage, receipts included.
    fn reset(&mut self);
}

fn take(counter: &mut impl Counter, units: u32) -> Option<Receipt> {
    let taken = if units > 0 { counter.take(units) } else { 0 };
    (taken > 0).then(|| counter.receipt(taken))
}

/// Spends on a counter that is up to date.
fn spend_on(counter: &mut impl Counter, capacity: u32, spend: Spend) -> Verdict {
    let mut retry_after = Some(0);
    let mut receipt = None;
    match spend {
        Spend::Take(units) => {
            if units <= counter.free() {
                receipt = take(counter, units);
            } else {
                retry_after = counter.wait(units);
            }
        }
        Spend::Peek => {
            if counter.free() == 0 {
                retry_after = counter.wait(1);
            }
        }
        Spend::Force(units) => receipt = take(counter, units),
        Spend::Refund { units, receipt } => counter.refund(units.min(receipt.units), &receipt),
        Spend::Reset => counter.reset(),
    }
    let remaining = counter.free();
    let replenish = if remaining < capacity { counter.wait(remaining + 1).unwrap_or(0) } else { 0 };
    Verdict {
        allowed: retry_after == Some(0),
        limit: capacity,
        remaining,
        reset_after: Duration::from_micros(counter.until_full()),
        replenish_after: Duration::from_micros(replenish),
        retry_after: retry_after.map(Duration::from_micros),
        receipt,
    }
}
