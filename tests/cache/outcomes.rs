//! What the cache says that it did, on every path, and that it did it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    routing::{get as route, put},
};
use http::{HeaderValue, Request, Response, StatusCode, response};
use http_body_util::BodyExt;
use tokio::time::{Instant, advance, sleep};
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage,
    cache::{CacheHandle, CacheLayer, CacheTags, Outcome, Policy, Source, StatusHeader},
};

use crate::{
    redis_storage,
    stage::{Broken, Stage, calm, get, of_status, ok, outcome, request, whole},
    support::RedisServer,
};

const TTL: Duration = Duration::from_secs(60);
const LONG_AGO: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn output() -> Policy {
    Policy::output(TTL)
}

fn said(cache_control: &str) -> response::Builder {
    ok().header("cache-control", cache_control)
}

fn cache_status<B>(response: &Response<B>) -> &str {
    response.headers().get("cache-status").map_or("", |value| value.to_str().unwrap())
}

impl Stage {
    /// A request that the handler answers so.
    async fn made(&self, head: response::Builder, body: &str) -> Response<()> {
        let client = self.get();
        self.run().await.respond_whole(head, body);
        let (response, received) = whole(client.await.unwrap()).await.unwrap();
        if response.status() == of_status(200).body(()).unwrap().status() {
            assert_eq!(received, body);
        }
        response
    }

    async fn hit(&self, body: &str) -> Response<()> {
        let (response, received) = self.stored().await.expect("the handler is not needed");
        assert_eq!(received, body);
        response
    }
}

#[tokio::test(start_paused = true)]
async fn a_miss_and_a_hit() {
    let stage = Stage::new(output());
    let made = stage.made(ok(), "new").await;
    assert_eq!(cache_status(&made), "tower-keep; fwd=uri-miss; stored; ttl=60");
    let expected = (Source::Handler, Some(60), true);
    assert_eq!((outcome(&made).source, outcome(&made).ttl, outcome(&made).stored), expected);
    advance(seconds(7)).await;
    let hit = stage.hit("new").await;
    assert_eq!(cache_status(&hit), "tower-keep; hit; ttl=53");
    let expected = (Source::Hit, Some(53), false);
    assert_eq!((outcome(&hit).source, outcome(&hit).ttl, outcome(&hit).stored), expected);
}

#[tokio::test(start_paused = true)]
async fn a_live_body_is_said_to_be_stored() {
    let stage = Stage::new(output());
    let client = stage.get();
    let mut run = stage.run().await;
    run.respond_ok();
    let response = client.await.unwrap().unwrap();
    assert_eq!(cache_status(&response), "tower-keep; fwd=uri-miss; stored; ttl=60");
}

#[tokio::test]
async fn nothing_is_said_to_be_stored_while_the_storage_is_out_of_order() {
    let mut server = RedisServer::start();
    let cache = CacheHandle::new(redis_storage(&server.url(), "tk").await);
    server.kill();
    let stage = Stage::on(cache, output());
    let made = stage.made(ok(), "new").await;
    assert_eq!((outcome(&made).source, outcome(&made).stored), (Source::Handler, false));
    assert!(!cache_status(&made).contains("stored"));
}

#[tokio::test(start_paused = true)]
async fn another_variant_is_a_miss_of_its_own_kind() {
    let stage = Stage::new(output());
    stage.made(ok().header("vary", "accept"), "one").await;
    let mut other = get();
    other.headers_mut().insert("accept", HeaderValue::from_static("text/html"));
    let client = stage.send(other);
    stage.run().await.respond_whole(ok().header("vary", "accept"), "two");
    let response = client.await.unwrap().unwrap();
    assert_eq!(cache_status(&response), "tower-keep; fwd=vary-miss; stored; ttl=60");
}

#[tokio::test(start_paused = true)]
async fn a_follower_is_collapsed_with_the_reason_of_its_own() {
    let stage = Stage::new(output());
    let (leader, follower) = (stage.get(), stage.get());
    let mut run = stage.run().await;
    assert!(stage.is_quiet().await);
    run.respond_whole(ok(), "shared");
    whole(leader.await.unwrap()).await.unwrap();
    let (response, body) = whole(follower.await.unwrap()).await.unwrap();
    assert_eq!(body, "shared");
    assert_eq!(outcome(&response).source, Source::Collapsed);
    assert_eq!(cache_status(&response), "tower-keep; fwd=uri-miss; collapsed; ttl=60");
}

