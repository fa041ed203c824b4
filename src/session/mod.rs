//! Sessions.

mod cookie;
mod data;
mod device;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod fields;
mod future;
mod handle;
mod index;
mod layer;
mod login;
mod policy;
mod presented;
mod privacy;
mod queue;
mod record;
mod service;
mod sessions;
mod store;
mod timed;
mod token;
mod value;

#[cfg(feature = "secure-cookies")]
#[cfg_attr(docsrs, doc(cfg(feature = "secure-cookies")))]
pub use self::cookie::KeyRing;
#[cfg(feature = "axum")]
pub use self::extract::{Principal, RecentAuth, SessionRejection, SessionRejectionKind};
use self::token::TokenDigest;
pub use self::{
    cookie::{CookieError, CookieSettings, SameSite},
    data::{SessionData, SessionMap},
    device::Device,
    error::{Notice, SaveFailure, SessionError, SessionErrorKind},
    fields::FieldsError,
    future::ResponseFuture,
    handle::SessionHandle,
    layer::SessionLayer,
    login::Login,
    policy::{MigrateError, Outage, OverCap, Policy, PolicyError},
    service::SessionService,
    sessions::{ParseCursorError, SessionCursor, SessionInfo, SessionPage, Sessions},
    token::SessionToken,
    value::{ReadSession, RequiredSession, Session},
};
pub use crate::body::ResponseBody;
