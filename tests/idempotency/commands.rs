//! How many commands each thing costs a Redis server, and what a look at its memory shows.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request, Response},
};
use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tower_keep::{
    Storage,
    idempotency::{Idempotency, InFlight, KeyCursor, Outcome, Policy, Recovery, Repeat},
    storage::AnyStorage,
};

use crate::{
    race::redis_storage,
    support::{RedisServer, monitor::Monitor, until},
    till::{Till, code, is_replay, receipt},
};

fn policy() -> Policy {
    Policy::scope_public().with_timeout(Duration::from_secs(10))
}

/// A till that goes on when it is told, and does before that what the request's body says.
fn gated(storage: impl Storage, policy: Policy) -> (Till, Arc<Notify>) {
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let till = Till::new(storage, policy, move |execution, request: Request<Body>| {
        let opened = Arc::clone(&opened);
        async move {
            opened.notified().await;
            let attempt = request.extensions().get::<Idempotency>().cloned();
            match request.uri().path() {
                "/begin" => attempt.unwrap().begin().await.unwrap(),
                "/refused" => return Response::builder().status(422).body(Body::empty()).unwrap(),
                "/events" => {
                    let answer = Response::builder().header("content-type", "text/event-stream");
                    return answer.body(Body::from("data: 1\n\n")).unwrap();
                }
                _ => {}
            }
            receipt(execution)
        }
    });
    (till, gate)
}

fn to(path: &str, key: &str) -> Request<Body> {
    Request::post(path).header("idempotency-key", key).body(Body::from("100 EUR")).unwrap()
}

/// A process that begins with this request and dies: its runtime ends with everything in it.
fn die(server: &RedisServer, policy: Policy, request: Request<Body>) {
    let url = server.url();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let storage = redis_storage(&url, "commands").await;
            let begun = Arc::new(Notify::new());
            let said = Arc::clone(&begun);
            let till = Till::new(storage, policy, move |_, request: Request<Body>| {
                let begun = Arc::clone(&begun);
                async move {
                    if request.uri().path() == "/begin" {
                        let attempt = request.extensions().get::<Idempotency>().unwrap();
                        attempt.begin().await.unwrap();
                    }
                    begun.notify_one();
                    std::future::pending().await
                }
            });
            tokio::spawn(async move { till.send(request).await });
            timeout(Duration::from_secs(10), said.notified()).await.unwrap();
        });
    })
    .join()
    .unwrap();
}

