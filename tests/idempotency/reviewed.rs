//! What a review has found, and what it only feared.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, StatusCode},
    response::IntoResponse,
    routing::post,
};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_keep::{
    IdempotencyLayer, MemoryStorage, Storage,
    idempotency::{
        Disposition, Idempotency, IdempotencyKey, InFlight, KeyError, Outage, Policy, Recovery,
        Repeat, Resolution,
    },
    storage::{Put, When},
};

use crate::{
    staged::{Fate, Staged},
    storages,
    till::{Till, charge, code, receipt},
    traces::{LEASE, Left, left, listed, place_of, short, vanish},
};

fn most() -> Policy {
    Policy::scope_public().with_repeat(Repeat::AtMostOnce)
}

/// The first may be at it, or may have done it: no outage makes that unseen.
#[tokio::test(start_paused = true)]
async fn an_open_policy_runs_nothing_beside_an_owner_that_it_has_seen() {
    let wait = InFlight::Wait(Duration::from_secs(5));
    for (policy, vanished) in [
        (Policy::scope_public().with_in_flight(wait), false),
        (Policy::scope_public(), true),
        (most().with_recovery(|_| async { Recovery::NotExecuted }), true),
    ] {
        for fate in [Fate::DeadBefore, Fate::DeadAfter] {
            let memory = MemoryStorage::new();
            vanish(&memory, policy.clone(), "").await;
            let owner =
                Till::new(memory.clone(), Policy::scope_public(), |_, _| std::future::pending());
            let owner = tokio::spawn(async move {
                if !vanished {
                    owner.charge("a-key", "").await;
                }
            });
            tokio::task::yield_now().await;
            let staged = Staged::new(&memory);
            let till = Till::counting(staged.clone(), policy.clone().with_outage(Outage::Open));
            // The first operation finds the record.
            staged.plan(1, fate);
            let told = short(&till.charge("a-key", "").await);
            assert_eq!(till.executions(), 0, "{fate:?}, {vanished}");
            assert_eq!(told, (503, false, "unavailable".into()));
            owner.abort();
        }
    }
}

