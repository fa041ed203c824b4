//! What each algorithm promises, against an exact log of what it admitted.

use std::time::Duration;

use proptest::{collection::vec, prelude::*, sample::select};
use tower_keep::{
    Quota,
    quota::{Algorithm, QuotaError, State},
    storage::{Receipt, Spend, Verdict},
};

const START: u64 = 1_795_000_000_000_000;
const DAY: u64 = 86_400_000_000;

fn config() -> ProptestConfig {
    let long = std::env::var_os("TOWER_KEEP_LONG").is_some();
    ProptestConfig {
        cases: if long { 20_000 } else { 300 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A counter as a backend keeps it: stored when something changed, dropped when it is over.
#[derive(Debug, Clone)]
struct Kept {
    quota: Quota,
    state: Option<State>,
    until: u64,
}

impl Kept {
    fn new(quota: Quota) -> Self {
        Self { quota, state: None, until: 0 }
    }

    fn spend(&mut self, now: u64, spend: Spend) -> Verdict {
        if now >= self.until {
            self.state = None;
        }
        let step = self.quota.step(self.state.as_ref(), now, spend);
        if spend.changes() && step.verdict.allowed {
            self.until = now + step.keep_us;
            self.state = Some(step.state);
        }
        step.verdict
    }

    fn look(&self, now: u64) -> Verdict {
        self.clone().spend(now, Spend::Take(0))
    }
}

/// The most that may be admitted in any time of the quota's period.
fn bound(quota: &Quota) -> u64 {
    let limit = u64::from(quota.limit());
    match quota.algorithm() {
        Algorithm::SlidingWindow => 2 * limit - 1,
        // 31 days can reach over the whole of February.
        Algorithm::CalendarMonth => 3 * limit,
        Algorithm::TokenBucket { burst } => limit + u64::from(burst),
        Algorithm::StrictWindow { .. } | Algorithm::SlidingLog => limit,
        _ => 2 * limit,
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

fn algorithms() -> impl Strategy<Value = Algorithm> {
    prop_oneof![
        Just(Algorithm::SlidingWindow),
        Just(Algorithm::FixedWindow),
        Just(Algorithm::CalendarDay),
        Just(Algorithm::CalendarMonth),
        (1..=12u32).prop_map(|burst| Algorithm::TokenBucket { burst }),
        select(vec![1, 2, 10, 60]).prop_map(|slots| Algorithm::StrictWindow { slots }),
        Just(Algorithm::SlidingLog),
    ]
}

fn periods() -> impl Strategy<Value = Duration> {
    select(vec![
        Duration::from_millis(1),
        Duration::from_micros(7_919),
        Duration::from_secs(1),
        Duration::from_secs(60),
        Duration::from_secs(86_400),
        Duration::from_secs(366 * 86_400),
    ])
}

fn quotas() -> impl Strategy<Value = Quota> {
    (algorithms(), select(vec![1u32, 2, 3, 7, 10]), periods())
        .prop_map(|(algorithm, limit, period)| Quota::try_new(algorithm, limit, period).unwrap())
}

/// How time goes on: by a share of the period, or to just before or just at a moment that the last
/// verdict named.
#[derive(Debug, Clone, Copy)]
enum Wait {
    Permille(u64),
    Micros(u64),
    Retry(u64),
    Replenish(u64),
    Reset(u64),
}

impl Wait {
    fn micros(self, period: u64, verdict: &Verdict) -> u64 {
        let to = |wait: Duration, early| micros(wait).saturating_sub(early);
        match self {
            Self::Permille(share) => period / 1_000 * share,
            Self::Micros(wait) => wait,
            Self::Retry(early) => to(verdict.retry_after.unwrap_or_default(), early),
            Self::Replenish(early) => to(verdict.replenish_after, early),
            Self::Reset(early) => to(verdict.reset_after, early),
        }
    }
}

fn waits() -> impl Strategy<Value = Wait> {
    prop_oneof![
        2 => Just(Wait::Micros(0)),
        1 => (1..3u64).prop_map(Wait::Micros),
        3 => (0..1_100u64).prop_map(Wait::Permille),
        1 => select(vec![999u64, 1_000, 2_000, 2_001]).prop_map(Wait::Permille),
        2 => (0..2u64).prop_map(Wait::Retry),
        2 => (0..2u64).prop_map(Wait::Replenish),
        1 => (0..2u64).prop_map(Wait::Reset),
    ]
}

#[derive(Debug, Clone, Copy)]
enum Do {
    Take(u32),
    Greedy,
    Refund(usize, u32),
}

fn deeds() -> impl Strategy<Value = Do> {
    prop_oneof![
        3 => (1..5u32).prop_map(Do::Take),
        2 => Just(Do::Greedy),
        2 => (any::<usize>(), 1..5u32).prop_map(|(which, units)| Do::Refund(which, units)),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Admission {
    at: u64,
    kept: u32,
    receipt: Receipt,
}

/// Plays a schedule and checks, at every admission, what was kept of the last period.
fn play(quota: Quota, schedule: &[(Wait, Do)]) -> (Kept, u64) {
    let (mut counter, mut now) = (Kept::new(quota), START);
    let period = micros(quota.period());
    let mut log: Vec<Admission> = Vec::new();
    let mut verdict = counter.look(now);
    for (wait, what) in schedule {
        now += wait.micros(period, &verdict);
        if let Do::Refund(which, units) = what {
            if !log.is_empty() {
                let which = which % log.len();
                let admission = &mut log[which];
                let units = (*units).min(admission.kept);
                admission.kept -= units;
                let free = counter.look(now).remaining;
                let refund = Spend::Refund { units, receipt: admission.receipt };
                verdict = counter.spend(now, refund);
                assert!(verdict.remaining <= free + units, "more came back than went");
                assert!(verdict.remaining <= quota.capacity());
            }
            continue;
        }
        let units = match what {
            Do::Take(units) => *units,
            _ => counter.look(now).remaining.max(1),
        };
        verdict = counter.spend(now, Spend::Take(units));
        if let Some(receipt) = verdict.receipt {
            log.push(Admission { at: now, kept: units, receipt });
        }
        log.retain(|admission| admission.at + 3 * period > now);
        let window = log.iter().filter(|admission| admission.at + period > now);
        let sum: u64 = window.map(|admission| u64::from(admission.kept)).sum();
        assert!(sum <= bound(&quota), "{sum} within {:?} of {quota:?}", quota.period());
    }
    (counter, now)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_window_keeps_more_than_the_bound_whatever_is_taken_and_refunded(
        quota in quotas(),
        schedule in vec((waits(), deeds()), 1..120),
    ) {
        play(quota, &schedule);
    }

    #[test]
    fn what_a_verdict_says_of_the_future_is_true_to_the_microsecond(
        quota in quotas(),
        schedule in vec((waits(), deeds()), 0..40),
        later in 0..2_000u64,
        units in 1..14u32,
    ) {
        let (counter, now) = play(quota, &schedule);
        check_promises(&counter, now + micros(quota.period()) * later / 1_000, units)?;
    }

    #[test]
    fn a_refund_at_once_leaves_the_same_free(
        quota in quotas(),
        schedule in vec((waits(), deeds()), 0..40),
        units in 1..14u32,
    ) {
        let (mut counter, now) = play(quota, &schedule);
        let free = counter.look(now).remaining;
        for spend in [Spend::Take(units.min(free)), Spend::Force(units)] {
            if let Some(receipt) = counter.spend(now, spend).receipt {
                let refund = Spend::Refund { units: u32::MAX, receipt };
                prop_assert_eq!(counter.spend(now, refund).remaining, free);
            }
        }
    }

    #[test]
    fn a_receipt_from_before_a_reset_or_an_expiry_returns_nothing(
        quota in quotas(),
        units in 1..10u32,
        expires in any::<bool>(),
    ) {
        let mut counter = Kept::new(quota);
        let mut now = START;
        let Some(receipt) = counter.spend(now, Spend::Take(units)).receipt else { return Ok(()) };
        if expires {
            now = counter.until + 1;
        } else {
            counter.spend(now, Spend::Reset);
        }
        counter.spend(now, Spend::Force(quota.capacity()));
        let before = counter.look(now).remaining;
        let after = counter.spend(now, Spend::Refund { units, receipt }).remaining;
        prop_assert_eq!(before, after);
    }

    #[test]
    fn a_refund_to_a_bucket_frees_no_more_than_if_nothing_had_been_taken(
        burst in 1..12u32,
        before in vec((waits(), 1..6u32), 0..12),
        units in 1..12u32,
        after in vec((waits(), 1..14u32, 1..6u32), 0..12),
    ) {
        // Limits that change, clocks that step back and forced units included.
        let quota = |limit| Quota::token_bucket(limit, Duration::from_secs(1), burst);
        let (mut with, mut now) = (Kept::new(quota(3)), START);
        for (wait, units) in before {
            now += wait.micros(1_000_000, &with.look(now));
            with.spend(now, Spend::Take(units));
        }
        let mut without = with.clone();
        let verdict = with.spend(now, Spend::Take(units));
        let Some(receipt) = verdict.receipt else { return Ok(()) };
        // Time drains at the limit of the next step, so both must have been brought up to now.
        let step = without.quota.step(without.state.as_ref(), now, Spend::Take(0));
        (without.until, without.state) = (with.until, Some(step.state));
        for (i, (wait, units, limit)) in after.into_iter().enumerate() {
            now += wait.micros(1_000_000, &with.look(now));
            if i % 4 == 3 {
                now -= 700_000;
            }
            (with.quota, without.quota) = (quota(limit), quota(limit));
            let (spend, taken) = if i % 3 == 2 {
                (Spend::Force(units), true)
            } else {
                (Spend::Take(units), with.look(now).remaining >= units)
            };
            if taken {
                with.spend(now, spend);
                without.spend(now, spend);
            }
        }
        let refunded = with.spend(now, Spend::Refund { units, receipt });
        prop_assert!(refunded.remaining <= without.look(now).remaining);
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out(
        quota in quotas(),
        schedule in vec((waits(), deeds()), 1..40),
        back in prop_oneof![0..1_000_000u64, 0..400 * DAY],
        units in 1..3u32,
    ) {
        let (mut counter, now) = play(quota, &schedule);
        let now = now - back;
        // The worst case: what is kept is kept for good.
        counter.until = u64::MAX;
        let verdict = counter.spend(now, Spend::Take(units.min(quota.capacity())));
        prop_assert!(micros(verdict.reset_after) <= longest(&quota));
        prop_assert!(verdict.retry_after.is_some_and(|wait| micros(wait) <= longest(&quota)));
    }

    #[test]
    fn another_limit_keeps_the_usage_and_locks_nobody_out(
        algorithm in algorithms(),
        limits in (1..20u32, 1..20u32),
        period in periods(),
        schedule in vec((waits(), deeds()), 1..40),
    ) {
        let quota = |limit| Quota::try_new(algorithm, limit, period).unwrap();
        let (mut counter, now) = play(quota(limits.0), &schedule);
        let used = limits.0.saturating_sub(counter.look(now).remaining);
        counter.quota = quota(limits.1);
        // A bucket with a lower limit refills more slowly than its state was to be kept for.
        counter.until = u64::MAX;
        let verdict = counter.look(now);
        if !matches!(algorithm, Algorithm::TokenBucket { .. }) {
            prop_assert!(verdict.remaining <= limits.1.saturating_sub(used.saturating_sub(1)));
        }
        prop_assert!(micros(verdict.reset_after) <= longest(&counter.quota));
        check_promises(&counter, now, 1)?;
    }

    #[test]
    fn states_survive_their_bytes(quota in quotas(), schedule in vec((waits(), deeds()), 0..40)) {
        if let Some(state) = play(quota, &schedule).0.state {
            prop_assert_eq!(State::decode(&state.encode()), Some(state));
        }
    }

    #[test]
    fn any_bytes_and_any_time_are_borne(
        algorithm in any_algorithm(),
        limit in select(vec![1u32, 2, 999, 1_000, u32::MAX - 1, u32::MAX]),
        period in periods(),
        letter in select(b"sfbwlx".to_vec()),
        words in vec(prop_oneof![
            any::<u64>(),
            (0..1u64 << 53),
            select(vec![0, 1, START, (1 << 53) - 1, 1 << 52, u64::MAX]),
        ], 0..12),
        cut in 0..8usize,
        now in prop_oneof![0..1u64 << 53, select(vec![0, START, (1 << 53) - 1])],
        units in any::<u32>(),
        later in prop_oneof![0..1u64 << 53, Just(0)],
    ) {
        let mut bytes = vec![letter];
        bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        let state = State::decode(&bytes);
        let Ok(quota) = Quota::try_new(algorithm, limit, period) else { return Ok(()) };
        let taken = quota.step(state.as_ref(), now, Spend::Force(units));
        for spend in [Spend::Peek, Spend::Take(units), Spend::Reset, Spend::Force(u32::MAX)] {
            let step = quota.step(state.as_ref(), now, spend);
            prop_assert!(step.verdict.remaining <= quota.capacity());
            let again = quota.step(Some(&step.state), later, spend);
            quota.judge(Some(&again.state), now, spend);
            if let Some(receipt) = taken.verdict.receipt {
                quota.step(Some(&again.state), now, Spend::Refund { units, receipt });
                quota.step(Some(&taken.state), later, Spend::Refund { units, receipt });
            }
        }
    }
}

fn any_algorithm() -> impl Strategy<Value = Algorithm> {
    let bursts = select(vec![1, 2, 1_000, u32::MAX - 1, u32::MAX]);
    prop_oneof![algorithms(), bursts.prop_map(|burst| Algorithm::TokenBucket { burst })]
}

/// The longest that anybody can be locked out.
fn longest(quota: &Quota) -> u64 {
    let period = micros(quota.period());
    let slack = period / 500 + 1_000; // widths and periods are rounded up to whole ticks
    slack
        + match quota.algorithm() {
            Algorithm::SlidingWindow | Algorithm::StrictWindow { slots: 1 } => 2 * period,
            Algorithm::StrictWindow { slots } => period + period / u64::from(slots),
            Algorithm::TokenBucket { burst } => {
                period.div_ceil(u64::from(quota.limit())) * u64::from(burst)
            }
            _ => period,
        }
}

fn check_promises(counter: &Kept, now: u64, units: u32) -> Result<(), TestCaseError> {
    let quota = counter.quota;
    let verdict = counter.clone().spend(now, Spend::Take(units));
    let allowed = |at: u64| counter.clone().spend(at, Spend::Take(units)).allowed;
    match verdict.retry_after.map(micros) {
        None => prop_assert!(units > quota.capacity()),
        Some(0) => prop_assert!(verdict.allowed),
        Some(wait) => {
            prop_assert!(units <= quota.capacity());
            prop_assert!(!allowed(now + wait - 1), "sooner than {wait} us");
            prop_assert!(allowed(now + wait), "not after {wait} us");
        }
    }
    let seen = counter.look(now);
    let free = |at: u64| counter.look(at).remaining;
    match micros(seen.replenish_after) {
        0 => prop_assert_eq!(seen.remaining, quota.capacity()),
        wait => {
            prop_assert_eq!(free(now + wait - 1), seen.remaining);
            prop_assert!(free(now + wait) > seen.remaining);
        }
    }
    match micros(seen.reset_after) {
        0 => prop_assert_eq!(seen.remaining, quota.capacity()),
        wait => {
            prop_assert!(free(now + wait - 1) < quota.capacity());
            prop_assert_eq!(free(now + wait), quota.capacity());
        }
    }
    Ok(())
}

#[test]
fn four_shapes_of_traffic_stay_within_the_bound_of_each_algorithm() {
    let minute = Duration::from_secs(60);
    let period = micros(minute);
    let mut seed = 7u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let edge: Vec<_> = std::iter::once(0)
        .chain((0..100).map(|i| period - 200 + i))
        .chain((0..20_000).map(|i| period + i * 6_000))
        .collect();
    let flood: Vec<_> = (0..15_000).map(|i| i * period / 3_000).collect();
    let mut at = 0.0;
    let poisson: Vec<_> = (0..3_000)
        .map(|_| {
            at -= period as f64 / 100.0 * ((random() >> 11) as f64 / 2f64.powi(53)).max(1e-9).ln();
            at as u64
        })
        .collect();
    let mut at = 0;
    let mut bursts = Vec::new();
    for _ in 0..60 {
        at += random() % (2 * period);
        bursts.extend(std::iter::repeat_n(at, 1 + (random() % 200) as usize));
    }
    for quota in [
        Quota::fixed_window(100, minute),
        Quota::sliding_window(100, minute),
        Quota::strict_window(100, minute),
        Quota::token_bucket(100, minute, 100),
        Quota::token_bucket(100, minute, 10),
        Quota::sliding_log(100, minute),
    ] {
        for (name, shape) in
            [("edge", &edge), ("flood", &flood), ("poisson", &poisson), ("bursts", &bursts)]
        {
            let mut counter = Kept::new(quota);
            let mut admitted = std::collections::VecDeque::new();
            let mut worst = 0;
            for time in shape {
                let now = START + time;
                if counter.spend(now, Spend::Take(1)).allowed {
                    admitted.push_back(now);
                    while admitted.front().is_some_and(|first| first + period <= now) {
                        admitted.pop_front();
                    }
                    worst = worst.max(admitted.len());
                    assert!(worst as u64 <= bound(&quota), "{quota}: {worst} under {name}");
                }
            }
            println!("{quota:>24} {name:>8}: {worst}");
            if (quota.algorithm(), name) == (Algorithm::SlidingWindow, "poisson") {
                assert!(worst <= 125, "about 1.1 times the limit under natural traffic: {worst}");
            }
        }
    }
}

#[test]
fn a_month_of_31_days_can_hold_three_times_a_monthly_limit() {
    let january_31 = 1_801_353_600_000_000; // 2027-01-31
    let mut counter = Kept::new(Quota::calendar_month(5));
    for day in [0, 1, 29] {
        assert!(counter.spend(january_31 + day * DAY, Spend::Take(5)).allowed, "day {day}");
        assert!(!counter.spend(january_31 + day * DAY, Spend::Take(1)).allowed, "day {day}");
    }
}

#[test]
fn a_million_hours_pass_without_drift() {
    let hour = Duration::from_secs(3_600);
    let rounds = if std::env::var_os("TOWER_KEEP_LONG").is_some() { 1_000_000 } else { 20_000 };
    let hours = 1_000_000 / rounds;
    for quota in [
        Quota::sliding_log(1, hour),
        Quota::fixed_window(1, hour),
        Quota::token_bucket(1, hour, 1),
        Quota::strict_window(1, hour),
        Quota::sliding_window(1, hour),
    ] {
        let (mut counter, mut now) = (Kept::new(quota), START / 3_600_000_000 * 3_600_000_000);
        for round in 0..rounds {
            assert!(counter.spend(now, Spend::Take(1)).allowed, "{quota} in round {round}");
            let wait = micros(counter.spend(now, Spend::Take(1)).retry_after.unwrap());
            let expected = match quota.algorithm() {
                Algorithm::StrictWindow { slots: 10 } => 11 * micros(hour) / 10,
                // A sub-window that holds the only unit counts until it is gone in full.
                Algorithm::SlidingWindow => 2 * micros(hour),
                _ => micros(hour),
            };
            assert_eq!(wait, expected, "{quota} in round {round}");
            now += wait + (hours - 1) * micros(hour);
        }
        assert!(now < 1 << 53);
    }
}

#[test]
fn the_largest_limits_and_the_longest_periods_are_exact() {
    for period in [Duration::from_millis(1), Duration::from_secs(366 * 86_400)] {
        for quota in [
            Quota::sliding_window(u32::MAX, period),
            Quota::fixed_window(u32::MAX, period),
            Quota::token_bucket(u32::MAX, period, u32::MAX),
            Quota::strict_window(u32::MAX, period),
        ] {
            let mut counter = Kept::new(quota);
            counter.spend(START, Spend::Take(u32::MAX - 1));
            assert_eq!(counter.look(START).remaining, 1, "{quota}");
            assert!(!counter.spend(START, Spend::Take(2)).allowed, "{quota}");
            check_promises(&counter, START, 2).unwrap();
            check_promises(&counter, START + micros(period), u32::MAX).unwrap();
        }
    }
}

#[test]
fn a_bucket_that_would_take_a_century_to_refill_is_refused() {
    let year = Duration::from_secs(366 * 86_400);
    let bucket = |burst| Quota::try_new(Algorithm::TokenBucket { burst }, 1, year);
    assert!(bucket(100).is_ok());
    assert_eq!(bucket(101), Err(QuotaError::RefillTooLong(101)));
    assert_eq!(bucket(u32::MAX), Err(QuotaError::RefillTooLong(u32::MAX)));
}

#[test]
fn a_forced_take_beyond_a_buckets_burst_returns_only_what_it_took() {
    let mut counter = Kept::new(Quota::token_bucket(10, Duration::from_secs(1), 10));
    counter.spend(START, Spend::Take(9));
    let receipt = counter.spend(START, Spend::Force(100)).receipt.unwrap();
    assert_eq!(receipt.units(), 1);
    let refund = Spend::Refund { units: 100, receipt };
    assert_eq!(counter.spend(START, refund).remaining, 1);
}
