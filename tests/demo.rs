//! The demo as its users meet it: the built binary, driven by a real HTTP client.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

#[path = "demo/account.rs"]
mod account;
#[path = "demo/payments.rs"]
mod payments;
mod support;

use support::RedisServer;
use tower_keep::bb8_redis::redis;

struct Demo {
    child: Child,
    url: String,
    first_line: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

fn binary() -> PathBuf {
    // target/debug/deps/demo-<hash> -> target/debug/examples/demo
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let path = path.join("examples").join("demo");
    assert!(path.exists(), "the example is not built: run `cargo build --example demo` first");
    path
}

impl Demo {
    fn start(env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(binary())
            .env_remove("REDIS_URL")
            .env_remove("DEMO_TRUSTED_PROXIES")
            .env("PORT", "0")
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut first_line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first_line).unwrap();
        let url = first_line
            .split_whitespace()
            .find(|word| word.starts_with("http://"))
            .unwrap_or_else(|| panic!("no address in {first_line:?}"))
            .to_owned();
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { child, url, first_line, client }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Bytes> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let (parts, body) = self.client.request(request).await.unwrap().into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        self.send(Method::GET, path, headers, "").await
    }

    async fn admitted(&self, path: &str, headers: &[(&str, &str)], requests: usize) -> usize {
        let mut admitted = 0;
        for _ in 0..requests {
            admitted += usize::from(self.get(path, headers).await.status() == StatusCode::OK);
        }
        admitted
    }

    async fn otp(&self, body: &str) -> Response<Bytes> {
        self.send(Method::POST, "/api/otp", &[("content-type", "application/json")], body).await
    }

    async fn change_price(&self, path: &str, body: &str) -> Response<Bytes> {
        self.send(Method::PUT, path, &[("content-type", "application/json")], body).await
    }

    /// Asks it to stop and returns how long that took.
    fn stop(mut self, signal: &str) -> Duration {
        let start = Instant::now();
        let status =
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
        assert!(self.child.wait().unwrap().success());
        start.elapsed()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body()).unwrap()
}

async fn products(demo: &Demo) {
    let path = "/api/products/1";
    let first = json(&demo.get(path, &[]).await);
    assert_eq!((&first["id"], &first["name"]), (&1.into(), &"lantern".into()));
    let again = demo.get(path, &[("cookie", "theme=dark")]).await;
    assert_eq!(json(&again), first, "the handler has not run again");
    assert!(again.headers().contains_key("age"));
    let condition = [("if-none-match", again.headers()["etag"].to_str().unwrap())];
    assert_eq!(demo.get(path, &condition).await.status(), StatusCode::NOT_MODIFIED);
    let list = json(&demo.get("/api/products", &[]).await);
    assert_eq!(list["products"].as_array().unwrap().len(), 3);
    assert_eq!(list["products"][0]["renders"], first["renders"], "the list does not run it");
    let query = format!("{path}?x=1");
    assert_eq!(json(&demo.get(&query, &[]).await), first, "a query does not make another product");

    for price in 1..6_u64 {
        let changed = demo.change_price(path, &format!("{{\"price\": {price}}}")).await;
        assert_eq!(changed.status(), StatusCode::OK);
        let read = json(&demo.get(path, &[]).await);
        assert_eq!(read["price"], price, "a read after a write is never older");
        let list = json(&demo.get("/api/products", &[]).await);
        assert_eq!(list["products"][0], read, "the list does not count as a run");
    }
    assert_eq!(demo.change_price(path, "five").await.status(), StatusCode::BAD_REQUEST);

    for missing in ["0", "4", "01", "+1", "x", "18446744073709551616", "%ff"] {
        let path = format!("/api/products/{missing}");
        let problem = demo.get(&path, &[]).await;
        assert_eq!(problem.status(), StatusCode::NOT_FOUND);
        assert_eq!(problem.headers()["content-type"], "application/problem+json");
        assert!(demo.get(&path, &[]).await.headers().contains_key("age"), "{path} is cached");
        let changed = demo.change_price(&path, "{\"price\": 1}").await;
        assert_eq!(changed.status(), StatusCode::NOT_FOUND);
    }
}

