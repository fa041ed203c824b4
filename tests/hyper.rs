//! Without axum: the layer around a plain tower service, served by hyper.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_keep::{
    MemoryStorage, Quota, RateLimitLayer,
    rate_limit::{PeerAddr, Policy},
};

async fn serve(listener: TcpListener) {
    let policy = Policy::new("plain", Quota::sliding_window(3, Duration::from_secs(60)));
    let layer = RateLimitLayer::new(MemoryStorage::new(), policy);
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        let service = ServiceBuilder::new()
            .map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddr(peer));
                request
            })
            .layer(layer.clone())
            .service_fn(|_| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
            });
        tokio::spawn(async move {
            auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .await
                .unwrap();
        });
    }
}

#[tokio::test]
async fn a_plain_hyper_server_is_limited() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(serve(listener));
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    for left in ["2", "1", "0"] {
        let response = client.get(format!("http://{address}/").parse().unwrap()).await.unwrap();
        assert_eq!(response.headers()["x-ratelimit-remaining"], left);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
    let response = client.get(format!("http://{address}/").parse().unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let length = response.headers()["content-length"].to_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), length);
}
