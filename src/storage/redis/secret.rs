//! Where the key for hashing identities comes from.

use std::{fmt, sync::Arc};

use redis::{Value, aio::MultiplexedConnection};

use super::error::{Cause, explain};
use crate::storage::{ErrorKind, HashKey, Name};

/// So that a secret is not forgotten while entries that were hashed with it can still live in a
/// service that pauses for a long holiday.
const LIFE_MS: u64 = 30 * 24 * 3_600_000;
/// What is shorter can be guessed.
pub(super) const SHORTEST: usize = 16;

/// Bytes that never show in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(Arc<[u8]>);

impl Secret {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    pub(super) fn random() -> Self {
        let draw = || HashKey::random().digest(&[]);
        Self([draw(), draw()].concat().into())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn hash_key(&self) -> HashKey {
        HashKey::derive(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Offers a secret to the store and returns the one that all processes use from now on: the first
/// that was offered. Also renews its life.
pub(super) async fn share(
    connection: &mut MultiplexedConnection,
    prefix: &Name,
    offer: &Secret,
) -> Result<Secret, Cause> {
    let key = format!("{}:secret", prefix.as_str());
    let mut pipeline = redis::pipe();
    pipeline.cmd("SET").arg(&key).arg(&*offer.0).arg("NX").arg("PX").arg(LIFE_MS);
    pipeline.cmd("GETEX").arg(&key).arg("PX").arg(LIFE_MS);
    let explain = |error| explain(&error, Default::default());
    let replies = connection.send_packed_commands(&pipeline, 0, 2).await.map_err(explain)?;
    // A server without memory to spare refuses the SET and still answers the GETEX.
    let mut refusal = None;
    for reply in replies {
        match reply.extract_error() {
            Ok(Value::BulkString(bytes)) if bytes.len() >= SHORTEST => {
                return Ok(Secret::new(&bytes));
            }
            Ok(Value::BulkString(_)) => {
                return Err(Cause::new(
                    ErrorKind::Corrupt,
                    "the shared secret in redis is too short; something else writes `<prefix>:secret`",
                ));
            }
            Ok(_) => {}
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.map_or_else(
        || Cause::new(ErrorKind::Unavailable, "redis did not keep the shared secret"),
        explain,
    ))
}
