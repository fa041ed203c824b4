//! What two reviews have found, so that it stays away.

use std::{
    convert::Infallible,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request as AxumRequest,
    middleware::{self, Next},
    routing::{MethodRouter, get, put},
};
use futures_util::{future::join_all, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage, Storage,
    cache::{
        CacheHandle, CacheLayer, CacheTags, FillError, Keep, Outcome, Policy, Source, StatusHeader,
    },
    marks::SessionMark,
    storage::{
        Capabilities, Charge, Error, ErrorKind, Get, Identity, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Tags, Verdict, When,
    },
};
use tracing::Instrument;

use crate::stage::{calm, outcome};

#[path = "../support/log.rs"]
mod log;

const S: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(60);

/// A memory storage that can be taken away, wholly or for purges.
#[derive(Debug, Clone, Default)]
struct Flaky {
    memory: MemoryStorage,
    is_down: Arc<AtomicBool>,
    refuses_purges: Arc<AtomicBool>,
    purges: Arc<AtomicUsize>,
}

impl Flaky {
    fn answers(&self) -> Result<()> {
        match self.is_down.load(SeqCst) {
            true => Err(Error::new(ErrorKind::Unavailable, "down")),
            false => Ok(()),
        }
    }
}

impl Storage for Flaky {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.answers()?;
        tokio::task::yield_now().await;
        self.memory.get(key, get).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.answers()?;
        self.memory.put(key, put).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.answers()?;
        self.memory.delete(key, when).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.purges.fetch_add(1, SeqCst);
        self.answers()?;
        if self.refuses_purges.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "down"));
        }
        self.memory.invalidate(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.answers()?;
        self.memory.acquire(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }
}

