//! Policies that cannot be used, and what is shown of those that can.

use std::{
    panic::catch_unwind,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::{Method, Response, StatusCode};
use tower::Layer;
use tower_keep::{
    IdempotencyLayer, MemoryStorage,
    idempotency::{
        Answer, Disposition, IdempotencyKey, InFlight, KeyCursor, Policy, PolicyError, Recovery,
        Repeat,
    },
};

use crate::{
    till::{Till, charge, receipt},
    wire::{Owner, attempt_of, unknown},
};

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy::scope_public()
}

#[test]
fn a_policy_that_cannot_be_used_is_refused_with_what_to_do() {
    let tenth = Duration::from_millis(100);
    let short = tenth - Duration::from_nanos(1);
    let long = "n".repeat(41);
    let rows: [(Policy, PolicyError, &str); 17] = [
        (policy().with_name(""), PolicyError::Name("".into()), "use 1 to 40 characters"),
        (policy().with_name("a b"), PolicyError::Name("a b".into()), "from a-z"),
        (policy().with_name("naïve"), PolicyError::Name("naïve".into()), "from a-z"),
        (policy().with_name(&long), PolicyError::Name(long.clone()), "use 1 to 40 characters"),
        (policy().with_lease(short), PolicyError::Lease(short), "choose 100 ms or more"),
        (
            policy().with_lease(Duration::ZERO),
            PolicyError::Lease(Duration::ZERO),
            "choose 100 ms or more",
        ),
        (
            policy().with_retention(30 * SECOND),
            PolicyError::Retention(30 * SECOND),
            "choose one longer than the lease",
        ),
        (
            policy().with_retention(Duration::ZERO),
            PolicyError::Retention(Duration::ZERO),
            "a day is usual",
        ),
        (
            policy().with_lease(48 * 3_600 * SECOND),
            PolicyError::Retention(24 * 3_600 * SECOND),
            "longer than the lease",
        ),
        (policy().with_timeout(Duration::ZERO), PolicyError::Timeout, "every operation"),
        (policy().with_methods([]), PolicyError::Methods, "with_methods"),
        (
            policy().with_key_length(0, 0),
            PolicyError::KeyLength { min: 0, max: 0 },
            "at least 0 and at most 0",
        ),
        (
            policy().with_key_length(9, 8),
            PolicyError::KeyLength { min: 9, max: 8 },
            "at least 9 and at most 8",
        ),
        (policy().with_max_in_flight(0), PolicyError::InFlight(0), "1 to 1000"),
        (policy().with_max_in_flight(1_001), PolicyError::InFlight(1_001), "1 to 1000"),
        (policy().with_max_in_flight(u32::MAX), PolicyError::InFlight(u32::MAX), "1 to 1000"),
        (policy().with_max_running(0), PolicyError::Running, "no handler running"),
    ];
    for (policy, wanted, advice) in rows {
        let error = IdempotencyLayer::try_new(MemoryStorage::new(), policy).unwrap_err();
        assert_eq!(error, wanted);
        assert!(error.to_string().contains(advice), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_extremes_that_are_allowed_work() {
    let policies = [
        policy().with_lease(SECOND / 10).with_retention(Duration::from_millis(101)),
        policy().with_retention(Duration::MAX),
        policy().with_retention(Duration::MAX).with_lease(Duration::MAX - SECOND),
        policy().with_timeout(Duration::MAX),
        policy().with_body_timeout(Duration::MAX),
        policy().with_retry_after(Duration::MAX).with_longest_run(Duration::MAX),
        policy().with_longest_run(Duration::ZERO).with_body_timeout(Duration::ZERO),
        policy().with_max_running(usize::MAX).with_max_waiting(usize::MAX),
        policy().with_max_waiting(0).with_in_flight(InFlight::Wait(SECOND)),
        policy().with_max_in_flight(1_000).with_max_stored(u32::MAX),
        policy().with_max_stored(0),
        policy().with_max_response_body(usize::MAX).with_max_request_body(usize::MAX),
        policy().with_name(&"n".repeat(40)),
    ];
    for policy in policies {
        let shown = format!("{policy:?}");
        let owner = Owner::of(MemoryStorage::new(), policy, "a-key", true).await;
        let till = owner.till.clone();
        assert_eq!(till.charge("a-key", "").await.status(), 409, "{shown}");
        assert_eq!(owner.ends().await.status(), 201, "{shown}");
        let again = till.charge("a-key", "").await;
        assert!([201, 409].contains(&again.status().as_u16()), "{shown}");
        assert_eq!(till.executions(), 1);
    }
}

#[test]
fn what_panics_points_at_its_caller() {
    let place = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&place);
    let before = std::panic::take_hook();
    let here = std::thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() == here {
            *seen.lock().unwrap() = panic.location().map(|at| at.file().to_owned());
        }
    }));
    let panics: [fn(); 6] = [
        || drop(IdempotencyLayer::new(MemoryStorage::new(), policy().with_name(""))),
        || drop(policy().with_header("not a name")),
        || drop(policy().add_dropped_header("")),
        || drop(policy().with_kept_headers(["fine", "not fine"])),
        || drop(policy().with_documentation("https://example.org/a b")),
        || drop(policy().with_documentation("line\nbreak")),
    ];
    let places: Vec<_> = panics
        .into_iter()
        .map(|panic| (catch_unwind(panic).is_err(), place.lock().unwrap().take()))
        .collect();
    std::panic::set_hook(before);
    for (number, place) in places.into_iter().enumerate() {
        assert_eq!(place, (true, Some(file!().to_owned())), "{number}");
    }
}

