//! What an operator reads of a limit whose storage is out of reach.
//!
//! A binary of its own: `tracing` remembers per process who wants an event.
#![cfg(feature = "tracing")]

#[allow(dead_code)]
#[path = "rate_limit/remote.rs"]
mod remote;

#[path = "support/log.rs"]
mod log;

use std::time::Duration;

use log::Log;
use remote::Remote;
use tower_keep::{Limiter, Quota, rate_limit::Policy};

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
