//! The durations of a verdict are true: neither too short nor too long.

use std::time::Duration;

use super::{
    Harness,
    stage::{Stage, named, quotas},
};
use crate::{quota::Algorithm, storage::Spend};

/// Lets a wait pass but for the tolerance, then the rest; `check` is told whether it is over.
async fn wait<H: Harness>(stage: &Stage<'_, H>, wait: Duration, check: impl AsyncFn(bool)) {
    assert!(!wait.is_zero());
    let short = stage.harness.tolerance().max(Duration::from_micros(1));
    if wait > short {
        stage.harness.advance(wait - short).await;
        check(false).await;
    }
    stage.harness.advance(wait.min(short)).await;
    check(true).await;
}

/// A refused charge is admitted after exactly its `retry_after`, and not before.
pub async fn retry_after_is_true<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(4, stage.ticks(4)) {
        stage.spend(&key, quota, Spend::Take(4)).await;
        let refused = stage.spend(&key, quota, Spend::Take(2)).await;
        let retry_after = refused.retry_after.expect("two of four fit some day");
        wait(&stage, retry_after, async |over| {
            let allowed = stage.spend(&key, quota, Spend::Take(2)).await.allowed;
            assert_eq!(allowed, over, "{} after {retry_after:?}", named(&quota));
        })
        .await;
    }
}

/// All units are there after exactly `reset_after`, and not before.
pub async fn reset_after_is_true<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(4, stage.ticks(4)) {
        let reset_after = stage.spend(&key, quota, Spend::Take(3)).await.reset_after;
        wait(&stage, reset_after, async |over| {
            let verdict = stage.spend(&key, quota, Spend::Peek).await;
            assert_eq!(verdict.reset_after.is_zero(), over, "{}", named(&quota));
            assert!(!over || verdict.remaining == 4, "{}", named(&quota));
        })
        .await;
        assert!(stage.spend(&key, quota, Spend::Take(4)).await.allowed, "{}", named(&quota));
    }
}

/// More units than now are there after exactly `replenish_after`, and not before.
pub async fn replenish_after_is_true<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(4, stage.ticks(4)) {
        let taken = stage.spend(&key, quota, Spend::Take(3)).await;
        wait(&stage, taken.replenish_after, async |over| {
            let left = stage.remaining(&key, quota).await;
            assert_eq!(left > taken.remaining, over, "{}: {left} left", named(&quota));
        })
        .await;
    }
}

/// A quota that was used up is whole again after two periods, whatever the algorithm.
pub async fn usage_is_forgotten_after_two_periods<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let quotas = quotas(4, stage.ticks(2));
    for (key, quota) in &quotas {
        stage.spend(key, *quota, Spend::Force(4)).await;
    }
    stage.pass(5).await;
    for (key, quota) in &quotas {
        let verdict = stage.spend(key, *quota, Spend::Peek).await;
        assert_eq!(verdict.remaining, 4, "{}", named(quota));
        assert_eq!(verdict.reset_after, Duration::ZERO, "{}", named(quota));
        assert!(stage.spend(key, *quota, Spend::Take(4)).await.allowed, "{}", named(quota));
    }
}

/// While a caller takes all that is there again and again, no period admits more than the algorithm
/// promises, and units do come back.
pub async fn no_period_admits_more_than_promised<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let quotas = quotas(6, stage.ticks(4));
    let mut admitted = [const { Vec::new() }; 5];
    for _ in 0..10 {
        for ((key, quota), admitted) in quotas.iter().zip(&mut admitted) {
            let left = stage.remaining(key, *quota).await;
            let verdict = stage.spend(key, *quota, Spend::Take(left)).await;
            admitted.push(if verdict.allowed { left } else { 0 });
        }
        stage.pass(1).await;
    }
    for ((_, quota), admitted) in quotas.iter().zip(admitted) {
        let most = match quota.algorithm() {
            Algorithm::StrictWindow { .. } | Algorithm::SlidingLog => 6,
            Algorithm::SlidingWindow => 11,
            _ => 12,
        };
        // Three steps are half a period: even a slow machine does not stretch them to a whole one.
        for near in admitted.windows(3) {
            assert!(near.iter().sum::<u32>() <= most, "{}: {admitted:?}", named(quota));
        }
        assert!(admitted.iter().sum::<u32>() > 6, "{}: {admitted:?}", named(quota));
    }
}
