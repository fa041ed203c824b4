//! What happens while the storage gives no answer.

use std::time::Duration;

use http::StatusCode;
use tower_keep::{
    Limiter, Quota, RateLimitLayer,
    rate_limit::{Outage, Policy},
};

use crate::{admitted, header, limited, remote::Remote, request_from, send};

fn policy(outage: Outage) -> Policy {
    Policy::new("api", Quota::sliding_window(3, Duration::from_secs(3_600))).with_outage(outage)
}

#[tokio::test]
async fn a_local_policy_goes_on_in_the_process_and_comes_back() {
    let remote = Remote::default();
    let mut service = limited(&RateLimitLayer::new(remote.clone(), policy(Outage::Local)));
    remote.cut_off(true);
    assert_eq!(admitted(&mut service, "192.0.2.1", 9).await, 3);
    remote.cut_off(false);
    assert_eq!(admitted(&mut service, "192.0.2.1", 9).await, 3, "the storage counts by itself");
}

#[tokio::test]
async fn an_open_policy_lets_everything_pass_without_headers() {
    let remote = Remote::default();
    let mut service = limited(&RateLimitLayer::new(remote.clone(), policy(Outage::Open)));
    remote.cut_off(true);
    for _ in 0..9 {
        let response = send(&mut service, request_from("192.0.2.1")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "x-ratelimit-limit"), None);
    }
}

#[tokio::test]
async fn a_closed_policy_lets_nothing_pass_and_says_when_to_come_back() {
    let remote = Remote::default();
    let policy = policy(Outage::Closed);
    let mut service = limited(&RateLimitLayer::new(remote.clone(), policy.clone()));
    remote.cut_off(true);
    let response = send(&mut service, request_from("192.0.2.1")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(&response, "retry-after"), Some("1"));
    assert!(Limiter::new(remote.clone(), policy).check("a").await.is_err());
    remote.cut_off(false);
    assert_eq!(admitted(&mut service, "192.0.2.1", 9).await, 3);
}
