//! Charges: all or nothing, never too many.

use std::time::Duration;

use super::{
    Harness,
    stage::{RACERS, Stage, alpha, counter, key_in, named, quotas, race},
};
use crate::{
    Quota, Storage,
    storage::{Charge, ErrorKind, Identity, Key, Name, Spend},
};

/// Of many callers that take at once, as many are admitted as the quota has units: never more, and
/// never fewer.
pub async fn racing_takes_admit_exactly_the_limit<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let calendar = [Quota::calendar_day(10), Quota::calendar_month(10)]
        .map(|quota| (counter(&quota.counter_name()), quota));
    for (key, quota) in quotas(10, stage.long()).into_iter().chain(calendar) {
        let admitted = race((0..RACERS).map(|_| {
            let (storage, key) = (stage.storage.clone(), key.clone());
            async move {
                let charge = Charge::new(&key, quota, Spend::Take(1));
                storage.acquire(&[charge]).await.expect("an acquire works")[0].allowed
            }
        }))
        .await;
        let admitted = admitted.into_iter().filter(|admitted| *admitted).count();
        assert_eq!(admitted, 10, "{}", named(&quota));
        assert_eq!(stage.remaining(&key, quota).await, 0, "{}", named(&quota));
    }
}

/// While many callers charge two quotas at once, both count what was admitted and nothing else.
pub async fn racing_calls_charge_both_quotas_or_none<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (small, large) = (counter("small"), counter("large"));
    let quota = |limit| Quota::fixed_window(limit, stage.long());
    let (five, plenty) = (quota(5), quota(1_000));
    let admitted = race((0..RACERS).map(|_| {
        let (storage, small, large) = (stage.storage.clone(), small.clone(), large.clone());
        async move {
            let take = Spend::Take(1);
            let charges = [Charge::new(&large, plenty, take), Charge::new(&small, five, take)];
            let verdicts = storage.acquire(&charges).await.expect("an acquire works");
            verdicts.iter().all(|verdict| verdict.allowed)
        }
    }))
    .await;
    let admitted = admitted.into_iter().filter(|admitted| *admitted).count() as u32;
    // A backend that reserves in order may refuse one call for another that is about to be refused.
    let exact = stage.storage.capabilities().atomic_across_identities;
    assert!(admitted == 5 || (!exact && admitted < 5), "{admitted} calls were admitted");
    assert_eq!(stage.remaining(&small, five).await, 5 - admitted);
    assert_eq!(stage.remaining(&large, plenty).await, 1_000 - admitted);
}

/// A refusal by one enforced charge, first or last, leaves all others as they were.
pub async fn a_refusal_consumes_nothing_from_the_others<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for (full, full_quota) in quotas(1, stage.long()) {
        assert!(stage.spend(&full, full_quota, Spend::Take(1)).await.allowed);
        let (before, after) = (counter("before"), counter("after"));
        let free = Quota::fixed_window(10, stage.long());
        for spend in [Spend::Take(3), Spend::Force(3)] {
            let charges = [
                Charge::new(&before, free, spend),
                Charge::new(&full, full_quota, Spend::Take(1)),
                Charge::new(&after, free, spend),
            ];
            let verdicts = stage.acquire(&charges).await;
            let allowed: Vec<_> = verdicts.iter().map(|verdict| verdict.allowed).collect();
            assert_eq!(allowed, [true, false, true], "{}", named(&full_quota));
            for verdict in verdicts {
                assert_eq!(verdict.receipt, None, "nothing was taken");
                assert_eq!(verdict.remaining, if verdict.allowed { 10 } else { 0 });
            }
            assert_eq!(stage.remaining(&before, free).await, 10, "{}", named(&full_quota));
            assert_eq!(stage.remaining(&after, free).await, 10, "{}", named(&full_quota));
        }
    }
}

/// A reset or refund in a call that is refused does not happen either.
pub async fn a_refused_call_gives_nothing_back<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (used, full) = (counter("used"), counter("full"));
    let quota = Quota::fixed_window(10, stage.long());
    let receipt = stage.spend(&used, quota, Spend::Take(4)).await.receipt.expect("a take");
    stage.spend(&full, quota, Spend::Take(10)).await;
    for spend in [Spend::Reset, Spend::Refund { units: 4, receipt }] {
        let charges = [Charge::new(&used, quota, spend), Charge::new(&full, quota, Spend::Take(1))];
        assert!(!stage.acquire(&charges).await[1].allowed);
        assert_eq!(stage.remaining(&used, quota).await, 6);
    }
}

