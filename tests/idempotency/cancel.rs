//! Requests that are dropped at every point at which they wait: what each leaves behind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    http::{Response, StatusCode},
    response::IntoResponse,
};
use bytes::Bytes;
use tokio::time::{sleep, timeout};
use tower_keep::{
    MemoryStorage,
    idempotency::{Idempotency, Policy, Repeat},
};

use crate::{
    flows::{FLOWS, Flow, Flow::*, STEP, Work, spawn},
    staged::Staged,
    till::{Till, receipt},
    traces::{Left, SETTLED, dropped_after, left, listed, short, vanish},
};

const WAY: Duration = Duration::from_millis(2);

/// One server, and two processes: the one on which requests are dropped, and another.
struct Case {
    flow: Flow,
    what: String,
    memory: MemoryStorage,
    node: Till,
    other: Till,
    /// How often the recovery was asked.
    hooks: Arc<AtomicUsize>,
    work: Work,
}

impl Case {
    async fn prepare(flow: Flow, sent: bool, what: String) -> Self {
        let memory = MemoryStorage::new();
        let hooks = Arc::new(AtomicUsize::new(0));
        let policy = flow.policy(&hooks);
        let work = Work::new(flow);
        let staged = match sent {
            true => Staged::sent(&memory, WAY),
            false => Staged::recalled(&memory, WAY),
        };
        let node = work.till(staged, policy.clone());
        let other = work.till(Staged::new(&memory), policy.clone());
        match flow {
            Conflict | Waiting => {
                spawn(&other, "a-key", "slow").await;
            }
            Replay => drop(node.charge("a-key", "act").await),
            Mismatch => drop(node.charge("a-key", "plain").await),
            _ if flow.finds_a_vanished_owner() => vanish(&memory, policy, "act").await,
            _ => {}
        }
        if flow.is_crowded() {
            spawn(&node, "another-key", "slow").await;
        }
        for till in [&node, &other] {
            till.executions.store(0, SeqCst);
        }
        Self { flow, what, memory, node, other, hooks, work }
    }

    #[track_caller]
    fn assert(&self, holds: bool, why: &str) {
        assert!(holds, "{:?}, {}: {why}", self.flow, self.what);
    }

    #[track_caller]
    fn assert_answer(&self, answer: &Response<Bytes>, expected: (u16, bool, &str)) {
        let (status, replay, code) = short(answer);
        let given = (status, replay, code.as_str());
        assert_eq!(given, expected, "{:?}, {}: {answer:?}", self.flow, self.what);
    }

    /// How often the request has run, and what it has left, when all is done.
    async fn check(&self) -> (usize, Left) {
        sleep(SETTLED).await;
        let ran = self.node.executions();
        let left = left(&self.memory).await;
        let may = self.flow.may_leave(ran, left);
        self.assert(may, &format!("it has run {ran} times and left {left:?}"));
        self.work.open.send_replace(true);
        sleep(SETTLED).await;

        if self.flow == Waiting {
            self.check_places_of_waiters().await;
        }
        if self.flow == Marking && left == Left::Unknown {
            self.assert(listed(&self.node.layer).await.len() == 1, "no operator sees it");
        }
        let next = self.node.send(self.flow.request()).await;
        self.assert_answer(&next, self.flow.next_answer(ran, left));
        let runs_again = match self.flow {
            Release | InFlightFull | Busy | TakeOverBusy => 1,
            Recovered | RecoveredBusy | StillUnknown | Marking | Replay | Mismatch => 0,
            Conflict | Waiting => 0,
            _ => 1 - ran,
        };
        self.assert(self.node.executions() == ran + runs_again, "it ran too often, or not at all");
        if self.flow == Marking {
            self.assert(listed(&self.node.layer).await.len() == 1, "no operator sees it");
        }
        let asks = matches!(self.flow, Recovered | RecoveredBusy | NotExecuted | StillUnknown);
        self.assert(
            asks == (self.hooks.load(SeqCst) > 0),
            "nobody has asked, or somebody too much",
        );
        // Neither the one that may run nor the one place of the scope is taken any more.
        for key in ["b-key", "c-key"] {
            self.assert_answer(&self.node.charge(key, "plain").await, (201, false, ""));
        }
        (ran, left)
    }

