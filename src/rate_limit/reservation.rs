//! Units that were taken before the cost was known.

use std::{cmp::Ordering, sync::Arc};

use super::{Decision, Settlement, settle::ResponseHead};
use crate::storage::Verdict;

/// The units that a request has reserved. Dropped before it is settled, it gives them back, unless
/// the policy keeps them.
pub(super) struct Reservation {
    decision: Decision,
    settlement: Settlement,
    open: bool,
}

impl Reservation {
    pub(super) fn new(decision: Decision, settlement: Settlement) -> Self {
        Self { open: took_anything(&decision), decision, settlement }
    }

    pub(super) fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Settles for what the response cost, and returns the decision as it is afterwards.
    pub(super) async fn settle(mut self, cost: u32) -> Decision {
        self.open = false;
        let decision = self.decision.clone();
        if decision.would_refuse() {
            // In shadow: a request that would not have run has no cost.
            return decision;
        }
        let reserved = receipts(&decision).max().unwrap_or(0);
        let correction = match cost.cmp(&reserved) {
            Ordering::Equal => return decision,
            Ordering::Less => Correction::Refund(reserved - cost),
            Ordering::Greater => Correction::Force(cost - reserved),
        };
        correct(decision, correction).await
    }

    /// Gives everything back, whatever the settlement would say, and returns the decision as it is
    /// afterwards.
    pub(super) async fn give_back(mut self) -> Decision {
        self.open = false;
        give_back(self.decision.clone()).await
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
        let decision = self.decision.clone();
        let counters = Arc::clone(&decision.inner().rules.counters);
        let refund = async move {
            if let Err(error) = decision.inner().rules.counters.refund(&decision, u32::MAX).await {
                event!(warn, policy = decision.policy(), %error, "a reservation was not given back");
            }
        };
        counters.detach(refund);
    }
}

/// Gives back all that was taken, and returns the decision as it is afterwards.
pub(super) async fn give_back(decision: Decision) -> Decision {
    if !took_anything(&decision) {
        return decision;
    }
    correct(decision, Correction::Refund(u32::MAX)).await
}

/// The units of each quota that was charged.
fn receipts(decision: &Decision) -> impl Iterator<Item = u32> {
    let receipt = |verdict: &Verdict| verdict.receipt.map(|receipt| receipt.units());
    decision.inner().verdicts.iter().filter_map(receipt)
}

fn took_anything(decision: &Decision) -> bool {
    receipts(decision).any(|units| units > 0)
}

enum Correction {
    Refund(u32),
    Force(u32),
}

/// Corrects what was taken, in a task of its own. A storage that gives no answer leaves it as it is.
async fn correct(decision: Decision, correction: Correction) -> Decision {
    let before = decision.clone();
    let counters = Arc::clone(&decision.inner().rules.counters);
    let correct = async move {
        let counters = &decision.inner().rules.counters;
        let corrected = match correction {
            Correction::Refund(units) => counters.refund(&decision, units).await,
            Correction::Force(units) => counters.force(&decision, units).await,
        };
        match corrected {
            Ok(verdicts) => decision.with_verdicts(verdicts),
            Err(error) => {
                event!(warn, policy = decision.policy(), %error, "a cost was not settled");
                decision
            }
        }
    };
    match counters.background() {
        // Nobody waits for it any more if the client has gone.
        Some(runtime) => counters.tasks().spawn_on(correct, &runtime).await.unwrap_or(before),
        None => correct.await,
    }
}
