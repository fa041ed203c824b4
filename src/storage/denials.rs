//! What this process knows cannot pass yet.
//!
//! After a refusal with `retry_after`, no call of the same or a higher cost can be granted before
//! that time: usage only grows. So a flood from a refused identity is answered here, without asking
//! the storage again. The answer is that of the refused call, its times counted down. A higher cost
//! has other times and is asked about, too, until an identity comes with ever new costs; it is then
//! told the time by which all is free. Only a refund, a reset or a raised limit breaks the rule:
//! those made through this process are seen at once, those made elsewhere when the memory of the
//! denial ends.

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
            let crowded = denials.len() >= MOST_DENIALS;
            let denial = (denials.iter().find(|denial| denial.is_of(charges)))
                .or_else(|| denials.iter().find(|denial| crowded && denial.covers(charges)));
            if let Some(denial) = denial {
                return Ok(denial.answer(charges, now));
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
        denials.retain(|denial| now < denial.until && !denial.is_of(charges));
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

    /// Of a call that costs the same.
    fn is_of(&self, charges: &[Charge<'_>]) -> bool {
        self.is_about(charges)
            && self.charges.iter().zip(charges).all(|((.., cost, _), now)| *cost == units(now))
    }

    /// Of a call that costs the same or less.
    fn covers(&self, charges: &[Charge<'_>]) -> bool {
        self.is_about(charges)
            && self.charges.iter().zip(charges).all(|((.., cost, _), now)| *cost <= units(now))
    }

    /// What it says of these charges, which it covers.
    fn answer(&self, charges: &[Charge<'_>], now: Instant) -> Vec<Verdict> {
        let passed = now - self.since;
        let costs = self.charges.iter().map(|(.., cost, _)| *cost);
        let refused = self.verdicts.iter().zip(costs).map(|(verdict, cost)| {
            let verdict = later(verdict, cost, passed);
            (verdict, cost)
        });
        refused
            .zip(charges)
            .map(
                |((verdict, cost), charge)| {
                    if units(charge) > cost { for_more(verdict, units(charge)) } else { verdict }
                },
            )
            .collect()
    }
}

fn units(charge: &Charge<'_>) -> u32 {
    match charge.spend {
        Spend::Take(units) => units,
        _ => 0,
    }
}

/// A verdict as it reads that much later, if nobody spent.
fn later(verdict: &Verdict, cost: u32, passed: Duration) -> Verdict {
    let mut verdict = *verdict;
    verdict.reset_after = verdict.reset_after.saturating_sub(passed);
    verdict.replenish_after = verdict.replenish_after.saturating_sub(passed);
    if verdict.reset_after.is_zero() {
        verdict.remaining = verdict.limit;
        verdict.replenish_after = Duration::ZERO;
    }
    if !verdict.allowed {
        verdict.retry_after = verdict.retry_after.map(|wait| wait.saturating_sub(passed));
        // Another quota of the call refuses for longer.
        if verdict.retry_after == Some(Duration::ZERO) {
            verdict.allowed = true;
            verdict.remaining = verdict.remaining.max(cost);
        }
    }
    verdict
}

/// The same for more units than were asked for. How long they take only the storage knows; nothing
/// is missing once all is free.
fn for_more(mut verdict: Verdict, units: u32) -> Verdict {
    verdict.allowed = units <= verdict.remaining;
    verdict.retry_after = match units {
        _ if verdict.allowed => Some(Duration::ZERO),
        units if units > verdict.limit => None,
        _ => Some(verdict.reset_after),
    };
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MemoryStorage, Storage,
        storage::{Identity, Name},
    };

    const HOUR: Duration = Duration::from_secs(3_600);

    fn key(detail: &str) -> Key {
        Key::new(&Name::new("t"), &Name::new(detail), Identity::new("a"))
    }

    /// Asks the memory first, and says whether that had the answer.
    async fn ask(
        denials: &Denials,
        storage: &MemoryStorage,
        charges: &[Charge<'_>],
    ) -> (Vec<Verdict>, bool) {
        match denials.recall(charges) {
            Ok(verdicts) => (verdicts, true),
            Err(place) => {
                let verdicts = storage.acquire(charges).await.unwrap();
                denials.remember(place.unwrap(), charges, &verdicts, HOUR);
                (verdicts, false)
            }
        }
    }

    fn charges<'a>(short: &'a Key, long: &'a Key, units: u32) -> [Charge<'a>; 2] {
        let quota = |seconds| Quota::fixed_window(50, Duration::from_secs(seconds));
        [
            Charge::new(short, quota(10), Spend::Take(units)),
            Charge::new(long, quota(60), Spend::Take(units)),
        ]
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_recalled_is_what_the_storage_would_have_said() {
        let (denials, storage) = (Denials::default(), MemoryStorage::new());
        let (short, long) = (key("short"), key("long"));
        let charges = |units| charges(&short, &long, units);
        storage.acquire(&charges(40)).await.unwrap();
        // The last also when the short window is over and only the long one refuses.
        for passed in [0, 4, 4, 4] {
            tokio::time::advance(Duration::from_secs(passed)).await;
            for units in [20, 40, 11, 51] {
                let (verdicts, recalled) = ask(&denials, &storage, &charges(units)).await;
                assert_eq!(recalled, passed > 0, "{units} units after {passed} s");
                // A refusal takes nothing, so asking again changes nothing.
                let truth = storage.acquire(&charges(units)).await.unwrap();
                assert_eq!(verdicts, truth, "{units} units after {passed} s");
            }
        }
        assert!(storage.acquire(&charges(10)).await.unwrap().iter().all(|verdict| verdict.allowed));
    }

    #[tokio::test(start_paused = true)]
    async fn ever_new_costs_are_answered_here_too_and_never_told_to_come_too_early() {
        let (denials, storage) = (Denials::default(), MemoryStorage::new());
        let (short, long) = (key("short"), key("long"));
        let charges = |units| charges(&short, &long, units);
        storage.acquire(&charges(40)).await.unwrap();
        let mut asked = 0;
        for units in 11..100 {
            let (verdicts, recalled) = ask(&denials, &storage, &charges(units)).await;
            asked += usize::from(!recalled);
            let truth = storage.acquire(&charges(units)).await.unwrap();
            for (verdict, truth) in verdicts.iter().zip(truth) {
                assert_eq!(verdict.allowed, truth.allowed);
                assert_eq!(verdict.retry_after.is_none(), truth.retry_after.is_none());
                assert!(verdict.retry_after >= truth.retry_after);
            }
        }
        assert_eq!(asked, MOST_DENIALS);
    }
}
