//! The layer.

use std::sync::Arc;

use tower_layer::Layer;

use super::{Cache, CacheHandle, Policy, service::Rules};
use crate::storage::Storage;

/// Stores responses by a [`Policy`]. See the [module documentation](super) for an example.
///
/// The layer may be applied any number of times: all services made from it and its clones share one
/// [`CacheHandle`]. Where one layer stands inside of another, the inner one decides, and the outer one
/// stores nothing; but the outer one has removed what its own policy does not let the handler see.
///
/// Authentication, CORS, compression, tracing and request ids go outside. `Router::layer` also wraps
/// the fallback, so that with a negative TTL strangers can fill the storage with targets that do not
/// exist; `Router::route_layer` does not.
///
/// # Security
///
/// Services on one storage, or on one Redis, share what is stored as long as they share a namespace.
/// The key has the `Host` that the client names, so one service would give its clients the answers of
/// another. Give each service its [namespace](super::CacheHandleBuilder::with_namespace), or each
/// storage its prefix.
#[derive(Debug, Clone)]
pub struct CacheLayer {
    rules: Arc<Rules>,
}

impl CacheLayer {
    /// A layer that keeps responses on this storage, in the namespace `cache`, with a handle of its own:
    /// for several layers that are purged together see [`from_handle`](Self::from_handle).
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
