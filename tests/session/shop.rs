//! A small application with sessions, and clients that keep their cookies as browsers do.

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query},
    http::{HeaderMap, Request, Response, StatusCode, header},
    routing::{delete, get, post},
};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_keep::{
    SessionLayer, Storage,
    session::{
        Policy, Principal, ReadSession, RecentAuth, RequiredSession, Session, SessionCursor,
        SessionError, SessionHandle, SessionMap,
    },
};
use uuid::Uuid;

/// What the application keeps of a visitor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Visitor {
    pub(crate) count: u64,
    pub(crate) theme: String,
    pub(crate) cart: Vec<u32>,
}

/// All routes, without a layer.
pub(crate) fn routes() -> Router {
    Router::new()
        .route("/untouched", get(|| async { "hello" }))
        .route(
            "/read",
            get(|session: ReadSession<Visitor>| async move { Json((*session).clone()) }),
        )
        .route(
            "/maybe",
            get(|session: Option<Session<Visitor>>| async move {
                Json(session.map(|session| (*session).clone()))
            }),
        )
        .route(
            "/required",
            get(|session: RequiredSession<Visitor>| async move { Json((**session).clone()) }),
        )
        .route("/count", post(count))
        .route(
            "/theme/{theme}",
            post(|Path(theme): Path<String>, mut session: Session<Visitor>| async move {
                session.theme = theme;
            }),
        )
        .route("/set/{name}/{value}", post(set))
        .route("/all", get(|session: Session<SessionMap>| async move { all(&session) }))
        .route("/login/{user}", post(login))
        .route("/me", get(|user: Principal| async move { user.into_string() }))
        .route("/recent", get(|_: RecentAuth<60>| async { "recent" }))
        .route("/logout", post(|handle: SessionHandle| async move { handle.destroy().await }))
        .route("/rotate", post(|handle: SessionHandle| async move { handle.rotate().await }))
        .route("/prove", post(|handle: SessionHandle| async move { handle.reauthenticate().await }))
        .route("/token", get(token))
        .route("/flash/{text}", post(flash))
        .route("/flash", get(take_flash))
        .route("/sessions", get(sessions))
        .route("/sessions/{id}", delete(end))
        .route(
            "/sessions/others",
            post(|handle: SessionHandle| async move { handle.end_others().await }),
        )
        .route("/status/{status}", post(answer))
}

/// The application.
pub(crate) fn app(storage: impl Storage, policy: Policy) -> Router {
    routes().layer(SessionLayer::new(storage, policy))
}

async fn count(mut session: Session<Visitor>) -> Result<String, SessionError> {
    let count = session.update(|visitor| {
        visitor.count += 1;
        visitor.count
    });
    Ok(count.await?.to_string())
}

async fn set(
    Path((name, value)): Path<(String, String)>,
    mut session: Session<SessionMap>,
) -> StatusCode {
    session.insert(&name, &value).unwrap();
    StatusCode::NO_CONTENT
}

fn all(session: &SessionMap) -> Json<Value> {
    let values = session.names().map(|name| {
        let value: Option<String> = session.get(name).ok().flatten();
        Some((name.to_owned(), Value::String(value?)))
    });
    Json(values.flatten().collect())
}

async fn login(handle: SessionHandle, Path(user): Path<String>) -> Result<String, SessionError> {
    handle.login(user).await?;
    Ok(handle.public_id().unwrap().to_string())
}

async fn token(handle: SessionHandle) -> Result<String, StatusCode> {
    handle.token().map(|token| token.expose()).ok_or(StatusCode::NOT_FOUND)
}

async fn flash(handle: SessionHandle, Path(text): Path<String>) -> Result<(), SessionError> {
    handle.flash("notice", &text).await
}

async fn take_flash(handle: SessionHandle) -> Result<Json<Option<String>>, SessionError> {
    Ok(Json(handle.take_flash("notice").await?))
}

#[derive(Deserialize)]
struct Listing {
    at: Option<String>,
}

async fn sessions(
    handle: SessionHandle,
    Query(listing): Query<Listing>,
) -> Result<Json<Value>, SessionError> {
    let at = listing.at.map_or(SessionCursor::START, |at| at.parse().unwrap());
    let page = handle.list(at).await?;
    let sessions: Vec<_> = page
        .sessions
        .iter()
        .map(|session| {
            json!({
                "id": session.public_id.to_string(),
                "device": session.device.to_string(),
                "current": session.current,
            })
        })
        .collect();
    Ok(Json(json!({ "sessions": sessions, "next": page.next.map(|next| next.to_string()) })))
}

async fn end(handle: SessionHandle, Path(id): Path<Uuid>) -> Result<(), SessionError> {
    handle.end(id).await
}

/// Changes the session, and answers with this status.
async fn answer(Path(status): Path<u16>, mut session: Session<Visitor>) -> StatusCode {
    session.count += 1;
    StatusCode::from_u16(status).unwrap()
}

/// One who keeps cookies.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    app: Router,
    pub(crate) cookie: Option<String>,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The lines by which cookies are set.
    pub(crate) fn set_cookies(&self) -> Vec<&str> {
        let lines = self.headers.get_all(header::SET_COOKIE).iter();
        lines.map(|line| line.to_str().unwrap()).collect()
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

impl Client {
    pub(crate) fn new(app: &Router) -> Self {
        Self { app: app.clone(), cookie: None }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path).await
    }

    pub(crate) async fn post(&mut self, path: &str) -> Answer {
        self.send("POST", path).await
    }

    pub(crate) async fn delete(&mut self, path: &str) -> Answer {
        self.send("DELETE", path).await
    }

    /// Sends the cookie and keeps what is set.
    pub(crate) async fn send(&mut self, method: &str, path: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(cookie) = &self.cookie {
            request = request.header(header::COOKIE, cookie);
        }
        let answer = self.ask(request.body(Body::empty()).unwrap()).await;
        for line in answer.set_cookies() {
            let pair = line.split(';').next().unwrap();
            self.cookie = Some(pair.to_owned()).filter(|_| !line.contains("Max-Age=0"));
        }
        answer
    }

    /// Sends this request as it is.
    pub(crate) async fn ask(&self, request: Request<Body>) -> Answer {
        let response: Response<Body> = self.app.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status,
            headers: head.headers,
            text: String::from_utf8_lossy(&body).into_owned(),
        }
    }
}
