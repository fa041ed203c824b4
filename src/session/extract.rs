//! Sessions as axum extractors.

use std::{
    any::type_name,
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    time::Duration,
};

use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header, request::Parts};

use super::{
    ReadSession, Session, SessionData, SessionError, SessionErrorKind, SessionHandle,
    policy::Unauthorized,
};
use crate::{RequestHead, problem::Problem};

/// Why an extractor has given no session. As a response it is a problem (RFC 9457).
#[derive(Debug)]
pub struct SessionRejection {
    kind: SessionRejectionKind,
}

/// The class of a [`SessionRejection`].
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionRejectionKind {
    /// The route is outside of a [`SessionLayer`](super::SessionLayer) of this realm: 500, and a log
    /// line that says so.
    MissingLayer {
        /// The type that stands for the realm.
        realm: &'static str,
    },
    /// There is no session, or none of a principal: 401 with a challenge, or 303 to the
    /// [login page](super::Policy::with_login_redirect).
    Unauthorized {
        /// Where to log in.
        redirect: Option<HeaderValue>,
    },
    /// The principal has not proved lately enough who it is: 401 with the challenge of RFC 9470.
    NotRecent {
        /// How long ago it may be.
        max_age: Duration,
    },
    /// The storage gave no answer: 503.
    Session(SessionError),
}

impl SessionRejection {
    /// What happened, to be matched on.
    pub fn kind(&self) -> &SessionRejectionKind {
        &self.kind
    }

    fn unauthorized<R>(handle: &SessionHandle<R>) -> Self {
        let redirect = match &handle.inner.shared.store.policy.unauthorized {
            Unauthorized::Problem => None,
            Unauthorized::Redirect(target) => Some(target.clone()),
        };
        Self { kind: SessionRejectionKind::Unauthorized { redirect } }
    }
}

impl From<SessionError> for SessionRejection {
    fn from(error: SessionError) -> Self {
        Self { kind: SessionRejectionKind::Session(error) }
    }
}

impl fmt::Display for SessionRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            SessionRejectionKind::MissingLayer { realm: "()" } => f.write_str(
                "no session in the request: is the route inside a `SessionLayer`? In axum, a layer \
                 is around the routes that were added before it",
            ),
            SessionRejectionKind::MissingLayer { realm } => write!(
                f,
                "no session of the realm `{realm}` in the request: is the route inside a layer made \
                 by `SessionLayer::in_realm::<{realm}>`?"
            ),
            SessionRejectionKind::Unauthorized { .. } => f.write_str("nobody has logged in"),
            SessionRejectionKind::NotRecent { max_age } => {
                write!(f, "the principal has not proved who it is in the last {max_age:?}")
            }
            SessionRejectionKind::Session(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SessionRejection {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            SessionRejectionKind::Session(error) => Some(error),
            _ => None,
        }
    }
}

impl IntoResponse for SessionRejection {
    fn into_response(self) -> Response {
        let problem = |status, detail: &'static str| {
            Problem::from_status(status).with_detail(detail).into_response().map(Body::from)
        };
        let challenged = |detail, challenge: HeaderValue| {
            let mut response = problem(StatusCode::UNAUTHORIZED, detail);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            response
        };
        match self.kind {
            SessionRejectionKind::MissingLayer { .. } => {
                event!(error, "{self}");
                let detail = "the server's sessions are set up wrongly";
                problem(StatusCode::INTERNAL_SERVER_ERROR, detail)
            }
            SessionRejectionKind::Unauthorized { redirect: Some(target) } => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::SEE_OTHER;
                response.headers_mut().insert(header::LOCATION, target);
                let no_store = HeaderValue::from_static("no-store");
                response.headers_mut().insert(header::CACHE_CONTROL, no_store);
                response
            }
            SessionRejectionKind::Unauthorized { redirect: None } => {
                SessionError::new(SessionErrorKind::Unauthenticated).into_response()
            }
            SessionRejectionKind::NotRecent { max_age } => {
                // RFC 9470 §3.
                let challenge = format!(
                    "Session error=\"insufficient_user_authentication\", max_age=\"{}\"",
                    max_age.as_secs()
                );
                let challenge = challenge.try_into().expect("letters, digits and quotes");
                challenged("prove again who you are", challenge)
            }
            SessionRejectionKind::Session(error) => error.into_response(),
        }
    }
}

impl IntoResponse for SessionError {
    fn into_response(self) -> Response {
        if self.status().is_server_error() {
            event!(error, error = %self, "a request is refused for its session");
        }
        self.to_response().map(Body::from)
    }
}

fn handle<R: 'static>(parts: &Parts) -> Result<SessionHandle<R>, SessionRejection> {
    match parts.extensions.get::<SessionHandle<R>>() {
        Some(handle) => Ok(handle.clone()),
        None => Err(SessionRejection {
            kind: SessionRejectionKind::MissingLayer { realm: type_name::<R>() },
        }),
    }
}

/// Only a live session; a storage that is away is none.
async fn live<R: 'static>(parts: &Parts) -> Result<Option<SessionHandle<R>>, SessionRejection> {
    let handle = handle::<R>(parts)?;
    match handle.load().await {
        Ok(()) => Ok(Some(handle).filter(SessionHandle::exists)),
        Err(_) => Ok(None),
    }
}

impl<R: 'static, S: Sync> FromRequestParts<S> for SessionHandle<R> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let handle = handle::<R>(parts)?;
        handle.inner.recognise(RequestHead::from_parts(parts));
        handle.begin_login().await?;
        Ok(handle)
    }
}

