//! The shortest whole: one route, ten requests in ten seconds for each client.
//!
//! `cargo run --example quickstart`, then `curl -i http://127.0.0.1:3000/` eleven times.

use std::net::SocketAddr;

use axum::{Router, routing::get};
use tower_keep::{MemoryStorage, RateLimitLayer, rate_limit::Policy};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // With the feature `redis`: tower_keep::RedisStorage::connect("redis://127.0.0.1").await?
    let storage = MemoryStorage::new();

    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .layer(RateLimitLayer::new(storage, Policy::new("hello", "10/10s".parse()?)));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    // The layer counts by client address, so the server has to tell it.
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await?;
    Ok(())
}
