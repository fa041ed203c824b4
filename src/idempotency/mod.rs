//! Idempotency keys.
#![allow(dead_code)]

mod fingerprint;
mod headers;
mod key;
mod key_handle;
mod record;
mod roster;

pub use self::{
    fingerprint::FingerprintRules,
    key::{IdempotencyKey, KeyError, KeySyntax},
    key_handle::{KeyHandle, ParseKeyHandleError},
    record::SealReason,
};
