//! Asking for the key in a handler's arguments.

use std::fmt;

use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use super::{BeginError, Idempotency, handle::NoKey};
use crate::problem::Problem;

/// Why a handler that asks for [`Idempotency`] does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdempotencyRejection {
    /// The request has no key, and the policy does not require one. 400.
    NoKey,
    /// The route has no [`IdempotencyLayer`](super::IdempotencyLayer), or one that leaves requests of
    /// this method alone. 500.
    NoLayer,
}

impl IdempotencyRejection {
    /// The status that it is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoKey => StatusCode::BAD_REQUEST,
            Self::NoLayer => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl fmt::Display for IdempotencyRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoKey => "this operation needs an idempotency key",
            Self::NoLayer => {
                "the handler asks for `Idempotency`, but no `IdempotencyLayer` with the request's \
                 method is around its route: add the layer after the route, name the method with \
                 `Policy::with_methods`, or ask for `Option<Idempotency>`"
            }
        })
    }
}

impl std::error::Error for IdempotencyRejection {}

impl IntoResponse for IdempotencyRejection {
    fn into_response(self) -> Response {
        let (code, detail) = match self {
            Self::NoKey => ("key-missing", "this operation needs an idempotency key"),
            Self::NoLayer => ("misconfigured", "the server's idempotency keys are set up wrongly"),
        };
        let problem = Problem::from_status(self.status()).with_detail(detail);
        problem.with_member("code", code).into_response().map(Body::from)
    }
}

impl IntoResponse for BeginError {
    fn into_response(self) -> Response {
        self.to_response().map(Body::from)
    }
}

impl<S: Sync> FromRequestParts<S> for Idempotency {
    type Rejection = IdempotencyRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        if let Some(attempt) = parts.extensions.get::<Self>() {
            return Ok(attempt.clone());
        }
        if parts.extensions.get::<NoKey>().is_some() {
            return Err(IdempotencyRejection::NoKey);
        }
        let rejection = IdempotencyRejection::NoLayer;
        event!(error, "{rejection}");
        Err(rejection)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Idempotency {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}
