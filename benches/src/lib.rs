//! The contestants of the rate-limit figures, all behind one axum route, and what measures them. Those
//! of the cache and of sessions have modules of their own.

pub mod cache;
pub mod idempotency;
pub mod measure;
pub mod rates;
pub mod server;
pub mod session;

use std::{
    convert::Infallible,
    net::SocketAddr,
    num::NonZeroU32,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, State},
    middleware::{Next, from_fn_with_state},
    routing::get,
};
use governor::{
    clock::{Clock, DefaultClock},
    state::keyed::DefaultKeyedStateStore,
};
use http::{Request, Response, StatusCode, header};
use tower::{Layer, Service};
use tower_governor::{GovernorLayer, governor::GovernorConfigBuilder};
use tower_keep::{MemoryStorage, Quota, RateLimitLayer, rate_limit::Policy};

const HOUR: Duration = Duration::from_secs(3_600);
/// Never reached; the headers then have numbers of ten digits, the longest that there are.
const ENOUGH: u32 = 4_000_000_000;

/// A rate limiter, or something to compare one with.
#[derive(Clone)]
pub struct Contestant {
    pub name: &'static str,
    pub app: Router,
    /// The status of its responses once it is warm.
    pub status: StatusCode,
    /// How many clients send requests, in turn.
    pub clients: u32,
}

impl Contestant {
    fn new(name: &'static str, app: Router) -> Self {
        Self { name, app, status: StatusCode::OK, clients: 1 }
    }

    fn refusing(self) -> Self {
        Self { status: StatusCode::TOO_MANY_REQUESTS, ..self }
    }

    fn with_clients(self, clients: u32) -> Self {
        Self { clients, ..self }
    }

    /// Sends one request, from the next client, and drops the response.
    pub fn send(&mut self, turn: u32) -> StatusCode {
        respond(&mut self.app, request(turn % self.clients)).status()
    }
}

/// What stands between two figures: nothing.
pub const BARE: &str = "bare axum route";
/// The peer that figures are divided by.
pub const RIVAL: &str = "tower_governor + headers";

/// All contestants, the bare route first.
pub fn contestants() -> Vec<Contestant> {
    let route = || Router::new().route("/", get(async || "hello"));
    let keep = |quotas: &[Quota]| {
        let policy = Policy::try_new("api", quotas.iter().copied()).expect("quotas of one policy");
        route().layer(RateLimitLayer::new(MemoryStorage::new(), policy))
    };
    let sliding = [Quota::sliding_window(ENOUGH, HOUR)];
    let many = 100_000;
    vec![
        Contestant::new(BARE, route()),
        Contestant::new("no-op layer", route().layer(Noop)),
        Contestant::new("tower-keep, all headers", keep(&sliding)),
        Contestant::new("tower-keep, limit 999, 1k clients", keep(&usual())).with_clients(1_000),
        Contestant::new(
            "tower-keep, no headers",
            route().layer(RateLimitLayer::new(
                MemoryStorage::new(),
                Policy::new("api", sliding[0])
                    .with_headers(tower_keep::rate_limit::Headers::none()),
            )),
        ),
        Contestant::new("tower-keep, token bucket", keep(&[bucket()])),
        Contestant::new("tower-keep, three quotas", keep(&three())),
        Contestant::new("tower-keep, 100k clients", keep(&sliding)).with_clients(many),
        Contestant::new("tower-keep, refused", keep(&[Quota::sliding_window(1, HOUR)])).refusing(),
        Contestant::new("tower_governor", rival(ENOUGH, false)),
        Contestant::new(RIVAL, rival(ENOUGH, true)),
        Contestant::new("tower_governor + headers, limit 999, 1k", rival(999, true))
            .with_clients(1_000),
        Contestant::new("tower_governor + headers, 100k", rival(ENOUGH, true)).with_clients(many),
        Contestant::new("tower_governor + headers, refused", rival(1, true)).refusing(),
        Contestant::new("governor by hand + 2 headers", by_hand(ENOUGH)),
        Contestant::new("governor by hand, 100k", by_hand(ENOUGH)).with_clients(many),
        Contestant::new("governor by hand, refused", by_hand(1)).refusing(),
    ]
}

