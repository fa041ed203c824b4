//! What a request is told that finds a record under its key; pure.

use std::time::Duration;

use super::{
    Repeat,
    fingerprint::Fingerprint,
    record::{Phase, Record, State},
};

/// What becomes of a request whose key is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The key was used for another request.
    Mismatch,
    /// The owner is at it, and gave a sign of life less than a lease ago: until this it cannot have
    /// vanished.
    InFlight { sure: Duration },
    /// There is a response to replay.
    Replay,
    /// It was executed, and the response is not kept.
    Sealed,
    /// The owner has vanished, and the request may be executed again.
    TakeOver,
    /// The owner has vanished, and somebody can be asked what it did.
    Recover,
    /// The owner has vanished, and nobody knows what it did.
    Unknown {
        /// Whether the record says so already.
        marked: bool,
    },
}

/// How to go on after the owner of a key has vanished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) repeat: Repeat,
    pub(super) can_recover: bool,
}

/// What becomes of a request with this fingerprint that finds this record, written so long ago.
///
/// The fingerprint comes first: neither a response nor the news that one is under way is for another
/// request.
pub(super) fn judge(
    record: &Record,
    age: Duration,
    fingerprint: &Fingerprint,
    rule: Rule,
) -> Judgement {
    if record.fingerprint != *fingerprint {
        return Judgement::Mismatch;
    }
    match record.state {
        State::Done(_) => Judgement::Replay,
        State::Sealed(_) => Judgement::Sealed,
        State::Pending(_) if age < record.lease => Judgement::InFlight { sure: record.lease - age },
        State::Pending(phase) => vanished(phase, rule, false),
        State::Unknown(phase) => vanished(phase, rule, true),
    }
}

fn vanished(phase: Phase, rule: Rule, marked: bool) -> Judgement {
    match (rule.repeat, phase) {
        (Repeat::AtLeastOnce, _) | (Repeat::AtMostOnce, Phase::BeforeCommit) => Judgement::TakeOver,
        (Repeat::AtMostOnce, _) if rule.can_recover => Judgement::Recover,
        (Repeat::AtMostOnce, _) => Judgement::Unknown { marked },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::idempotency::{
        SealReason,
        record::{Sealed, StoredResponse},
    };

    const LEASE: Duration = Duration::from_secs(30);
    const ALIVE: Duration = Duration::from_secs(29);
    const MINE: Fingerprint = Fingerprint([1; 32]);
    const OTHER: Fingerprint = Fingerprint([2; 32]);
    const LEAST: Rule = Rule { repeat: Repeat::AtLeastOnce, can_recover: false };
    const MOST: Rule = Rule { repeat: Repeat::AtMostOnce, can_recover: false };
    const HOOK: Rule = Rule { repeat: Repeat::AtMostOnce, can_recover: true };
    const PHASES: [Phase; 4] =
        [Phase::Undeclared, Phase::BeforeCommit, Phase::AfterCommit, Phase::Recovering];

    fn record(state: State) -> Record {
        let (token, label) = ([0; 16], "".into());
        Record { token, fingerprint: MINE, attempt: 1, lease: LEASE, label, state }
    }

    fn done() -> State {
        let (status, headers, body) = (StatusCode::CREATED, HeaderMap::new(), Bytes::new());
        State::Done(StoredResponse { status, headers, body })
    }

    fn sealed() -> State {
        let (status, location) = (StatusCode::CREATED, None);
        State::Sealed(Sealed { status, location, reason: SealReason::TooLarge })
    }

    #[test]
    fn another_request_is_refused_in_every_state_and_at_every_age() {
        let mut states = vec![done(), sealed()];
        states.extend(PHASES.map(State::Pending));
        states.extend(PHASES.map(State::Unknown));
        for state in states {
            for age in [Duration::ZERO, ALIVE, LEASE, LEASE * 100] {
                for rule in [LEAST, MOST, HOOK] {
                    let judgement = judge(&record(state.clone()), age, &OTHER, rule);
                    assert_eq!(judgement, Judgement::Mismatch);
                }
            }
        }
    }

    #[test]
    fn a_living_owner_is_waited_for_whatever_the_rule() {
        for phase in PHASES {
            for rule in [LEAST, MOST, HOOK] {
                let judgement = judge(&record(State::Pending(phase)), ALIVE, &MINE, rule);
                assert_eq!(judgement, Judgement::InFlight { sure: Duration::from_secs(1) });
            }
        }
    }

    #[test]
    fn what_is_done_stays_done_at_any_age() {
        for rule in [LEAST, MOST, HOOK] {
            assert_eq!(judge(&record(done()), LEASE * 9, &MINE, rule), Judgement::Replay);
            assert_eq!(judge(&record(sealed()), LEASE * 9, &MINE, rule), Judgement::Sealed);
        }
    }

    #[test]
    fn after_its_lease_an_owner_has_vanished() {
        use Judgement::{Recover, TakeOver, Unknown};

        let marked = false;
        let rows = [
            (Phase::Undeclared, TakeOver, Unknown { marked }, Recover),
            (Phase::BeforeCommit, TakeOver, TakeOver, TakeOver),
            (Phase::AfterCommit, TakeOver, Unknown { marked }, Recover),
            (Phase::Recovering, TakeOver, Unknown { marked }, Recover),
        ];
        for (phase, least, most, hook) in rows {
            let pending = record(State::Pending(phase));
            assert_eq!(judge(&pending, LEASE, &MINE, LEAST), least, "{phase:?}");
            assert_eq!(judge(&pending, LEASE, &MINE, MOST), most, "{phase:?}");
            assert_eq!(judge(&pending, LEASE, &MINE, HOOK), hook, "{phase:?}");
        }
    }

    #[test]
    fn an_unknown_outcome_needs_no_age() {
        for age in [Duration::ZERO, LEASE] {
            let unknown = record(State::Unknown(Phase::AfterCommit));
            assert_eq!(judge(&unknown, age, &MINE, MOST), Judgement::Unknown { marked: true });
            assert_eq!(judge(&unknown, age, &MINE, HOOK), Judgement::Recover);
            assert_eq!(judge(&unknown, age, &MINE, LEAST), Judgement::TakeOver);
        }
    }
}
