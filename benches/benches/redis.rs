//! Decisions per second on Redis, against one `EVALSHA` written by hand on a shared connection, and
//! lookups of entries, against one `GET`: `cargo bench --bench redis [-- rounds]`.
//!
//! It starts a `redis-server` of its own. All contestants take turns, so that what other programs
//! do meanwhile meets them alike; the figures are medians of the ratios within one round.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, State},
    middleware::{Next, from_fn_with_state},
    routing::get,
};
use http::{Request, Response, StatusCode};
use redis::{Script, aio::MultiplexedConnection};
use tower::ServiceExt;
use tower_keep::{
    Limiter, Quota, RateLimitLayer, RedisStorage, Storage,
    rate_limit::Policy,
    storage::{Fence, Get, Identity, Key, Name, Put, PutOutcome, Tag, Touch, Version},
};
use tower_keep_benches::{measure::median, request, server::Server};

const CLIENTS: u64 = 10_000;
const LIMIT: u32 = 1_000_000_000;
const MINUTE: Duration = Duration::from_secs(60);
const TURN: Duration = Duration::from_millis(250);
const BODY: [u8; 1_024] = [b'x'; 1_024];

/// A sliding window as one would write it in an afternoon: two counts in one string.
const BY_HAND: &str = r"
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    local limit, width = tonumber(ARGV[1]), tonumber(ARGV[2])
    local window = math.floor(now / width)
    local state = redis.call('GET', KEYS[1])
    local start, previous, current = window, 0, 0
    if state then
        start, previous, current = struct.unpack('>I6I4I4', state)
        if start == window - 1 then
            previous, current = current, 0
        elseif start ~= window then
            previous, current = 0, 0
        end
    end
    local elapsed = now - window * width
    local used = math.floor(previous * (width - elapsed) / width) + current
    if used >= limit then
        return {0, 0, width - elapsed}
    end
    redis.call('SET', KEYS[1], struct.pack('>I6I4I4', window, previous, current + 1), 'PX', 2 * width)
    return {1, limit - used - 1, width - elapsed}
";

#[derive(Clone)]
struct ByHand {
    connection: MultiplexedConnection,
    script: Arc<Script>,
}

impl ByHand {
    async fn check(&mut self, client: &str) -> (u32, u32, u64) {
        let mut call = self.script.key(client);
        call.arg(LIMIT).arg(MINUTE.as_millis() as u64);
        call.invoke_async(&mut self.connection).await.expect("an answer")
    }
}

async fn check_by_hand(
    State(mut state): State<ByHand>,
    ConnectInfo(peer): ConnectInfo<std::net::SocketAddr>,
    request: Request<Body>,
    next: Next,
) -> Response<Body> {
    let (allowed, remaining, reset_ms) = state.check(&format!("hand:{}", peer.ip())).await;
    assert_eq!(allowed, 1);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert("x-ratelimit-limit", LIMIT.into());
    headers.insert("x-ratelimit-remaining", remaining.into());
    headers.insert("x-ratelimit-reset", reset_ms.div_ceil(1_000).into());
    response
}

#[derive(Clone)]
enum Contestant {
    Script(ByHand),
    Check(Limiter),
    Route(Router),
    /// One plain command.
    Get(MultiplexedConnection),
    /// `GET` and what is needed to judge the entry, in one pipeline, and none of it judged.
    Pipeline(MultiplexedConnection),
    /// One plain command that prolongs each time.
    GetEx(MultiplexedConnection),
    /// With a fence, and a version that is known or not.
    Lookup(RedisStorage, bool, Option<Arc<[Version]>>),
    /// With a fence and a touch that is not due. Without slack it is asked by script.
    Touch(RedisStorage, Duration),
}

/// An entry with three tags and a fence.
async fn fill(storage: &RedisStorage, fence: Fence, client: u64) -> Version {
    let tags = ["product:1", "category:2", "page"].map(Tag::new);
    let put = Put::new(BODY.to_vec().into(), 60 * MINUTE)
        .with_max_lifetime(60 * MINUTE)
        .with_fence(fence)
        .with_tags(&tags);
    match storage.put(&key(client), put).await {
        Ok(PutOutcome::Stored(version)) => version,
        other => panic!("{other:?}"),
    }
}

