//! The counters of quotas.

use std::{
    sync::{
        MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    budget::{Bounds, Budget, allocation},
    overflow::{Locked, Overflow, Place},
    shard::{Shard, Shards},
    table::Digest,
};
use crate::{
    quota::{Quota, State, Step},
    storage::{Charge, HashKey, LONGEST_LIFE, Spend, Verdict},
};

/// How many counters an operation on a counter that is there looks at, to drop the dead.
const SWEEP: usize = 1;
/// The same for one that may add a counter: more than one, or the dead would never be caught up
/// with.
const SWEEP_TO_ADD: usize = 4;
/// The same when the storage is full, and as many in another shard, whose dead take room just so.
const SWEEP_WHEN_FULL: usize = 8;
/// How many counters are charged without a list of anything but their verdicts.
#[cfg(feature = "rate-limit")]
pub(super) const FEW: usize = 4;
/// The storage counts as full when less than one more block fits.
const BLOCK: usize = 16 << 10;
/// Who comes from a shared bucket to a counter of his own starts with what the bucket has counted,
/// so that nobody gets a fresh allowance by way of the overflow; unless the period is longer than
/// this, for then newcomers would pay for a flood long after it.
const LONGEST_INHERITED: Duration = Duration::from_secs(3_600);

/// The state of a quota for one identity, and until when it means anything.
pub(super) struct Counter {
    pub(super) state: State,
    pub(super) expires: u64,
}

pub(super) struct Counters {
    shards: Shards<Counter>,
    overflow: Overflow,
    turn: AtomicUsize,
}

/// A charge on its way.
struct Plan<'a> {
    charge: &'a Charge<'a>,
    digest: Digest,
    /// Which of the locked shards.
    shard: usize,
    /// Where its counter is, and whether that is alive.
    slot: Option<usize>,
    alive: bool,
    /// The shared bucket, and whether that is charged instead of a counter of its own.
    bucket: Option<Place>,
    shares: bool,
    step: Option<Step>,
    /// Nothing was counted, and the charge does not change that.
    idle: bool,
}

type Guards<'a> = Vec<MutexGuard<'a, Shard<Counter>>>;

impl Counters {
    pub(super) fn new(shards: usize, overflow_bytes: usize) -> Self {
        let overflow = Overflow::new(overflow_bytes);
        Self { shards: Shards::new(shards), overflow, turn: AtomicUsize::new(0) }
    }

    pub(super) fn shards(&self) -> &Shards<Counter> {
        &self.shards
    }

    pub(super) fn overflow(&self) -> &Overflow {
        &self.overflow
    }

    /// Charges one counter that is there and needs no more room than it has: all but the first
    /// charge of an identity. `None` if it is not that simple; nothing has happened then.
    pub(super) fn charge(
        &self,
        digest: &Digest,
        quota: &Quota,
        spend: Spend,
        now: u64,
        bounds: &Bounds,
    ) -> Option<Verdict> {
        let mut shard = self.shards.lock(self.shards.index(digest));
        let now = shard.begin(now);
        sweep(&mut shard, SWEEP, now, bounds);
        let i = shard.table.find(digest)?;
        let counter = shard.table.item_mut(i);
        if now >= counter.expires {
            return None;
        }
        let step = quota.step(Some(&counter.state), now, spend);
        if spend.changes() && step.verdict.allowed {
            if heap(&counter.state) != heap(&step.state) {
                return None;
            }
            *counter = Counter::new(step.state, now, step.keep_us);
        }
        Some(step.verdict)
    }

    /// The same for up to [`FEW`] different counters, all or none.
    #[cfg(feature = "rate-limit")]
    pub(super) fn charge_few(
        &self,
        charges: &[(Digest, Quota)],
        spend: Spend,
        enforce: bool,
        now: u64,
        bounds: &Bounds,
    ) -> Option<Vec<Verdict>> {
        let mut indices = [usize::MAX; FEW];
        for (index, (digest, _)) in indices.iter_mut().zip(charges) {
            *index = self.shards.index(digest);
        }
        // Always in this order, or two calls could wait for each other.
        indices.sort_unstable();
        let mut shards = [const { None }; FEW];
        let mut now = now;
        for i in 0..charges.len() {
            if i == 0 || indices[i] != indices[i - 1] {
                let shard = shards[i].insert(self.shards.lock(indices[i]));
                now = shard.begin(now);
            }
        }
        for shard in shards.iter_mut().flatten() {
            shard.begin(now);
            sweep(shard, SWEEP, now, bounds);
        }

        let mut steps = [const { None }; FEW];
        for (step, (digest, quota)) in steps.iter_mut().zip(charges) {
            let shard = indices.partition_point(|i| *i < self.shards.index(digest));
            let table = &shards[shard].as_ref()?.table;
            let slot = table.find(digest)?;
            let counter = table.item(slot);
            if now >= counter.expires {
                return None;
            }
            let next = quota.step(Some(&counter.state), now, spend);
            if heap(&counter.state) != heap(&next.state) {
                return None;
            }
            *step = Some((shard, slot, next));
        }
        let refused = enforce && steps.iter().flatten().any(|(.., step)| !step.verdict.allowed);
        let mut verdicts = Vec::with_capacity(charges.len());
        for ((_, quota), (shard, slot, step)) in charges.iter().zip(steps.into_iter().flatten()) {
            let counter = shards[shard].as_mut()?.table.item_mut(slot);
            verdicts.push(if refused {
                quota.unspent(&step.verdict, Some(&counter.state), now)
            } else {
                step.verdict
            });
            if !refused && spend.changes() && step.verdict.allowed {
                *counter = Counter::new(step.state, now, step.keep_us);
            }
        }
        Some(verdicts)
    }

