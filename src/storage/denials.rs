//! What this process knows cannot pass yet.
//!
//! After a refusal with `retry_after`, no call of the same or a higher cost can be granted before
//! that time: usage only grows. So a flood from a refused identity is answered here, without asking
//! the storage again. Only a refund, a reset or a raised limit breaks the rule: those made through
//! this process are seen at once, those made elsewhere when the memory of the denial ends.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Charge, HashKey, Key, Spend, Verdict};
use crate::quota::Quota;

const SHARDS: usize = 16;
/// Identities remembered per shard. Forgetting one costs a question to the storage, nothing else.
const MOST_IDENTITIES: usize = 1_024;
/// Denials of one identity, of different policies or tiers.
const MOST_DENIALS: usize = 8;

/// However long a policy allows; beyond it a time may be out of range.
const LONGEST_MEMORY: Duration = Duration::from_secs(86_400);

/// Refusals that still hold, by identity.
pub(crate) struct Denials {
    hash_key: HashKey,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    denials: HashMap<u128, Vec<Denial>>,
    /// Counts what was forgotten on purpose, so that an answer that was under way meanwhile is not
    /// remembered.
    forgotten: u64,
}

struct Denial {
    charges: Box<[(Key, Quota, u32, bool)]>,
    verdicts: Box<[Verdict]>,
    since: Instant,
    until: Instant,
}

/// The place of one identity, as it was before the storage was asked.
pub(crate) struct Place {
    identity: u128,
    forgotten: u64,
    asked: Instant,
}

impl Default for Denials {
    fn default() -> Self {
        Self { hash_key: HashKey::random(), shards: Default::default() }
    }
}

impl Denials {
    fn identity(&self, key: &Key) -> u128 {
        u128::from_be_bytes(
            self.hash_key.digest(&[key.namespace().as_str().as_bytes(), key.identity().as_bytes()]),
        )
    }

    fn shard(&self, identity: u128) -> MutexGuard<'_, Shard> {
        self.shards[identity as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The verdicts of a remembered denial that covers these takes of one identity; otherwise where
    /// to remember the storage's answer.
    pub(crate) fn recall(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>, Option<Place>> {
        let Some(first) = charges.first() else { return Err(None) };
        let one_identity = charges.iter().all(|charge| {
            matches!(charge.spend, Spend::Take(units) if units > 0)
                && charge.key.identity() == first.key.identity()
                && charge.key.namespace() == first.key.namespace()
        });
        if !one_identity {
            return Err(None);
        }
        let identity = self.identity(first.key);
        let now = Instant::now();
        let mut shard = self.shard(identity);
        let forgotten = shard.forgotten;
        if let Some(denials) = shard.denials.get_mut(&identity) {
            denials.retain(|denial| now < denial.until);
            if let Some(denial) = denials.iter().find(|denial| denial.covers(charges)) {
                let passed = now - denial.since;
                return Ok(denial.verdicts.iter().map(|verdict| later(verdict, passed)).collect());
            }
        }
        Err(Some(Place { identity, forgotten, asked: now }))
    }

    /// Remembers the answer to what was asked, if it is a refusal, for at most `memory`.
    pub(crate) fn remember(
        &self,
        place: Place,
        charges: &[Charge<'_>],
        verdicts: &[Verdict],
        memory: Duration,
    ) {
        let refused = |(charge, verdict): (&Charge<'_>, &Verdict)| {
            (charge.enforce && !verdict.allowed).then(|| verdict.retry_after.unwrap_or(memory))
        };
        let Some(wait) = charges.iter().zip(verdicts).filter_map(refused).max() else { return };
        // Counted from before the question: the storage judged after it.
        let until = place.asked + wait.min(memory).min(LONGEST_MEMORY);
        let now = Instant::now();
        let mut shard = self.shard(place.identity);
        if shard.forgotten != place.forgotten || until <= now {
            return;
        }
        if shard.denials.len() >= MOST_IDENTITIES && !shard.denials.contains_key(&place.identity) {
            // Whoever the map happens to name first; its owner asks the storage once more.
            if let Some(any) = shard.denials.keys().next().copied() {
                shard.denials.remove(&any);
            }
        }
        let denials = shard.denials.entry(place.identity).or_default();
        denials.retain(|denial| now < denial.until && !denial.is_about(charges));
        denials.truncate(MOST_DENIALS - 1);
        denials.push(Denial {
            charges: charges
                .iter()
                .map(|charge| (charge.key.clone(), charge.quota, units(charge), charge.enforce))
                .collect(),
            verdicts: verdicts.into(),
            // The storage judged before its answer came: counted from here, what is left of a wait
            // is never told too short.
            since: now,
            until,
        });
    }

    /// Forgets the denials of an identity, because units came back or usage was reset.
    pub(crate) fn forget(&self, key: &Key) {
        let identity = self.identity(key);
        let mut shard = self.shard(identity);
        shard.forgotten += 1;
        shard.denials.remove(&identity);
    }
}

impl Denial {
    fn is_about(&self, charges: &[Charge<'_>]) -> bool {
        self.charges.len() == charges.len()
            && self.charges.iter().zip(charges).all(|((key, quota, _, enforce), charge)| {
                key == charge.key && *quota == charge.quota && *enforce == charge.enforce
            })
    }

    fn covers(&self, charges: &[Charge<'_>]) -> bool {
        self.is_about(charges)
            && self.charges.iter().zip(charges).all(|((.., cost, _), now)| *cost <= units(now))
    }
}

fn units(charge: &Charge<'_>) -> u32 {
    match charge.spend {
        Spend::Take(units) => units,
        _ => 0,
    }
}

/// A verdict as it reads that much later, if nobody spent.
fn later(verdict: &Verdict, passed: Duration) -> Verdict {
    let mut verdict = *verdict;
    verdict.reset_after = verdict.reset_after.saturating_sub(passed);
    verdict.replenish_after = verdict.replenish_after.saturating_sub(passed);
    if !verdict.allowed {
        verdict.retry_after = verdict.retry_after.map(|wait| wait.saturating_sub(passed));
    }
    verdict
}
