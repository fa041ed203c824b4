//! The layer.

use std::sync::Arc;

use tower_layer::Layer;

use super::{IdempotencyKeys, IdempotencyService, Policy, PolicyError, shared::Shared};
use crate::storage::Storage;

/// Executes requests with an idempotency key once. See the [module documentation](super) for an
/// example.
///
/// The layer may be applied any number of times: all services made from it and its clones are one. Two
/// different layers of one [name](Policy::with_name) around one route are answered with 500, and a log
/// line that says what to do.
#[derive(Debug, Clone)]
pub struct IdempotencyLayer {
    shared: Arc<Shared>,
}

impl IdempotencyLayer {
    /// A layer that keeps its keys on this storage.
    ///
    /// # Panics
    ///
    /// If the policy cannot be used. For settings from outside use [`try_new`](Self::try_new).
    #[track_caller]
    pub fn new(storage: impl Storage, policy: Policy) -> Self {
        match Self::try_new(storage, policy) {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// A layer that keeps its keys on this storage.
    ///
    /// # Errors
    ///
    /// If the policy cannot be used.
    pub fn try_new(storage: impl Storage, policy: Policy) -> Result<Self, PolicyError> {
        Ok(Self { shared: Arc::new(Shared::try_new(storage.erase(), policy)?) })
    }

    /// The keys of the layer outside of requests: for operators who look after those whose outcome is
    /// unknown.
    pub fn keys(&self) -> IdempotencyKeys {
        IdempotencyKeys::new(Arc::clone(&self.shared))
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        // Not in `new`, which may be called before the runtime is there. Once a storage is enough.
        self.shared.storage.audit_for_claims();
        IdempotencyService::new(inner, Arc::clone(&self.shared))
    }
}
