//! A refused identity costs the storage nothing.

use std::time::{Duration, Instant};

use http::StatusCode;
use tower_keep::{
    Limiter, Quota, RateLimitLayer, RedisStorage, Storage,
    bb8_redis::redis,
    rate_limit::{Policy, Settlement},
    storage::AnyStorage,
};

use crate::{
    admitted, limited, redis_storage, remote::Remote, request_from, send, status,
    support::RedisServer,
};

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
async fn a_client_that_obeys_a_remembered_refusal_of_a_distant_storage_is_admitted() {
    let policy = Policy::new("api", Quota::fixed_window(1, Duration::from_secs(10)))
        .with_denial_memory(Duration::from_secs(60));
    let limiter = Limiter::new(Remote::distant(Duration::from_millis(400)), policy);
    assert!(limiter.check("a").await.unwrap().is_allowed());
    assert!(!limiter.check("a").await.unwrap().is_allowed());
    let remembered = limiter.check("a").await.unwrap();
    let wait = remembered.retry_after().unwrap();
    // The window ends 10 s after the first unit came to the storage, 0.4 s of which have passed.
    assert!(wait >= Duration::from_millis(9_600), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_may_be_remembered_for_ever() {
    let remote = Remote::default();
    let limiter = Limiter::new(remote.clone(), policy().with_denial_memory(Duration::MAX));
    for _ in 0..3 {
        assert!(!limiter.check_units("a", 6).await.unwrap().is_allowed());
    }
    assert_eq!(remote.calls(), 1);
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
    let _ = limiter.check_units("a", 3).await.unwrap();
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
        let _ = refused.unwrap();
        refunded.unwrap();
        assert!(limiter.check("a").await.unwrap().is_allowed());
        limiter.reset("a").await.unwrap();
    }
}

/// How many scripts the server has run.
async fn scripts(server: &RedisServer) -> u64 {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let info: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.unwrap();
    info.lines()
        .filter(|line| line.starts_with("cmdstat_eval"))
        .filter_map(|line| line.split_once("calls=")?.1.split(',').next()?.parse::<u64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_ten_thousand_costs_redis_a_handful_of_commands() {
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "tk").await;
    let mut service = limited(&RateLimitLayer::new(storage, policy()));
    let before = scripts(&server).await;
    let start = Instant::now();
    assert_eq!(admitted(&mut service, "192.0.2.1", 10_000).await, 5);
    let seconds = start.elapsed().as_secs();
    let commands = scripts(&server).await - before;
    // Five takes and a refusal, and once a second the question whether it still holds.
    assert!(commands <= 6 + seconds + 1, "{commands} commands in {seconds} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_too_a_return_is_seen_at_once_here_and_after_a_second_elsewhere() {
    let server = RedisServer::start();
    let here = RedisStorage::builder()
        .url(server.url())
        .decision_deadline(Duration::from_secs(10))
        .build()
        .await
        .unwrap();
    // Handles made apart of one storage, as by two layers that were given clones of it.
    let mut service = limited(&RateLimitLayer::new(here.clone(), policy()));
    let limiter = Limiter::new(here, policy());
    let elsewhere = Limiter::new(redis_storage(&server.url(), "tk").await, policy());
    let address = std::net::IpAddr::from([192, 0, 2, 1]);

    assert_eq!(admitted(&mut service, "192.0.2.1", 10).await, 5);
    limiter.reset(address).await.unwrap();
    let taken = limiter.check_units(address, 2).await.unwrap();
    assert_eq!(admitted(&mut service, "192.0.2.1", 10).await, 3, "after a reset");
    limiter.refund(&taken).await.unwrap();
    assert_eq!(admitted(&mut service, "192.0.2.1", 10).await, 2, "after a refund");

    elsewhere.reset(address).await.unwrap();
    let start = Instant::now();
    while status(&mut service, "192.0.2.1").await != StatusCode::OK {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seen_after = start.elapsed();
    assert!(seen_after < Duration::from_millis(1_500), "{seen_after:?}");
}
