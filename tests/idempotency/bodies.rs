//! The bodies of answers: what is replayed was whole, to the byte; what cannot be is sealed and never
//! run again; and the first client gets everything as it comes.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Request, Response, response},
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::{
    sync::{Mutex, mpsc},
    time::{sleep, timeout},
};
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage, Storage,
    idempotency::{Outcome, Policy},
};

use crate::{
    storages,
    till::{Till, charge, code, is_replay, whole},
};

const MIB: usize = 1 << 20;

#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}

impl Error for Broken {}

/// A body that the test says piece by piece.
struct Told {
    frames: mpsc::UnboundedReceiver<Result<Frame<Bytes>, Broken>>,
    hint: SizeHint,
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.frames.poll_recv(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.hint.clone()
    }
}

/// Who says it. The body ends with this value.
struct Teller(mpsc::UnboundedSender<Result<Frame<Bytes>, Broken>>);

impl Teller {
    fn say(&self, data: impl Into<Bytes>) {
        let _ = self.0.send(Ok(Frame::data(data.into())));
    }

    fn say_trailers(&self) {
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from(7))]);
        let _ = self.0.send(Ok(Frame::trailers(trailers)));
    }

    fn break_off(self) {
        let _ = self.0.send(Err(Broken));
    }
}

fn told() -> (Teller, Body) {
    told_of(SizeHint::new())
}

fn told_of(hint: SizeHint) -> (Teller, Body) {
    let (say, frames) = mpsc::unbounded_channel();
    (Teller(say), Body::new(Told { frames, hint }))
}

/// A handler that answers as the test has prepared.
struct Stage {
    till: Till,
    answers: mpsc::UnboundedSender<Response<Body>>,
}

impl Stage {
    fn new(storage: impl Storage, policy: Policy) -> Self {
        let (answers, prepared) = mpsc::unbounded_channel();
        let prepared = Arc::new(Mutex::new(prepared));
        let till = Till::new(storage, policy, move |_, _| {
            let prepared = Arc::clone(&prepared);
            async move { prepared.lock().await.recv().await.expect("it runs as often as prepared") }
        });
        Self { till, answers }
    }

    fn prepare(&self, head: response::Builder, body: Body) {
        self.answers.send(head.body(body).unwrap()).unwrap();
    }

    /// The head of the answer, as soon as it is there.
    async fn head(&self) -> Response<Body> {
        self.till.router.clone().oneshot(charge("a-key", "")).await.unwrap()
    }

    async fn again(&self) -> Response<Bytes> {
        self.till.charge("a-key", "").await
    }

    /// Duplicates are told that the request was executed, for this reason, and nothing runs again.
    async fn expect_sealed(&self, reason: &str) {
        for _ in 0..2 {
            let answer = self.again().await;
            assert_eq!(answer.status(), 409);
            assert_eq!(code(&answer), "response-not-retained");
            let problem: Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(
                (&problem["original-status"], &problem["reason"]),
                (&201.into(), &reason.into())
            );
            assert_eq!(answer.headers()["location"], "/receipts/1");
            assert!(!is_replay(&answer) && !answer.headers().contains_key("retry-after"));
            assert_eq!(answer.extensions().get(), Some(&Outcome::Sealed));
        }
        assert_eq!(self.till.executions(), 1);
    }

    /// Duplicates get this first answer, but for what is of one exchange.
    async fn expect_replay(&self, first: &Response<Bytes>) {
        for _ in 0..2 {
            let answer = self.again().await;
            assert!(is_replay(&answer), "{answer:?}");
            assert_eq!((answer.status(), answer.body()), (first.status(), first.body()));
            let kept = |headers: &HeaderMap| {
                let mut headers = headers.clone();
                for name in ["idempotent-replayed", "content-length", "set-cookie", "date"] {
                    headers.remove(name);
                }
                headers
            };
            assert_eq!(kept(answer.headers()), kept(first.headers()));
            if !matches!(answer.status().as_u16(), 204 | 304) {
                let length = first.body().len().to_string();
                assert_eq!(answer.headers()["content-length"], length);
            }
        }
        assert_eq!(self.till.executions(), 1);
    }
}

fn created() -> response::Builder {
    Response::builder().status(201).header("location", "/receipts/1")
}

async fn piece(body: &mut Body) -> Bytes {
    let frame = timeout(Duration::from_secs(10), body.frame()).await.expect("a piece comes");
    frame.unwrap().unwrap().into_data().unwrap()
}

fn policy() -> Policy {
    Policy::scope_public()
}

