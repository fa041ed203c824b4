//! The states of a key, one test for each row of the design's table.
//!
//! | from | event | test |
//! |---|---|---|
//! | absent | request | `a_free_key_is_claimed_and_its_handler_runs_in_a_task_of_its_own` |
//! | pending | other fingerprint | `another_request_is_refused_before_it_is_told_of_the_first` |
//! | pending, lease live | duplicate | `a_duplicate_is_told_to_come_back_or_waits_as_long_as_it_may` |
//! | pending | heartbeat | `a_running_handler_keeps_its_key_until_the_longest_run` |
//! | pending | heartbeat of a stranger | `an_owner_that_was_overtaken_extends_nothing` |
//! | pending | storable answer | `an_answer_is_kept_for_the_retention_from_the_end_on` |
//! | pending | answer that cannot be kept | `an_answer_that_cannot_be_kept_seals_its_key` |
//! | pending | answer that may be repeated | `an_answer_that_nothing_was_done_frees_its_key` |
//! | pending | 5xx | `an_error_of_the_server_is_kept_unless_the_policy_frees_it` |
//! | pending | panic | `a_panic_is_kept_sealed_or_freed_as_the_policy_says` |
//! | pending | client gone | `a_client_that_is_gone_finds_its_answer_later` |
//! | pending | timeout outside | `a_timeout_outside_of_the_layer_is_a_client_that_is_gone` |
//! | pending | timeout inside | `a_timeout_inside_of_the_layer_is_an_answer` |
//! | pending | shutdown | `a_shutdown_waits_for_handlers_and_marks_what_it_gives_up` |
//! | pending, lease over | duplicate, at least once | `a_vanished_owner_is_followed_by_a_higher_attempt` |
//! | pending, lease over | duplicate, at most once | `a_vanished_owner_leaves_an_unknown_outcome` |
//! | pending, taken over | old owner late | `the_answer_of_an_overtaken_owner_is_dropped` |
//! | done, sealed | duplicate | `what_was_executed_is_told_again_and_never_repeated` |
//! | done, sealed, unknown | other fingerprint | `another_request_is_refused_in_every_state` |
//! | any | retention over | `after_the_retention_a_key_is_a_new_request` |
//! | any | storage away before the handler | `without_the_storage_a_request_is_refused_or_passes` |
//! | pending | storage away at the end | `an_answer_that_cannot_be_stored_yet_is_stored_later` |
//! | pending | the same for a lease | `an_answer_that_cannot_be_stored_for_a_lease_is_as_good_as_lost` |

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Response, StatusCode},
};
use bytes::Bytes;
use futures_util::stream;
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt;
use tower_keep::{
    IdempotencyLayer, MemoryStorage, Storage,
    idempotency::{Disposition, InFlight, Outage, Outcome, Policy, Repeat},
};

use crate::{
    till::{Till, charge, code, is_replay, receipt},
    wire::{LEASE, Line, Owner, Wire, attempt_of, late, settle, unknown},
};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3_600);

fn policy() -> Policy {
    Policy::scope_public()
}

fn most() -> Policy {
    policy().with_repeat(Repeat::AtMostOnce)
}

fn told(response: &Response<Bytes>) -> (u16, String) {
    (response.status().as_u16(), code(response))
}

fn with_status(status: u16) -> Response<Body> {
    Response::builder().status(status).body(Body::from("as the test wants it")).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_free_key_is_claimed_and_its_handler_runs_in_a_task_of_its_own() {
    let tasks = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&tasks);
    let till = Till::new(MemoryStorage::new(), policy(), move |execution, request| {
        seen.lock().unwrap().push(tokio::task::id());
        assert_eq!(attempt_of(&request).attempt(), 1);
        async move { receipt(execution) }
    });
    let own = tokio::spawn({
        let till = till.clone();
        async move {
            assert_eq!(till.charge("a-key", "").await.body(), "receipt 1");
            tokio::task::id()
        }
    });
    let own = own.await.unwrap();
    assert_eq!(tasks.lock().unwrap().len(), 1);
    assert_ne!(tasks.lock().unwrap()[0], own);
}