#[tokio::test(start_paused = true)]
async fn reasons_are_told_in_detailed_mode_only() {
    for (policy, made, hit) in [
        (StatusHeader::Off, "", ""),
        (StatusHeader::Brief, "shop; fwd=uri-miss", "shop; hit; ttl=60"),
        (StatusHeader::Detailed, "shop; fwd=uri-miss; detail=no-store", "shop; hit; ttl=60"),
    ]
    .map(|(status, made, hit)| {
        (output().with_status_header(status).with_status_name("shop"), made, hit)
    }) {
        let stage = Stage::new(policy);
        let response = stage.made(said("no-store"), "").await;
        assert_eq!(cache_status(&response), made);
        assert_eq!(outcome(&response).reason, Some("no-store"), "the extension always tells");
        stage.made(ok(), "new").await;
        assert_eq!(cache_status(&stage.hit("new").await), hit);
    }
}

#[tokio::test(start_paused = true)]
async fn what_passes_by_says_why() {
    let with = |name: &'static str| {
        let mut request = get();
        request.headers_mut().insert(name, HeaderValue::from_static("x"));
        request
    };
    for (asked, status) in [
        (with("cookie"), "tower-keep; fwd=bypass; detail=cookie"),
        (with("authorization"), "tower-keep; fwd=bypass; detail=authorization"),
        (with("if-match"), "tower-keep; fwd=request; detail=condition"),
        (request("POST"), "tower-keep; fwd=method; detail=method"),
        (request("OPTIONS"), "tower-keep; fwd=method; detail=method"),
        (request("HEAD"), "tower-keep; fwd=uri-miss; detail=head"),
    ] {
        let stage = Stage::new(output().with_status_header(StatusHeader::Detailed));
        let client = stage.send(asked);
        stage.run().await.respond_whole(ok(), "");
        let response = client.await.unwrap().unwrap();
        assert_eq!(outcome(&response).source, Source::Passed);
        assert_eq!(cache_status(&response), status);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_is_the_service_s_own() {
    let stage = Stage::new(output());
    let client = stage.get();
    stage.run().await.fail();
    // Neither boxed nor wrapped.
    assert_eq!(client.await.unwrap().unwrap_err(), Broken);
    assert!(stage.stored().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn statuses_may_have_a_life_of_their_own() {
    let policy = output()
        .with_negative_ttl(StatusCode::NOT_FOUND, seconds(5))
        .with_negative_ttl(StatusCode::INTERNAL_SERVER_ERROR, seconds(1));
    for (status, life) in [(404, 5), (500, 1)] {
        let stage = Stage::new(policy.clone());
        let made = stage.made(of_status(status), "").await;
        assert_eq!(outcome(&made).ttl, Some(life as i64));
        advance(Duration::from_millis(life * 1_000 - 1)).await;
        assert_eq!(stage.hit("").await.status(), status);
        advance(Duration::from_millis(1)).await;
        assert!(stage.stored().await.is_none());
    }
    let stage = Stage::new(policy);
    stage.made(of_status(410), "").await;
    assert!(stage.stored().await.is_none(), "nobody has said so of 410");
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_given_while_one_request_renews_it() {
    let stage = Stage::new(output().with_stale_while_revalidate(seconds(10)));
    stage.made(ok(), "old").await;
    advance(seconds(62)).await;
    let clients: Vec<_> = (0..10).map(|_| stage.get()).collect();
    for client in clients {
        let (response, body) = whole(client.await.unwrap()).await.unwrap();
        assert_eq!(body, "old");
        assert_eq!(outcome(&response).source, Source::Stale);
        assert_eq!(cache_status(&response), "tower-keep; hit; ttl=-2");
    }
    let mut refresh = stage.run().await;
    assert!(stage.is_quiet().await, "one renews it");
    refresh.respond_whole(ok(), "new");
    calm().await;
    assert_eq!(cache_status(&stage.hit("new").await), "tower-keep; hit; ttl=60");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_leaves_the_old_answer_until_its_window_ends() {
    let stage = Stage::new(output().with_stale_while_revalidate(seconds(10)));
    stage.made(ok(), "old").await;
    advance(seconds(61)).await;
    for failure in 0..3 {
        let (_, body) = whole(stage.get().await.unwrap()).await.unwrap();
        assert_eq!(body, "old");
        let mut refresh = stage.run().await;
        match failure {
            0 => refresh.fail(),
            1 => refresh.respond_whole(of_status(500), "broken"),
            _ => refresh.respond_whole(said("no-store"), "secret"),
        }
        calm().await;
    }
    advance(seconds(10)).await;
    stage.made(ok(), "new").await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_stands_in_for_an_error() {
    for failure in [None, Some(500), Some(502), Some(503), Some(504)] {
        let stage = Stage::new(output().with_stale_if_error(seconds(30)));
        stage.made(ok(), "old").await;
        advance(seconds(70)).await;
        let (leader, follower) = (stage.get(), stage.get());
        let mut run = stage.run().await;
        assert!(stage.is_quiet().await);
        match failure {
            None => run.fail(),
            Some(status) => run.respond_whole(of_status(status), "broken"),
        }
        for client in [leader, follower] {
            let (response, body) = whole(client.await.unwrap()).await.unwrap();
            assert_eq!((response.status().as_u16(), &body[..]), (200, &b"old"[..]));
            let outcome = outcome(&response);
            assert_eq!((outcome.source, outcome.ttl), (Source::Stale, Some(-10)), "{failure:?}");
            assert_eq!(outcome.reason, Some("stale-if-error"));
            let status = cache_status(&response);
            assert!(status.starts_with("tower-keep; fwd=stale"), "{status}");
            assert!(status.ends_with("; ttl=-10"), "{status}");
        }
        assert!(stage.is_quiet().await);
        advance(seconds(20)).await;
        let client = stage.get();
        let mut run = stage.run().await;
        match failure {
            None => run.fail(),
            Some(status) => run.respond_whole(of_status(status), "broken"),
        }
        let reply = client.await.unwrap().map(|response| response.status().as_u16());
        assert_eq!(reply, failure.ok_or(Broken), "the window is over");
    }
}

#[tokio::test(start_paused = true)]
async fn other_errors_are_told() {
    let stage = Stage::new(output().with_stale_if_error(seconds(30)));
    stage.made(ok(), "old").await;
    advance(seconds(61)).await;
    for status in [400, 404, 429, 501] {
        assert_eq!(stage.made(of_status(status), "").await.status(), status);
    }
}

#[tokio::test(start_paused = true)]
async fn what_must_be_revalidated_is_never_given_stale() {
    let windows = "stale-while-revalidate=100, stale-if-error=100";
    for (rule, is_stale_allowed) in [
        ("max-age=10", true),
        ("max-age=10, must-revalidate", false),
        ("max-age=10, proxy-revalidate", false),
        ("s-maxage=10", false),
    ] {
        for on_error in [false, true] {
            let windows = if on_error { "stale-if-error=100" } else { windows };
            let stage = Stage::new(Policy::http());
            stage.made(said(&format!("{rule}, {windows}")), "old").await;
            advance(seconds(11)).await;
            let client = stage.get();
            let mut run = stage.run().await;
            run.respond_whole(of_status(503), "broken");
            let status = client.await.unwrap().unwrap().status();
            assert_eq!(status == 200, is_stale_allowed, "{rule}, {windows}");
        }
    }
    let stage = Stage::new(Policy::http().with_stale_despite_s_maxage());
    stage.made(said("s-maxage=10, stale-while-revalidate=100"), "old").await;
    advance(seconds(11)).await;
    let client = stage.get();
    assert_eq!(whole(client.await.unwrap()).await.unwrap().1, "old");
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_is_confirmed_by_the_handler_and_not_made_anew() {
    for (name, value, condition) in
        [("etag", "\"v1\"", "if-none-match"), ("last-modified", LONG_AGO, "if-modified-since")]
    {
        let stage = Stage::new(Policy::http());
        stage.made(said("max-age=60").header(name, value).header("x-old", "1"), "body").await;
        advance(seconds(61)).await;
        let client = stage.get();
        let mut run = stage.run().await;
        let conditions: Vec<_> = ["if-none-match", "if-modified-since"]
            .into_iter()
            .filter(|name| run.request.headers().contains_key(*name))
            .collect();
        // With an entity tag that the handler does not know it would have to ignore the date.
        assert_eq!(conditions, [condition], "the handler gave {name} alone");
        assert_eq!(run.request.headers()[condition], value);
        let not_modified = of_status(304).header("cache-control", "max-age=30");
        run.respond_whole(not_modified.header("x-new", "2"), "");
        let (response, body) = whole(client.await.unwrap()).await.unwrap();
        assert_eq!((response.status().as_u16(), &body[..]), (200, &b"body"[..]));
        assert_eq!(outcome(&response).source, Source::Revalidated);
        assert_eq!(outcome(&response).handler_status, Some(StatusCode::NOT_MODIFIED));
        let expected = "tower-keep; fwd=stale; fwd-status=304; stored; ttl=30";
        assert_eq!(cache_status(&response), expected);
        advance(seconds(29)).await;
        let hit = stage.hit("body").await;
        assert_eq!(
            (&hit.headers()["x-old"], &hit.headers()["x-new"]),
            (&"1".parse().unwrap(), &"2".parse().unwrap())
        );
        assert_eq!(hit.headers()["age"], "29");
        advance(seconds(1)).await;
        assert!(stage.stored().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_the_confirmed_answer_is_told_so() {
    let stage = Stage::new(Policy::http());
    stage.made(said("max-age=60").header("etag", "\"v1\""), "body").await;
    advance(seconds(61)).await;
    let mut asked = get();
    asked.headers_mut().insert("if-none-match", HeaderValue::from_static("\"v1\""));
    let (theirs, other) = (stage.send(asked), stage.get());
    let mut run = stage.run().await;
    assert!(stage.is_quiet().await);
    run.respond_whole(of_status(304).header("cache-control", "max-age=60"), "");
    assert_eq!(theirs.await.unwrap().unwrap().status(), 304);
    assert_eq!(whole(other.await.unwrap()).await.unwrap().1, "body");
}

#[tokio::test(start_paused = true)]
async fn jitter_shortens_by_at_most_its_share_and_is_told() {
    let mut ttls = BTreeSet::new();
    for _ in 0..200 {
        let stage = Stage::new(output().with_jitter(0.5));
        let made = outcome(&stage.made(ok(), "new").await).ttl.unwrap();
        assert_eq!(outcome(&stage.hit("new").await).ttl, Some(made));
        ttls.insert(made);
    }
    let (first, last) = (*ttls.first().unwrap(), *ttls.last().unwrap());
    assert!(30 <= first && last <= 60, "{first} to {last}");
    // That 200 fall into one half of the range has a chance of 2^-199.
    assert!(first < 45 && last >= 45, "{first} to {last}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_renewed_before_its_end_where_the_policy_is_eager() {
    for (policy, is_eager) in [(output(), false), (output().with_early_refresh(100.0), true)] {
        let stage = Stage::new(policy);
        let client = stage.get();
        let mut run = stage.run().await;
        sleep(seconds(1)).await;
        run.respond_whole(ok(), "old");
        whole(client.await.unwrap()).await.unwrap();
        advance(seconds(58)).await;
        // With two seconds left one of ten is early but for a chance of 2^-56.
        let mut refreshes = Vec::new();
        for _ in 0..10 {
            let (response, body) = whole(stage.get().await.unwrap()).await.unwrap();
            assert_eq!((outcome(&response).source, &body[..]), (Source::Hit, &b"old"[..]));
            if !stage.is_quiet_but(&mut refreshes).await {
                break;
            }
        }
        assert_eq!(refreshes.len(), usize::from(is_eager));
        if let Some(mut refresh) = refreshes.pop() {
            refresh.respond_whole(ok(), "new");
            calm().await;
            assert_eq!(outcome(&stage.hit("new").await).ttl, Some(60));
        }
    }
}

impl Stage {
    /// Keeps a run that has begun.
    async fn is_quiet_but(&self, runs: &mut Vec<crate::stage::Run>) -> bool {
        calm().await;
        let run = tokio::time::timeout(Duration::ZERO, self.run()).await.ok();
        let is_quiet = run.is_none();
        runs.extend(run);
        is_quiet
    }
}

#[tokio::test(start_paused = true)]
async fn a_soft_purge_makes_stale_what_may_be_given_stale_and_ends_the_rest() {
    let tagged = || ok().extension(CacheTags::new(["shop"]));
    let stage = Stage::new(output().with_stale_while_revalidate(seconds(10)));
    stage.made(tagged(), "old").await;
    stage.cache.invalidate_softly(["other"]).await.unwrap();
    assert_eq!(outcome(&stage.hit("old").await).source, Source::Hit);
    stage.cache.invalidate_softly(["shop"]).await.unwrap();
    let (response, body) = whole(stage.get().await.unwrap()).await.unwrap();
    assert_eq!((outcome(&response).source, &body[..]), (Source::Stale, &b"old"[..]));
    assert_eq!(cache_status(&response), "tower-keep; hit; ttl=0");
    stage.run().await.respond_whole(tagged(), "new");
    calm().await;
    assert_eq!(outcome(&stage.hit("new").await).source, Source::Hit);

    let stage = Stage::new(output());
    stage.made(tagged(), "old").await;
    stage.cache.invalidate_softly(["shop"]).await.unwrap();
    let made = stage.made(tagged(), "new").await;
    assert_eq!(outcome(&made).source, Source::Handler);

    let stage = Stage::new(output().with_stale_if_error(seconds(10)));
    stage.made(tagged(), "old").await;
    stage.cache.invalidate_softly(["shop"]).await.unwrap();
    let client = stage.get();
    stage.run().await.fail();
    let (response, body) = whole(client.await.unwrap()).await.unwrap();
    assert_eq!((outcome(&response).source, &body[..]), (Source::Stale, &b"old"[..]));
    assert_eq!(outcome(&response).ttl, Some(0));
}

async fn send(app: &Router, method: &str, uri: &str) -> (Response<()>, String) {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("host", "shop.example")
        .body(Body::empty())
        .unwrap();
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (Response::from_parts(parts, ()), String::from_utf8(body.to_vec()).unwrap())
}

fn count() -> impl Fn() -> String + Clone + Send + Sync + 'static {
    let runs = Arc::new(AtomicUsize::new(0));
    move || (runs.fetch_add(1, SeqCst) + 1).to_string()
}

#[tokio::test(start_paused = true)]
async fn of_two_layers_on_one_handle_the_outer_one_stores_and_purges_reach_it() {
    let cache = CacheHandle::new(MemoryStorage::new());
    let other = CacheHandle::new(MemoryStorage::new());
    let layer = |cache: &CacheHandle| CacheLayer::from_handle(cache.clone(), Policy::http());
    for between in [false, true] {
        let count = count();
        let mut app = Router::new()
            .route(
                "/",
                route(async move || {
                    let fields =
                        [("tower-keep-cache-control", "max-age=60"), ("surrogate-key", "field")];
                    (CacheTags::new(["own"]), fields, count())
                }),
            )
            .layer(layer(&cache));
        if between {
            app = app.layer(layer(&other));
        }
        let app = app.layer(layer(&cache));
        let began = Instant::now();
        let (response, body) = send(&app, "GET", "/").await;
        assert_eq!(body, "1");
        assert_eq!(began.elapsed(), Duration::ZERO, "the layers have waited for each other");
        for name in ["tower-keep-cache-control", "surrogate-key"] {
            assert!(!response.headers().contains_key(name), "{name} is for the cache alone");
        }
        if between {
            // What lies between has a handle of its own, and takes what was meant for caches.
            continue;
        }
        assert_eq!(cache_status(&response), "tower-keep; fwd=uri-miss; stored; ttl=60");
        assert_eq!(send(&app, "GET", "/").await.1, "1");
        for (tag, body) in [("own", "2"), ("field", "3")] {
            cache.invalidate([tag]).await.unwrap();
            assert_eq!(send(&app, "GET", "/").await.1, body, "after a purge of {tag}");
        }
        cache.clear().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn under_nest_targets_are_told_apart_and_purged_as_clients_know_them() {
    let count = count();
    let layer = CacheLayer::new(MemoryStorage::new(), output());
    let cache = layer.handle().clone();
    let items = Router::new()
        .route("/items", route(async move || count()).merge(put(async || "changed")))
        .layer(layer);
    let app = Router::new().nest("/a", items.clone()).nest("/b", items);
    assert_eq!(send(&app, "GET", "/a/items").await.1, "1");
    assert_eq!(send(&app, "GET", "/b/items").await.1, "2");
    assert_eq!(send(&app, "GET", "/a/items").await.1, "1");
    cache.invalidate_uri("/a/items").await.unwrap();
    assert_eq!(send(&app, "GET", "/a/items").await.1, "3");
    assert_eq!(send(&app, "GET", "/b/items").await.1, "2");
    send(&app, "PUT", "/b/items").await;
    assert_eq!(send(&app, "GET", "/a/items").await.1, "3");
    assert_eq!(send(&app, "GET", "/b/items").await.1, "4");
    cache.invalidate_route("/a/items").await.unwrap();
    assert_eq!(send(&app, "GET", "/a/items").await.1, "5");
    let (response, _) = send(&app, "GET", "/a/items").await;
    assert_eq!(response.extensions().get::<Outcome>().unwrap().source, Source::Hit);
}

#[tokio::test(start_paused = true)]
async fn a_stripped_cookie_is_stripped_for_everybody() {
    for slowly in [false, true] {
        let stage = Stage::new(output().with_set_cookie_stripped());
        let client = stage.get();
        let mut run = stage.run().await;
        let head = ok().header("set-cookie", "id=1");
        if slowly {
            run.respond(head);
            calm().await;
            run.end();
        } else {
            run.respond_whole(head, "");
        }
        let (response, _) = whole(client.await.unwrap()).await.unwrap();
        assert!(!response.headers().contains_key("set-cookie"), "slowly: {slowly}");
        assert!(!stage.hit("").await.headers().contains_key("set-cookie"));
    }
}
