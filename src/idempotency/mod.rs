//! Idempotency keys.
#![allow(dead_code)]

mod fingerprint;
mod key_handle;
mod record;
mod roster;

pub use self::{
    key_handle::{KeyHandle, ParseKeyHandleError},
    record::SealReason,
};
