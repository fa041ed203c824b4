//! One node at a time.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{fill::random, key::CacheKey, shelf::Shelf};
use crate::{
    lease::{Attempt, Lease, Leases},
    storage::Storage,
};

/// The first pause of a node that waits for another's fill; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A node that waits for its turn to fill.
pub(super) struct Queue {
    leases: Leases,
    key: CacheKey,
    until: Instant,
    pause: Duration,
}

impl Queue {
    /// `None` if there are no other nodes.
    pub(super) fn new(
        shelf: &Shelf,
        key: &CacheKey,
        ttl: Duration,
        patience: Duration,
    ) -> Option<Self> {
        if shelf.storage.capabilities().local {
            return None;
        }
        let leases = Leases::new(shelf.storage.clone(), ttl)
            .with_namespace(shelf.namespace.clone())
            .with_heartbeat();
        let until = Instant::now() + patience.min(Duration::from_secs(86_400));
        Some(Self { leases, key: key.clone(), until, pause: FIRST_PAUSE })
    }

    /// Whether it is this node's turn, and the lease. Who has got it must look again: another may
    /// have filled just before.
    pub(super) async fn try_enter(&self) -> Option<Option<Lease>> {
        match self.leases.try_acquire(self.key.identity().clone()).await {
            Ok(Attempt::Acquired(lease)) => Some(Some(lease)),
            Ok(Attempt::Held { .. }) if Instant::now() < self.until => None,
            // Without a lease it is only more work.
            Ok(Attempt::Held { .. }) | Err(_) => Some(None),
        }
    }

    pub(super) async fn pause(&mut self) {
        sleep(self.pause.mul_f64(0.5 + random())).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}
