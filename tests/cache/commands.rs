//! How many round trips each thing costs on Redis, as the server counts its commands.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_keep::{
    RedisStorage, Storage,
    cache::{Cache, CacheHandle, Keep, NearCache, Outcome, Policy, Source},
    storage::{Get, Identity, Invalidation, Key, Name, Put, Tag, Tags},
};

use crate::support::{RedisServer, monitor::Monitor};

const MINUTE: Duration = Duration::from_secs(60);

type App = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

fn app(cache: &CacheHandle, policy: Policy) -> App {
    let handler = service_fn(async |request: Request<Body>| {
        let mut response = Response::new(Body::from("a body"));
        let headers = response.headers_mut();
        let mut say = |name: &'static str, value| headers.insert(name, value);
        match request.uri().path() {
            "/varies" => {
                say("cache-control", "max-age=60".parse().unwrap());
                say("vary", "accept-language".parse().unwrap());
            }
            "/no-store" => {
                say("cache-control", "no-store".parse().unwrap());
            }
            "/validated" => {
                say("cache-control", "no-cache".parse().unwrap());
                say("etag", "\"a\"".parse().unwrap());
                if request.headers().contains_key("if-none-match") {
                    *response.status_mut() = StatusCode::NOT_MODIFIED;
                    *response.body_mut() = Body::empty();
                }
            }
            _ => {
                say("cache-control", "max-age=60".parse().unwrap());
            }
        }
        Ok::<_, Infallible>(response)
    });
    BoxCloneSyncService::new(
        tower::ServiceBuilder::new()
            .map_response(|response: Response<_>| response.map(Body::new))
            .service(Cache::new(handler, cache.clone(), policy)),
    )
}

async fn send(app: &App, method: &str, path: &str, fields: &[(&str, &str)]) -> Response<()> {
    let mut request = Request::builder().method(method).uri(path).header("host", "shop.example");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    body.collect().await.unwrap();
    Response::from_parts(parts, ())
}

async fn get(app: &App, path: &str) -> Source {
    source(&send(app, "GET", path, &[]).await)
}

fn source(response: &Response<()>) -> Source {
    response.extensions().get::<Outcome>().unwrap().source
}

async fn redis(server: &RedisServer) -> RedisStorage {
    let patience = Duration::from_secs(10);
    RedisStorage::builder()
        .url(server.url())
        .entry_deadline(patience)
        .decision_deadline(patience)
        .build()
        .await
        .unwrap()
}

