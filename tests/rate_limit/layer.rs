//! What requests meet.

use std::{net::IpAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::ServiceBuilder;
use tower_keep::{
    Limiter, MemoryStorage, Quota, RateLimitLayer, Storage,
    rate_limit::{
        Decision, Enforcement, Headers, KeyExtractor, MissingIdentity, Networks, Policy, Rejection,
        RejectionKind,
    },
    storage::{AnyStorage, Name},
};
use tower_layer::Layer;

use crate::{
    admitted, header, limited, limited_with, on_every_storage, request_from, send, status,
};

const HOUR: Duration = Duration::from_secs(3_600);

fn policy(limit: u32) -> Policy {
    Policy::new("api", Quota::fixed_window(limit, HOUR))
}

async fn json<B>(response: Response<B>) -> Value
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

on_every_storage!(
    the_headers_are_exact,
    a_refusal_is_a_problem,
    a_refusal_by_one_quota_leaves_the_others_untouched,
    a_cost_above_the_quota_is_told_that_it_never_fits,
    the_policy_is_replaced_while_the_service_runs,
);

async fn the_headers_are_exact(storage: AnyStorage) {
    let policy = Policy::new("api", Quota::fixed_window(3, Duration::from_secs(60)));
    let mut service = limited(&RateLimitLayer::new(storage, policy));
    let response = send(&mut service, request_from("192.0.2.1")).await;
    assert_eq!(header(&response, "x-ratelimit-limit"), Some("3"));
    assert_eq!(header(&response, "x-ratelimit-remaining"), Some("2"));
    assert_eq!(header(&response, "x-ratelimit-reset"), Some("60"));
    assert_eq!(header(&response, "ratelimit-policy"), Some("\"api\";q=3;w=60"));
    assert_eq!(header(&response, "ratelimit"), Some("\"api\";r=2;t=60"));
    assert_eq!(header(&response, "retry-after"), None);
    admitted(&mut service, "192.0.2.1", 2).await;
    let refused = send(&mut service, request_from("192.0.2.1")).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&refused, "x-ratelimit-remaining"), Some("0"));
    assert_eq!(header(&refused, "retry-after"), Some("60"));
}

async fn a_refusal_is_a_problem(storage: AnyStorage) {
    let policy = policy(1).add_quota(Quota::fixed_window(9, 24 * HOUR));
    let mut service = limited(&RateLimitLayer::new(storage, policy));
    admitted(&mut service, "192.0.2.1", 1).await;
    let response = send(&mut service, request_from("192.0.2.1")).await;
    assert_eq!(header(&response, "content-type"), Some("application/problem+json"));
    assert!(response.extensions().get::<Rejection>().is_some());
    let problem = json(response).await;
    assert_eq!(problem["status"], 429);
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(problem["violated-policies"], json!(["api/h"]));
}

async fn a_refusal_by_one_quota_leaves_the_others_untouched(storage: AnyStorage) {
    let policy = Policy::new("api", Quota::fixed_window(100, HOUR))
        .add_quota(Quota::sliding_window(2, HOUR))
        .add_quota(Quota::token_bucket(100, HOUR, 100));
    let layer = RateLimitLayer::new(storage, policy);
    let mut service = limited(&layer);
    assert_eq!(admitted(&mut service, "192.0.2.1", 20).await, 2);
    let peek = layer.limiter().peek(IpAddr::from([192, 0, 2, 1])).await.unwrap();
    let remaining: Vec<_> = peek.quotas().map(|quota| quota.verdict.remaining).collect();
    assert_eq!(remaining, [98, 0, 98]);
}

async fn a_cost_above_the_quota_is_told_that_it_never_fits(storage: AnyStorage) {
    let policy = policy(5).with_cost(|_| 6);
    let mut service = limited(&RateLimitLayer::new(storage, policy));
    let response = send(&mut service, request_from("192.0.2.1")).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&response, "retry-after"), None);
    let problem = json(response).await;
    assert!(problem["detail"].as_str().unwrap().contains("make it smaller"));
}

async fn the_policy_is_replaced_while_the_service_runs(storage: AnyStorage) {
    let layer = RateLimitLayer::new(storage, policy(2));
    let mut service = limited(&layer);
    assert_eq!(admitted(&mut service, "192.0.2.1", 5).await, 2);
    layer.limiter().replace_policy(policy(4)).unwrap();
    assert_eq!(admitted(&mut service, "192.0.2.1", 5).await, 2, "what was used is kept");
    let error = layer
        .limiter()
        .replace_policy(Policy::new("other", Quota::fixed_window(4, HOUR)))
        .unwrap_err();
    assert!(error.to_string().contains("\"other\""));
}