    /// Charges any number of counters, all or none.
    ///
    /// # Errors
    ///
    /// How many bytes are missing, if a newcomer finds no room and must not `share`, or if there is
    /// no room for a bucket either. Nothing has happened then.
    pub(super) fn charge_all(
        &self,
        charges: &[Charge<'_>],
        digests: &[Digest],
        share: bool,
        now: u64,
        hash_key: &HashKey,
        bounds: &Bounds,
    ) -> Result<Vec<Verdict>, usize> {
        let full = !bounds.counters.fits(1) || !bounds.bytes.fits(BLOCK);
        if full {
            let next = self.turn.fetch_add(1, Relaxed) % self.shards.len();
            let mut shard = self.shards.lock(next);
            let now = shard.begin(now);
            sweep(&mut shard, SWEEP_WHEN_FULL, now, bounds);
        }
        let steps = if full { SWEEP_WHEN_FULL } else { SWEEP_TO_ADD };
        let mut indices: Vec<_> = digests.iter().map(|digest| self.shards.index(digest)).collect();
        indices.sort_unstable();
        indices.dedup();
        // Always in this order, or two calls could wait for each other.
        let mut guards: Guards<'_> = indices.iter().map(|i| self.shards.lock(*i)).collect();
        let now = guards.iter_mut().map(|shard| shard.begin(now)).max().unwrap_or(now);
        for shard in &mut guards {
            shard.begin(now);
            sweep(shard, steps, now, bounds);
        }

        let mut overflow = self.overflow.is_in_use(now).then(|| self.overflow.lock());
        let mut plans: Vec<_> = charges
            .iter()
            .zip(digests)
            .map(|(charge, digest)| {
                let shard = indices.partition_point(|i| *i < self.shards.index(digest));
                let mut plan = Plan::new(charge, *digest, shard, &guards[shard], now);
                if let Some(overflow) = overflow.as_ref().filter(|_| !plan.alive) {
                    plan.bucket = overflow.find(charge.key, hash_key);
                    // Units go back to where they were taken from.
                    let returns = matches!(charge.spend, Spend::Refund { .. });
                    let must = share && plan.slot.is_none() && !has_room(&guards[shard], bounds);
                    plan.shares = plan.bucket.is_some() && (returns || must);
                }
                plan
            })
            .collect();

        evaluate(&mut plans, &guards, overflow.as_ref(), now);
        if is_refused(&plans) {
            self.overflow.count(sharing(&plans));
            return Ok(refusals(&plans, &guards, overflow.as_ref(), now));
        }
        // Whoever starts a counter gets a place for it, empty and dead for now.
        let mut again = false;
        for plan in &mut plans {
            let starts = plan.slot.is_none() && !plan.shares;
            let Some(heap) = plan.to_store().filter(|_| starts).map(heap) else { continue };
            plan.slot = place(&mut guards[plan.shard], plan.digest, heap, bounds);
            if plan.slot.is_some() {
                continue;
            }
            let short = guards[plan.shard].table.growth() + heap;
            if !share && bounds.counters.fits(1) {
                return Err(short);
            }
            let overflow = overflow.get_or_insert_with(|| self.overflow.lock());
            plan.bucket = Some(overflow.find_or_make(plan.charge.key, hash_key).ok_or(short)?);
            (plan.shares, again) = (true, true);
        }
        if again {
            evaluate(&mut plans, &guards, overflow.as_ref(), now);
            if is_refused(&plans) {
                self.overflow.count(sharing(&plans));
                return Ok(refusals(&plans, &guards, overflow.as_ref(), now));
            }
        }
        if let Err(short) = self.fund(&mut plans, &guards, overflow.as_ref(), bounds) {
            if !share {
                return Err(short);
            }
            // There is room for the state of each newcomer, but not for all, or no more. Their
            // places stay empty and dead.
            let overflow = overflow.get_or_insert_with(|| self.overflow.lock());
            let starts = |plan: &Plan<'_>| !plan.alive && plan.to_store().map_or(0, heap) > 0;
            for plan in plans.iter_mut().filter(|plan| starts(plan)) {
                plan.bucket = Some(overflow.find_or_make(plan.charge.key, hash_key).ok_or(short)?);
                plan.shares = true;
            }
            evaluate(&mut plans, &guards, Some(overflow), now);
            if is_refused(&plans) {
                self.overflow.count(sharing(&plans));
                return Ok(refusals(&plans, &guards, Some(overflow), now));
            }
            self.fund(&mut plans, &guards, Some(overflow), bounds)?;
        }
        self.overflow.count(sharing(&plans));
        let verdicts = plans.iter().filter_map(|plan| Some(plan.step.as_ref()?.verdict)).collect();
        store(plans, &mut guards, overflow.as_mut(), now);
        Ok(verdicts)
    }

    /// Takes from the budgets what the new states need beyond the old ones, or nothing.
    fn fund(
        &self,
        plans: &mut [Plan<'_>],
        guards: &Guards<'_>,
        overflow: Option<&Locked<'_>>,
        bounds: &Bounds,
    ) -> Result<(), usize> {
        let mut paid: Vec<(&Budget, usize, usize)> = Vec::new();
        for i in 0..plans.len() {
            if plans[i].to_store().is_none() || is_superseded(plans, i) {
                continue;
            }
            let plan = &mut plans[i];
            let (budget, old) = if plan.shares {
                (self.overflow.bytes(), plan.bucket.zip(overflow).and_then(|(p, o)| o.get(p)))
            } else {
                (&bounds.bytes, plan.slot.map(|i| guards[plan.shard].table.item(i)))
            };
            let old_state = old.map(|counter| &counter.state);
            let old = old_state.map_or(0, heap);
            let Some(step) = &mut plan.step else { continue };
            // The logs of one policy leave room for the buckets of others.
            if plan.shares && budget.is_half_used() {
                coalesce(&mut step.state, old_state);
            }
            if !budget.exchange(old, heap(&step.state)) {
                coalesce(&mut step.state, old_state);
                if !budget.exchange(old, heap(&step.state)) {
                    let short = heap(&step.state) - old;
                    for (budget, old, new) in paid {
                        budget.force(old);
                        budget.give(new);
                    }
                    return Err(short);
                }
            }
            paid.push((budget, old, heap(&step.state)));
        }
        Ok(())
    }
}

impl<'a> Plan<'a> {
    fn new(
        charge: &'a Charge<'a>,
        digest: Digest,
        shard: usize,
        guard: &Shard<Counter>,
        now: u64,
    ) -> Self {
        let slot = guard.table.find(&digest);
        let alive = slot.is_some_and(|i| now < guard.table.item(i).expires);
        Self {
            charge,
            digest,
            shard,
            slot,
            alive,
            bucket: None,
            shares: false,
            step: None,
            idle: false,
        }
    }

    /// What earlier calls have counted.
    fn base<'g>(
        &self,
        guards: &'g Guards<'_>,
        overflow: Option<&'g Locked<'_>>,
        now: u64,
    ) -> Option<&'g State> {
        let counter = if self.alive {
            self.slot.map(|i| guards[self.shard].table.item(i))
        } else if self.shares || self.charge.quota.period() <= LONGEST_INHERITED {
            self.bucket.zip(overflow).and_then(|(place, overflow)| overflow.get(place))
        } else {
            None
        };
        counter.filter(|counter| now < counter.expires).map(|counter| &counter.state)
    }

