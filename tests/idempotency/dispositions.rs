//! What becomes of a key, by the answer: kept, sealed or free again.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use axum::{
    Extension, Json, Router,
    body::Body,
    http::{Request, Response, StatusCode},
    response::IntoResponse,
    routing::post,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tower::{ServiceExt, service_fn};
use tower_keep::{
    IdempotencyLayer, MemoryStorage,
    idempotency::{BeginError, Disposition, Idempotency, Outcome, Policy},
    storage::AnyStorage,
};
use tower_layer::Layer;

use crate::{
    storages,
    till::{Till, charge, code, is_replay, whole},
};

/// What a duplicate is told after an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum After {
    Kept,
    Sealed,
    Free,
}
use After::{Free, Kept, Sealed};

/// Sends a request twice, and says what became of its key.
async fn after(till: &Till) -> After {
    let before = till.executions();
    let first = till.charge("a-key", "").await;
    assert!(!is_replay(&first));
    assert_eq!(first.extensions().get(), Some(&Outcome::Executed));
    let second = till.charge("a-key", "").await;
    let found = match second.extensions().get() {
        Some(Outcome::Replayed) => {
            assert!(is_replay(&second));
            assert_eq!((second.status(), second.body()), (first.status(), first.body()));
            Kept
        }
        Some(Outcome::Sealed) => {
            assert_eq!(code(&second), "response-not-retained");
            let problem: Value = serde_json::from_slice(second.body()).unwrap();
            assert_eq!(problem["original-status"], first.status().as_u16());
            Sealed
        }
        Some(Outcome::Executed) => {
            assert_eq!(second.status(), first.status());
            Free
        }
        other => panic!("{other:?}: {second:?}"),
    };
    assert_eq!(till.executions() - before, if found == Free { 2 } else { 1 });
    found
}

fn answering(policy: Policy, status: u16, retry_after: bool, own: Option<Disposition>) -> Till {
    Till::new(MemoryStorage::new(), policy, move |execution, _| async move {
        let mut answer = Response::builder().status(status);
        if retry_after {
            answer = answer.header("retry-after", "3");
        }
        if let Some(own) = own {
            answer = answer.extension(own);
        }
        answer.body(Body::from(execution.to_string())).unwrap()
    })
}

#[tokio::test]
async fn what_was_not_carried_out_frees_its_key_and_all_else_is_kept() {
    for status in [400, 401, 403, 404, 405, 406, 411, 413, 414, 415, 417, 421, 422, 425, 426, 428] {
        assert_eq!(after(&answering(policy(), status, false, None)).await, Free, "{status}");
    }
    for status in [429, 431] {
        assert_eq!(after(&answering(policy(), status, true, None)).await, Free, "{status}");
    }
    assert_eq!(after(&answering(policy(), 503, true, None)).await, Free);
    assert_eq!(after(&answering(policy(), 503, false, None)).await, Kept);
    for status in [200, 201, 202, 302, 402, 409, 410, 412, 418, 451, 500, 501, 502, 504, 507] {
        assert_eq!(after(&answering(policy(), status, false, None)).await, Kept, "{status}");
    }
    assert_eq!(after(&answering(policy(), 500, true, None)).await, Kept);
}

fn policy() -> Policy {
    Policy::scope_public()
}

#[tokio::test]
async fn the_handlers_own_word_wins() {
    let all =
        [(Disposition::Store, Kept), (Disposition::Release, Free), (Disposition::Seal, Sealed)];
    for (own, wanted) in all {
        for status in [200, 422, 429, 500] {
            for other in [Disposition::Store, Disposition::Release, Disposition::Seal] {
                let policies = [
                    policy(),
                    policy().with_commit_point(),
                    policy().with_classifier(move |_| other),
                ];
                for policy in policies {
                    let till = answering(policy, status, false, Some(own));
                    assert_eq!(after(&till).await, wanted, "{own:?} of {status}");
                }
            }
        }
    }
}

