//! Finding out what a vanished owner has done.

use std::fmt;

use bytes::Bytes;
use http::{Request, Response};

use super::{IdempotencyKey, KeyHandle, fingerprint, fingerprint::Fingerprint};

/// A request whose owner has vanished, for a [recovery](super::Policy::with_recovery).
pub struct Vanished {
    pub(super) key: IdempotencyKey,
    pub(super) digest: [u8; 32],
    pub(super) fingerprint: Fingerprint,
    pub(super) attempt: u32,
    pub(super) fence: u64,
    pub(super) request: Request<Bytes>,
}

/// What a [recovery](super::Policy::with_recovery) has found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Recovery {
    /// The request was executed, and this is its answer. It is stored, and given to everybody who asks
    /// again.
    Completed(Response<Bytes>),
    /// The request was not executed, and its owner does not come back to it. The handler runs.
    NotExecuted,
    /// It cannot be told now. The next duplicate asks again.
    Unknown,
}

impl Vanished {
    /// The client's key.
    pub fn key(&self) -> &IdempotencyKey {
        &self.key
    }

    /// The same as [`Idempotency::child_key`](super::Idempotency::child_key) gave to the handler of the
    /// vanished owner.
    pub fn child_key(&self, name: &str) -> String {
        fingerprint::child_key(&self.digest, &self.fingerprint, name)
    }

    /// By which operators find the key.
    pub fn handle(&self) -> KeyHandle {
        KeyHandle(self.digest)
    }

    /// Which attempt it was whose owner has vanished, from 1 on.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The fencing number of this recovery: higher than the one that the vanished owner had.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// The duplicate that asks, which is equal to the request of the vanished owner in all that makes
    /// the fingerprint. Without extensions.
    pub fn request(&self) -> &Request<Bytes> {
        &self.request
    }
}

impl fmt::Debug for Vanished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vanished")
            .field("attempt", &self.attempt)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}
