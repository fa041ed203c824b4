//! Answers that only repeat a stored one.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_keep::{
    Limiter, MemoryStorage, Quota, RateLimitLayer, Storage,
    marks::ReplayMark,
    rate_limit::{Cost, Decision, Enforcement, KeyExtractor, Outage, Policy, Settlement, Tiers},
    storage::{AnyStorage, Identity},
};
use tower_layer::Layer;

use crate::{
    Limited, count, header, limited_with, on_every_storage, redis_storage,
    remote::Remote,
    send,
    support::{RedisServer, monitor::Monitor},
};

const HOUR: Duration = Duration::from_secs(3_600);

fn policy(limit: u32) -> Policy {
    Policy::new("api", Quota::sliding_window(limit, HOUR)).with_key(KeyExtractor::global())
}

fn to(path: &str) -> Request<()> {
    Request::builder().uri(path).body(()).unwrap()
}

/// What an idempotency layer answers: `/replay` repeats a stored answer, `/twin` is turned away as
/// the first request still runs, and everything else is the first.
fn answer(request: &Request<()>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from("paid"));
    response.extensions_mut().insert(Cost(2));
    match request.uri().path() {
        "/replay" => drop(response.extensions_mut().insert(ReplayMark)),
        "/twin" => *response.status_mut() = StatusCode::CONFLICT,
        _ => {}
    }
    response
}

fn shop(layer: &RateLimitLayer) -> Limited {
    limited_with(layer, |request| answer(&request))
}

/// The status, and what the client reads to be left.
async fn call(service: &mut Limited, path: &str) -> (u16, Option<u32>) {
    let response = send(service, to(path)).await;
    let left = header(&response, "x-ratelimit-remaining").map(|left| left.parse().unwrap());
    (response.status().as_u16(), left)
}

/// What is left of each quota.
async fn left(limiter: &Limiter) -> Vec<u32> {
    let peek = limiter.peek(Identity::global()).await.unwrap();
    peek.quotas().map(|quota| quota.verdict.remaining).collect()
}

on_every_storage!(
    replays_cost_nothing_and_first_calls_count,
    a_policy_can_count_replays,
    every_quota_gets_its_units_back,
    a_settlement_has_no_say_in_a_replay,
    two_limits_around_one_service_both_give_back,
    in_shadow_replays_cost_nothing_either,
);

async fn replays_cost_nothing_and_first_calls_count(storage: AnyStorage) {
    for quota in [
        Quota::sliding_window(3, HOUR),
        Quota::fixed_window(3, HOUR),
        Quota::strict_window(3, HOUR),
        Quota::sliding_log(3, HOUR),
        Quota::token_bucket(3, HOUR, 3),
    ] {
        let policy = Policy::new("api", quota).with_key(KeyExtractor::global());
        let mut service = shop(&RateLimitLayer::new(storage.clone(), policy));
        assert_eq!(call(&mut service, "/").await, (200, Some(2)), "{quota}");
        for _ in 0..20 {
            assert_eq!(call(&mut service, "/replay").await, (200, Some(2)), "{quota}");
        }
        assert_eq!(call(&mut service, "/twin").await, (409, Some(1)), "{quota}: nothing repeated");
        assert_eq!(call(&mut service, "/").await, (200, Some(0)), "{quota}");
        for _ in 0..2 {
            assert_eq!(
                call(&mut service, "/replay").await,
                (429, Some(0)),
                "{quota}: none is left"
            );
        }
    }
}

async fn a_policy_can_count_replays(storage: AnyStorage) {
    for (name, settlement) in [("plain", None), ("settled", Some(Settlement::declared(1)))] {
        let mut policy = Policy::new(name, Quota::sliding_window(6, HOUR))
            .with_key(KeyExtractor::global())
            .with_cost(|_| 2)
            .with_replays_counted();
        policy = match settlement {
            Some(settlement) => policy.with_settlement(settlement),
            None => policy,
        };
        let mut service = shop(&RateLimitLayer::new(storage.clone(), policy));
        for left in [4, 2, 0] {
            assert_eq!(call(&mut service, "/replay").await, (200, Some(left)), "{name}");
        }
        assert_eq!(call(&mut service, "/replay").await.0, 429, "{name}");
    }
}

