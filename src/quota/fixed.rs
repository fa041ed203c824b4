//! One count per window: from the first unit on, or per calendar day or month.

use super::{Algorithm, Counter, Quota, State, Step, calendar, spend_on};
use crate::storage::{Receipt, Spend};

struct Fixed {
    limit: u32,
    now: u64,
    birth: u64,
    start: u64,
    end: u64,
    count: u32,
}

pub(super) fn step(quota: &Quota, state: Option<&State>, now: u64, spend: Spend) -> Step {
    let (birth, start, count) = match state {
        Some(&State::Fixed { birth, start, count }) => (birth, start, count),
        _ => (now, now, 0),
    };
    // A window from the future is one of now: the clock was set back.
    let kept = start.min(now);
    let (start, end) = match quota.algorithm {
        Algorithm::CalendarDay => calendar::day(now),
        Algorithm::CalendarMonth => calendar::month(now),
        _ if count > 0 && now - kept < quota.period_us => (kept, kept + quota.period_us),
        _ => (now, now + quota.period_us),
    };
    // A calendar window begins before its first count; any other is over when it begins anew.
    let count = if kept < start { 0 } else { count };
    let mut window = Fixed { limit: quota.limit, now, birth, start, end, count };
    let verdict = spend_on(&mut window, quota.limit, spend);
    let Fixed { birth, start, count, .. } = window;
    Step { state: State::Fixed { birth, start, count }, verdict, keep_us: end - now }
}

impl Counter for Fixed {
    fn free(&self) -> u32 {
        self.limit.saturating_sub(self.count)
    }

    fn wait(&self, units: u32) -> Option<u64> {
        if units > self.limit {
            None
        } else if units <= self.free() {
            Some(0)
        } else {
            Some(self.end - self.now)
        }
    }

    fn until_full(&self) -> u64 {
        if self.count == 0 { 0 } else { self.end - self.now }
    }

    fn take(&mut self, units: u32) -> u32 {
        let taken = units.min(u32::MAX - self.count);
        self.count += taken;
        taken
    }

    fn receipt(&self, units: u32) -> Receipt {
        Receipt { birth: self.birth, mark: self.start, position: 0, returned: 0, units }
    }

    fn refund(&mut self, units: u32, receipt: &Receipt) {
        if receipt.birth == self.birth && receipt.mark == self.start {
            self.count = self.count.saturating_sub(units);
        }
    }

    fn reset(&mut self) {
        self.birth = self.now.max(self.birth + 1);
        self.count = 0;
    }
}
