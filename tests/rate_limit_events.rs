//! What an operator reads of a limit whose storage is out of reach.
//!
//! A binary of its own: `tracing` remembers per process who wants an event.
#![cfg(feature = "tracing")]

#[allow(dead_code)]
#[path = "rate_limit/remote.rs"]
mod remote;

#[path = "support/log.rs"]
mod log;

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use log::Log;
use remote::Remote;
use tower::{ServiceBuilder, ServiceExt};
use tower_keep::{
    Limiter, Quota, RateLimitLayer,
    marks::ReplayMark,
    rate_limit::{KeyExtractor, Policy},
    storage::Identity,
};

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once_a_second_however_many_requests_there_are() {
    let log = Log::start();

    let remote = Remote::default();
    let policy = Policy::new("logins", Quota::fixed_window(5, Duration::from_secs(60)));
    let limiter = Limiter::new(remote.clone(), policy);
    remote.cut_off(true);
    for seconds in 1..=2 {
        for _ in 0..1_000 {
            assert!(limiter.check("alice@example.com").await.unwrap().is_degraded());
        }
        let text = log.text();
        assert_eq!(text.matches("the storage gave no answer").count(), seconds, "{text}");
        assert!(text.contains("logins") && text.contains("cut off"), "{text}");
        assert!(!text.contains("alice"), "{text}");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn units_of_a_replay_that_cannot_be_given_back_are_told() {
    let (log, _guard) = Log::of_this_thread();

    let remote = Remote::default();
    let policy = Policy::new("orders", Quota::fixed_window(5, Duration::from_secs(60)))
        .with_key(KeyExtractor::header("x-user"));
    let layer = RateLimitLayer::new(remote.clone(), policy);
    let limiter = layer.limiter().clone();
    let service = ServiceBuilder::new().layer(layer).service_fn(move |_: Request<()>| {
        remote.cut_off(true);
        let mut response = Response::new(Full::<Bytes>::default());
        response.extensions_mut().insert(ReplayMark);
        async { Ok::<_, Infallible>(response) }
    });
    let request = Request::builder().header("x-user", "alice@example.com").body(()).unwrap();
    assert!(service.oneshot(request).await.unwrap().status().is_success());
    assert!(limiter.peek(Identity::global()).await.unwrap().is_degraded());
    let text = log.text();
    assert_eq!(text.matches("a cost was not settled").count(), 1, "{text}");
    assert!(text.contains("orders") && text.contains("cut off"), "{text}");
    assert!(!text.contains("alice"), "{text}");
}