/// What must be shown nowhere.
const SECRETS: [&str; 4] = ["secret-key", "secret-scope", "secret-body", "secret-answer"];

fn check(shown: String) {
    assert!(!shown.is_empty());
    for secret in SECRETS {
        assert!(!shown.contains(secret), "{shown}");
        let bytes = format!("{:?}", secret.as_bytes());
        assert!(!shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn debug_output_shows_no_secrets() {
    let policy = Policy::scope(|_| Some("secret-scope"))
        .with_recovery(|vanished| async move {
            check(format!("{vanished:?} {vanished:#?}"));
            Recovery::Unknown
        })
        .with_classifier(|answer: &Answer<'_>| {
            check(format!("{answer:?}"));
            Disposition::Store
        });
    let storage = MemoryStorage::new();
    let _owner = Owner::vanished(storage.clone(), policy.clone(), "secret-key", true).await;
    let till = Till::new(storage.clone(), policy.clone(), |_, request| async move {
        let attempt = attempt_of(&request);
        check(format!("{attempt:?} {attempt:#?} {:?}", attempt.key()));
        let error = attempt.begin().await;
        check(format!("{error:?}"));
        let mut answer = receipt(1);
        *answer.body_mut() = "secret-answer".into();
        answer
    });
    let answer = till.charge("secret-key", "secret-body").await;
    assert_eq!(answer.status(), 422, "another body");
    check(format!("{answer:?} {:?}", answer.extensions()));
    assert_eq!(till.charge("secret-key", "").await.status(), 409);
    assert_eq!(till.charge("secret-key-2", "secret-body").await.body(), "secret-answer");
    let service = till.layer.layer(tower::service_fn(|_: axum::extract::Request| async {
        Ok::<_, std::convert::Infallible>(receipt(1))
    }));
    check(format!("{policy:?} {:#?} {:?}", till.layer, till.layer.keys()));
    // The inner service is a closure, which shows nothing.
    check(format!("{:?}", service.get_ref()));
    let listed = unknown(&till).await;
    assert_eq!(listed.len(), 1);
    let page = till.layer.keys().list(KeyCursor::START).await.unwrap();
    check(format!("{listed:?} {page:?}"));
    let key: IdempotencyKey = "secret-key".parse().unwrap();
    check(format!("{key:?} {:?}", "secret-key\n".parse::<IdempotencyKey>()));
    let handle = till.layer.keys().handle("secret-scope", &Method::POST, "/charge", &key);
    assert_eq!(listed[0].handle, handle);
    check(format!("{handle} {handle:?}"));
    let response = Response::new("secret-answer".into());
    check(format!("{:?}", till.layer.keys().resolve(handle, response).await));
    check(format!("{:?}", till.layer.keys().seal(handle, StatusCode::OK).await));
    for unfit in [Repeat::AtLeastOnce, Repeat::AtMostOnce] {
        let unfit = Policy::scope(|_| Some("secret-scope")).with_repeat(unfit).with_name("");
        check(format!("{:?}", IdempotencyLayer::try_new(storage.clone(), unfit).unwrap_err()));
    }
    drop(charge("secret-key", ""));
}
