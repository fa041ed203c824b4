//! A real Redis that stops, pauses, forgets, or whose connections break; and a real client that goes.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, Response},
};
use bytes::Bytes;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tower_keep::idempotency::{Idempotency, Policy, Repeat};

use crate::{
    race::{Dice, count, redis_storage},
    support::{Proxy, RedisServer, until},
    till::{Till, receipt},
    traces::short,
};

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

fn policy() -> Policy {
    Policy::scope_public().with_timeout(SECOND / 2)
}

/// Sends until there is an answer of a handler, as clients do.
async fn settle(till: &Till, key: &'static str) -> Response<Bytes> {
    let attempt = async || {
        let answer = till.charge(key, "").await;
        (answer.status() != 503 && short(&answer).2 != "in-flight").then_some(answer)
    };
    until(PATIENCE, attempt).await.0
}

#[tokio::test]
async fn a_server_that_pauses_at_the_claim_costs_an_answer() {
    let server = RedisServer::start();
    let till = Till::counting(redis_storage(&server.url(), "pause").await, policy());
    assert_eq!(till.charge("warm-up", "").await.status(), 201);
    server.ask("CLIENT PAUSE 1500 ALL");
    assert_eq!(short(&till.charge("a-key", "").await), (503, false, "unavailable".into()));
    assert_eq!(till.executions(), 1);
    // The claim that was written when the pause was over is not left behind for its lease.
    let began = Instant::now();
    assert_eq!(settle(&till, "a-key").await.status(), 201);
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    assert!(short(&till.charge("a-key", "").await).1);
    assert_eq!(till.executions(), 2);
    server.check_keys("pause");
}

#[tokio::test]
async fn a_server_that_stops_at_the_last_word_is_told_it_later() {
    let server = Arc::new(RedisServer::start());
    let storage = redis_storage(&server.url(), "last").await;
    let stopped = Arc::clone(&server);
    let most = policy().with_repeat(Repeat::AtMostOnce);
    let till = Till::new(storage.clone(), most, move |execution, _| {
        stopped.pause_process();
        async move { receipt(execution) }
    });
    let began = Instant::now();
    assert_eq!(till.charge("a-key", "").await.body(), "receipt 1");
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    server.resume();
    let again = settle(&till, "a-key").await;
    assert_eq!((&again.body()[..], short(&again).1), (&b"receipt 1"[..], true));
    assert!(storage.shutdown(PATIENCE).await.is_clean());
    server.check_keys("last");
}

#[tokio::test]
async fn a_server_that_stops_for_less_than_the_lease_takes_nobodys_key() {
    let server = RedisServer::start();
    let lease = 4 * SECOND;
    let storage = redis_storage(&server.url(), "stop").await;
    let was_lost = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&was_lost);
    let till = Till::new(storage, policy().with_lease(lease), move |execution, mut request| {
        let told = Arc::clone(&told);
        async move {
            let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
            sleep(6 * SECOND).await;
            told.store(attempt.is_lost(), SeqCst);
            receipt(execution)
        }
    });
    let other = Till::counting(redis_storage(&server.url(), "stop").await, policy());
    let first = tokio::spawn({
        let till = till.clone();
        async move { till.charge("a-key", "").await }
    });
    sleep(SECOND).await;
    server.pause_process();
    sleep(SECOND).await;
    server.resume();
    while !first.is_finished() {
        let told = short(&other.charge("a-key", "").await);
        assert!(matches!(&*told.2, "in-flight" | "unavailable") || told.1, "{told:?}");
        sleep(SECOND / 10).await;
    }
    assert_eq!(first.await.unwrap().body(), "receipt 1");
    let again = settle(&other, "a-key").await;
    assert_eq!((&again.body()[..], other.executions()), (&b"receipt 1"[..], 0));
    assert!(!was_lost.load(SeqCst));
}

#[tokio::test]
async fn who_is_cut_off_for_longer_than_the_lease_is_told_what_another_has_answered() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let policy = policy().with_lease(SECOND);
    let knew = Arc::new(AtomicBool::new(false));
    let known = Arc::clone(&knew);
    let late = Till::new(
        redis_storage(&proxy.url(), "cut").await,
        policy.clone(),
        move |execution, mut request| {
            let known = Arc::clone(&known);
            async move {
                let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
                timeout(PATIENCE, attempt.lost()).await.unwrap();
                known.store(true, SeqCst);
                sleep(2 * SECOND).await;
                receipt(execution)
            }
        },
    );
    let other = Till::counting(redis_storage(&server.url(), "cut").await, policy);
    other.executions.store(100, SeqCst);
    let first = tokio::spawn({
        let late = late.clone();
        async move { late.charge("a-key", "").await }
    });
    until(PATIENCE, async || (late.executions() == 1).then_some(())).await;
    proxy.delay(Duration::from_secs(3_600));
    assert_eq!(settle(&other, "a-key").await.body(), "receipt 101");
    assert!(knew.load(SeqCst), "another has run before the first knew that it was late");
    proxy.delay(Duration::ZERO);
    proxy.cut();
    let first = first.await.unwrap();
    // Its own, if the storage could not be reached in time; the other's if it could.
    assert!(matches!(&first.body()[..], b"receipt 1" | b"receipt 101"), "{first:?}");
    sleep(2 * SECOND).await;
    for till in [&late, &other] {
        assert_eq!(settle(till, "a-key").await.body(), "receipt 101");
    }
    assert_eq!((late.executions(), other.executions()), (1, 101));
}

