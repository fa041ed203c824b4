//! The contestants of the cache's figures: one route, asked in several ways, behind several caches.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
        header::{
            ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_TYPE, ETAG, HOST, IF_NONE_MATCH,
            USER_AGENT,
        },
    },
    middleware::{Next, from_fn_with_state},
    response::IntoResponse,
    routing::get,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use tower::Service;
use tower_keep::{
    CacheHandle, CacheLayer, MemoryStorage,
    cache::{Keep, Policy},
};

use crate::Noop;

const HOUR: Duration = Duration::from_secs(3_600);
/// How many responses a cache may hold, so that fills make room as they do in a full one.
const MOST: usize = 10_000;

static BODY: [u8; 100 << 10] = [b'x'; 100 << 10];
const SMALL: usize = 1 << 10;

/// A way to ask.
#[derive(Clone, Copy)]
pub struct Question {
    pub name: &'static str,
    request: fn(u32) -> Request<Body>,
    /// The status of an answer from a cache, and of one from the route.
    cached: StatusCode,
    bare: StatusCode,
    /// Whether the peers, which know neither conditions nor what must not be stored, are asked.
    peers: bool,
}

/// A question, and who is asked.
#[derive(Clone)]
pub struct Contestant {
    pub question: Question,
    pub cache: &'static str,
    pub status: StatusCode,
    app: Router,
}

pub const BARE: &str = "bare axum route";
pub const NOOP: &str = "no-op layer";
pub const MOKA: &str = "moka by hand";
pub const KEEP: &str = "tower-keep";

impl Contestant {
    /// Sends one request and reads the answer to its end.
    pub async fn send(&mut self, turn: u32) -> StatusCode {
        ask(&mut self.app, (self.question.request)(turn)).await.0
    }

    /// For profilers.
    pub fn name(&self) -> String {
        format!("{}: {}", self.question.name, self.cache)
    }
}

/// The status and the length of the answer, read to its end.
pub async fn ask(app: &mut Router, request: Request<Body>) -> (StatusCode, usize) {
    // A router is always ready.
    let Ok(response) = app.call(request).await;
    let (head, mut body) = response.into_parts();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.expect("the body is whole").data_ref().map_or(0, Bytes::len);
    }
    (head.status, length)
}

/// All contestants; each question begins with the bare route and the layer that does nothing.
pub fn contestants() -> Vec<Contestant> {
    let ok = |name, request| Question {
        name,
        request,
        cached: StatusCode::OK,
        bare: StatusCode::OK,
        peers: true,
    };
    let own = |name, request| Question { peers: false, ..ok(name, request) };
    let questions = [
        ok("hit, 1 KiB", |_| request(Method::GET, "/small")),
        ok("hit, 1 KiB, no fields but Host", |_| short_request("/small")),
        ok("hit, 100 KiB", |_| request(Method::GET, "/large")),
        Question {
            cached: StatusCode::NOT_MODIFIED,
            ..own("304", |_| {
                let mut request = request(Method::GET, "/small");
                request.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("\"v1\""));
                request
            })
        },
        own("HEAD", |_| request(Method::HEAD, "/small")),
        own("POST, which passes", |_| request(Method::POST, "/small")),
        own("hit for miss: no-store", |_| request(Method::GET, "/secret")),
        ok("miss, filled", |turn| request(Method::GET, &format!("/items/{turn}"))),
    ];
    let caches = [BARE, NOOP, KEEP, MOKA, "axum-response-cache"];
    let mut all: Vec<_> = questions
        .into_iter()
        .flat_map(|question| {
            let asked = if question.peers { &caches[..] } else { &caches[..3] };
            asked.iter().map(move |cache| {
                let app = behind(cache, route());
                let status = if *cache == KEEP { question.cached } else { question.bare };
                Contestant { question, cache, status, app }
            })
        })
        .collect();
    let value = ok("a value in the handler", |_| request(Method::GET, "/value"));
    let kept = CacheHandle::new(MemoryStorage::new());
    let values = moka::sync::Cache::builder().time_to_live(HOUR).build();
    let apps = [
        (BARE, Router::new().route("/value", get(async || String::from(SMALL_TEXT)))),
        (NOOP, Router::new().route("/value", get(async || String::from(SMALL_TEXT))).layer(Noop)),
        (KEEP, Router::new().route("/value", get(kept_value)).with_state(kept)),
        (MOKA, Router::new().route("/value", get(moka_value)).with_state(values)),
    ];
    all.extend(apps.map(|(cache, app)| Contestant {
        question: value,
        cache,
        status: StatusCode::OK,
        app,
    }));
    all
}

