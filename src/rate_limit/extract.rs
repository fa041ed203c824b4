//! Decisions as axum extractors.

use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use super::Decision;
use crate::problem::Problem;

/// No [`Decision`] in the request: 500, as a problem like the layer's own.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct MissingDecision;

impl std::fmt::Display for MissingDecision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "no rate-limit decision in the request: is the route inside a `RateLimitLayer`? \
             Exempt requests have none; take `Option<Decision>`",
        )
    }
}

impl std::error::Error for MissingDecision {}

impl IntoResponse for MissingDecision {
    fn into_response(self) -> Response {
        event!(error, "{self}");
        Problem::from_status(StatusCode::INTERNAL_SERVER_ERROR)
            .with_detail("the server's rate limits are set up wrongly")
            .into_response()
            .map(Body::from)
    }
}

impl<S: Sync> FromRequestParts<S> for Decision {
    type Rejection = MissingDecision;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get().cloned().ok_or(MissingDecision)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Decision {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get().cloned())
    }
}
