//! Duplicates that wait for the first.

use std::{future::pending, time::Duration};

use axum::{body::Body, http::Response};
use bytes::Bytes;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_keep::{
    MemoryStorage, Storage,
    idempotency::{InFlight, Policy},
};

use crate::{
    race::redis_storage,
    support::RedisServer,
    till::{Till, charge, code, is_replay, receipt},
    wire::{LEASE, Line, Owner, Wire, settle},
};

const SECOND: Duration = Duration::from_secs(1);

fn waits(most: u32) -> Policy {
    Policy::scope_public().with_in_flight(InFlight::Wait(most * SECOND))
}

/// A handler that takes this long, and counts.
fn slow(storage: impl Storage, policy: Policy, takes: Duration) -> Till {
    Till::new(storage, policy, move |execution, _| async move {
        sleep(takes).await;
        receipt(execution)
    })
}

fn send(till: &Till, prefer: &[&str]) -> JoinHandle<(Response<Bytes>, Duration)> {
    let (till, mut request) = (till.clone(), charge("a-key", ""));
    for line in prefer {
        request.headers_mut().append("prefer", line.parse().unwrap());
    }
    tokio::spawn(async move {
        let began = Instant::now();
        (till.send(request).await, began.elapsed())
    })
}

#[tokio::test(start_paused = true)]
async fn a_waiting_duplicate_is_given_the_answer_as_soon_as_there_is_one() {
    let till = slow(MemoryStorage::new(), waits(60), Duration::from_millis(7_777));
    let all: Vec<_> = (0..50).map(|_| send(&till, &[])).collect();
    let mut replays = 0;
    for task in all {
        let (answer, took) = task.await.unwrap();
        assert_eq!((answer.body().as_ref(), took.as_millis()), (&b"receipt 1"[..], 7_777));
        replays += usize::from(is_replay(&answer));
    }
    assert_eq!((replays, till.executions()), (49, 1));
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_on_another_node_asks_twice_a_second() {
    let storage = MemoryStorage::new();
    let takes = Duration::from_millis(7_777);
    let nodes = [(); 2].map(|()| slow(Wire::new(storage.clone()), waits(60), takes));
    let first = send(&nodes[0], &[]);
    settle().await;
    let (answer, took) = send(&nodes[1], &[]).await.unwrap();
    assert!(is_replay(&answer));
    assert!((takes..takes + SECOND / 2 + SECOND / 100).contains(&took), "{took:?}");
    first.await.unwrap();
    assert_eq!(nodes[1].executions(), 0);
}

#[tokio::test]
async fn a_duplicate_on_another_node_waits_for_the_first_on_redis() {
    let server = RedisServer::start();
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let storage = redis_storage(&server.url(), "keys").await;
        nodes.push(slow(storage, waits(60).with_timeout(10 * SECOND), SECOND / 3));
    }
    let all: Vec<_> = (0..20).map(|number| send(&nodes[number % 2], &[])).collect();
    let mut replays = 0;
    for task in all {
        let (answer, _) = task.await.unwrap();
        assert_eq!(answer.body(), "receipt 1");
        replays += usize::from(is_replay(&answer));
    }
    assert_eq!((replays, nodes[0].executions() + nodes[1].executions()), (19, 1));
}

