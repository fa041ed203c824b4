//! A small shop that shows what tower-keep does, one promise a route.
//!
//! `cargo run --example demo` keeps its state in memory; with `REDIS_URL` set, in Redis. `HOST`,
//! `PORT` and `DEMO_TRUSTED_PROXIES` (comma-separated networks) change the rest.

mod account;
mod payments;
mod products;
mod routes;

use std::{
    env::{self, VarError},
    fmt::Display,
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, time::timeout};
use tower_keep::{
    MemoryStorage, RedisStorage, Storage, rate_limit::ClientAddress, storage::AnyStorage,
};

/// How long running requests, and what they have begun, may take to finish after SIGINT or SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(env::var("RUST_LOG").unwrap_or_else(|_| "warn,tower_keep=info".to_owned()))
        .with_writer(std::io::stderr)
        .init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            eprintln!("demo: {message}");
            ExitCode::from(code)
        }
    }
}

struct Failure {
    message: String,
    code: u8,
}

/// A setting that cannot be used: exit code 2.
fn setting(error: impl Display) -> Failure {
    Failure { message: error.to_string(), code: 2 }
}

fn failure(error: impl Display) -> Failure {
    Failure { message: error.to_string(), code: 1 }
}

async fn run() -> Result<(), Failure> {
    let (storage, storage_name) = storage().await?;
    let host = variable("HOST")?.unwrap_or_else(|| "127.0.0.1".to_owned());
    let port = match variable("PORT")? {
        Some(port) => port
            .parse::<u16>()
            .map_err(|_| setting(format!("PORT={port:?} is no port: use a number up to 65535")))?,
        None => 3000,
    };
    let app = routes::app(storage.clone(), client_address()?);

    let listener = TcpListener::bind((host.as_str(), port))
        .await
        .map_err(|error| failure(format!("cannot listen on {host}:{port}: {error}")))?;
    let address = listener.local_addr().map_err(failure)?;
    // Before the line that says so: whoever reads it may ask to stop at once.
    let stop = stop_signal();
    println!("listening on http://{address} (storage: {storage_name})");

    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async {
        stop.await;
        let _ = stopping.send(());
    });
    let server = tokio::spawn(server.into_future());
    let _ = stopped.await;
    let began = Instant::now();
    let ended = timeout(GRACE, server).await;
    // Requests leave work behind, so what is left of the time is for that.
    let drained = storage.shutdown(GRACE.saturating_sub(began.elapsed())).await;
    match ended {
        Ok(ended) => ended.map_err(failure)?.map_err(failure)?,
        Err(_) => return Err(failure("some requests did not finish in time")),
    }
    if !drained.is_clean() {
        let given_up = drained.abandoned;
        return Err(failure(format!("not finished in time, beside requests: {given_up} tasks")));
    }
    Ok(())
}

/// A variable of the environment; an empty one counts as not set.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    match env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.trim().is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(setting(format!("{name} cannot be used: not UTF-8"))),
    }
}

async fn storage() -> Result<(AnyStorage, &'static str), Failure> {
    match variable("REDIS_URL")? {
        Some(url) => {
            let storage = RedisStorage::connect(&url)
                .await
                .map_err(|error| setting(format!("REDIS_URL cannot be used: {error}")))?;
            Ok((storage.erase(), "redis"))
        }
        None => Ok((MemoryStorage::new().erase(), "memory")),
    }
}

fn client_address() -> Result<ClientAddress, Failure> {
    match variable("DEMO_TRUSTED_PROXIES")? {
        Some(networks) => ClientAddress::behind_proxies(networks.split(',').map(str::trim))
            .map_err(|error| setting(format!("DEMO_TRUSTED_PROXIES cannot be used: {error}"))),
        None => Ok(ClientAddress::peer()),
    }
}

/// Listens for SIGINT and SIGTERM from now on; the future ends with the first of them.
fn stop_signal() -> impl Future<Output = ()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).expect("a handler for the signal can be installed");
        let mut interrupt = listen(SignalKind::interrupt());
        let mut terminate = listen(SignalKind::terminate());
        async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
    }
    #[cfg(not(unix))]
    async {
        let _ = tokio::signal::ctrl_c().await;
    }
}
