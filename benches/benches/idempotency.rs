//! Idempotency keys on Redis, against what one would write by hand:
//! `cargo bench --bench idempotency [-- rounds]`.
//!
//! Clients and Redis share the machine, and all contestants take turns; the figures are medians of
//! the ratios within one round. It starts a `redis-server` of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Request, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use redis::{Script, aio::MultiplexedConnection};
use tower_keep::{RedisStorage, Storage, storage::AnyStorage};
use tower_keep_benches::{
    idempotency::{Contestant, KEEP, Question, layer, route},
    rates::{Work, compare},
    server::Server,
};

const DAY: u64 = 24 * 3_600 * 1_000;
const PENDING: &str = "pending";

/// Replaces what is still the claim of whoever finishes.
const FINISH: &str = r"
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then
        return 0
    end
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    return 1
";

#[derive(Clone)]
struct ByHand {
    connection: MultiplexedConnection,
    finish: Arc<Script>,
    next: Arc<AtomicU64>,
}

impl ByHand {
    /// What lies under the key; if there is nothing, the claim does from now on.
    async fn claim(&mut self, key: &str, claim: &str) -> Option<Vec<u8>> {
        let mut command = redis::cmd("SET");
        command.arg(key).arg(claim).arg("NX").arg("GET").arg("PX").arg(DAY);
        command.query_async(&mut self.connection).await.expect("an answer")
    }

    async fn finish(&mut self, key: &str, claim: &str, body: &[u8]) {
        let mut call = self.finish.key(key);
        call.arg(claim).arg(body).arg(DAY);
        let ours: bool = call.invoke_async(&mut self.connection).await.expect("an answer");
        assert!(ours);
    }
}

/// What one would write in an afternoon: no fingerprint, no fields, no scope, no task that goes on when
/// the client has gone, and no way out when the owner vanishes.
async fn by_hand(State(mut hand): State<ByHand>, request: Request<Body>, next: Next) -> Response {
    let key = request.headers()["idempotency-key"].to_str().expect("a key");
    let key = format!("hand:{key}");
    let claim = format!("{PENDING} {}", hand.next.fetch_add(1, Relaxed));
    match hand.claim(&key, &claim).await {
        Some(found) if found.starts_with(PENDING.as_bytes()) => {
            StatusCode::CONFLICT.into_response()
        }
        Some(body) => (StatusCode::CREATED, body).into_response(),
        None => {
            let (parts, body) = next.run(request).await.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
            hand.finish(&key, &claim, &body).await;
            Response::from_parts(parts, body.into())
        }
    }
}

#[derive(Clone)]
enum Worker {
    /// The commands, and nothing around them.
    Commands(ByHand, Question),
    Route(Contestant),
}

impl Worker {
    fn of(question: Question, app: Router) -> Self {
        Self::Route(Contestant::new(question, "", app))
    }
}

/// Tells first calls from one another.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Work for Worker {
    async fn step(&mut self, _: u64) {
        match self {
            Self::Commands(hand, Question::Replay) => {
                let found = hand.claim("replayed", "a later claim").await;
                assert!(found.is_some());
            }
            Self::Commands(hand, _) => {
                let key = format!("commands:{:030}", NEXT.fetch_add(1, Relaxed));
                assert!(hand.claim(&key, PENDING).await.is_none());
                hand.finish(&key, PENDING, br#"{"payment":"p_91823","amount":100}"#).await;
            }
            Self::Route(contestant) => {
                assert_eq!(contestant.send().await, StatusCode::CREATED);
            }
        }
    }
}

async fn storage(server: &Server) -> AnyStorage {
    let storage = RedisStorage::builder()
        .url(server.url().to_owned())
        .entry_deadline(Duration::from_secs(10))
        .build()
        .await;
    storage.expect("a storage").erase()
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let rounds = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(10);
    let server = Server::start();
    let hand = ByHand {
        connection: server.connect().await,
        finish: Arc::new(Script::new(FINISH)),
        next: Arc::default(),
    };
    hand.clone().claim("replayed", r#"{"payment":"p_91823","amount":100}"#).await;
    let keep = layer(storage(&server).await);
    println!("| on Redis | asked | requests/s | to the commands by hand |");
    println!("|---|---|---|---|");
    for question in [Question::Replay, Question::First] {
        for tasks in [64, 256] {
            let apps = [
                ("the commands by hand", Worker::Commands(hand.clone(), question)),
                (
                    "a route, by hand",
                    Worker::of(question, route().layer(from_fn_with_state(hand.clone(), by_hand))),
                ),
                (KEEP, Worker::of(question, route().layer(keep.clone()))),
            ];
            let mut contestants = Vec::new();
            for (name, mut worker) in apps {
                // What is replayed is there from here on.
                worker.step(0).await;
                contestants.push((name, vec![worker; tasks]));
            }
            compare(&format!("{}, {tasks} tasks", question.name()), &contestants, rounds).await;
        }
    }
}
