//! What a node keeps in its own memory, and when it may trust that.

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
use http::Request;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage, RedisStorage, Storage,
    cache::{CacheHandle, CacheLayer, CacheTags, NearCache, Outcome, Policy, Source},
    storage::AnyStorage,
};

use crate::{
    support::{Proxy, RedisServer},
    world::{Counts, Dice, Distant, Rules, World, count},
};

const BODY: usize = 100_000;

/// A node whose pages show a number that all nodes share.
struct Node {
    app: Router,
    cache: CacheHandle,
    renders: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Shop {
    number: Arc<AtomicU64>,
    renders: Arc<AtomicUsize>,
    padding: usize,
}

impl Node {
    fn new(storage: AnyStorage, near: NearCache, number: &Arc<AtomicU64>, padding: usize) -> Self {
        let cache = CacheHandle::builder(storage).with_near_cache(near).build();
        let renders = Arc::default();
        let shop = Shop { number: Arc::clone(number), renders: Arc::clone(&renders), padding };
        let page = |State(shop): State<Shop>, Path(page): Path<u32>| async move {
            shop.renders.fetch_add(1, SeqCst);
            let number = shop.number.load(SeqCst);
            let body = format!("{number} {}", "x".repeat(shop.padding));
            (CacheTags::new([format!("page:{page}"), "pages".to_owned()]), body)
        };
        let policy = Policy::output(Duration::from_secs(60)).with_max_body(8 << 20);
        let app = Router::new()
            .route("/pages/{page}", get(page))
            .with_state(shop)
            .layer(CacheLayer::from_handle(cache.clone(), policy));
        Self { app, cache, renders }
    }

    /// The number that a page shows, and where it comes from.
    async fn read(&self, page: u32) -> (u64, Source) {
        let request = Request::get(format!("/pages/{page}"))
            .header("host", "shop.example")
            .body(Body::empty())
            .unwrap();
        let (parts, body) = self.app.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&body).unwrap();
        let number = text.split(' ').next().unwrap().parse().unwrap();
        (number, parts.extensions.get::<Outcome>().unwrap().source)
    }

    /// Reads until what is read comes from the storage.
    async fn warm(&self, page: u32) {
        while self.read(page).await.1 != Source::Hit {
            sleep(Duration::from_millis(1)).await;
        }
        self.read(page).await;
    }
}

async fn redis(url: &str) -> AnyStorage {
    RedisStorage::builder()
        .url(url)
        .prefix("near")
        .secret("of the near cache, long enough")
        .build()
        .await
        .unwrap()
        .erase()
}

async fn two_nodes(server: &RedisServer, near: NearCache) -> (Node, Node, Arc<AtomicU64>) {
    let number = Arc::new(AtomicU64::new(1));
    let a = Node::new(redis(&server.url()).await, near, &number, BODY);
    let b = Node::new(redis(&server.url()).await, near, &number, BODY);
    (a, b, number)
}

fn sent(server: &RedisServer) -> u64 {
    let stats = server.ask("INFO stats");
    let (_, rest) = stats.split_once("total_net_output_bytes:").unwrap();
    rest.lines().next().unwrap().trim().parse().unwrap()
}