async fn warm(storage: &AnyStorage) {
    // The server has the scripts.
    let (till, gate) = gated(storage.clone(), policy().with_name("warm"));
    for path in ["/begin", "/refused", "/charge"] {
        for _ in 0..2 {
            gate.notify_one();
            till.send(to(path, "warm")).await;
        }
    }
    till.layer.keys().list(KeyCursor::START).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_trips_on_redis() {
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "commands").await;
    warm(&storage).await;
    let (till, gate) = gated(storage, policy());
    let mut monitor = Monitor::start(&server);
    monitor.count().await;
    let once = async |path: &str, key: &str| {
        gate.notify_one();
        till.send(to(path, key)).await
    };

    let mut put = to("/charge", "x");
    *put.method_mut() = Method::PUT;
    gate.notify_one();
    assert_eq!(till.send(put).await.status(), 201);
    till.send(to("/charge", "a, b")).await;
    monitor.expect(0, "a method without keys, and a key that cannot be read").await;

    assert_eq!(once("/charge", "a").await.status(), 201);
    monitor.expect(2, "a first call: the claim and the answer").await;
    for _ in 0..3 {
        assert!(is_replay(&till.send(to("/charge", "a")).await));
    }
    monitor.expect(3, "three replays").await;
    let other = till.charge("a", "999 EUR").await;
    assert_eq!(code(&other), "mismatch");
    monitor.expect(1, "another request with the key").await;
    assert_eq!(once("/refused", "a").await.status(), 422);
    monitor.expect(2, "a refusal by the handler: the claim, and it is freed").await;
    once("/begin", "a").await;
    monitor.expect(3, "with a commit point").await;
    once("/events", "a").await;
    monitor.expect(2, "a stream of events: the claim and the seal").await;
    assert_eq!(code(&till.send(to("/events", "a")).await), "response-not-retained");
    monitor.expect(1, "a sealed key").await;

    let first = tokio::spawn({
        let till = till.clone();
        async move { till.send(to("/charge", "b")).await }
    });
    until(Duration::from_secs(10), || async { (till.executions() == 6).then_some(()) }).await;
    monitor.expect(1, "a claim").await;
    for _ in 0..2 {
        assert_eq!(code(&till.send(to("/charge", "b")).await), "in-flight");
    }
    monitor.expect(2, "two duplicates of what is under way").await;
    gate.notify_one();
    assert_eq!(first.await.unwrap().status(), 201);
    monitor.expect(1, "the answer").await;
    server.check_keys("commands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_of_life_is_one_command_for_each_third_of_a_lease() {
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "commands").await;
    warm(&storage).await;
    let third = Duration::from_millis(300);
    let (till, gate) = gated(storage, policy().with_lease(3 * third));
    let mut monitor = Monitor::start(&server);
    let first = tokio::spawn({
        let till = till.clone();
        async move { till.send(to("/charge", "a")).await }
    });
    sleep(5 * third + third / 2).await;
    gate.notify_one();
    assert_eq!(first.await.unwrap().status(), 201);
    let (commands, all) = monitor.count().await;
    // A machine that is late sends fewer, never more.
    assert!((2 + 3..=2 + 5).contains(&commands), "{commands}: {all:?}");
    sleep(2 * third).await;
    monitor.expect(0, "after the answer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_that_waits_asks_seldom() {
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "commands").await;
    warm(&storage).await;
    let waits = policy().with_in_flight(InFlight::Wait(Duration::from_secs(20)));
    let (till, gate) = gated(storage, waits);
    let mut monitor = Monitor::start(&server);
    let ask = || {
        tokio::spawn({
            let till = till.clone();
            async move { till.send(to("/charge", "a")).await }
        })
    };
    let first = ask();
    until(Duration::from_secs(10), || async { (till.executions() == 1).then_some(()) }).await;
    let second = ask();
    sleep(Duration::from_millis(1_300)).await;
    gate.notify_one();
    assert!(!is_replay(&first.await.unwrap()));
    assert!(is_replay(&second.await.unwrap()));
    let (commands, all) = monitor.count().await;
    // The claim and the answer; the duplicate at 0, 10, 30, 70, 150, 310, 630 and 1,130 ms, and when it
    // is told.
    assert!((2 + 4..=2 + 10).contains(&commands), "{commands}: {all:?}");
    println!("a first call of 1.3 s and a duplicate that waits: {commands}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_costs_after_an_owner_has_vanished() {
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "commands").await;
    warm(&storage).await;
    let lease = Duration::from_millis(200);
    let policy = || policy().with_lease(lease);
    let mut monitor = Monitor::start(&server);
    let vanished = |policy: &Policy, request: Request<Body>| {
        die(&server, policy.clone(), request);
        std::thread::sleep(lease + lease / 2);
    };

    let again = policy().with_name("again");
    vanished(&again, to("/charge", "a"));
    let (till, gate) = gated(storage.clone(), again);
    monitor.count().await;
    gate.notify_one();
    assert_eq!(till.send(to("/charge", "a")).await.status(), 201);
    let what = "a take-over: the claim that fails, the one that takes it, and the answer";
    monitor.expect(3, what).await;

    let most = policy().with_name("most").with_repeat(Repeat::AtMostOnce);
    vanished(&most, to("/begin", "a"));
    let (till, _) = gated(storage.clone(), most);
    monitor.count().await;
    assert_eq!(code(&till.send(to("/begin", "a")).await), "outcome-unknown");
    let what =
        "an outcome that is found to be unknown: the claim, the mark, the list read and written";
    monitor.expect(4, what).await;
    assert_eq!(code(&till.send(to("/begin", "a")).await), "outcome-unknown");
    monitor.expect(1, "an outcome that is known to be unknown").await;

    let asked = policy().with_name("asked").with_recovery(|_| async {
        Recovery::Completed(Response::new(Bytes::from_static(b"it was done")))
    });
    vanished(&asked, to("/charge", "a"));
    let (till, _) = gated(storage, asked);
    monitor.count().await;
    let answer = till.send(to("/charge", "a")).await;
    assert_eq!(answer.extensions().get(), Some(&Outcome::Recovered));
    monitor.expect(3, "a recovery: the claim, the take-over, the answer").await;
    assert_eq!(till.executions(), 0);
    server.check_keys("commands");
}

