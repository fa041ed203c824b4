//! What happens while the storage gives no answer, and after that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    routing::get,
};
use futures_util::{FutureExt, future::join_all};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;
use tower_keep::{
    RedisStorage,
    cache::{
        CacheHandle, CacheHandleBuilder, CacheLayer, CacheTags, Keep, NearCache, Outcome, Policy,
        Source,
    },
};

use crate::support::{Proxy, RedisServer, until};

/// A page whose handler counts how many are in it.
#[derive(Clone, Default)]
struct Kitchen {
    number: Arc<AtomicU64>,
    renders: Arc<AtomicUsize>,
    busy: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    slowness: Duration,
}

async fn cook(State(kitchen): State<Kitchen>, Path(page): Path<u32>) -> (CacheTags, String) {
    kitchen.renders.fetch_add(1, SeqCst);
    kitchen.most.fetch_max(kitchen.busy.fetch_add(1, SeqCst) + 1, SeqCst);
    let number = kitchen.number.load(SeqCst);
    sleep(kitchen.slowness).await;
    kitchen.busy.fetch_sub(1, SeqCst);
    (CacheTags::new([format!("page:{page}")]), number.to_string())
}

async fn change(State(kitchen): State<Kitchen>) -> String {
    (kitchen.number.fetch_add(1, SeqCst) + 1).to_string()
}

#[derive(Clone)]
struct Node {
    app: Router,
    cache: CacheHandle,
    kitchen: Kitchen,
}

impl Node {
    async fn new(
        url: &str,
        slowness: Duration,
        set_up: impl Fn(CacheHandleBuilder) -> CacheHandleBuilder,
    ) -> Self {
        let storage = RedisStorage::builder()
            .url(url)
            .prefix("outage")
            .secret("of the outage, long enough")
            .build()
            .await
            .unwrap();
        let builder = CacheHandle::builder(storage).with_hit_for_miss(Duration::ZERO);
        let cache = set_up(builder).build();
        let kitchen = Kitchen { slowness, ..Kitchen::default() };
        let app = Router::new()
            .route("/pages/{page}", get(cook).put(change))
            .with_state(kitchen.clone())
            .layer(CacheLayer::from_handle(cache.clone(), Policy::output(Duration::from_secs(60))));
        Self { app, cache, kitchen }
    }

    async fn send(&self, method: &str, page: u32) -> (u64, Source) {
        let request = Request::builder()
            .method(method)
            .uri(format!("/pages/{page}"))
            .header("host", "shop.example")
            .body(Body::empty())
            .unwrap();
        let (parts, body) = self.app.clone().oneshot(request).await.unwrap().into_parts();
        assert_eq!(parts.status, StatusCode::OK);
        let body = body.collect().await.unwrap().to_bytes();
        let number = std::str::from_utf8(&body).unwrap().parse().unwrap();
        (number, parts.extensions.get::<Outcome>().unwrap().source)
    }

    async fn read(&self, page: u32) -> (u64, Source) {
        self.send("GET", page).await
    }

    /// Waits until what is read comes from the storage; returns it.
    async fn warm(&self, page: u32) -> u64 {
        let hit = || async {
            let (number, source) = self.read(page).await;
            (source == Source::Hit).then_some(number)
        };
        until(Duration::from_secs(10), hit).await.0
    }
}