#[tokio::test(start_paused = true)]
async fn how_long_a_duplicate_waits_is_said_by_the_policy_and_the_client() {
    let prefers: [(&[&str], Option<u32>); 16] = [
        (&[], None),
        (&["wait=3"], Some(3)),
        (&["wait=0"], Some(0)),
        (&["wait=\"3\""], Some(3)),
        (&["WAIT = 3"], Some(3)),
        (&["respond-async, wait=3"], Some(3)),
        (&["return=minimal; foo=\"some parameter\" , wait=3; bar"], Some(3)),
        (&["return=minimal", "wait=3"], Some(3)),
        (&["wait=3, wait=4"], Some(3)),
        (&["wait=18446744073709551615"], Some(10)),
        (&["wait=11"], Some(10)),
        (&["wait=-3"], None),
        (&["wait=3.5"], None),
        (&["wait"], None),
        (&["wait="], None),
        (&["await=3"], None),
    ];
    for (prefer, wanted) in prefers {
        for (in_flight, usual) in
            [(InFlight::Wait(10 * SECOND), 10), (InFlight::WaitIfPreferred(10 * SECOND), 0)]
        {
            let policy = Policy::scope_public().with_in_flight(in_flight);
            let till = Till::new(MemoryStorage::new(), policy, |_, _| pending());
            let first = send(&till, &[]);
            settle().await;
            let (answer, took) = send(&till, prefer).await.unwrap();
            assert_eq!(code(&answer), "in-flight");
            let wanted = wanted.unwrap_or(usual);
            assert_eq!(took, wanted * SECOND, "{prefer:?} {in_flight:?}");
            first.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_unless_the_policy_says_so() {
    let till = Till::new(MemoryStorage::new(), Policy::scope_public(), |_, _| pending());
    let first = send(&till, &[]);
    settle().await;
    let (answer, took) = send(&till, &["wait=3"]).await.unwrap();
    assert_eq!((code(&answer), took), ("in-flight".into(), Duration::ZERO));
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn patience_may_be_without_end() {
    let policy = Policy::scope_public().with_in_flight(InFlight::Wait(Duration::MAX));
    let till = slow(MemoryStorage::new(), policy, 5 * SECOND);
    let first = send(&till, &[]);
    settle().await;
    assert!(is_replay(&send(&till, &[]).await.unwrap().0));
    first.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_more_wait_than_may() {
    let till = slow(MemoryStorage::new(), waits(60), 5 * SECOND);
    let first = send(&till, &[]);
    settle().await;
    let waiting: Vec<_> = (0..1_024).map(|_| send(&till, &[])).collect();
    settle().await;
    let (answer, took) = send(&till, &[]).await.unwrap();
    assert_eq!((code(&answer), took), ("in-flight".into(), Duration::ZERO));
    for task in waiting {
        assert!(is_replay(&task.await.unwrap().0));
    }
    first.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_when_its_duplicate_is_gone() {
    let till = slow(MemoryStorage::new(), waits(60).with_max_waiting(2), 50 * SECOND);
    let first = send(&till, &[]);
    settle().await;
    for _ in 0..10 {
        let waiting = [send(&till, &[]), send(&till, &[])];
        settle().await;
        assert_eq!(send(&till, &[]).await.unwrap().1, Duration::ZERO, "there is no third place");
        waiting.iter().for_each(JoinHandle::abort);
        settle().await;
    }
    let (answer, _) = send(&till, &["wait=1"]).await.unwrap();
    assert_eq!(code(&answer), "in-flight");
    // Those that have given up have left as well.
    let waiting = [send(&till, &[]), send(&till, &[])];
    for task in waiting {
        assert!(is_replay(&task.await.unwrap().0));
    }
    first.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_the_next_when_the_first_has_done_nothing() {
    let till = Till::new(MemoryStorage::new(), waits(60), |execution, _| async move {
        sleep(2 * SECOND).await;
        match execution {
            1 | 2 => Response::builder().status(422).body(Body::empty()).unwrap(),
            _ => receipt(execution),
        }
    });
    let all: Vec<_> = (0..5).map(|_| send(&till, &[])).collect();
    let mut took = Vec::new();
    let mut answers = Vec::new();
    for task in all {
        let (answer, time) = task.await.unwrap();
        answers.push((answer.status().as_u16(), is_replay(&answer)));
        took.push(time.as_secs());
    }
    answers.sort();
    took.sort();
    let expected = [(201, false), (201, true), (201, true), (422, false), (422, false)];
    assert_eq!((&answers[..], &took[..]), (&expected[..], &[2, 4, 6, 6, 6][..]));
    assert_eq!(till.executions(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_waits_takes_over_from_an_owner_that_vanishes() {
    let storage = MemoryStorage::new();
    let owner = Owner::of(storage.clone(), waits(60), "a-key", false).await;
    owner.wire.set(Line::Down);
    let nodes = [(); 2].map(|()| Till::counting(Wire::new(storage.clone()), waits(60)));
    let all: Vec<_> = (0..20).map(|number| send(&nodes[number % 2], &[])).collect();
    let mut replays = 0;
    for task in all {
        let (answer, took) = task.await.unwrap();
        assert_eq!(answer.body(), "receipt 1");
        assert!((LEASE..LEASE + SECOND).contains(&took), "{took:?}");
        replays += usize::from(is_replay(&answer));
    }
    assert_eq!((replays, nodes[0].executions() + nodes[1].executions()), (19, 1));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_when_the_storage_goes_away() {
    let wire = Wire::new(MemoryStorage::new());
    let till = slow(wire.clone(), waits(60), 20 * SECOND);
    let first = send(&till, &[]);
    settle().await;
    let duplicate = send(&till, &[]);
    sleep(SECOND).await;
    wire.set(Line::Down);
    let (answer, took) = duplicate.await.unwrap();
    assert_eq!((answer.status().as_u16(), code(&answer)), (503, "unavailable".into()));
    assert!(took < 4 * SECOND);
    assert!(timeout(30 * SECOND, first).await.unwrap().unwrap().0.body() == "receipt 1");
}
