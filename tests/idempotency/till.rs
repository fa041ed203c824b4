//! A till that must not charge twice, and what is said to it.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;
use tower_keep::{IdempotencyLayer, Storage, idempotency::Policy};

/// One process with the layer around a handler that counts how often it runs.
#[derive(Clone)]
pub(crate) struct Till {
    pub(crate) router: Router,
    pub(crate) layer: IdempotencyLayer,
    pub(crate) executions: Arc<AtomicUsize>,
}

impl Till {
    /// A till whose handler does this after it was counted.
    pub(crate) fn new<F>(
        storage: impl Storage,
        policy: Policy,
        handler: impl Fn(usize, Request<Body>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let executions = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&executions);
        let handle =
            move |request: Request<Body>| handler(counted.fetch_add(1, SeqCst) + 1, request);
        let layer = IdempotencyLayer::new(storage, policy);
        let router = Router::new().fallback(handle).layer(layer.clone());
        Self { router, layer, executions }
    }

    /// One that answers 201 with the number of the execution.
    pub(crate) fn counting(storage: impl Storage, policy: Policy) -> Self {
        Self::new(storage, policy, |execution, _| async move { receipt(execution) })
    }

    pub(crate) fn executions(&self) -> usize {
        self.executions.load(SeqCst)
    }

    /// Sends a request, and reads the answer to its end.
    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Bytes> {
        whole(self.router.clone().oneshot(request).await.unwrap()).await
    }

    /// `POST /charge` with a key.
    pub(crate) async fn charge(&self, key: &str, body: &'static str) -> Response<Bytes> {
        self.send(charge(key, body)).await
    }
}

pub(crate) fn charge(key: &str, body: &'static str) -> Request<Body> {
    Request::post("/charge").header("idempotency-key", key).body(Body::from(body)).unwrap()
}

pub(crate) fn receipt(execution: usize) -> Response<Body> {
    Response::builder()
        .status(StatusCode::CREATED)
        .header("x-receipt", execution)
        .body(Body::from(format!("receipt {execution}")))
        .unwrap()
}

pub(crate) async fn whole(response: Response<Body>) -> Response<Bytes> {
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

pub(crate) fn is_replay(response: &Response<Bytes>) -> bool {
    response.headers().get("idempotent-replayed").is_some_and(|value| value == "true")
}

/// The member of a problem that says what is wrong.
pub(crate) fn code(response: &Response<Bytes>) -> String {
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{response:?}");
    let problem: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(problem["status"], response.status().as_u16());
    problem["code"].as_str().unwrap_or_default().to_owned()
}
