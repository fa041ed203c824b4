//! Sessions on Redis, against `tower-sessions` and a handler written by hand:
//! `cargo bench --bench session [-- rounds]`.
//!
//! Clients and Redis share the machine, and all contestants take turns; the figures are medians of
//! the ratios within one round. It starts a `redis-server` of its own.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header::COOKIE},
    routing::{get, post},
};
use redis::{AsyncCommands, Expiry, aio::MultiplexedConnection};
use tower_keep::{
    MemoryStorage, RedisStorage, Storage,
    session::{SessionCursor, Sessions},
    storage::AnyStorage,
};
use tower_keep_benches::{
    cache,
    measure::median,
    rates::{Work, compare},
    server::Server,
    session::{KEEP, RIVAL, Visitor, ask, begin, cookies, keep, policy, rival},
};
use tower_sessions_redis_store::{
    RedisStore,
    fred::prelude::{ClientLike, Config, Pool},
};

/// Many more than there are tasks, so that two rarely meet in one.
const SESSIONS: usize = 2_000;
const WEEK: u64 = 7 * 24 * 3_600;

/// Asks a route with one of many sessions.
#[derive(Clone)]
struct Route {
    app: Router,
    path: &'static str,
    sessions: Arc<[HeaderValue]>,
}

impl Work for Route {
    async fn step(&mut self, turn: u64) {
        let cookie = self.sessions[turn as usize % self.sessions.len()].clone();
        let (status, _) = cache::ask(&mut self.app, ask(self.path, Some(cookie))).await;
        assert_eq!(status, StatusCode::OK);
    }
}

/// What one would write in an hour: no check of the cookie, no expiry but the idle one, the later of
/// two writes wins.
fn by_hand(connection: MultiplexedConnection) -> Router {
    Router::new()
        .route("/read", get(read_by_hand))
        .route("/write", post(write_by_hand))
        // Without a compare-and-swap: of two at the same time one is lost.
        .route("/update", post(write_by_hand))
        .with_state(connection)
}

fn key(headers: &HeaderMap) -> Option<String> {
    let line = headers.get(COOKIE)?.to_str().ok()?;
    let id = line.split("; ").find_map(|pair| pair.strip_prefix("__Host-sid="))?;
    Some(format!("hand:{id}"))
}

async fn load(connection: &mut MultiplexedConnection, key: &str) -> Visitor {
    let found: Option<Vec<u8>> = connection.get_ex(key, Expiry::EX(WEEK)).await.expect("an answer");
    found.map_or_else(Visitor::default, |json| serde_json::from_slice(&json).expect("a visitor"))
}

async fn read_by_hand(
    State(mut connection): State<MultiplexedConnection>,
    headers: HeaderMap,
) -> &'static str {
    let key = key(&headers).expect("a session");
    black_box(load(&mut connection, &key).await);
    "done"
}

async fn write_by_hand(
    State(mut connection): State<MultiplexedConnection>,
    headers: HeaderMap,
) -> &'static str {
    let key = key(&headers).expect("a session");
    let mut visitor = load(&mut connection, &key).await;
    visitor.visits += 1;
    let json = serde_json::to_vec(&visitor).expect("a visitor");
    let _: () = connection.set_ex(key, json, WEEK).await.expect("an answer");
    "done"
}

async fn storage(server: &Server, prefix: &str) -> AnyStorage {
    let patience = Duration::from_secs(10);
    let storage = RedisStorage::builder()
        .url(server.url().to_owned())
        .prefix(prefix)
        .entry_deadline(patience)
        .build()
        .await;
    storage.expect("a storage").erase()
}

async fn pool(server: &Server) -> Pool {
    let config = Config::from_url(server.url()).expect("a URL");
    // As many connections as in the documentation of the store.
    let pool = Pool::new(config, None, None, None, 6).expect("a pool");
    pool.connect();
    pool.wait_for_connect().await.expect("a connection");
    pool
}

async fn requests(server: &Server, rounds: u32) {
    let apps = [
        ("by hand", by_hand(server.connect().await)),
        (KEEP, keep(storage(server, "keep").await)),
        (RIVAL, rival(RedisStore::new(pool(server).await))),
    ];
    let mut routes = Vec::new();
    for (keeper, mut app) in apps {
        let mut sessions = Vec::new();
        for session in 0..SESSIONS {
            if keeper == "by hand" {
                let own = cookies(Some(&format!("__Host-sid={session:043}")));
                cache::ask(&mut app, ask("/write", Some(own.clone()))).await;
                sessions.push(own);
            } else {
                sessions.push(begin(&mut app, "/write").await);
            }
        }
        routes.push((keeper, app, Arc::from(sessions)));
    }
    println!("| on Redis | asked | tasks | requests/s | to by hand |");
    println!("|---|---|---|---|---|");
    for path in ["/read", "/write", "/update"] {
        for tasks in [64, 256] {
            let contestants: Vec<_> = routes
                .iter()
                .map(|(keeper, app, sessions): &(_, _, Arc<[HeaderValue]>)| {
                    let route = Route { app: app.clone(), path, sessions: Arc::clone(sessions) };
                    (*keeper, vec![route; tasks])
                })
                .collect();
            let name = format!("{} | {tasks}", &path[1..]);
            compare(&name, &contestants, rounds).await;
        }
    }
}

