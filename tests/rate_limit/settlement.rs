//! Costs that are known only after the response, and requests that never get there.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::Service;
use tower_keep::{
    Limiter, MemoryStorage, Quota, RateLimitLayer, Storage,
    rate_limit::{Cost, KeyExtractor, Policy, ResponseBody, Settlement},
    storage::{AnyStorage, Identity},
};
use tower_layer::Layer;

use crate::{
    count, limited_with, on_every_storage, redis_storage, remote::Remote, request_from, send,
    support::RedisServer,
};

const HOUR: Duration = Duration::from_secs(3_600);

fn policy() -> Policy {
    Policy::new("api", Quota::sliding_window(10, HOUR)).with_key(KeyExtractor::global())
}

async fn remaining(limiter: &Limiter) -> u32 {
    limiter.peek(Identity::global()).await.unwrap().remaining().unwrap()
}

on_every_storage!(only_failures_count, what_the_handler_declares_is_settled,);

async fn only_failures_count(storage: AnyStorage) {
    let failures = |status: StatusCode| u32::from(!status.is_success());
    let layer =
        RateLimitLayer::new(storage, policy().with_settlement(Settlement::by_status(failures)));
    let mut service = limited_with(&layer, |request| {
        let status = if request.uri().path() == "/wrong" { 401 } else { 200 };
        Response::builder().status(status).body(Full::default()).unwrap()
    });
    for _ in 0..30 {
        let response = send(&mut service, request_from("192.0.2.1")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(crate::header(&response, "x-ratelimit-remaining"), Some("10"));
    }
    let wrong = || {
        let mut request = request_from("192.0.2.1");
        *request.uri_mut() = "/wrong".parse().unwrap();
        request
    };
    for left in (0..10).rev() {
        let response = send(&mut service, wrong()).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(
            crate::header(&response, "x-ratelimit-remaining"),
            Some(left.to_string().as_str())
        );
    }
    let response = send(&mut service, wrong()).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
}

async fn what_the_handler_declares_is_settled(storage: AnyStorage) {
    let policy = policy().with_cost(|_| 4).with_settlement(Settlement::declared(2));
    let layer = RateLimitLayer::new(storage, policy);
    let mut service = limited_with(&layer, |request| {
        let mut response = Response::new(Full::default());
        if let Ok(cost) = request.uri().path()[1..].parse() {
            response.extensions_mut().insert(Cost(cost));
        }
        response
    });
    for (path, left) in [("/", 8), ("/0", 8), ("/4", 4), ("/1", 3)] {
        let mut request = request_from("192.0.2.1");
        *request.uri_mut() = path.parse().unwrap();
        send(&mut service, request).await;
        assert_eq!(remaining(layer.limiter()).await, left, "after {path}");
    }
    let refused = send(&mut service, request_from("192.0.2.1")).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "the reserve does not fit");
    layer.limiter().reset(Identity::global()).await.unwrap();
    let mut request = request_from("192.0.2.1");
    *request.uri_mut() = "/25".parse().unwrap();
    send(&mut service, request).await;
    assert_eq!(remaining(layer.limiter()).await, 0, "more than there was");
}

/// A handler that takes its time.
fn slow(
    layer: &RateLimitLayer,
    yields: usize,
) -> impl Service<Request<()>, Response = Response<ResponseBody<Full<Bytes>>>, Error = Infallible> + use<>
{
    layer.layer(tower::service_fn(move |_| async move {
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        Ok(Response::new(Full::<Bytes>::default()))
    }))
}

