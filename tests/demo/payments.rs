//! Payments, and what happens to them when clients and processes go away.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Response, StatusCode};
use serde_json::json;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    Demo,
    account::{Visitor, assert_problem, on_both},
    json as body,
    support::{RedisServer, until},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn order(amount: i64) -> String {
    json!({ "amount": amount, "currency": "EUR" }).to_string()
}

impl Visitor {
    async fn pay(&mut self, demo: &Demo, key: &str, amount: i64) -> Response<Bytes> {
        self.order(demo, &[("idempotency-key", key)], &order(amount)).await
    }

    async fn order(
        &mut self,
        demo: &Demo,
        headers: &[(&str, &str)],
        order: &str,
    ) -> Response<Bytes> {
        self.ask(demo, "POST", "/api/payments", headers, order).await
    }
}

async fn pay(demo: &Demo, key: &str, amount: i64) -> Response<Bytes> {
    Visitor::default().pay(demo, key, amount).await
}

async fn count(demo: &Demo) -> u64 {
    body(&demo.get("/api/payments/count", &[]).await)["count"].as_u64().unwrap()
}

fn is_replay(answer: &Response<Bytes>) -> bool {
    answer.headers().get("idempotent-replayed").is_some_and(|value| value == "true")
}

/// The receipt of a charge that was made for this answer.
#[track_caller]
fn charged(answer: &Response<Bytes>) -> Uuid {
    assert!(!is_replay(answer), "{answer:?}");
    payment(answer)
}

#[track_caller]
fn replayed(answer: &Response<Bytes>) -> Uuid {
    assert!(is_replay(answer), "{answer:?}");
    payment(answer)
}

#[track_caller]
fn payment(answer: &Response<Bytes>) -> Uuid {
    assert_eq!(answer.status(), StatusCode::CREATED, "{answer:?}");
    body(answer)["payment"].as_str().unwrap().parse().unwrap()
}

#[track_caller]
fn assert_in_flight(answer: &Response<Bytes>) {
    assert_problem(answer, StatusCode::CONFLICT);
    assert_eq!(body(answer)["code"], "in-flight");
    assert_eq!(answer.headers()["retry-after"], "1");
}

