//! The bodies of requests: read before the handler runs, handed on whole, and nothing is done while
//! one is not there.

use std::{error::Error, io, net::SocketAddr, time::Duration};

use axum::{
    Form, Json, Router,
    body::Body,
    http::{Request, Response, StatusCode},
    routing::post,
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Frame;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tower::{Service, ServiceExt, service_fn};
use tower_keep::{
    IdempotencyLayer, MemoryStorage,
    idempotency::{Outcome, Policy},
};

use crate::{
    support::until,
    till::{Till, code, is_replay, whole},
};

fn policy() -> Policy {
    Policy::scope_public()
}

/// Answers with how long the body was, and what it was.
fn measuring(policy: Policy) -> Till {
    Till::new(MemoryStorage::new(), policy, |execution, request| async move {
        let length = request.headers().get("content-length").cloned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut response = Response::new(Body::from(format!("{execution}: {}", body.len())));
        if let Some(length) = length {
            response.headers_mut().insert("x-announced", length);
        }
        response
    })
}

fn upload(body: Body) -> Request<Body> {
    Request::post("/upload").header("idempotency-key", "a-key").body(body).unwrap()
}

type Piece = Result<&'static str, io::Error>;

/// A body whose length nobody knows beforehand.
fn in_pieces(pieces: impl IntoIterator<Item = Piece, IntoIter: Send + 'static>) -> Body {
    Body::from_stream(stream::iter(pieces))
}

fn broken() -> Piece {
    Err(io::ErrorKind::ConnectionReset.into())
}

#[tokio::test]
async fn a_body_over_the_cap_is_refused_before_anything_is_done() {
    let till = measuring(policy().with_max_request_body(8));
    let too_long = [
        Body::from("123456789"),
        in_pieces([Ok("12345"), Ok("6789")]),
        in_pieces((0..1_000_000).map(|_| Ok("more "))),
        // Whatever comes after it.
        in_pieces([Ok("123456789"), broken()]),
    ];
    for body in too_long {
        let answer = till.send(upload(body)).await;
        assert_eq!((answer.status().as_u16(), &*code(&answer)), (413, "body-too-large"));
        assert_eq!(answer.extensions().get(), Some(&Outcome::BodyTooLarge));
    }
    assert_eq!(till.executions(), 0);
    // The key was not used, and what fits is the same request however it comes.
    assert_eq!(till.send(upload(Body::from("12345678"))).await.body(), "1: 8");
    let again = till.send(upload(in_pieces([Ok("1234"), Ok(""), Ok("5678")]))).await;
    assert_eq!((is_replay(&again), again.body().as_ref()), (true, b"1: 8".as_ref()));
}

#[tokio::test]
async fn a_body_of_a_mebibyte_is_taken_and_no_more() {
    for (length, status) in [(1 << 20, 200), ((1 << 20) + 1, 413)] {
        let till = measuring(policy());
        let answer = till.send(upload(Body::from(vec![b'x'; length]))).await;
        assert_eq!(answer.status(), status);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused_and_its_key_stays_free() {
    let till = measuring(policy());
    for body in [in_pieces([broken()]), in_pieces([Ok("half"), broken()])] {
        let answer = till.send(upload(body)).await;
        assert_eq!((answer.status().as_u16(), &*code(&answer)), (400, "body-failed"));
        assert_eq!(answer.extensions().get(), Some(&Outcome::BodyFailed));
    }
    assert_eq!(till.executions(), 0);
    // Also for another body: the broken one left nothing behind.
    assert_eq!(till.send(upload(Body::from("another"))).await.body(), "1: 7");
}

#[tokio::test]
async fn a_limit_outside_is_told_as_what_it_is() {
    let till = measuring(policy());
    for body in [Body::from("123456789"), in_pieces([Ok("12345"), Ok("6789")])] {
        // As `tower_http::limit::RequestBodyLimit` does it.
        let answer = till.send(upload(Body::new(Limited::new(body, 8)))).await;
        assert_eq!((answer.status().as_u16(), &*code(&answer)), (413, "body-too-large"));
    }
    assert_eq!(till.executions(), 0);
    let answer = till.send(upload(Body::new(Limited::new(Body::from("12345678"), 8)))).await;
    assert_eq!(answer.body(), "1: 8");
}

#[tokio::test]
async fn an_upload_that_is_under_way_holds_no_key() {
    let till = measuring(policy());
    let (say, mut pieces) = mpsc::unbounded_channel::<Piece>();
    let body = Body::from_stream(stream::poll_fn(move |cx| pieces.poll_recv(cx)));
    say.send(Ok("12")).unwrap();
    let slow = tokio::spawn({
        let till = till.clone();
        async move { till.send(upload(body)).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(till.send(upload(Body::from("1234"))).await.body(), "1: 4");
    say.send(Ok("34")).unwrap();
    drop(say);
    let answer = slow.await.unwrap();
    assert_eq!((is_replay(&answer), answer.body().as_ref()), (true, b"1: 4".as_ref()));
    assert_eq!(till.executions(), 1);
}

#[tokio::test]
async fn extractors_find_the_body_as_it_was_sent() {
    let routes = Router::new()
        .route("/json", post(|Json(order): Json<Value>| async move { order["a"].to_string() }))
        .route(
            "/form",
            post(|Form(form): Form<Vec<(String, String)>>| async move { format!("{form:?}") }),
        )
        .route("/bytes", post(|body: Bytes| async move { body }))
        .route("/text", post(|body: String| async move { body }))
        .route(
            "/body",
            post(|request: Request<Body>| async move {
                assert_eq!(request.headers()["content-length"], "4");
                request.into_body()
            }),
        );
    let app: Router = Router::new()
        .nest("/api", routes)
        .layer(IdempotencyLayer::new(MemoryStorage::new(), policy()));
    let rows = [
        ("json", "application/json", r#"{"a": [1, "b"]}"#, r#"[1,"b"]"#),
        ("form", "application/x-www-form-urlencoded", "a=1&a=%20", r#"[("a", "1"), ("a", " ")]"#),
        ("bytes", "application/octet-stream", "\0\u{7f}", "\0\u{7f}"),
        ("text", "text/plain", "", ""),
        ("body", "text/plain", "1234", "1234"),
    ];
    for (path, kind, body, wanted) in rows {
        for replayed in [false, true] {
            let request = Request::post(format!("/api/{path}"))
                .header("idempotency-key", "a-key")
                .header("content-type", kind)
                .header("content-length", body.len())
                .body(Body::from(body))
                .unwrap();
            let answer = whole(app.clone().oneshot(request).await.unwrap()).await;
            assert_eq!((answer.status(), is_replay(&answer)), (StatusCode::OK, replayed), "{path}");
            assert_eq!(answer.body(), wanted, "{path}");
        }
    }
}

/// Serves the till over HTTP/1 and HTTP/2. Returns where.
async fn serve(till: &Till) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = till.router.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let router = router.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                router.clone().call(request.map(Body::new))
            });
            tokio::spawn(async move {
                // A client that goes away is no mistake of the server.
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                    .await;
            });
        }
    });
    address
}

type BoxError = Box<dyn Error + Send + Sync>;
type Sent = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

fn client(http2: bool) -> Client<HttpConnector, Sent> {
    Client::builder(TokioExecutor::new()).http2_only(http2).build_http()
}

fn sent(pieces: Vec<Result<&'static str, BoxError>>) -> Sent {
    let frames = pieces.into_iter().map(|piece| piece.map(|text| Frame::data(Bytes::from(text))));
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunked_uploads_arrive_over_http_1_and_2() {
    for http2 in [false, true] {
        let till = measuring(policy().with_max_request_body(20));
        let (client, uri) = (client(http2), format!("http://{}/upload", serve(&till).await));
        let ask = async |body: Sent| {
            let request =
                Request::post(&uri).header("idempotency-key", "a-key").body(body).unwrap();
            let (parts, body) = client.request(request).await?.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Ok::<_, hyper_util::client::legacy::Error>(Response::from_parts(parts, body))
        };
        let pieces = || vec![Ok("0123456789"), Ok("0123456789")];
        let mut long = pieces();
        long.push(Ok("0"));
        let answer = ask(sent(long)).await.unwrap();
        assert_eq!((answer.status().as_u16(), &*code(&answer)), (413, "body-too-large"));
        let mut half = pieces();
        half.push(Err("the client gives up".into()));
        assert!(ask(sent(half)).await.is_err());
        assert_eq!(till.executions(), 0);
        for replayed in [false, true] {
            let answer = ask(sent(pieces())).await.unwrap();
            assert_eq!((is_replay(&answer), answer.body().as_ref()), (replayed, b"1: 20".as_ref()));
            assert_eq!(answer.headers()["content-length"], "5");
        }
        // As one piece of a known length it is the same.
        let whole = Full::new(Bytes::from("01234567890123456789")).map_err(Into::into);
        assert!(is_replay(&ask(whole.boxed_unsync()).await.unwrap()));
        assert_eq!(till.executions(), 1);
    }
}

async fn head_of(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(10), stream.read_u8()).await.expect("it answers");
        head.push(byte.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_first_is_told_to_go_on_or_why_not() {
    let till = measuring(policy().with_max_request_body(8));
    let address = serve(&till).await;
    let head = |length: usize, key: &str| {
        format!(
            "POST /upload HTTP/1.1\r\nhost: a\r\nidempotency-key: {key}\r\n\
             expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head(4, "a-key").as_bytes()).await.unwrap();
    assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 100 "));
    assert_eq!(till.executions(), 0);
    stream.write_all(b"body").await.unwrap();
    assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(till.executions(), 1);
    // Neither what is too long nor what has no key is sent at all.
    for (length, key, status) in [(9, "b-key", "413"), (4, "a, b", "400")] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head(length, key).as_bytes()).await.unwrap();
        let answer = head_of(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    assert_eq!(till.executions(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_in_an_upload_leaves_the_key_free() {
    for head in
        ["content-length: 100\r\n\r\nhalf", "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
    {
        let till = measuring(policy());
        let address = serve(&till).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let start = "POST /upload HTTP/1.1\r\nhost: a\r\nidempotency-key: a-key\r\n";
        stream.write_all(format!("{start}{head}").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
        let whole = format!("{start}content-length: 5\r\n\r\nother");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(whole.as_bytes()).await.unwrap();
        assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(till.executions(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_after_its_upload_finds_the_answer_later() {
    let till = Till::new(MemoryStorage::new(), policy(), |execution, request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        tokio::time::sleep(Duration::from_millis(50)).await;
        Response::new(Body::from(json!([execution, body.len()]).to_string()))
    });
    let address = serve(&till).await;
    let request = "POST /upload HTTP/1.1\r\nhost: a\r\nidempotency-key: a-key\r\n\
                   content-length: 4\r\n\r\nbody";
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    until(Duration::from_secs(10), || async { (till.executions() == 1).then_some(()) }).await;
    drop(stream);
    let answer = || async {
        let answer = till.send(upload(Body::from("body"))).await;
        (answer.status() == 200).then_some(answer)
    };
    let (answer, _) = until(Duration::from_secs(10), answer).await;
    assert_eq!((is_replay(&answer), answer.body().as_ref()), (true, b"[1,4]".as_ref()));
}
