//! Idempotency keys.

mod classify;
#[cfg(feature = "axum")]
mod extract;
mod fingerprint;
mod handle;
mod headers;
mod judge;
mod key;
mod key_handle;
mod keys;
mod layer;
mod outcome;
mod policy;
mod record;
mod recover;
mod reply;
mod roster;
mod run;
mod service;
mod shared;
mod usage;
mod waiting;

#[cfg(feature = "axum")]
pub use self::extract::IdempotencyRejection;
pub use self::{
    classify::{Answer, Disposition},
    fingerprint::FingerprintRules,
    handle::{BeginError, BeginErrorKind, Idempotency},
    key::{IdempotencyKey, KeyError, KeySyntax},
    key_handle::{KeyHandle, ParseKeyHandleError},
    keys::{IdempotencyKeys, KeyCursor, KeyPage, Resolution, UnknownKey},
    layer::IdempotencyLayer,
    outcome::Outcome,
    policy::{InFlight, MissingScope, Outage, Policy, PolicyError, Repeat},
    record::SealReason,
    recover::{Recovery, Vanished},
    service::IdempotencyService,
};
pub use crate::{
    body::live::{BodyError, ResponseBody},
    service::ResponseFuture,
};
