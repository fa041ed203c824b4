//! The service that asks the origin.

use std::{
    convert::Infallible,
    error::Error,
    future, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use http_body_util::{BodyExt, Either, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::{Instant, sleep_until};
use tower::Service;

type BoxError = Box<dyn Error + Send + Sync>;
type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
type ResponseBody = Either<Incoming, Full<Bytes>>;

/// Less than the 5 s that common servers keep a silent connection for. A request that meets a
/// closing connection may have been acted on, so it is not sent again: better not to meet one.
const POOL_IDLE: Duration = Duration::from_secs(2);

/// Passes requests on to the origin. An origin that cannot be reached or breaks off before its
/// answer is a 502, one that takes too long a 504; one that breaks off within its body is an error
/// of the body, which makes the server cut the client's connection.
#[derive(Debug, Clone)]
pub(crate) struct Forward {
    client: Client<HttpConnector, RequestBody>,
    origin: Authority,
    timeout: Duration,
}

impl Forward {
    pub(crate) fn new(origin: Authority, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        // The client sends again what was never written to a connection, and nothing else.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(connector);
        Self { client, origin, timeout }
    }
}

impl<B> Service<Request<B>> for Forward
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.method() == Method::CONNECT {
            // A tunnel to where the client wants is what only a forward proxy can give.
            let refusal = problem(StatusCode::NOT_IMPLEMENTED, "this proxy opens no tunnels");
            return Box::pin(future::ready(Ok(refusal)));
        }
        let sent = Sent::now();
        let request = outbound(request, &self.origin, &sent);
        let (answer, timeout) = (self.client.request(request), self.timeout);
        Box::pin(async move {
            Ok(tokio::select! {
                answer = answer => answer.map_or_else(|error| failed(&error), inbound),
                () = sent.silence(timeout) => {
                    problem(StatusCode::GATEWAY_TIMEOUT, "the origin did not answer in time")
                }
            })
        })
    }
}

/// When the last part of a request was sent: an upload may take longer than the answer to it.
#[derive(Debug, Clone)]
struct Sent(Arc<Mutex<Instant>>);

impl Sent {
    fn now() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn again(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn silence(&self, timeout: Duration) {
        loop {
            let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + timeout;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// The request as the origin gets it.
fn outbound<B>(request: Request<B>, origin: &Authority, sent: &Sent) -> Request<RequestBody>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let (mut parts, body) = request.into_parts();

    // The target's authority counts, where there is one: in HTTP/2, and in the absolute form
    // (RFC 9112 §3.2.2). The origin hears which host the client asked for.
    let host = match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => parts.headers.get(header::HOST).cloned(),
    };
    let takes_trailers = lists(&parts.headers, &header::TE, "trailers");
    strip_hop_by_hop(&mut parts.headers);
    if let Some(host) = host {
        parts.headers.insert(header::HOST, host);
    }
    if takes_trailers {
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    // RFC 9110 §7.6.3: a gateway says so in requests; in responses it need not, and does not.
    let via = match parts.version {
        Version::HTTP_2 => "2 tower-keep",
        Version::HTTP_10 => "1.0 tower-keep",
        _ => "1.1 tower-keep",
    };
    parts.headers.append(header::VIA, HeaderValue::from_static(via));

    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(origin.clone());
    let path = parts.uri.path_and_query().cloned();
    uri.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.uri = Uri::from_parts(uri).expect("a scheme, an authority and a path are a URI");
    parts.version = Version::HTTP_11;

    let body = if body.is_end_stream() {
        body.map_err(Into::into).boxed_unsync()
    } else {
        // Said outright, or else the client sends no body of unknown length with a GET.
        if !parts.headers.contains_key(header::CONTENT_LENGTH) {
            parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let sent = sent.clone();
        body.map_err(Into::into)
            .map_frame(move |frame| {
                sent.again();
                frame
            })
            .boxed_unsync()
    };
    Request::from_parts(parts, body)
}

/// The response as the client gets it.
fn inbound(response: Response<Incoming>) -> Response<ResponseBody> {
    let mut response = response.map(Either::Left);
    strip_hop_by_hop(response.headers_mut());
    // What the origin speaks is no matter of the client's connection (RFC 9110 §6.2).
    *response.version_mut() = Version::HTTP_11;
    response
}

/// Removes the fields that belong to one connection only (RFC 9110 §7.6.1).
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = members(headers, &header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// The members of a list field, over all its lines.
fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

fn lists(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    members(headers, name).any(|other| other.eq_ignore_ascii_case(member))
}

fn failed(error: &legacy::Error) -> Response<ResponseBody> {
    let mut causes = vec![error.to_string()];
    let mut timed_out = false;
    let mut source = error.source();
    while let Some(cause) = source {
        causes.push(cause.to_string());
        let cause_kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        timed_out |= cause_kind == Some(io::ErrorKind::TimedOut);
        source = cause.source();
    }
    eprintln!("proxy: {}", causes.join(": "));
    if timed_out {
        problem(StatusCode::GATEWAY_TIMEOUT, "the origin did not answer in time")
    } else if error.is_connect() {
        problem(StatusCode::BAD_GATEWAY, "the origin cannot be reached")
    } else {
        problem(StatusCode::BAD_GATEWAY, "the origin broke off before it answered")
    }
}

/// An answer of the proxy's own (RFC 9457).
fn problem(status: StatusCode, detail: &str) -> Response<ResponseBody> {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": detail,
    });
    let mut response = Response::new(Either::Right(Full::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