/// Of one operation after another, in microseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    async fn of<T>(&mut self, work: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let outcome = work.await;
        self.0.push(start.elapsed().as_secs_f64() * 1e6);
        outcome
    }
}

/// Requests of this application with a login.
#[derive(Clone)]
struct Logins(Router);

impl Logins {
    async fn login(&mut self, user: &str) {
        let mut request = ask("/login", Some(cookies(None)));
        request.headers_mut().insert("x-user", user.parse().expect("a name"));
        let (status, _) = cache::ask(&mut self.0, request).await;
        assert_eq!(status, StatusCode::OK);
    }

    /// So many sessions of one user, begun by several at once.
    async fn many(&self, user: String, most: u64) {
        let next = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let (mut logins, next, user) = (self.clone(), Arc::clone(&next), user.clone());
                tokio::spawn(async move {
                    while next.fetch_add(1, Relaxed) < most {
                        logins.login(&user).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a task");
        }
    }
}

/// What is done now and then, one at a time.
async fn rare(name: &str, storage: AnyStorage, round_trip: impl AsyncFn() -> f64) {
    let sessions = Sessions::new(storage.clone(), policy());
    let mut logins = Logins(keep(storage));
    let (mut login, mut second) = (Times::default(), Times::default());
    let (mut list, mut ten, mut many) = (Times::default(), Times::default(), Times::default());
    let mut trips = Vec::new();
    for turn in 0..200 {
        trips.push(round_trip().await);
        let user = format!("user-{turn}");
        login.of(logins.login(&user)).await;
        second.of(logins.login(&user)).await;
    }
    for turn in 0..40 {
        let user = format!("ten-{turn}");
        logins.many(user.clone(), 10).await;
        trips.push(round_trip().await);
        ten.of(sessions.end_all(&user)).await.expect("an answer");
        let page = sessions.list(&user, SessionCursor::START).await.expect("an answer");
        assert!(page.sessions.is_empty());
    }
    logins.many("full".to_owned(), 64).await;
    for _ in 0..100 {
        trips.push(round_trip().await);
        let page = list.of(sessions.list("full", SessionCursor::START)).await.expect("an answer");
        assert_eq!(page.sessions.len(), 64);
    }
    let began = Instant::now();
    for turn in 0..3 {
        let user = format!("many-{turn}");
        logins.many(user.clone(), 10_000).await;
        trips.push(round_trip().await);
        many.of(sessions.end_all(&user)).await.expect("an answer");
        let page = sessions.list(&user, SessionCursor::START).await.expect("an answer");
        assert!(page.sessions.is_empty());
    }
    eprintln!("{name}: 30,000 logins of three users in {:.1?}", began.elapsed());
    let trip = median(trips);
    println!("| a round trip (`GET`) | {name} | {trip:.1} | 1.00 |");
    for (what, times) in [
        ("a login, the first of its user", login),
        ("a login, the second of its user", second),
        ("`Sessions::list`, a page of 64", list),
        ("`Sessions::end_all`, 10 sessions", ten),
        ("`Sessions::end_all`, 10,000 sessions", many),
    ] {
        let time = median(times.0);
        println!("| {what} | {name} | {time:.1} | {:.2} |", time / trip);
    }
}

async fn round_trip(connection: &MultiplexedConnection) -> f64 {
    let mut connection = connection.clone();
    let mut times = Times::default();
    let none: Option<Vec<u8>> = times.of(connection.get("none")).await.expect("an answer");
    assert_eq!(none, None);
    times.0[0]
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let rounds = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(15_u32);
    let server = Server::start();
    requests(&server, rounds).await;
    println!();
    println!("| one at a time | storage | us | to a round trip |");
    println!("|---|---|---|---|");
    let connection = server.connect().await;
    rare("Redis", storage(&server, "rare").await, async || round_trip(&connection).await).await;
    let memory = MemoryStorage::builder().max_entries(100_000).build().erase();
    rare("memory", memory, async || round_trip(&connection).await).await;
}