/// How many entries hold each of these words, in their keys or values.
fn entries_with(server: &RedisServer, words: &[&str]) -> Vec<usize> {
    let script = "local counts = {} for at, word in ipairs(ARGV) do counts[at] = 0 \
                  for _, key in ipairs(redis.call('KEYS', '*')) do \
                  local kind, all = redis.call('TYPE', key).ok, key \
                  if kind == 'string' then all = all .. redis.call('GET', key) \
                  elseif kind == 'hash' then all = all .. table.concat(redis.call('HGETALL', key)) \
                  else return redis.error_reply('what is a ' .. kind) end \
                  if all:find(word, 1, true) then counts[at] = counts[at] + 1 end \
                  end end return table.concat(counts, ',')";
    let words = words.iter().map(|word| format!(" \"{word}\"")).collect::<String>();
    let reply = server.ask(&format!("EVAL \"{script}\" 0{words}"));
    let counts = reply.lines().nth(1).unwrap_or_else(|| panic!("{reply}"));
    counts.split(',').map(|count| count.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_into_the_memory_shows_no_key_and_no_user() {
    const KEY: &str = "key-Zaphod-Beeblebrox";
    const USER: &str = "user-Trillian";
    const SENT: &str = "sent-Marvin";
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "commands").await;
    let policy = || {
        Policy::scope(|_| Some(USER.to_owned()))
            .with_timeout(Duration::from_secs(10))
            .with_max_in_flight(3)
            .with_max_stored(1_000)
            .with_lease(Duration::from_millis(150))
            .with_repeat(Repeat::AtMostOnce)
    };
    let ask = |path: &str| {
        let mut request = to(path, KEY);
        *request.body_mut() = Body::from(SENT);
        request
    };
    let (till, gate) = gated(storage.clone(), policy());
    for path in ["/charge", "/begin", "/events"] {
        gate.notify_one();
        assert!(till.send(ask(path)).await.status().is_success());
        till.send(ask(path)).await;
    }
    die(&server, policy(), ask("/gone"));
    let running = tokio::spawn({
        let till = till.clone();
        async move { till.send(ask("/running")).await }
    });
    sleep(Duration::from_millis(300)).await;
    assert_eq!(code(&till.send(ask("/gone")).await), "outcome-unknown");

    let words = [KEY, USER, SENT, "receipt 1", "POST /gone", "POST /running"];
    let [key, user, sent, receipt, gone, running_label] = entries_with(&server, &words)[..] else {
        panic!("a number for each word");
    };
    assert_eq!((key, user, sent), (0, 0, 0), "nothing of these is to be found");
    assert_eq!((receipt, gone, running_label), (1, 1, 1), "the search finds what is there");
    for word in ["charge", "gone", "running", KEY, USER] {
        assert_eq!(server.ask(&format!("KEYS *{word}*")), "*0\r\n", "in the names of entries");
    }
    server.check_keys("commands");
    gate.notify_one();
    assert_eq!(running.await.unwrap().status(), 201);
    server.check_keys("commands");
    // Hands off: what is freed is gone, and not kept until its end.
    gate.notify_one();
    let before = server.ask("DBSIZE");
    assert_eq!(till.send(ask("/refused")).await.status(), 422);
    assert_eq!(server.ask("DBSIZE"), before);
}
