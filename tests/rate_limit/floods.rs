//! A refused identity costs the storage nothing.

use std::time::Duration;

use http::StatusCode;
use tower_keep::{
    Limiter, Quota, RateLimitLayer, Storage,
    rate_limit::{Policy, Settlement},
    storage::AnyStorage,
};

use crate::{admitted, limited, remote::Remote, request_from, send, status};

const HOUR: Duration = Duration::from_secs(3_600);

fn policy() -> Policy {
    Policy::new("api", Quota::sliding_window(5, HOUR))
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_answered_without_the_storage() {
    let remote = Remote::default();
    let mut service = limited(&RateLimitLayer::new(remote.clone(), policy()));
    assert_eq!(admitted(&mut service, "192.0.2.1", 10_000).await, 5);
    assert_eq!(remote.calls(), 6, "five takes and the first refusal");
    assert_eq!(status(&mut service, "192.0.2.2").await, StatusCode::OK, "others are not affected");
}

#[tokio::test(start_paused = true)]
async fn a_remembered_refusal_counts_its_times_down() {
    let mut service = limited(&RateLimitLayer::new(
        Remote::default(),
        policy().with_denial_memory(Duration::from_secs(60)),
    ));
    admitted(&mut service, "192.0.2.1", 6).await;
    let wait = |seconds: &str| seconds.parse::<u64>().unwrap();
    let first = send(&mut service, request_from("192.0.2.1")).await;
    tokio::time::advance(Duration::from_secs(10)).await;
    let second = send(&mut service, request_from("192.0.2.1")).await;
    let after =
        |response: &http::Response<_>| wait(crate::header(response, "retry-after").unwrap());
    assert_eq!(after(&first), after(&second) + 10);
}

#[tokio::test(start_paused = true)]
async fn what_is_returned_elsewhere_is_seen_after_a_second() {
    let remote = Remote::default();
    let mut service = limited(&RateLimitLayer::new(remote.clone(), policy()));
    assert_eq!(admitted(&mut service, "192.0.2.1", 10).await, 5);
    let elsewhere = Limiter::new(remote.clone(), policy());
    elsewhere.reset(std::net::IpAddr::from([192, 0, 2, 1])).await.unwrap();
    assert_eq!(status(&mut service, "192.0.2.1").await, StatusCode::TOO_MANY_REQUESTS);
    tokio::time::advance(Duration::from_millis(1_001)).await;
    assert_eq!(status(&mut service, "192.0.2.1").await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn what_is_returned_or_raised_in_the_process_is_seen_at_once() {
    // Two layers and a limiter built apart, on clones of one handle.
    let storage: AnyStorage = Remote::default().erase();
    let layer = RateLimitLayer::new(storage.clone(), policy());
    let limiter = Limiter::new(storage, policy());
    let mut service = limited(&layer);
    let address = std::net::IpAddr::from([192, 0, 2, 1]);

    let last = limiter.check_units(address, 2).await.unwrap();
    assert_eq!(admitted(&mut service, "192.0.2.1", 10).await, 3);
    limiter.refund(&last).await.unwrap();
    assert_eq!(admitted(&mut service, "192.0.2.1", 10).await, 2, "after a refund");
    limiter.reset(address).await.unwrap();
    assert_eq!(admitted(&mut service, "192.0.2.1", 10).await, 5, "after a reset");
    layer.limiter().replace_policy(Policy::new("api", Quota::sliding_window(7, HOUR))).unwrap();
    assert_eq!(admitted(&mut service, "192.0.2.1", 10).await, 2, "after a raise");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_answers_for_its_own_cost_only() {
    let remote = Remote::default();
    let limiter = Limiter::new(remote.clone(), policy());
    limiter.check_units("a", 3).await.unwrap();
    let first = limiter.check_units("a", 4).await.unwrap();
    let calls = remote.calls();
    assert!(!limiter.check_units("a", 4).await.unwrap().is_allowed());
    assert_eq!(remote.calls(), calls);
    let more = limiter.check_units("a", 5).await.unwrap();
    assert!(!more.is_allowed() && more.retry_after() > first.retry_after());
    let never = limiter.check_units("a", 9).await.unwrap();
    assert!(!never.is_allowed() && never.retry_after().is_none(), "more than the quota");
    assert!(limiter.check_units("a", 2).await.unwrap().is_allowed());
}

#[tokio::test(start_paused = true)]
async fn a_settled_policy_asks_every_time() {
    let remote = Remote::default();
    let policy = policy().with_settlement(Settlement::declared(1));
    let mut service = limited(&RateLimitLayer::new(remote.clone(), policy));
    admitted(&mut service, "192.0.2.1", 20).await;
    assert_eq!(remote.calls(), 20);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_under_way_during_a_refund_is_not_remembered() {
    let storage: AnyStorage = Remote::slow(3).erase();
    let limiter = Limiter::new(storage, policy());
    for _ in 0..50 {
        let taken = limiter.check_units("a", 5).await.unwrap();
        let (refused, refunded) = tokio::join!(limiter.check("a"), limiter.refund(&taken));
        refused.unwrap();
        refunded.unwrap();
        assert!(limiter.check("a").await.unwrap().is_allowed());
        limiter.reset("a").await.unwrap();
    }
}