#[tokio::test(start_paused = true)]
async fn another_request_is_refused_before_it_is_told_of_the_first() {
    let waits = policy().with_in_flight(InFlight::Wait(SECOND));
    let owner = Owner::of(MemoryStorage::new(), waits, "a-key", false).await;
    let began = Instant::now();
    let other = owner.till.charge("a-key", "999 EUR").await;
    assert_eq!(told(&other), (422, "mismatch".into()));
    assert_eq!(began.elapsed(), Duration::ZERO, "it does not wait either");
    owner.ends().await;
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_told_to_come_back_or_waits_as_long_as_it_may() {
    let conflict = policy().with_retry_after(Duration::from_millis(2_500));
    let owner = Owner::of(MemoryStorage::new(), conflict, "a-key", false).await;
    let duplicate = owner.till.charge("a-key", "").await;
    assert_eq!(told(&duplicate), (409, "in-flight".into()));
    assert_eq!(duplicate.headers()["retry-after"], "3");
    owner.ends().await;

    let waits = policy().with_in_flight(InFlight::Wait(5 * SECOND));
    let owner = Owner::of(MemoryStorage::new(), waits, "a-key", false).await;
    let began = Instant::now();
    assert_eq!(told(&owner.till.charge("a-key", "").await), (409, "in-flight".into()));
    assert_eq!(began.elapsed(), 5 * SECOND);
    let duplicate = tokio::spawn({
        let till = owner.till.clone();
        async move { till.charge("a-key", "").await }
    });
    sleep(SECOND).await;
    assert_eq!(owner.ends().await.body(), "late receipt");
    let duplicate = duplicate.await.unwrap();
    assert!(is_replay(&duplicate));
    assert_eq!(duplicate.body(), "late receipt");
}

#[tokio::test(start_paused = true)]
async fn a_running_handler_keeps_its_key_until_the_longest_run() {
    let storage = MemoryStorage::new();
    let policy = policy().with_longest_run(100 * SECOND);
    let owner = Owner::of(storage.clone(), policy.clone(), "a-key", false).await;
    let other = Till::counting(Wire::new(storage), policy);
    for _ in 0..12 {
        sleep(10 * SECOND).await;
        assert_eq!(code(&other.charge("a-key", "").await), "in-flight");
    }
    sleep(10 * SECOND).await;
    assert_eq!(other.charge("a-key", "").await.body(), "receipt 1");
    owner.ends().await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_overtaken_extends_nothing() {
    let storage = MemoryStorage::new();
    let first = Owner::vanished(storage.clone(), policy(), "a-key", false).await;
    let second = Owner::of(storage.clone(), policy(), "a-key", false).await;
    first.wire.set(Line::Up);
    second.fall_silent().await;
    // The first lives, and gives signs of life to nobody.
    let third = Till::counting(storage, policy());
    assert_eq!(third.charge("a-key", "").await.body(), "receipt 1");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_for_the_retention_from_the_end_on() {
    let policy = policy().with_retention(100 * SECOND);
    let owner = Owner::of(MemoryStorage::new(), policy, "a-key", false).await;
    let till = owner.till.clone();
    sleep(250 * SECOND).await;
    owner.ends().await;
    sleep(99 * SECOND).await;
    assert!(is_replay(&till.charge("a-key", "").await));
    // Being asked for does not prolong it.
    sleep(2 * SECOND).await;
    let again = timeout(SECOND, till.charge("a-key", "")).await;
    assert!(again.is_err(), "the handler runs, and waits");
    assert_eq!(till.executions(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_kept_seals_its_key() {
    type Make = fn() -> Response<Body>;
    let answers: [(&str, Make); 4] = [
        ("too-large", || Response::new(Body::from(vec![b'x'; 101]))),
        ("streaming", || {
            let body = Body::from_stream(stream::iter([Ok::<_, std::io::Error>("data: x\n\n")]));
            Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
        }),
        ("streaming", || {
            let never = stream::once(async {
                sleep(61 * SECOND).await;
                Ok::<_, std::io::Error>("at last")
            });
            Response::new(Body::from_stream(never))
        }),
        ("failed", || {
            let parts = [Ok("part"), Err(std::io::Error::other("on purpose"))];
            Response::new(Body::from_stream(stream::iter(parts)))
        }),
    ];
    for (reason, answer) in answers {
        let policy = policy().with_max_response_body(100);
        let till = Till::new(MemoryStorage::new(), policy, move |_, _| async move {
            let mut response = answer();
            *response.status_mut() = StatusCode::CREATED;
            response.headers_mut().insert("location", "/receipts/1".parse().unwrap());
            response
        });
        let first = till.router.clone().oneshot(charge("a-key", "")).await.unwrap();
        assert_eq!(first.status(), 201);
        let _ = http_body_util::BodyExt::collect(first.into_body()).await;
        sleep(SECOND).await;
        for _ in 0..2 {
            let again = till.charge("a-key", "").await;
            assert_eq!(told(&again), (409, "response-not-retained".into()), "{reason}");
            assert_eq!(again.headers()["location"], "/receipts/1");
            let problem: serde_json::Value = serde_json::from_slice(again.body()).unwrap();
            assert_eq!(problem["original-status"], 201);
            assert_eq!(problem["reason"], reason);
            assert_eq!(again.extensions().get(), Some(&Outcome::Sealed));
            assert!(!again.headers().contains_key("retry-after"));
        }
        assert_eq!(till.executions(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nothing_was_done_frees_its_key() {
    type Make = fn() -> Response<Body>;
    let answers: [Make; 5] = [
        || with_status(429),
        || with_status(422),
        || with_status(401),
        || {
            let mut response = with_status(503);
            response.headers_mut().insert("retry-after", "7".parse().unwrap());
            response
        },
        || {
            let mut response = with_status(409);
            response.extensions_mut().insert(Disposition::Release);
            response
        },
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let till = Till::new(MemoryStorage::new(), policy(), move |execution, _| async move {
            if execution == 1 { answer() } else { receipt(execution) }
        });
        let first = till.charge("a-key", "").await;
        assert_eq!(first.body(), "as the test wants it", "{number}");
        assert_eq!(first.extensions().get(), Some(&Outcome::Executed));
        // The key is free for another request, too.
        assert_eq!(till.charge("a-key", "mended").await.body(), "receipt 2", "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_server_is_kept_unless_the_policy_frees_it() {
    for frees in [false, true] {
        let policy = match frees {
            true => policy().with_classifier(|_| Disposition::Release),
            false => policy(),
        };
        let till = Till::new(MemoryStorage::new(), policy, |_, _| async { with_status(503) });
        assert_eq!(till.charge("a-key", "").await.status(), 503);
        assert_eq!(is_replay(&till.charge("a-key", "").await), !frees);
        assert_eq!(till.executions(), 1 + usize::from(frees));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_kept_sealed_or_freed_as_the_policy_says() {
    for failure in [Disposition::Store, Disposition::Seal, Disposition::Release] {
        let policy = policy().with_failure(failure);
        let till = Till::new(MemoryStorage::new(), policy, |_, _| async {
            panic!("as the test wants it")
        });
        assert_eq!(told(&till.charge("a-key", "").await), (500, "handler-failed".into()));
        let again = till.charge("a-key", "").await;
        let wanted = match failure {
            Disposition::Store => (500, "handler-failed", true, 1),
            Disposition::Seal => (409, "response-not-retained", false, 1),
            Disposition::Release => (500, "handler-failed", false, 2),
        };
        let (status, code) = told(&again);
        assert_eq!((status, &*code, is_replay(&again), till.executions()), wanted);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_gone_finds_its_answer_later() {
    let till = Till::new(Wire::new(MemoryStorage::new()), policy(), |execution, _| async move {
        sleep(200 * SECOND).await;
        receipt(execution)
    });
    let gone = tokio::spawn({
        let till = till.clone();
        async move { till.charge("a-key", "").await }
    });
    sleep(SECOND).await;
    gone.abort();
    sleep(198 * SECOND).await;
    assert_eq!(code(&till.charge("a-key", "").await), "in-flight");
    sleep(2 * SECOND).await;
    assert!(is_replay(&till.charge("a-key", "").await));
    assert_eq!(till.executions(), 1);
}

/// The handlers take two seconds, and there is patience for one.
async fn in_time<F, B, E>(work: F) -> Result<Response<Body>, E>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    match timeout(SECOND, work).await {
        Ok(answer) => answer.map(|response| response.map(Body::new)),
        Err(_) => Ok(with_status(504)),
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_outside_of_the_layer_is_a_client_that_is_gone() {
    let till = Till::new(MemoryStorage::new(), policy(), |execution, _| async move {
        sleep(2 * SECOND).await;
        receipt(execution)
    });
    let answer = in_time(till.router.clone().oneshot(charge("a-key", ""))).await.unwrap();
    assert_eq!(answer.status(), 504);
    sleep(2 * SECOND).await;
    let again = till.charge("a-key", "").await;
    assert_eq!((again.status().as_u16(), is_replay(&again)), (201, true));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_inside_of_the_layer_is_an_answer() {
    let slow = tower::service_fn(|_: axum::http::Request<Body>| async move {
        sleep(2 * SECOND).await;
        Ok::<_, std::convert::Infallible>(receipt(1))
    });
    let limited = tower::service_fn(move |request| in_time(slow.oneshot(request)));
    let layer = IdempotencyLayer::new(MemoryStorage::new(), policy());
    let app = tower::Layer::layer(&layer, limited);
    for replayed in [false, true] {
        let answer = app.clone().oneshot(charge("a-key", "")).await.unwrap();
        assert_eq!(answer.status(), 504);
        assert_eq!(answer.headers().contains_key("idempotent-replayed"), replayed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_handlers_and_marks_what_it_gives_up() {
    let memory = MemoryStorage::new();
    let run = |seconds| {
        let storage = Wire::new(memory.clone()).erase();
        let till = Till::new(storage.clone(), most(), move |_, _| async move {
            sleep(seconds * SECOND).await;
            late()
        });
        (storage, till)
    };
    let next = Till::counting(memory.clone(), most());

    let (storage, till) = run(5);
    let first = tokio::spawn(async move { till.charge("drained", "").await });
    settle().await;
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert_eq!(first.await.unwrap().body(), "late receipt");
    assert!(is_replay(&next.charge("drained", "").await));

    let (storage, till) = run(50);
    let first = tokio::spawn(async move { till.charge("given-up", "").await });
    settle().await;
    assert!(storage.shutdown(10 * SECOND).await.is_clean(), "its word was left");
    assert_eq!(told(&first.await.unwrap()), (503, "stopping".into()));
    // At once, not only after a lease.
    assert_eq!(told(&next.charge("given-up", "").await), (409, "outcome-unknown".into()));
    assert_eq!(unknown(&next).await.len(), 1);
    assert_eq!(next.executions(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_vanished_owner_is_followed_by_a_higher_attempt() {
    let storage = MemoryStorage::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..3 {
        let seen = Arc::clone(&seen);
        let wire = Wire::new(storage.clone());
        let till = Till::new(wire.clone(), policy(), move |_, request| {
            let attempt = attempt_of(&request);
            seen.lock().unwrap().push((attempt.attempt(), attempt.fence()));
            std::future::pending()
        });
        assert!(timeout(SECOND, till.charge("a-key", "")).await.is_err());
        wire.set(Line::Down);
        sleep(LEASE).await;
    }
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(seen.is_sorted_by(|(_, a), (_, b)| a < b), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_vanished_owner_leaves_an_unknown_outcome() {
    let storage = MemoryStorage::new();
    let _owner = Owner::vanished(storage.clone(), most(), "a-key", false).await;
    let till = Till::counting(storage, most());
    for _ in 0..3 {
        let answer = till.charge("a-key", "").await;
        assert_eq!(told(&answer), (409, "outcome-unknown".into()));
        assert_eq!(answer.extensions().get(), Some(&Outcome::Unknown));
        assert!(!answer.headers().contains_key("retry-after"));
    }
    assert_eq!(till.executions(), 0);
    assert_eq!(unknown(&till).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_answer_of_an_overtaken_owner_is_dropped() {
    // The other has stored its answer: both are told the same.
    let storage = MemoryStorage::new();
    let owner = Owner::vanished(storage.clone(), policy(), "a-key", false).await;
    let till = Till::counting(storage, policy());
    assert_eq!(till.charge("a-key", "").await.body(), "receipt 1");
    let told = owner.comes_back().await;
    assert_eq!((told.body().as_ref(), is_replay(&told)), (&b"receipt 1"[..], true));
    assert_eq!(till.charge("a-key", "").await.body(), "receipt 1");

    // It is still at it: the old owner's client is told what its own handler said.
    let storage = MemoryStorage::new();
    let owner = Owner::vanished(storage.clone(), policy(), "a-key", false).await;
    let second = Owner::of(storage.clone(), policy(), "a-key", false).await;
    let told = owner.comes_back().await;
    assert_eq!((told.body().as_ref(), is_replay(&told)), (&b"late receipt"[..], false));
    let till = Till::counting(storage, policy());
    assert_eq!(code(&till.charge("a-key", "").await), "in-flight");
    second.ends().await;
    assert!(is_replay(&till.charge("a-key", "").await));
}

#[tokio::test(start_paused = true)]
async fn what_was_executed_is_told_again_and_never_repeated() {
    let storage = MemoryStorage::new();
    let till = Till::new(Wire::new(storage.clone()), policy(), |execution, request| async move {
        if request.uri().path() == "/secret" {
            attempt_of(&request).seal();
        }
        receipt(execution)
    });
    let secret = || {
        let mut request = charge("a-key", "");
        *request.uri_mut() = "/secret".parse().unwrap();
        request
    };
    till.charge("a-key", "").await;
    till.send(secret()).await;
    let elsewhere = Till::counting(storage, policy());
    for till in [&till, &elsewhere] {
        for _ in 0..3 {
            let again = till.charge("a-key", "").await;
            assert_eq!((again.body().as_ref(), is_replay(&again)), (&b"receipt 1"[..], true));
            assert_eq!(again.extensions().get(), Some(&Outcome::Replayed));
            assert_eq!(told(&till.send(secret()).await), (409, "response-not-retained".into()));
        }
    }
    assert_eq!((till.executions(), elsewhere.executions()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn another_request_is_refused_in_every_state() {
    let storage = MemoryStorage::new();
    let till = Till::new(storage.clone(), most(), |execution, request| async move {
        if request.headers()["idempotency-key"] == "sealed" {
            attempt_of(&request).seal();
        }
        receipt(execution)
    });
    till.charge("done", "").await;
    till.charge("sealed", "").await;
    let _owner = Owner::vanished(storage.clone(), most(), "unknown", false).await;
    for (key, state) in
        [("done", 201), ("sealed", 409), ("unknown", 409), ("unknown", 409), ("done", 201)]
    {
        assert_eq!(told(&till.charge(key, "999 EUR").await), (422, "mismatch".into()), "{key}");
        assert_eq!(till.charge(key, "").await.status(), state, "{key}");
    }
    assert_eq!(till.executions(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_the_retention_a_key_is_a_new_request() {
    let storage = MemoryStorage::new();
    let till = Till::new(storage.clone(), most(), |execution, request| async move {
        if request.headers()["idempotency-key"] == "sealed" {
            attempt_of(&request).seal();
        }
        receipt(execution)
    });
    till.charge("done", "").await;
    till.charge("sealed", "").await;
    let _owner = Owner::vanished(storage.clone(), most(), "unknown", false).await;
    till.charge("unknown", "").await;
    sleep(DAY - 60 * SECOND).await;
    for (key, state) in [("done", 201), ("sealed", 409), ("unknown", 409)] {
        assert_eq!(till.charge(key, "").await.status(), state, "{key}");
    }
    assert_eq!(till.executions(), 2);
    sleep(61 * SECOND).await;
    for (number, key) in ["done", "sealed", "unknown"].into_iter().enumerate() {
        let answer = till.charge(key, "another one").await;
        assert_eq!(answer.body(), &format!("receipt {}", number + 3), "{key}");
        assert!(!is_replay(&answer));
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_storage_a_request_is_refused_or_passes() {
    for line in [Line::Down, Line::Mute] {
        for outage in [Outage::Closed, Outage::Open] {
            let wire = Wire::new(MemoryStorage::new());
            let till = Till::counting(wire.clone(), policy().with_outage(outage));
            wire.set(line);
            let answer = till.charge("a-key", "").await;
            match outage {
                Outage::Closed => {
                    assert_eq!(told(&answer), (503, "unavailable".into()));
                    assert_eq!(answer.headers()["retry-after"], "1");
                    assert_eq!(answer.extensions().get(), Some(&Outcome::Unavailable));
                }
                _ => {
                    assert_eq!(answer.body(), "receipt 1");
                    assert_eq!(answer.extensions().get(), Some(&Outcome::Unprotected));
                }
            }
            assert_eq!(till.executions(), usize::from(outage == Outage::Open));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_stored_yet_is_stored_later() {
    for line in [Line::Down, Line::Mute] {
        let storage = MemoryStorage::new();
        let owner = Owner::of(storage.clone(), most(), "a-key", false).await;
        let (wire, till) = (owner.wire.clone(), Till::counting(storage, most()));
        wire.set(line);
        assert_eq!(owner.ends().await.body(), "late receipt", "its client is told at once");
        sleep(10 * SECOND).await;
        wire.set(Line::Up);
        sleep(2 * SECOND).await;
        let again = till.charge("a-key", "").await;
        assert_eq!((again.body().as_ref(), is_replay(&again)), (&b"late receipt"[..], true));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_stored_for_a_lease_is_as_good_as_lost() {
    for repeat in [Repeat::AtMostOnce, Repeat::AtLeastOnce] {
        let (storage, policy) = (MemoryStorage::new(), policy().with_repeat(repeat));
        let owner = Owner::of(storage.clone(), policy.clone(), "a-key", false).await;
        owner.wire.set(Line::Down);
        let wire = owner.wire.clone();
        assert_eq!(owner.ends().await.body(), "late receipt");
        sleep(LEASE + 2 * SECOND).await;
        wire.set(Line::Up);
        sleep(LEASE).await;
        let till = Till::counting(storage, policy);
        let answer = till.charge("a-key", "").await;
        match repeat {
            Repeat::AtMostOnce => assert_eq!(code(&answer), "outcome-unknown"),
            _ => assert_eq!(answer.body(), "receipt 1"),
        }
    }
}
