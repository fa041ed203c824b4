//! What a lane's answers, and their absence, say about its connection.
//!
//! Pure: the caller gives the time, in milliseconds from 1 on.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Timeouts in a row, with no answer between, after which a connection is taken for dead.
const STRIKES: u32 = 3;

pub(super) struct Health {
    /// The deadline of what the lane is for.
    patience: Duration,
    answered: AtomicU64,
    /// When the first call was sent that has had no answer since; 0 if there is none.
    waiting_since: AtomicU64,
    strikes: AtomicU32,
    struck: AtomicU64,
}

impl Health {
    pub(super) fn new(patience: Duration, now: u64) -> Self {
        Self {
            patience,
            answered: now.into(),
            waiting_since: 0.into(),
            strikes: 0.into(),
            struck: 0.into(),
        }
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether to ask for a `PING` before the next call: after a pause, and after a silence as long
    /// as it takes for [`STRIKES`] timeouts. Callers that give up before their deadline never see a
    /// timeout, so timeouts alone would miss a dead peer.
    pub(super) fn is_doubtful(&self, now: u64, idle: Duration) -> bool {
        let longer =
            |since: u64, time: Duration| u128::from(now.saturating_sub(since)) > time.as_millis();
        let waiting = self.waiting_since.load(Relaxed);
        longer(self.answered.load(Relaxed), idle)
            || (waiting != 0 && longer(waiting, self.patience * STRIKES))
    }

    pub(super) fn sent(&self, now: u64) {
        // Under load answers come all the time; only the first call of a silence is written down.
        if self.answered.load(Relaxed) != now && self.waiting_since.load(Relaxed) == 0 {
            self.waiting_since.store(now, Relaxed);
        }
    }

    pub(super) fn answered(&self, now: u64) {
        if self.answered.load(Relaxed) != now {
            self.answered.store(now, Relaxed);
        }
        if self.waiting_since.load(Relaxed) != 0 {
            self.waiting_since.store(0, Relaxed);
        }
        if self.strikes.load(Relaxed) != 0 {
            self.strikes.store(0, Relaxed);
        }
    }

    /// A call that began at `start` had no answer. Returns whether that was the last strike.
    pub(super) fn timed_out(&self, start: u64, now: u64) -> bool {
        // The calls of one wave were under way together and count once.
        if start < self.struck.load(Relaxed) {
            return false;
        }
        self.struck.store(now, Relaxed);
        self.strikes.fetch_add(1, Relaxed) + 1 >= STRIKES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);
    const IDLE: Duration = Duration::from_secs(2);

    #[test]
    fn three_waves_of_timeouts_in_a_row_are_three_strikes() {
        let health = Health::new(PATIENCE, 1);
        assert!((0..50).all(|i| !health.timed_out(10 + i % 9, 110)));
        assert!((0..50).all(|i| !health.timed_out(110 + i, 210)));
        assert!(health.timed_out(210, 310));
    }

    #[test]
    fn an_answer_between_timeouts_starts_the_count_again() {
        let health = Health::new(PATIENCE, 1);
        for wave in 1..10 {
            assert!(!health.timed_out(wave * 100, wave * 100 + 100));
            if wave % 2 == 0 {
                health.answered(wave * 100 + 100);
            }
        }
    }

    #[test]
    fn a_pause_and_a_long_silence_are_doubtful_and_an_answer_ends_the_doubt() {
        let health = Health::new(PATIENCE, 1);
        assert!(!health.is_doubtful(2001, IDLE));
        assert!(health.is_doubtful(2002, IDLE));
        health.answered(2002);
        health.sent(2010);
        health.sent(2300);
        assert!(!health.is_doubtful(2310, IDLE));
        assert!(health.is_doubtful(2311, IDLE));
        health.answered(2311);
        assert!(!health.is_doubtful(2700, IDLE));
    }
}