/// Who an authentication layer says that it is.
#[derive(Clone, Copy)]
struct User(&'static str);

fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(uri).header("host", "shop.example");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

async fn send(app: &Router, request: Request<Body>) -> Response<String> {
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(parts, String::from_utf8(body.into()).unwrap())
}

async fn fetch(app: &Router, uri: &str) -> Response<String> {
    send(app, request("GET", uri, &[])).await
}

async fn fetch_with(app: &Router, name: &str, value: &str) -> Response<String> {
    send(app, request("GET", "/", &[(name, value)])).await
}

fn source<B>(response: &Response<B>) -> Source {
    outcome(response).source
}

fn app(handler: MethodRouter, layer: CacheLayer) -> Router {
    Router::new().route("/", handler.clone()).route("/{page}", handler).layer(layer)
}

fn in_memory(handler: MethodRouter, policy: Policy) -> Router {
    app(handler, CacheLayer::new(MemoryStorage::new(), policy))
}

#[derive(Clone, Default)]
struct Counter(Arc<AtomicU64>);

impl Counter {
    fn count(&self) -> u64 {
        self.0.fetch_add(1, SeqCst)
    }

    fn number(&self) -> u64 {
        self.0.load(SeqCst)
    }

    /// Answers with how often it was asked before.
    fn handler(&self) -> MethodRouter {
        let counter = self.clone();
        get(move || async move { counter.count().to_string() })
    }

    /// Does not answer in these runs.
    fn handler_that_hangs(&self, in_runs: &'static [u64]) -> MethodRouter {
        let counter = self.clone();
        get(move || async move {
            let run = counter.count();
            if in_runs.contains(&run) {
                std::future::pending::<()>().await;
            }
            run.to_string()
        })
    }
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_a_handler_does_not_wait_for_the_place_that_it_holds() {
    let storage = Flaky::default();
    storage.is_down.store(true, SeqCst);
    let cache = CacheHandle::builder(storage.clone()).with_outage_concurrency(1).build();
    let values = cache.clone();
    let handler = get(move || async move {
        sleep(S / 100).await;
        let inner = values.clone();
        let price = values.get_or_fill("price", Keep::for_ttl(TTL), async move || {
            inner.get_or_fill("tax", Keep::for_ttl(TTL), async || Ok::<_, io::Error>(7)).await
        });
        price.await.unwrap().to_string()
    });
    let app = app(handler, CacheLayer::from_handle(cache, Policy::output(TTL)));
    let uris = ["/1", "/2", "/3", "/4"];
    let answers = join_all(uris.map(|uri| timeout(30 * S, fetch(&app, uri)))).await;
    for answer in answers {
        assert_eq!(answer.expect("it waits for itself").body(), "7");
    }
    storage.is_down.store(false, SeqCst);
    assert_eq!(timeout(S, fetch(&app, "/1")).await.unwrap().body(), "7");
}

#[tokio::test]
async fn a_mark_that_is_put_inside_of_the_cache_counts() {
    async fn authenticate(mut request: AxumRequest, next: Next) -> axum::response::Response {
        request.extensions_mut().get_or_insert_default::<SessionMark>();
        next.run(request).await
    }
    let handler = get(|request: AxumRequest| async move {
        request.extensions().get::<SessionMark>().unwrap().touch();
        let user = request.extensions().get::<User>().unwrap().0;
        ([("cache-control", "public, max-age=60")], user)
    });
    for policy in [Policy::http(), Policy::output(TTL)] {
        let inner = handler.clone().layer(middleware::from_fn(authenticate));
        let app = in_memory(inner, policy);
        for user in ["alice", "bob", "alice"] {
            let mut request = request("GET", "/", &[]);
            request.extensions_mut().insert(User(user));
            let response = send(&app, request).await;
            assert_eq!((response.body().as_str(), outcome(&response).stored), (user, false));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_asks_for_its_own_value_does_not_wait_for_itself() {
    let cache = CacheHandle::new(MemoryStorage::new());
    let inner = cache.clone();
    let made = cache.get_or_fill("a", Keep::for_ttl(TTL), async move || {
        inner.get_or_fill("a", Keep::for_ttl(TTL), async || Ok::<_, io::Error>(7)).await
    });
    assert_eq!(timeout(S, made).await.expect("it waits for itself").unwrap(), 7);
}

/// A price, and a handler that writes it and then has something else to do.
fn shop(panics: bool) -> Router {
    let price = Counter::default();
    let written = price.clone();
    let handler =
        get(move || async move { price.number().to_string() }).merge(put(move || async move {
            written.count();
            sleep(S / 10).await;
            assert!(!panics, "after the write");
        }));
    in_memory(handler, Policy::output(TTL))
}

#[tokio::test(start_paused = true)]
async fn a_writer_who_leaves_after_the_write_has_purged() {
    let app = shop(false);
    assert_eq!(fetch(&app, "/").await.body(), "0");
    timeout(S / 20, send(&app, request("PUT", "/", &[]))).await.unwrap_err();
    calm().await;
    let response = fetch(&app, "/").await;
    assert_eq!((response.body().as_str(), source(&response)), ("1", Source::Handler));
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_panics_after_the_write_has_purged() {
    let app = shop(true);
    assert_eq!(fetch(&app, "/").await.body(), "0");
    let writer = app.clone();
    // How the client is told is not the point: it may be by a panic as well.
    let _ = tokio::spawn(async move { send(&writer, request("PUT", "/", &[])).await }).await;
    calm().await;
    let response = fetch(&app, "/").await;
    assert_eq!((response.body().as_str(), source(&response)), ("1", Source::Handler));
}

#[tokio::test]
async fn a_request_that_takes_away_a_field_on_the_way_passes_by() {
    // As a proxy does by RFC 9110 §7.6.1.
    let handler = get(|headers: HeaderMap| async move {
        let is_dropped =
            headers.get("connection").is_some_and(|named| named.as_bytes() == b"accept-language");
        let language = headers.get("accept-language").filter(|_| !is_dropped);
        let language = language.map_or("none", |language| language.to_str().unwrap()).to_owned();
        ([("vary", "accept-language"), ("cache-control", "max-age=60")], language)
    });
    let app = in_memory(handler, Policy::http());
    let ask = async |connection| {
        let fields = [("accept-language", "de"), ("connection", connection)];
        let response = send(&app, request("GET", "/", &fields)).await;
        (response.body().clone(), source(&response))
    };
    assert_eq!(ask("accept-language").await, ("none".into(), Source::Passed));
    assert_eq!(ask("keep-alive").await, ("de".into(), Source::Handler));
    assert_eq!(ask("accept-language").await, ("none".into(), Source::Passed));
    for known in ["close", "keep-alive", "TE", "Upgrade, HTTP2-Settings"] {
        assert_eq!(ask(known).await, ("de".into(), Source::Hit), "{known}");
    }
}

/// The inner and the outer layer share their handle or do not.
fn nested(handler: MethodRouter, inner: Policy, outer: Policy) -> [(Router, CacheHandle); 2] {
    [true, false].map(|is_shared| {
        let cache = CacheHandle::new(MemoryStorage::new());
        let outer_cache = match is_shared {
            true => cache.clone(),
            false => CacheHandle::new(MemoryStorage::new()),
        };
        let layer = CacheLayer::from_handle(cache.clone(), inner.clone());
        let app =
            app(handler.clone(), layer).layer(CacheLayer::from_handle(outer_cache, outer.clone()));
        (app, cache)
    })
}

#[tokio::test]
async fn of_nested_layers_the_inner_one_knows_whose_answer_it_is() {
    let renders = Counter::default();
    let count = renders.clone();
    let handler = get(move |request: AxumRequest| async move {
        count.count();
        request.extensions().get::<User>().unwrap().0
    });
    let inner = Policy::output(TTL)
        .with_principal(|head| head.extensions().get::<User>().map(|user| Identity::new(user.0)));
    for (app, _) in nested(handler, inner, Policy::output(TTL)) {
        for expected in [Source::Handler, Source::Hit] {
            for user in ["alice", "bob"] {
                let mut request = request("GET", "/", &[]);
                request.extensions_mut().insert(User(user));
                let response = send(&app, request).await;
                assert_eq!((response.body().as_str(), source(&response)), (user, expected));
            }
        }
    }
    assert_eq!(renders.number(), 4);
}

#[tokio::test]
async fn of_nested_layers_the_inner_one_knows_the_tags() {
    let handler = get(|| async { (CacheTags::new(["page"]), "x") });
    let inner = Policy::output(TTL).with_tags(["inner"]);
    for (app, cache) in nested(handler, inner, Policy::output(TTL)) {
        for tag in ["inner", "page"] {
            assert_eq!(source(&fetch(&app, "/").await), Source::Handler);
            assert_eq!(source(&fetch(&app, "/").await), Source::Hit);
            cache.invalidate([tag]).await.unwrap();
        }
        assert_eq!(source(&fetch(&app, "/").await), Source::Handler);
    }
}

#[tokio::test(start_paused = true)]
async fn of_nested_layers_the_inner_one_knows_the_time_to_live() {
    let handler = Counter::default().handler();
    for (app, _) in nested(handler, Policy::output(5 * S), Policy::output(TTL)) {
        for expected in [Source::Handler, Source::Hit, Source::Handler] {
            assert_eq!(source(&fetch(&app, "/").await), expected);
            advance(3 * S).await;
        }
    }
    // The outer one asks the inner one whether its answer is still good.
    let runs = Counter::default();
    let count = runs.clone();
    let handler = get(move || async move {
        count.count();
        ([("etag", "\"a\"")], "x")
    });
    for (app, _) in nested(handler, Policy::output(5 * S), Policy::output(TTL)) {
        for run in 1..5 {
            let before = runs.number();
            fetch(&app, "/").await;
            advance(3 * S).await;
            assert_eq!(fetch(&app, "/").await.body(), "x");
            assert_eq!(runs.number(), before + 1, "run {run}");
            advance(3 * S).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nested_layers_do_not_wait_for_each_other_and_fill_once() {
    let renders = Counter::default();
    let count = renders.clone();
    let handler = get(move || async move {
        sleep(S / 10).await;
        count.count();
        "x"
    });
    for (app, _) in nested(handler, Policy::output(TTL), Policy::output(TTL)) {
        let before = renders.number();
        let began = Instant::now();
        for response in join_all((0..50).map(|_| fetch(&app, "/"))).await {
            assert_eq!(response.body(), "x");
        }
        assert!(began.elapsed() < S, "{:?}", began.elapsed());
        assert!((1..=2).contains(&(renders.number() - before)), "{}", renders.number() - before);
    }
}

#[tokio::test(start_paused = true)]
async fn nested_layers_do_not_wait_for_the_lease_that_the_outer_one_holds() {
    let policy = Policy::output(TTL).with_lease(2 * S);
    for is_shared in [true, false] {
        let storage = Flaky::default().erase();
        let cache = CacheHandle::new(storage.clone());
        let outer = match is_shared {
            true => cache.clone(),
            false => CacheHandle::new(storage),
        };
        let layer = CacheLayer::from_handle(cache, policy.clone());
        let app = app(Counter::default().handler(), layer)
            .layer(CacheLayer::from_handle(outer, policy.clone()));
        let response = timeout(S, fetch(&app, "/")).await.expect("it waits for itself");
        assert_eq!((response.body().as_str(), source(&response)), ("0", Source::Handler));
    }
}

#[tokio::test(start_paused = true)]
async fn nested_layers_do_not_renew_an_answer_with_the_old_one() {
    let policy = Policy::output(5 * S).with_stale_while_revalidate(1_000 * S);
    for layers in [1, 2, 3] {
        let cache = CacheHandle::builder(MemoryStorage::new()).with_refreshes(1).build();
        let mut app = Router::new().route("/", Counter::default().handler());
        for _ in 0..layers {
            app = app.layer(CacheLayer::from_handle(cache.clone(), policy.clone()));
        }
        fetch(&app, "/").await;
        for renewed in ["1", "2", "3"] {
            sleep(6 * S).await;
            assert_eq!(source(&fetch(&app, "/").await), Source::Stale);
            sleep(S).await;
            let response = fetch(&app, "/").await;
            let expected = (renewed, Source::Hit);
            assert_eq!((response.body().as_str(), source(&response)), expected, "{layers} layers");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clients_do_not_see_the_tags_of_a_304() {
    let handler = get(|headers: HeaderMap| async move {
        let (status, body) = match headers.contains_key("if-none-match") {
            true => (StatusCode::NOT_MODIFIED, ""),
            false => (StatusCode::OK, "x"),
        };
        let fields = [
            ("etag", "\"a\""),
            ("surrogate-key", "customer:4711"),
            ("cache-tag", "secret"),
            ("cache-control", "max-age=1"),
        ];
        (status, fields, body)
    });
    let app = in_memory(handler, Policy::http());
    for expected in [Source::Handler, Source::Revalidated, Source::Hit] {
        let response = fetch(&app, "/").await;
        assert_eq!(source(&response), expected);
        for field in ["surrogate-key", "cache-tag"] {
            assert!(!response.headers().contains_key(field), "{expected:?} shows {field}");
        }
        if expected == Source::Handler {
            advance(2 * S).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_is_waited_for_once() {
    let handler = Counter::default().handler_that_hangs(&[0]);
    let app = in_memory(handler, Policy::output(10 * S).with_fill_timeout(5 * S));
    timeout(S, fetch(&app, "/")).await.unwrap_err();
    sleep(5 * S).await;
    for expected in ["1", "2", "3"] {
        let response = timeout(S, fetch(&app, "/")).await.expect("it waits for the one that hangs");
        assert_eq!((response.body().as_str(), outcome(&response).stored), (expected, true));
        assert_eq!(source(&fetch(&app, "/").await), Source::Hit);
        sleep(11 * S).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_hangs_is_waited_for_once() {
    let cache = CacheHandle::new(MemoryStorage::new());
    let keep = Keep::for_ttl(10 * S).with_fill_timeout(5 * S);
    let hangs = cache.get_or_fill("a", keep.clone(), std::future::pending::<io::Result<u32>>);
    timeout(S, hangs).await.unwrap_err();
    sleep(5 * S).await;
    for number in [1, 2] {
        let made = cache.get_or_fill("a", keep.clone(), async move || io::Result::Ok(number));
        let made = timeout(S, made).await.expect("it waits for the one that hangs");
        assert_eq!(made.unwrap(), number);
        sleep(11 * S).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_hangs_does_not_keep_others_from_theirs() {
    let cache = CacheHandle::builder(MemoryStorage::new()).with_refreshes(1).build();
    let policy =
        Policy::output(10 * S).with_stale_while_revalidate(1_000 * S).with_fill_timeout(5 * S);
    let handler = Counter::default().handler_that_hangs(&[2]);
    let app = app(handler, CacheLayer::from_handle(cache, policy));
    fetch(&app, "/0").await;
    fetch(&app, "/1").await;
    sleep(11 * S).await;
    assert_eq!(source(&fetch(&app, "/0").await), Source::Stale);
    sleep(6 * S).await;
    for (page, renewed) in [("/1", "3"), ("/0", "4")] {
        assert_eq!(source(&fetch(&app, page).await), Source::Stale);
        sleep(S).await;
        let response = fetch(&app, page).await;
        assert_eq!((response.body().as_str(), source(&response)), (renewed, Source::Hit));
    }
}

#[tokio::test(start_paused = true)]
async fn purges_that_fail_are_repeated_together() {
    const PAGES: usize = 2_000;
    let storage = Flaky::default();
    let layer = CacheLayer::new(storage.clone(), Policy::output(100 * TTL));
    let app = app(get(|| async { "x" }).put(|| async { "changed" }), layer);
    for page in 0..PAGES {
        fetch(&app, &format!("/{page}")).await;
    }
    storage.refuses_purges.store(true, SeqCst);
    for page in 0..PAGES {
        send(&app, request("PUT", &format!("/{page}"), &[])).await;
    }
    let before = storage.purges.load(SeqCst);
    sleep(30 * S).await;
    let repeated = storage.purges.load(SeqCst) - before;
    assert!((1..=600).contains(&repeated), "{repeated} storage calls");
    storage.refuses_purges.store(false, SeqCst);
    sleep(30 * S).await;
    for page in 0..PAGES {
        assert_eq!(source(&fetch(&app, &format!("/{page}")).await), Source::Handler, "{page}");
    }
    assert_eq!(source(&fetch(&app, "/0").await), Source::Hit);
}

#[tokio::test]
async fn the_order_of_languages_matters() {
    let handler = get(|headers: HeaderMap| async move {
        let wanted = headers["accept-language"].to_str().unwrap();
        let first = wanted.split(',').next().unwrap().trim().to_owned();
        ([("vary", "accept-language")], first)
    });
    let app = in_memory(handler, Policy::output(TTL));
    for _ in 0..2 {
        assert_eq!(fetch_with(&app, "accept-language", "en, de").await.body(), "en");
        assert_eq!(fetch_with(&app, "accept-language", "de, en").await.body(), "de");
    }
    assert_eq!(source(&fetch_with(&app, "accept-language", "en, de").await), Source::Hit);
}

#[tokio::test(start_paused = true)]
async fn a_private_answer_to_cookies_does_not_let_strangers_in_all_at_once() {
    let renders = Counter::default();
    let count = renders.clone();
    let handler = get(move |headers: HeaderMap| async move {
        sleep(S / 10).await;
        count.count();
        let control = match headers.contains_key("cookie") {
            true => "private",
            false => "max-age=60",
        };
        ([("cache-control", control)], "x")
    });
    let app = in_memory(handler, Policy::http());
    fetch_with(&app, "cookie", "session=1").await;
    assert_eq!(renders.number(), 1);
    join_all((0..100).map(|_| fetch(&app, "/"))).await;
    assert_eq!(renders.number(), 2);
}

#[tokio::test]
async fn no_time_is_too_long() {
    let forever = Duration::MAX;
    let cache = CacheHandle::builder(MemoryStorage::new()).with_hit_for_miss(forever).build();
    let not_stored = get(|| async { ([("cache-control", "no-store")], "x") });
    let layers = [
        (not_stored, CacheLayer::from_handle(cache, Policy::output(TTL))),
        (
            get(|| async { "x" }),
            CacheLayer::new(MemoryStorage::new(), Policy::output(forever).with_jitter(1e-18)),
        ),
        (
            get(|| async { "x" }),
            CacheLayer::new(
                MemoryStorage::new(),
                Policy::output(forever)
                    .with_stale_while_revalidate(forever)
                    .with_stale_if_error(forever)
                    .with_stale_if_unreachable(forever)
                    .with_longest_life(forever)
                    .with_kept_stale(forever)
                    .with_early_refresh(1.0)
                    .with_fill_timeout(forever),
            ),
        ),
        (
            get(|| async { "x" }),
            CacheLayer::new(
                Flaky::default(),
                Policy::output(TTL).with_lease(S).with_fill_timeout(forever),
            ),
        ),
        (
            get(|| async { "x" }),
            CacheLayer::new(Flaky::default(), Policy::output(TTL).with_lease(forever)),
        ),
    ];
    for (index, (handler, layer)) in layers.into_iter().enumerate() {
        let app = app(handler, layer);
        for _ in 0..2 {
            let response = timeout(5 * S, fetch(&app, "/")).await.expect("it is answered");
            assert_eq!((response.status(), response.body().as_str()), (StatusCode::OK, "x"));
            assert_ne!(source(&response), Source::Passed, "{index}");
        }
    }
    let cache = CacheHandle::new(Flaky::default());
    let keep = Keep::for_ttl(forever)
        .with_stale_while_revalidate(forever)
        .with_jitter(1e-18)
        .with_lease(S)
        .with_fill_timeout(forever);
    for _ in 0..2 {
        let made = cache.get_or_fill("a", keep.clone(), async || Ok::<_, io::Error>(1));
        assert_eq!(made.await.unwrap(), 1);
    }
}

#[test]
fn a_setting_that_would_not_do_what_it_says_is_refused() {
    let message = |set: &dyn Fn() -> Policy| {
        let panic = catch_unwind(AssertUnwindSafe(set)).expect_err("it is accepted");
        panic.downcast::<String>().map(|it| *it).unwrap_or_else(|panic| {
            (*panic.downcast::<&str>().expect("a panic with a message")).to_owned()
        })
    };
    assert!(!message(&|| Policy::http().with_cookies_ignored()).is_empty());
    for name in ["cookie", "authorization", "Cookie"] {
        let keyed = message(&|| Policy::output(TTL).add_key_header(name));
        let visible = message(&|| Policy::output(TTL).add_visible_header(name));
        assert!(keyed.contains("with_principal"), "{keyed}");
        assert!(visible.contains("with_principal"), "{visible}");
    }
}

#[tokio::test]
async fn in_http_mode_a_field_can_be_made_visible() {
    let handler = get(|headers: HeaderMap| async move {
        headers.get("x-forwarded-proto").map_or("", |proto| proto.to_str().unwrap()).to_owned()
    });
    let app = in_memory(handler, Policy::http().add_visible_header("x-forwarded-proto"));
    assert_eq!(fetch_with(&app, "x-forwarded-proto", "https").await.body(), "https");
}

fn cache_status<B>(response: &Response<B>) -> &str {
    response.headers()["cache-status"].to_str().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_instead_of_an_error_is_no_hit() {
    let renders = Counter::default();
    let handler = get(move || async move {
        match renders.count() {
            0 => StatusCode::OK,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    });
    let app = in_memory(handler, Policy::output(S).with_stale_if_error(TTL));
    fetch(&app, "/").await;
    advance(2 * S).await;
    let response = fetch(&app, "/").await;
    assert_eq!((response.status(), source(&response)), (StatusCode::OK, Source::Stale));
    let said = cache_status(&response);
    assert!(said.starts_with("tower-keep; fwd=stale; fwd-status=500"), "{said}");
}

#[tokio::test]
async fn the_answers_of_the_cache_itself_have_an_outcome() {
    let handler = get(|| async {
        if true {
            panic!("a handler that panics");
        }
    });
    let app = in_memory(handler, Policy::http().with_request_directives());
    let refused = fetch_with(&app, "cache-control", "only-if-cached").await;
    assert_eq!(refused.status(), StatusCode::GATEWAY_TIMEOUT);
    let failed = fetch(&app, "/").await;
    assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    for response in [refused, failed] {
        let Outcome { stored, ttl, reason, .. } = outcome(&response);
        assert_eq!((stored, ttl, reason), (false, None, Some("cache")));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_handler_tells_outer_layers_arrives() {
    #[derive(Clone)]
    struct Note;
    for is_streamed in [false, true] {
        let handler = get(move || async move {
            let body = match is_streamed {
                false => Body::from("x"),
                true => Body::from_stream(stream::once(Box::pin(async {
                    sleep(S / 100).await;
                    Ok::<_, Infallible>("x")
                }))),
            };
            let mut response = Response::new(body);
            response.extensions_mut().insert(Note);
            response
        });
        let response = fetch(&in_memory(handler, Policy::output(TTL)), "/").await;
        assert_eq!(source(&response), Source::Handler);
        assert!(response.extensions().get::<Note>().is_some(), "streamed: {is_streamed}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_outcome_says_why_the_cache_could_not_help() {
    let storage = Flaky::default();
    let layer = CacheLayer::new(
        storage.clone(),
        Policy::output(TTL).with_status_header(StatusHeader::Detailed),
    );
    let cache = layer.handle().clone();
    let app = app(get(|| async { "x" }), layer);
    let why = |response: &Response<String>| {
        let Outcome { reason, ttl, stored, .. } = outcome(response);
        (reason, ttl, stored)
    };

    storage.is_down.store(true, SeqCst);
    let expected = (Some("storage-unavailable"), None, false);
    assert_eq!(why(&fetch(&app, "/").await), expected);
    storage.is_down.store(false, SeqCst);
    fetch(&app, "/").await;

    storage.refuses_purges.store(true, SeqCst);
    cache.invalidate(["a"]).await.unwrap_err();
    assert_eq!(why(&fetch(&app, "/").await), (Some("purge-pending"), None, false));

    let policy = Policy::output(TTL).with_principal(|_| None::<Identity>);
    let app = in_memory(get(|| async { "x" }), policy);
    assert_eq!(why(&fetch(&app, "/").await), (Some("no-principal"), None, false));
}

#[tokio::test]
async fn what_is_no_path_cannot_be_purged() {
    let cache = CacheHandle::new(MemoryStorage::new());
    for wrong in ["items/1", "http://h/x", "/a b"] {
        let error = cache.invalidate_uri(wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{wrong}");
    }
    cache.invalidate_uri("/items/1?a=b").await.unwrap();
}

#[tokio::test]
async fn a_fill_belongs_to_the_span_of_its_request() {
    let (_log, _guard) = log::Log::of_this_thread();
    let handler = || async {
        let span = tracing::Span::current();
        span.metadata().map_or("", |it| it.name()).to_owned()
    };
    let app = in_memory(get(handler).post(handler), Policy::output(TTL));
    for method in ["GET", "POST"] {
        let span = tracing::info_span!("of the request");
        let response = send(&app, request(method, "/", &[])).instrument(span).await;
        assert_eq!(response.body(), "of the request", "{method}");
    }
}

#[tokio::test]
async fn logs_do_not_show_what_is_stored() {
    let (log, _guard) = log::Log::of_this_thread();
    let cache = CacheHandle::new(MemoryStorage::new());
    let secret = async || Ok::<_, io::Error>("hunter2".to_owned());
    cache.get_or_fill("user 7", Keep::for_ttl(TTL), secret).await.unwrap();
    let numbers = async || Ok::<_, io::Error>(vec![1]);
    assert_eq!(cache.get_or_fill("user 7", Keep::for_ttl(TTL), numbers).await.unwrap(), [1]);
    let text = log.text();
    assert!(!text.is_empty() && !text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn the_error_of_a_closure_can_be_had_back() {
    #[derive(Debug, PartialEq)]
    struct Missing;
    impl fmt::Display for Missing {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("missing")
        }
    }
    let cache = CacheHandle::new(MemoryStorage::new());
    let made = cache.get_or_fill("a", Keep::for_ttl(TTL), async || Err::<u32, _>(Missing)).await;
    assert_eq!(made.unwrap_err().into_inner(), Some(Missing));
    let panicked: FillError<Missing> = FillError::Panicked;
    assert_eq!(panicked.into_inner(), None);
}