/// Scripts, and pipelines, which begin with `PING`.
fn trips(server: &RedisServer) -> u64 {
    ["evalsha", "eval", "ping"].into_iter().map(|command| server.calls(command)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_hit_costs_one_trip_and_moves_no_body() {
    let server = RedisServer::start();
    let (a, b, _) = two_nodes(&server, NearCache::strict(64 << 20)).await;
    a.warm(1).await;
    b.warm(1).await;
    let (asked, moved) = (trips(&server), sent(&server));
    for _ in 0..50 {
        assert_eq!(a.read(1).await.1, Source::Hit);
        assert_eq!(b.read(1).await.1, Source::Hit);
    }
    let (asked, moved) = (trips(&server) - asked, sent(&server) - moved);
    println!("100 hits of {BODY} bytes: {asked} trips, {moved} bytes");
    assert_eq!(asked, 100);
    // Of which most are the statistics themselves.
    assert!(moved < 100 * 400 + 30_000, "{moved} bytes");
    assert_eq!(a.renders.load(SeqCst) + b.renders.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_node_sees_each_purge_at_once() {
    let server = RedisServer::start();
    let (a, b, number) = two_nodes(&server, NearCache::strict(64 << 20)).await;
    for _ in 0..count(100, 1_000) {
        a.warm(1).await;
        b.warm(1).await;
        let new = number.fetch_add(1, SeqCst) + 1;
        a.cache.invalidate(["page:1"]).await.unwrap();
        assert_eq!(b.read(1).await.0, new);
        assert_eq!(a.read(1).await.0, new);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_hit_costs_no_command() {
    let server = RedisServer::start();
    let lag = Duration::from_secs(2);
    let (a, _, _) = two_nodes(&server, NearCache::bounded(64 << 20, lag)).await;
    a.warm(1).await;
    let asked = trips(&server);
    let began = Instant::now();
    let mut hits = 0;
    while began.elapsed() < lag * 2 {
        assert_eq!(a.read(1).await.1, Source::Hit);
        hits += 1;
    }
    let asked = trips(&server) - asked;
    println!("{hits} hits in {:?}: {asked} trips", began.elapsed());
    assert!(hits > 100 && asked <= 6, "{asked} trips for {hits} hits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_node_sees_its_own_purges_at_once_and_others_within_the_lag() {
    let server = RedisServer::start();
    let lag = Duration::from_millis(200);
    let (a, b, number) = two_nodes(&server, NearCache::bounded(64 << 20, lag)).await;
    let mut worst = Duration::ZERO;
    for _ in 0..count(15, 150) {
        a.warm(1).await;
        b.warm(1).await;
        let new = number.fetch_add(1, SeqCst) + 1;
        a.cache.invalidate(["page:1"]).await.unwrap();
        let returned = Instant::now();
        assert_eq!(a.read(1).await.0, new, "its own");
        loop {
            let asked = returned.elapsed();
            if b.read(1).await.0 == new {
                break;
            }
            worst = worst.max(asked);
            assert!(asked <= lag, "old after {asked:?}");
            sleep(Duration::from_millis(1)).await;
        }
    }
    println!("lag {lag:?}: something old was seen at most {worst:?} after a purge");
    assert!(worst > Duration::ZERO, "it asks each time");
}

/// Also with purges of other tags all the time, and on a network that delays.
#[tokio::test(start_paused = true)]
async fn bounded_nodes_show_nothing_old_beyond_the_lag() {
    let (rounds, counts) = (count(300, 10_000), Arc::<Counts>::default());
    for seed in 0..rounds {
        let dice = Dice::new(seed as u64);
        let memory = MemoryStorage::new();
        let mut rules = Rules::thrown(&dice);
        rules.lag = Duration::from_millis(5 + dice.below(40));
        let near = NearCache::bounded(1 << 20, rules.lag);
        let losses = [0, 12][dice.below(2) as usize];
        let node = || {
            CacheHandle::builder(Distant::new(&memory, &dice, losses))
                .with_hit_for_miss(Duration::ZERO)
                .with_near_cache(near)
                .build()
        };
        World::new(rules, &dice, vec![node(), node()], &counts).run().await;
    }
    counts.check("bounded near caches", rounds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_node_that_is_cut_off_goes_past_the_cache_after_the_lag() {
    let mut server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let lag = Duration::from_millis(300);
    let number = Arc::new(AtomicU64::new(1));
    let near = NearCache::bounded(64 << 20, lag);
    let a = Node::new(redis(&server.url()).await, near, &number, 10);
    let b = Node::new(redis(&proxy.url()).await, near, &number, 10);
    a.warm(1).await;
    b.warm(1).await;
    // What b sends is swallowed; a purges meanwhile.
    proxy.half_open();
    number.store(2, SeqCst);
    a.cache.invalidate(["page:1"]).await.unwrap();
    let returned = Instant::now();
    let mut old = 0;
    while returned.elapsed() < lag * 4 {
        let asked = returned.elapsed();
        let (shown, _) = b.read(1).await;
        assert!(shown == 2 || asked <= lag, "old after {asked:?}");
        old += usize::from(shown == 1);
        sleep(Duration::from_millis(5)).await;
    }
    println!("cut off: {old} old answers within {lag:?}");
    // With the storage gone for good there is nothing to trust.
    b.warm(1).await;
    number.store(3, SeqCst);
    server.kill();
    sleep(lag * 2).await;
    assert_eq!(b.read(1).await.0, 3);
    assert_eq!(a.read(1).await.0, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_node_has_renewed_is_seen_by_a_strict_node() {
    let server = RedisServer::start();
    let (a, b, number) = two_nodes(&server, NearCache::strict(64 << 20)).await;
    let uri = "/pages/1";
    a.warm(1).await;
    b.warm(1).await;
    number.store(2, SeqCst);
    a.cache.invalidate_uri(uri).await.unwrap();
    a.warm(1).await;
    assert_eq!(b.read(1).await, (2, Source::Hit), "another version: with its body");
    assert_eq!(b.read(1).await, (2, Source::Hit));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_everything_is_not_confused_with_what_was_known() {
    let mut server = RedisServer::start();
    let (a, b, number) = two_nodes(&server, NearCache::strict(64 << 20)).await;
    a.warm(1).await;
    b.warm(1).await;
    number.store(2, SeqCst);
    server.ask("FLUSHALL");
    assert_eq!(a.read(1).await.0, 2);
    b.warm(1).await;
    number.store(3, SeqCst);
    server.restart();
    for node in [&a, &b] {
        assert_eq!(node.read(1).await.0, 3);
        node.warm(1).await;
    }
}

/// A version is a time, and may be given twice when the clock was set back.
#[cfg(feature = "conformance")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_given_again_after_a_loss_is_not_taken_for_the_same() {
    let server = RedisServer::start();
    let storage = async || {
        let builder = RedisStorage::builder().url(server.url()).prefix("near");
        let builder = builder.secret("of the near cache, long enough");
        builder.virtual_clock_key("clock").build().await.unwrap().erase()
    };
    // The clock stands still.
    server.ask("HSET clock s 1800000000 us 0");
    let number = Arc::new(AtomicU64::new(1));
    let near = NearCache::strict(1 << 20);
    let a = Node::new(storage().await, near, &number, 10);
    let b = Node::new(storage().await, near, &number, 10);
    a.warm(1).await;
    b.warm(1).await;
    number.store(2, SeqCst);
    server.ask("FLUSHALL");
    server.ask("HSET clock s 1800000000 us 0");
    a.warm(1).await;
    assert_eq!(a.read(1).await.0, 2);
    assert_eq!(b.read(1).await.0, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_near_cache_holds_no_more_than_it_may() {
    let server = RedisServer::start();
    let (bytes, padding) = (1_u64 << 20, 20_000);
    let number = Arc::new(AtomicU64::new(1));
    let near = NearCache::bounded(bytes, Duration::from_secs(60));
    let node = Node::new(redis(&server.url()).await, near, &number, padding);
    for page in 0..200 {
        node.read(page).await;
    }
    // What is still held costs no command. The latest first: what is missing takes the place of
    // others.
    let mut held = 0;
    for page in (0..200).rev() {
        let before = trips(&server);
        node.read(page).await;
        held += usize::from(trips(&server) == before);
    }
    println!("{held} of 200 pages of {padding} bytes are held in {bytes} bytes");
    assert!(held * padding <= bytes as usize, "{held} pages");
    assert!(held > 5, "{held} pages");
}
