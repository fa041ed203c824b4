//! The token bucket, kept as a debt that drains: the generic cell rate algorithm with whole numbers.

use super::{Counter, Quota, State, Step, spend_on};
use crate::storage::{Receipt, Spend};

/// `returned` starts anew above this, and receipts from before it return nothing.
const MOST_RETURNED: u64 = 1 << 52;

/// Taking a unit adds `ticks` to the debt, and each tick drains `limit`: so a period of `ticks`
/// ticks drains `limit` units, without a fraction anywhere.
struct Bucket {
    limit: u64,
    burst: u32,
    tick: u64,
    ticks: u64,
    now: u64,
    birth: u64,
    at: u64,
    debt: u64,
    /// Debt that has left since the birth, drained or refunded. Debts are a queue that is left at
    /// its head, so this says which of them are still there; time could not, because the limit may
    /// have been another meanwhile and the clock may have been set back.
    returned: u64,
}

pub(super) fn step(
    quota: &Quota,
    burst: u32,
    state: Option<&State>,
    now: u64,
    spend: Spend,
) -> Step {
    let (tick, ticks) = quota.ticks();
    let (birth, at, debt, returned) = match state {
        Some(&State::Bucket { birth, at, debt, returned }) => (birth, at, debt, returned),
        _ => (now, now / tick, 0, 0),
    };
    let mut bucket =
        Bucket { limit: quota.limit.into(), burst, tick, ticks, now, birth, at, debt, returned };
    bucket.drain();
    let verdict = spend_on(&mut bucket, burst, spend);
    let keep_us = bucket.until_full().max(1);
    let Bucket { birth, at, debt, returned, .. } = bucket;
    Step { state: State::Bucket { birth, at, debt, returned }, verdict, keep_us }
}

impl Bucket {
    fn capacity(&self) -> u64 {
        u64::from(self.burst) * self.ticks
    }

    fn drain(&mut self) {
        let tick = self.now / self.tick;
        // A time from the future is now.
        let drained = tick.saturating_sub(self.at).saturating_mul(self.limit);
        self.leave(drained.min(self.debt));
        self.at = tick;
        if self.debt > self.capacity() {
            // The burst was lowered. Nobody shall wait for longer than one whole refill.
            self.debt = self.capacity();
            self.disown();
        }
    }

    fn leave(&mut self, debt: u64) {
        self.debt -= debt;
        self.returned += debt;
        if self.returned > MOST_RETURNED {
            self.disown();
        }
    }

    /// Ends all receipts: debt was forgiven, and nobody knows whose.
    fn disown(&mut self) {
        self.returned = 0;
        self.birth = self.now.max(self.birth + 1);
    }

    /// Microseconds until `debt` has drained.
    fn until_drained(&self, debt: u64) -> u64 {
        match debt.div_ceil(self.limit) {
            0 => 0,
            // A burst of many periods may take longer to drain than a number can say.
            ticks => (self.at + ticks).saturating_mul(self.tick) - self.now,
        }
    }
}

impl Counter for Bucket {
    fn free(&self) -> u32 {
        ((self.capacity() - self.debt) / self.ticks) as u32 // at most the burst
    }

    fn wait(&self, units: u32) -> Option<u64> {
        if units > self.burst {
            return None;
        }
        let debt = self.debt + u64::from(units) * self.ticks;
        Some(self.until_drained(debt.saturating_sub(self.capacity())))
    }

    fn until_full(&self) -> u64 {
        self.until_drained(self.debt)
    }

    fn take(&mut self, units: u32) -> u32 {
        let room = self.capacity() - self.debt;
        let debt = u64::from(units) * self.ticks;
        self.debt += debt.min(room);
        if debt <= room {
            return units;
        }
        self.disown();
        (room / self.ticks) as u32 // less than the units
    }

    fn receipt(&self, units: u32) -> Receipt {
        Receipt { birth: self.birth, mark: 0, position: self.debt, returned: self.returned, units }
    }

    fn refund(&mut self, units: u32, receipt: &Receipt) {
        if receipt.birth != self.birth {
            return;
        }
        // What has left since has reached this debt only where it exceeds the debts before it.
        let left = receipt.position.saturating_sub(self.returned.saturating_sub(receipt.returned));
        self.leave((u64::from(units) * self.ticks).min(left).min(self.debt));
    }

    fn reset(&mut self) {
        self.debt = 0;
        self.disown();
    }
}
