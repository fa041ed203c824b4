//! Decisions outside of requests.

use std::time::{Duration, Instant};

use tower_keep::{Limiter, Quota, rate_limit::Policy, storage::AnyStorage};

use crate::on_every_storage;

const HOUR: Duration = Duration::from_secs(3_600);

on_every_storage!(
    peeking_takes_nothing_and_resetting_forgets,
    a_refund_returns_what_was_taken,
    waiting_ends_as_soon_as_there_is_room_and_not_in_vain,
    a_client_that_obeys_retry_after_is_admitted,
    changed_limits_keep_what_was_used,
);

async fn peeking_takes_nothing_and_resetting_forgets(storage: AnyStorage) {
    let limiter = Limiter::new(storage, Policy::new("jobs", Quota::sliding_log(2, HOUR)));
    for _ in 0..5 {
        assert_eq!(limiter.peek("a").await.unwrap().remaining(), Some(2));
    }
    let _ = limiter.check_units("a", 2).await.unwrap();
    assert!(!limiter.peek("a").await.unwrap().is_allowed());
    limiter.reset("a").await.unwrap();
    assert_eq!(limiter.peek("a").await.unwrap().remaining(), Some(2));
}

async fn a_refund_returns_what_was_taken(storage: AnyStorage) {
    let quotas = [
        Quota::sliding_window(5, HOUR),
        Quota::fixed_window(5, HOUR),
        Quota::calendar_day(5),
        Quota::calendar_month(5),
        Quota::token_bucket(5, HOUR, 5),
        Quota::strict_window(5, HOUR),
        Quota::sliding_log(5, HOUR),
    ];
    let limiter = Limiter::new(storage, Policy::try_new("jobs", quotas).unwrap());
    let three = limiter.check_units("a", 3).await.unwrap();
    assert_eq!(three.remaining(), Some(2));
    let two = limiter.check_units("a", 2).await.unwrap();
    limiter.refund(&three).await.unwrap();
    assert_eq!(limiter.peek("a").await.unwrap().remaining(), Some(3));
    limiter.refund(&two).await.unwrap();
    let after = limiter.peek("a").await.unwrap();
    assert!(after.quotas().all(|quota| quota.verdict.remaining == 5), "{after:?}");
}

async fn waiting_ends_as_soon_as_there_is_room_and_not_in_vain(storage: AnyStorage) {
    let quota = Quota::token_bucket(10, Duration::from_secs(1), 1);
    let limiter = Limiter::new(storage, Policy::new("jobs", quota));
    let start = Instant::now();
    for _ in 0..4 {
        assert!(limiter.wait("a", Duration::from_secs(5)).await.unwrap().is_allowed());
    }
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(290), "{waited:?}");
    let start = Instant::now();
    assert!(!limiter.wait("a", Duration::from_millis(20)).await.unwrap().is_allowed());
    assert!(start.elapsed() < Duration::from_millis(90), "it does not wait in vain");
}

async fn a_client_that_obeys_retry_after_is_admitted(storage: AnyStorage) {
    let second = Duration::from_millis(500);
    let quotas = [
        Quota::sliding_window(3, second),
        Quota::fixed_window(3, second),
        Quota::token_bucket(3, second, 3),
        Quota::strict_window(3, second),
        Quota::sliding_log(3, second),
    ];
    for (n, quota) in quotas.into_iter().enumerate() {
        let limiter = Limiter::new(storage.clone(), Policy::new(&format!("p{n}"), quota));
        for _ in 0..2 {
            while limiter.check("a").await.unwrap().is_allowed() {}
            let wait = limiter.check("a").await.unwrap().retry_after().unwrap();
            tokio::time::sleep(wait).await;
            assert!(limiter.check("a").await.unwrap().is_allowed(), "{quota} after {wait:?}");
        }
    }
}

async fn changed_limits_keep_what_was_used(storage: AnyStorage) {
    for make in [
        |limit| Quota::sliding_window(limit, HOUR),
        |limit| Quota::fixed_window(limit, HOUR),
        |limit| Quota::strict_window(limit, HOUR),
        |limit| Quota::sliding_log(limit, HOUR),
        |limit| Quota::token_bucket(limit, HOUR, limit),
    ] {
        let limiter = Limiter::new(storage.clone(), Policy::new("jobs", make(10)));
        let _ = limiter.check_units("a", 6).await.unwrap();
        for (limit, remaining) in [(100, 94), (7, 1), (3, 0), (10, 4)] {
            limiter.replace_policy(Policy::new("jobs", make(limit))).unwrap();
            let left = limiter.peek("a").await.unwrap().remaining().unwrap();
            assert_eq!(left, remaining, "{} to {limit}", make(10));
        }
        limiter.reset("a").await.unwrap();
    }
}
