//! The rate-limit layer through its public interface, on every storage alike.

mod concurrency;
mod contract;
mod floods;
mod keys;
mod layer;
mod limiter;
mod outage;
mod remote;
mod replays;
mod settlement;
mod tiers;

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_keep::{RateLimitLayer, rate_limit::PeerAddr};
use tower_layer::Layer;

/// Runs each test on memory and on Redis.
macro_rules! on_every_storage {
    ($($test:ident),+ $(,)?) => {
        mod memory {
            $(
                #[tokio::test]
                async fn $test() {
                    use tower_keep::Storage;
                    super::$test(tower_keep::MemoryStorage::new().erase()).await;
                }
            )+
        }

        mod redis {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let server = crate::support::RedisServer::start();
                    super::$test(crate::redis_storage(&server.url(), "tk").await).await;
                }
            )+
        }
    };
}
pub(crate) use on_every_storage;

#[path = "../support/race.rs"]
mod race;
#[path = "../support/mod.rs"]
mod support;

use race::{count, redis_storage};

type Limited = BoxCloneSyncService<
    Request<()>,
    Response<tower_keep::rate_limit::ResponseBody<Full<Bytes>>>,
    Infallible,
>;

/// A service that answers 200 behind the layer.
fn limited(layer: &RateLimitLayer) -> Limited {
    limited_with(layer, |_| Response::new(Full::from("hello")))
}

/// A service that answers by a function behind the layer.
fn limited_with(
    layer: &RateLimitLayer,
    respond: impl Fn(Request<()>) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
) -> Limited {
    let inner = service_fn(move |request| {
        let respond = respond.clone();
        async move { Ok(respond(request)) }
    });
    BoxCloneSyncService::new(layer.layer(inner))
}

fn request_from(address: &str) -> Request<()> {
    let peer: SocketAddr = format!("{address}:4711").parse().unwrap();
    Request::builder().uri("/").extension(PeerAddr(peer)).body(()).unwrap()
}

async fn send(
    service: &mut Limited,
    request: Request<()>,
) -> Response<tower_keep::rate_limit::ResponseBody<Full<Bytes>>> {
    service.ready().await.unwrap().call(request).await.unwrap()
}

async fn status(service: &mut Limited, address: &str) -> StatusCode {
    send(service, request_from(address)).await.status()
}

async fn admitted(service: &mut Limited, address: &str, requests: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..requests {
        admitted += usize::from(status(service, address).await == StatusCode::OK);
    }
    admitted
}

fn header<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}