async fn the_routes_answer_as_documented(demo: &Demo) {
    let ping = demo.get("/api/ping", &[]).await;
    assert_eq!(json(&ping), serde_json::json!({ "pong": true }));
    assert_eq!(ping.headers()["x-ratelimit-limit"], "10");
    assert_eq!(ping.headers()["ratelimit-policy"], "\"ping\";q=10;w=10");
    assert_eq!(demo.admitted("/api/ping", &[], 15).await, 9);
    let refused = demo.get("/api/ping", &[]).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait));
    // Nobody believes a header of somebody who is no proxy.
    assert_eq!(demo.admitted("/api/ping", &[("x-forwarded-for", "192.0.2.7")], 3).await, 0);

    let search = "/api/search?q=la";
    assert_eq!(json(&demo.get(search, &[("x-api-key", "demo-pro")]).await)["q"], "la");
    assert_eq!(demo.admitted(search, &[], 6).await, 2, "by address");
    assert_eq!(demo.admitted(search, &[("x-api-key", "demo-free")], 9).await, 5);
    assert_eq!(demo.admitted(search, &[("x-api-key", "demo-pro")], 60).await, 49);
    for _ in 0..20 {
        let response = demo.get(search, &[("x-api-key", "stolen")]).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }
    let response = demo.get(search, &[("x-api-key", "stolen")]).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(response.headers().contains_key("retry-after"));

    for bad in ["", "{}", "[]", "{\"phone\": 5}", "{\"phone\": \"\"}", "\u{0}"] {
        assert_eq!(demo.otp(bad).await.status(), StatusCode::BAD_REQUEST, "{bad:?}");
    }
    for phone in ["+49 30 1234567", "+49-30-1234567", "+49301234567"] {
        let sent = demo.otp(&format!("{{\"phone\": \"{phone}\"}}")).await;
        assert_eq!(sent.status(), StatusCode::OK, "{phone}");
    }
    let fourth = demo.otp("{\"phone\": \"+49301234567\"}").await;
    assert_eq!(fourth.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(fourth.headers().contains_key("retry-after"));
    assert_eq!(demo.otp("{\"phone\": \"+49309999999\"}").await.status(), StatusCode::OK);

    products(demo).await;

    let live = demo.get("/health/live", &[]).await;
    assert_eq!(live.status(), StatusCode::OK);
    let page = demo.get("/", &[]).await;
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
}

#[tokio::test]
async fn in_memory_the_routes_answer_as_documented() {
    let demo = Demo::start(&[]);
    assert!(demo.first_line.ends_with(" (storage: memory)\n"), "{:?}", demo.first_line);
    the_routes_answer_as_documented(&demo).await;
    assert!(demo.stop("-TERM") < Duration::from_secs(10));
}

#[tokio::test]
async fn on_redis_the_routes_answer_as_documented() {
    let server = RedisServer::start();
    let demo = Demo::start(&[("REDIS_URL", &server.url())]);
    assert!(demo.first_line.ends_with(" (storage: redis)\n"), "{:?}", demo.first_line);
    the_routes_answer_as_documented(&demo).await;
    let other = Demo::start(&[("REDIS_URL", &server.url())]);
    assert_eq!(other.admitted("/api/ping", &[], 3).await, 0, "two processes share one quota");
    for price in 1..20_u64 {
        let (path, body) = ("/api/products/2", format!("{{\"price\": {price}}}"));
        other.get(path, &[]).await;
        assert_eq!(demo.change_price(path, &body).await.status(), StatusCode::OK);
        assert_eq!(json(&other.get(path, &[]).await)["price"], price, "and one cache");
    }
    assert!(demo.stop("-INT") < Duration::from_secs(10));
}

#[tokio::test]
async fn a_price_that_was_changed_without_redis_is_never_older_afterwards() {
    let mut server = RedisServer::start();
    let demo = Demo::start(&[("REDIS_URL", &server.url())]);
    let path = "/api/products/3";
    demo.get(path, &[]).await;
    server.kill();
    assert_eq!(demo.change_price(path, "{\"price\": 77}").await.status(), StatusCode::OK);
    assert_eq!(json(&demo.get(path, &[]).await)["price"], 77, "past the cache");
    server.restart();
    for _ in 0..10 {
        assert_eq!(json(&demo.get(path, &[]).await)["price"], 77);
    }
}