fn key(client: u64) -> Key {
    Key::new(&Name::new("cache"), &Name::new("page"), Identity::new(client.to_be_bytes()))
}

impl Contestant {
    async fn decide(&mut self, client: u64) {
        match self {
            Self::Script(by_hand) => {
                by_hand.check(&format!("hand:{client}")).await;
            }
            Self::Check(limiter) => {
                let decision = limiter.check(client.to_string()).await;
                let decision = decision.expect("an answer");
                assert!(decision.is_allowed() && !decision.is_degraded());
            }
            Self::Route(router) => {
                let response = router.clone().oneshot(request(client as u32)).await;
                assert_eq!(response.expect("no error").status(), StatusCode::OK);
            }
            Self::Get(connection) => {
                let name = format!("get:{client:032}");
                let value: Vec<u8> =
                    redis::cmd("GET").arg(name).query_async(connection).await.expect("an answer");
                assert_eq!(value.len(), BODY.len());
            }
            Self::GetEx(connection) => {
                let mut command = redis::cmd("GETEX");
                command.arg(format!("get:{client:032}")).arg("EX").arg(3_600);
                let value: Vec<u8> = command.query_async(connection).await.expect("an answer");
                assert_eq!(value.len(), BODY.len());
            }
            Self::Touch(storage, slack) => {
                let touch = Touch { ttl: 60 * MINUTE, slack: *slack };
                let get = Get::new().with_fence().with_touch(touch);
                let lookup = storage.get(&key(client), get).await.expect("an answer");
                assert!(lookup.entry.is_some_and(|entry| entry.value.len() == BODY.len()));
            }
            Self::Pipeline(connection) => {
                let mut commands = redis::Pipeline::with_capacity(3);
                commands.cmd("TIME").cmd("GET").arg(format!("get:{client:032}")).cmd("HMGET");
                commands.arg("get:tags").arg(&["g", "l", "f", "m", "1", "2", "3"]);
                let values: Vec<redis::Value> =
                    commands.query_async(connection).await.expect("an answer");
                assert_eq!(values.len(), 3);
            }
            Self::Lookup(storage, fence, known) => {
                let get = if *fence { Get::new().with_fence() } else { Get::new() };
                let get = match known {
                    Some(versions) => get.with_known(versions[client as usize]),
                    None => get,
                };
                let lookup = storage.get(&key(client), get).await.expect("an answer");
                let entry = lookup.entry.expect("an entry");
                assert_eq!(entry.value.len(), if entry.unchanged { 0 } else { BODY.len() });
                assert_eq!((entry.unchanged, lookup.fence.is_some()), (known.is_some(), *fence));
            }
        }
    }
}

