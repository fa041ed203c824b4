//! Handlers that take too long, give errors or panic, and closures that do.

use std::{
    convert::Infallible,
    future::{Future, Ready, pending, ready},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Response, StatusCode},
    middleware::{Next, from_fn},
    response::IntoResponse,
};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::time::{sleep, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_keep::{
    IdempotencyLayer, MemoryStorage,
    idempotency::{Disposition, FingerprintRules, Idempotency, InFlight, Policy, Recovery, Repeat},
};

use crate::{
    staged::Staged,
    till::{Till, charge, is_replay, receipt, whole},
    traces::{Left, SETTLED, left, short, vanish},
};

const SECOND: Duration = Duration::from_secs(1);

async fn impatient(request: Request, next: Next) -> axum::response::Response {
    match timeout(SECOND, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

/// A handler that takes two seconds, and a flag that says whether it has come to its end.
fn slow(layer: Option<IdempotencyLayer>) -> (Router, Arc<AtomicUsize>, Arc<AtomicBool>) {
    let (runs, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, over) = (Arc::clone(&runs), Arc::clone(&ended));
    let handler = move || {
        let over = Arc::clone(&over);
        let execution = counted.fetch_add(1, SeqCst) + 1;
        async move {
            sleep(2 * SECOND).await;
            over.store(true, SeqCst);
            receipt(execution)
        }
    };
    let router = Router::new().fallback(handler);
    let router = match layer {
        Some(layer) => router.layer(layer),
        None => router,
    };
    (router, runs, ended)
}

async fn send(router: &Router) -> Response<Bytes> {
    whole(router.clone().oneshot(charge("a-key", "")).await.unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn a_timeout_outside_ends_no_handler_and_a_retry_finds_the_answer() {
    let layer = IdempotencyLayer::new(MemoryStorage::new(), Policy::scope_public());
    let (router, runs, ended) = slow(Some(layer));
    let router = router.layer(from_fn(impatient));
    assert_eq!(send(&router).await.status(), 504);
    assert!(!ended.load(SeqCst));
    assert_eq!(short(&send(&router).await).2, "in-flight");
    sleep(2 * SECOND).await;
    assert!(ended.load(SeqCst));
    assert_eq!(short(&send(&router).await), (201, true, String::new()));
    assert_eq!(runs.load(SeqCst), 1);
}

/// What the handler was at when it was dropped, nobody knows: so its answer stays.
#[tokio::test(start_paused = true)]
async fn a_timeout_inside_is_an_answer_and_is_kept() {
    let layer = IdempotencyLayer::new(MemoryStorage::new(), Policy::scope_public());
    let (router, runs, ended) = slow(None);
    let router = router.layer(from_fn(impatient)).layer(layer);
    assert_eq!(short(&send(&router).await), (504, false, String::new()));
    sleep(2 * SECOND).await;
    assert_eq!(short(&send(&router).await), (504, true, String::new()));
    assert_eq!((runs.load(SeqCst), ended.load(SeqCst)), (1, false));
}

/// A service around which there is no axum.
#[derive(Debug, PartialEq)]
struct Boom;

async fn answers<S>(layer: &IdempotencyLayer, service: S) -> [Result<Response<Bytes>, Boom>; 2]
where
    S: Service<Request, Response = Response<Body>, Error = Boom> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let send = || async {
        let answer = layer.layer(service.clone()).oneshot(charge("a-key", "")).await?;
        let (parts, body) = answer.into_parts();
        Ok(Response::from_parts(parts, body.collect().await.unwrap().to_bytes()))
    };
    let waits = async {
        sleep(SECOND / 2).await;
        send().await
    };
    let (first, second) = tokio::join!(send(), waits);
    [first, second]
}

#[tokio::test(start_paused = true)]
async fn an_error_goes_to_who_caused_it_and_is_kept_as_a_500() {
    for (disposition, remains) in [
        (Disposition::Store, Left::Done),
        (Disposition::Seal, Left::Sealed),
        (Disposition::Release, Left::Nothing),
    ] {
        let memory = MemoryStorage::new();
        let wait = InFlight::Wait(5 * SECOND);
        let policy = Policy::scope_public()
            .with_failure(disposition)
            .with_in_flight(wait)
            .with_max_running(1)
            .with_max_waiting(1);
        let layer = IdempotencyLayer::new(memory.clone(), policy);
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let fails = service_fn(move |_: Request| {
            counted.fetch_add(1, SeqCst);
            async {
                sleep(SECOND).await;
                Err::<Response<Body>, _>(Boom)
            }
        });
        let [first, second] = answers(&layer, fails).await;
        assert_eq!(first.unwrap_err(), Boom);
        assert_eq!(left(&memory).await, remains);
        match disposition {
            Disposition::Store => {
                let told = short(&second.unwrap());
                assert_eq!(told, (500, true, "handler-failed".into()));
            }
            Disposition::Seal => {
                assert_eq!(short(&second.unwrap()).2, "response-not-retained");
            }
            Disposition::Release => assert_eq!(second.unwrap_err(), Boom),
        }
        assert_eq!(runs.load(SeqCst), 1 + usize::from(disposition == Disposition::Release));
    }
}

/// A service that fails before its future is made.
#[derive(Debug, Clone, Copy)]
enum Fails {
    NotReady,
    PanicsInPollReady,
    PanicsInCall,
}

impl Service<Request> for Fails {
    type Response = Response<Body>;
    type Error = Boom;
    type Future = Ready<Result<Response<Body>, Boom>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Boom>> {
        match self {
            Self::NotReady => Poll::Ready(Err(Boom)),
            Self::PanicsInPollReady => panic!("on purpose"),
            Self::PanicsInCall => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, _: Request) -> Self::Future {
        match self {
            Self::PanicsInCall => panic!("on purpose"),
            _ => ready(Ok(receipt(1))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_before_it_is_called_is_an_answer_too() {
    for fails in [Fails::NotReady, Fails::PanicsInPollReady, Fails::PanicsInCall] {
        let memory = MemoryStorage::new();
        let policy = Policy::scope_public().with_max_running(1);
        let layer = IdempotencyLayer::new(memory.clone(), policy);
        let [first, second] = answers(&layer, fails).await;
        match fails {
            Fails::NotReady => assert_eq!(first.unwrap_err(), Boom),
            _ => assert_eq!(short(&first.unwrap()), (500, false, "handler-failed".into())),
        }
        assert_eq!(short(&second.unwrap()), (500, true, "handler-failed".into()), "{fails:?}");
        assert_eq!(left(&memory).await, Left::Done);
        let works = service_fn(|_: Request| async { Ok::<_, Infallible>(receipt(2)) });
        let free = layer.layer(works).oneshot(charge("b-key", "")).await.unwrap();
        assert_eq!(free.status(), 201, "a permit is lost");
    }
}

/// A body that gives some pieces and then panics.
struct Bad {
    pieces: usize,
    later: bool,
}

impl http_body::Body for Bad {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        if std::mem::take(&mut self.later) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        assert!(self.pieces > 0, "on purpose");
        self.pieces -= 1;
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"piece")))))
    }
}

/// Where something panics.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Handler,
    AfterBegin,
    AfterSeal,
    Classifier,
    /// Of the body, at its first poll.
    Body,
    /// Of the body, when the client has its head.
    BodyLater,
}

#[tokio::test(start_paused = true)]
async fn what_panics_is_kept_and_takes_nothing_with_it() {
    use Place::*;

    for place in [Handler, AfterBegin, AfterSeal, Classifier, Body, BodyLater] {
        for gone in [false, true] {
            let memory = MemoryStorage::new();
            let mut policy = Policy::scope_public().with_max_running(1).with_max_in_flight(1);
            if place == AfterBegin {
                policy = policy.with_commit_point().with_repeat(Repeat::AtMostOnce);
            }
            if place == Classifier {
                policy = policy.with_classifier(|answer| match answer.status().as_u16() {
                    202 => panic!("on purpose"),
                    _ => answer.usual(),
                });
            }
            let handler = move |execution, mut request: Request| async move {
                let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
                if attempt.key().as_str() != "a-key" {
                    return receipt(execution);
                }
                sleep(SECOND).await;
                match place {
                    Handler => panic!("on purpose"),
                    AfterBegin => attempt.begin().await.unwrap(),
                    AfterSeal => attempt.seal(),
                    Classifier => return StatusCode::ACCEPTED.into_response(),
                    Body => {
                        return Response::new(axum::body::Body::new(Bad {
                            pieces: 1,
                            later: false,
                        }));
                    }
                    BodyLater => {
                        return Response::new(axum::body::Body::new(Bad {
                            pieces: 2,
                            later: true,
                        }));
                    }
                }
                panic!("on purpose")
            };
            let till = Till::new(Staged::new(&memory), policy, handler);
            let first = till.router.clone().oneshot(charge("a-key", ""));
            match gone {
                true => assert!(timeout(SECOND / 2, first).await.is_err()),
                false => {
                    let first = first.await.unwrap();
                    let status = if place == BodyLater { 200 } else { 500 };
                    assert_eq!(first.status(), status, "{place:?}");
                    let whole = first.into_body().collect().await;
                    assert_eq!(whole.is_err(), place == BodyLater, "{place:?}");
                }
            }
            sleep(SETTLED).await;
            let remains = left(&memory).await;
            let next = short(&till.charge("a-key", "").await);
            match place {
                AfterSeal => {
                    assert_eq!((remains, &*next.2), (Left::Sealed, "response-not-retained"));
                }
                _ => {
                    let expected = (Left::Done, (500, true, "handler-failed".into()));
                    assert_eq!((remains, next), expected, "{place:?}");
                }
            }
            // Neither the permit nor the place of the scope is lost.
            for key in ["b-key", "c-key"] {
                assert_eq!(till.charge(key, "").await.status(), 201, "{place:?}");
            }
            assert_eq!(till.executions(), 3);
        }
    }
}

/// Handlers that do nothing if they fail are said to: not those that have answered.
#[tokio::test(start_paused = true)]
async fn a_body_that_panics_does_not_free_the_key_of_a_handler_that_has_answered() {
    for later in [false, true] {
        for says_so in [false, true] {
            let mut policy = Policy::scope_public()
                .with_repeat(Repeat::AtMostOnce)
                .with_failure(Disposition::Release);
            if says_so {
                policy = policy.with_commit_point();
            }
            let till = Till::new(MemoryStorage::new(), policy, move |_, _| async move {
                let mut response = Response::new(axum::body::Body::new(Bad { pieces: 1, later }));
                if says_so {
                    response.extensions_mut().insert(Disposition::Store);
                }
                response
            });
            let first = till.router.clone().oneshot(charge("a-key", "")).await.unwrap();
            let _ = first.into_body().collect().await;
            sleep(SETTLED).await;
            let next = short(&till.charge("a-key", "").await);
            assert_eq!(next, (409, false, "response-not-retained".into()), "{later}, {says_so}");
            assert_eq!(till.executions(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_commit_point_frees_the_key() {
    let memory = MemoryStorage::new();
    let policy = Policy::scope_public().with_commit_point();
    let till = Till::new(memory.clone(), policy, |_, _| async { panic!("on purpose") });
    for _ in 0..2 {
        assert_eq!(short(&till.charge("a-key", "").await), (500, false, "handler-failed".into()));
        assert_eq!(left(&memory).await, Left::Nothing);
    }
    assert_eq!(till.executions(), 2);
}

/// It panics where the client would; nothing has begun by then.
async fn ends_in_a_panic(work: impl Future) {
    assert!(AssertUnwindSafe(work).catch_unwind().await.is_err(), "no panic");
}

#[tokio::test(start_paused = true)]
async fn a_closure_of_the_policy_that_panics_has_claimed_nothing() {
    let scope = |panics: Arc<AtomicBool>| {
        Policy::scope(move |_| {
            assert!(!panics.load(SeqCst), "on purpose");
            Some("alice")
        })
    };
    let later = |panics: Arc<AtomicBool>| {
        Policy::scope_async(move |_| {
            let panics = Arc::clone(&panics);
            async move {
                sleep(SECOND).await;
                assert!(!panics.load(SeqCst), "on purpose");
                Ok::<_, Infallible>(Some("alice"))
            }
        })
    };
    let fingerprint = |panics: Arc<AtomicBool>| {
        let rules = FingerprintRules::new().with_custom(move |_, body| {
            assert!(!panics.load(SeqCst), "on purpose");
            body.to_vec()
        });
        Policy::scope_public().with_fingerprint(rules)
    };
    let policies: [&dyn Fn(Arc<AtomicBool>) -> Policy; 3] = [&scope, &later, &fingerprint];
    for policy in policies {
        let panics = Arc::new(AtomicBool::new(true));
        let policy = policy(Arc::clone(&panics)).with_max_running(1).with_max_in_flight(1);
        let till = Till::counting(MemoryStorage::new(), policy);
        for _ in 0..3 {
            ends_in_a_panic(till.charge("a-key", "")).await;
        }
        panics.store(false, SeqCst);
        for key in ["a-key", "b-key"] {
            assert_eq!(short(&till.charge(key, "").await), (201, false, String::new()));
            assert!(is_replay(&till.charge(key, "").await));
        }
        assert_eq!(till.executions(), 2);
    }
}

/// Whether at once or later, it has found out nothing.
#[tokio::test(start_paused = true)]
async fn a_recovery_that_panics_knows_nothing_and_is_asked_again() {
    for at_once in [true, false] {
        let memory = MemoryStorage::new();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let policy = Policy::scope_public().with_max_running(1).with_recovery(move |_| {
            let time = counted.fetch_add(1, SeqCst);
            assert!(time > 1 || !at_once, "on purpose");
            async move {
                sleep(SECOND).await;
                assert!(time > 1, "on purpose");
                Recovery::NotExecuted
            }
        });
        vanish(&memory, policy.clone(), "").await;
        let till = Till::counting(memory.clone(), policy);
        for _ in 0..2 {
            let unknown = short(&till.charge("a-key", "").await);
            assert_eq!(unknown, (409, false, "outcome-unknown".into()));
            assert_eq!(left(&memory).await, Left::Unknown);
        }
        assert_eq!(short(&till.charge("a-key", "").await), (201, false, String::new()));
        assert_eq!((asked.load(SeqCst), till.executions()), (3, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_ends_keeps_its_one_permit_and_no_other() {
    let policy = Policy::scope_public().with_max_running(2);
    let till = Till::new(MemoryStorage::new(), policy, |execution, request| async move {
        if request.headers()["idempotency-key"] == "a-key" {
            pending::<()>().await;
        }
        receipt(execution)
    });
    assert!(timeout(SECOND, till.charge("a-key", "")).await.is_err());
    for key in ["b-key", "c-key", "d-key"] {
        assert_eq!(till.charge(key, "").await.status(), 201);
    }
    assert_eq!(short(&till.charge("a-key", "").await).2, "in-flight");
}