#[tokio::test]
async fn a_key_is_charged_once_and_its_answer_repeated() {
    on_both(async |demo| {
        let demo = &demo;
        let without = Visitor::default().order(demo, &[], &order(100)).await;
        assert_problem(&without, StatusCode::BAD_REQUEST);
        assert_eq!((&body(&without)["code"], count(demo).await), (&"key-missing".into(), 0));

        let first = pay(demo, "order-1", 100).await;
        let id = charged(&first);
        assert_eq!(body(&first), json!({ "payment": id.to_string(), "amount": 100 }));
        for key in ["order-1", "\"order-1\""] {
            let again = pay(demo, key, 100).await;
            assert_eq!((replayed(&again), again.body()), (id, first.body()));
            assert_eq!(again.headers()["content-type"], first.headers()["content-type"]);
        }
        let other = pay(demo, "order-1", 200).await;
        assert_problem(&other, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(body(&other)["code"], "mismatch");
        assert_eq!(count(demo).await, 1);

        assert_ne!(charged(&pay(demo, "order-2", 100).await), id);
        assert_eq!(count(demo).await, 2);
        for wrong in ["", "\"", "a b", &"k".repeat(256)] {
            assert_problem(&pay(demo, wrong, 100).await, StatusCode::BAD_REQUEST);
        }
        assert_eq!(count(demo).await, 2);
    })
    .await;
}

#[tokio::test]
async fn an_order_that_cannot_be_meant_frees_its_key() {
    on_both(async |demo| {
        let demo = &demo;
        let (malformed, wrong) = (StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY);
        let mut visitor = Visitor::default();
        for (number, (order, status)) in [
            ("", malformed),
            ("five", malformed),
            ("[]", malformed),
            ("{\"amount\": 5}", malformed),
            ("{\"amount\": \"5\", \"currency\": \"EUR\"}", malformed),
            ("{\"amount\": 1e99, \"currency\": \"EUR\"}", malformed),
            ("{\"amount\": 0, \"currency\": \"EUR\"}", wrong),
            ("{\"amount\": -5, \"currency\": \"EUR\"}", wrong),
            ("{\"amount\": 5, \"currency\": \"euro\"}", wrong),
        ]
        .into_iter()
        .enumerate()
        {
            let key = format!("mended-{number}");
            for _ in 0..2 {
                let answer = visitor.order(demo, &[("idempotency-key", &key)], order).await;
                assert_problem(&answer, status);
                assert!(!is_replay(&answer) && body(&answer)["code"].is_null(), "the handler's");
            }
            assert_eq!(count(demo).await, number as u64);
            charged(&visitor.pay(demo, &key, 5).await);
        }
    })
    .await;
}

#[tokio::test]
async fn a_panic_keeps_its_key() {
    on_both(async |demo| {
        let demo = &demo;
        let first = pay(demo, "unlucky", 13).await;
        assert_problem(&first, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!is_replay(&first));
        for _ in 0..2 {
            let again = pay(demo, "unlucky", 13).await;
            assert_problem(&again, StatusCode::INTERNAL_SERVER_ERROR);
            assert!(is_replay(&again));
            assert_eq!(again.body(), first.body());
        }
        let other = pay(demo, "unlucky", 14).await;
        assert_eq!(body(&other)["code"], "mismatch", "the key is not free");
        assert_eq!(count(demo).await, 0, "the panic came before the charge");
        charged(&pay(demo, "lucky", 14).await);
    })
    .await;
}

#[tokio::test]
async fn of_many_at_once_over_two_processes_one_is_charged() {
    let server = RedisServer::start();
    let demos = [(); 2].map(|()| Demo::start(&[("REDIS_URL", &server.url())]));
    for round in 1..4 {
        let key = &format!("round-{round}");
        let answers = join_all((0..50).map(|each| pay(&demos[each % 2], key, 100))).await;
        let (made, others): (Vec<_>, Vec<_>) =
            answers.iter().partition(|it| it.status() == StatusCode::CREATED && !is_replay(it));
        let [made] = made[..] else { panic!("{} were charged", made.len()) };
        for answer in others {
            match answer.status() {
                StatusCode::CREATED => assert_eq!(replayed(answer), payment(made)),
                _ => assert_in_flight(answer),
            }
        }
        for demo in &demos {
            assert_eq!(replayed(&pay(demo, key, 100).await), payment(made));
            assert_eq!(count(demo).await, round);
        }
    }
}

#[tokio::test]
async fn no_charge_is_counted_twice_or_not_at_all() {
    let server = RedisServer::start();
    let demos = [(); 2].map(|()| Demo::start(&[("REDIS_URL", &server.url())]));
    let keys: Vec<_> = (0..24).map(|each| format!("order-{each}")).collect();
    let paid = keys.iter().enumerate().map(|(each, key)| pay(&demos[each % 2], key, 100));
    let mut payments: Vec<_> = join_all(paid).await.iter().map(charged).collect();
    payments.sort_unstable();
    payments.dedup();
    assert_eq!((payments.len(), count(&demos[0]).await, count(&demos[1]).await), (24, 24, 24));
}

#[tokio::test]
async fn one_users_key_is_not_anothers() {
    let server = RedisServer::start();
    let url = server.url();
    for redis in [None, Some(("REDIS_URL", &*url))] {
        let trust = ("DEMO_TRUSTED_PROXIES", "127.0.0.0/8");
        let env: Vec<_> = redis.into_iter().chain([trust]).collect();
        let demo = &Demo::start(&env);
        let [here, there] = ["192.0.2.1", "198.51.100.7"]
            .map(|address| [("idempotency-key", "the-key"), ("x-forwarded-for", address)]);
        let mut payments = Vec::new();
        // Who is called as an address is, is nobody's neighbour.
        for user in ["alice", "bob", "192.0.2.1", "address 192.0.2.1"] {
            let mut phone = Visitor::logged_in(demo, user).await;
            payments.push(charged(&phone.order(demo, &here, &order(7)).await));
            let mut laptop = Visitor::logged_in(demo, user).await;
            let again = laptop.order(demo, &there, &order(7)).await;
            assert_eq!(replayed(&again), *payments.last().unwrap(), "{user} from elsewhere");
        }
        for address in [&here, &there] {
            payments.push(charged(&Visitor::default().order(demo, address, &order(7)).await));
            let mut again = Visitor::default();
            let again = again.order(demo, address, &order(7)).await;
            assert_eq!(replayed(&again), *payments.last().unwrap());
        }
        let mut alice = Visitor::logged_in(demo, "alice").await;
        assert_eq!(replayed(&alice.order(demo, &here, &order(7)).await), payments[0]);
        alice.post(demo, "/api/logout", "").await;
        assert_eq!(replayed(&alice.order(demo, &here, &order(7)).await), payments[4]);
        payments.sort_unstable();
        payments.dedup();
        assert_eq!((payments.len(), count(demo).await), (6, 6));
    }
}

#[tokio::test]
async fn another_site_cannot_pay() {
    let demo = &Demo::start(&[]);
    let mut alice = Visitor::logged_in(demo, "alice").await;
    let headers = [("idempotency-key", "theirs"), ("sec-fetch-site", "cross-site")];
    assert_problem(&alice.order(demo, &headers, &order(5)).await, StatusCode::FORBIDDEN);
    assert_eq!(count(demo).await, 0);
    charged(&alice.pay(demo, "theirs", 5).await);
}

/// Sends an order and does not wait for the answer.
fn begin(demo: &Demo, key: &str) -> TcpStream {
    let mut stream = TcpStream::connect(demo.url.strip_prefix("http://").unwrap()).unwrap();
    let order = order(100);
    write!(
        stream,
        "POST /api/payments HTTP/1.1\r\nhost: demo\r\nconnection: close\r\nidempotency-key: {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{order}",
        order.len()
    )
    .unwrap();
    stream
}

/// Waits until so many keys have been claimed.
async fn claimed(server: &RedisServer, keys: usize) {
    let enough = || async {
        let found = server.ask("KEYS *").matches("idempotency.payments").count();
        (found == keys).then_some(())
    };
    until(PATIENCE, enough).await;
}

/// Repeats an order until it is not under way any more.
async fn repeat(demo: &Demo, key: &str) -> Response<Bytes> {
    let settled = || async {
        let answer = pay(demo, key, 100).await;
        match answer.status() {
            StatusCode::CONFLICT => {
                assert_in_flight(&answer);
                None
            }
            _ => Some(answer),
        }
    };
    until(PATIENCE, settled).await.0
}

#[tokio::test]
async fn a_client_that_goes_away_is_told_when_it_comes_back() {
    on_both(async |demo| {
        let gone = begin(&demo, "gone");
        sleep(Duration::from_millis(50)).await;
        drop(gone);
        replayed(&repeat(&demo, "gone").await);
        assert_eq!(count(&demo).await, 1);
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_process_has_begun_is_not_done_again_at_once() {
    let server = RedisServer::start();
    let [one, two] = [(); 2].map(|()| Demo::start(&[("REDIS_URL", &server.url())]));
    let mut cut_off = begin(&one, "killed");
    claimed(&server, 1).await;
    drop(one);
    let mut answer = Vec::new();
    let _ = cut_off.read_to_end(&mut answer);
    assert!(answer.is_empty(), "it was killed before it could answer");
    for _ in 0..5 {
        assert_in_flight(&pay(&two, "killed", 100).await);
        assert_eq!(count(&two).await, 0);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(body(&pay(&two, "killed", 200).await)["code"], "mismatch");
    charged(&pay(&two, "another", 100).await);
}

#[tokio::test]
async fn a_process_that_is_asked_to_stop_finishes_what_was_begun() {
    let server = RedisServer::start();
    let [mut one, two] = [(); 2].map(|()| Demo::start(&[("REDIS_URL", &server.url())]));
    for (round, client_stays) in [true, false].into_iter().enumerate() {
        let key = format!("stopped-{round}");
        let mut client = begin(&one, &key);
        claimed(&server, round + 1).await;
        let mut answer = String::new();
        if client_stays {
            let stopping = std::thread::spawn(move || one.stop("-TERM"));
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 201 "), "{answer:?}");
            assert!(stopping.join().unwrap() < Duration::from_secs(5));
        } else {
            drop(client);
            assert!(one.stop("-TERM") < Duration::from_secs(5));
        }
        assert_eq!(count(&two).await, round as u64 + 1);
        let again = pay(&two, &key, 100).await;
        assert!(!client_stays || answer.ends_with(str::from_utf8(again.body()).unwrap()));
        replayed(&again);
        one = Demo::start(&[("REDIS_URL", &server.url())]);
    }
}

async fn nobody_is_charged(demo: &Demo, alice: &mut Visitor) {
    let start = Instant::now();
    for visitor in [alice, &mut Visitor::default()] {
        for _ in 0..3 {
            let answer = visitor.pay(demo, "later", 100).await;
            assert_problem(&answer, StatusCode::SERVICE_UNAVAILABLE);
            assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
        }
    }
    let counted = demo.get("/api/payments/count", &[]).await;
    assert_problem(&counted, StatusCode::SERVICE_UNAVAILABLE);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn without_redis_nobody_is_charged_and_afterwards_once() {
    let mut server = RedisServer::start();
    let demo = &Demo::start(&[("REDIS_URL", &server.url())]);
    let mut alice = Visitor::logged_in(demo, "alice").await;

    server.pause_process();
    nobody_is_charged(demo, &mut alice).await;
    server.resume();
    let healed = || async {
        let answer = demo.get("/api/payments/count", &[]).await;
        (answer.status() == StatusCode::OK).then(|| body(&answer))
    };
    assert_eq!(until(PATIENCE, healed).await.0, json!({ "count": 0 }));

    server.kill();
    nobody_is_charged(demo, &mut alice).await;
    server.restart();
    let paid = || async {
        let answer = pay(demo, "later", 100).await;
        (answer.status() != StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
    };
    let first = until(PATIENCE, paid).await.0;
    assert_eq!(replayed(&pay(demo, "later", 100).await), charged(&first));
    assert_eq!(count(demo).await, 1);
}
