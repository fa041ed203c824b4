//! Decisions per second on Redis, against one `EVALSHA` written by hand on a shared connection:
//! `cargo bench --bench redis [-- rounds]`.
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
use tower_keep::{Limiter, Quota, RateLimitLayer, RedisStorage, rate_limit::Policy};
use tower_keep_benches::{measure::median, request, server::Server};

const CLIENTS: u64 = 10_000;
const LIMIT: u32 = 1_000_000_000;
const MINUTE: Duration = Duration::from_secs(60);
const TURN: Duration = Duration::from_millis(250);

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
        .build()
        .await
        .expect("a storage");
    let policy = Policy::new("api", Quota::sliding_window(LIMIT, MINUTE));
    let limiter = Limiter::new(storage, policy);
    let route = || Router::new().route("/", get(async || "hello"));
    let contestants = [
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
    for tasks in [64, 256] {
        let mut rates = vec![Vec::new(); contestants.len()];
        let mut costs = vec![Vec::new(); contestants.len()];
        for round in 0..=rounds {
            for (i, (_, _, contestant)) in contestants.iter().enumerate() {
                let rate = rate(contestant, tasks).await;
                let cost = server_time(&mut statistics).await;
                // The first round warms up.
                if round > 0 {
                    rates[i].push(rate);
                    costs[i].push(cost);
                }
            }
        }
        let ratio = |a: usize, b: usize| {
            median(rates[a].iter().zip(&rates[b]).map(|(a, b)| a / b).collect())
        };
        for (i, (name, anchor, _)) in contestants.iter().enumerate() {
            let rate = median(rates[i].clone());
            let (same, script) = (ratio(i, *anchor), ratio(i, 0));
            let cost = median(costs[i].clone());
            println!("| {name} | {tasks} | {rate:.0} | {same:.2} | {script:.2} | {cost:.1} |");
        }
    }
}