#[tokio::test]
async fn a_stream_reaches_its_client_as_it_comes_and_is_replayed_to_the_byte() {
    let (_server, storages) = storages("bodies").await;
    for storage in storages {
        let stage = Stage::new(storage, policy());
        let (teller, body) = told();
        stage.prepare(created().header("content-type", "text/csv"), body);
        let (parts, mut body) = stage.head().await.into_parts();
        assert_eq!(parts.extensions.get(), Some(&Outcome::Executed));
        let mut heard = Vec::new();
        for line in ["one\n", "", "\0\u{fe}two\n", "three"] {
            teller.say(line);
            assert_eq!(code(&stage.again().await), "in-flight");
            heard.extend(piece(&mut body).await);
        }
        drop(teller);
        // The end comes only after the answer is stored.
        assert!(body.frame().await.is_none());
        stage.expect_replay(&Response::from_parts(parts, heard.into())).await;
    }
}

#[tokio::test]
async fn a_stream_whose_client_has_gone_is_stored_to_its_end() {
    let stage = Stage::new(MemoryStorage::new(), policy());
    let (teller, body) = told();
    stage.prepare(created(), body);
    drop(stage.head().await);
    teller.say("all ");
    teller.say("of it");
    drop(teller);
    while stage.again().await.status() != 201 {
        tokio::task::yield_now().await;
    }
    assert_eq!(stage.again().await.body(), "all of it");
    assert_eq!(stage.till.executions(), 1);
}

#[tokio::test]
async fn bodies_up_to_the_cap_are_stored_and_larger_ones_are_sealed() {
    let (server, storages) = storages("bodies").await;
    for storage in storages {
        for (number, (length, stored)) in
            [(0, true), (1, true), (MIB - 1, true), (MIB, true), (MIB + 1, false), (3 * MIB, false)]
                .into_iter()
                .enumerate()
        {
            for announced in ["by its type", "in the head", "not at all", "not at all, slowly"] {
                let name = format!("cap-{number}-{}", announced.replace([' ', ','], ""));
                let stage = Stage::new(storage.clone(), policy().with_name(&name));
                let bytes = Bytes::from_iter((0..length).map(|at| (at % 251) as u8));
                let told = || told_of(SizeHint::new());
                let (teller, body) = told();
                let mut head = created();
                let body = match announced {
                    "by its type" => Body::from(bytes.clone()),
                    "in the head" => {
                        head = head.header("content-length", length);
                        body
                    }
                    _ => body,
                };
                stage.prepare(head, body);
                let say = || bytes.chunks(300_000).for_each(|at| teller.say(bytes.slice_ref(at)));
                let first = if announced.ends_with("slowly") {
                    let answer = stage.head().await;
                    say();
                    drop(teller);
                    whole(answer).await
                } else {
                    say();
                    drop(teller);
                    whole(stage.head().await).await
                };
                assert_eq!((first.status().as_u16(), is_replay(&first)), (201, false));
                assert!(first.body() == &bytes, "{length} {announced}");
                match stored {
                    true => stage.expect_replay(&first).await,
                    false => stage.expect_sealed("too-large").await,
                }
            }
        }
    }
    server.check_keys("bodies");
}

#[tokio::test]
async fn what_is_announced_to_be_too_long_is_sealed_before_it_comes() {
    for by_type in [false, true] {
        let stage = Stage::new(MemoryStorage::new(), policy().with_max_response_body(8));
        let (teller, body) =
            told_of(if by_type { SizeHint::with_exact(9) } else { SizeHint::new() });
        let head = if by_type { created() } else { created().header("content-length", 9) };
        stage.prepare(head, body);
        let mut body = stage.head().await.into_body();
        stage.expect_sealed("too-large").await;
        teller.say("123456789");
        assert_eq!(piece(&mut body).await, "123456789");
    }
}

