//! Identities that have to be waited for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower_keep::{
    Limiter, MemoryStorage, Quota, RateLimitLayer, RequestHead,
    rate_limit::{
        Decision, KeyExtractor, MissingIdentity, Networks, Policy, ResponseBody, Settlement, Tiers,
    },
    storage::{AnyStorage, Identity},
};
use tower_layer::Layer;

use crate::{Limited, limited, limited_with, on_every_storage, request_from, send};

const HOUR: Duration = Duration::from_secs(3_600);

/// Whom the field `cookie` names, after a while: nobody without it.
fn user(head: RequestHead<'_>) -> impl Future<Output = Option<String>> + Send + use<> {
    let cookie = head.headers().get("cookie").cloned();
    async move {
        tokio::task::yield_now().await;
        Some(cookie?.to_str().ok()?.to_owned())
    }
}

fn policy() -> Policy {
    Policy::new("api", Quota::sliding_window(3, HOUR)).with_async_key(user)
}

fn request_of(user: &str, address: &str) -> Request<()> {
    let mut request = request_from(address);
    request.headers_mut().insert("cookie", user.parse().unwrap());
    request
}

async fn ask(service: &mut Limited, request: Request<()>) -> (StatusCode, Option<u32>) {
    let response = send(service, request).await;
    let left = crate::header(&response, "x-ratelimit-remaining");
    (response.status(), left.map(|left| left.parse().unwrap()))
}

const fn passed(left: u32) -> (StatusCode, Option<u32>) {
    (StatusCode::OK, Some(left))
}

const REFUSED: (StatusCode, Option<u32>) = (StatusCode::TOO_MANY_REQUESTS, Some(0));

on_every_storage!(users_count_wherever_they_are_and_visitors_by_address, costs_are_settled,);

async fn users_count_wherever_they_are_and_visitors_by_address(storage: AnyStorage) {
    let layer = RateLimitLayer::new(storage, policy());
    let mut service = limited(&layer);
    for (left, address) in [(2, "192.0.2.1"), (1, "192.0.2.2"), (0, "203.0.113.1")] {
        assert_eq!(ask(&mut service, request_of("alice", address)).await, passed(left));
        assert_eq!(ask(&mut service, request_from("198.51.100.1")).await, passed(left));
    }
    assert_eq!(ask(&mut service, request_of("alice", "192.0.2.9")).await, REFUSED);
    assert_eq!(ask(&mut service, request_from("198.51.100.1")).await, REFUSED);
    assert_eq!(ask(&mut service, request_of("bob", "198.51.100.1")).await, passed(2));
    assert_eq!(ask(&mut service, request_from("198.51.100.2")).await, passed(2));
    // What names itself as an address is none.
    assert_eq!(ask(&mut service, request_of("198.51.100.2", "192.0.2.1")).await, passed(2));
    assert_eq!(layer.limiter().peek("bob").await.unwrap().remaining(), Some(2));
}

async fn costs_are_settled(storage: AnyStorage) {
    let policy = policy().with_cost(|_| 3).with_settlement(Settlement::by_status(|_| 1));
    let mut service = limited(&RateLimitLayer::new(storage, policy));
    assert_eq!(ask(&mut service, request_of("alice", "192.0.2.1")).await, passed(2));
    let response = send(&mut service, request_of("alice", "192.0.2.1")).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS, "three are not left");
    assert_eq!(ask(&mut service, request_of("bob", "192.0.2.1")).await, passed(2));
}

#[tokio::test]
async fn the_extractor_decides_where_nobody_is_found() {
    let api_key = KeyExtractor::header("x-api-key").or(KeyExtractor::client_address());
    let mut service =
        limited(&RateLimitLayer::new(MemoryStorage::new(), policy().with_key(api_key)));
    let with_key = |mut request: Request<()>| {
        request.headers_mut().insert("x-api-key", "k-1".parse().unwrap());
        request
    };
    assert_eq!(ask(&mut service, with_key(request_from("192.0.2.1"))).await, passed(2));
    assert_eq!(ask(&mut service, with_key(request_from("192.0.2.2"))).await, passed(1));
    assert_eq!(ask(&mut service, request_from("192.0.2.1")).await, passed(2));
    assert_eq!(ask(&mut service, with_key(request_of("alice", "192.0.2.1"))).await, passed(2));
}

