//! Units that were taken before the cost was known.

use std::sync::Arc;

use super::{Decision, Settlement, limiter::Shared, settle::ResponseHead};

/// The units that a request has reserved. Dropped before it is settled, it gives them back, unless
/// the policy keeps them.
pub(super) struct Reservation {
    shared: Arc<Shared>,
    decision: Decision,
    settlement: Settlement,
    open: bool,
}

impl Reservation {
    pub(super) fn new(shared: Arc<Shared>, decision: Decision, settlement: Settlement) -> Self {
        let took = |verdict: &crate::storage::Verdict| verdict.receipt.is_some();
        let open = decision.inner().verdicts.iter().any(took);
        Self { shared, decision, settlement, open }
    }

    pub(super) fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Settles for what the response cost, in a task of its own, and returns the decision as it is
    /// afterwards. A storage that gives no answer leaves the reservation as the cost.
    pub(super) async fn settle(mut self, cost: u32) -> Decision {
        self.open = false;
        if self.decision.would_refuse() {
            // In shadow: a request that would not have run has no cost.
            return self.decision.clone();
        }
        let (shared, decision) = (Arc::clone(&self.shared), self.decision.clone());
        let receipts = decision.inner().verdicts.iter().filter_map(|verdict| verdict.receipt);
        let reserved = receipts.map(|receipt| receipt.units()).max().unwrap_or(0);
        let settle = async move {
            let settled = match cost {
                cost if cost == reserved => return decision,
                cost if cost < reserved => shared.refund(&decision, reserved - cost).await,
                cost => shared.force(&decision, cost - reserved).await,
            };
            match settled {
                Ok(verdicts) => decision.with_verdicts(verdicts),
                Err(error) => {
                    event!(warn, policy = decision.policy(), %error, "a cost was not settled");
                    decision
                }
            }
        };
        match self.shared.background() {
            // Nobody waits for it any more if the client has gone.
            Some(runtime) => {
                let settled = self.shared.tasks().spawn_on(settle, &runtime).await;
                settled.unwrap_or_else(|_| self.decision.clone())
            }
            None => settle.await,
        }
    }

    pub(super) fn cost(&self, response: ResponseHead<'_>) -> u32 {
        self.settlement.cost(response)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.open || self.settlement.keeps_when_dropped() {
            return;
        }
        let (shared, decision) = (Arc::clone(&self.shared), self.decision.clone());
        self.shared.detach(async move {
            if let Err(error) = shared.refund(&decision, u32::MAX).await {
                event!(warn, policy = decision.policy(), %error, "a reservation was not given back");
            }
        });
    }
}
