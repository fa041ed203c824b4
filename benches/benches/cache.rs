//! The cache over TCP and on Redis: `cargo bench --bench cache [-- rounds]`.
//!
//! Clients, servers and Redis share the machine, and all contestants take turns; the figures are
//! medians of the ratios within one round. It starts a `redis-server` of its own.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Method, Response, StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use redis::{AsyncCommands, aio::MultiplexedConnection};
use tokio::net::{TcpListener, TcpStream};
use tower_keep::{
    CacheHandle, CacheLayer, RedisStorage,
    cache::{NearCache, Policy},
};
use tower_keep_benches::{
    cache::{BARE, KEEP, MOKA, NOOP, ask, behind, request, route},
    rates::{Work, compare},
    server::Server,
};

const CONNECTIONS: usize = 32;
const PATHS: u64 = 1_000;
const HOUR: Duration = Duration::from_secs(3_600);
const NEAR_BYTES: u64 = 64 << 20;

/// A connection that is kept alive. Only one task has it at a time.
#[derive(Clone)]
struct Connection {
    send: Arc<tokio::sync::Mutex<SendRequest<Body>>>,
    path: &'static str,
}

impl Connection {
    async fn open(server: std::net::SocketAddr, path: &'static str) -> Self {
        let stream = TcpStream::connect(server).await.expect("a server");
        stream.set_nodelay(true).expect("a socket");
        let (send, connection) = handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        Self { send: Arc::new(tokio::sync::Mutex::new(send)), path }
    }
}

impl Work for Connection {
    async fn step(&mut self, _: u64) {
        let request = request(Method::GET, self.path);
        let mut send = self.send.lock().await;
        let response = send.send_request(request).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.expect("the body is whole");
        }
    }
}

async fn serve(app: Router) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let serving = axum::serve(listener, app);
    tokio::spawn(async move { serving.await });
    address
}

async fn over_tcp(rounds: u32) {
    println!("| over TCP, {CONNECTIONS} connections | body | requests/s | to bare |");
    println!("|---|---|---|---|");
    for (body, path) in [("1 KiB", "/small"), ("100 KiB", "/large")] {
        let mut contestants = Vec::new();
        for cache in [BARE, NOOP, KEEP, MOKA, "axum-response-cache"] {
            let server = serve(behind(cache, route())).await;
            let mut connections = Vec::new();
            for _ in 0..CONNECTIONS {
                connections.push(Connection::open(server, path).await);
            }
            contestants.push((cache, connections));
        }
        compare(body, &contestants, rounds).await;
    }
}

/// Asks a route for one of many pages.
#[derive(Clone)]
struct Route(Router);

impl Work for Route {
    async fn step(&mut self, turn: u64) {
        let path = format!("/items/{}", turn % PATHS);
        let answer = ask(&mut self.0, request(Method::GET, &path)).await;
        assert_eq!(answer, (StatusCode::OK, 1 << 10));
    }
}

/// What one would write to serve bodies that are in Redis.
async fn stored_by_hand(
    State(mut connection): State<MultiplexedConnection>,
    uri: axum::http::Uri,
) -> Response<Body> {
    let body: Bytes = connection.get(format!("hand:{}", uri.path())).await.expect("an answer");
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a value"));
    response
}

async fn on_redis(rounds: u32) {
    let server = Server::start();
    let mut connection = server.connect().await;
    for page in 0..PATHS {
        let key = format!("hand:/items/{page}");
        let _: () = connection.set(key, vec![b'x'; 1 << 10]).await.expect("an answer");
    }
    let by_hand =
        Router::new().route("/items/{n}", get(stored_by_hand)).with_state(connection.clone());
    let mut apps = vec![("GET by hand", by_hand)];
    for (name, near) in [
        ("tower-keep", None),
        ("tower-keep, strict near cache", Some(NearCache::strict(NEAR_BYTES))),
        (
            "tower-keep, near cache bounded by 1 s",
            Some(NearCache::bounded(NEAR_BYTES, Duration::from_secs(1))),
        ),
    ] {
        // Two cores shared with the server: a slow answer is no outage here.
        let storage = RedisStorage::builder()
            .url(server.url().to_owned())
            .decision_deadline(Duration::from_secs(5))
            .build()
            .await
            .expect("a storage");
        let handle = CacheHandle::builder(storage);
        let handle = match near {
            Some(near) => handle.with_near_cache(near),
            None => handle,
        };
        let layer = CacheLayer::from_handle(handle.build(), Policy::output(HOUR));
        let mut app = Route(route().layer(layer));
        for page in 0..PATHS {
            app.step(page).await;
        }
        apps.push((name, app.0));
    }
    println!();
    println!("| on Redis, 1 KiB | tasks | requests/s | to GET by hand |");
    println!("|---|---|---|---|");
    for tasks in [64, 256] {
        let contestants: Vec<_> =
            apps.iter().map(|(name, app)| (*name, vec![Route(app.clone()); tasks])).collect();
        compare(&tasks.to_string(), &contestants, rounds).await;
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let rounds = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(15_u32);
    over_tcp(rounds).await;
    on_redis(rounds).await;
}
