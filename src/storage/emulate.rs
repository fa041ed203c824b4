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
        let mut steps: Vec<_> =
            charges.iter().zip(&read).map(|(charge, counter)| counter.step(charge, now)).collect();
        if charges.iter().zip(&steps).any(|(charge, step)| charge.enforce && !step.verdict.allowed)
        {
            let judged = charges.iter().zip(&read).map(|(charge, counter)| {
                charge.quota.judge(counter.state.as_ref(), now, charge.spend)
            });
            return Ok(judged.collect());
        }
        let gives =
            |charge: &Charge<'_>| matches!(charge.spend, Spend::Refund { .. } | Spend::Reset);
        for (i, (charge, step)) in charges.iter().zip(&steps).enumerate() {
            if charge.spend.changes()
                && !gives(charge)
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
        // Refunds and resets come last: nothing refuses them any more, and whoever is faster only
        // has them tried again, each by itself. Doing one twice would give back too much.
        for (i, charge) in charges.iter().enumerate().filter(|(_, charge)| gives(charge)) {
            if !read[i].write(storage, charge, &steps[i]).await? {
                steps[i] = write_alone(storage, charge, &now_us).await?;
            }
        }
        return Ok(steps.into_iter().map(|step| step.verdict).collect());
    }
    Err(crowded())
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
    write_alone(storage, &refund, now_us).await.map(drop)
}

/// Does what is never refused, and does it once.
async fn write_alone<S: Storage>(
    storage: &S,
    charge: &Charge<'_>,
    now_us: &(impl Fn() -> u64 + Send + Sync),
) -> Result<Step> {
    for _ in 0..MOST_TRIES {
        let counter = Counter::read(storage, charge).await?;
        let step = counter.step(charge, now_us());
        // What is gone has nothing to be given back to.
        if counter.state.is_none() || counter.write(storage, charge, &step).await? {
            return Ok(step);
        }
    }
    Err(crowded())
}

fn crowded() -> Error {
    Error::new(ErrorKind::Unavailable, "too many callers compete for one counter")
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use super::*;
    use crate::{
        MemoryStorage, Quota,
        storage::{
            AnyStorage, Capabilities, Identity, Invalidation, Key, Lookup, Name, Receipt, Tags,
        },
    };

    const QUOTA: Quota = Quota::fixed_window(10, Duration::from_secs(60));

    /// Compare-and-swap, where another caller charges the key just before one of the puts.
    #[derive(Debug)]
    struct Contended {
        memory: MemoryStorage,
        key: Key,
        puts: AtomicUsize,
        lost: usize,
    }

    #[deny(clippy::missing_trait_methods)]
    impl Storage for Contended {
        async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
            self.memory.get(key, get).await
        }

        async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
            if self.puts.fetch_add(1, Relaxed) == self.lost {
                charge(&self.memory, &self.key, Spend::Take(1)).await;
            }
            self.memory.put(key, put).await
        }

        async fn delete(&self, key: &Key, when: When) -> Result<bool> {
            self.memory.delete(key, when).await
        }

        async fn invalidate(&self, name: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
            self.memory.invalidate(name, tags, how).await
        }

        async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
            acquire(self, charges).await
        }

        fn capabilities(&self) -> Capabilities {
            Capabilities::new()
        }

        fn erase(self) -> AnyStorage {
            AnyStorage::new(self)
        }
    }

    /// Charges by compare-and-swap, with nobody in between.
    async fn charge(storage: &MemoryStorage, key: &Key, spend: Spend) -> Verdict {
        acquire(storage, &[Charge::new(key, QUOTA, spend)]).await.unwrap()[0]
    }

    fn keys() -> [Key; 2] {
        ["one", "two"].map(|id| Key::new(&Name::new("t"), &Name::new("q"), Identity::new(id)))
    }

    async fn remaining(storage: &MemoryStorage) -> [u32; 2] {
        let [one, two] = keys();
        let one = charge(storage, &one, Spend::Peek).await.remaining;
        [one, charge(storage, &two, Spend::Peek).await.remaining]
    }

    #[tokio::test]
    async fn of_several_refunds_none_is_given_twice_when_another_caller_is_faster() {
        for lost in 0..2 {
            let memory = MemoryStorage::new();
            let [one, two] = keys();
            let mut receipts: Vec<Receipt> = Vec::new();
            for key in [&one, &two] {
                receipts.extend(charge(&memory, key, Spend::Take(8)).await.receipt);
            }
            let key = if lost == 0 { &one } else { &two }.clone();
            let storage = Contended { memory: memory.clone(), key, puts: 0.into(), lost };
            let refund =
                |key, receipt| Charge::new(key, QUOTA, Spend::Refund { units: 2, receipt });
            let charges = [refund(&one, receipts[0]), refund(&two, receipts[1])];
            let verdicts = storage.acquire(&charges).await.unwrap();
            let expected = if lost == 0 { [3, 4] } else { [4, 3] };
            assert_eq!(remaining(&memory).await, expected, "the put {lost} was lost");
            assert_eq!([verdicts[0].remaining, verdicts[1].remaining], expected);
        }
    }

    #[tokio::test]
    async fn a_refund_waits_for_the_takes_of_its_call() {
        let memory = MemoryStorage::new();
        let [one, two] = keys();
        let receipt = charge(&memory, &one, Spend::Take(8)).await.receipt.unwrap();
        charge(&memory, &two, Spend::Take(9)).await;
        // The last unit of the second counter goes to somebody else, so the call is refused.
        let storage =
            Contended { memory: memory.clone(), key: two.clone(), puts: 0.into(), lost: 0 };
        let charges = [
            Charge::new(&one, QUOTA, Spend::Refund { units: 2, receipt }),
            Charge::new(&two, QUOTA, Spend::Take(1)),
        ];
        let verdicts = storage.acquire(&charges).await.unwrap();
        assert!(!verdicts[1].allowed);
        assert_eq!(remaining(&memory).await, [2, 0], "nothing was given back");
    }
}
