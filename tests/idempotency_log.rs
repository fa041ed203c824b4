//! What an operator reads of idempotency keys, and what nobody must read anywhere.
//!
//! A binary of its own: `tracing` remembers per process who wants an event.
#![cfg(feature = "tracing")]

#[path = "support/log.rs"]
mod log;
#[allow(dead_code)]
#[path = "idempotency/till.rs"]
mod till;
#[allow(dead_code)]
#[path = "session/watched.rs"]
mod watched;

use std::{
    fmt::{Debug, Write as _},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
    routing::{get, post},
};
use bytes::Bytes;
use log::Log;
use till::{Till, code, is_replay, whole};
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_keep::{
    IdempotencyLayer, MemoryStorage, Storage,
    idempotency::{
        FingerprintRules, Idempotency, KeyCursor, KeySyntax, Outage, Policy, Recovery, Repeat,
    },
    storage::Put,
};
use watched::{Watched, contains};

/// The log of this process, which the tests share: each looks for what only it can cause.
static LOG: LazyLock<Log> = LazyLock::new(Log::start);

const LEASE: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3_600);

/// A text that must never be shown, for each thing that is nobody's business.
const KEY: &str = "key-Zaphod";
const USER: &str = "user-Trillian";
const SENT: &str = "sent-Marvin";
const ANSWER: &str = "answer-Slartibartfast";
const COOKIE: &str = "cookie-Fenchurch";
const QUERY: &str = "query-Agrajag";
const PRIVATE: [&str; 6] = [KEY, USER, SENT, ANSWER, COOKIE, QUERY];

/// The layer's own lines. Other crates log what they like.
fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains("tower_keep")).collect()
}

fn ask(path: &str) -> Request<Body> {
    Request::post(format!("{path}?q={QUERY}"))
        .header("idempotency-key", format!("\"{KEY}\""))
        .header("cookie", COOKIE)
        .body(Body::from(SENT))
        .unwrap()
}

fn answer() -> Response<Body> {
    Response::builder()
        .header("set-cookie", COOKIE)
        .header("location", format!("/{ANSWER}"))
        .body(Body::from(ANSWER))
        .unwrap()
}

/// What is shown by `Debug`, for a look at it in the end.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<String>>);

impl Shown {
    fn show(&self, what: &dyn Debug) {
        writeln!(self.0.lock().unwrap(), "{what:?} {what:#?}").unwrap();
    }
}

fn policy(shown: &Shown) -> Policy {
    let shown = shown.clone();
    Policy::scope(|_| Some(USER.to_owned()))
        .with_lease(LEASE)
        .with_max_stored(1_000)
        .with_max_in_flight(10)
        .with_classifier(move |answer| {
            shown.show(&answer);
            answer.usual()
        })
}

/// A till whose handler does what the path says, and shows what it sees.
fn till(storage: &Watched, policy: Policy, shown: &Shown) -> Till {
    let (storage_, shown) = (storage.clone(), shown.clone());
    Till::new(storage.clone(), policy, move |_, request: Request<Body>| {
        let (storage, shown) = (storage_.clone(), shown.clone());
        async move {
            let attempt = request.extensions().get::<Idempotency>().unwrap().clone();
            shown.show(&attempt);
            shown.show(&attempt.key());
            shown.show(&request.extensions());
            match request.uri().path() {
                "/late" => sleep(4 * LEASE).await,
                "/panics" => panic!("{SENT}, on purpose"),
                "/cut" => storage.cut_off(true),
                "/cut-refused" => {
                    storage.cut_off(true);
                    return Response::builder().status(422).body(Body::from(ANSWER)).unwrap();
                }
                "/begin" => {
                    storage.cut_off(true);
                    let error = attempt.begin().await.unwrap_err();
                    storage.cut_off(false);
                    shown.show(&error);
                    shown.show(&error.to_response());
                    return error.to_response().map(Body::from);
                }
                _ => {}
            }
            answer()
        }
    })
}

