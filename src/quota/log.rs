//! The time of every unit: exact.

use super::{Counter, LONGEST_LOG, Quota, State, Step, spend_on};
use crate::storage::{Receipt, Spend};

struct Log {
    limit: u32,
    period: u64,
    now: u64,
    birth: u64,
    /// Times and units, oldest first, no two with one time.
    entries: Vec<(u64, u32)>,
}

pub(super) fn step(quota: &Quota, state: Option<&State>, now: u64, spend: Spend) -> Step {
    let (birth, entries) = match state {
        Some(State::Log { birth, entries }) => (*birth, entries.to_vec()),
        _ => (now, Vec::new()),
    };
    let mut log = Log { limit: quota.limit, period: quota.period_us, now, birth, entries };
    log.advance();
    let verdict = spend_on(&mut log, quota.limit, spend);
    let keep_us = log.until_full().max(1);
    let Log { birth, entries, .. } = log;
    Step { state: State::Log { birth, entries: entries.into() }, verdict, keep_us }
}

impl Log {
    fn advance(&mut self) {
        let (now, period) = (self.now, self.period);
        self.entries.retain(|(time, _)| time + period > now);
        // The clock was set back: what lies in the future counts as of now.
        if self.entries.last().is_some_and(|(time, _)| *time > now) {
            let first = self.entries.partition_point(|(time, _)| *time < now);
            let units = sum(&self.entries[first..]).min(u32::MAX.into()) as u32;
            self.entries.truncate(first);
            self.entries.push((now, units));
        }
    }
}

fn sum(entries: &[(u64, u32)]) -> u64 {
    entries.iter().map(|(_, units)| u64::from(*units)).sum()
}

impl Counter for Log {
    fn free(&self) -> u32 {
        u64::from(self.limit).saturating_sub(sum(&self.entries)) as u32 // at most the limit
    }

    fn wait(&self, units: u32) -> Option<u64> {
        if units > self.limit {
            return None;
        }
        let room = u64::from(self.limit - units);
        let mut used = sum(&self.entries);
        let mut wait = 0;
        for (time, count) in &self.entries {
            if used <= room {
                break;
            }
            used -= u64::from(*count);
            wait = time + self.period - self.now;
        }
        Some(wait)
    }

    fn until_full(&self) -> u64 {
        self.entries.last().map_or(0, |(time, _)| time + self.period - self.now)
    }

    fn take(&mut self, units: u32) -> u32 {
        let full = self.entries.len() >= LONGEST_LOG as usize;
        match self.entries.last_mut() {
            // Forced units may come without end; beyond the longest log they share an entry, which
            // is as young as the youngest of them.
            Some((time, count)) if *time == self.now || full => {
                let taken = units.min(u32::MAX - *count);
                (*time, *count) = (self.now, *count + taken);
                taken
            }
            _ => {
                self.entries.push((self.now, units));
                units
            }
        }
    }

    fn receipt(&self, units: u32) -> Receipt {
        Receipt { birth: self.birth, mark: self.now, position: 0, returned: 0, units }
    }

    fn refund(&mut self, units: u32, receipt: &Receipt) {
        if receipt.birth != self.birth {
            return;
        }
        if let Ok(i) = self.entries.binary_search_by_key(&receipt.mark, |(time, _)| *time) {
            self.entries[i].1 = self.entries[i].1.saturating_sub(units);
            if self.entries[i].1 == 0 {
                self.entries.remove(i);
            }
        }
    }

    fn reset(&mut self) {
        self.birth = self.now.max(self.birth + 1);
        self.entries.clear();
    }
}