/// A charge that is not enforced vetoes nothing, and says what it would have done.
pub async fn a_shadow_charge_never_vetoes<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (shadow, real) = (counter("shadow"), counter("real"));
    let (two, ten) = (Quota::fixed_window(2, stage.long()), Quota::fixed_window(10, stage.long()));
    for n in 1..=4 {
        let verdicts = stage
            .acquire(&[
                Charge::new(&shadow, two, Spend::Take(1)).without_enforcement(),
                Charge::new(&real, ten, Spend::Take(1)),
            ])
            .await;
        assert_eq!(verdicts[0].allowed, n <= 2, "call {n}");
        assert_eq!(verdicts[0].retry_after == Some(Duration::ZERO), n <= 2, "call {n}");
        assert_eq!(verdicts[0].receipt.is_some(), n <= 2, "call {n}");
        assert!(verdicts[1].allowed && verdicts[1].receipt.is_some());
        assert_eq!(verdicts[1].remaining, 10 - n);
    }
    assert_eq!(stage.remaining(&shadow, two).await, 0);
}

/// A charge that is not enforced is counted when the call is granted and it had room itself, and
/// only then.
pub async fn a_shadow_charge_is_counted_when_granted<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (shadow, real) = (counter("shadow"), counter("real"));
    let quota = Quota::fixed_window(4, stage.long());
    let call = async |shadow_units, real_units| {
        let charges = [
            Charge::new(&shadow, quota, Spend::Take(shadow_units)).without_enforcement(),
            Charge::new(&real, quota, Spend::Take(real_units)),
        ];
        stage.acquire(&charges).await;
        (stage.remaining(&shadow, quota).await, stage.remaining(&real, quota).await)
    };
    assert_eq!(call(1, 1).await, (3, 3), "both have room");
    assert_eq!(call(4, 1).await, (3, 2), "the shadow has no room and takes nothing");
    assert_eq!(call(1, 3).await, (3, 2), "the call is refused");
}

/// One call may charge quotas of every algorithm, and has its verdicts in the order of the charges.
pub async fn verdicts_come_in_the_order_of_the_charges<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let all: Vec<_> = (1..)
        .zip(quotas(100, stage.long()))
        .map(|(units, (key, quota))| (key, quota, Spend::Take(units)))
        .collect();
    for round in 1..=2 {
        let charges: Vec<_> =
            all.iter().map(|(key, quota, spend)| Charge::new(key, *quota, *spend)).collect();
        let verdicts = stage.acquire(&charges).await;
        for (units, verdict) in (1..).zip(&verdicts) {
            assert_eq!(verdict.remaining, 100 - round * units);
            assert_eq!(verdict.receipt.expect("a take has a receipt").units(), units);
        }
    }
    assert_eq!(stage.acquire(&[]).await, [], "no charges, no verdicts");
}

/// Two charges of one call with the same key are an error, and take nothing.
pub async fn two_charges_with_one_key_are_refused<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (key, other) = (counter("a"), counter("b"));
    let quota = Quota::fixed_window(10, stage.long());
    let take = |key| Charge::new(key, quota, Spend::Take(1));
    let charges = [take(&key), take(&other), take(&key).without_enforcement()];
    let error = stage.storage.acquire(&charges).await.expect_err("one key, two charges");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(stage.remaining(&key, quota).await, 10);
    assert_eq!(stage.remaining(&other, quota).await, 10);
}

/// Counters of different namespaces, details or identities share nothing, and none is an entry that
/// an invalidation could reach.
pub async fn counters_are_separate<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let quota = Quota::sliding_window(3, stage.long());
    let named =
        |detail, identity: &[u8]| Key::new(&alpha(), &Name::new(detail), Identity::new(identity));
    let keys = [
        named("a", b"x"),
        named("b", b"x"),
        named("a", b"y"),
        named("a", b"\0\r\n\xff"),
        named("a", b""),
        key_in("beta", "x"),
    ];
    for key in &keys {
        assert!(stage.spend(key, quota, Spend::Take(2)).await.allowed, "{key:?}");
    }
    stage.end_all(&alpha()).await;
    stage.spend(&keys[0], quota, Spend::Reset).await;
    for key in &keys[1..] {
        assert_eq!(stage.remaining(key, quota).await, 1, "{key:?}");
    }
}