const SMALL_TEXT: &str = "a text of about the length of a small row of a small table";

async fn kept_value(State(cache): State<CacheHandle>) -> String {
    let keep = Keep::for_ttl(HOUR);
    let made = || async { Ok::<_, Infallible>(String::from(SMALL_TEXT)) };
    cache.get_or_fill("value", keep, made).await.expect("a value")
}

async fn moka_value(State(cache): State<moka::sync::Cache<String, String>>) -> String {
    cache.get_with("value".to_owned(), || String::from(SMALL_TEXT))
}

/// What all are put before.
pub fn route() -> Router {
    let body = |len| Bytes::from_static(&BODY[..len]);
    let typed = || [(CONTENT_TYPE, "application/json"), (ETAG, "\"v1\"")];
    Router::new()
        .route("/small", get(async move || (typed(), body(SMALL))).post(async || "done"))
        .route("/large", get(async move || (typed(), body(BODY.len()))))
        .route("/items/{n}", get(async move |Path::<u32>(_)| (typed(), body(SMALL))))
        .route("/secret", get(async move || ([(CACHE_CONTROL, "no-store")], body(SMALL))))
}

/// The route behind a cache in this process.
pub fn behind(cache: &str, route: Router) -> Router {
    match cache {
        BARE => route,
        NOOP => route.layer(Noop),
        KEEP => {
            let storage = MemoryStorage::builder().max_entries(MOST).build();
            route.layer(CacheLayer::new(storage, Policy::output(HOUR)))
        }
        MOKA => {
            let cache =
                moka::sync::Cache::builder().max_capacity(MOST as u64).time_to_live(HOUR).build();
            route.layer(from_fn_with_state(cache, moka_by_hand))
        }
        _ => route.layer(axum_response_cache::CacheLayer::with_lifespan(HOUR)),
    }
}

/// A cache as one would write it in an hour: whatever succeeds is stored for a time, under its path.
async fn moka_by_hand(
    State(cache): State<moka::sync::Cache<Uri, Arc<Kept>>>,
    request: Request<Body>,
    next: Next,
) -> Response<Body> {
    if request.method() != Method::GET {
        return next.run(request).await;
    }
    let uri = request.uri().clone();
    if let Some(kept) = cache.get(&uri) {
        return kept.answer();
    }
    let response = next.run(request).await;
    if !response.status().is_success() {
        return response;
    }
    let (head, body) = response.into_parts();
    let Ok(body) = body.collect().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let kept = Arc::new(Kept { headers: head.headers, body: body.to_bytes() });
    cache.insert(uri, Arc::clone(&kept));
    kept.answer()
}

struct Kept {
    headers: HeaderMap,
    body: Bytes,
}

impl Kept {
    fn answer(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.headers_mut() = self.headers.clone();
        response
    }
}

/// A request with the fields that most have.
pub fn request(method: Method, path: &str) -> Request<Body> {
    const FIELDS: [(HeaderName, HeaderValue); 3] = [
        (ACCEPT, HeaderValue::from_static("application/json")),
        (ACCEPT_ENCODING, HeaderValue::from_static("gzip, br")),
        (USER_AGENT, HeaderValue::from_static("bench/1.0")),
    ];
    let mut request = short_request(path);
    *request.method_mut() = method;
    for (name, value) in FIELDS {
        request.headers_mut().insert(name, value);
    }
    request
}

fn short_request(path: &str) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = path.parse().expect("a path");
    request.headers_mut().insert(HOST, HeaderValue::from_static("shop.example"));
    request
}