/// Begins with this request, and is cut off from its storage for longer than a lease.
async fn vanish(till: &Till, storage: &Watched, path: &'static str) {
    let first = tokio::spawn({
        let till = till.clone();
        async move { till.send(ask(path)).await }
    });
    sleep(Duration::from_millis(1)).await;
    storage.cut_off(true);
    sleep(LEASE + LEASE / 2).await;
    storage.cut_off(false);
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn no_log_line_and_no_debug_output_holds_a_key_a_user_or_a_body() {
    LazyLock::force(&LOG);
    let shown = Shown::default();
    let storage = Watched::new(MemoryStorage::new());
    let first = till(&storage, policy(&shown), &shown);
    shown.show(&policy(&shown));
    shown
        .show(&policy(&shown).with_fingerprint(FingerprintRules::new().with_custom(|_, _| vec![])));
    shown.show(&first.layer);
    shown.show(&first.layer.keys());
    let inner = service_fn(|_: Request<Body>| async { Ok::<_, ()>(answer()) });
    let mut service = first.layer.layer(inner);
    shown.show(&service.get_ref());
    let future = service.call(ask("/service"));
    shown.show(&future);
    let (_, body) = future.await.unwrap().into_parts();
    shown.show(&body);

    // A call, replays, and what is refused.
    assert_eq!(first.send(ask("/pay")).await.body(), ANSWER);
    let again = first.send(ask("/pay")).await;
    assert!(is_replay(&again));
    shown.show(&again.extensions());
    let mut other = ask("/pay");
    *other.body_mut() = Body::from("other");
    assert_eq!(code(&first.send(other).await), "mismatch");
    let strict = till(&storage, policy(&shown).with_syntax(KeySyntax::Strict), &shown);
    let mut malformed = ask("/pay");
    malformed.headers_mut().insert("idempotency-key", KEY.parse().unwrap());
    assert_eq!(code(&strict.send(malformed).await), "key-malformed");
    let broken = futures_util::stream::iter([Ok(SENT), Err(std::io::Error::other("broken"))]);
    let broken = ask("/broken").map(|_| Body::from_stream(broken));
    assert_eq!(code(&first.send(broken).await), "body-failed");
    assert_eq!(first.send(ask("/panics")).await.status(), 500);
    assert_eq!(first.send(ask("/begin")).await.status(), 503);

    // An outage before, and after.
    storage.cut_off(true);
    assert_eq!(code(&first.send(ask("/outage")).await), "unavailable");
    let open = till(&storage, policy(&shown).with_outage(Outage::Open), &shown);
    assert_eq!(open.send(ask("/outage")).await.body(), ANSWER);
    storage.cut_off(false);
    for (path, status, longest) in
        [("/cut", 200, LEASE / 4), ("/cut-refused", 422, LEASE / 4), ("/cut", 200, 2 * LEASE)]
    {
        let mut request = ask(path);
        *request.body_mut() = Body::from(format!("{SENT} {longest:?}"));
        request
            .headers_mut()
            .insert("idempotency-key", format!("{KEY}-{}", longest.as_secs()).parse().unwrap());
        assert_eq!(first.send(request).await.status(), status);
        sleep(longest).await;
        storage.cut_off(false);
        sleep(LEASE).await;
    }

    // Owners that vanish: the next takes over, knows nothing, or asks.
    vanish(&first, &storage, "/late").await;
    let second = first.send(ask("/late")).await;
    assert_eq!(second.body(), ANSWER);
    let most = policy(&shown).with_name("most").with_repeat(Repeat::AtMostOnce);
    let most = till(&storage, most, &shown);
    vanish(&most, &storage, "/late").await;
    assert_eq!(code(&most.send(ask("/late")).await), "outcome-unknown");
    let (mut next, mut unknown) = (Some(KeyCursor::START), 0);
    while let Some(at) = next {
        let page = most.layer.keys().list(at).await.unwrap();
        shown.show(&page);
        unknown += page.keys.len();
        next = page.next;
    }
    assert_eq!(unknown, 1);
    let seen = shown.clone();
    let asks = policy(&shown).with_name("asks").with_recovery(move |vanished| {
        seen.show(&vanished);
        seen.show(&vanished.key());
        async { Recovery::Completed(Response::new(Bytes::from_static(ANSWER.as_bytes()))) }
    });
    let asks = till(&storage, asks, &shown);
    vanish(&asks, &storage, "/late").await;
    assert_eq!(asks.send(ask("/late")).await.body(), ANSWER);
    sleep(5 * LEASE).await;

    // A record that is damaged.
    for key in storage.keys("key") {
        storage.put(&key, Put::new(Bytes::from_static(SENT.as_bytes()), HOUR)).await.unwrap();
    }
    let damaged = first.send(ask("/pay")).await;
    assert_eq!(code(&damaged), "record-unreadable");

    let text = LOG.text();
    let log = lines(&text).join("\n");
    for wanted in [
        "could not be checked",
        "broke off",
        "is not stored yet",
        "is not stored",
        "not free yet",
        "the owner of a key has vanished",
        "what it did is unknown",
        "an attempt was late",
        "cannot be read",
    ] {
        assert!(log.contains(wanted), "the story has a line of {wanted:?}: {log}");
    }
    let shown = shown.0.lock().unwrap();
    assert!(shown.contains("IdempotencyKey(..)") && shown.contains("Idempotency {"), "{shown}");
    for (where_, text) in [("log", &*text), ("Debug", &**shown)] {
        for private in PRIVATE {
            let line = text.lines().find(|line| line.contains(private));
            assert!(line.is_none(), "{where_} shows {private}: {line:?}");
        }
    }
    // And the storage is told answers, but neither keys nor users nor what was sent.
    let bytes = storage.bytes();
    let holds = |what: &str| bytes.iter().any(|bytes| contains(bytes, what.as_bytes()));
    assert!(holds(ANSWER));
    for private in [KEY, USER, COOKIE, QUERY] {
        assert!(!holds(private), "the storage was told {private}");
    }
}

#[tokio::test]
async fn mistakes_in_the_set_up_name_their_remedy() {
    LazyLock::force(&LOG);
    let layer = || IdempotencyLayer::new(MemoryStorage::new(), Policy::scope_public());
    let needs = async |_: Idempotency| {};
    let app: Router = Router::new().route("/", post(needs).get(needs));
    let send = async |app: Router, method: &str| {
        let request = Request::builder().method(method).uri("/").header("idempotency-key", KEY);
        whole(app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()).await
    };
    assert_eq!(send(app.clone(), "POST").await.status(), 500);
    // A layer, and a method that it leaves alone.
    assert_eq!(send(app.clone().layer(layer()), "GET").await.status(), 500);
    assert_eq!(send(app.clone().layer(layer()), "POST").await.status(), 200);
    let text = LOG.text();
    let told: Vec<_> =
        lines(&text).into_iter().filter(|line| line.contains("asks for `Idempotency`")).collect();
    assert_eq!(told.len(), 2, "{text}");
    for line in told {
        assert!(line.contains("ERROR") && line.contains("with_methods"), "{line}");
        assert!(line.contains("add the layer after the route"), "{line}");
    }

    let twice = Router::new().route("/", get(async || {}).post(async || {}));
    let answer = send(twice.layer(layer()).layer(layer()), "POST").await;
    assert_eq!((answer.status().as_u16(), &*code(&answer)), (500, "misconfigured"));
    let text = LOG.text();
    let line = lines(&text).into_iter().find(|line| line.contains("have the same name"));
    let line = line.expect("the line is there");
    assert!(line.contains("ERROR") && line.contains("with_name"), "{line}");
    assert!(line.contains("clones of one layer"), "{line}");
    // What the client is told says nothing of the inside.
    let body = String::from_utf8(answer.into_body().to_vec()).unwrap();
    assert!(!body.contains("with_name"), "{body}");
}