#[tokio::test]
async fn the_handlers_word_is_not_passed_on() {
    let till = answering(policy(), 200, false, Some(Disposition::Store));
    assert!(till.charge("a-key", "").await.extensions().get::<Disposition>().is_none());

    let handler = async || (Extension(Disposition::Seal), (StatusCode::CREATED, "a secret"));
    let app: Router = Router::new()
        .route("/charge", post(handler))
        .layer(IdempotencyLayer::new(MemoryStorage::new(), policy()));
    let first = whole(app.clone().oneshot(charge("a-key", "")).await.unwrap()).await;
    assert_eq!(first.body(), "a secret");
    assert!(first.extensions().get::<Disposition>().is_none());
    let again = whole(app.oneshot(charge("a-key", "")).await.unwrap()).await;
    assert_eq!(code(&again), "response-not-retained");
}

#[tokio::test]
async fn a_classifier_decides_by_the_head() {
    let policy = || {
        policy().with_classifier(|answer| {
            if answer.headers().contains_key("retry-after") {
                return Disposition::Seal;
            }
            match answer.status().as_u16() {
                502 => Disposition::Release,
                422 => Disposition::Store,
                _ => answer.usual(),
            }
        })
    };
    for (status, retry_after, wanted) in [
        (502, false, Free),
        (422, false, Kept),
        (429, false, Free),
        (500, false, Kept),
        (429, true, Sealed),
        (200, true, Sealed),
    ] {
        assert_eq!(
            after(&answering(policy(), status, retry_after, None)).await,
            wanted,
            "{status}"
        );
    }
}

#[tokio::test]
async fn after_the_commit_point_an_answer_is_kept_whatever_it_is() {
    for (declared, begins, status, wanted) in [
        (true, false, 200, Free),
        (true, false, 500, Free),
        (true, true, 200, Kept),
        (true, true, 422, Kept),
        (true, true, 429, Kept),
        (false, true, 422, Kept),
        (false, false, 422, Free),
        (false, false, 500, Kept),
    ] {
        for seals in [false, true] {
            let policy = if declared { policy().with_commit_point() } else { policy() };
            let handler = move |execution: usize, request: Request<Body>| async move {
                let attempt = request.extensions().get::<Idempotency>().unwrap().clone();
                if begins {
                    attempt.begin().await.unwrap();
                }
                if seals {
                    attempt.seal();
                }
                let body = Body::from(execution.to_string());
                Response::builder().status(status).body(body).unwrap()
            };
            let till = Till::new(MemoryStorage::new(), policy, handler);
            let wanted = if seals && wanted == Kept { Sealed } else { wanted };
            let what = format!("{declared} {begins} {status} {seals}");
            assert_eq!(after(&till).await, wanted, "{what}");
        }
    }
}

#[tokio::test]
async fn a_failure_is_kept_sealed_or_frees_the_key_as_the_policy_says() {
    for (failure, wanted) in [
        (None, Kept),
        (Some(Disposition::Store), Kept),
        (Some(Disposition::Seal), Sealed),
        (Some(Disposition::Release), Free),
    ] {
        let policy = || match failure {
            Some(failure) => policy().with_failure(failure),
            None => policy(),
        };
        for panics in [true, false] {
            let runs = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&runs);
            let service = service_fn(move |_: Request<Body>| {
                counted.fetch_add(1, SeqCst);
                async move {
                    tokio::task::yield_now().await;
                    assert!(!panics, "on purpose");
                    Err::<Response<Body>, _>("broken")
                }
            });
            let layer = IdempotencyLayer::new(MemoryStorage::new(), policy());
            let service = layer.layer(service);
            let mut answers = Vec::new();
            for _ in 0..2 {
                answers.push(service.clone().oneshot(charge("a-key", "")).await);
            }
            let [first, second] = <[_; 2]>::try_from(answers).unwrap();
            match &first {
                Ok(first) => {
                    assert!(panics);
                    assert_eq!(first.status(), 500);
                    assert_eq!(first.extensions().get(), Some(&Outcome::Failed));
                }
                Err(error) => assert_eq!((panics, *error), (false, "broken")),
            }
            let found = match &second {
                Err(_) => Free,
                Ok(second) => match second.extensions().get::<Outcome>() {
                    Some(Outcome::Replayed) => {
                        assert_eq!(second.status(), 500);
                        Kept
                    }
                    Some(Outcome::Sealed) => Sealed,
                    Some(Outcome::Failed) => Free,
                    other => panic!("{other:?}"),
                },
            };
            assert_eq!(found, wanted, "{failure:?} {panics}");
            assert_eq!(runs.load(SeqCst), if wanted == Free { 2 } else { 1 });
        }
    }
}

