//! Refunds: back to where it came from, or nowhere.

use super::{
    Harness,
    stage::{RACERS, Stage, counter, named, quotas, race},
};
use crate::{
    Quota, Storage,
    storage::{Charge, Receipt, Spend, Verdict},
};

fn receipt(verdict: Verdict) -> Receipt {
    assert!(verdict.allowed);
    verdict.receipt.expect("a take has a receipt")
}

/// A refund gives back exactly what it says, in whole or in part, and is always allowed.
pub async fn a_refund_restores_exactly<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(10, stage.long()) {
        let name = named(&quota);
        stage.spend(&key, quota, Spend::Take(2)).await;
        let receipt = receipt(stage.spend(&key, quota, Spend::Take(5)).await);
        for (units, left) in [(0, 3), (1, 4), (4, 8)] {
            let verdict = stage.spend(&key, quota, Spend::Refund { units, receipt }).await;
            assert!(verdict.allowed && verdict.receipt.is_none(), "{name}");
            assert_eq!(verdict.remaining, left, "{name}");
            assert_eq!(stage.remaining(&key, quota).await, left, "{name}");
        }
    }
}

/// While many callers give two quotas back at once, each receipt returns its units once.
pub async fn racing_refunds_of_two_quotas_return_once<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (one, two) = (counter("one"), counter("two"));
    let quota = Quota::fixed_window(1_000, stage.long());
    let both = |spends: [Spend; 2]| {
        let (storage, one, two) = (stage.storage.clone(), one.clone(), two.clone());
        async move {
            let [first, second] = spends;
            let charges = [Charge::new(&one, quota, first), Charge::new(&two, quota, second)];
            storage.acquire(&charges).await.expect("an acquire works")
        }
    };
    both([Spend::Take(500); 2]).await;
    let mut refunds = Vec::new();
    for _ in 0..RACERS {
        let verdicts = both([Spend::Take(3); 2]).await;
        let refund = |verdict| Spend::Refund { units: 2, receipt: receipt(verdict) };
        refunds.push(both([refund(verdicts[0]), refund(verdicts[1])]));
    }
    race(refunds).await;
    let left = 500 - RACERS as u32;
    assert_eq!(stage.remaining(&one, quota).await, left);
    assert_eq!(stage.remaining(&two, quota).await, left);
}

/// A refund gives back no more than its receipt was for.
pub async fn a_refund_returns_at_most_what_was_taken<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(10, stage.long()) {
        stage.spend(&key, quota, Spend::Take(5)).await;
        let receipt = receipt(stage.spend(&key, quota, Spend::Take(2)).await);
        let refund = Spend::Refund { units: u32::MAX, receipt };
        let verdict = stage.spend(&key, quota, refund).await;
        assert_eq!(verdict.remaining, 5, "{}", named(&quota));
    }
}

/// However often it is repeated, a refund of one receipt gives back at most what is still there,
/// and a counter never has more than its limit.
pub async fn a_repeated_refund_never_overfills<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(10, stage.long()) {
        let name = named(&quota);
        let first = receipt(stage.spend(&key, quota, Spend::Take(3)).await);
        stage.spend(&key, quota, Spend::Take(1)).await;
        let mut least = 9;
        for _ in 0..3 {
            let refund = Spend::Refund { units: 3, receipt: first };
            let left = stage.spend(&key, quota, refund).await.remaining;
            assert!((least..=10).contains(&left), "{name}: {left} left");
            least = left;
        }
        let left = stage.remaining(&key, quota).await;
        assert!(stage.spend(&key, quota, Spend::Take(left)).await.allowed, "{name}");
        assert!(!stage.spend(&key, quota, Spend::Take(1)).await.allowed, "{name}");
    }
}

/// A refund of what a forced take went beyond the limit leaves no less than before.
pub async fn a_refund_of_a_force_leaves_no_debt<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(4, stage.long()) {
        let receipt = receipt(stage.spend(&key, quota, Spend::Force(9)).await);
        let verdict = stage.spend(&key, quota, Spend::Refund { units: 9, receipt }).await;
        assert_eq!(verdict.remaining, 4, "{}", named(&quota));
    }
}

/// Units of a window, slot or entry that is over come back to no other.
pub async fn a_refund_never_reaches_another_window<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let quotas = quotas(4, stage.ticks(4));
    let mut receipts = Vec::new();
    for (key, quota) in &quotas {
        receipts.push(receipt(stage.spend(key, *quota, Spend::Take(3)).await));
    }
    // Two windows: until then a sliding window still counts the units.
    stage.pass(9).await;
    for ((key, quota), receipt) in quotas.iter().zip(receipts) {
        assert!(stage.spend(key, *quota, Spend::Take(4)).await.allowed, "{}", named(quota));
        let refund = Spend::Refund { units: 3, receipt };
        let verdict = stage.spend(key, *quota, refund).await;
        assert_eq!(verdict.remaining, 0, "{}", named(quota));
        assert!(!stage.spend(key, *quota, Spend::Take(1)).await.allowed, "{}", named(quota));
    }
}

/// A receipt from before a reset returns nothing, even at the same instant.
pub async fn a_refund_after_a_reset_returns_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (key, quota) in quotas(4, stage.long()) {
        let receipt = receipt(stage.spend(&key, quota, Spend::Take(3)).await);
        stage.spend(&key, quota, Spend::Reset).await;
        stage.spend(&key, quota, Spend::Take(4)).await;
        let verdict = stage.spend(&key, quota, Spend::Refund { units: 3, receipt }).await;
        assert_eq!(verdict.remaining, 0, "{}", named(&quota));
    }
}

/// A refund to a counter that was forgotten works and makes nothing of it.
pub async fn a_refund_to_a_forgotten_counter_returns_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let elsewhere = Stage::new(harness).await;
    for (key, quota) in quotas(4, stage.long()) {
        let receipt = receipt(elsewhere.spend(&key, quota, Spend::Take(3)).await);
        let verdict = stage.spend(&key, quota, Spend::Refund { units: 3, receipt }).await;
        assert!(verdict.allowed && verdict.remaining == 4, "{}", named(&quota));
        assert!(stage.spend(&key, quota, Spend::Take(4)).await.allowed, "{}", named(&quota));
        assert!(!stage.spend(&key, quota, Spend::Take(1)).await.allowed, "{}", named(&quota));
    }
}