#[tokio::test]
async fn lists_and_exemptions_come_first() {
    let networks = |list: &str| Networks::try_new(list.split(' ')).unwrap();
    let policy = policy(1)
        .with_allow_list(networks("10.0.0.0/8 192.0.2.66"))
        .with_deny_list(networks("10.6.6.0/24"))
        .with_exemption(|head| head.uri().path() == "/health");
    let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), policy));
    assert_eq!(admitted(&mut service, "10.1.2.3", 5).await, 5);
    assert_eq!(admitted(&mut service, "192.0.2.66", 5).await, 5);
    assert_eq!(status(&mut service, "10.6.6.6").await, StatusCode::FORBIDDEN);
    assert_eq!(admitted(&mut service, "192.0.2.1", 5).await, 1);
    let mut health = request_from("192.0.2.1");
    *health.uri_mut() = "/health".parse().unwrap();
    assert_eq!(send(&mut service, health).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_deny_list_that_cannot_be_asked_lets_nobody_pass() {
    let denied = || {
        policy(9)
            .with_key(KeyExtractor::global())
            .with_deny_list(Networks::try_new(["192.0.2.66"]).unwrap())
    };
    let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), denied()));
    let response = send(&mut service, Request::new(())).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let lenient = denied().with_missing_identity(MissingIdentity::Share);
    let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), lenient));
    assert_eq!(send(&mut service, Request::new(())).await.status(), StatusCode::OK);
    assert_eq!(status(&mut service, "192.0.2.66").await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_request_without_identity_is_refused_unless_told_otherwise() {
    let nobody = || Request::new(());
    let layer = |policy| RateLimitLayer::new(MemoryStorage::new(), policy);

    let mut service = limited(&layer(policy(9)));
    let response = send(&mut service, nobody()).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert!(rejection.to_string().contains("into_make_service_with_connect_info"));

    let by_key = policy(9).with_key(KeyExtractor::header("x-api-key"));
    let mut service = limited(&layer(by_key));
    assert_eq!(send(&mut service, nobody()).await.status(), StatusCode::BAD_REQUEST);

    let mut service = limited(&layer(policy(2).with_missing_identity(MissingIdentity::Share)));
    assert_eq!(send(&mut service, nobody()).await.status(), StatusCode::OK);
    assert_eq!(send(&mut service, nobody()).await.status(), StatusCode::OK);
    assert_eq!(send(&mut service, nobody()).await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(status(&mut service, "192.0.2.1").await, StatusCode::OK);

    let mut service = limited(&layer(policy(1).with_missing_identity(MissingIdentity::Exempt)));
    for _ in 0..3 {
        assert_eq!(send(&mut service, nobody()).await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn in_shadow_everything_passes_and_the_decision_says_what_would_have_been() {
    let layer = RateLimitLayer::new(
        MemoryStorage::new(),
        policy(2).with_enforcement(Enforcement::shadow()),
    );
    let mut service = limited_with(&layer, |request| {
        let decision = request.extensions().get::<Decision>().unwrap();
        Response::new(Full::from(decision.would_refuse().to_string()))
    });
    for expected in ["false", "false", "true", "true"] {
        let response = send(&mut service, request_from("192.0.2.1")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "x-ratelimit-limit"), None);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, expected);
    }
}

#[tokio::test]
async fn a_share_of_the_clients_is_enforced_always_the_same() {
    let run = || async {
        let policy = policy(1).with_enforcement(Enforcement::share(0.25));
        let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), policy));
        let mut refused = Vec::new();
        for n in 0..400 {
            let address = format!("192.0.{}.{}", n / 200, n % 200);
            if admitted(&mut service, &address, 2).await == 1 {
                refused.push(n);
            }
        }
        refused
    };
    let refused = run().await;
    assert!((60..140).contains(&refused.len()), "{} of 400", refused.len());
    assert_eq!(refused, run().await);
}

#[tokio::test]
async fn one_limiter_around_another_of_its_layers_counts_once() {
    let layer = RateLimitLayer::new(MemoryStorage::new(), policy(2));
    let inner = layer.layer(tower::service_fn(|_: Request<()>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from("hello")))
    }));
    let mut service = ServiceBuilder::new().layer(layer).service(inner);
    let mut passed = 0;
    for _ in 0..4 {
        let response = tower::Service::call(&mut service, request_from("192.0.2.1")).await;
        passed += usize::from(response.unwrap().status() == StatusCode::OK);
    }
    assert_eq!(passed, 2);
}

