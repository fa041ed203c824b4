//! Sub-windows: never above the limit in any window.

use super::{Counter, MOST_SLOTS, Quota, State, Step, spend_on};
use crate::storage::{Receipt, Spend};

struct Strict {
    limit: u32,
    width: u64,
    now: u64,
    birth: u64,
    slot: u64,
    /// The count of `slot` first, then of the ones before it. One more than the slots of a period:
    /// those that a window ending anywhere in the newest can touch.
    counts: Vec<u32>,
}

pub(super) fn step(
    quota: &Quota,
    slots: u8,
    state: Option<&State>,
    now: u64,
    spend: Spend,
) -> Step {
    let width = quota.period_us.div_ceil(slots.into());
    let len = usize::from(slots) + 1;
    let (birth, slot, counts) = match state {
        Some(State::Strict { birth, slot, counts }) if counts.len() == len => {
            (*birth, *slot, counts.to_vec())
        }
        _ => (now, now / width, vec![0; len]),
    };
    let mut window = Strict { limit: quota.limit, width, now, birth, slot, counts };
    window.advance();
    let verdict = spend_on(&mut window, quota.limit, spend);
    let keep_us = window.until_full().max(1);
    let Strict { birth, slot, counts, .. } = window;
    Step { state: State::Strict { birth, slot, counts: counts.into() }, verdict, keep_us }
}

impl Strict {
    fn advance(&mut self) {
        let (slot, len) = (self.now / self.width, self.counts.len());
        if slot >= self.slot {
            let passed = (slot - self.slot).min(len as u64) as usize;
            self.counts.rotate_right(passed);
            self.counts[..passed].fill(0);
        } else {
            // The clock was set back: what lies in the future counts as of now.
            let ahead = (self.slot - slot).min(len as u64 - 1) as usize;
            let future = sum(&self.counts[..=ahead]).min(u32::MAX.into()) as u32;
            self.counts.rotate_left(ahead);
            self.counts[len - ahead..].fill(0);
            self.counts[0] = future;
        }
        self.slot = slot;
    }

    fn until_slot(&self, passed: usize) -> u64 {
        (self.slot + passed as u64) * self.width - self.now
    }
}

fn sum(counts: &[u32]) -> u64 {
    counts.iter().map(|count| u64::from(*count)).sum()
}

impl Counter for Strict {
    fn free(&self) -> u32 {
        u64::from(self.limit).saturating_sub(sum(&self.counts)) as u32 // at most the limit
    }

    fn wait(&self, units: u32) -> Option<u64> {
        if units > self.limit {
            return None;
        }
        let len = self.counts.len();
        let fits =
            |passed: &usize| sum(&self.counts[..len - passed]) <= u64::from(self.limit - units);
        match (0..=len).find(fits) {
            Some(0) => Some(0),
            passed => passed.map(|passed| self.until_slot(passed)),
        }
    }

    fn until_full(&self) -> u64 {
        match self.counts.iter().position(|count| *count > 0) {
            None => 0,
            Some(newest) => self.until_slot(self.counts.len() - newest),
        }
    }

    fn take(&mut self, units: u32) -> u32 {
        let taken = units.min(u32::MAX - self.counts[0]);
        self.counts[0] += taken;
        taken
    }

    fn receipt(&self, units: u32) -> Receipt {
        Receipt { birth: self.birth, mark: self.slot, position: 0, returned: 0, units }
    }

    fn refund(&mut self, units: u32, receipt: &Receipt) {
        let age = self.slot.checked_sub(receipt.mark).filter(|age| *age <= MOST_SLOTS.into());
        if let Some(age) = age.filter(|_| receipt.birth == self.birth)
            && let Some(count) = self.counts.get_mut(age as usize)
        {
            *count = count.saturating_sub(units);
        }
    }

    fn reset(&mut self) {
        self.birth = self.now.max(self.birth + 1);
        self.counts.fill(0);
    }
}
