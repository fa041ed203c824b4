//! Operations, run on both sides.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;

use super::{
    ops::{Cond, NAMESPACES, Op, Spending, What},
    reference::Model,
};
use crate::{
    Quota, Storage,
    conformance::{Harness, stage::key_in},
    quota::Algorithm,
    storage::{
        Charge, Entry, Fence, Get, Identity, Invalidation, Key, Name, Put, PutOutcome, Receipt,
        Spend, Tag, Tags, Touch, Verdict, Version, When,
    },
};

/// A backend and the model, and what each has called the things they handed out.
pub(super) struct History<'h, H: Harness> {
    harness: &'h H,
    storage: H::Storage,
    model: Model,
    puts: u32,
    /// Per key, of the model and of the backend.
    versions: HashMap<usize, Vec<(Version, Version)>>,
    fences: Vec<(Fence, Fence)>,
    receipts: HashMap<usize, Vec<(Receipt, Receipt)>>,
}

/// Longer than any history.
const ANCHORED: Duration = Duration::from_secs(86_400);

macro_rules! ensure {
    ($holds:expr, $($message:tt)*) => {
        if !$holds {
            return Err(format!($($message)*));
        }
    };
}

impl<'h, H: Harness> History<'h, H> {
    pub(super) async fn new(harness: &'h H) -> Self {
        Self {
            harness,
            storage: harness.storage().await,
            model: Model::new(),
            puts: 0,
            versions: HashMap::new(),
            fences: Vec::new(),
            receipts: HashMap::new(),
        }
    }

    /// Lives end half a tick after a whole one, where no operation is.
    fn life(&self, ticks: u32) -> Duration {
        self.harness.tick() * ticks + self.harness.tick() / 2
    }

    pub(super) async fn apply(&mut self, op: &Op) -> Result<(), String> {
        self.run(op).await?;
        for namespace in NAMESPACES {
            self.anchor(&Name::new(namespace)).await?;
        }
        Ok(())
    }

    /// Puts an entry that outlives the history into every new record of tags. When a record forgets
    /// what nothing alive can carry is a backend's own affair, so here there is nothing to forget.
    async fn anchor(&mut self, namespace: &Name) -> Result<(), String> {
        if !self.model.may_forget_within(namespace, ANCHORED) {
            return Ok(());
        }
        let key = Key::new(namespace, &Name::new("anchor"), Identity::global());
        let get = Get::new().with_fence();
        let put = |fence| {
            let put = Put::new(Bytes::new(), ANCHORED).with_max_lifetime(ANCHORED);
            Put { fence, ..put }
        };
        let fence = self.model.get(&key, get).fence;
        let stored = self.model.put(&key, put(fence));
        debug_assert!(matches!(stored, Ok(PutOutcome::Stored(_))));
        let lookup = self.storage.get(&key, get).await;
        let theirs = lookup.map_err(|error| format!("a lookup failed: {error}"))?.fence;
        let stored = self.storage.put(&key, put(theirs)).await;
        ensure!(
            matches!(stored, Ok(PutOutcome::Stored(_))),
            "a put with the fence of just now: {stored:?}"
        );
        Ok(())
    }