/// The server has the scripts, and the record of tags.
async fn warm(cache: &CacheHandle) {
    let app = app(cache, Policy::http());
    get(&app, "/warm").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(get(&app, "/warm").await, Source::Hit);
    cache.invalidate(["warm"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses() {
    let server = RedisServer::start();
    let cache = CacheHandle::new(redis(&server).await);
    warm(&cache).await;
    let app = app(&cache, Policy::http());
    let mut monitor = Monitor::start(&server);

    assert_eq!(get(&app, "/").await, Source::Handler);
    monitor.expect(2, "a fill: the lookup and the put").await;
    let hit = send(&app, "GET", "/", &[]).await;
    assert_eq!(source(&hit), Source::Hit);
    monitor.expect(1, "a hit").await;
    let etag = hit.headers()["etag"].to_str().unwrap();
    let not_modified = send(&app, "GET", "/", &[("if-none-match", etag)]).await;
    assert_eq!(
        (not_modified.status(), source(&not_modified)),
        (StatusCode::NOT_MODIFIED, Source::Hit)
    );
    monitor.expect(1, "a 304 from the store").await;
    let part = send(&app, "GET", "/", &[("range", "bytes=0-1")]).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    monitor.expect(1, "a range").await;
    assert_eq!(source(&send(&app, "HEAD", "/", &[]).await), Source::Hit);
    monitor.expect(1, "HEAD of what is stored").await;
    assert_eq!(source(&send(&app, "HEAD", "/unknown", &[]).await), Source::Passed);
    monitor.expect(1, "HEAD of what is not").await;

    send(&app, "PUT", "/", &[]).await;
    monitor.expect(1, "an unsafe request: the purge").await;
    assert_eq!(get(&app, "/").await, Source::Handler);
    monitor.expect(2, "the fill after it").await;
    cache.invalidate(["a", "b", "c"]).await.unwrap();
    monitor.expect(1, "a purge of three tags").await;
    cache.invalidate_softly(["a"]).await.unwrap();
    monitor.expect(1, "a soft purge").await;
    cache.clear().await.unwrap();
    monitor.expect(1, "a purge of everything").await;

    assert_eq!(get(&app, "/no-store").await, Source::Handler);
    monitor.expect(1, "what turns out not to be storable").await;
    assert_eq!(get(&app, "/no-store").await, Source::Handler);
    monitor.expect(1, "the same when that is known").await;

    assert_eq!(get(&app, "/validated").await, Source::Handler);
    monitor.expect(2, "a fill of what is revalidated each time").await;
    assert_eq!(get(&app, "/validated").await, Source::Revalidated);
    monitor.expect(2, "a revalidation: the lookup and the put").await;

    // What a purge of everything has ended is looked at twice.
    get(&app, "/").await;
    monitor.expect(3, "a fill of what belonged to another generation").await;
    let passed = send(&app, "GET", "/", &[("authorization", "Basic eDp5")]).await;
    assert_eq!(source(&passed), Source::Handler);
    monitor.expect(1, "a request with credentials").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variants() {
    let server = RedisServer::start();
    let storage = redis(&server).await;
    let cache = CacheHandle::new(storage.clone());
    warm(&cache).await;
    let here = app(&cache, Policy::http());
    let mut monitor = Monitor::start(&server);
    let language = |app: App, language: &'static str| async move {
        source(&send(&app, "GET", "/varies", &[("accept-language", language)]).await)
    };

    assert_eq!(language(here.clone(), "en").await, Source::Handler);
    monitor.expect(3, "the first variant: lookup, put, put of the list").await;
    assert_eq!(language(here.clone(), "en").await, Source::Hit);
    monitor.expect(1, "a hit of a variant").await;
    assert_eq!(language(here.clone(), "de").await, Source::Handler);
    monitor.expect(3, "another variant: lookup of it and of the list, put").await;
    assert_eq!(language(here.clone(), "de").await, Source::Hit);
    monitor.expect(1, "a hit of it").await;

    let there = app(&CacheHandle::new(storage), Policy::http());
    assert_eq!(language(there.clone(), "en").await, Source::Hit);
    monitor.expect(2, "a hit of a variant in a process that has not met the target").await;
    assert_eq!(language(there.clone(), "de").await, Source::Hit);
    monitor.expect(1, "a hit of another once it has").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values() {
    let server = RedisServer::start();
    let cache = CacheHandle::new(redis(&server).await);
    warm(&cache).await;
    let mut monitor = Monitor::start(&server);
    let value = async |keep: Keep| {
        let fill = async || Ok::<_, Infallible>(7);
        cache.get_or_fill("k", keep, fill).await.unwrap();
    };
    let keep = Keep::for_ttl(MINUTE);
    value(keep.clone()).await;
    monitor.expect(2, "a value that is made").await;
    value(keep.clone()).await;
    monitor.expect(1, "a value that is there").await;
    cache.invalidate_key("k").await.unwrap();
    monitor.expect(1, "the purge of a key").await;
    // The first brings a script.
    for _ in 0..2 {
        monitor.count().await;
        cache.invalidate_key("k").await.unwrap();
        value(keep.clone().with_lease(MINUTE)).await;
    }
    monitor
        .expect(6, "a purge, and a value made under a lease: lookup, acquire, lookup, put, release")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_caches() {
    let server = RedisServer::start();
    let storage = redis(&server).await;
    warm(&CacheHandle::new(storage.clone())).await;
    let mut monitor = Monitor::start(&server);
    for (near, trips) in
        [(NearCache::strict(1 << 20), 1), (NearCache::bounded(1 << 20, Duration::from_secs(30)), 0)]
    {
        let cache = CacheHandle::builder(storage.clone()).with_near_cache(near).build();
        let app = app(&cache, Policy::http());
        get(&app, "/near").await;
        monitor.count().await;
        assert_eq!(get(&app, "/near").await, Source::Hit);
        monitor.expect(trips, &format!("a hit in {near:?}")).await;
        cache.clear().await.unwrap();
        monitor.expect(1, "a purge").await;
    }
}

/// The time on a server is in `benches`; here it is seen that nothing depends on the number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_costs_the_same_however_many_entries_carry_the_tag() {
    let server = RedisServer::start();
    let storage = Arc::new(redis(&server).await);
    let space = Name::new("cache");
    let mut costs = Vec::new();
    for (round, entries) in [1_usize, 1, 20_000].into_iter().enumerate() {
        let tag = Tag::new(round.to_be_bytes());
        let key = |n: usize| Key::new(&space, &Name::new("d"), Identity::new(n.to_be_bytes()));
        let fence = storage.get(&key(0), Get::new().with_fence()).await.unwrap().fence.unwrap();
        let next = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..64)
            .map(|_| {
                let (storage, next, tag, space) =
                    (storage.clone(), next.clone(), tag.clone(), space.clone());
                tokio::spawn(async move {
                    while let n = next.fetch_add(1, SeqCst)
                        && n < entries
                    {
                        let key = Key::new(&space, &Name::new("d"), Identity::new(n.to_be_bytes()));
                        let tags = [tag.clone()];
                        let put = Put::new(vec![b'x'; 100].into(), MINUTE)
                            .with_tags(&tags)
                            .with_fence(fence)
                            .with_max_lifetime(MINUTE);
                        storage.put(&key, put).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let alive = async |n| storage.get(&key(n), Get::new()).await.unwrap().entry.is_some();
        assert!(alive(0).await && alive(entries - 1).await);
        let (before, own) = stats(&server);
        storage.invalidate(&space, Tags::Any(&[tag]), Invalidation::Hard).await.unwrap();
        let (after, _) = stats(&server);
        let mut cost: Vec<_> =
            after.iter().zip(before).map(|(after, before)| after - before).collect();
        cost[2] -= own;
        println!("a purge of {entries} entries: commands, bytes in, bytes out {cost:?}");
        assert!(!alive(0).await && !alive(entries - 1).await);
        if round > 0 {
            // The first brings the script.
            costs.push(cost);
        }
    }
    assert_eq!(costs[0], costs[1]);
}

/// All commands, also those of scripts, and the traffic; what this answer adds to that of the next.
fn stats(server: &RedisServer) -> ([u64; 3], u64) {
    let stats = server.ask("INFO stats");
    let numbers = ["total_commands_processed", "total_net_input_bytes", "total_net_output_bytes"];
    let numbers = numbers.map(|name| {
        let (_, rest) = stats.split_once(&format!("{name}:")).unwrap();
        rest.split('\r').next().unwrap().parse().unwrap()
    });
    (numbers, stats.len() as u64)
}