#[tokio::test]
async fn a_panic_at_once_is_caught_like_a_late_one() {
    let service =
        service_fn(|_: Request<Body>| -> std::future::Ready<Result<Response<Body>, Infallible>> {
            panic!("in `call`, on purpose")
        });
    let layer = IdempotencyLayer::new(MemoryStorage::new(), policy());
    let service = layer.layer(service);
    for outcome in [Outcome::Failed, Outcome::Replayed] {
        let answer = service.clone().oneshot(charge("a-key", "")).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.extensions().get()), (500, Some(&outcome)));
    }
}

#[derive(Deserialize)]
struct Order {
    amount: u32,
}

/// Orders are taken once; what an extractor or the router refuses was none.
fn orders(storage: AnyStorage) -> (Router, Arc<AtomicUsize>) {
    let orders = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&orders);
    let order = async move |Json(order): Json<Order>| {
        let number = counted.fetch_add(1, SeqCst) + 1;
        (StatusCode::CREATED, format!("order {number} of {}", order.amount)).into_response()
    };
    let pay = async |attempt: Idempotency, body: String| -> Result<String, BeginError> {
        attempt.begin().await?;
        Ok(body)
    };
    let router = Router::new()
        .route("/orders", post(order))
        .route("/payments", post(pay))
        .layer(IdempotencyLayer::new(storage, policy()));
    (router, orders)
}

#[tokio::test]
async fn a_request_that_an_extractor_refuses_can_be_mended_with_its_key() {
    let (_server, storages) = storages("orders").await;
    for storage in storages {
        let (router, orders) = orders(storage);
        let send = async |kind: Option<&str>, path: &str, body: &'static str| {
            let mut request = Request::post(path).header("idempotency-key", "a-key");
            if let Some(kind) = kind {
                request = request.header("content-type", kind);
            }
            let request = request.body(Body::from(body)).unwrap();
            whole(router.clone().oneshot(request).await.unwrap()).await
        };
        let json = Some("application/json");
        let mended: [(_, _, _, u16); 5] = [
            (None, "/orders", r#"{"amount":1}"#, 415),
            (Some("text/plain"), "/orders", r#"{"amount":1}"#, 415),
            (json, "/orders", r#"{"amount":"#, 400),
            (json, "/orders", r#"{"amount":"one"}"#, 422),
            (json, "/orders", r#"{}"#, 422),
        ];
        for (kind, path, body, status) in mended {
            for _ in 0..2 {
                let answer = send(kind, path, body).await;
                assert_eq!(answer.status(), status, "{answer:?}");
                assert_eq!(answer.extensions().get(), Some(&Outcome::Executed));
                assert!(!is_replay(&answer));
            }
        }
        let first: Response<Bytes> = send(json, "/orders", r#"{"amount":1}"#).await;
        assert_eq!(
            (first.status().as_u16(), first.body().as_ref()),
            (201, b"order 1 of 1".as_ref())
        );
        // From now on the key means this order, also for what would be refused anyway.
        let again = send(json, "/orders", r#"{"amount":"#).await;
        assert_eq!((again.status().as_u16(), &*code(&again)), (422, "mismatch"));
        assert!(is_replay(&send(json, "/orders", r#"{"amount":1}"#).await));
        assert_eq!(orders.load(SeqCst), 1);
        // No such route, no such method.
        for _ in 0..2 {
            assert_eq!(send(json, "/nowhere", "").await.status(), 404);
        }
        let patch = || Request::patch("/orders").header("idempotency-key", "a-key");
        for _ in 0..2 {
            let request = patch().body(Body::empty()).unwrap();
            let answer = whole(router.clone().oneshot(request).await.unwrap()).await;
            assert_eq!((answer.status().as_u16(), is_replay(&answer)), (405, false));
        }
        assert_eq!(send(None, "/payments", "paid").await.body(), "paid");
        assert!(is_replay(&send(None, "/payments", "paid").await));
    }
}
