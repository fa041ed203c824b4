//! Quotas by tier.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{Request, StatusCode};
use tower_keep::{
    MemoryStorage, Quota, RateLimitLayer,
    rate_limit::{KeyExtractor, Policy, Tiers},
    storage::AnyStorage,
};

use crate::{limited, on_every_storage, request_from, send};

const HOUR: Duration = Duration::from_secs(3_600);

fn tiers() -> Tiers {
    Tiers::new()
        .tier("free", [Quota::sliding_window(3, HOUR), Quota::sliding_window(10, 24 * HOUR)])
        .tier("pro", [Quota::sliding_window(6, HOUR)])
        .unlimited("internal")
}

fn base() -> Policy {
    Policy::new("api", Quota::sliding_window(1, HOUR)).with_key(KeyExtractor::global())
}

on_every_storage!(changing_the_tier_keeps_usage_both_ways_and_locks_nobody_out);

async fn changing_the_tier_keeps_usage_both_ways_and_locks_nobody_out(storage: AnyStorage) {
    let tier = Arc::new(ArcSwap::from_pointee("free"));
    let current = Arc::clone(&tier);
    let policy = base().with_tiers(tiers(), move |_| Some(**current.load()));
    let mut service = limited(&RateLimitLayer::new(storage, policy));
    let mut run = async |name: &'static str| {
        tier.store(Arc::new(name));
        let mut passed = 0;
        for _ in 0..20 {
            passed +=
                usize::from(send(&mut service, Request::new(())).await.status() == StatusCode::OK);
        }
        passed
    };
    assert_eq!(run("free").await, 3);
    assert_eq!(run("pro").await, 3, "six less the three that were used");
    assert_eq!(run("free").await, 0);
    assert_eq!(run("internal").await, 20);
    assert_eq!(run("pro").await, 0, "going down and up again gives nothing");
}

#[tokio::test]
async fn whoever_has_no_tier_or_an_unknown_one_has_the_base_quotas() {
    for tier in [None, Some("gold")] {
        let policy = base().with_tiers(tiers(), move |_| tier);
        let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), policy));
        assert_eq!(send(&mut service, Request::new(())).await.status(), StatusCode::OK);
        let refused = send(&mut service, Request::new(())).await.status();
        assert_eq!(refused, StatusCode::TOO_MANY_REQUESTS);
    }
}

#[tokio::test]
async fn a_tier_can_be_looked_up_asynchronously() {
    let policy = base().with_async_tiers(tiers(), |head| {
        let path = head.uri().path().to_owned();
        async move {
            tokio::task::yield_now().await;
            path.strip_prefix('/').filter(|tier| !tier.is_empty()).map(str::to_owned)
        }
    });
    let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), policy));
    let mut request = request_from("192.0.2.1");
    *request.uri_mut() = "/pro".parse().unwrap();
    let response = send(&mut service, request).await;
    assert_eq!(crate::header(&response, "x-ratelimit-limit"), Some("6"));
    let response = send(&mut service, request_from("192.0.2.1")).await;
    assert_eq!(crate::header(&response, "x-ratelimit-limit"), Some("1"));
}