/// Polls a request `polls` times, letting other tasks run in between, and drops it.
async fn give_up_after(polls: usize, request: impl Future) -> bool {
    let mut request = pin!(request);
    for _ in 0..polls {
        let mut cx = Context::from_waker(Waker::noop());
        if request.as_mut().poll(&mut cx).is_ready() {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

async fn drop_at_every_await_point(storage: AnyStorage, policy: Policy, keep: bool) -> Vec<u32> {
    let settlement = Settlement::declared(0);
    let settlement = if keep { settlement.keep_when_dropped() } else { settlement };
    let layer = RateLimitLayer::new(storage, policy.with_settlement(settlement));
    let mut left = Vec::new();
    for polls in 0.. {
        let finished = give_up_after(polls, slow(&layer, 3).call(request_from("192.0.2.1"))).await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        left.push(remaining(layer.limiter()).await);
        layer.limiter().reset(Identity::global()).await.unwrap();
        if finished {
            return left;
        }
        assert!(polls < 1_000);
    }
    unreachable!()
}

#[tokio::test]
async fn a_request_dropped_at_any_await_point_leaks_no_reservation() {
    let storages =
        [MemoryStorage::new().erase(), Remote::slow(3).erase(), Remote::slow_and_local(3).erase()];
    let identified = policy().with_async_key(|_| async {
        tokio::task::yield_now().await;
        Some(Identity::global())
    });
    let both = storages
        .into_iter()
        .flat_map(|storage| [(storage.clone(), policy()), (storage, identified.clone())]);
    for (storage, policy) in both {
        let left = drop_at_every_await_point(storage, policy, false).await;
        assert!(left.len() > 4, "there were several await points");
        assert!(left.iter().all(|left| *left == 10), "{left:?}");
    }
}

/// Drives a future without any runtime.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}

#[test]
fn without_a_runtime_decisions_are_made_and_settled() {
    for storage in [MemoryStorage::new().erase(), Remote::slow(3).erase()] {
        let policy = policy().with_cost(|_| 4).with_settlement(Settlement::declared(2));
        let layer = RateLimitLayer::new(storage, policy);
        let mut service = limited_with(&layer, |_| Response::new(Full::default()));
        for left in [8, 6, 4, 2] {
            let response = run(send(&mut service, request_from("192.0.2.1")));
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(run(remaining(layer.limiter())), left);
        }
        let refused = run(send(&mut service, request_from("192.0.2.1")));
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(run(layer.limiter().check(Identity::global())).unwrap().is_allowed());
        run(layer.limiter().reset(Identity::global())).unwrap();
        assert_eq!(run(remaining(layer.limiter())), 10);
    }
}

/// Drops requests at each of their polls, and after each of many times, on a real server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_a_request_dropped_at_any_time_leaks_no_reservation() {
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "tk").await;
    let settlement = Settlement::declared(0);
    let layer = RateLimitLayer::new(storage, policy().with_settlement(settlement));
    let all_is_back = async |when: &str| {
        let began = Instant::now();
        while remaining(layer.limiter()).await < 10 {
            assert!(began.elapsed() < Duration::from_secs(10), "a unit is lost: dropped {when}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    for polls in 0.. {
        let mut service = slow(&layer, 2);
        let mut request = pin!(Some(service.call(request_from("192.0.2.1"))));
        let mut polled = 0;
        let finished = poll_fn(|cx| {
            if polled == polls {
                request.set(None);
                return Poll::Ready(false);
            }
            polled += 1;
            let request = request.as_mut().as_pin_mut().expect("it is dropped at the end only");
            request.poll(cx).map(|_| true)
        });
        let finished = finished.await;
        all_is_back(&format!("at poll {polls}")).await;
        if finished {
            assert!(polls > 3, "there were several await points: {polls}");
            break;
        }
    }
    for micros in (0..3_000).step_by(count(50, 5)) {
        let mut service = slow(&layer, 1);
        let patience = Duration::from_micros(micros as u64);
        let began = Instant::now();
        let mut request = pin!(Some(service.call(request_from("192.0.2.1"))));
        poll_fn(|cx| {
            if began.elapsed() >= patience {
                request.set(None);
                return Poll::Ready(());
            }
            // The timer of the runtime is too coarse.
            cx.waker().wake_by_ref();
            request.as_mut().as_pin_mut().expect("as above").poll(cx).map(drop)
        })
        .await;
        all_is_back(&format!("after {micros} us")).await;
    }
    // Whatever was still under way has come to its end.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(remaining(layer.limiter()).await, 10);
    server.check_keys("tk");
}

#[tokio::test]
async fn a_policy_that_guards_a_secret_keeps_what_was_reserved() {
    let left = drop_at_every_await_point(MemoryStorage::new().erase(), policy(), true).await;
    assert!(left[..left.len() - 1].iter().all(|left| *left == 9), "{left:?}");
    assert_eq!(left.last(), Some(&10), "finished, and settled for nothing");
}

#[tokio::test]
async fn a_panicking_handler_gives_its_reservation_back() {
    let policy = policy().with_settlement(Settlement::declared(1));
    let layer = RateLimitLayer::new(MemoryStorage::new(), policy);
    let limiter = layer.limiter().clone();
    let panicking = tokio::spawn(async move {
        let mut service = limited_with(&layer, |_| panic!("the handler panics"));
        send(&mut service, request_from("192.0.2.1")).await.status()
    });
    assert!(panicking.await.unwrap_err().is_panic());
    assert_eq!(remaining(&limiter).await, 10);
}

#[tokio::test]
async fn concurrent_requests_cannot_overspend_what_is_settled_later() {
    let policy = policy().with_cost(|_| 3).with_settlement(Settlement::declared(3));
    let layer = RateLimitLayer::new(MemoryStorage::new(), policy);
    let passed = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let requests = (0..50).map(|_| {
        let (mut service, passed) = (slow(&layer, 5), Arc::clone(&passed));
        async move {
            let response = service.call(request_from("192.0.2.1")).await.unwrap();
            if response.status().is_success() {
                passed.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
    });
    futures_util::future::join_all(requests).await;
    assert_eq!(passed.load(std::sync::atomic::Ordering::SeqCst), 3);
}
