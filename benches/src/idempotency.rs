//! The contestants of the figures of idempotency keys: one route that takes a payment, asked in
//! several ways.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{Request, StatusCode},
    routing::post,
};
use tower::Service;
use tower_keep::{
    IdempotencyLayer, MemoryStorage, Storage,
    idempotency::{FingerprintRules, Policy},
};

use crate::Noop;

pub const BARE: &str = "bare axum route";
pub const NOOP: &str = "no-op layer";
pub const KEEP: &str = "tower-keep";

/// What a client of a payment service sends, about.
const BODY: &str =
    r#"{"amount":100,"currency":"EUR","customer":"c_81723","description":"two lanterns"}"#;

/// How a request comes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Question {
    WithoutKey,
    First,
    Replay,
}

impl Question {
    pub const ALL: [Self; 3] = [Self::WithoutKey, Self::First, Self::Replay];

    pub fn name(self) -> &'static str {
        match self {
            Self::WithoutKey => "without a key",
            Self::First => "first call",
            Self::Replay => "replay",
        }
    }
}

/// A question, and who is asked.
#[derive(Clone)]
pub struct Contestant {
    pub question: Question,
    pub keeper: &'static str,
    app: Router,
}

/// Tells first calls from one another.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Contestant {
    pub fn new(question: Question, keeper: &'static str, app: Router) -> Self {
        Self { question, keeper, app }
    }

    /// As a profiler's command line has it.
    pub fn name(&self) -> String {
        format!("{}, {}", self.question.name(), self.keeper)
    }

    /// One request, its response read.
    pub async fn send(&mut self) -> StatusCode {
        let request = Request::post("/payments").header("content-type", "application/json");
        let request = match self.question {
            Question::WithoutKey => request,
            // As long as a UUID.
            Question::First => {
                let key = format!("8e03978e-40d5-43e8-bc93-{:012x}", NEXT.fetch_add(1, Relaxed));
                request.header("idempotency-key", key)
            }
            Question::Replay => {
                request.header("idempotency-key", "8e03978e-40d5-43e8-bc93-6894a57f9324")
            }
        };
        let request = request.body(Body::from(BODY)).expect("a request");
        let response = self.app.call(request).await.expect("a route does not fail");
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await;
        assert!(!body.expect("a body").is_empty());
        status
    }
}

pub fn route() -> Router {
    Router::new().route(
        "/payments",
        post(|body: Bytes| async move {
            assert!(!body.is_empty());
            (StatusCode::CREATED, r#"{"payment":"p_91823","amount":100}"#)
        }),
    )
}

/// The layer as it is measured.
pub fn layer(storage: impl Storage) -> IdempotencyLayer {
    let policy = Policy::scope(|_| Some("user 17")).with_fingerprint(FingerprintRules::new());
    IdempotencyLayer::new(storage, policy)
}

/// All of them, each with a storage of its own.
pub fn contestants() -> Vec<Contestant> {
    let mut all = Vec::new();
    for question in Question::ALL {
        let apps = [
            (BARE, route()),
            (NOOP, route().layer(Noop)),
            (KEEP, route().layer(layer(MemoryStorage::new()))),
        ];
        all.extend(apps.map(|(keeper, app)| Contestant::new(question, keeper, app)));
    }
    all
}