#[tokio::test]
async fn two_layers_of_one_name_are_named() {
    let storage = MemoryStorage::new();
    let call = |namespace: &'static str| {
        let outer = RateLimitLayer::new(storage.clone(), policy(9));
        let inner = RateLimitLayer::from_limiter(Limiter::with_namespace(
            storage.clone(),
            Name::new(namespace),
            policy(5),
        ));
        let handler = tower::service_fn(|request: Request<()>| async move {
            let chain = request.extensions().get::<Decision>().unwrap();
            assert_eq!(chain.outer().unwrap().remaining(), Some(8));
            Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from("hello")))
        });
        let mut service = outer.layer(inner.layer(handler));
        async move { tower::Service::call(&mut service, request_from("192.0.2.1")).await.unwrap() }
    };
    let response = call("ratelimit").await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert!(rejection.to_string().contains("\"api\""), "{rejection}");
    Limiter::new(storage.clone(), policy(9)).reset(IpAddr::from([192, 0, 2, 1])).await.unwrap();
    assert_eq!(call("other").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_response_of_a_rejection_can_be_replaced() {
    let policy = policy(1).with_rejection(|rejection| {
        assert!(matches!(rejection.kind(), RejectionKind::QuotaExceeded(_)));
        Response::builder().status(418).body(Bytes::from("slow down")).unwrap()
    });
    let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), policy));
    admitted(&mut service, "192.0.2.1", 1).await;
    let response = send(&mut service, request_from("192.0.2.1")).await;
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    assert!(header(&response, "retry-after").is_some());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "slow down");
}

#[tokio::test]
async fn headers_can_be_hidden() {
    let policy = policy(1).with_headers(Headers::none());
    let mut service = limited(&RateLimitLayer::new(MemoryStorage::new(), policy));
    for _ in 0..2 {
        let response = send(&mut service, request_from("192.0.2.1")).await;
        for name in ["x-ratelimit-limit", "ratelimit", "ratelimit-policy"] {
            assert_eq!(header(&response, name), None);
        }
    }
}

#[tokio::test]
async fn a_refused_request_gives_up_what_the_inner_service_had_reserved_for_it() {
    use tower::{Service, ServiceExt, limit::ConcurrencyLimit};

    let inner = ConcurrencyLimit::new(
        tower::service_fn(|_: Request<()>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default()))
        }),
        1,
    );
    let storages = [MemoryStorage::new().erase(), crate::remote::Remote::default().erase()];
    for storage in storages {
        let mut service = RateLimitLayer::new(storage, policy(1)).layer(inner.clone());
        for expected in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
            let ready = service.ready().await.unwrap();
            let response = ready.call(request_from("192.0.2.1")).await.unwrap();
            assert_eq!(response.status(), expected);
        }
        // The connection of the refused client stays open; others are served.
        let mut other = service.clone();
        let ready = tokio::time::timeout(Duration::from_secs(5), other.ready()).await;
        ready.expect("the permit came back").unwrap();
    }
}

#[tokio::test]
async fn an_error_of_the_inner_service_goes_through() {
    let layer = RateLimitLayer::new(MemoryStorage::new(), policy(9));
    let mut service = layer.layer(tower::service_fn(|_: Request<()>| async {
        Err::<Response<Full<Bytes>>, _>("broken")
    }));
    let error = tower::Service::call(&mut service, request_from("192.0.2.1")).await.unwrap_err();
    assert_eq!(error, "broken");
}

#[tokio::test]
async fn an_axum_handler_takes_the_decision_as_an_argument() {
    use axum::{Router, body::Body, routing::get};
    use tower::ServiceExt;

    let limited = Router::new()
        .route("/", get(|decision: Decision| async move { decision.policy().to_owned() }))
        .layer(RateLimitLayer::new(MemoryStorage::new().erase(), policy(9)));
    let request = |path: &str| {
        let mut request = request_from("192.0.2.1").map(|()| Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    let app = limited
        .route("/outside", get(|_: Decision| async { "never" }))
        .route("/optional", get(|it: Option<Decision>| async move { it.is_some().to_string() }));
    let text = |response: Response<Body>| async {
        response.into_body().collect().await.unwrap().to_bytes()
    };
    let response = app.clone().oneshot(request("/")).await.unwrap();
    assert_eq!(text(response).await, "api");
    let response = app.clone().oneshot(request("/outside")).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(header(&response, "content-type"), Some("application/problem+json"));
    let response = app.oneshot(request("/optional")).await.unwrap();
    assert_eq!(text(response).await, "false");
}