    /// The one that may wait may.
    async fn check_places_of_waiters(&self) {
        self.work.open.send_replace(false);
        spawn(&self.other, "d-key", "slow").await;
        let waits = self.node.charge("d-key", "slow");
        let (answer, ()) = tokio::join!(waits, async {
            sleep(STEP).await;
            self.work.open.send_replace(true);
        });
        self.assert_answer(&answer, (201, true, ""));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_wherever_it_waits_leaves_no_half() {
    for flow in FLOWS {
        for sent in [true, false] {
            let mut outcomes = Vec::new();
            for point in 1.. {
                let what = format!("dropped after {point}, commands arrive: {sent}");
                let case = Case::prepare(flow, sent, what).await;
                if flow == Waiting {
                    let open = case.work.open.clone();
                    tokio::spawn(async move {
                        sleep(20 * STEP).await;
                        open.send_replace(true);
                    });
                }
                let answer = dropped_after(point, case.node.send(flow.request())).await;
                let outcome = case.check().await;
                outcomes.push(outcome.0);
                if let Some(answer) = answer {
                    case.assert_answer(&answer, flow.answer());
                    assert!(point > 1, "{flow:?} waits nowhere");
                    break;
                }
            }
            let executes = !matches!(flow.answer().0, 409 | 429 | 503)
                && !matches!(flow, Waiting | Replay | Mismatch | Recovered);
            assert_eq!(outcomes.first(), Some(&0), "{flow:?}");
            assert_eq!(outcomes.last(), Some(&usize::from(executes)), "{flow:?}");
        }
    }
}

/// Also when it is the handler that lets go: then nothing has begun.
#[tokio::test(start_paused = true)]
async fn a_commit_point_that_is_dropped_wherever_it_waits_is_none() {
    for sent in [true, false] {
        for point in 1.. {
            let memory = MemoryStorage::new();
            let policy = Policy::scope_public().with_commit_point().with_repeat(Repeat::AtMostOnce);
            let staged = match sent {
                true => Staged::sent(&memory, WAY),
                false => Staged::recalled(&memory, WAY),
            };
            let till = Till::new(staged, policy, move |execution, mut request| async move {
                let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
                match dropped_after(point, attempt.begin()).await {
                    Some(begun) => begun.unwrap(),
                    None => return StatusCode::ACCEPTED.into_response(),
                }
                receipt(execution)
            });
            let first = till.charge("a-key", "").await;
            sleep(SETTLED).await;
            if first.status() == 201 {
                assert!(point > 1, "it waits nowhere");
                assert_eq!(left(&memory).await, Left::Done);
                break;
            }
            assert_eq!(left(&memory).await, Left::Nothing, "{point}, {sent}");
            assert_eq!(short(&till.charge("a-key", "").await).0, 202);
            assert_eq!(till.executions(), 2);
        }
    }
}

/// A handler that lasts long is not ended with its client, and its second sign of life is as good as
/// its first.
#[tokio::test(start_paused = true)]
async fn who_goes_away_during_a_long_handler_finds_its_answer_later() {
    let memory = MemoryStorage::new();
    let staged = Staged::sent(&memory, WAY);
    let till = Till::new(staged, Policy::scope_public(), |execution, _| async move {
        sleep(Duration::from_secs(100)).await;
        receipt(execution)
    });
    for _ in 0..24 {
        let answer = timeout(Duration::from_secs(4), till.charge("a-key", "")).await;
        if let Ok(answer) = answer {
            assert_eq!(short(&answer), (409, false, "in-flight".into()));
            sleep(Duration::from_secs(4)).await;
        }
    }
    sleep(Duration::from_secs(10)).await;
    assert_eq!(short(&till.charge("a-key", "").await), (201, true, String::new()));
    assert_eq!(till.executions(), 1);
}
