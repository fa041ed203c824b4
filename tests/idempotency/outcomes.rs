//! What the layer says of what it did: to layers outside, and to the client by `Idempotent-Replayed`,
//! which is on replays and nowhere else.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, Response},
};
use bytes::Bytes;
use tokio::{sync::Notify, time::sleep};
use tower_keep::{
    MemoryStorage,
    idempotency::{Outage, Outcome, Policy, Recovery, Repeat},
    marks::ReplayMark,
};

use crate::{
    till::{Till, code, is_replay, receipt},
    watched::Watched,
};

const LEASE: Duration = Duration::from_secs(30);

/// A till whose handler waits to be told, but for the paths that say otherwise.
struct Stage {
    storage: Watched,
    till: Till,
    go: Arc<Notify>,
}

impl Stage {
    fn new(policy: Policy) -> Self {
        let storage = Watched::new(MemoryStorage::new());
        let go = Arc::new(Notify::new());
        let told = Arc::clone(&go);
        let policy = policy.with_lease(LEASE);
        let till = Till::new(storage.clone(), policy, move |execution, request: Request<Body>| {
            let told = Arc::clone(&told);
            async move {
                match request.uri().path() {
                    "/waits" => told.notified().await,
                    "/panics" => panic!("on purpose"),
                    _ => {}
                }
                receipt(execution)
            }
        });
        Self { storage, till, go }
    }

    async fn expect(&self, request: Request<Body>, outcome: Option<Outcome>, status: u16) {
        let answer = self.till.send(request).await;
        assert_eq!(answer.extensions().get(), outcome.as_ref(), "{answer:?}");
        assert_eq!(answer.status(), status, "{answer:?}");
        let replayed = outcome == Some(Outcome::Replayed);
        let lines = answer.headers().get_all("idempotent-replayed").iter().count();
        assert_eq!((is_replay(&answer), lines), (replayed, usize::from(replayed)), "{answer:?}");
        assert_eq!(answer.extensions().get::<ReplayMark>().is_some(), replayed, "{answer:?}");
        if let Some(outcome) = outcome
            && status >= 400
            && !replayed
        {
            let word = match outcome {
                Outcome::Unknown => "outcome-unknown",
                Outcome::Failed => "handler-failed",
                other => other.as_str(),
            };
            assert_eq!(code(&answer), word);
            let waits = matches!(status, 409 | 429 | 503) && outcome != Outcome::Unknown;
            assert_eq!(answer.headers().contains_key("retry-after"), waits, "{answer:?}");
        }
    }

    /// A request that is under way from now on.
    async fn begin(&self, key: &'static str) {
        let till = self.till.clone();
        tokio::spawn(async move { till.send(to("/waits", key)).await });
        sleep(Duration::from_millis(1)).await;
    }

    /// One whose owner cannot give a sign of life for a lease, and then ends.
    async fn vanish(&self, key: &'static str) {
        self.begin(key).await;
        self.storage.cut_off(true);
        sleep(LEASE * 2).await;
        self.storage.cut_off(false);
    }
}

fn to(path: &str, key: &str) -> Request<Body> {
    Request::post(path).header("idempotency-key", key).body(Body::empty()).unwrap()
}

fn policy() -> Policy {
    Policy::scope_public()
}

#[tokio::test(start_paused = true)]
async fn every_outcome_is_said_and_replays_alone_are_marked() {
    let stage = Stage::new(policy().with_max_running(2).with_max_in_flight(1));
    stage.expect(to("/", "a"), Some(Outcome::Executed), 201).await;
    for _ in 0..2 {
        stage.expect(to("/", "a"), Some(Outcome::Replayed), 201).await;
    }
    stage.expect(Request::get("/").body(Body::empty()).unwrap(), None, 201).await;
    stage.expect(Request::post("/").body(Body::empty()).unwrap(), None, 201).await;
    let other = to("/", "a").map(|_| Body::from("other"));
    stage.expect(other, Some(Outcome::Mismatch), 422).await;
    stage.expect(to("/panics", "a"), Some(Outcome::Failed), 500).await;
    stage.expect(to("/panics", "a"), Some(Outcome::Replayed), 500).await;

    stage.begin("b").await;
    stage.expect(to("/waits", "b"), Some(Outcome::InFlight), 409).await;
    let executions = stage.till.executions();
    for _ in 0..2 {
        // Refused each time: the key stays free.
        stage.expect(to("/", "c"), Some(Outcome::TooManyInFlight), 429).await;
    }
    stage.expect(to("/", "a"), Some(Outcome::Replayed), 201).await;
    assert_eq!(stage.till.executions(), executions);
    stage.go.notify_one();
    sleep(Duration::from_millis(1)).await;
    stage.expect(to("/waits", "b"), Some(Outcome::Replayed), 201).await;
    stage.expect(to("/", "c"), Some(Outcome::Executed), 201).await;

    let stage = Stage::new(policy().with_max_running(1));
    stage.expect(to("/", "a"), Some(Outcome::Executed), 201).await;
    stage.begin("b").await;
    stage.expect(to("/", "c"), Some(Outcome::Busy), 503).await;
    stage.expect(to("/", "a"), Some(Outcome::Replayed), 201).await;
    stage.go.notify_one();
    sleep(Duration::from_millis(1)).await;
    stage.expect(to("/", "c"), Some(Outcome::Executed), 201).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_said_to_be_one() {
    let stage = Stage::new(policy());
    stage.expect(to("/", "a"), Some(Outcome::Executed), 201).await;
    stage.storage.cut_off(true);
    for key in ["a", "b"] {
        stage.expect(to("/", key), Some(Outcome::Unavailable), 503).await;
    }
    assert_eq!(stage.till.executions(), 1);
    stage.storage.cut_off(false);
    stage.expect(to("/", "a"), Some(Outcome::Replayed), 201).await;
    stage.expect(to("/", "b"), Some(Outcome::Executed), 201).await;

    let stage = Stage::new(policy().with_outage(Outage::Open));
    stage.storage.cut_off(true);
    for _ in 0..2 {
        stage.expect(to("/", "a"), Some(Outcome::Unprotected), 201).await;
    }
    assert_eq!(stage.till.executions(), 2);
    stage.storage.cut_off(false);
    stage.expect(to("/", "a"), Some(Outcome::Executed), 201).await;
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_vanished_owner_is_said() {
    let stage = Stage::new(policy().with_repeat(Repeat::AtMostOnce));
    stage.vanish("a").await;
    for _ in 0..2 {
        stage.expect(to("/waits", "a"), Some(Outcome::Unknown), 409).await;
    }
    // It was only slow, and says what came of it.
    stage.go.notify_one();
    sleep(Duration::from_secs(2)).await;
    stage.expect(to("/waits", "a"), Some(Outcome::Replayed), 201).await;

    let stage = Stage::new(policy().with_recovery(|_| async {
        Recovery::Completed(Response::new(Bytes::from_static(b"it was done")))
    }));
    stage.vanish("a").await;
    stage.expect(to("/waits", "a"), Some(Outcome::Recovered), 200).await;
    stage.expect(to("/waits", "a"), Some(Outcome::Replayed), 200).await;
    assert_eq!(stage.till.executions(), 1);
}
