//! The layer beside others: in the order that its documentation has, in other orders, twice, and
//! without axum.

use std::{
    convert::Infallible,
    future::{Future, Ready, pending, ready},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, Response, StatusCode, header},
    routing::{get, post},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, limit::GlobalConcurrencyLimitLayer, service_fn,
};
use tower_keep::{
    IdempotencyLayer, MemoryStorage, Quota, RateLimitLayer, SessionLayer,
    cache::{self, CacheLayer},
    idempotency::{Idempotency, Outcome, Policy},
    rate_limit::{self, KeyExtractor},
    session::{self, Principal, Session, SessionHandle},
    storage::AnyStorage,
};

use crate::{
    storages,
    till::{Till, charge, code, is_replay, receipt, whole},
};

const HOUR: Duration = Duration::from_secs(3_600);

fn policy() -> Policy {
    Policy::scope_public()
}

async fn send(router: &Router, request: Request<Body>) -> Response<Bytes> {
    whole(router.clone().oneshot(request).await.unwrap()).await
}

fn lines<'a>(answer: &'a Response<Bytes>, name: &str) -> Vec<&'a str> {
    answer.headers().get_all(name).iter().map(|line| line.to_str().unwrap()).collect()
}

#[tokio::test]
async fn replays_cost_no_quota_and_carry_the_limits_of_now() {
    let (_server, storages) = storages("limits").await;
    for storage in storages {
        let limit = |name: &str, limit: u32| {
            let quota = Quota::fixed_window(limit, HOUR);
            let policy = rate_limit::Policy::new(name, quota).with_key(KeyExtractor::global());
            RateLimitLayer::new(storage.clone(), policy)
        };
        let inside = limit("inside", 7);
        let counting = Till::counting(storage.clone(), policy());
        let executions = Arc::clone(&counting.executions);
        let router: Router = Router::new()
            .fallback({
                let executions = Arc::clone(&executions);
                move || async move { receipt(executions.fetch_add(1, SeqCst) + 1) }
            })
            .layer(inside)
            .layer(IdempotencyLayer::new(storage.clone(), policy()))
            .layer(limit("outside", 3));
        let left = |answer: &Response<Bytes>| {
            let left = lines(answer, "x-ratelimit-remaining");
            assert_eq!(lines(answer, "x-ratelimit-limit").len(), left.len(), "{answer:?}");
            left.join(", ")
        };
        let first = send(&router, charge("a-key", "")).await;
        assert_eq!(first.status(), 201);
        for _ in 0..20 {
            let again = send(&router, charge("a-key", "")).await;
            assert!(is_replay(&again), "{again:?}");
            assert_eq!(again.body(), first.body());
            // What this limiter says, and nothing of the one inside at the first call.
            assert_eq!(left(&again), "2", "{again:?}");
        }
        // Who is turned away has caused work, and pays.
        assert_eq!(code(&send(&router, charge("a-key", "other")).await), "mismatch");
        let second = send(&router, charge("b-key", "")).await;
        assert_eq!((second.status().as_u16(), is_replay(&second)), (201, false));
        assert_eq!(send(&router, charge("c-key", "")).await.status(), 429);
        assert_eq!(executions.load(SeqCst), 2);
    }
}

/// What the shop remembers in a session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Visitor {
    charges: u32,
}

/// A shop in which one logs in, and is charged.
struct Shop {
    router: Router,
    sessions: session::Sessions,
    executions: Arc<AtomicUsize>,
}

impl Shop {
    fn new(storage: &AnyStorage) -> Self {
        let executions = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&executions);
        let charge = async move |user: Principal, mut session: Session<Visitor>, sum: String| {
            let execution = counted.fetch_add(1, SeqCst) + 1;
            session.charges += 1;
            (StatusCode::CREATED, format!("{execution}: {sum} of {}", user.into_string()))
        };
        let slow = async |mut session: Session<Visitor>| {
            tokio::time::sleep(Duration::from_millis(100)).await;
            session.charges += 10;
            session.save().await
        };
        let turn = async |handle: SessionHandle| handle.rotate().await;
        let policy = Policy::scope_async(|head| {
            let session: Option<SessionHandle> = SessionHandle::of(head);
            async move {
                match session {
                    Some(session) => session.identify().await,
                    None => Ok(None),
                }
            }
        });
        let sessions = SessionLayer::new(storage.clone(), session::Policy::new());
        let login = async |handle: SessionHandle, name: String| handle.login(name).await;
        let logout = async |handle: SessionHandle| handle.destroy().await;
        let charges = async |session: Session<Visitor>| session.charges.to_string();
        let router = Router::new()
            .route("/charge", post(charge))
            .route("/turn", post(turn))
            .route("/slow", post(slow))
            .layer(IdempotencyLayer::new(storage.clone(), policy))
            .route("/login", post(login))
            .route("/logout", post(logout))
            .route("/charges", get(charges))
            .layer(sessions.clone());
        Self { router, sessions: sessions.sessions().clone(), executions }
    }

    fn client(&self) -> Client<'_> {
        Client { shop: self, cookie: None }
    }
}

