//! Operations in terms of others, for backends that have only compare-and-swap.

use std::time::Duration;

use super::{
    Charge, Error, ErrorKind, Get, Put, PutOutcome, Result, Spend, Storage, Verdict, Version, When,
    check_charges,
};
use crate::{
    clock,
    quota::{State, Step},
};

/// How often a write is tried before the call gives up with
/// [`Unavailable`](ErrorKind::Unavailable): under a race each loss means that another call won, so
/// only a very hot key ever gets there.
const MOST_TRIES: u32 = 10_000;

/// [`acquire`](Storage::acquire) by reading states and writing them under their versions.
///
/// Exact for any number of callers of one charge. Several charges are written in order; if a later
/// one is refused meanwhile, the earlier ones are given back, so that for a moment another caller
/// may see them as spent. It uses the wall clock of this process: with several processes, their
/// clocks must agree.
///
/// # Cancel safety
///
/// A call of one charge that is dropped has been applied in full or not at all. Of several charges
/// the first may be left taken: a backend to which that matters spawns the call.
///
/// # Errors
///
/// Those of [`get`](Storage::get) and [`put`](Storage::put); [`Invalid`](ErrorKind::Invalid) if two
/// charges have one key.
///
/// # Examples
///
/// The whole of a backend's `acquire`:
///
/// ```text
/// async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
///     emulate::acquire(self, charges).await
/// }
/// ```
pub async fn acquire<S: Storage>(storage: &S, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
    acquire_at(storage, charges, || clock::since_epoch().as_micros() as u64).await
}

/// [`acquire`] on a clock of your own: microseconds since the Unix epoch.
///
/// # Errors
///
/// As [`acquire`].
pub async fn acquire_at<S: Storage>(
    storage: &S,
    charges: &[Charge<'_>],
    now_us: impl Fn() -> u64 + Send + Sync,
) -> Result<Vec<Verdict>> {
    check_charges(charges)?;
    'again: for _ in 0..MOST_TRIES {
        let mut read = Vec::with_capacity(charges.len());
        for charge in charges {
            read.push(Counter::read(storage, charge).await?);
        }
        let now = now_us();
        let steps: Vec<_> =
            charges.iter().zip(&read).map(|(charge, counter)| counter.step(charge, now)).collect();
        if charges.iter().zip(&steps).any(|(charge, step)| charge.enforce && !step.verdict.allowed)
        {
            let judged = charges.iter().zip(&read).map(|(charge, counter)| {
                charge.quota.judge(counter.state.as_ref(), now, charge.spend)
            });
            return Ok(judged.collect());
        }
        for (i, (charge, step)) in charges.iter().zip(&steps).enumerate() {
            if charge.spend.changes()
                && step.verdict.allowed
                && !read[i].write(storage, charge, step).await?
            {
                // Somebody was faster. What this call has written so far it takes back.
                for (charge, step) in charges[..i].iter().zip(&steps) {
                    give_back(storage, charge, step, &now_us).await?;
                }
                continue 'again;
            }
        }
        return Ok(steps.into_iter().map(|step| step.verdict).collect());
    }
    Err(Error::new(ErrorKind::Unavailable, "too many callers compete for one counter"))
}

/// A counter as it was read.
struct Counter {
    state: Option<State>,
    version: Option<Version>,
}

impl Counter {
    async fn read<S: Storage>(storage: &S, charge: &Charge<'_>) -> Result<Self> {
        let entry = storage.get(charge.key, Get::new()).await?.entry;
        Ok(Self {
            // Bytes that are no state count as a counter that was never used.
            state: entry.as_ref().and_then(|entry| State::decode(&entry.value)),
            version: entry.map(|entry| entry.version),
        })
    }

    fn step(&self, charge: &Charge<'_>, now: u64) -> Step {
        charge.quota.step(self.state.as_ref(), now, charge.spend)
    }

    async fn write<S: Storage>(
        &self,
        storage: &S,
        charge: &Charge<'_>,
        step: &Step,
    ) -> Result<bool> {
        let keep = Duration::from_micros(step.keep_us).max(Duration::from_millis(1));
        let put = Put::new(step.state.encode().into(), keep)
            .with_condition(self.version.map_or(When::Absent, When::Version));
        Ok(matches!(storage.put(charge.key, put).await?, PutOutcome::Stored(_)))
    }
}

async fn give_back<S: Storage>(
    storage: &S,
    charge: &Charge<'_>,
    step: &Step,
    now_us: &(impl Fn() -> u64 + Send + Sync),
) -> Result<()> {
    let Some(receipt) = step.verdict.receipt else { return Ok(()) };
    let refund = Charge { spend: Spend::Refund { units: receipt.units(), receipt }, ..*charge };
    for _ in 0..MOST_TRIES {
        let counter = Counter::read(storage, charge).await?;
        if counter.state.is_none() {
            return Ok(());
        }
        let step = counter.step(&refund, now_us());
        if counter.write(storage, charge, &step).await? {
            return Ok(());
        }
    }
    Ok(())
}