#[tokio::test]
async fn events_are_sealed_at_once_and_go_on() {
    for kind in ["text/event-stream", "Text/Event-Stream ; charset=utf-8"] {
        let stage = Stage::new(MemoryStorage::new(), policy());
        let (teller, body) = told();
        stage.prepare(created().header("content-type", kind), body);
        let mut body = stage.head().await.into_body();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            stage.expect_sealed("streaming").await;
            teller.say(event);
            assert_eq!(piece(&mut body).await, event);
        }
        drop(teller);
        assert!(body.frame().await.is_none());
        stage.expect_sealed("streaming").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_takes_too_long_is_sealed_and_goes_on() {
    let stage =
        Stage::new(MemoryStorage::new(), policy().with_body_timeout(Duration::from_secs(90)));
    let (teller, body) = told();
    stage.prepare(created(), body);
    let mut body = stage.head().await.into_body();
    teller.say("one");
    assert_eq!(piece(&mut body).await, "one");
    // Longer than a lease: the signs of life go on while the body comes.
    sleep(Duration::from_secs(89)).await;
    assert_eq!(code(&stage.again().await), "in-flight");
    sleep(Duration::from_secs(2)).await;
    stage.expect_sealed("streaming").await;
    teller.say("two");
    assert_eq!(piece(&mut body).await, "two");
    drop(teller);
    assert!(body.frame().await.is_none());
    stage.expect_sealed("streaming").await;
}

#[tokio::test]
async fn trailers_reach_the_first_client_and_seal_the_key() {
    for slowly in [false, true] {
        let stage = Stage::new(MemoryStorage::new(), policy());
        let (teller, body) = told();
        stage.prepare(created(), body);
        let say = |teller: Teller| {
            teller.say("body");
            teller.say_trailers();
        };
        let (answer, teller) = match slowly {
            true => (stage.head().await, Some(teller)),
            false => {
                say(teller);
                (stage.head().await, None)
            }
        };
        teller.map(say);
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-sum"], "7");
        assert_eq!(body.to_bytes(), "body");
        stage.expect_sealed("trailers").await;
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_seals_the_key_and_the_first_client_sees_it() {
    for slowly in [false, true] {
        let stage = Stage::new(MemoryStorage::new(), policy());
        let (teller, body) = told();
        stage.prepare(created(), body);
        let mut body = if slowly {
            let body = stage.head().await.into_body();
            teller.say("half");
            teller.break_off();
            body
        } else {
            teller.say("half");
            teller.break_off();
            stage.head().await.into_body()
        };
        assert_eq!(piece(&mut body).await, "half");
        let error = body.frame().await.unwrap().unwrap_err();
        let mut causes = std::iter::successors(Some(&error as &dyn Error), |&error| error.source());
        assert!(causes.any(|cause| cause.is::<Broken>()), "{error:?}");
        stage.expect_sealed("failed").await;
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_is_passed_on_and_sealed() {
    for announced in [2, 10] {
        for slowly in [false, true] {
            let stage = Stage::new(MemoryStorage::new(), policy());
            let (teller, body) = told();
            stage.prepare(created().header("content-length", announced), body);
            let answer = if slowly {
                let answer = stage.head().await;
                teller.say("four");
                drop(teller);
                answer
            } else {
                teller.say("four");
                drop(teller);
                stage.head().await
            };
            let answer = whole(answer).await;
            assert_eq!(answer.headers()["content-length"], announced.to_string());
            assert_eq!(answer.body(), "four");
            stage.expect_sealed("failed").await;
        }
    }
}

#[tokio::test]
async fn answers_without_a_body_and_redirections_are_replayed() {
    let (_server, storages) = storages("bodies").await;
    for storage in storages {
        for (status, location) in [
            (200, None),
            (204, None),
            (205, None),
            (302, Some("/a")),
            (303, Some("/b?c#d")),
            (304, None),
        ] {
            let name = format!("empty-{status}");
            let stage = Stage::new(storage.clone(), policy().with_name(&name));
            let mut head = Response::builder().status(status).header("etag", "\"1\"");
            if let Some(location) = location {
                head = head.header("location", location);
            }
            stage.prepare(head, Body::empty());
            let first = whole(stage.head().await).await;
            assert_eq!((first.status().as_u16(), first.body().len()), (status, 0));
            stage.expect_replay(&first).await;
        }
    }
}

#[tokio::test]
async fn cookies_are_the_first_clients_alone_and_other_fields_survive_line_by_line() {
    let (_server, storages) = storages("bodies").await;
    for storage in storages {
        let stage = Stage::new(storage, policy().add_dropped_header("x-internal"));
        let bytes = HeaderValue::from_bytes(b"caf\xe9 \xff\x80").unwrap();
        let head = created()
            .header("set-cookie", "sid=1; HttpOnly")
            .header("set-cookie", "theme=dark")
            .header("link", "</2>; rel=next")
            .header("x-bytes", bytes.clone())
            .header("link", "</1>; rel=prev")
            .header("x-empty", "")
            .header("x-long", "l".repeat(9_000))
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("x-ratelimit-remaining", "3")
            .header("x-request-id", "of the first")
            .header("idempotent-replayed", "?0")
            .header("x-internal", "1");
        stage.prepare(head, Body::from("body"));
        let lines = |answer: &Response<Bytes>, name: &str| -> Vec<HeaderValue> {
            answer.headers().get_all(name).iter().cloned().collect()
        };
        let first = whole(stage.head().await).await;
        assert_eq!(lines(&first, "set-cookie"), ["sid=1; HttpOnly", "theme=dark"]);
        for name in ["x-ratelimit-remaining", "x-request-id", "x-hop", "x-internal"] {
            assert_eq!(lines(&first, name).len(), 1, "{name}");
        }
        for _ in 0..2 {
            let again = stage.again().await;
            assert_eq!(lines(&again, "idempotent-replayed"), ["true"]);
            assert_eq!(lines(&again, "link"), ["</2>; rel=next", "</1>; rel=prev"]);
            assert_eq!(lines(&again, "x-bytes"), [&bytes]);
            assert_eq!(lines(&again, "x-empty"), [""]);
            assert_eq!(lines(&again, "x-long"), ["l".repeat(9_000)]);
            let names =
                ["set-cookie", "connection", "x-hop", "x-ratelimit-remaining", "x-request-id"];
            for name in names.into_iter().chain(["x-internal"]) {
                assert!(lines(&again, name).is_empty(), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_policy_names_the_fields_that_are_kept() {
    let stage =
        Stage::new(MemoryStorage::new(), policy().with_kept_headers(["x-kept", "set-cookie"]));
    let head = created()
        .header("content-type", "text/csv")
        .header("x-kept", "1")
        .header("x-other", "1")
        .header("set-cookie", "sid=1");
    stage.prepare(head, Body::from("body"));
    let first = whole(stage.head().await).await;
    assert!(first.headers().contains_key("x-other"));
    let again = stage.again().await;
    let mut names: Vec<_> = again.headers().keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let wanted = ["content-length", "content-type", "idempotent-replayed", "location", "x-kept"];
    assert_eq!(names, wanted);
}

#[tokio::test]
async fn get_and_head_pass_by_with_their_keys() {
    let stage = Stage::new(MemoryStorage::new(), policy().with_required_key());
    for (number, method) in ["GET", "HEAD", "GET", "HEAD", "PUT", "DELETE"].into_iter().enumerate()
    {
        let (teller, body) = told();
        stage.prepare(created().header("set-cookie", "a=b"), body);
        let request =
            Request::builder().method(method).uri("/charge").header("idempotency-key", "k");
        let request = request.body(Body::empty()).unwrap();
        let mut answer = stage.till.router.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.headers()["set-cookie"], "a=b");
        assert!(answer.extensions().get::<Outcome>().is_none());
        if method != "HEAD" {
            teller.say("live");
            assert_eq!(piece(answer.body_mut()).await, "live");
        }
        assert_eq!(stage.till.executions(), number + 1);
    }
}

#[cfg(feature = "zstd")]
#[tokio::test]
async fn a_compressed_answer_is_replayed_to_the_byte_and_takes_less_room() {
    let (server, storages) = storages("bodies").await;
    for (number, storage) in storages.into_iter().enumerate() {
        let text = "the same line again and again\n".repeat(10_000);
        let noise = Bytes::from_iter((0..4_096_u32).map(|at| (at.wrapping_mul(at) >> 7) as u8));
        for (name, body) in [("long", text.into()), ("noise", noise), ("short", "abc".into())] {
            let stage = Stage::new(storage.clone(), policy().with_name(name).with_compression(16));
            let head = created().header("content-encoding", "identity");
            stage.prepare(head, Body::from(Bytes::clone(&body)));
            let first = whole(stage.head().await).await;
            assert_eq!(first.body(), &body);
            stage.expect_replay(&first).await;
            // Another node need not compress.
            let other = Stage::new(storage.clone(), policy().with_name(name));
            assert_eq!(other.again().await.body(), &body);
            assert_eq!(other.till.executions(), 0);
        }
        if number == 1 {
            let sum = "local sum = 0 for _, key in ipairs(redis.call('KEYS', '*')) do \
                       sum = sum + redis.call('MEMORY', 'USAGE', key) end return sum";
            let sum = server.ask(&format!("EVAL \"{sum}\" 0"));
            let sum: usize = sum.trim().trim_start_matches(':').parse().unwrap();
            assert!((1_000..20_000).contains(&sum), "{sum} bytes");
        }
    }
}