    /// The state to be stored if the call is granted.
    fn to_store(&self) -> Option<&State> {
        let stores = self.charge.spend.changes() && !self.idle;
        let step = self.step.as_ref().filter(|step| stores && step.verdict.allowed)?;
        Some(&step.state)
    }
}

impl Counter {
    pub(super) fn new(state: State, now: u64, keep_us: u64) -> Self {
        Self { state, expires: now + keep_us.min(LONGEST_LIFE.as_micros() as u64) }
    }
}

fn evaluate(plans: &mut [Plan<'_>], guards: &Guards<'_>, overflow: Option<&Locked<'_>>, now: u64) {
    for i in 0..plans.len() {
        let (earlier, plan) = plans.split_at_mut(i);
        let plan = &mut plan[0];
        // Two charges of one call may share a bucket: each must see what the other takes.
        let before = earlier
            .iter()
            .rev()
            .filter(|earlier| plan.shares && earlier.shares && earlier.bucket == plan.bucket)
            .find_map(Plan::to_store);
        let base = before.or_else(|| plan.base(guards, overflow, now));
        // One identity's reset must not give a whole flood a fresh bucket.
        let others = plan.shares && plan.charge.spend == Spend::Reset;
        let returns = matches!(plan.charge.spend, Spend::Refund { .. } | Spend::Reset);
        plan.idle = others || (returns && base.is_none());
        let spend = if others { Spend::Take(0) } else { plan.charge.spend };
        plan.step = Some(plan.charge.quota.step(base, now, spend));
    }
}

fn is_refused(plans: &[Plan<'_>]) -> bool {
    let refused = |plan: &Plan<'_>| plan.step.as_ref().is_some_and(|step| !step.verdict.allowed);
    plans.iter().any(|plan| plan.charge.enforce && refused(plan))
}

fn sharing(plans: &[Plan<'_>]) -> usize {
    plans.iter().filter(|plan| plan.shares && plan.charge.spend.changes()).count()
}

/// The verdicts of a call that is refused.
fn refusals(
    plans: &[Plan<'_>],
    guards: &Guards<'_>,
    overflow: Option<&Locked<'_>>,
    now: u64,
) -> Vec<Verdict> {
    let verdict = |plan: &Plan<'_>| {
        let base = plan.base(guards, overflow, now);
        let mut verdict = plan.charge.quota.judge(base, now, plan.charge.spend);
        if let Some(step) = &plan.step {
            (verdict.allowed, verdict.retry_after) =
                (step.verdict.allowed, step.verdict.retry_after);
        }
        verdict
    };
    plans.iter().map(verdict).collect()
}

fn has_room(shard: &Shard<Counter>, bounds: &Bounds) -> bool {
    bounds.counters.fits(1) && bounds.bytes.fits(shard.table.growth())
}

/// Adds an empty counter that is dead until it is written; its state is paid for later.
fn place(
    shard: &mut Shard<Counter>,
    digest: Digest,
    heap: usize,
    bounds: &Bounds,
) -> Option<usize> {
    if !bounds.bytes.fits(heap) || !bounds.counters.take(1) {
        return None;
    }
    if !shard.table.reserve(&bounds.bytes) {
        bounds.counters.give(1);
        return None;
    }
    let empty = State::Fixed { birth: 0, start: 0, count: 0 };
    Some(shard.table.insert(digest, Counter { state: empty, expires: 0 }, false))
}

/// Whether a later charge of the call writes the same bucket.
fn is_superseded(plans: &[Plan<'_>], i: usize) -> bool {
    let writes_too = |later: &Plan<'_>| {
        later.shares && later.bucket == plans[i].bucket && later.to_store().is_some()
    };
    plans[i].shares && plans[i + 1..].iter().any(writes_too)
}

fn store(
    mut plans: Vec<Plan<'_>>,
    guards: &mut Guards<'_>,
    mut overflow: Option<&mut Locked<'_>>,
    now: u64,
) {
    for i in 0..plans.len() {
        if plans[i].to_store().is_none() || is_superseded(&plans, i) {
            continue;
        }
        let plan = &mut plans[i];
        let Some(step) = plan.step.take() else { continue };
        let counter = Counter::new(step.state, now, step.keep_us);
        if plan.shares {
            if let (Some(place), Some(overflow)) = (plan.bucket, &mut overflow) {
                overflow.set(place, counter);
            }
        } else if let Some(slot) = plan.slot {
            *guards[plan.shard].table.item_mut(slot) = counter;
        }
    }
}

/// Makes the state no larger than the old one, if it can be: the youngest units of a log take the
/// time of the very youngest, so that they count for longer than they should, never for less.
fn coalesce(state: &mut State, old: Option<&State>) {
    let (State::Log { entries, .. }, Some(State::Log { entries: old, .. })) = (state, old) else {
        return;
    };
    while entries.len() > old.len().max(1) {
        let mut shorter = entries.to_vec();
        if let Some((time, units)) = shorter.pop()
            && let Some(last) = shorter.last_mut()
        {
            *last = (time, last.1.saturating_add(units));
        }
        *entries = shorter.into();
    }
}

/// What a state has allocated.
fn heap(state: &State) -> usize {
    match state {
        State::Strict { counts, .. } => allocation(size_of_val(&**counts)),
        State::Log { entries, .. } => allocation(size_of_val(&**entries)),
        _ => 0,
    }
}

fn sweep(shard: &mut Shard<Counter>, steps: usize, now: u64, bounds: &Bounds) {
    let bury = |counter: Counter| {
        bounds.counters.give(1);
        bounds.bytes.give(heap(&counter.state));
    };
    shard.table.sweep(steps, &bounds.bytes, |counter| now >= counter.expires, bury);
}
