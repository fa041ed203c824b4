//! The two-window counter.

use super::{Counter, Quota, State, Step, spend_on};
use crate::storage::{Receipt, Spend};

struct Sliding {
    limit: u32,
    /// Microseconds per tick and ticks per window.
    tick: u64,
    ticks: u64,
    now: u64,
    birth: u64,
    start: u64,
    previous: u32,
    current: u32,
}

pub(super) fn step(quota: &Quota, state: Option<&State>, now: u64, spend: Spend) -> Step {
    let (tick, ticks) = quota.ticks();
    let (birth, start, previous, current) = match state {
        Some(&State::Sliding { birth, start, previous, current }) => {
            (birth, start, previous, current)
        }
        _ => (now, now, 0, 0),
    };
    let mut window =
        Sliding { limit: quota.limit, tick, ticks, now, birth, start, previous, current };
    window.advance();
    let verdict = spend_on(&mut window, quota.limit, spend);
    let Sliding { birth, start, previous, current, .. } = window;
    Step {
        state: State::Sliding { birth, start, previous, current },
        verdict,
        keep_us: (start + 2 * window.width()).saturating_sub(now),
    }
}

impl Sliding {
    fn width(&self) -> u64 {
        self.tick * self.ticks
    }

    fn advance(&mut self) {
        self.start = self.start.min(self.now);
        match (self.now - self.start) / self.width() {
            0 => {}
            1 => {
                self.previous = self.current;
                self.current = 0;
                self.start += self.width();
            }
            _ => (self.previous, self.current) = (0, 0),
        }
        if self.previous == 0 && self.current == 0 {
            // An unused window starts with its first unit, so that clients' windows do not all end
            // at the same time.
            self.start = self.now;
        }
    }

    /// Whole ticks since the window began, below `ticks`.
    fn elapsed(&self) -> u64 {
        (self.now - self.start) / self.tick
    }

    /// Unit-ticks in use, at most 2^53.
    fn used(&self) -> u64 {
        u64::from(self.previous) * (self.ticks - self.elapsed())
            + u64::from(self.current) * self.ticks
    }

    fn until_tick(&self, tick: u64) -> u64 {
        self.start + tick * self.tick - self.now
    }
}

impl Counter for Sliding {
    fn free(&self) -> u32 {
        let free = (u64::from(self.limit) * self.ticks).saturating_sub(self.used()) / self.ticks;
        free as u32 // at most the limit
    }

    fn wait(&self, units: u32) -> Option<u64> {
        let (units, limit) = (u64::from(units), u64::from(self.limit));
        if units > limit {
            return None;
        }
        // Not "used plus units minus limit", whose first sum could pass 2^53.
        let over = self.used().saturating_sub((limit - units) * self.ticks);
        if over == 0 {
            return Some(0);
        }
        let current = u64::from(self.current);
        if current + units <= limit {
            // Enough of the previous window leaves; it has a count, for else nothing were over.
            return Some(self.until_tick(self.elapsed() + over.div_ceil(self.previous.into())));
        }
        // The current window must become the previous one first.
        let after = (self.ticks * (current + units - limit)).div_ceil(current);
        Some(self.until_tick(self.ticks + after))
    }

    fn until_full(&self) -> u64 {
        match (self.current, self.previous) {
            (0, 0) => 0,
            (0, _) => self.until_tick(self.ticks),
            _ => self.until_tick(2 * self.ticks),
        }
    }

    fn take(&mut self, units: u32) -> u32 {
        let taken = units.min(u32::MAX - self.current);
        self.current += taken;
        taken
    }

    fn receipt(&self, units: u32) -> Receipt {
        Receipt { birth: self.birth, mark: self.start, position: 0, returned: 0, units }
    }

    fn refund(&mut self, units: u32, receipt: &Receipt) {
        if receipt.birth != self.birth {
            return;
        }
        if receipt.mark == self.start {
            self.current = self.current.saturating_sub(units);
        } else if receipt.mark + self.width() == self.start {
            self.previous = self.previous.saturating_sub(units);
        }
    }

    fn reset(&mut self) {
        self.birth = self.now.max(self.birth + 1);
        (self.start, self.previous, self.current) = (self.now, 0, 0);
    }
}