fn as_it_is(builder: CacheHandleBuilder) -> CacheHandleBuilder {
    builder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_down_handlers_answer_one_request_for_many() {
    let mut server = RedisServer::start();
    let node = Node::new(&server.url(), Duration::from_millis(300), as_it_is).await;
    node.warm(1).await;
    server.kill();
    node.kitchen.renders.store(0, SeqCst);
    let answers = (0..200).map(|_| {
        let node = node.clone();
        tokio::spawn(async move { node.read(1).await.0 })
    });
    for answer in join_all(answers).await {
        answer.unwrap();
    }
    let renders = node.kitchen.renders.load(SeqCst);
    // Who comes while one is at it waits for the next, for he may know of a purge that it does not.
    println!("200 requests: {renders} renders");
    assert!(renders <= 4, "{renders} renders");
    assert_eq!(node.kitchen.most.load(SeqCst), 1);
    // Values alike.
    let calls = Arc::new(AtomicUsize::new(0));
    let values = (0..200).map(|_| {
        let calls = Arc::clone(&calls);
        node.cache.get_or_fill("a", Keep::for_ttl(Duration::from_secs(60)), async move || {
            sleep(Duration::from_millis(100)).await;
            Ok::<_, std::io::Error>(calls.fetch_add(1, SeqCst))
        })
    });
    for value in join_all(values).await {
        value.unwrap();
    }
    assert!(calls.load(SeqCst) <= 4, "{calls:?} calls");
    server.restart();
    node.warm(1).await;
}

/// A node that is cut off cannot know of a purge by another, so it may not join what it began before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_gives_no_answer_from_before_the_request() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let here = Node::new(&proxy.url(), Duration::from_secs(2), as_it_is).await;
    let there = Node::new(&server.url(), Duration::ZERO, as_it_is).await;
    proxy.half_open();
    let early = here.clone();
    let early = tokio::spawn(async move { early.read(1).await });
    until(Duration::from_secs(5), || async { (here.kitchen.busy.load(SeqCst) == 1).then_some(()) })
        .await;
    proxy.half_open();
    here.kitchen.number.store(5, SeqCst);
    there.cache.invalidate(["page:1"]).await.unwrap();
    let late = here.read(1).await;
    assert_eq!(late.0, 5);
    assert_eq!(early.await.unwrap().0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_so_many_are_with_the_handlers_during_an_outage() {
    let server = RedisServer::start();
    let set_up = |builder: CacheHandleBuilder| builder.with_outage_concurrency(5);
    let node = Node::new(&server.url(), Duration::from_millis(50), set_up).await;
    node.warm(1).await;
    server.pause_process();
    node.kitchen.most.store(0, SeqCst);
    let answers = (0..60).map(|page| {
        let node = node.clone();
        tokio::spawn(async move { node.read(page).await.1 })
    });
    for answer in join_all(answers).await {
        assert_eq!(answer.unwrap(), Source::Handler);
    }
    assert_eq!(node.kitchen.most.load(SeqCst), 5);
    server.resume();
    node.warm(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_that_was_not_acknowledged_is_repeated_and_the_cache_passed_by_meanwhile() {
    let server = RedisServer::start();
    for near in [None, Some(NearCache::strict(1 << 20))] {
        let near = |builder: CacheHandleBuilder| match near {
            Some(near) => builder.with_near_cache(near),
            None => builder,
        };
        let proxy = Proxy::start(server.port()).await;
        let here = Node::new(&proxy.url(), Duration::ZERO, near).await;
        here.cache.clear().await.unwrap();
        here.warm(1).await;
        here.cache.get_or_fill("a", keep(), async || fill(1).await).await.unwrap();
        // All is swallowed, on the connections there are and on new ones.
        server.pause_process();
        here.kitchen.number.store(5, SeqCst);
        let began = Instant::now();
        assert!(here.cache.invalidate(["page:1"]).await.is_err());
        assert!(here.cache.invalidate_key("a").await.is_err());
        println!("refused after {:?}", began.elapsed());
        for _ in 0..20 {
            assert_eq!(here.read(1).await, (5, Source::Handler));
            let value = here.cache.get_or_fill("a", keep(), async || fill(5).await).await;
            assert_eq!(value.unwrap(), 5);
        }
        server.resume();
        let back = Instant::now();
        // The storage answers again, and what was to be purged is not seen.
        let hit = || async {
            let (number, source) = here.read(1).await;
            assert_eq!(number, 5);
            (source == Source::Hit).then_some(())
        };
        until(Duration::from_secs(10), hit).await;
        println!("cached again after {:?}", back.elapsed());
        let value = here.cache.get_or_fill("a", keep(), async || fill(6).await).await;
        assert!(value.unwrap() >= 5);
    }
}

fn keep() -> Keep {
    Keep::for_ttl(Duration::from_secs(60))
}

async fn fill(value: u32) -> Result<u32, std::io::Error> {
    Ok(value)
}

/// The purge arrives, and its acknowledgement does not: it is repeated, which does no harm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_costs_a_repetition_and_nothing_old_is_seen() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let node = Node::new(&proxy.url(), Duration::ZERO, as_it_is).await;
    for round in 1..20 {
        node.warm(1).await;
        node.kitchen.number.store(round, SeqCst);
        proxy.delay(Duration::from_millis(20));
        let cache = node.cache.clone();
        let purge = tokio::spawn(async move { cache.invalidate(["page:1"]).await });
        sleep(Duration::from_millis(5 * (round % 10))).await;
        proxy.cut();
        proxy.delay(Duration::ZERO);
        let purged = purge.await.unwrap();
        // Acknowledged or not, this node shows nothing old.
        assert_eq!(node.read(1).await.0, round, "{purged:?}");
        assert_eq!(node.warm(1).await, round);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsafe_request_is_answered_although_its_purge_fails() {
    let mut server = RedisServer::start();
    let node = Node::new(&server.url(), Duration::ZERO, as_it_is).await;
    node.warm(1).await;
    server.pause_process();
    assert_eq!(node.send("PUT", 1).await, (1, Source::Passed));
    assert_eq!(node.read(1).await.0, 1);
    server.resume();
    assert_eq!(node.warm(1).await, 1);
    server.kill();
    assert_eq!(node.send("PUT", 1).await, (2, Source::Passed));
    assert_eq!(node.read(1).await.0, 2);
    server.restart();
    assert_eq!(node.warm(1).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_whose_caller_goes_away_happens_all_the_same() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let here = Node::new(&proxy.url(), Duration::ZERO, as_it_is).await;
    let there = Node::new(&server.url(), Duration::ZERO, as_it_is).await;
    here.warm(1).await;
    there.warm(1).await;
    there.kitchen.number.store(5, SeqCst);
    proxy.delay(Duration::from_millis(50));
    {
        let tags = ["page:1"];
        let mut purge = std::pin::pin!(here.cache.invalidate(tags));
        assert!(purge.as_mut().now_or_never().is_none());
    }
    let seen = || async { (there.read(1).await.0 == 5).then_some(()) };
    let ((), after) = until(Duration::from_secs(5), seen).await;
    println!("seen after {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_for_a_replica_that_lags_happens_twice() {
    let server = RedisServer::start();
    let node = Node::new(&server.url(), Duration::ZERO, as_it_is).await;
    node.warm(1).await;
    let delay = Duration::from_millis(300);
    let began = Instant::now();
    node.cache.invalidate_after(["page:1"], delay).await.unwrap();
    // The handler still reads the old number from the replica, and that is stored.
    assert_eq!(node.read(1).await, (0, Source::Handler));
    assert_eq!(node.warm(1).await, 0);
    assert!(began.elapsed() < delay, "this machine is too slow for the test");
    node.kitchen.number.store(1, SeqCst);
    sleep(delay.saturating_sub(began.elapsed()) + Duration::from_millis(100)).await;
    assert_eq!(node.read(1).await.0, 1);
    // And no third time.
    node.warm(1).await;
    sleep(delay * 2).await;
    assert_eq!(node.read(1).await.1, Source::Hit);
}