#[tokio::test]
async fn a_purge_that_is_still_owed_is_waited_for_at_the_stop() {
    const OUTAGE: Duration = Duration::from_secs(1);
    let server = RedisServer::start();
    let demo = Demo::start(&[("REDIS_URL", &server.url())]);
    demo.get("/api/products/3", &[]).await;
    server.pause_process();
    let changed = demo.change_price("/api/products/3", "{\"price\": 77}").await;
    assert_eq!(changed.status(), StatusCode::OK);
    let stopping = tokio::task::spawn_blocking(|| demo.stop("-TERM"));
    tokio::time::sleep(OUTAGE).await;
    server.resume();
    let took = stopping.await.unwrap();
    assert!((OUTAGE..Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn behind_a_trusted_proxy_every_client_has_its_own_quota() {
    let demo = Demo::start(&[("DEMO_TRUSTED_PROXIES", "127.0.0.0/8, ::1")]);
    for client in ["192.0.2.1", "192.0.2.2"] {
        assert_eq!(demo.admitted("/api/ping", &[("x-forwarded-for", client)], 12).await, 10);
        let forged = format!("203.0.113.9, {client}");
        assert_eq!(demo.admitted("/api/ping", &[("x-forwarded-for", &forged)], 2).await, 0);
    }
}

#[tokio::test]
async fn a_redis_that_is_down_degrades_the_start_and_heals() {
    let mut server = RedisServer::start();
    let url = server.url();
    server.kill();
    let demo = Demo::start(&[("REDIS_URL", &url)]);
    let start = Instant::now();
    let degraded = demo.get("/api/ping", &[]).await;
    assert_eq!(degraded.status(), StatusCode::OK);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    server.restart();
    // As soon as it is back, two processes share one quota again.
    let other = Demo::start(&[("REDIS_URL", &url)]);
    let healed = Instant::now();
    loop {
        demo.get("/api/ping", &[]).await;
        other.get("/api/ping", &[]).await;
        if keys(&url).await.iter().any(|key| key.contains("ratelimit")) {
            break;
        }
        assert!(healed.elapsed() < Duration::from_secs(10), "it does not heal");
    }
}

async fn keys(url: &str) -> Vec<String> {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap()
}

#[test]
fn a_signal_right_after_the_first_line_stops_it_in_order() {
    for round in 0..10 {
        let signal = if round % 2 == 0 { "-TERM" } else { "-INT" };
        assert!(Demo::start(&[]).stop(signal) < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn connections_that_are_open_and_idle_do_not_hold_up_the_stop() {
    let demo = Demo::start(&[]);
    // The client keeps its connection, and a browser opens some that it does not use yet.
    assert_eq!(demo.get("/api/ping", &[]).await.status(), StatusCode::OK);
    let address = demo.url.strip_prefix("http://").unwrap();
    let _unused = std::net::TcpStream::connect(address).unwrap();
    assert!(demo.stop("-TERM") < Duration::from_secs(5));
}

#[test]
fn an_empty_setting_counts_as_not_set() {
    let demo = Demo::start(&[("HOST", ""), ("REDIS_URL", " "), ("DEMO_TRUSTED_PROXIES", "")]);
    assert!(demo.first_line.starts_with("listening on http://127.0.0.1:"), "{}", demo.first_line);
    assert!(demo.first_line.ends_with(" (storage: memory)\n"), "{}", demo.first_line);
}

#[cfg(unix)]
#[test]
fn a_setting_that_is_no_text_is_not_taken_for_unset() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let url = OsStr::from_bytes(b"redis://\xff");
    let mut demo = Command::new(binary())
        .env("PORT", "0")
        .env("REDIS_URL", url)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(demo.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "demo: REDIS_URL cannot be used: not UTF-8\n");
    assert_eq!(demo.wait().unwrap().code(), Some(2));
}

#[test]
fn a_setting_that_cannot_be_used_ends_it_with_one_clear_line() {
    for (name, value) in [
        ("REDIS_URL", "nonsense"),
        ("REDIS_URL", "redis://:hunter2@"),
        ("REDIS_URL", "redis://user:hunter2@host:port/0"),
        ("PORT", "eighty"),
        ("DEMO_TRUSTED_PROXIES", "10.0.0.0/99"),
    ] {
        let output = Command::new(binary()).env("PORT", "0").env(name, value).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}={value}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.starts_with(&format!("demo: {name}")), "{line:?}");
        assert_eq!(line.lines().count(), 1, "{line:?}");
        assert!(!line.contains("hunter2"), "{line:?}");
    }
}
