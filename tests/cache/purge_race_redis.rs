//! The same between nodes that share a Redis server, while that loses what it knew, and between
//! processes.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::Path, routing::get};
use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_keep::{
    RedisStorage, RedisStorageBuilder, Storage,
    bb8_redis::redis::{self, AsyncCommands, aio::MultiplexedConnection},
    cache::{CacheHandle, CacheLayer, CacheTags, Keep, NearCache, Outcome, Policy, Source},
    storage::Name,
};

use crate::{
    support::RedisServer,
    world::{Counts, Dice, Rules, World, count},
};

/// A busy test machine may take longer than the defaults allow.
fn builder(url: &str) -> RedisStorageBuilder {
    RedisStorage::builder()
        .url(url)
        .prefix("race")
        .secret("of the race, long enough")
        .entry_deadline(Duration::from_secs(10))
        .connect_timeout(Duration::from_secs(5))
}

async fn connect(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// So many worlds at once, to use the time in which they sleep.
const AT_ONCE: usize = 10;

/// Worlds of two nodes, each with its connections, in which something else happens meanwhile.
async fn worlds<F>(
    what: &str,
    rounds: usize,
    storages: [RedisStorage; 2],
    leases: bool,
    disturb: impl Fn(Name, Dice) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let counts = Arc::default();
    for first in (0..rounds).step_by(AT_ONCE) {
        let mut tasks = tokio::task::JoinSet::new();
        for round in first..first + AT_ONCE {
            let dice = Dice::new(round as u64);
            let namespace = Name::try_new(&format!("cache{round}")).unwrap();
            let caches = storages.iter().map(|storage| {
                let builder = CacheHandle::builder(storage.clone())
                    .with_namespace(namespace.clone())
                    .with_hit_for_miss(Duration::ZERO);
                match dice.one_in(2) {
                    true => builder.with_near_cache(NearCache::strict(1 << 20)).build(),
                    false => builder.build(),
                }
            });
            let mut rules = Rules::thrown(&dice);
            rules.lease &= leases;
            let world = World::new(rules, &dice, caches.collect(), &counts);
            let disturbance = disturb(namespace, dice);
            tasks.spawn(async move {
                tokio::join!(world.run(), disturbance);
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
    Counts::check(&counts, what, rounds);
}

async fn storages(server: &RedisServer) -> [RedisStorage; 2] {
    let url = server.url();
    [builder(&url).build().await.unwrap(), builder(&url).build().await.unwrap()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_nothing_old_is_served_after_a_purge() {
    let server = RedisServer::start();
    let storages = storages(&server).await;
    worlds("redis", count(100, 2_000), storages, true, |_, _| async {}).await;
    server.check_keys("race");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_when_the_server_forgets_everything_in_between() {
    let server = Arc::new(RedisServer::start());
    let storages = storages(&server).await;
    let flush = |_, dice: Dice| {
        let server = Arc::clone(&server);
        async move {
            for _ in 0..4 {
                dice.pause().await;
                dice.pause().await;
                server.ask("FLUSHALL");
            }
        }
    };
    worlds("redis, FLUSHALL", count(100, 2_000), storages, true, flush).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_when_the_server_forgets_what_was_purged() {
    let server = Arc::new(RedisServer::start());
    let storages = storages(&server).await;
    let forget = |namespace: Name, dice: Dice| {
        let server = Arc::clone(&server);
        async move {
            for _ in 0..6 {
                dice.pause().await;
                server.ask(&format!("DEL race:{}:{{e0}}:tags", namespace.as_str()));
            }
        }
    };
    worlds("redis, DEL tags", count(100, 2_000), storages, true, forget).await;
}

#[cfg(feature = "conformance")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_when_the_clock_of_the_server_is_set_back() {
    let server = Arc::new(RedisServer::start());
    server.ask("HSET clock s 1800000000 us 0");
    let url = server.url();
    let storages = [
        builder(&url).virtual_clock_key("clock").build().await.unwrap(),
        builder(&url).virtual_clock_key("clock").build().await.unwrap(),
    ];
    let turn = |_, dice: Dice| {
        let server = Arc::clone(&server);
        async move {
            for _ in 0..20 {
                dice.pause().await;
                let by = dice.below(7) as i64 - 3;
                server.ask(&format!("HINCRBY clock s {by}"));
                server.ask(&format!("HINCRBY clock us {}", dice.below(1_000)));
            }
        }
    };
    // A lease that had run out and is alive again, on a clock that stands still, would be waited for.
    worlds("redis, clock set back", count(100, 2_000), storages, false, turn).await;
}

const WORKER: &str = "TOWER_KEEP_TEST_WORKER";

#[derive(Debug, Default)]
struct Seen {
    hits: AtomicUsize,
    rendered: AtomicUsize,
    purges: AtomicUsize,
    old: AtomicUsize,
}

/// Reads, changes and purges two pages. The database is in the server too, and so is what must be
/// shown at least.
async fn be_busy(url: &str, seed: u64, time: Duration) -> Arc<Seen> {
    let began = Instant::now();
    let (dice, seen) = (Dice::new(seed), Arc::new(Seen::default()));
    let database = connect(url).await;
    let storage = builder(url).build().await.unwrap();
    let cache = CacheHandle::builder(storage.erase())
        .with_hit_for_miss(Duration::ZERO)
        .with_near_cache(NearCache::strict(1 << 20))
        .build();
    let render = {
        let (database, dice) = (database.clone(), dice.clone());
        move |Path(page): Path<u32>| async move {
            dice.pause().await;
            let number: u64 = database.clone().hget("database", page).await.unwrap();
            dice.pause().await;
            (CacheTags::new([format!("page:{page}")]), number.to_string())
        }
    };
    let policy = Policy::output(Duration::from_secs(60)).with_lease(Duration::from_secs(2));
    let app = Router::new()
        .route("/pages/{page}", get(render))
        .layer(CacheLayer::from_handle(cache.clone(), policy));
    let mut tasks = tokio::task::JoinSet::new();
    for reader in 0..6 {
        let (app, cache, dice) = (app.clone(), cache.clone(), dice.clone());
        let (mut database, seen) = (database.clone(), Arc::clone(&seen));
        tasks.spawn(async move {
            while began.elapsed() < time {
                dice.pause().await;
                let page = dice.below(2) as u32;
                let least: u64 = database.zscore("least", page).await.unwrap();
                let number: u64 = if reader < 4 {
                    let request = Request::get(format!("/pages/{page}"))
                        .header("host", "shop.example")
                        .body(Body::empty())
                        .unwrap();
                    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
                    let counter = match parts.extensions.get::<Outcome>().unwrap().source {
                        Source::Hit => &seen.hits,
                        _ => &seen.rendered,
                    };
                    counter.fetch_add(1, SeqCst);
                    let body = body.collect().await.unwrap().to_bytes();
                    std::str::from_utf8(&body).unwrap().parse().unwrap()
                } else {
                    let keep =
                        Keep::for_ttl(Duration::from_secs(60)).with_tags([format!("page:{page}")]);
                    let database = database.clone();
                    let fill = async move || database.clone().hget("database", page).await;
                    cache
                        .get_or_fill::<u64, redis::RedisError, _, _>(page.to_string(), keep, fill)
                        .await
                        .unwrap()
                };
                seen.old.fetch_add((number < least).into(), SeqCst);
            }
        });
    }
    for _ in 0..2 {
        let (cache, dice) = (cache.clone(), dice.clone());
        let (mut database, seen) = (database.clone(), Arc::clone(&seen));
        tasks.spawn(async move {
            while began.elapsed() < time {
                dice.pause().await;
                dice.pause().await;
                let page = dice.below(2) as u32;
                let number: u64 = database.hincr("database", page, 1).await.unwrap();
                cache.invalidate([format!("page:{page}")]).await.unwrap();
                seen.purges.fetch_add(1, SeqCst);
                let () = redis::cmd("ZADD")
                    .arg(("least", "GT", number, page))
                    .query_async(&mut database)
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    seen
}

/// Not a test of its own: the second process of the race below, which runs it with a URL and a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_a_worker_process_it_does_the_same() {
    let Ok(task) = std::env::var(WORKER) else { return };
    let (url, seconds) = task.split_once(' ').unwrap();
    let seen = be_busy(url, 2, Duration::from_secs(seconds.parse().unwrap())).await;
    println!("seen {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_processes_nothing_old_is_served_after_a_purge() {
    let server = RedisServer::start();
    for page in 0..2 {
        server.ask(&format!("HSET database {page} 1"));
        server.ask(&format!("ZADD least 1 {page}"));
    }
    let (url, seconds) = (server.url(), count(3, 60));
    let worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "purge_race_redis::as_a_worker_process_it_does_the_same"])
        .args(["--nocapture", "--test-threads=1"])
        .env(WORKER, format!("{url} {seconds}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let here = be_busy(&url, 1, Duration::from_secs(seconds as u64)).await;
    let output = tokio::task::spawn_blocking(|| worker.wait_with_output()).await.unwrap();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let there = output
        .lines()
        .find_map(|line| Some(line.split_once("seen ")?.1))
        .unwrap_or_else(|| panic!("no answer of the worker: {output}"));
    println!("{seconds} s, here {here:?}, there {there}");
    assert_eq!(here.old.load(SeqCst), 0);
    assert!(there.contains("old: 0"), "{there}");
    for count in [&here.hits, &here.rendered, &here.purges] {
        assert!(count.load(SeqCst) > 0);
    }
}