/// Connections break all the time: who is told that nothing was done was told the truth, nobody is
/// charged twice, and no claim is left that has no owner.
#[tokio::test]
async fn connections_that_break_at_any_moment_charge_nobody_twice() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let storage = redis_storage(&proxy.url(), "break").await;
    let per_key: Arc<[AtomicUsize]> = (0..count(60, 400)).map(|_| AtomicUsize::new(0)).collect();
    let counted = Arc::clone(&per_key);
    let most = policy().with_repeat(Repeat::AtMostOnce);
    let till = Till::new(storage.clone(), most, move |execution, request| {
        let number: usize = request.uri().query().unwrap().parse().unwrap();
        counted[number].fetch_add(1, SeqCst);
        async move {
            sleep(Duration::from_millis(20)).await;
            receipt(execution)
        }
    });
    let cutting = async {
        let dice = Dice::new(5);
        loop {
            // Not so often that the storage takes its server for dead.
            sleep(Duration::from_millis(30 + dice.below(120))).await;
            proxy.cut();
        }
    };
    let charging = async {
        for (number, ran) in per_key.iter().enumerate() {
            let charge = || {
                let key = format!("key-{number}");
                Request::post(format!("/charge?{number}"))
                    .header("idempotency-key", key)
                    .body(Body::empty())
                    .unwrap()
            };
            let mut answers = Vec::new();
            let began = Instant::now();
            loop {
                let answer = till.send(charge()).await;
                if answer.status() == 503 && answers.is_empty() {
                    assert_eq!(ran.load(SeqCst), 0, "told that nothing was done");
                }
                let told = short(&answer);
                if answer.status() == 201 {
                    answers.push(answer);
                    if answers.len() == 2 {
                        break;
                    }
                }
                assert!(
                    began.elapsed() < PATIENCE,
                    "a claim without an owner: {told:?}, {number}, ran {ran:?}"
                );
            }
            assert_eq!(answers[0].body(), answers[1].body());
            assert_eq!(ran.load(SeqCst), 1);
        }
    };
    tokio::select! {
        () = charging => {}
        () = cutting => unreachable!(),
    }
    assert!(proxy.opened() > 10, "nothing has broken");
    assert!(storage.shutdown(PATIENCE).await.is_clean());
    server.check_keys("break");
}

/// Nothing in the world can help; but the handler is told in time, and nothing is stuck.
#[tokio::test]
async fn a_server_that_has_forgotten_everything_ends_the_leases() {
    let mut server = RedisServer::start();
    let storage = redis_storage(&server.url(), "forgot").await;
    let lost = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&lost);
    let policy = policy().with_lease(3 * SECOND);
    let till = Till::new(storage, policy, move |execution, mut request| {
        let told = Arc::clone(&told);
        async move {
            let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
            if execution == 1 {
                timeout(PATIENCE, attempt.lost()).await.unwrap();
                told.store(true, SeqCst);
            }
            receipt(execution)
        }
    });
    let first = tokio::spawn({
        let till = till.clone();
        async move { till.charge("a-key", "").await }
    });
    until(PATIENCE, async || (till.executions() == 1).then_some(())).await;
    server.restart();
    assert_eq!(first.await.unwrap().body(), "receipt 1");
    assert!(lost.load(SeqCst));
    assert_eq!(settle(&till, "a-key").await.body(), "receipt 2");
}

/// Over a socket: before its body was sent, while the handler runs, and while the answer is on its
/// way.
#[tokio::test]
async fn a_client_that_hangs_up_finds_one_answer_later() {
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "gone").await;
    let till = Till::new(storage.clone(), policy(), |execution, _| async move {
        sleep(SECOND / 2).await;
        let mut response = receipt(execution);
        *response.body_mut() = vec![b'r'; 1 << 19].into();
        response
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = axum::serve(listener, till.router.clone());
    let serving = tokio::spawn(async move { serving.await });
    let head = |length| {
        format!(
            "POST /charge HTTP/1.1\r\nhost: till\r\nidempotency-key: a-key\r\n\
             content-length: {length}\r\n\r\n"
        )
    };

    let mut before = TcpStream::connect(address).await.unwrap();
    before.write_all(head(10).as_bytes()).await.unwrap();
    before.write_all(b"half").await.unwrap();
    sleep(SECOND / 10).await;
    drop(before);
    sleep(SECOND / 10).await;
    assert_eq!(till.executions(), 0, "half a request was executed");

    let mut during = TcpStream::connect(address).await.unwrap();
    during.write_all(head(0).as_bytes()).await.unwrap();
    until(PATIENCE, async || (till.executions() == 1).then_some(())).await;
    drop(during);
    assert_eq!(short(&till.charge("a-key", "").await).2, "in-flight");
    let answer = settle(&till, "a-key").await;
    assert_eq!((answer.body().len(), short(&answer).1), (1 << 19, true));

    // It reads nothing, so that the answer stays in the buffers.
    let mut after = TcpStream::connect(address).await.unwrap();
    after.write_all(head(0).as_bytes()).await.unwrap();
    sleep(SECOND / 10).await;
    drop(after);
    assert!(short(&till.charge("a-key", "").await).1);
    assert_eq!(till.executions(), 1);
    serving.abort();
    assert!(storage.shutdown(PATIENCE).await.is_clean());
    server.check_keys("gone");
}
