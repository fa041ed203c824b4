//! What it costs to purge a tag that 1, 1,000 and 1,000,000 entries carry:
//! `cargo bench --bench purge [-- entries]`.
//!
//! It starts a `redis-server` of its own, of up to 400 MB. The three take turns, a hundred purges
//! each; the figures are medians of the turns. Soft purges leave all entries alive, so that each
//! finds as many as the last; the first hard one, which ends them, has a column of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use redis::aio::MultiplexedConnection;
use tower_keep::{
    MemoryStorage, RedisStorage, Storage,
    storage::{Get, Identity, Invalidation, Key, Name, Put, Tag, Tags},
};
use tower_keep_benches::{
    measure::{median, thread_nanos},
    server::Server,
};

const HOUR: Duration = Duration::from_secs(3_600);
const ROUNDS: usize = 21;
const PURGES: u32 = 100;

/// Microseconds that the server spent in each `EVALSHA` since the last call.
async fn server_time(connection: &mut MultiplexedConnection) -> f64 {
    let statistics: String =
        redis::cmd("INFO").arg("commandstats").query_async(connection).await.expect("statistics");
    let _: () =
        redis::cmd("CONFIG").arg("RESETSTAT").query_async(connection).await.expect("a reset");
    let line = statistics.lines().find(|line| line.starts_with("cmdstat_evalsha:"));
    line.and_then(|line| line.split_once("usec_per_call=")?.1.split(',').next()?.parse().ok())
        .unwrap_or(f64::NAN)
}

/// So many entries of 100 bytes that carry one tag.
struct Tagged {
    space: Name,
    tag: Tag,
    entries: u64,
}

impl Tagged {
    fn key(&self, entry: u64) -> Key {
        Key::new(&self.space, &Name::new("r"), Identity::new(entry.to_be_bytes()))
    }

    /// Many tasks put them.
    async fn fill<S: Storage + Clone>(self: &Arc<Self>, storage: &S) {
        let fence = Get::new().with_fence();
        let fence = storage.get(&self.key(0), fence).await.expect("an answer").fence;
        let fence = fence.expect("a fence");
        let next = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..128)
            .map(|_| {
                let (tagged, storage, next) = (self.clone(), storage.clone(), next.clone());
                tokio::spawn(async move {
                    loop {
                        let entry = next.fetch_add(1, Relaxed);
                        if entry >= tagged.entries {
                            return;
                        }
                        let tags = [tagged.tag.clone()];
                        let put = Put::new(vec![b'x'; 100].into(), HOUR)
                            .with_tags(&tags)
                            .with_fence(fence)
                            .with_max_lifetime(HOUR);
                        storage.put(&tagged.key(entry), put).await.expect("a put");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a task");
        }
    }

    async fn purge<S: Storage>(&self, storage: &S, how: Invalidation) {
        let tags = [self.tag.clone()];
        storage.invalidate(&self.space, Tags::Any(&tags), how).await.expect("a purge");
    }

    /// Of a few entries from all over, how many are there: all or none.
    async fn are_alive<S: Storage>(&self, storage: &S) -> bool {
        let mut alive = Vec::new();
        for part in 0..100 {
            let key = self.key((self.entries - 1) * part / 99);
            alive.push(storage.get(&key, Get::new()).await.expect("an answer").entry.is_some());
        }
        assert!(alive.iter().all(|it| *it == alive[0]), "the entries are of one tag");
        alive[0]
    }
}

/// What one of them costs, in microseconds: of the server, or of this thread.
#[derive(Default)]
struct Cost {
    own: Vec<f64>,
    wall: Vec<f64>,
    hard: f64,
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let most = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(1_000_000_u64);
    let server = Server::start();
    let mut statistics = server.connect().await;
    let patience = Duration::from_secs(30);
    let remote = RedisStorage::builder()
        .url(server.url().to_owned())
        .entry_deadline(patience)
        .build()
        .await
        .expect("a storage");
    let memory = MemoryStorage::builder().max_bytes(2 << 30).max_entries(2_000_000).build();

    println!(
        "| entries of the tag | storage | us for a purge | to 1 entry | us by the wall | us for the one that ends them |"
    );
    println!("|---|---|---|---|---|---|");
    report("Redis, server time", &remote, most, Some(&mut statistics)).await;
    report("memory, thread time", &memory, most, None).await;
    let held: String =
        redis::cmd("INFO").arg("memory").query_async(&mut statistics).await.expect("statistics");
    let held = held.lines().find_map(|line| line.strip_prefix("used_memory_human:"));
    println!("\nRedis holds {}.", held.unwrap_or("?").trim());
}

async fn report<S: Storage + Clone>(
    name: &str,
    storage: &S,
    most: u64,
    mut statistics: Option<&mut MultiplexedConnection>,
) {
    let all: Vec<_> = [1, 1_000, most]
        .into_iter()
        .map(|entries| {
            let space = Name::new(&format!("purge-{entries}"));
            Arc::new(Tagged { space, tag: Tag::new("all"), entries })
        })
        .collect();
    for tagged in &all {
        let began = Instant::now();
        tagged.fill(storage).await;
        let rate = tagged.entries as f64 / began.elapsed().as_secs_f64();
        eprintln!("{name}: {} entries, {rate:.0} puts/s", tagged.entries);
    }
    let mut costs: Vec<Cost> = all.iter().map(|_| Cost::default()).collect();
    for round in 0..=ROUNDS {
        for (tagged, cost) in all.iter().zip(&mut costs) {
            let (own, wall) =
                measure(tagged, storage, &mut statistics, Invalidation::Soft, PURGES).await;
            // The first round warms up.
            if round > 0 {
                cost.own.push(own);
                cost.wall.push(wall);
            }
        }
    }
    for (tagged, cost) in all.iter().zip(&mut costs) {
        assert!(tagged.are_alive(storage).await, "a soft purge leaves them");
        (cost.hard, _) = measure(tagged, storage, &mut statistics, Invalidation::Hard, 1).await;
        assert!(!tagged.are_alive(storage).await, "a hard one does not");
    }
    let one = costs[0].own.clone();
    for (tagged, Cost { own, wall, hard }) in all.iter().zip(costs) {
        let ratio = median(own.iter().zip(&one).map(|(own, one)| own / one).collect());
        let (own, wall) = (median(own), median(wall));
        let entries = tagged.entries;
        println!("| {entries} | {name} | {own:.2} | {ratio:.2} | {wall:.1} | {hard:.1} |");
    }
}

async fn measure<S: Storage>(
    tagged: &Tagged,
    storage: &S,
    statistics: &mut Option<&mut MultiplexedConnection>,
    how: Invalidation,
    purges: u32,
) -> (f64, f64) {
    if let Some(connection) = statistics {
        server_time(connection).await;
    }
    let (began, thread) = (Instant::now(), thread_nanos());
    for _ in 0..purges {
        tagged.purge(storage, how).await;
    }
    let thread = (thread_nanos() - thread) as f64 / 1e3 / f64::from(purges);
    let wall = began.elapsed().as_secs_f64() * 1e6 / f64::from(purges);
    match statistics {
        Some(connection) => (server_time(connection).await, wall),
        None => (thread, wall),
    }
}
