//! Payments that are made once, however often they are asked for.
//!
//! ```text
//! curl -i --json '{"amount": 100, "currency": "EUR"}' -H 'Idempotency-Key: order-17' \
//!     http://127.0.0.1:3000/api/payments
//! curl http://127.0.0.1:3000/api/payments/count
//! ```
//!
//! The same once more is answered by the same payment, and says `Idempotent-Replayed: true`.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::{
    IdempotencyLayer, RequestHead, Storage,
    idempotency::{Idempotency, Policy, Repeat},
    rate_limit::ClientAddress,
    session::{SessionError, SessionHandle},
    storage::{self, AnyStorage, Get, Identity, Key, Name, Put, PutOutcome, When},
};
use uuid::Uuid;

use crate::routes::problem;

/// What a provider of payments would take.
const SLOW: Duration = Duration::from_millis(300);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub(crate) fn payments(storage: &AnyStorage, address: &ClientAddress) -> Router {
    let address = address.clone();
    let policy = Policy::scope_async(move |head| whose(head, &address))
        .with_name("payments")
        .with_required_key()
        // The handler says when nothing can be taken back any more. If the process dies after that,
        // nobody charges again before somebody has looked at what came of it.
        .with_commit_point()
        .with_repeat(Repeat::AtMostOnce);
    Router::new()
        .route("/api/payments", post(pay))
        .layer(IdempotencyLayer::new(storage.clone(), policy))
        .route("/api/payments/count", get(count))
        .with_state(Ledger { storage: storage.clone() })
}

/// The user's keys are the user's, from whatever address; those of visitors are their address's.
fn whose(
    head: RequestHead<'_>,
    address: &ClientAddress,
) -> impl Future<Output = Result<Option<String>, SessionError>> + Send + use<> {
    let session: Option<SessionHandle> = SessionHandle::of(head);
    let address = address.resolve(head);
    async move {
        let Some(session) = session else { return Ok(None) };
        // While the session cannot be read nobody may pass for a visitor: an error is a 503.
        Ok(match session.identify().await? {
            Some(user) => Some(format!("user {user}")),
            None => address.map(|address| format!("address {address}")),
        })
    }
}

#[derive(Deserialize)]
struct Order {
    amount: i64,
    currency: String,
}

async fn pay(
    State(ledger): State<Ledger>,
    attempt: Idempotency,
    order: Result<Json<Order>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Response> {
    // Nothing is done yet: what is answered here frees the key, and the client may mend the order.
    let Ok(Json(Order { amount, currency })) = order else {
        let wrong = "send {\"amount\": 100, \"currency\": \"EUR\"} as application/json";
        return Err(problem(StatusCode::BAD_REQUEST, wrong));
    };
    if amount <= 0 || currency.len() != 3 || !currency.bytes().all(|it| it.is_ascii_uppercase()) {
        let wrong = "an amount is above 0, and a currency has three letters";
        return Err(problem(StatusCode::UNPROCESSABLE_ENTITY, wrong));
    }
    // From here on the answer is kept, whatever it is. Without an error the key is ours.
    attempt.begin().await.map_err(IntoResponse::into_response)?;
    // A provider that takes keys itself is handed `attempt.child_key("charge")`: each attempt of this
    // order has the same, so that the call is safe to repeat, and `Repeat::AtLeastOnce` will do.
    match ledger.charge(amount).await {
        Ok(payment) => {
            let receipt = json!({ "payment": payment, "amount": amount });
            Ok((StatusCode::CREATED, Json(receipt)))
        }
        Err(error) => {
            tracing::warn!(%error, "a charge may not have been made");
            Err(problem(StatusCode::BAD_GATEWAY, "it is not known whether the charge was made"))
        }
    }
}

async fn count(State(ledger): State<Ledger>) -> Result<Json<Value>, Response> {
    let counted = ledger.count().await.map_err(|error| {
        tracing::warn!(%error, "the charges cannot be counted");
        problem(StatusCode::SERVICE_UNAVAILABLE, "the charges cannot be counted for now")
    });
    Ok(Json(json!({ "count": counted? })))
}

/// Stands for the provider of payments: it counts what it has really charged, one for all processes
/// on a Redis.
#[derive(Clone)]
struct Ledger {
    storage: AnyStorage,
}

impl Ledger {
    async fn charge(&self, amount: i64) -> storage::Result<Uuid> {
        tokio::time::sleep(SLOW).await;
        if amount == 13 {
            panic!("every shop has a bug that only some orders meet");
        }
        let (mut when, mut charges) = (When::Absent, 0);
        let one_more = |charges: u64| Put::new((charges + 1).to_string().into(), YEAR);
        while let PutOutcome::Conflict(found) =
            self.storage.put(&ledger(), one_more(charges).with_condition(when)).await?
        {
            (when, charges) = match found {
                Some(entry) => (When::Version(entry.version), number(&entry.value)),
                None => (When::Absent, 0),
            };
        }
        Ok(Uuid::new_v4())
    }

    async fn count(&self) -> storage::Result<u64> {
        let found = self.storage.get(&ledger(), Get::new()).await?;
        Ok(found.entry.map_or(0, |entry| number(&entry.value)))
    }
}

fn number(value: &[u8]) -> u64 {
    str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn ledger() -> Key {
    Key::new(&Name::new("demo"), &Name::new("charges"), Identity::global())
}
