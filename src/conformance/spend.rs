//! What each spend does to one quota, and what the verdict says of it.

use std::time::Duration;

use super::{
    Harness,
    stage::{Stage, counter, named, quotas},
};
use crate::{
    Quota,
    storage::{Charge, Spend, Verdict},
};

/// A peek takes nothing and says whether one unit is there.
pub async fn a_peek_takes_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(2, stage.long()) {
        for left in [2, 1, 0] {
            for _ in 0..2 {
                let verdict = stage.spend(&key, quota, Spend::Peek).await;
                assert_eq!(verdict.remaining, left, "{}", named(&quota));
                assert_eq!(verdict.allowed, left > 0, "{}", named(&quota));
                assert_eq!(verdict.receipt, None);
            }
            assert_eq!(stage.spend(&key, quota, Spend::Take(1)).await.allowed, left > 0);
        }
    }
}

/// Taking zero units is always allowed and takes nothing.
pub async fn a_take_of_zero_is_always_allowed<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(2, stage.long()) {
        for left in [2, 0] {
            let verdict = stage.spend(&key, quota, Spend::Take(0)).await;
            assert!(verdict.allowed && verdict.receipt.is_none(), "{}", named(&quota));
            assert_eq!(verdict.remaining, left, "{}", named(&quota));
            stage.spend(&key, quota, Spend::Take(2)).await;
        }
    }
}

/// A take of more than there can ever be is refused for good, and takes nothing.
pub async fn a_take_above_the_limit_can_never_fit<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(3, stage.long()) {
        for units in [4, u32::MAX] {
            let verdict = stage.spend(&key, quota, Spend::Take(units)).await;
            assert!(!verdict.allowed && verdict.receipt.is_none(), "{}", named(&quota));
            assert_eq!((verdict.retry_after, verdict.remaining), (None, 3), "{}", named(&quota));
        }
        assert!(stage.spend(&key, quota, Spend::Take(3)).await.allowed, "{}", named(&quota));
    }
}

/// A forced take is allowed whatever is there, and counts against what comes.
pub async fn a_force_takes_what_is_not_there<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(3, stage.long()) {
        let verdict = stage.spend(&key, quota, Spend::Force(0)).await;
        assert!(verdict.allowed && verdict.receipt.is_none() && verdict.remaining == 3);
        for (units, left) in [(2, 1), (5, 0), (u32::MAX, 0)] {
            let verdict = stage.spend(&key, quota, Spend::Force(units)).await;
            assert!(verdict.allowed && verdict.remaining == left, "{}", named(&quota));
            // What a full counter cannot hold, its receipt does not name.
            let taken = verdict.receipt.map_or(0, |receipt| receipt.units());
            assert!(if units == 2 { taken == 2 } else { taken <= units }, "{}", named(&quota));
        }
        assert!(!stage.spend(&key, quota, Spend::Take(1)).await.allowed, "{}", named(&quota));
    }
}

/// A reset forgets all usage.
pub async fn a_reset_forgets_all_usage<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(3, stage.long()) {
        let verdict = stage.spend(&key, quota, Spend::Reset).await;
        assert!(verdict.allowed && verdict.remaining == 3, "nothing is there to reset");
        stage.spend(&key, quota, Spend::Force(7)).await;
        let verdict = stage.spend(&key, quota, Spend::Reset).await;
        assert!(verdict.allowed && verdict.receipt.is_none(), "{}", named(&quota));
        assert_eq!(verdict.remaining, 3, "{}", named(&quota));
        assert_eq!(verdict.reset_after, Duration::ZERO, "{}", named(&quota));
        assert!(stage.spend(&key, quota, Spend::Take(3)).await.allowed, "{}", named(&quota));
        assert!(!stage.spend(&key, quota, Spend::Take(1)).await.allowed, "{}", named(&quota));
    }
}

/// Another limit, lower or higher, keeps what was used.
pub async fn a_change_of_the_limit_keeps_usage<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let with = |limit| quotas(limit, stage.long());
    for (n, (key, quota)) in with(10).into_iter().enumerate() {
        assert!(stage.spend(&key, quota, Spend::Take(6)).await.allowed);
        let lower = stage.spend(&key, with(4)[n].1, Spend::Take(1)).await;
        assert!(!lower.allowed, "{}", named(&quota));
        assert_eq!((lower.limit, lower.remaining), (4, 0), "{}", named(&quota));
        let higher = stage.spend(&key, with(20)[n].1, Spend::Peek).await;
        assert_eq!((higher.limit, higher.remaining), (20, 14), "{}", named(&quota));
        assert!(stage.spend(&key, with(20)[n].1, Spend::Take(14)).await.allowed);
        assert_eq!(stage.remaining(&key, quota).await, 0, "{}", named(&quota));
    }
}

/// The fields of a verdict agree with one another and with what was asked.
pub async fn the_fields_of_a_verdict_agree<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(4, stage.long()) {
        let name = named(&quota);
        let fresh = stage.spend(&key, quota, Spend::Peek).await;
        assert_eq!((fresh.limit, fresh.remaining), (4, 4), "{name}");
        assert_eq!((fresh.reset_after, fresh.replenish_after), Default::default(), "{name}");
        for left in [3, 2, 1, 0] {
            let verdict = stage.spend(&key, quota, Spend::Take(1)).await;
            assert!(verdict.allowed && verdict.remaining == left, "{name}");
            assert_eq!(verdict.retry_after, Some(Duration::ZERO), "{name}");
            assert_eq!(verdict.receipt.expect("a take has a receipt").units(), 1, "{name}");
            assert_waits(&verdict, name);
        }
        let refused = stage.spend(&key, quota, Spend::Take(2)).await;
        assert!(!refused.allowed && refused.receipt.is_none(), "{name}");
        assert!(refused.retry_after.is_some_and(|wait| !wait.is_zero()), "{name}");
        assert!(refused.retry_after.is_some_and(|wait| wait >= refused.replenish_after), "{name}");
        assert_waits(&refused, name);
    }
}

fn assert_waits(verdict: &Verdict, name: &str) {
    assert!(!verdict.replenish_after.is_zero(), "{name}: something is used, so some comes back");
    assert!(verdict.reset_after >= verdict.replenish_after, "{name}: {verdict:?}");
}

/// The windows of a calendar quota end with the calendar's: a day within a day, a month within 31,
/// and no earlier than the day.
pub async fn a_calendar_quota_ends_with_the_calendar<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let day_long = Duration::from_secs(86_400);
    let [day, month] = [Quota::calendar_day(2), Quota::calendar_month(2)];
    let (day_key, month_key) = (counter("day"), counter("month"));
    let charges = [
        Charge::new(&month_key, month, Spend::Take(2)),
        Charge::new(&day_key, day, Spend::Take(2)),
    ];
    let (month, day) = match stage.acquire(&charges).await[..] {
        [month, day] => (month.reset_after, day.reset_after),
        _ => unreachable!("one verdict for each charge"),
    };
    assert!(!day.is_zero() && day <= day_long, "a day ends in {day:?}");
    assert!(day <= month && month <= day_long * 31, "a month ends in {month:?}");
    let whole_days = (month - day).as_micros() % day_long.as_micros();
    assert_eq!(whole_days, 0, "both end at midnight");
    for verdict in stage.acquire(&charges).await {
        assert!(!verdict.allowed);
        let wait = verdict.retry_after.expect("it fits some day");
        stage.assert_near("retry_after", wait, verdict.reset_after);
    }
}
