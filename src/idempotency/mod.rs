//! Idempotency keys.
#![allow(dead_code)]

mod fingerprint;
mod headers;
mod key;

pub use self::{
    fingerprint::FingerprintRules,
    key::{IdempotencyKey, KeyError, KeySyntax},
};