#[tokio::test]
async fn a_request_of_nobody_from_nowhere_is_without_identity() {
    let no_address = || Request::new(());
    for (missing, expected) in [
        (MissingIdentity::Refuse, [500, 500, 500, 500]),
        (MissingIdentity::Exempt, [200, 200, 200, 200]),
        (MissingIdentity::Share, [200, 200, 200, 429]),
    ] {
        let policy = policy().with_missing_identity(missing);
        let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), policy));
        for expected in expected {
            assert_eq!(send(&mut service, no_address()).await.status(), expected, "{missing:?}");
        }
        let mut known = no_address();
        known.headers_mut().insert("cookie", "alice".parse().unwrap());
        assert_eq!(ask(&mut service, known).await, passed(2), "{missing:?}");
    }
    let header_only = policy().with_key(KeyExtractor::header("x-api-key"));
    let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), header_only));
    let refused = send(&mut service, request_from("192.0.2.1")).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn tiers_of_either_kind_go_with_it() {
    let tiers = || Tiers::new().tier("pro", [Quota::sliding_window(6, HOUR)]).unlimited("internal");
    let tier_of = |head: RequestHead<'_>| match head.uri().path() {
        "/" => None,
        path => Some(path[1..].to_owned()),
    };
    let waited = move |head: RequestHead<'_>| {
        let tier = tier_of(head);
        async move {
            tokio::task::yield_now().await;
            tier
        }
    };
    for policy in
        [policy().with_tiers(tiers(), tier_of), policy().with_async_tiers(tiers(), waited)]
    {
        let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), policy));
        let to = |path: &str, mut request: Request<()>| {
            *request.uri_mut() = path.parse().unwrap();
            request
        };
        let alice = || request_of("alice", "192.0.2.1");
        assert_eq!(ask(&mut service, to("/pro", alice())).await, passed(5));
        assert_eq!(ask(&mut service, to("/pro", request_of("bob", "192.0.2.1"))).await, passed(5));
        assert_eq!(ask(&mut service, to("/pro", request_from("192.0.2.1"))).await, passed(5));
        assert_eq!(ask(&mut service, alice()).await, passed(1), "of three, one was used");
        assert_eq!(ask(&mut service, to("/internal", alice())).await, (StatusCode::OK, None));
    }
}

#[tokio::test]
async fn what_needs_no_identity_is_settled_without_asking_for_one() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&asked);
    let network = |text: &str| text.parse::<Networks>().unwrap();
    let policy = Policy::new("api", Quota::sliding_window(3, HOUR))
        .with_async_key(move |head| {
            counting.fetch_add(1, SeqCst);
            user(head)
        })
        .with_allow_list(network("192.0.2.0/24"))
        .with_deny_list(network("198.51.100.0/24"))
        .with_exemption(|head| head.uri().path() == "/health");
    let limiter = Limiter::new(MemoryStorage::new(), policy);
    let mut service = limited(&RateLimitLayer::from_limiter(limiter));
    let alice = |address| request_of("alice", address);
    for _ in 0..5 {
        assert_eq!(ask(&mut service, alice("192.0.2.1")).await, (StatusCode::OK, None));
        assert_eq!(ask(&mut service, alice("198.51.100.1")).await.0, StatusCode::FORBIDDEN);
        let mut health = alice("203.0.113.1");
        *health.uri_mut() = "/health".parse().unwrap();
        assert_eq!(ask(&mut service, health).await, (StatusCode::OK, None));
    }
    assert_eq!(asked.load(SeqCst), 0);
    assert_eq!(ask(&mut service, alice("203.0.113.1")).await, passed(2));
    assert_eq!(asked.load(SeqCst), 1);
}

#[tokio::test]
async fn limits_within_limits_count_each_for_itself_and_one_of_them_once() {
    let storage = MemoryStorage::new();
    let by_user = RateLimitLayer::new(storage.clone(), policy());
    let by_address = Policy::new("address", Quota::sliding_window(9, HOUR));
    let by_address = RateLimitLayer::new(storage, by_address);
    let handler = tower::service_fn(|request: Request<()>| async move {
        let policies = request.extensions().get::<Decision>().map(|it| it.policy().to_owned());
        assert_eq!(policies.as_deref(), Some("api"), "the innermost");
        Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from("hello")))
    });
    let twice = by_user.layer(by_user.layer(handler));
    let unwrapped = tower::ServiceBuilder::new()
        .map_response(|response: Response<ResponseBody<ResponseBody<Full<Bytes>>>>| {
            assert_eq!(response.headers()["x-ratelimit-limit"], "3");
            Response::new(Full::<Bytes>::from("hello"))
        })
        .service(twice);
    let mut service = Limited::new(by_address.layer(unwrapped));
    for _ in 0..2 {
        let response = send(&mut service, request_of("alice", "192.0.2.1")).await;
        assert_eq!(response.status(), StatusCode::OK);
    }
    let left = async |layer: &RateLimitLayer, identity: Identity| {
        layer.limiter().peek(identity).await.unwrap().remaining()
    };
    assert_eq!(left(&by_user, "alice".into()).await, Some(1));
    let address: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(left(&by_address, address.into()).await, Some(7));
    assert_eq!(left(&by_user, address.into()).await, Some(3));
}

#[tokio::test]
async fn a_request_dropped_while_it_is_identified_takes_nothing() {
    let policy = policy().with_async_key(|head| {
        let user = user(head);
        async move {
            user.await?;
            std::future::pending::<Option<String>>().await
        }
    });
    let layer = RateLimitLayer::new(MemoryStorage::new(), policy);
    let mut service = limited_with(&layer, |_| unreachable!("it is not called"));
    let waiting = send(&mut service, request_of("alice", "192.0.2.1"));
    let within = tokio::time::timeout(Duration::from_millis(5), waiting).await;
    assert!(within.is_err(), "it waits for the identity");
    let address: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    for identity in [Identity::from("alice"), address.into()] {
        assert_eq!(layer.limiter().peek(identity).await.unwrap().remaining(), Some(3));
    }
}