    async fn run(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Advance { ticks } => {
                let by = self.harness.tick() * *ticks;
                self.model.advance(by);
                self.harness.advance(by).await;
                Ok(())
            }
            Op::Get { key, touch, fence, known } => self.get(*key, *touch, *fence, *known).await,
            Op::Put { key, ttl, max_lifetime, tags, when, fence } => {
                let tags = tags_of(*tags);
                let (fence, theirs) = fence.and_then(|ago| nth(&self.fences, ago)).unzip();
                let (when, when_theirs) = self.condition(*key, *when);
                self.puts += 1;
                let value = Bytes::from(format!("value {}", self.puts));
                let mut put =
                    Put::new(value, self.life(*ttl)).with_tags(&tags).with_condition(when);
                (put.max_lifetime, put.fence) = (max_lifetime.map(|ticks| self.life(ticks)), fence);
                let theirs = Put { when: when_theirs, fence: theirs, ..put.clone() };
                self.put(*key, put, theirs).await
            }
            Op::Delete { key, when } => {
                let (when, when_theirs) = self.condition(*key, *when);
                let expected = self.model.delete(&key_of(*key), when);
                let deleted = self.storage.delete(&key_of(*key), when_theirs).await;
                let deleted = deleted.map_err(|error| format!("a delete failed: {error}"))?;
                ensure!(deleted == expected, "deleted: {deleted}, not {expected}");
                Ok(())
            }
            Op::Invalidate { namespace, tags, soft } => {
                let namespace = Name::new(NAMESPACES[*namespace]);
                let how = if *soft { Invalidation::Soft } else { Invalidation::Hard };
                let some = tags.map(tags_of);
                let reach = some.as_deref().map_or(Tags::All, Tags::Any);
                self.model.invalidate(&namespace, reach, how);
                let done = self.storage.invalidate(&namespace, reach, how).await;
                done.map_err(|error| format!("an invalidation failed: {error}"))
            }
            Op::Acquire { charges } => self.acquire(charges).await,
        }
    }

    async fn get(
        &mut self,
        n: usize,
        touch: Option<(u32, u32)>,
        fence: bool,
        known: Option<usize>,
    ) -> Result<(), String> {
        let touch =
            touch.map(|(ttl, slack)| Touch { ttl: self.life(ttl), slack: self.life(slack) });
        let versions = self.versions.get(&n).map_or(&[][..], Vec::as_slice);
        let (known, known_theirs) = known.and_then(|ago| nth(versions, ago)).unzip();
        // A hint, which must make no difference.
        let large_value = self.puts % 2 == 1;
        let get = Get { touch, fence, known, large_value };
        let expected = self.model.get(&key_of(n), get);
        let lookup = self.storage.get(&key_of(n), Get { known: known_theirs, ..get }).await;
        let lookup = lookup.map_err(|error| format!("a lookup failed: {error}"))?;
        ensure!(
            lookup.fence.is_some() == expected.fence.is_some(),
            "fence: {:?}, not {:?}",
            lookup.fence,
            expected.fence
        );
        self.fences.extend(expected.fence.zip(lookup.fence));
        self.compare_entries(n, lookup.entry, expected.entry)
    }

    async fn put(&mut self, n: usize, put: Put<'_>, theirs: Put<'_>) -> Result<(), String> {
        let expected = self.model.put(&key_of(n), put);
        match (self.storage.put(&key_of(n), theirs).await, expected) {
            (Ok(PutOutcome::Stored(theirs)), Ok(PutOutcome::Stored(ours))) => {
                let versions = self.versions.entry(n).or_default();
                let last = versions.last().map(|(_, last)| *last);
                ensure!(last < Some(theirs), "{theirs:?} after {last:?}");
                versions.push((ours, theirs));
                Ok(())
            }
            (Ok(PutOutcome::Conflict(theirs)), Ok(PutOutcome::Conflict(ours))) => {
                self.compare_entries(n, theirs, ours)
            }
            (Err(theirs), Err(ours)) if theirs.kind() == ours.kind() => Ok(()),
            (theirs, ours) => Err(format!("put: {theirs:?}, not {ours:?}")),
        }
    }

    async fn acquire(&mut self, charges: &[Spending]) -> Result<(), String> {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for charge in charges {
            let quota = self.quota(charge.counter, charge.limit);
            let key = Key::new(
                &Name::new(NAMESPACES[0]),
                &Name::new(&quota.counter_name()),
                Identity::new("somebody"),
            );
            let (spend, spend_theirs) = match charge.what {
                What::Take(units) => (Spend::Take(units), Spend::Take(units)),
                What::Peek => (Spend::Peek, Spend::Peek),
                What::Force(units) => (Spend::Force(units), Spend::Force(units)),
                What::Reset => (Spend::Reset, Spend::Reset),
                What::Refund { units, ago } => match self.receipt(charge.counter, ago) {
                    Some((ours, theirs)) => (
                        Spend::Refund { units, receipt: ours },
                        Spend::Refund { units, receipt: theirs },
                    ),
                    None => (Spend::Peek, Spend::Peek),
                },
            };
            ours.push((key.clone(), quota, spend, charge.enforce));
            theirs.push((key, quota, spend_theirs, charge.enforce));
        }
        let expected = self.model.acquire(&charges_of(&ours));
        let verdicts = match (self.storage.acquire(&charges_of(&theirs)).await, expected) {
            (Ok(theirs), Ok(ours)) if theirs.len() == ours.len() => theirs.into_iter().zip(ours),
            (Err(theirs), Err(ours)) if theirs.kind() == ours.kind() => return Ok(()),
            (theirs, ours) => return Err(format!("acquire: {theirs:?}, not {ours:?}")),
        };
        for ((charge, (_, quota, ..)), (theirs, ours)) in charges.iter().zip(&ours).zip(verdicts) {
            self.compare_verdicts(quota, theirs, ours)?;
            let receipts = self.receipts.entry(charge.counter).or_default();
            receipts.extend(ours.receipt.zip(theirs.receipt));
        }
        Ok(())
    }

    /// On a clock that is not exact only those whose units come back at the end of a period.
    fn quota(&self, counter: usize, limit: u32) -> Quota {
        let period = self.life(4);
        match counter {
            0 => Quota::fixed_window(limit, period),
            1 => Quota::sliding_log(limit, period),
            2 => Quota::sliding_window(limit, period),
            3 => Quota::token_bucket(limit, period, limit),
            _ => Quota::strict_window(limit, self.harness.tick() * 5),
        }
    }

    /// Each receipt is used once: what a second refund finds depends on whether the counter was
    /// forgotten in between.
    fn receipt(&mut self, counter: usize, ago: usize) -> Option<(Receipt, Receipt)> {
        let receipts = self.receipts.get_mut(&counter)?;
        let at = receipts.len().checked_sub(ago + 1)?;
        Some(receipts.remove(at))
    }

    fn condition(&self, key: usize, when: Cond) -> (When, When) {
        match when {
            Cond::Always => (When::Always, When::Always),
            Cond::Absent => (When::Absent, When::Absent),
            Cond::Version { ago } => {
                let versions = self.versions.get(&key).map_or(&[][..], Vec::as_slice);
                let never = Version::from_u64(0);
                let (ours, theirs) = nth(versions, ago).unwrap_or((never, never));
                (When::Version(ours), When::Version(theirs))
            }
        }
    }

    fn compare_entries(
        &self,
        key: usize,
        theirs: Option<Entry>,
        ours: Option<Entry>,
    ) -> Result<(), String> {
        let difference = || format!("entry: {theirs:?}, not {ours:?}");
        let (theirs, ours) = match (&theirs, &ours) {
            (None, None) => return Ok(()),
            (Some(theirs), Some(ours)) => (theirs, ours),
            _ => return Err(difference()),
        };
        let known = self.versions.get(&key).map_or(&[][..], Vec::as_slice);
        let near = |a: Duration, b| a.abs_diff(b) <= self.harness.tolerance();
        let same = known.contains(&(ours.version, theirs.version))
            && (&theirs.value, theirs.stale, theirs.unchanged)
                == (&ours.value, ours.stale, ours.unchanged)
            && near(theirs.age, ours.age)
            && near(theirs.ttl, ours.ttl)
            && match (theirs.life_left, ours.life_left) {
                (Some(theirs), Some(ours)) => near(theirs, ours),
                (theirs, ours) => theirs == ours,
            };
        if same { Ok(()) } else { Err(difference()) }
    }

    fn compare_verdicts(
        &self,
        quota: &Quota,
        theirs: Verdict,
        ours: Verdict,
    ) -> Result<(), String> {
        // Slots and drops fall on the backend's own clock, which began at another moment.
        let grain = match quota.algorithm() {
            Algorithm::StrictWindow { slots } => quota.period() / u32::from(slots),
            Algorithm::TokenBucket { .. } => Duration::from_millis(1),
            _ => Duration::ZERO,
        };
        let near = |a: Duration, b| a.abs_diff(b) <= self.harness.tolerance() + grain;
        let same = (theirs.allowed, theirs.limit, theirs.remaining)
            == (ours.allowed, ours.limit, ours.remaining)
            && near(theirs.reset_after, ours.reset_after)
            && near(theirs.replenish_after, ours.replenish_after)
            && match (theirs.retry_after, ours.retry_after) {
                (Some(theirs), Some(ours)) => near(theirs, ours),
                (theirs, ours) => theirs == ours,
            }
            && theirs.receipt.map(|receipt| receipt.units())
                == ours.receipt.map(|receipt| receipt.units());
        ensure!(same, "{quota}: {theirs:?}, not {ours:?}");
        Ok(())
    }
}

fn nth<T: Copy>(items: &[T], ago: usize) -> Option<T> {
    items.iter().rev().nth(ago).copied()
}

fn key_of(n: usize) -> Key {
    key_in(NAMESPACES[n % NAMESPACES.len()], (n / NAMESPACES.len()).to_string())
}

/// The tags of a bit set.
fn tags_of(set: u8) -> Vec<Tag> {
    ["x", "y"]
        .iter()
        .enumerate()
        .filter(|(n, _)| set >> n & 1 == 1)
        .map(|(_, tag)| Tag::new(tag))
        .collect()
}

fn charges_of(charges: &[(Key, Quota, Spend, bool)]) -> Vec<Charge<'_>> {
    charges
        .iter()
        .map(|(key, quota, spend, enforce)| {
            let charge = Charge::new(key, *quota, *spend);
            if *enforce { charge } else { charge.without_enforcement() }
        })
        .collect()
}
