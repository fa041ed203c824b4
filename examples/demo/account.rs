//! Who is asking, what lies in the cart, and the sessions of a user.
//!
//! ```text
//! curl -c jar -b jar --json '{"user": "alice"}' http://127.0.0.1:3000/api/login
//! curl -c jar -b jar http://127.0.0.1:3000/api/me
//! ```
//!
//! A client that keeps no cookies logs in with `{"user": "alice", "bearer": true}` and is told a
//! `token` for `Authorization: Bearer`.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{
        Path,
        rejection::{JsonRejection, PathRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_keep::{
    CacheLayer, SessionLayer, cache,
    rate_limit::ClientAddress,
    session::{
        CookieSettings, Device, Policy, Principal, ReadSession, Session, SessionCursor,
        SessionError, SessionHandle, SessionInfo,
    },
    storage::AnyStorage,
};
use uuid::Uuid;

use crate::{products, routes::problem};

/// Of one product in one cart.
const MOST: u32 = 1_000_000;

pub(crate) fn account(storage: &AnyStorage) -> Router {
    let shared_cache = CacheLayer::new(storage.clone(), cache::Policy::http());
    Router::new()
        .route("/api/whoami", get(whoami).layer(shared_cache))
        .route("/api/login", post(login))
        .route("/api/logout", post(logout))
        .route("/api/me", get(me))
        .route("/api/cart", get(show_cart).post(add_to_cart))
        .route("/api/sessions", get(sessions))
        .route("/api/sessions/{handle}", delete(end))
        .route("/api/sessions/revoke-others", post(end_others))
}

pub(crate) fn session_layer(storage: &AnyStorage, address: &ClientAddress) -> SessionLayer {
    let address = address.clone();
    let policy = Policy::new()
        // The demo speaks plain HTTP, and not every client sends a `Secure` cookie to
        // http://127.0.0.1:3000 then. A service behind TLS leaves this line out.
        .with_cookie(CookieSettings::new().insecure_for_development())
        .with_bearer()
        .with_device(move |head| {
            let device = Device::of(head);
            match address.resolve(head) {
                Some(address) => device.with_address(address),
                None => device,
            }
        });
    SessionLayer::new(storage.clone(), policy)
}

/// What the shop keeps of a visitor.
#[derive(Default, Serialize, Deserialize)]
struct Visitor {
    visits: u64,
    /// How many of which product.
    cart: BTreeMap<u32, u32>,
}

impl Visitor {
    fn add(&mut self, product: u32, quantity: u32) -> bool {
        let held = self.cart.get(&product).copied().unwrap_or(0);
        let fits = quantity <= MOST.saturating_sub(held);
        if fits {
            self.cart.insert(product, held + quantity);
        }
        fits
    }

    fn items(&self) -> Json<Value> {
        let items = self.cart.iter();
        let items: Vec<_> = items
            .map(|(product, quantity)| json!({ "product": product, "quantity": quantity }))
            .collect();
        Json(json!({ "items": items }))
    }
}

/// The mistake is on purpose: the answer depends on who is asking, yet says that everybody may have
/// it. As the session was read, the cache does not store it, and `public` does not reach the client.
async fn whoami(session: ReadSession<Visitor>) -> impl IntoResponse {
    let user = session.handle().principal();
    ([(header::CACHE_CONTROL, "public, max-age=60")], Json(json!({ "user": user })))
}

#[derive(Deserialize)]
struct Credentials {
    user: String,
    #[serde(default)]
    bearer: bool,
}

/// In a real shop the password is checked here, when the handle is there already: a login that began
/// before all sessions of the user were ended does not survive it.
async fn login(
    handle: SessionHandle,
    body: Result<Json<Credentials>, JsonRejection>,
) -> Result<Json<Value>, Response> {
    let wrong = "send {\"user\": \"alice\"} as application/json";
    let Ok(Json(Credentials { user, bearer })) = body else {
        return Err(problem(StatusCode::BAD_REQUEST, wrong));
    };
    let (trimmed, control) = (user.trim(), user.contains(char::is_control));
    if trimmed.is_empty() || trimmed != user || control || user.len() > 64 {
        return Err(problem(StatusCode::BAD_REQUEST, wrong));
    }
    handle.login(user.as_str()).await.map_err(IntoResponse::into_response)?;
    let mut answer = json!({ "user": user });
    if let Some(token) = handle.token().filter(|_| bearer) {
        answer["token"] = token.expose().into();
    }
    Ok(Json(answer))
}

async fn logout(handle: SessionHandle) -> Result<Json<Value>, SessionError> {
    handle.destroy().await?;
    Ok(Json(json!({ "user": null })))
}

async fn me(user: Principal, mut session: Session<Visitor>) -> Result<Json<Value>, SessionError> {
    let visits = session.update(|visitor| {
        visitor.visits += 1;
        visitor.visits
    });
    Ok(Json(json!({ "visits": visits.await?, "user": *user })))
}

async fn show_cart(session: ReadSession<Visitor>) -> Json<Value> {
    session.items()
}

#[derive(Deserialize)]
struct Item {
    product: u32,
    quantity: u32,
}

async fn add_to_cart(
    mut session: Session<Visitor>,
    body: Result<Json<Item>, JsonRejection>,
) -> Result<Json<Value>, Response> {
    let Ok(Json(Item { product, quantity: quantity @ 1..=MOST })) = body else {
        let wrong = "send {\"product\": 1, \"quantity\": 2} as application/json";
        return Err(problem(StatusCode::BAD_REQUEST, wrong));
    };
    if !products::exists(product) {
        return Err(problem(StatusCode::NOT_FOUND, "there is no such product"));
    }
    let added = session.update(|visitor| visitor.add(product, quantity));
    match added.await.map_err(IntoResponse::into_response)? {
        true => Ok(session.items()),
        false => Err(problem(StatusCode::BAD_REQUEST, "the cart cannot hold so many of a product")),
    }
}

async fn sessions(handle: SessionHandle) -> Result<Json<Value>, SessionError> {
    let mut sessions: Vec<SessionInfo> = Vec::new();
    let mut next = Some(SessionCursor::START);
    while let Some(at) = next {
        let page = handle.list(at).await?;
        for session in page.sessions {
            // Sessions may move between pages meanwhile.
            if sessions.iter().all(|seen| seen.public_id != session.public_id) {
                sessions.push(session);
            }
        }
        next = page.next;
    }
    let sessions: Vec<_> = sessions.iter().map(describe).collect();
    Ok(Json(json!({ "sessions": sessions })))
}

/// Times are in seconds since 1970.
fn describe(session: &SessionInfo) -> Value {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({
        "handle": session.public_id.to_string(),
        "created": seconds(session.created),
        "last_use": seconds(session.last_use),
        "device": session.device.to_string(),
        "current": session.current,
    })
}

/// It is gone afterwards, whether it was there or not: nobody learns which handles others have.
async fn end(
    _: Principal,
    handle: SessionHandle,
    public_id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Response> {
    let Some(public_id) = public_id.ok().and_then(|Path(text)| text.parse::<Uuid>().ok()) else {
        return Err(problem(StatusCode::BAD_REQUEST, "this is not the handle of a session"));
    };
    handle.end(public_id).await.map_err(IntoResponse::into_response)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn end_others(handle: SessionHandle) -> Result<StatusCode, SessionError> {
    handle.end_others().await?;
    Ok(StatusCode::NO_CONTENT)
}