/// One who keeps a cookie.
struct Client<'a> {
    shop: &'a Shop,
    cookie: Option<String>,
}

impl Client<'_> {
    async fn send(&mut self, mut request: Request<Body>) -> Response<Bytes> {
        if let Some(cookie) = &self.cookie {
            request.headers_mut().insert("cookie", cookie.parse().unwrap());
        }
        let answer = send(&self.shop.router, request).await;
        for line in lines(&answer, "set-cookie") {
            let pair = line.split(';').next().unwrap().to_owned();
            self.cookie = Some(pair).filter(|_| !line.contains("Max-Age=0"));
        }
        answer
    }

    async fn login(&mut self, name: &'static str) {
        let request = Request::post("/login").body(Body::from(name)).unwrap();
        assert_eq!(self.send(request).await.status(), 200);
    }

    async fn charge(&mut self) -> Response<Bytes> {
        self.send(charge("a-key", "100 EUR")).await
    }

    async fn charges(&mut self) -> String {
        let request = Request::get("/charges").body(Body::empty()).unwrap();
        String::from_utf8(self.send(request).await.into_body().to_vec()).unwrap()
    }
}

#[tokio::test]
async fn a_replay_asks_again_who_it_is() {
    let (server, storages) = storages("shop").await;
    for storage in storages {
        let shop = Shop::new(&storage);
        let (mut ann, mut bob) = (shop.client(), shop.client());
        ann.login("ann").await;
        bob.login("bob").await;
        let cookie = ann.cookie.clone();
        let first = ann.charge().await;
        assert_eq!(first.body(), "1: 100 EUR of ann");
        let again = ann.charge().await;
        assert!(is_replay(&again));
        assert_eq!(again.body(), first.body());
        let bobs = bob.charge().await;
        assert_eq!(
            (is_replay(&bobs), bobs.body().as_ref()),
            (false, b"2: 100 EUR of bob".as_ref())
        );

        let nobody = |answer: &Response<Bytes>| {
            assert_eq!((answer.status().as_u16(), &*code(answer)), (400, "scope-missing"));
            assert!(!String::from_utf8_lossy(answer.body()).contains("EUR"), "{answer:?}");
        };
        nobody(&shop.client().charge().await);
        let logout = Request::post("/logout").body(Body::empty()).unwrap();
        assert_eq!(ann.send(logout).await.status(), 200);
        nobody(&ann.charge().await);
        // Somebody has kept the cookie.
        nobody(&Client { shop: &shop, cookie }.charge().await);
        shop.sessions.end_all("bob").await.unwrap();
        nobody(&bob.charge().await);
        assert_eq!(shop.executions.load(SeqCst), 2);

        // The key is the user's, not the session's.
        ann.login("ann").await;
        let again = ann.charge().await;
        assert_eq!((is_replay(&again), again.body()), (true, first.body()));
        assert_eq!(shop.executions.load(SeqCst), 2);
    }
    server.check_keys("shop");
}

#[tokio::test]
async fn what_a_handler_writes_into_a_session_is_saved_once_and_its_cookie_is_not_stored() {
    let (_server, storages) = storages("saved").await;
    for storage in storages {
        let shop = Shop::new(&storage);
        let mut ann = shop.client();
        ann.login("ann").await;
        for replayed in [false, true, true] {
            let answer = ann.charge().await;
            assert_eq!(is_replay(&answer), replayed);
            assert_eq!(ann.charges().await, "1");
        }
        let turn = || {
            let request = Request::post("/turn").header("idempotency-key", "a-key");
            request.body(Body::empty()).unwrap()
        };
        let first = ann.send(turn()).await;
        assert_eq!(lines(&first, "set-cookie").len(), 1, "{first:?}");
        let again = ann.send(turn()).await;
        assert!(is_replay(&again), "{again:?}");
        assert_eq!(lines(&again, "set-cookie"), [""; 0]);
        assert_eq!(ann.charges().await, "1");
    }
}

