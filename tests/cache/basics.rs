//! The main paths, one test each.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Path, routing::get};
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage,
    cache::{CacheHandle, CacheLayer, CacheTags, Keep, Outcome, Policy, Source},
};

async fn fetch(app: &Router, uri: &str) -> (Response<()>, String) {
    let request = Request::get(uri).header("host", "shop.example").body(Body::empty()).unwrap();
    send(app, request).await
}

async fn send(app: &Router, request: Request<Body>) -> (Response<()>, String) {
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (Response::from_parts(parts, ()), String::from_utf8(body.to_vec()).unwrap())
}

fn source(response: &Response<()>) -> Source {
    response.extensions().get::<Outcome>().unwrap().source
}

fn shop(policy: Policy) -> (Router, CacheHandle, Arc<AtomicUsize>) {
    let renders = Arc::new(AtomicUsize::new(0));
    let layer = CacheLayer::new(MemoryStorage::new(), policy);
    let cache = layer.handle().clone();
    let count = Arc::clone(&renders);
    let product = move |Path(id): Path<u32>| async move {
        let renders = count.fetch_add(1, SeqCst) + 1;
        (CacheTags::new([format!("product:{id}")]), format!("product {id}, render {renders}"))
    };
    let app = Router::new()
        .route("/products/{id}", get(product).put(|| async { "changed" }))
        .layer(layer);
    (app, cache, renders)
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_given_again_until_its_time_is_over() {
    let (app, _, renders) = shop(Policy::output(Duration::from_secs(60)));
    let (first, body) = fetch(&app, "/products/1").await;
    assert_eq!(source(&first), Source::Handler);
    assert_eq!(first.headers()["cache-status"], "tower-keep; fwd=uri-miss; stored; ttl=60");
    assert_eq!(body, "product 1, render 1");
    tokio::time::advance(Duration::from_secs(59)).await;
    let (second, body) = fetch(&app, "/products/1").await;
    assert_eq!(source(&second), Source::Hit);
    assert_eq!(second.headers()["cache-status"], "tower-keep; hit; ttl=1");
    assert_eq!(second.headers()["age"], "59");
    assert_eq!(body, "product 1, render 1");
    tokio::time::advance(Duration::from_secs(2)).await;
    let (_, body) = fetch(&app, "/products/1").await;
    assert_eq!(body, "product 1, render 2");
    assert_eq!(renders.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_purge_by_tag_ends_what_carries_it_and_nothing_else() {
    let (app, cache, _) = shop(Policy::output(Duration::from_secs(60)).with_tags(["products"]));
    for id in [1, 2] {
        fetch(&app, &format!("/products/{id}")).await;
    }
    cache.invalidate(["product:1"]).await.unwrap();
    assert_eq!(source(&fetch(&app, "/products/1").await.0), Source::Handler);
    assert_eq!(source(&fetch(&app, "/products/2").await.0), Source::Hit);
    cache.invalidate(["products"]).await.unwrap();
    assert_eq!(source(&fetch(&app, "/products/2").await.0), Source::Handler);
    cache.invalidate_uri("/products/2").await.unwrap();
    assert_eq!(source(&fetch(&app, "/products/2").await.0), Source::Handler);
    cache.invalidate_route("/products/{id}").await.unwrap();
    assert_eq!(source(&fetch(&app, "/products/2").await.0), Source::Handler);
    cache.invalidate_host("shop.example").await.unwrap();
    assert_eq!(source(&fetch(&app, "/products/2").await.0), Source::Handler);
    cache.clear().await.unwrap();
    assert_eq!(source(&fetch(&app, "/products/2").await.0), Source::Handler);
    assert_eq!(source(&fetch(&app, "/products/2").await.0), Source::Hit);
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_request_invalidates_its_target() {
    let (app, ..) = shop(Policy::output(Duration::from_secs(60)));
    fetch(&app, "/products/1").await;
    let put = Request::put("/products/1").header("host", "shop.example").body("5".into()).unwrap();
    assert_eq!(send(&app, put).await.1, "changed");
    assert_eq!(fetch(&app, "/products/1").await.1, "product 1, render 2");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_the_answer_is_told_so() {
    let (app, ..) = shop(Policy::output(Duration::from_secs(60)));
    let (first, _) = fetch(&app, "/products/1").await;
    let request = Request::get("/products/1")
        .header("host", "shop.example")
        .header("if-none-match", first.headers()["etag"].clone())
        .body(Body::empty())
        .unwrap();
    let (second, body) = send(&app, request).await;
    assert_eq!(second.status(), 304);
    assert_eq!(body, "");
}

#[tokio::test(start_paused = true)]
async fn concurrent_misses_run_the_handler_once() {
    let renders = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&renders);
    let app = Router::new()
        .route(
            "/",
            get(move || async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                count.fetch_add(1, SeqCst).to_string()
            }),
        )
        .layer(CacheLayer::new(MemoryStorage::new(), Policy::output(Duration::from_secs(60))));
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move { fetch(&app, "/").await.1 })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap(), "0");
    }
    assert_eq!(renders.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_value_is_made_once_and_again_after_a_purge() {
    let cache = CacheHandle::new(MemoryStorage::new());
    let made = Arc::new(AtomicUsize::new(0));
    let keep = Keep::for_ttl(Duration::from_secs(60)).with_tags(["users"]);
    let make = || {
        let made = Arc::clone(&made);
        async move || Ok::<_, std::io::Error>(made.fetch_add(1, SeqCst))
    };
    for _ in 0..3 {
        assert_eq!(cache.get_or_fill("user 7", keep.clone(), make()).await.unwrap(), 0);
    }
    cache.invalidate(["users"]).await.unwrap();
    assert_eq!(cache.get_or_fill("user 7", keep.clone(), make()).await.unwrap(), 1);
    cache.invalidate_key("user 7").await.unwrap();
    assert_eq!(cache.get_or_fill("user 7", keep, make()).await.unwrap(), 2);
}
