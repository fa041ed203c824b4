//! Without axum: the layer around a plain tower service, served by hyper.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tower::{Layer, Service, service_fn};
use tower_keep::{
    MemoryStorage, Quota, RateLimitLayer,
    rate_limit::{Cost, KeyExtractor, PeerAddr, Policy, Settlement},
    storage::Identity,
};

type Handled<B> = Result<Response<B>, Infallible>;

/// Serves a handler behind a layer, over HTTP/1 and HTTP/2. Returns where.
async fn serve<B, F>(
    layer: RateLimitLayer,
    handler: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> SocketAddr
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    F: Future<Output = Handled<B>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let limited = layer.layer(service_fn(handler.clone()));
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddr(peer));
                limited.clone().call(request)
            });
            tokio::spawn(async move {
                // A client that goes away is no mistake of the server.
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(
                        TokioIo::new(stream),
                        TowerToHyperService::new(service),
                    )
                    .await;
            });
        }
    });
    address
}

fn policy(limit: u32) -> Policy {
    Policy::new("plain", Quota::sliding_window(limit, Duration::from_secs(3_600)))
}

fn layer(policy: Policy) -> RateLimitLayer {
    RateLimitLayer::new(MemoryStorage::new(), policy)
}

fn client(http2: bool) -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).http2_only(http2).build_http()
}

#[tokio::test]
async fn a_plain_hyper_server_is_limited() {
    for http2 in [false, true] {
        let hello = |_| async { Ok(Response::new(Full::new(Bytes::from_static(b"hello")))) };
        let address = serve(layer(policy(3)), hello).await;
        let (client, uri) = (client(http2), format!("http://{address}/"));
        for left in ["2", "1", "0"] {
            let response = client.get(uri.parse().unwrap()).await.unwrap();
            assert_eq!(response.headers()["x-ratelimit-remaining"], left);
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        }
        let response = client.get(uri.parse().unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), length);
    }
}

/// What is sent to it, and a trailer when the sender has gone.
struct Stream {
    frames: mpsc::UnboundedReceiver<Bytes>,
    ended: bool,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.frames.poll_recv(cx).map(|data| match data {
            Some(data) => Some(Ok(Frame::data(data))),
            None if self.ended => None,
            None => {
                self.ended = true;
                let trailers = HeaderMap::from_iter([(header::ETAG, "\"1\"".parse().unwrap())]);
                Some(Ok(Frame::trailers(trailers)))
            }
        })
    }
}

#[tokio::test]
async fn a_stream_is_passed_on_frame_by_frame_with_its_trailers() {
    let (senders, mut sent) = mpsc::unbounded_channel();
    let address = serve(layer(policy(3)), move |_| {
        let (sender, frames) = mpsc::unbounded_channel();
        senders.send(sender).unwrap();
        async move { Ok(Response::new(Stream { frames, ended: false })) }
    })
    .await;
    let response = client(true).get(format!("http://{address}/").parse().unwrap()).await.unwrap();
    assert!(!response.headers().contains_key("content-length"));
    let (sender, mut body) = (sent.recv().await.unwrap(), response.into_body());
    for event in ["one", "two"] {
        // The next is sent only when this one is there: nothing waits for the end.
        sender.send(Bytes::from_static(event.as_bytes())).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
    }
    drop(sender);
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["etag"], "\"1\"");
}

#[tokio::test]
async fn a_connection_is_upgraded_through_the_layer() {
    let address = serve(layer(policy(1)), |mut request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            stream.read_exact(&mut word).await.unwrap();
            stream.write_all(&word).await.unwrap();
        });
        Ok(Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "echo")
            .body(Full::<Bytes>::default())
            .unwrap())
    })
    .await;
    let head = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    for expected in ["HTTP/1.1 101 ", "HTTP/1.1 429 "] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(expected.as_bytes()), "{}", answer.escape_ascii());
        if expected.contains("101") {
            stream.write_all(b"ping").await.unwrap();
            let mut echo = [0; 4];
            stream.read_exact(&mut echo).await.unwrap();
            assert_eq!(&echo, b"ping");
        }
    }
}

#[tokio::test]
async fn streams_that_are_reset_at_once_leak_no_reservation() {
    const STREAMS: usize = 1_000;
    let policy =
        policy(2_000).with_key(KeyExtractor::global()).with_settlement(Settlement::declared(1));
    let layer = layer(policy);
    let limiter = layer.limiter().clone();
    let started = Arc::new(AtomicUsize::new(0));
    let (count, handler) = (Arc::clone(&started), |slow: bool| async move {
        if slow {
            std::future::pending::<()>().await;
        }
        let mut response = Response::new(Full::<Bytes>::default());
        response.extensions_mut().insert(Cost(1));
        Ok(response)
    });
    let address = serve(layer, move |request| {
        count.fetch_add(1, SeqCst);
        handler(request.uri().path() == "/slow")
    })
    .await;
    let client = client(true);
    let request = |path: &str| client.get(format!("http://{address}{path}").parse().unwrap());
    assert_eq!(request("/").await.unwrap().status(), StatusCode::OK);
    let streams: Vec<_> = (0..STREAMS).map(|_| tokio::spawn(request("/slow"))).collect();
    // As many as the server lets in at once; the others are reset on the way.
    while started.load(SeqCst) < 50 {
        tokio::task::yield_now().await;
    }
    assert!(limiter.peek(Identity::global()).await.unwrap().remaining().unwrap() < 1_999);
    for stream in streams {
        stream.abort();
    }
    // A server that was reset too often may end the connection; the next request opens another.
    let mut answered = 1;
    while answered < 3 {
        answered += usize::from(request("/").await.is_ok());
    }
    let left = async || limiter.peek(Identity::global()).await.unwrap().remaining().unwrap();
    let began = std::time::Instant::now();
    while left().await != 2_000 - 3 {
        assert!(began.elapsed() < Duration::from_secs(10), "{} are left", left().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
