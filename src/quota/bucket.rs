//! The token bucket, kept as a debt that drains: the generic cell rate algorithm with whole numbers.

use super::{Counter, Quota, State, Step, spend_on};
use crate::storage::{Receipt, Spend};

/// No bucket is waited for longer (100 years): at one unit a year the last of a large burst would
/// come after the end of the numbers.
const LONGEST_WAIT: u64 = 100 * 366 * 86_400 * 1_000_000;
/// `returned` starts anew above this.
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
    /// Debt ever refunded. A refund takes from the head of the queue of debts, so a receipt must
    /// count what was refunded since as drained; otherwise two refunds could return one debt.
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
        // A time from the future is now; a debt above the capacity (a burst that was lowered) is
        // cut, so that nobody waits for longer than one whole refill.
        let drained = tick.saturating_sub(self.at).saturating_mul(self.limit);
        self.debt = self.debt.saturating_sub(drained).min(self.capacity());
        self.at = tick;
    }

    /// Microseconds until `debt` has drained.
    fn until_drained(&self, debt: u64) -> u64 {
        match debt.div_ceil(self.limit) {
            0 => 0,
            ticks if ticks >= LONGEST_WAIT / self.tick => LONGEST_WAIT,
            ticks => (self.at + ticks) * self.tick - self.now,
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

    fn take(&mut self, units: u32) {
        let debt = self.debt + u64::from(units) * self.ticks;
        self.debt = debt.min(self.capacity());
    }

    fn receipt(&self, units: u32) -> Receipt {
        Receipt {
            birth: self.birth,
            mark: self.at,
            position: self.debt,
            returned: self.returned,
            limit: self.limit as u32,
            units,
        }
    }

    fn refund(&mut self, units: u32, receipt: &Receipt) {
        if receipt.birth != self.birth {
            return;
        }
        // Debts drain in the order in which they were made. What has drained since the receipt has
        // reached its debt only where it exceeds the debts before it.
        let limit = self.limit.max(receipt.limit.into());
        let drained = self.at.saturating_sub(receipt.mark).saturating_mul(limit);
        let refunded = self.returned.saturating_sub(receipt.returned);
        let left = receipt.position.saturating_sub(drained).saturating_sub(refunded);
        let amount = (u64::from(units) * self.ticks).min(left).min(self.debt);
        self.debt -= amount;
        self.returned += amount;
        if self.returned > MOST_RETURNED {
            self.returned = 0;
            self.birth = self.now.max(self.birth + 1);
        }
    }

    fn reset(&mut self) {
        self.birth = self.now.max(self.birth + 1);
        (self.debt, self.returned) = (0, 0);
    }
}