#[tokio::test]
async fn what_a_handler_saves_itself_is_saved_when_its_client_has_gone() {
    let (_server, storages) = storages("gone").await;
    for storage in storages {
        let shop = Shop::new(&storage);
        let mut ann = shop.client();
        ann.login("ann").await;
        let ask = || {
            let request = Request::post("/slow").header("idempotency-key", "a-key");
            request.body(Body::empty()).unwrap()
        };
        let gone = timeout(Duration::from_millis(30), ann.send(ask())).await;
        assert!(gone.is_err());
        let mut replayed = async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            is_replay(&ann.send(ask()).await)
        };
        while !replayed().await {}
        assert_eq!(ann.charges().await, "10");
    }
}

#[tokio::test]
async fn a_cache_inside_or_outside_does_no_harm() {
    for outside in [false, true] {
        let storage = MemoryStorage::new();
        let (gets, posts) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counted = |count: &Arc<AtomicUsize>| {
            let count = Arc::clone(count);
            move || {
                let number = count.fetch_add(1, SeqCst) + 1;
                let cacheable = [(header::CACHE_CONTROL, "public, max-age=60")];
                async move { (cacheable, number.to_string()) }
            }
        };
        let routes = Router::new().route("/charge", get(counted(&gets)).post(counted(&posts)));
        let cache = CacheLayer::new(storage.clone(), cache::Policy::http());
        let keys = IdempotencyLayer::new(storage.clone(), policy());
        let router: Router = match outside {
            true => routes.layer(keys).layer(cache),
            false => routes.layer(cache).layer(keys),
        };
        let get = || Request::get("/charge").header("idempotency-key", "k").body(Body::empty());
        assert_eq!(send(&router, get().unwrap()).await.body(), "1");
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(send(&router, get().unwrap()).await.body(), "1", "it is cached");
        for (key, body, replayed) in [("a", "1", false), ("a", "1", true), ("b", "2", false)] {
            let answer = send(&router, charge(key, "")).await;
            assert_eq!((is_replay(&answer), answer.body().as_ref()), (replayed, body.as_bytes()));
        }
        assert_eq!(code(&send(&router, charge("a", "other")).await), "mismatch");
        assert_eq!(posts.load(SeqCst), 2);
        // What was posted has changed the resource (RFC 9111 §4.4).
        assert_eq!(send(&router, get().unwrap()).await.body(), "2");
        assert!(is_replay(&send(&router, charge("a", "")).await));
    }
}

#[tokio::test]
async fn one_layer_twice_is_once() {
    let storage = MemoryStorage::new();
    let layer = IdempotencyLayer::new(storage, policy());
    let executions = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&executions);
    let handle = move |attempt: Idempotency| {
        let execution = counted.fetch_add(1, SeqCst) + 1;
        async move {
            assert_eq!(attempt.attempt(), 1);
            receipt(execution)
        }
    };
    let inner = Router::new().route("/charge", post(handle)).route_layer(layer.clone());
    let router = inner.layer(layer.clone()).layer(layer.clone());
    for replayed in [false, true] {
        let answer = send(&router, charge("a-key", "")).await;
        assert_eq!((is_replay(&answer), answer.body().as_ref()), (replayed, b"receipt 1".as_ref()));
    }
    assert_eq!(executions.load(SeqCst), 1);
    assert_eq!(code(&send(&router, charge("a-key", "other")).await), "mismatch");
}

#[tokio::test]
async fn two_layers_of_one_name_are_a_mistake_that_is_told() {
    let storage = MemoryStorage::new();
    let layer = || IdempotencyLayer::new(storage.clone(), policy());
    let handle = || async { receipt(1) };
    let router = Router::new().route("/charge", post(handle).get(handle));
    let between = IdempotencyLayer::new(storage.clone(), policy().with_name("between"));
    for between in [None, Some(between)] {
        let router = router.clone().layer(layer());
        let router = between.into_iter().fold(router, Router::layer).layer(layer());
        let answer = send(&router, charge("a-key", "")).await;
        assert_eq!((answer.status().as_u16(), &*code(&answer)), (500, "misconfigured"));
    }
    let router = router.layer(layer()).layer(layer());
    // What has no key meets no mistake.
    let bare = Request::post("/charge").body(Body::empty()).unwrap();
    assert_eq!(send(&router, bare).await.status(), 201);
}

