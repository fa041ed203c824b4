//! Sessions as axum extractors.

use std::any::{TypeId, type_name};

use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header, request::Parts};

use super::{
    Device, ReadSession, RequiredSession, Session, SessionData, SessionError, SessionErrorKind,
    SessionHandle,
    policy::Unauthorized,
};
use crate::{RequestHead, problem::Problem};

/// Why an extractor has given no session.
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionRejection {
    /// The route is outside of a [`SessionLayer`](super::SessionLayer) of this realm: 500, and a log
    /// line that says so.
    MissingLayer(MissingSessionLayer),
    /// There is no session, or it was not authenticated lately: 401, or 303 to the
    /// [login page](super::Policy::with_login_redirect).
    Unauthorized(Unauthorized401),
    /// The session cannot be reached: 503.
    Error(SessionError),
}
