//! A caching reverse proxy.
//!
//! `cargo run --release --example proxy -- --listen 127.0.0.1:8006 --origin http://127.0.0.1:8000`

mod forward;
mod options;
mod serve;

use std::{fmt::Display, process::ExitCode, time::Duration};

use tokio::net::TcpListener;
use tower::Layer;
use tower_keep::{
    CacheLayer, MemoryStorage, RateLimitLayer, RedisStorage, Storage, cache, rate_limit,
    storage::AnyStorage,
};

use forward::Forward;
use options::{Command, Options};

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            std::env::var("RUST_LOG").unwrap_or_else(|_| "warn,tower_keep=info".to_owned()),
        )
        .with_writer(std::io::stderr)
        .init();
    let ended = match options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{}", options::HELP);
            Ok(())
        }
        Ok(Command::Run(options)) => run(options).await,
        Err(message) => Err(Failure { message, code: 2 }),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            eprintln!("proxy: {message}");
            ExitCode::from(code)
        }
    }
}

/// How long an answer is given after its end while the origin is gone, unless it forbids that.
const STALE_IF_UNREACHABLE: Duration = Duration::from_secs(3_600);

struct Failure {
    message: String,
    code: u8,
}

fn failure(error: impl Display) -> Failure {
    Failure { message: error.to_string(), code: 1 }
}

async fn run(options: Options) -> Result<(), Failure> {
    let (storage, storage_name) = storage(options.redis.as_deref()).await?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| failure(format!("cannot listen on {}: {error}", options.listen)))?;
    let address = listener.local_addr().map_err(failure)?;
    // Before the line that says so: whoever reads it may ask to stop at once.
    let stop = serve::stop_signal();
    println!("listening on http://{address} (storage: {storage_name})");

    // Around what forwards, and inside the limit: also what the cache answers counts.
    let http = cache::Policy::http().with_stale_if_unreachable(STALE_IF_UNREACHABLE);
    let cache = CacheLayer::new(storage.clone(), http);
    let service = cache.layer(Forward::new(options.origin, options.timeout));
    match options.limit {
        Some(quota) => {
            let limit = RateLimitLayer::new(storage, rate_limit::Policy::new("proxy", quota));
            serve::serve(listener, limit.layer(service), stop).await
        }
        None => serve::serve(listener, service, stop).await,
    }
    .map_err(failure)
}

async fn storage(redis: Option<&str>) -> Result<(AnyStorage, &'static str), Failure> {
    match redis {
        Some(url) => {
            let storage = RedisStorage::connect(url).await.map_err(|error| Failure {
                message: format!("--redis cannot be used: {error}"),
                code: 2,
            })?;
            Ok((storage.erase(), "redis"))
        }
        None => Ok((MemoryStorage::new().erase(), "memory")),
    }
}
