//! The layer.

use tower_layer::Layer;

use super::{Limiter, Policy, RateLimit};
use crate::storage::Storage;

/// Limits requests by a [`Policy`]. See the [module documentation](super) for an example.
///
/// The layer may be applied any number of times (axum applies it to every route): all services made
/// from it and its clones share one [`Limiter`].
#[derive(Debug, Clone)]
pub struct RateLimitLayer {
    limiter: Limiter,
}

impl RateLimitLayer {
    /// A layer that keeps its counters on this storage.
    pub fn new(storage: impl Storage, policy: Policy) -> Self {
        Self::from_limiter(Limiter::new(storage, policy))
    }

    /// A layer that decides by this limiter.
    pub fn from_limiter(limiter: Limiter) -> Self {
        Self { limiter }
    }

    /// The limiter by which the layer decides: to check, peek, reset or refund outside of requests,
    /// and to replace the policy while the service runs.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_keep::{MemoryStorage, RateLimitLayer, rate_limit::Policy};
    ///
    /// let layer = RateLimitLayer::new(MemoryStorage::new(), Policy::new("api", "100/min".parse()?));
    /// let limiter = layer.limiter().clone();
    /// // Later, when the configuration has changed:
    /// limiter.replace_policy(Policy::new("api", "200/min".parse()?))?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.limiter.clone())
    }
}
