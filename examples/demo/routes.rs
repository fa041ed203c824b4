//! The routes, each with the layer that it shows.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{Query, Request, State, rejection::JsonRejection},
    http::StatusCode,
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_http::csrf::{CsrfLayer, ProtectionError};
use tower_keep::{
    Limiter, Quota, RateLimitLayer, RequestHead,
    rate_limit::{ClientAddress, KeyExtractor, Outage, Policy, Rejection, Tiers},
    storage::AnyStorage,
};

const TEN_SECONDS: Duration = Duration::from_secs(10);

/// The whole application.
pub(crate) fn app(storage: AnyStorage, address: ClientAddress) -> Router {
    Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/health/live", get(|| async { Json(json!({ "status": "live" })) }))
        .merge(ping(&storage, &address))
        .merge(search(&storage, &address))
        .merge(otp(&storage))
        .merge(crate::products::products(&storage))
        .merge(visitors(&storage, &address))
}

/// What knows who is asking.
fn visitors(storage: &AnyStorage, address: &ClientAddress) -> Router {
    // Browsers say from where a request comes; other clients say nothing, and have no cookies that
    // somebody else's page could use.
    let csrf = CsrfLayer::new().with_rejection_response(|_: ProtectionError| {
        problem(StatusCode::FORBIDDEN, "another site has sent this request")
    });
    Router::new()
        .merge(crate::account::account(storage))
        .merge(crate::payments::payments(storage, address))
        .layer(crate::account::session_layer(storage, address))
        .layer(csrf)
}

/// One quota by client address.
fn ping(storage: &AnyStorage, address: &ClientAddress) -> Router {
    let policy = Policy::new("ping", Quota::sliding_window(10, TEN_SECONDS))
        .with_client_address(address.clone());
    Router::new()
        .route("/api/ping", get(|| async { Json(json!({ "pong": true })) }))
        .layer(RateLimitLayer::new(storage.clone(), policy))
}

/// Tiers by API key. The key is checked outside of the limit, so that nobody can invent one; those
/// who try are counted by address.
fn search(storage: &AnyStorage, address: &ClientAddress) -> Router {
    let tiers = Tiers::new()
        .tier(
            "free",
            [
                Quota::sliding_window(5, TEN_SECONDS),
                Quota::sliding_window(50, Duration::from_secs(3_600)),
            ],
        )
        .tier("pro", [Quota::sliding_window(50, TEN_SECONDS)]);
    let by_key = KeyExtractor::from_fn(|head| {
        head.extensions().get::<Customer>().map(|customer| customer.key)
    });
    let policy = Policy::new("search", Quota::sliding_window(2, TEN_SECONDS))
        .with_client_address(address.clone())
        .with_key(by_key.or(KeyExtractor::client_address()))
        .with_tiers(tiers, |head| head.extensions().get::<Customer>().map(|it| it.tier));
    let failed_keys = Policy::new("failed-keys", Quota::sliding_window(20, TEN_SECONDS));
    let gate =
        Gate { failed_keys: Limiter::new(storage.clone(), failed_keys), address: address.clone() };
    Router::new()
        .route("/api/search", get(find))
        .layer(RateLimitLayer::new(storage.clone(), policy))
        .layer(middleware::from_fn_with_state(gate, check_key))
}

#[derive(Clone, Copy)]
struct Customer {
    key: &'static str,
    tier: &'static str,
}

const CUSTOMERS: [Customer; 2] =
    [Customer { key: "demo-free", tier: "free" }, Customer { key: "demo-pro", tier: "pro" }];

#[derive(Clone)]
struct Gate {
    failed_keys: Limiter,
    address: ClientAddress,
}

async fn check_key(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let mut keys = request.headers().get_all("x-api-key").iter();
    let (first, second) = (keys.next(), keys.next());
    let customer = CUSTOMERS.iter().find(|it| first.is_some_and(|key| key == it.key));
    match (first, customer, second) {
        (None, ..) => next.run(request).await,
        (Some(_), Some(customer), None) => {
            request.extensions_mut().insert(*customer);
            next.run(request).await
        }
        _ => {
            let Some(client) = gate.address.identity(RequestHead::new(&request)) else {
                return problem(StatusCode::INTERNAL_SERVER_ERROR, "no client address");
            };
            match gate.failed_keys.check(client).await.map_err(Rejection::from) {
                Err(rejection) => rejection.into_response(),
                Ok(decision) => match decision.into_result() {
                    Err(rejection) => rejection.into_response(),
                    Ok(_) => problem(StatusCode::UNAUTHORIZED, "this API key is not known"),
                },
            }
        }
    }
}

#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    q: String,
}

async fn find(Query(search): Query<Search>) -> Json<Value> {
    const WARES: [&str; 3] = ["lantern", "ladder", "rope"];
    let wanted = search.q.to_lowercase();
    let results: Vec<_> = WARES.into_iter().filter(|ware| ware.contains(&wanted)).collect();
    Json(json!({ "q": search.q, "results": results }))
}

/// Never more than three codes to one number in any minute: a quota that is checked by the handler,
/// because the number is in the body.
fn otp(storage: &AnyStorage) -> Router {
    let policy = Policy::new("otp", Quota::strict_window(3, Duration::from_secs(60)))
        .with_outage(Outage::Local);
    Router::new()
        .route("/api/otp", post(send_code))
        .with_state(Limiter::new(storage.clone(), policy))
}

#[derive(Deserialize)]
struct Otp {
    phone: String,
}

async fn send_code(
    State(limiter): State<Limiter>,
    body: Result<Json<Otp>, JsonRejection>,
) -> Result<Json<Value>, Response> {
    let phone = match body {
        // Spaces and dashes do not make another number.
        Ok(Json(otp)) => otp.phone.chars().filter(|c| c.is_ascii_digit() || *c == '+').collect(),
        Err(_) => String::new(),
    };
    if !(5..=20).contains(&phone.len()) {
        return Err(problem(
            StatusCode::BAD_REQUEST,
            "send {\"phone\": \"+49301234567\"} as application/json",
        ));
    }
    let checked = limiter.check(phone).await.map_err(Rejection::from);
    let decision =
        checked.and_then(|decision| decision.into_result()).map_err(IntoResponse::into_response)?;
    if let Err(error) = send().await {
        // What was not sent does not count.
        let _ = limiter.refund(&decision).await;
        return Err(problem(StatusCode::BAD_GATEWAY, error));
    }
    Ok(Json(json!({ "sent": true })))
}

/// Stands for the provider that sends the message.
async fn send() -> Result<(), &'static str> {
    Ok(())
}

pub(crate) fn problem(status: StatusCode, detail: &str) -> Response {
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": detail,
    });
    (status, [("content-type", "application/problem+json")], body.to_string()).into_response()
}
