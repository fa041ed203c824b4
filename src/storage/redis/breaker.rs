//! When to stop asking a store that does not answer, and when to ask it again.
//!
//! Pure: the caller gives the time.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::error::Cause;

/// So many failures in a row are an outage.
const FAILURES: u32 = 5;
/// With the jitter, the first probe goes out after 64 to 96 ms.
const FIRST_WAIT: Duration = Duration::from_millis(80);
/// The longest that a store which is back may stay unused, but for the jitter.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Closed until [`FAILURES`] in a row; then open, but for one probe at a time.
#[derive(Default)]
pub(super) struct Breaker {
    /// False on the way that all calls take: neither failures nor an outage.
    troubled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    outage: Option<Outage>,
}

struct Outage {
    began: Instant,
    probe_at: Instant,
    wait: Duration,
    probing: bool,
    cause: Cause,
}

/// Whether a call may go on.
#[derive(Debug)]
pub(super) enum Admission {
    Free,
    /// As the only call, to find out whether the outage is over.
    Probe,
    /// Not now, because of this.
    Refused(Cause),
}

impl Breaker {
    pub(super) fn admit(&self, now: Instant) -> Admission {
        if !self.troubled.load(Ordering::Acquire) {
            return Admission::Free;
        }
        match &mut self.lock().outage {
            None => Admission::Free,
            Some(outage) if now < outage.probe_at || outage.probing => {
                Admission::Refused(outage.cause.clone())
            }
            Some(outage) => {
                outage.probing = true;
                Admission::Probe
            }
        }
    }

    /// The store did its work. Returns how long the outage was that this ends.
    ///
    /// What was under way before an outage began says nothing about its end: only the probe does.
    pub(super) fn succeeded(&self, probe: bool, now: Instant) -> Option<Duration> {
        if !self.troubled.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.lock();
        if state.outage.is_some() && !probe {
            return None;
        }
        state.failures = 0;
        self.troubled.store(false, Ordering::Release);
        state.outage.take().map(|outage| now - outage.began)
    }

    /// The store failed. Returns whether an outage begins with this.
    pub(super) fn failed(&self, probe: bool, now: Instant, cause: &Cause) -> bool {
        let mut state = self.lock();
        self.troubled.store(true, Ordering::Release);
        match &mut state.outage {
            Some(outage) if probe => {
                outage.wait = (outage.wait * 2).min(LONGEST_WAIT);
                outage.probe_at = now + jittered(outage.wait);
                outage.probing = false;
                outage.cause = cause.clone();
                false
            }
            // The rest of the wave that began it; it must not put the probe off.
            Some(_) => false,
            None => {
                state.failures += 1;
                state.failures >= FAILURES && state.begin(now, cause)
            }
        }
    }

    /// Begins an outage at once. Returns whether there was none.
    pub(super) fn trip(&self, now: Instant, cause: &Cause) -> bool {
        let mut state = self.lock();
        self.troubled.store(true, Ordering::Release);
        state.outage.is_none() && state.begin(now, cause)
    }

    /// The probe's caller went away before there was an answer: the next probe is another's.
    pub(super) fn abandoned(&self, now: Instant) {
        if let Some(outage) = &mut self.lock().outage {
            outage.probing = false;
            outage.probe_at = now + jittered(outage.wait);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self, now: Instant, cause: &Cause) -> bool {
        self.outage = Some(Outage {
            began: now,
            probe_at: now + jittered(FIRST_WAIT),
            wait: FIRST_WAIT,
            probing: false,
            cause: cause.clone(),
        });
        true
    }
}

/// Within 20 % of the wait, so that many processes do not come back as one.
fn jittered(wait: Duration) -> Duration {
    // Without randomness the processes are merely less spread.
    let random = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
    wait.mul_f64(0.8 + 0.4 * random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::ErrorKind;

    fn cause() -> Cause {
        Cause::new(ErrorKind::Timeout, "no answer")
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn open(breaker: &Breaker, now: Instant) {
        for i in 1..=FAILURES {
            assert!(matches!(breaker.admit(now), Admission::Free));
            assert_eq!(breaker.failed(false, now, &cause()), i == FAILURES);
        }
    }

    #[test]
    fn a_success_between_failures_keeps_the_breaker_closed() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..3 {
            for _ in 1..FAILURES {
                assert!(!breaker.failed(false, now, &cause()));
            }
            assert_eq!(breaker.succeeded(false, now), None);
        }
        assert!(matches!(breaker.admit(now), Admission::Free));
    }

    #[test]
    fn while_open_one_probe_goes_out_after_a_wait_that_doubles() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        open(&breaker, now);
        for wait in [80, 160, 320, 500, 500] {
            assert!(matches!(breaker.admit(now + ms(wait * 79 / 100)), Admission::Refused(_)));
            now += ms(wait * 121 / 100);
            assert!(matches!(breaker.admit(now), Admission::Probe));
            assert!(matches!(breaker.admit(now), Admission::Refused(_)));
            assert!(!breaker.failed(true, now, &cause()));
        }
        now += ms(700);
        assert!(matches!(breaker.admit(now), Admission::Probe));
        assert!(breaker.succeeded(true, now).is_some());
        assert!(matches!(breaker.admit(now), Admission::Free));
        assert!(matches!(breaker.admit(now), Admission::Free));
    }

    #[test]
    fn a_wave_of_failures_neither_puts_the_probe_off_nor_ends_the_outage() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        open(&breaker, now);
        for later in 0..95 {
            breaker.failed(false, now + ms(later), &cause());
            assert_eq!(breaker.succeeded(false, now + ms(later)), None);
        }
        assert!(matches!(breaker.admit(now + ms(97)), Admission::Probe));
    }

    #[test]
    fn an_abandoned_probe_lets_another_go_out() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        open(&breaker, now);
        assert!(matches!(breaker.admit(now + ms(97)), Admission::Probe));
        breaker.abandoned(now + ms(97));
        assert!(matches!(breaker.admit(now + ms(100)), Admission::Refused(_)));
        assert!(matches!(breaker.admit(now + ms(194)), Admission::Probe));
    }
}