#[tokio::test]
async fn layers_of_different_names_nest() {
    let storage = MemoryStorage::new();
    let named = |name: &str| policy().with_name(name);
    let outer = IdempotencyLayer::new(storage.clone(), named("outer"));
    let inner = named("inner").with_header("x-operation");
    let till = Till::counting(storage.clone(), inner);
    let router = till.router.clone().layer(outer.clone());
    let ask = |outer: &str, inner: &str| {
        let mut request = charge(outer, "");
        request.headers_mut().insert("x-operation", inner.parse().unwrap());
        request
    };
    for (outer, inner, replayed, body) in [
        ("a", "1", false, "receipt 1"),
        ("a", "1", true, "receipt 1"),
        // The outer one has not seen it, the inner one has.
        ("b", "1", false, "receipt 1"),
        ("b", "1", true, "receipt 1"),
        ("c", "2", false, "receipt 2"),
        ("a", "2", true, "receipt 1"),
    ] {
        let answer = send(&router, ask(outer, inner)).await;
        assert_eq!(answer.body(), body, "{outer} {inner}");
        let by_outer = answer.extensions().get() == Some(&Outcome::Replayed);
        assert_eq!(by_outer, replayed, "{outer} {inner}: {answer:?}");
    }
    assert_eq!(till.executions(), 2);
    // The outermost once more, inside of both: still once.
    let executions = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&executions);
    let handle = move || {
        let execution = counted.fetch_add(1, SeqCst) + 1;
        async move { receipt(execution) }
    };
    let middle = IdempotencyLayer::new(storage.clone(), named("middle"));
    let router = Router::new().fallback(handle).layer(outer.clone()).layer(middle).layer(outer);
    for _ in 0..2 {
        assert_eq!(send(&router, charge("d", "")).await.body(), "receipt 1");
    }
    assert_eq!(executions.load(SeqCst), 1);
}

type Plain = Request<Full<Bytes>>;

fn plain(key: &str, path: &str) -> Plain {
    let request = Request::post(path).header("idempotency-key", key);
    request.body(Full::from("100 EUR")).unwrap()
}

#[tokio::test]
async fn a_stack_without_axum_works_and_replays_wait_for_no_place_inside() {
    let inner = service_fn(|request: Plain| async move {
        if request.uri().path() == "/slow" {
            pending::<()>().await;
        }
        let body = request.into_body().collect().await?.to_bytes();
        Ok::<_, Infallible>(Response::new(Full::new(body)))
    });
    let service = ServiceBuilder::new()
        .layer(IdempotencyLayer::new(MemoryStorage::new(), policy()))
        .layer(GlobalConcurrencyLimitLayer::new(1))
        .service(inner);
    let send = async |key: &str, path: &str| {
        let response = service.clone().oneshot(plain(key, path)).await.unwrap();
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    };
    assert_eq!(send("a", "/fast").await.body(), "100 EUR");
    let first = Duration::from_millis(50);
    assert!(timeout(first, send("b", "/slow")).await.is_err(), "it takes the only place");
    let again = send("a", "/fast").await;
    assert!(is_replay(&again));
    assert_eq!(again.body(), "100 EUR");
    assert_eq!(code(&send("b", "/slow").await), "in-flight");
    assert!(timeout(first, send("c", "/fast")).await.is_err(), "it waits for the place");
    assert_eq!(code(&send("c", "/fast").await), "in-flight");
}

/// Never ready.
#[derive(Clone)]
struct Busy;

impl Service<Plain> for Busy {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Pending
    }

    fn call(&mut self, _: Plain) -> Self::Future {
        panic!("it was not ready")
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_never_ready_keeps_nobody_waiting_but_the_first() {
    let storage = MemoryStorage::new();
    let good = service_fn(|_: Plain| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("ok")))
    });
    let before = IdempotencyLayer::new(storage.clone(), policy()).layer(good);
    before.oneshot(plain("a", "/")).await.unwrap();
    let mut service = IdempotencyLayer::new(storage, policy()).layer(Busy);
    let second = Duration::from_secs(1);
    let mut ask = async |request: Plain| {
        let response = timeout(second, service.ready().await.unwrap().call(request)).await;
        response.ok().map(|response| *response.unwrap().extensions().get::<Outcome>().unwrap())
    };
    assert_eq!(ask(plain("a", "/")).await, Some(Outcome::Replayed));
    assert_eq!(ask(plain("a, b", "/")).await, Some(Outcome::KeyInvalid));
    assert_eq!(ask(plain("a", "/").map(|_| Full::from("other"))).await, Some(Outcome::Mismatch));
    assert_eq!(ask(plain("b", "/")).await, None);
    for _ in 0..10 {
        // Its owner lives and waits: it is under way until it is given up.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(ask(plain("b", "/")).await, Some(Outcome::InFlight));
    }
}

