//! What a handler is given of its key.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
    routing::{get, post},
};
use bytes::Bytes;
use tokio::time::sleep;
use tower::{Layer, ServiceExt};
use tower_keep::{
    IdempotencyLayer, MemoryStorage, RequestHead,
    idempotency::{Idempotency, IdempotencyRejection, Policy, Recovery},
};

use crate::{
    log::Log,
    till::{Till, charge, whole},
    wire::{LEASE, Line, Owner, Wire, attempt_of},
};

async fn describe(attempt: Idempotency) -> String {
    format!("{} {}", attempt.key().as_str(), attempt.attempt())
}

async fn describe_if(attempt: Option<Idempotency>) -> String {
    attempt.map_or("none".into(), |attempt| attempt.key().as_str().to_owned())
}

fn routes() -> Router {
    let layer = IdempotencyLayer::new(MemoryStorage::new(), Policy::scope_public());
    let handlers = || post(describe).get(describe).put(describe_if).patch(describe_if);
    let with = Router::new().route("/with", handlers()).layer(layer);
    with.route("/without", get(describe).post(describe).patch(describe_if))
}

async fn ask(method: &str, path: &str, key: Option<&str>) -> Response<Bytes> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    whole(routes().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()).await
}

#[tokio::test]
async fn a_handler_is_given_its_key_and_attempt() {
    assert_eq!(ask("POST", "/with", Some("\"a key\"")).await.body(), "a key 1");
    assert_eq!(ask("PATCH", "/with", Some("a-key")).await.body(), "a-key");
    assert_eq!(ask("PATCH", "/with", None).await.body(), "none");
    assert_eq!(ask("PUT", "/with", Some("a-key")).await.body(), "none");
    assert_eq!(ask("PATCH", "/without", Some("a-key")).await.body(), "none");
}

#[tokio::test]
async fn without_a_key_a_handler_that_needs_one_is_not_run() {
    let refused = ask("POST", "/with", None).await;
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    let text = str::from_utf8(refused.body()).unwrap();
    assert!(text.contains("this operation needs an idempotency key"), "{text}");
}

#[tokio::test]
async fn without_a_layer_a_handler_that_needs_one_is_a_mistake_of_the_server() {
    let (log, _guard) = Log::of_this_thread();
    for (method, path) in [("POST", "/without"), ("GET", "/without"), ("GET", "/with")] {
        let refused = ask(method, path, Some("a-key")).await;
        assert_eq!(refused.status(), 500);
        let text = str::from_utf8(refused.body()).unwrap();
        assert!(!text.contains("IdempotencyLayer"), "that is nothing for clients: {text}");
    }
    let said = IdempotencyRejection::NoLayer.to_string();
    for part in ["IdempotencyLayer", "add the layer after the route", "with_methods", "Option<"] {
        assert!(said.contains(part), "{said}");
    }
    // `tracing` remembers per process who wants an event, and other tests may have asked first.
    let text = log.text();
    assert!(text.is_empty() || text.contains(&said), "{text}");
    assert!(!text.contains("a-key"), "{text}");
}

#[tokio::test]
async fn a_service_without_axum_asks_its_request() {
    let layer = IdempotencyLayer::new(MemoryStorage::new(), Policy::scope_public());
    let service = layer.layer(tower::service_fn(|request: Request<Body>| async move {
        let attempt = Idempotency::of(RequestHead::new(&request));
        let key = attempt.map_or("none".into(), |attempt| attempt.key().as_str().to_owned());
        Ok::<_, std::convert::Infallible>(Response::new(Body::from(key)))
    }));
    let answer = service.clone().oneshot(charge("a-key", "")).await.unwrap();
    assert_eq!(whole(answer.map(Body::new)).await.body(), "a-key");
    let bare = Request::post("/charge").body(Body::empty()).unwrap();
    let answer = service.oneshot(bare).await.unwrap();
    assert_eq!(whole(answer.map(Body::new)).await.body(), "none");
}