impl<T: SessionData, R: 'static, S: Sync> FromRequestParts<S> for Session<T, R> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(handle::<R>(parts)?.session().await?)
    }
}

/// `None` without a live session, also while the storage is away.
impl<T: SessionData, R: 'static, S: Sync> OptionalFromRequestParts<S> for Session<T, R> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        let Some(handle) = live::<R>(parts).await? else { return Ok(None) };
        let session = handle.session().await?;
        Ok(Some(session).filter(|_| handle.exists()))
    }
}

impl<T: SessionData, R: 'static, S: Sync> FromRequestParts<S> for ReadSession<T, R> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(handle::<R>(parts)?.read().await?)
    }
}

/// `None` without a live session, also while the storage is away.
impl<T: SessionData, R: 'static, S: Sync> OptionalFromRequestParts<S> for ReadSession<T, R> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        let Some(handle) = live::<R>(parts).await? else { return Ok(None) };
        let session = handle.read().await?;
        Ok(Some(session).filter(|_| handle.exists()))
    }
}

/// A session that must be there: without one, the request is answered with 401, or sent to the
/// [login page](super::Policy::with_login_redirect).
///
/// # Security
///
/// An anonymous session is enough, such as of a visitor with something in the cart. This says that there
/// is a session, not that somebody has logged in: for that ask for [`Principal`], beside
/// [`Session<T>`](Session).
pub struct RequiredSession<T: SessionData, R = ()>(Session<T, R>);

impl<T: SessionData, R> RequiredSession<T, R> {
    fn new(session: Session<T, R>) -> Self {
        Self(session)
    }

    /// As [`Session`].
    pub fn into_session(self) -> Session<T, R> {
        self.0
    }
}

impl<T: SessionData, R> Deref for RequiredSession<T, R> {
    type Target = Session<T, R>;

    fn deref(&self) -> &Session<T, R> {
        &self.0
    }
}

impl<T: SessionData, R> DerefMut for RequiredSession<T, R> {
    fn deref_mut(&mut self) -> &mut Session<T, R> {
        &mut self.0
    }
}

impl<T: SessionData + fmt::Debug, R> fmt::Debug for RequiredSession<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequiredSession").field(&*self.0).finish()
    }
}

impl<T: SessionData, R: 'static, S: Sync> FromRequestParts<S> for RequiredSession<T, R> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let handle = handle::<R>(parts)?;
        let session = handle.session().await?;
        if !handle.exists() {
            return Err(SessionRejection::unauthorized(&handle));
        }
        Ok(Self::new(session))
    }
}

/// Who has logged in. As an extractor it refuses requests of nobody, those with an anonymous session
/// among them: with 401, or by sending them to the [login page](super::Policy::with_login_redirect).
///
/// # Examples
///
/// ```
/// use tower_keep::session::Principal;
///
/// async fn me(user: Principal) -> String {
///     format!("you are {user}")
/// }
/// # let _ = me;
/// ```
pub struct Principal<R = ()> {
    name: String,
    realm: PhantomData<fn() -> R>,
}

impl<R> Principal<R> {
    fn of(handle: &SessionHandle<R>) -> Option<Self> {
        Some(Self { name: handle.principal()?, realm: PhantomData })
    }

    /// As it was given at the login.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// As it was given at the login.
    pub fn into_string(self) -> String {
        self.name
    }
}

impl<R> Deref for Principal<R> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.name
    }
}

impl<R> fmt::Display for Principal<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl<R> PartialEq<str> for Principal<R> {
    fn eq(&self, other: &str) -> bool {
        self.name == other
    }
}

impl<R> PartialEq<&str> for Principal<R> {
    fn eq(&self, other: &&str) -> bool {
        self.name == *other
    }
}

impl<R> fmt::Debug for Principal<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Principal(..)")
    }
}

impl<R: 'static, S: Sync> FromRequestParts<S> for Principal<R> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let handle = handle::<R>(parts)?;
        handle.load().await?;
        Self::of(&handle).ok_or_else(|| SessionRejection::unauthorized(&handle))
    }
}

/// `None` if nobody has logged in, also while the storage is away.
impl<R: 'static, S: Sync> OptionalFromRequestParts<S> for Principal<R> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(live::<R>(parts).await?.as_ref().and_then(Self::of))
    }
}

/// Lets only requests pass whose principal has proved within the last `SECONDS` who it is: for what
/// is dangerous (OWASP ASVS 5.0 §7.5.3).
///
/// Who did so longer ago is answered with 401 and the challenge of RFC 9470; the application asks for the
/// password again and calls [`SessionHandle::reauthenticate`]. Who has not logged in is answered as by
/// [`Principal`].
///
/// # Examples
///
/// ```
/// use tower_keep::session::RecentAuth;
///
/// async fn delete_account(_: RecentAuth<300>) -> &'static str {
///     "gone"
/// }
/// # let _ = delete_account;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RecentAuth<const SECONDS: u64, R = ()>(PhantomData<fn() -> R>);

impl<const SECONDS: u64, R: 'static, S: Sync> FromRequestParts<S> for RecentAuth<SECONDS, R> {
    type Rejection = SessionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let handle = handle::<R>(parts)?;
        handle.load().await?;
        let max_age = Duration::from_secs(SECONDS);
        match handle.authenticated_ago() {
            None => Err(SessionRejection::unauthorized(&handle)),
            Some(ago) if ago > max_age => {
                Err(SessionRejection { kind: SessionRejectionKind::NotRecent { max_age } })
            }
            Some(_) => Ok(Self(PhantomData)),
        }
    }
}
