//! Idempotency keys.
#![allow(dead_code)]
