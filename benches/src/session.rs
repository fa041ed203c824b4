//! The contestants of the sessions' figures: one route, asked in several ways, with several sessions.

use std::{hint::black_box, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{
        HeaderMap, HeaderValue, Method, Request, StatusCode,
        header::{COOKIE, SET_COOKIE},
    },
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tower::Service;
use tower_keep::{
    MemoryStorage, SessionLayer, Storage,
    session::{Policy, ReadSession, Session, SessionError, SessionHandle},
};
use tower_sessions::{Expiry, MemoryStore, SessionManagerLayer, SessionStore};

use crate::{Noop, cache};

/// As a shop keeps it of a visitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Visitor {
    pub visits: u64,
    pub theme: String,
    pub cart: Vec<u32>,
}

impl Default for Visitor {
    fn default() -> Self {
        Self { visits: 0, theme: "dark".to_owned(), cart: vec![1_001, 2_002, 3_003] }
    }
}

pub const BARE: &str = "bare axum route";
pub const NOOP: &str = "no-op layer";
pub const KEEP: &str = "tower-keep";
pub const RIVAL: &str = "tower-sessions";

const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);
const COOKIE_NAME: &str = "__Host-sid";

/// Names of questions: the method and the path, and who asks.
#[derive(Clone, Copy)]
pub struct Question {
    pub name: &'static str,
    path: &'static str,
    who: Who,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Sends no cookie at all.
    Nobody,
    /// Sends cookies, but none of a session.
    Stranger,
    Visitor,
    User,
}

pub const QUESTIONS: [Question; 9] = [
    Question { name: "untouched, no cookie", path: "/untouched", who: Who::Nobody },
    Question { name: "untouched", path: "/untouched", who: Who::Visitor },
    Question { name: "read, no session", path: "/read", who: Who::Stranger },
    Question { name: "read", path: "/read", who: Who::Visitor },
    Question { name: "read, logged in", path: "/read", who: Who::User },
    Question { name: "write", path: "/write", who: Who::Visitor },
    Question { name: "write, logged in", path: "/write", who: Who::User },
    Question { name: "update", path: "/update", who: Who::Visitor },
    Question { name: "first write", path: "/write", who: Who::Stranger },
];

/// A question, and who is asked.
#[derive(Clone)]
pub struct Contestant {
    pub question: Question,
    pub keeper: &'static str,
    cookie: Option<HeaderValue>,
    app: Router,
}

impl Contestant {
    /// Sends one request and reads the answer to its end.
    pub async fn send(&mut self) -> StatusCode {
        let request = ask(self.question.path, self.cookie.clone());
        cache::ask(&mut self.app, request).await.0
    }

    /// For profilers.
    pub fn name(&self) -> String {
        format!("{}: {}", self.question.name, self.keeper)
    }
}

/// All contestants; each question begins with the bare route and the layer that does nothing.
pub async fn contestants() -> Vec<Contestant> {
    let mut all = Vec::new();
    for question in QUESTIONS {
        for (keeper, mut app) in [
            (BARE, idle_routes()),
            (NOOP, idle_routes().layer(Noop)),
            (KEEP, keep(MemoryStorage::new())),
            (RIVAL, rival(MemoryStore::default())),
        ] {
            if keeper == RIVAL && question.who == Who::User {
                // It knows no principals.
                continue;
            }
            let cookie = match question.who {
                Who::Nobody => None,
                Who::Stranger => Some(cookies(None)),
                Who::Visitor => Some(begin(&mut app, "/write").await),
                Who::User => Some(begin(&mut app, "/login").await),
            };
            all.push(Contestant { question, keeper, cookie, app });
        }
    }
    all
}

/// Begins a session, and returns the cookies with which it goes on.
pub async fn begin(app: &mut Router, path: &str) -> HeaderValue {
    // A router is always ready.
    let Ok(response) = app.call(ask(path, Some(cookies(None)))).await;
    assert_eq!(response.status(), StatusCode::OK);
    let line = response.headers().get(SET_COOKIE).map(|line| line.to_str().expect("a cookie"));
    cookies(line.and_then(|line| line.split(';').next()))
}

/// What a browser sends: ours is one of three.
pub fn cookies(own: Option<&str>) -> HeaderValue {
    let own = own.unwrap_or("consent=necessary");
    let line = format!("theme=dark; {own}; _ga=GA1.1.1234567890.1760000000");
    line.try_into().expect("cookies")
}

/// A request with the fields that most have.
pub fn ask(path: &str, cookie: Option<HeaderValue>) -> Request<Body> {
    let method = if path == "/read" || path == "/untouched" { Method::GET } else { Method::POST };
    let mut request = cache::request(method, path);
    if let Some(cookie) = cookie {
        request.headers_mut().insert(COOKIE, cookie);
    }
    request
}

/// The same routes without sessions.
fn idle_routes() -> Router {
    Router::new()
        .route("/untouched", get(async || "done"))
        .route("/read", get(async || "done"))
        .route("/write", post(async || "done"))
        .route("/update", post(async || "done"))
        .route("/login", post(async || "done"))
}

/// The timeout is one that no operation reaches when the machine is busy: a contestant that answers
/// 503 would end the run.
pub fn policy() -> Policy {
    Policy::new().with_idle_timeout(WEEK).with_timeout(Duration::from_secs(10))
}

/// With sessions of ours.
pub fn keep(storage: impl Storage) -> Router {
    keep_routes().layer(SessionLayer::new(storage, policy()))
}

fn keep_routes() -> Router {
    Router::new()
        .route("/untouched", get(async || "done"))
        .route("/read", get(keep_read))
        .route("/write", post(keep_write))
        .route("/update", post(keep_update))
        .route("/login", post(keep_login))
}

async fn keep_read(session: ReadSession<Visitor>) -> &'static str {
    black_box(&*session);
    "done"
}

async fn keep_write(mut session: Session<Visitor>) -> &'static str {
    session.visits += 1;
    "done"
}

async fn keep_update(mut session: Session<Visitor>) -> Result<&'static str, SessionError> {
    session.update(|visitor| visitor.visits += 1).await?;
    Ok("done")
}

/// The name of the user comes with the request, and there is something in the session.
async fn keep_login(
    handle: SessionHandle,
    headers: HeaderMap,
    mut session: Session<Visitor>,
) -> Result<&'static str, SessionError> {
    session.visits += 1;
    // The login takes it over.
    drop(session);
    let user = headers.get("x-user").and_then(|user| user.to_str().ok()).unwrap_or("alice");
    handle.login(user).await?;
    Ok("done")
}

/// With sessions of `tower-sessions`.
pub fn rival(store: impl SessionStore + Clone) -> Router {
    let idle = Expiry::OnInactivity(WEEK.try_into().expect("a week"));
    Router::new()
        .route("/untouched", get(async || "done"))
        .route("/read", get(rival_read))
        .route("/write", post(rival_write))
        // It has no compare-and-swap: of two at the same time one is lost.
        .route("/update", post(rival_write))
        .layer(SessionManagerLayer::new(store).with_name(COOKIE_NAME).with_expiry(idle))
}

const KEY: &str = "visitor";

async fn rival_read(session: tower_sessions::Session) -> &'static str {
    black_box(session.get::<Visitor>(KEY).await.expect("a session").unwrap_or_default());
    "done"
}

async fn rival_write(session: tower_sessions::Session) -> &'static str {
    let mut visitor = session.get::<Visitor>(KEY).await.expect("a session").unwrap_or_default();
    visitor.visits += 1;
    session.insert(KEY, visitor).await.expect("a session");
    "done"
}
