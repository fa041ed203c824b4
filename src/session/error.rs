//! What can go wrong with a session, and how it is answered.

use std::fmt;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::fields::FieldsError;
use crate::{
    problem::Problem,
    storage::{self, ErrorKind},
};

/// Why something could not be done with a session.
///
/// As a response it is a problem (RFC 9457) with the status of its kind.
#[derive(Debug)]
pub struct SessionError {
    kind: SessionErrorKind,
}

/// The class of a [`SessionError`].
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionErrorKind {
    /// The session has ended while the request was under way: by a logout, by the end of all
    /// sessions of its principal, or by its age; or its id was replaced. Nothing was written. 401.
    Gone,
    /// The storage gave no answer, or not in time. Whether the change was made is unknown. 503.
    Unavailable(storage::Error),
    /// What is kept cannot be written or read as the type that was asked for. 500.
    Data(FieldsError),
    /// A new id cannot be told to the client any more: the head of the response has left. 500.
    HeadSent,
    /// The principal has as many sessions as it may have. 409.
    OverCap,
    /// The data is larger than the policy allows. Nothing was written. 413.
    TooLarge,
    /// There is no session, or none of a principal, where one is needed. 401.
    Unauthenticated,
}

impl SessionError {
    pub(super) fn new(kind: SessionErrorKind) -> Self {
        Self { kind }
    }

    /// What happened, to be matched on.
    pub fn kind(&self) -> &SessionErrorKind {
        &self.kind
    }

    /// Whether the session has ended.
    pub fn is_gone(&self) -> bool {
        matches!(self.kind, SessionErrorKind::Gone)
    }

    /// The status that it is answered with.
    pub fn status(&self) -> StatusCode {
        match &self.kind {
            SessionErrorKind::Gone | SessionErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
            SessionErrorKind::Unavailable(error) if error.kind() == ErrorKind::Invalid => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            SessionErrorKind::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            SessionErrorKind::Data(_) | SessionErrorKind::HeadSent => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            SessionErrorKind::OverCap => StatusCode::CONFLICT,
            SessionErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }

    /// The answer instead of one whose changes were not saved: the request may have come with a session,
    /// and can be made again.
    pub(super) fn to_conflict_response(&self) -> Response<Bytes> {
        match self.kind {
            SessionErrorKind::Gone => Problem::from_status(StatusCode::CONFLICT)
                .with_detail("the session has ended meanwhile; nothing was saved")
                .into_response(),
            _ => self.to_response(),
        }
    }

    /// The response that it is answered with, for services without axum.
    pub fn to_response(&self) -> Response<Bytes> {
        let status = self.status();
        let detail = match &self.kind {
            SessionErrorKind::Gone => "the session has ended",
            SessionErrorKind::Unauthenticated => "log in first",
            SessionErrorKind::TooLarge => "the session has no room for that",
            SessionErrorKind::OverCap => "there are too many sessions already; end one of them",
            SessionErrorKind::Unavailable(_) => "the session cannot be reached for now",
            SessionErrorKind::Data(_) | SessionErrorKind::HeadSent => {
                "the server uses its sessions wrongly"
            }
        };
        let mut response = Problem::from_status(status).with_detail(detail).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §15.5.2 asks for a challenge.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Session"));
        }
        response
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            SessionErrorKind::Gone => {
                f.write_str("the session has ended meanwhile; nothing was written")
            }
            SessionErrorKind::Unavailable(error) => error.fmt(f),
            SessionErrorKind::Data(error) => error.fmt(f),
            SessionErrorKind::HeadSent => f.write_str(
                "the head of the response has left, so no cookie can be set any more: begin, rotate \
                 or log in before the handler returns",
            ),
            SessionErrorKind::TooLarge => f.write_str(
                "the session's data is larger than `Policy::with_max_size` allows; keep large things \
                 elsewhere, and their names in the session",
            ),
            SessionErrorKind::OverCap => {
                f.write_str("the principal has as many sessions as it may have")
            }
            SessionErrorKind::Unauthenticated => {
                f.write_str("there is no session of a principal: log in first")
            }
        }
    }
}

impl std::error::Error for SessionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            SessionErrorKind::Unavailable(error) => Some(error),
            SessionErrorKind::Data(error) => Some(error),
            _ => None,
        }
    }
}

impl From<storage::Error> for SessionError {
    fn from(error: storage::Error) -> Self {
        Self::new(SessionErrorKind::Unavailable(error))
    }
}

impl From<FieldsError> for SessionError {
    fn from(error: FieldsError) -> Self {
        Self::new(SessionErrorKind::Data(error))
    }
}

/// Among the extensions of a response: what the handler changed in the session was not saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaveFailure {
    /// The session had ended meanwhile.
    Gone,
    /// The storage gave no answer. Whether the changes were made is unknown.
    Unavailable(ErrorKind),
    /// The data cannot be written.
    Data,
    /// The data is larger than the policy allows.
    TooLarge,
    /// The changes were made after the head of the response had left.
    Late,
}

impl SaveFailure {
    pub(super) fn of(error: &SessionError) -> Self {
        match error.kind() {
            SessionErrorKind::Gone => Self::Gone,
            SessionErrorKind::Unavailable(error) => Self::Unavailable(error.kind()),
            SessionErrorKind::TooLarge => Self::TooLarge,
            SessionErrorKind::HeadSent => Self::Late,
            _ => Self::Data,
        }
    }
}

/// What happened to sessions unasked. See [`Policy::with_observer`](super::Policy::with_observer).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// An id that a rotation had replaced was used after its grace: it may have been stolen. The
    /// request has no session.
    IdReused,
    /// A login has ended another session of the principal, by the cap.
    Evicted {
        /// Whose session.
        principal: String,
        /// Which one.
        public_id: uuid::Uuid,
    },
    /// A record cannot be read. It was put aside, and counts as no session.
    Corrupt,
    /// The fields of a session do not fit the type that a handler asked for. The record was left as
    /// it is, and counts as no session.
    Mismatch,
    /// These fields were changed by two requests at once; the later has overwritten the earlier.
    Overwritten {
        /// Their names.
        fields: Vec<String>,
    },
    /// What a handler changed was not saved.
    NotSaved(SaveFailure),
}
