//! The layer.

use std::sync::Arc;

use tower_layer::Layer;

use super::{Cache, CacheHandle, Policy, service::Rules};
use crate::storage::Storage;

/// Stores responses by a [`Policy`]. See the [module documentation](super) for an example.
///
/// The layer may be applied any number of times: all services made from it and its clones share one
/// [`CacheHandle`]. Of two layers on one handle around the same route, the outer one does the work and
/// the inner one lets its requests pass.
#[derive(Debug, Clone)]
pub struct CacheLayer {
    rules: Arc<Rules>,
}

impl CacheLayer {
    /// A layer that keeps responses on this storage, in the namespace `cache`.
    pub fn new(storage: impl Storage, policy: Policy) -> Self {
        Self::from_handle(CacheHandle::new(storage), policy)
    }

    /// A layer that keeps responses with this handle.
    pub fn from_handle(handle: CacheHandle, policy: Policy) -> Self {
        Self { rules: Arc::new(Rules { handle, policy }) }
    }

    /// The cache outside of requests: to purge, and to keep values.
    pub fn handle(&self) -> &CacheHandle {
        &self.rules.handle
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Cache::from_rules(inner, Arc::clone(&self.rules))
    }
}