#[tokio::test(start_paused = true)]
async fn a_fence_is_one_for_an_attempt_and_rises_with_each() {
    let storage = MemoryStorage::new();
    let fences = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..4 {
        let (wire, seen) = (Wire::new(storage.clone()), Arc::clone(&fences));
        let policy = Policy::scope_public().with_commit_point();
        let till = Till::new(wire.clone(), policy, move |_, request| {
            let seen = Arc::clone(&seen);
            async move {
                let attempt = attempt_of(&request);
                let fence = attempt.fence();
                seen.lock().unwrap().push(fence);
                sleep(3 * LEASE).await;
                assert_eq!(attempt.fence(), fence, "over signs of life");
                attempt.begin().await.unwrap();
                assert_eq!(attempt.fence(), fence, "over the commit point");
                seen.lock().unwrap().push(fence);
                sleep(LEASE).await;
                assert!(!attempt.is_lost());
                attempt.lost().await;
                assert!(attempt.is_lost());
                seen.lock().unwrap().push(attempt.fence());
                std::future::pending().await
            }
        });
        let client = tokio::spawn(async move { till.charge("a-key", "").await });
        sleep(5 * LEASE).await;
        wire.set(Line::Down);
        sleep(2 * LEASE).await;
        client.abort();
    }
    let fences = fences.lock().unwrap().clone();
    assert_eq!(fences.len(), 12, "{fences:?}");
    let attempts: Vec<_> = fences.chunks(3).collect();
    assert!(attempts.iter().all(|attempt| attempt.iter().all(|fence| *fence == attempt[0])));
    assert!(attempts.is_sorted_by(|a, b| a[0] < b[0]), "{fences:?}");
}

#[tokio::test(start_paused = true)]
async fn a_child_key_is_one_for_all_attempts_of_one_request() {
    let storage = MemoryStorage::new();
    let children = Arc::new(Mutex::new(Vec::new()));
    let node = |name: &'static str| {
        let children = Arc::clone(&children);
        let policy =
            Policy::scope(|head| Some(head.headers().get("x-name")?.to_str().ok()?.to_owned()))
                .with_name(name);
        Till::new(Wire::new(storage.clone()), policy, move |_, request| {
            let attempt = attempt_of(&request);
            let pair = [attempt.child_key("charge"), attempt.child_key("mail")];
            children.lock().unwrap().extend(pair);
            // Free again for the next attempt.
            async { Response::builder().status(422).body(Body::empty()).unwrap() }
        })
    };
    let send = async |till: &Till, name: &'static str, key: &str, body: &'static str| {
        let mut request = charge(key, body);
        request.headers_mut().insert("x-name", name.parse().unwrap());
        assert_eq!(till.send(request).await.status(), 422);
        std::mem::take(&mut *children.lock().unwrap())
    };
    let (one, two, other) = (node("keys"), node("keys"), node("others"));
    let wanted = send(&one, "Zaphod", "a-key", "100 EUR").await;
    assert_eq!(send(&one, "Zaphod", "a-key", "100 EUR").await, wanted);
    assert_eq!(send(&two, "Zaphod", "\"a-key\"", "100 EUR").await, wanted, "on each node");
    let mut all: HashSet<_> = wanted.into_iter().collect();
    all.extend(send(&one, "Trillian", "a-key", "100 EUR").await);
    all.extend(send(&one, "Zaphod", "b-key", "100 EUR").await);
    all.extend(send(&one, "Zaphod", "a-key", "999 EUR").await);
    all.extend(send(&other, "Zaphod", "a-key", "100 EUR").await);
    assert_eq!(all.len(), 10);
    for child in all {
        let parsed = uuid::Uuid::parse_str(&child).unwrap();
        assert_eq!(parsed.hyphenated().to_string(), child);
    }
}

#[tokio::test(start_paused = true)]
async fn a_recovered_attempt_is_told_so() {
    let storage = MemoryStorage::new();
    let policy = Policy::scope_public().with_recovery(|_| async { Recovery::NotExecuted });
    let _owner = Owner::vanished(storage.clone(), policy.clone(), "a-key", true).await;
    let till = Till::new(storage, policy, |_, request| async move {
        let attempt = attempt_of(&request);
        attempt.begin().await.unwrap();
        Response::new(Body::from(format!("{} {}", attempt.attempt(), attempt.fence() > 0)))
    });
    assert_eq!(till.charge("a-key", "").await.body(), "2 true");
    sleep(Duration::from_secs(1)).await;
}
