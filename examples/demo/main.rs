//! A small shop that shows what tower-keep does, one promise a route.
//!
//! `cargo run --example demo` keeps its state in memory; with `REDIS_URL` set, in Redis. `HOST`,
//! `PORT` and `DEMO_TRUSTED_PROXIES` (comma-separated networks) change the rest.

mod routes;

use std::{env, fmt::Display, net::SocketAddr, process::ExitCode, time::Duration};

use tokio::{net::TcpListener, signal, time::timeout};
use tower_keep::{
    MemoryStorage, RedisStorage, Storage, rate_limit::ClientAddress, storage::AnyStorage,
};

/// How long running requests may take to finish after SIGINT or SIGTERM.
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
    let host = env::var("HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let port = match env::var("PORT") {
        Ok(port) => {
            port.parse::<u16>().map_err(|_| setting(format!("PORT={port:?} is no port")))?
        }
        Err(_) => 3000,
    };
    let app = routes::app(storage, client_address()?);

    let listener = TcpListener::bind((host.as_str(), port))
        .await
        .map_err(|error| failure(format!("cannot listen on {host}:{port}: {error}")))?;
    let address = listener.local_addr().map_err(failure)?;
    println!("listening on http://{address} (storage: {storage_name})");

    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async {
        stop_signal().await;
        let _ = stopping.send(());
    });
    let server = tokio::spawn(server.into_future());
    let _ = stopped.await;
    match timeout(GRACE, server).await {
        Ok(ended) => ended.map_err(failure)?.map_err(failure),
        Err(_) => Err(failure("some requests did not finish in time")),
    }
}

async fn storage() -> Result<(AnyStorage, &'static str), Failure> {
    match env::var("REDIS_URL") {
        Ok(url) if !url.is_empty() => {
            let storage = RedisStorage::connect(&url)
                .await
                .map_err(|error| setting(format!("REDIS_URL cannot be used: {error}")))?;
            Ok((storage.erase(), "redis"))
        }
        _ => Ok((MemoryStorage::new().erase(), "memory")),
    }
}

fn client_address() -> Result<ClientAddress, Failure> {
    match env::var("DEMO_TRUSTED_PROXIES") {
        Ok(networks) if !networks.trim().is_empty() => {
            ClientAddress::behind_proxies(networks.split(',').map(str::trim))
                .map_err(|error| setting(format!("DEMO_TRUSTED_PROXIES cannot be used: {error}")))
        }
        _ => Ok(ClientAddress::peer()),
    }
}

async fn stop_signal() {
    let interrupt = signal::ctrl_c();
    #[cfg(unix)]
    {
        let mut terminate = signal::unix::signal(signal::unix::SignalKind::terminate())
            .expect("a handler for SIGTERM can be installed");
        tokio::select! {
            _ = interrupt => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = interrupt.await;
}