/// Whoever is told the number of its attempt looks for what others may have done, only if there were
/// others.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_refused_does_not_hide_the_one_that_vanished() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let memory = MemoryStorage::new();
    vanish(&memory, Policy::scope_public(), "").await;
    let attempts = Arc::clone(&seen);
    let till = Till::new(memory.clone(), Policy::scope_public(), move |execution, request| {
        attempts.lock().unwrap().push(request.extensions().get::<Idempotency>().unwrap().attempt());
        async move {
            match execution {
                1 => StatusCode::TOO_MANY_REQUESTS.into_response(),
                _ => receipt(execution),
            }
        }
    });
    assert_eq!(till.charge("a-key", "").await.status(), 429);
    assert_eq!(left(&memory).await, Left::Unknown);
    let strict = Till::counting(memory.clone(), most());
    assert_eq!(short(&strict.charge("a-key", "").await).2, "outcome-unknown");
    assert_eq!(till.charge("a-key", "").await.body(), "receipt 2");
    assert_eq!(*seen.lock().unwrap(), [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_must_not_begin_does_not_hide_the_one_that_vanished() {
    let memory = MemoryStorage::new();
    vanish(&memory, Policy::scope_public(), "").await;
    let staged = Staged::new(&memory);
    let till = Till::new(staged.clone(), Policy::scope_public(), |_, request| async move {
        let attempt = request.extensions().get::<Idempotency>().unwrap();
        match attempt.begin().await {
            Ok(()) => receipt(attempt.attempt() as usize),
            Err(error) => error.into_response(),
        }
    });
    // After the look and the take-over.
    staged.plan(2, Fate::MuteBefore);
    assert_eq!(short(&till.charge("a-key", "").await), (503, false, "unavailable".into()));
    assert_eq!(left(&memory).await, Left::Unknown);
    assert_eq!(till.charge("a-key", "").await.body(), "receipt 3");
}

/// A handler that says so itself has looked, and a recovery has, too.
#[tokio::test(start_paused = true)]
async fn who_knows_that_nothing_was_done_frees_a_key_that_was_taken_over() {
    let freed = |own: bool| {
        move |_: usize, _: Request<Body>| async move {
            let mut response = StatusCode::TOO_MANY_REQUESTS.into_response();
            if own {
                response.extensions_mut().insert(Disposition::Release);
            }
            response
        }
    };
    let recovers = Policy::scope_public().with_recovery(|_| async { Recovery::NotExecuted });
    for (policy, own) in [
        (Policy::scope_public(), true),
        (recovers, false),
        (Policy::scope_public().with_commit_point(), false),
    ] {
        let memory = MemoryStorage::new();
        vanish(&memory, policy.clone(), "").await;
        let till = Till::new(memory.clone(), policy, freed(own));
        assert_eq!(till.charge("a-key", "").await.status(), 429);
        assert_eq!(left(&memory).await, Left::Nothing);
    }
}

#[tokio::test(start_paused = true)]
async fn one_record_that_cannot_be_read_does_not_hide_the_others() {
    let memory = MemoryStorage::new();
    vanish(&memory, most(), "").await;
    let till = Till::counting(memory.clone(), most());
    assert_eq!(till.charge("a-key", "").await.status(), 409);
    assert_eq!(listed(&till.layer).await.len(), 1);
    let place = place_of("a-key").await;
    let garbage = Put::new("of a later release".into(), 100 * LEASE).with_condition(When::Always);
    memory.put(&place, garbage).await.unwrap();
    assert_eq!(listed(&till.layer).await, []);
}

/// What is dropped is dropped, also from what is known of an answer that is not kept.
#[tokio::test]
async fn a_location_that_is_dropped_is_not_told_to_duplicates() {
    for dropped in [false, true] {
        let mut policy = Policy::scope_public();
        if dropped {
            policy = policy.add_dropped_header("location");
        }
        let till = Till::new(MemoryStorage::new(), policy, |_, request| async move {
            request.extensions().get::<Idempotency>().unwrap().seal();
            Response::builder()
                .status(201)
                .header("location", "/reset/secret")
                .body(Body::empty())
                .unwrap()
        });
        let first = till.charge("a-key", "").await;
        assert_eq!(first.headers()["location"], "/reset/secret");
        let again = till.charge("a-key", "").await;
        assert_eq!(code(&again), "response-not-retained");
        assert_eq!(again.headers().contains_key("location"), !dropped);
    }
}

/// An operator has a ticket with the client's key in it.
#[tokio::test(start_paused = true)]
async fn an_operator_finds_a_key_by_what_the_client_says() {
    let memory = MemoryStorage::new();
    vanish(&memory, most(), "").await;
    let till = Till::counting(memory, most());
    till.charge("a-key", "").await;
    let keys = till.layer.keys();
    let key = IdempotencyKey::try_new("a-key").unwrap();
    let handle =
        keys.handle(tower_keep::storage::Identity::global(), &Method::POST, "/charge", &key);
    assert_eq!(listed(&till.layer).await[0].handle, handle);
    assert_eq!(keys.delete(handle).await.unwrap(), Resolution::Done);
    assert_eq!(IdempotencyKey::try_new(""), Err(KeyError::Empty));
    for text in ["a\tkey", "a\u{7f}", "ключ", "a\nkey"] {
        assert_eq!(IdempotencyKey::try_new(text), Err(KeyError::Malformed), "{text:?}");
    }
}

/// Programs read the `code`, whoever refuses.
#[tokio::test(start_paused = true)]
async fn refusals_of_the_extractor_and_of_begin_have_a_code() {
    async fn pay(attempt: Idempotency) -> Response<axum::body::Body> {
        match attempt.begin().await {
            Ok(()) => StatusCode::CREATED.into_response(),
            Err(error) => error.into_response(),
        }
    }
    let memory = MemoryStorage::new();
    let staged = Staged::new(&memory);
    let layer = IdempotencyLayer::new(staged.clone(), Policy::scope_public());
    let app = Router::new().route("/charge", post(pay)).layer(layer);
    let send = |request: Request<Body>| async {
        let response = app.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    };
    let bare = Request::post("/charge").body(Body::empty()).unwrap();
    assert_eq!(code(&send(bare).await), "key-missing");
    staged.plan(1, Fate::DeadBefore);
    let begins = send(charge("a-key", "")).await;
    assert_eq!((begins.status().as_u16(), code(&begins)), (503, "unavailable".into()));
}

#[tokio::test]
async fn a_key_can_be_kept_for_ever() {
    let (_server, storages) = storages("for-ever").await;
    for storage in storages {
        let policy = Policy::scope_public()
            .with_retention(Duration::MAX)
            .with_timeout(Duration::MAX)
            .with_longest_run(Duration::MAX)
            .with_body_timeout(Duration::MAX);
        let till = Till::counting(storage, policy);
        for replayed in [false, true] {
            assert_eq!(short(&till.charge("a-key", "").await), (201, replayed, String::new()));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn operators_see_a_key_whose_recovery_could_not_hand_over_to_the_handler() {
    let policy = most().with_recovery(|_| async { Recovery::NotExecuted });
    let memory = MemoryStorage::new();
    vanish(&memory, policy.clone(), "").await;
    let staged = Staged::new(&memory);
    let till = Till::counting(staged.clone(), policy);
    // After the look and the take-over.
    staged.plan(2, Fate::MuteBefore);
    assert_eq!(short(&till.charge("a-key", "").await), (503, false, "unavailable".into()));
    assert_eq!((left(&memory).await, till.executions()), (Left::Unknown, 0));
    assert_eq!(listed(&till.layer).await.len(), 1);
}

/// Handlers that nobody may cancel half-way do their work in a task of their own. Either that may begin,
/// or the key is freed, for there was nothing begun; never both.
#[tokio::test(start_paused = true)]
async fn a_key_is_not_freed_under_a_task_that_is_about_to_begin() {
    for stopped in [false, true] {
        for fate in [Fate::HeldBefore, Fate::HeldAfter] {
            let charged = Arc::new(Mutex::new(0));
            let memory = MemoryStorage::new();
            let staged = Staged::new(&memory);
            let storage = staged.clone().erase();
            let (notes, policy) = (Arc::clone(&charged), most().with_commit_point());
            let till = Till::new(storage.clone(), policy, move |_, request| {
                let attempt = request.extensions().get::<Idempotency>().unwrap().clone();
                let notes = Arc::clone(&notes);
                let work = tokio::spawn(async move {
                    attempt.begin().await.unwrap();
                    *notes.lock().unwrap() += 1;
                });
                async move {
                    match stopped {
                        true => work.await.unwrap(),
                        false => tokio::task::yield_now().await,
                    }
                    StatusCode::UNPROCESSABLE_ENTITY.into_response()
                }
            });
            // After the claim the handler begins.
            staged.plan(1, fate);
            let first = tokio::spawn({
                let till = till.clone();
                async move { till.charge("a-key", "").await }
            });
            staged.reached().await;
            if stopped {
                let _ = storage.shutdown(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            staged.release();
            first.await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert_eq!(*charged.lock().unwrap(), 1, "{fate:?}, {stopped}");
            till.charge("a-key", "").await;
            assert_eq!(till.executions(), 1, "{fate:?}, {stopped}");
        }
    }
}