/// Decisions per second of that many tasks.
async fn rate(contestant: &Contestant, tasks: u64) -> f64 {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let tasks: Vec<_> = (0..tasks)
        .map(|task| {
            let (mut contestant, stop, done) =
                (contestant.clone(), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let mut client = task * 7_919;
                while !stop.load(Relaxed) {
                    client = (client + 101) % CLIENTS;
                    contestant.decide(client).await;
                    done.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(TURN).await;
    stop.store(true, Relaxed);
    for task in tasks {
        task.await.expect("a task");
    }
    done.load(Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// Microseconds that the server spent in each `EVALSHA` since the last call, if there were any.
async fn server_time(connection: &mut MultiplexedConnection) -> Option<f64> {
    let statistics: String =
        redis::cmd("INFO").arg("commandstats").query_async(connection).await.expect("statistics");
    let _: () =
        redis::cmd("CONFIG").arg("RESETSTAT").query_async(connection).await.expect("a reset");
    let line = statistics.lines().find(|line| line.starts_with("cmdstat_evalsha:"));
    line.and_then(|line| line.split_once("usec_per_call=")?.1.split(',').next()?.parse().ok())
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let rounds = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(15_u32);
    let server = Server::start();
    let by_hand =
        ByHand { connection: server.connect().await, script: Arc::new(Script::new(BY_HAND)) };
    // Two cores shared with the server: a slow answer is no outage here.
    let storage = RedisStorage::builder()
        .url(server.url().to_owned())
        .decision_deadline(Duration::from_secs(5))
        .entry_deadline(Duration::from_secs(5))
        .build()
        .await
        .expect("a storage");
    let policy = Policy::new("api", Quota::sliding_window(LIMIT, MINUTE));
    let limiter = Limiter::new(storage.clone(), policy);
    let route = || Router::new().route("/", get(async || "hello"));
    let decisions = [
        ("EVALSHA by hand", 0, Contestant::Script(by_hand.clone())),
        ("Limiter::check", 0, Contestant::Check(limiter.clone())),
        (
            "route, EVALSHA by hand + 3 headers",
            2,
            Contestant::Route(route().layer(from_fn_with_state(by_hand, check_by_hand))),
        ),
        (
            "route, RateLimitLayer, all headers",
            2,
            Contestant::Route(route().layer(RateLimitLayer::from_limiter(limiter))),
        ),
    ];
    let mut statistics = server.connect().await;
    println!(
        "| | tasks | decisions/s | to the same by hand | to EVALSHA by hand | server, us/script |"
    );
    println!("|---|---|---|---|---|---|");
    compare(&decisions, rounds, &mut statistics).await;

    let mut plain = server.connect().await;
    let fence = storage.get(&key(0), Get::new().with_fence()).await.expect("an answer").fence;
    let fence = fence.expect("a fence");
    let mut versions = Vec::new();
    for client in 0..CLIENTS {
        versions.push(fill(&storage, fence, client).await);
        let set = redis::cmd("SET").arg(format!("get:{client:032}")).arg(&BODY[..]).clone();
        let () = set.query_async(&mut plain).await.expect("an answer");
    }
    let fields = [("g", "0123456789abcdef"), ("l", "0"), ("f", "0"), ("m", "3600000000")];
    let () =
        redis::cmd("HSET").arg("get:tags").arg(&fields).query_async(&mut plain).await.expect("ok");
    let lookup = |fence, known| Contestant::Lookup(storage.clone(), fence, known);
    let touch = |slack| Contestant::Touch(storage.clone(), slack);
    let lookups = [
        ("GET by hand, 1 KiB", 0, Contestant::Get(plain.clone())),
        ("TIME, GET, HMGET by hand", 0, Contestant::Pipeline(plain.clone())),
        ("Storage::get, 3 tags", 1, lookup(false, None)),
        ("Storage::get, 3 tags and a fence", 1, lookup(true, None)),
        ("the same of a known version", 1, lookup(true, Some(versions.into()))),
        ("GETEX by hand, 1 KiB", 0, Contestant::GetEx(plain)),
        ("Storage::get, a fence and a touch", 5, touch(MINUTE)),
        ("the same by script", 5, touch(Duration::ZERO)),
    ];
    println!("\n| | tasks | lookups/s | to the same by hand | to GET by hand | |");
    println!("|---|---|---|---|---|---|");
    compare(&lookups, rounds, &mut statistics).await;
}

/// One row for each contestant and number of tasks; beside its name, the one to compare it with.
async fn compare(
    contestants: &[(&str, usize, Contestant)],
    rounds: u32,
    statistics: &mut MultiplexedConnection,
) {
    for tasks in [64, 256] {
        let mut rates = vec![Vec::new(); contestants.len()];
        let mut costs = vec![Vec::new(); contestants.len()];
        for round in 0..=rounds {
            for (i, (_, _, contestant)) in contestants.iter().enumerate() {
                let rate = rate(contestant, tasks).await;
                let cost = server_time(statistics).await;
                // The first round warms up.
                if round > 0 {
                    rates[i].push(rate);
                    costs[i].extend(cost);
                }
            }
        }
        let ratio = |a: usize, b: usize| {
            median(rates[a].iter().zip(&rates[b]).map(|(a, b)| a / b).collect())
        };
        for (i, (name, anchor, _)) in contestants.iter().enumerate() {
            let rate = median(rates[i].clone());
            let (same, first) = (ratio(i, *anchor), ratio(i, 0));
            let cost = match &costs[i][..] {
                [] => String::new(),
                costs => format!("{:.1}", median(costs.to_vec())),
            };
            println!("| {name} | {tasks} | {rate:.0} | {same:.2} | {first:.2} | {cost} |");
        }
    }
}