/// Numbers as quotas usually have them.
fn usual() -> [Quota; 1] {
    [Quota::sliding_window(999, Duration::from_secs(60))]
}

fn bucket() -> Quota {
    Quota::token_bucket(ENOUGH, HOUR, ENOUGH)
}

fn three() -> [Quota; 3] {
    [1, 2, 3].map(|hours| Quota::sliding_window(ENOUGH, hours * HOUR))
}

/// A layer that does nothing: what axum charges for any.
#[derive(Clone)]
pub(crate) struct Noop;

impl<S> Layer<S> for Noop {
    type Service = NoopService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        NoopService(inner)
    }
}

#[derive(Clone)]
pub(crate) struct NoopService<S>(S);

impl<S: Service<R>, R> Service<R> for NoopService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.0.call(request)
    }
}

fn rival(burst: u32, headers: bool) -> Router {
    let route = Router::new().route("/", get(async || "hello"));
    let mut config = GovernorConfigBuilder::default();
    // One unit comes back in an hour where everything is to be refused.
    config.burst_size(burst).period(if burst == 1 { HOUR } else { Duration::from_nanos(1) });
    if headers {
        let config = config.use_headers().finish().expect("a quota");
        route.layer(GovernorLayer::new(Arc::new(config)))
    } else {
        let config = config.finish().expect("a quota");
        route.layer(GovernorLayer::new(Arc::new(config)))
    }
}

type Keyed =
    governor::RateLimiter<SocketAddr, DefaultKeyedStateStore<SocketAddr>, KeptClock, Middleware>;
type Middleware = governor::middleware::StateInformationMiddleware;

/// `DefaultClock` costs 30 microseconds to make in some virtual machines; a careful user makes one.
type KeptClock = DefaultClock;

#[derive(Clone)]
struct ByHand {
    limiter: Arc<Keyed>,
    clock: KeptClock,
}

fn by_hand(burst: u32) -> Router {
    let burst = NonZeroU32::new(burst).expect("a burst");
    let period = if burst.get() == 1 { HOUR } else { Duration::from_nanos(1) };
    let quota = governor::Quota::with_period(period).expect("a period").allow_burst(burst);
    let state = ByHand {
        limiter: Arc::new(governor::RateLimiter::keyed(quota).with_middleware()),
        clock: DefaultClock::default(),
    };
    Router::new().route("/", get(async || "hello")).layer(from_fn_with_state(state, check_by_hand))
}

async fn check_by_hand(
    State(state): State<ByHand>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request<Body>,
    next: Next,
) -> Response<Body> {
    match state.limiter.check_key(&peer) {
        Ok(snapshot) => {
            let mut response = next.run(request).await;
            let headers = response.headers_mut();
            headers.insert("x-ratelimit-limit", snapshot.quota().burst_size().get().into());
            headers.insert("x-ratelimit-remaining", snapshot.remaining_burst_capacity().into());
            response
        }
        Err(not_until) => {
            let wait = not_until.wait_time_from(state.clock.now()).as_secs() + 1;
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response.headers_mut().insert(header::RETRY_AFTER, wait.into());
            response
        }
    }
}

/// A request from a client of this number, as `axum::serve` would make it.
pub fn request(client: u32) -> Request<Body> {
    let [a, b, c, _] = (client << 8).to_be_bytes();
    let peer = SocketAddr::from(([10 ^ a, b, c, 7], 50_000));
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(ConnectInfo(peer));
    request
}

/// Calls the route, which never waits.
pub fn respond(app: &mut Router, request: Request<Body>) -> Response<Body> {
    let mut context = Context::from_waker(Waker::noop());
    let service: &mut dyn Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = _> =
        app;
    assert!(service.poll_ready(&mut context).is_ready());
    match pin!(service.call(request)).poll(&mut context) {
        Poll::Ready(Ok(response)) => response,
        Poll::Ready(Err(never)) => match never {},
        Poll::Pending => panic!("a route without a network never waits"),
    }
}