/// Ready by one of a few permits, which only the clone that took it may use.
struct Permits {
    free: Arc<AtomicUsize>,
    held: bool,
}

impl Clone for Permits {
    fn clone(&self) -> Self {
        Self { free: Arc::clone(&self.free), held: false }
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        if self.held {
            self.free.fetch_add(1, SeqCst);
        }
    }
}

impl Service<Plain> for Permits {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !self.held {
            let take = self.free.fetch_update(SeqCst, SeqCst, |free| free.checked_sub(1));
            self.held = take.is_ok();
        }
        if self.held { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn call(&mut self, _: Plain) -> Self::Future {
        assert!(self.held, "a service is called that is not ready");
        self.held = false;
        self.free.fetch_add(1, SeqCst);
        ready(Ok(Response::new(Full::from("hello"))))
    }
}

#[tokio::test]
async fn the_service_that_was_polled_ready_is_the_one_that_is_called() {
    let free = Arc::new(AtomicUsize::new(1));
    let layer = IdempotencyLayer::new(MemoryStorage::new(), policy());
    let mut service = layer.layer(Permits { free: Arc::clone(&free), held: false });
    let bare = || Request::post("/").body(Full::default()).unwrap();
    let requests: [Plain; 6] = [
        plain("a", "/"),
        plain("a", "/"),
        bare(),
        plain("a, b", "/"),
        plain("b", "/"),
        Request::get("/").body(Full::default()).unwrap(),
    ];
    for request in requests {
        let answer = service.ready().await.unwrap().call(request).await.unwrap();
        assert!(matches!(answer.status().as_u16(), 200 | 400));
        assert_eq!(free.load(SeqCst), 1, "nothing is held back");
    }
    // Made ready, and not called.
    service.ready().await.unwrap();
    assert_eq!(free.load(SeqCst), 1);
    for polls in 0..4 {
        for request in [bare(), plain(&format!("dropped-{polls}"), "/")] {
            {
                let mut answer = pin!(service.ready().await.unwrap().call(request));
                for _ in 0..polls {
                    let mut cx = Context::from_waker(Waker::noop());
                    if answer.as_mut().poll(&mut cx).is_ready() {
                        break;
                    }
                }
            }
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(free.load(SeqCst), 1, "after {polls} polls");
        }
    }
}

#[tokio::test]
async fn all_layers_in_their_order_do_their_work_once() {
    let (server, storages) = storages("all").await;
    for storage in storages {
        let shop = Shop::new(&storage);
        let quota = Quota::fixed_window(4, HOUR);
        let limit = rate_limit::Policy::new("all", quota).with_key(KeyExtractor::global());
        let router: Router = shop
            .router
            .clone()
            .layer(CacheLayer::new(storage.clone(), cache::Policy::http()))
            .layer(RateLimitLayer::new(storage, limit));
        let login = Request::post("/login").body(Body::from("ann")).unwrap();
        let cookie = lines(&send(&router, login).await, "set-cookie")[0].to_owned();
        let cookie = cookie.split(';').next().unwrap();
        for number in 0..10 {
            let mut request = charge("a-key", "100 EUR");
            request.headers_mut().insert("cookie", cookie.parse().unwrap());
            let answer = send(&router, request).await;
            assert_eq!((answer.status().as_u16(), is_replay(&answer)), (201, number > 0));
            assert_eq!(answer.body(), "1: 100 EUR of ann");
            assert_eq!(lines(&answer, "x-ratelimit-remaining"), ["2"]);
            let marks = |headers: &HeaderMap| headers.get_all("idempotent-replayed").iter().count();
            assert_eq!(marks(answer.headers()), usize::from(number > 0));
        }
    }
    server.check_keys("all");
}