async fn every_quota_gets_its_units_back(storage: AnyStorage) {
    let tiers = Tiers::new()
        .tier("gold", [Quota::strict_window(6, HOUR), Quota::token_bucket(9, 24 * HOUR, 9)]);
    let policy = policy(1)
        .add_quota(Quota::fixed_window(30, HOUR))
        .with_tiers(tiers, |head| head.headers().contains_key("gold").then_some("gold"))
        .with_cost(|head| if head.headers().contains_key("gold") { 3 } else { 1 });
    let layer = RateLimitLayer::new(storage, policy);
    let mut service = shop(&layer);
    let gold = |path| {
        let mut request = to(path);
        request.headers_mut().insert("gold", "yes".parse().unwrap());
        request
    };
    for path in ["/", "/replay", "/replay", "/replay", "/replay"] {
        let response = send(&mut service, gold(path)).await;
        assert_eq!(response.status(), StatusCode::OK);
        let shown = response.headers()["ratelimit"].to_str().unwrap();
        assert!(shown.contains(r#""api/h";r=3;"#), "{shown}");
        assert!(shown.contains(r#""api/day";r=6;"#), "{shown}");
    }
    for _ in 0..9 {
        assert_eq!(call(&mut service, "/replay").await, (200, Some(1)));
    }
    assert_eq!(left(layer.limiter()).await, [1, 30]);
}

async fn a_settlement_has_no_say_in_a_replay(storage: AnyStorage) {
    for (name, settlement) in [
        ("declared", Settlement::declared(1)),
        ("secret", Settlement::by_status(|_| 9).keep_when_dropped()),
    ] {
        let policy = Policy::new(name, Quota::sliding_window(10, HOUR))
            .with_key(KeyExtractor::global())
            .with_cost(|_| 3)
            .with_settlement(settlement);
        let mut service = shop(&RateLimitLayer::new(storage.clone(), policy));
        for _ in 0..9 {
            assert_eq!(call(&mut service, "/replay").await, (200, Some(10)), "{name}");
        }
        let cost = if name == "declared" { 2 } else { 9 };
        assert_eq!(call(&mut service, "/").await, (200, Some(10 - cost)), "{name}");
    }
}

async fn two_limits_around_one_service_both_give_back(storage: AnyStorage) {
    let named = |name, limit| {
        let policy = Policy::new(name, Quota::sliding_window(limit, HOUR));
        RateLimitLayer::new(storage.clone(), policy.with_key(KeyExtractor::global()))
    };
    let (outer, inner) = (named("outer", 3), named("inner", 2));
    let mut service = ServiceBuilder::new()
        .layer(&outer)
        .layer(&inner)
        // The same limiter again takes nothing, and gives nothing back.
        .layer(&inner)
        .service_fn(|request| async move { Ok::<_, std::convert::Infallible>(answer(&request)) });
    for path in ["/", "/replay", "/replay", "/replay", "/replay"] {
        let response = service.ready().await.unwrap().call(to(path)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "x-ratelimit-limit"), Some("2"), "the tighter one");
        assert_eq!(header(&response, "x-ratelimit-remaining"), Some("1"));
        let lists = response.headers().get_all("ratelimit").iter();
        let lists: Vec<_> = lists.map(|list| list.to_str().unwrap()).collect();
        assert!(lists[0].starts_with(r#""inner";r=1;"#), "{lists:?}");
        assert!(lists[1].starts_with(r#""outer";r=2;"#), "{lists:?}");
        assert_eq!((left(outer.limiter()).await, left(inner.limiter()).await), (vec![2], vec![1]));
    }
}

async fn in_shadow_replays_cost_nothing_either(storage: AnyStorage) {
    for settlement in [None, Some(Settlement::declared(1))] {
        let mut policy = policy(2)
            .add_quota(Quota::fixed_window(50, HOUR))
            .with_enforcement(Enforcement::shadow());
        policy = match settlement {
            Some(settlement) => policy.with_settlement(settlement),
            None => policy,
        };
        let layer = RateLimitLayer::new(storage.clone(), policy);
        layer.limiter().reset(Identity::global()).await.unwrap();
        let mut service = shop(&layer);
        for _ in 0..9 {
            assert_eq!(call(&mut service, "/replay").await, (200, None));
            assert_eq!(left(layer.limiter()).await, [2, 50]);
        }
        // One quota would refuse; what the other counted is given back all the same.
        let used = layer.limiter().check_units(Identity::global(), 2).await.unwrap();
        assert!(!used.would_refuse());
        for _ in 0..9 {
            assert_eq!(call(&mut service, "/replay").await, (200, None));
            assert_eq!(left(layer.limiter()).await, [0, 48]);
        }
    }
}

#[tokio::test]
async fn in_an_outage_the_stand_in_gives_back() {
    let remote = Remote::default();
    let mut service = shop(&RateLimitLayer::new(remote.clone(), policy(3)));
    remote.cut_off(true);
    assert_eq!(call(&mut service, "/").await, (200, Some(2)));
    for _ in 0..20 {
        assert_eq!(call(&mut service, "/replay").await, (200, Some(2)));
    }
    // Also if the storage is back by then: the units are the stand-in's.
    let cut = remote.clone();
    let layer = RateLimitLayer::new(remote.clone(), policy(3));
    let mut healing = limited_with(&layer, move |request| {
        cut.cut_off(false);
        answer(&request)
    });
    assert_eq!(call(&mut healing, "/replay").await, (200, Some(3)));
    assert_eq!(left(layer.limiter()).await, [3]);

    let open = policy(3).with_outage(Outage::Open);
    let mut service = shop(&RateLimitLayer::new(remote.clone(), open));
    remote.cut_off(true);
    let calls = remote.calls();
    assert_eq!(call(&mut service, "/replay").await, (200, None));
    assert_eq!(remote.calls(), calls + 1, "nothing was taken, so nothing is given back");
}

#[tokio::test]
async fn a_refund_that_fails_costs_the_client_a_unit_and_nothing_else() {
    let remote = Remote::default();
    let layer = RateLimitLayer::new(remote.clone(), policy(3));
    let cut = remote.clone();
    let mut service = limited_with(&layer, move |request| {
        cut.cut_off(true);
        answer(&request)
    });
    assert_eq!(call(&mut service, "/replay").await, (200, Some(2)), "the state that is known");
    remote.cut_off(false);
    assert_eq!(left(layer.limiter()).await, [2]);
}

#[tokio::test]
async fn what_cost_nothing_is_not_given_back() {
    let remote = Remote::default();
    let mut service = shop(&RateLimitLayer::new(remote.clone(), policy(3).with_cost(|_| 0)));
    assert_eq!(call(&mut service, "/replay").await, (200, Some(3)));
    assert_eq!(remote.calls(), 1);
}

#[tokio::test]
async fn a_refusal_from_before_is_forgotten_when_a_replay_gives_back() {
    let remote = Remote::default();
    let layer = RateLimitLayer::new(remote, policy(1));
    // While the replay is under way there is no unit left, and the process remembers that.
    let limited = layer.clone();
    let inner = service_fn(move |request: Request<()>| {
        let mut twin = shop(&limited);
        async move {
            let mut fresh = to("/");
            fresh.extensions_mut().clear();
            assert_eq!(call(&mut twin, "/").await.0, 429);
            Ok::<_, std::convert::Infallible>(answer(&request))
        }
    });
    let replay = layer.layer(inner).oneshot(to("/replay")).await.unwrap();
    assert_eq!(replay.status(), StatusCode::OK);
    assert_eq!(call(&mut shop(&layer), "/").await, (200, Some(0)));
}

#[tokio::test]
async fn handlers_see_the_decision_that_let_them_run() {
    let layer = RateLimitLayer::new(MemoryStorage::new(), policy(3));
    let mut service = limited_with(&layer, |request| {
        assert_eq!(request.extensions().get::<Decision>().unwrap().remaining(), Some(2));
        answer(&request)
    });
    assert_eq!(call(&mut service, "/replay").await, (200, Some(3)));
}

/// A service that answers with a replay after some time, and tells when.
fn slow_replay(
    layer: &RateLimitLayer,
    yields: usize,
    answered: &Arc<AtomicBool>,
) -> impl Future<Output = StatusCode> + use<> {
    let answered = Arc::clone(answered);
    let inner = service_fn(move |request: Request<()>| {
        let answered = Arc::clone(&answered);
        async move {
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
            answered.store(true, SeqCst);
            Ok::<_, std::convert::Infallible>(answer(&request))
        }
    });
    let response = layer.layer(inner).oneshot(to("/replay"));
    async move { response.await.unwrap().status() }
}

#[tokio::test]
async fn a_client_that_hangs_up_on_a_replay_gets_its_units_back() {
    let layers = [MemoryStorage::new().erase(), Remote::slow(3).erase()]
        .into_iter()
        .flat_map(|storage| {
            let settled = policy(10).with_settlement(Settlement::declared(1).keep_when_dropped());
            [(storage.clone(), policy(10)), (storage, settled)]
        })
        .map(|(storage, policy)| RateLimitLayer::new(storage, policy));
    let refunds = AtomicUsize::new(0);
    for layer in layers {
        for polls in 0.. {
            assert!(polls < 1_000);
            layer.limiter().reset(Identity::global()).await.unwrap();
            let answered = Arc::new(AtomicBool::new(false));
            let finished = {
                let mut replay = pin!(slow_replay(&layer, 3, &answered));
                let mut finished = false;
                for _ in 0..polls {
                    let mut cx = Context::from_waker(Waker::noop());
                    finished = replay.as_mut().poll(&mut cx).is_ready();
                    if finished {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                finished
            };
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            if answered.load(SeqCst) {
                assert_eq!(left(layer.limiter()).await, [10], "dropped at poll {polls}");
                refunds.fetch_add(usize::from(!finished), SeqCst);
            }
            if finished {
                break;
            }
        }
    }
    assert!(refunds.into_inner() > 4, "some were dropped while the units were on their way back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_a_client_that_hangs_up_on_a_replay_gets_its_units_back() {
    let server = RedisServer::start();
    let layer = RateLimitLayer::new(redis_storage(&server.url(), "tk").await, policy(10));
    let mut after = 0;
    for micros in (0..3_000).step_by(count(25, 2)) {
        layer.limiter().reset(Identity::global()).await.unwrap();
        let answered = Arc::new(AtomicBool::new(false));
        let (patience, began) = (Duration::from_micros(micros as u64), Instant::now());
        let mut replay = pin!(Some(slow_replay(&layer, 1, &answered)));
        let finished = poll_fn(|cx| {
            if began.elapsed() >= patience {
                replay.set(None);
                return Poll::Ready(false);
            }
            // The timer of the runtime is too coarse.
            cx.waker().wake_by_ref();
            replay.as_mut().as_pin_mut().expect("dropped at the end only").poll(cx).map(|_| true)
        })
        .await;
        if !answered.load(SeqCst) {
            continue;
        }
        after += usize::from(!finished);
        let asked = Instant::now();
        while left(layer.limiter()).await != [10] {
            assert!(asked.elapsed() < Duration::from_secs(10), "lost after {micros} us");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    println!("{after} were dropped between the answer and the end of the refund");
    server.check_keys("tk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_two_commands_on_redis_and_one_where_it_counts() {
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "tk").await;
    let several = || policy(1_000).add_quota(Quota::fixed_window(5_000, HOUR));
    let free = shop(&RateLimitLayer::new(storage.clone(), several()));
    let counted = shop(&RateLimitLayer::new(storage, several().with_replays_counted()));
    call(&mut free.clone(), "/replay").await;
    let mut monitor = Monitor::start(&server);
    for (mut service, path, commands) in [
        (free.clone(), "/", 1),
        (free, "/replay", 2),
        (counted.clone(), "/", 1),
        (counted, "/replay", 1),
    ] {
        assert_eq!(call(&mut service, path).await.0, 200);
        monitor.expect(commands, path).await;
    }
}
