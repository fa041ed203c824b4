//! Requests that are dropped at every point at which they wait: what each leaves behind.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, Response, StatusCode},
    response::IntoResponse,
};
use bytes::Bytes;
use futures_util::stream;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tower_keep::{
    MemoryStorage,
    idempotency::{Idempotency, InFlight, Policy, Recovery, Repeat},
};

use crate::{
    staged::Staged,
    till::{Till, charge, receipt},
    traces::{Left, SETTLED, dropped_after, left, listed, short, vanish},
};

const WAY: Duration = Duration::from_millis(2);
const STEP: Duration = Duration::from_millis(5);

/// What a request runs into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    First,
    /// Its body comes in pieces.
    Uploading,
    /// The body of its answer does.
    Streaming,
    /// The handler calls `begin`.
    Begin,
    /// The handler answers 422.
    Release,
    /// The handler keeps its answer out of the storage.
    Seal,
    InFlightQuota,
    /// The one place is taken.
    InFlightFull,
    StoredQuota,
    /// Nothing may be stored any more.
    StoredFull,
    /// Another handler is running, which is as many as may.
    Busy,
    /// The first is under way elsewhere.
    Conflict,
    Waiting,
    Replay,
    Mismatch,
    /// The owner has vanished.
    TakeOver,
    /// The same before the commit point.
    TakeOverBeforeCommit,
    /// The same, and there is no room for the handler.
    TakeOverBusy,
    /// The recovery knows the answer.
    Recovered,
    NotExecuted,
    StillUnknown,
    /// It would, but there is no room for it.
    RecoveredBusy,
    /// Nobody knows what the owner has done.
    Marking,
}

use Flow::*;

const FLOWS: [Flow; 23] = [
    First,
    Uploading,
    Streaming,
    Begin,
    Release,
    Seal,
    InFlightQuota,
    InFlightFull,
    StoredQuota,
    StoredFull,
    Busy,
    Conflict,
    Waiting,
    Replay,
    Mismatch,
    TakeOver,
    TakeOverBeforeCommit,
    TakeOverBusy,
    Recovered,
    NotExecuted,
    StillUnknown,
    RecoveredBusy,
    Marking,
];

impl Flow {
    fn policy(self, hooks: &Arc<AtomicUsize>) -> Policy {
        let policy = Policy::scope_public().with_max_running(1).with_max_waiting(1);
        let hooks = Arc::clone(hooks);
        match self {
            Begin | TakeOverBeforeCommit => {
                policy.with_commit_point().with_repeat(Repeat::AtMostOnce)
            }
            InFlightQuota => policy.with_max_in_flight(1),
            InFlightFull => policy.with_max_in_flight(1).with_max_running(2),
            StoredQuota => policy.with_max_stored(1_000),
            StoredFull => policy.with_max_stored(1),
            Waiting => policy.with_in_flight(InFlight::Wait(Duration::from_secs(5))),
            Recovered | NotExecuted | StillUnknown | RecoveredBusy => {
                policy.with_recovery(move |_| {
                    hooks.fetch_add(1, SeqCst);
                    async move {
                        sleep(STEP).await;
                        match self {
                            NotExecuted => Recovery::NotExecuted,
                            StillUnknown => Recovery::Unknown,
                            _ => Recovery::Completed(Response::new("from the ledger".into())),
                        }
                    }
                })
            }
            Marking => policy.with_repeat(Repeat::AtMostOnce),
            _ => policy,
        }
    }

    fn finds_a_vanished_owner(self) -> bool {
        matches!(
            self,
            TakeOver
                | TakeOverBeforeCommit
                | TakeOverBusy
                | Recovered
                | NotExecuted
                | StillUnknown
                | RecoveredBusy
                | Marking
        )
    }

    fn is_crowded(self) -> bool {
        matches!(self, Busy | TakeOverBusy | RecoveredBusy | InFlightFull)
    }

    /// What the request is answered if nobody drops it.
    fn answer(self) -> (u16, bool, &'static str) {
        match self {
            Release => (422, false, ""),
            InFlightFull => (429, false, "too-many-in-flight"),
            Busy | TakeOverBusy | RecoveredBusy => (503, false, "busy"),
            Conflict => (409, false, "in-flight"),
            Waiting | Replay => (201, true, ""),
            Mismatch => (422, false, "mismatch"),
            Recovered => (200, false, ""),
            StillUnknown | Marking => (409, false, "outcome-unknown"),
            _ => (201, false, ""),
        }
    }

    /// Whether it may have run so often, and then have left that.
    fn may_leave(self, executions: usize, left: Left) -> bool {
        match (self, executions, left) {
            (Release, 0 | 1, Left::Nothing) => true,
            (Release, ..) => false,
            (Seal | StoredFull, 0, Left::Nothing) | (Seal | StoredFull, 1, Left::Sealed) => true,
            (Seal | StoredFull, ..) => false,
            (Busy | InFlightFull, 0, Left::Nothing) => true,
            (Busy | InFlightFull, ..) => false,
            (Conflict | Waiting, 0, Left::Pending | Left::Done) => true,
            (Conflict | Waiting, ..) => false,
            (Replay | Mismatch, 0, Left::Done) => true,
            (Replay | Mismatch, ..) => false,
            // What the owner may have done is not forgotten.
            (_, 0, Left::Pending | Left::Unknown) => self.finds_a_vanished_owner(),
            (Recovered, 0, Left::Done) => true,
            (Recovered | StillUnknown | Marking | TakeOverBusy | RecoveredBusy, ..) => false,
            (_, 0, Left::Nothing) => !self.finds_a_vanished_owner(),
            (_, 1, Left::Done) => true,
            _ => false,
        }
    }

    /// What the same request is told next.
    fn next_answer(self, executions: usize, left: Left) -> (u16, bool, &'static str) {
        match (self, left) {
            (Release, _) => (422, false, ""),
            (Mismatch, _) => (422, false, "mismatch"),
            (Seal | StoredFull, Left::Sealed) => (409, false, "response-not-retained"),
            (StillUnknown | Marking, _) => (409, false, "outcome-unknown"),
            (Recovered | RecoveredBusy, Left::Done) => (200, true, ""),
            (Recovered | RecoveredBusy, _) => (200, false, ""),
            (Conflict | Waiting | Replay, _) => (201, true, ""),
            _ => (201, executions > 0, ""),
        }
    }
}

/// One server, and two processes: the one on which requests are dropped, and another.
struct Case {
    flow: Flow,
    what: String,
    memory: MemoryStorage,
    node: Till,
    other: Till,
    /// How often the recovery was asked.
    hooks: Arc<AtomicUsize>,
    /// Lets the slow handlers come to their end.
    open: watch::Sender<bool>,
}

impl Case {
    async fn prepare(flow: Flow, sent: bool, what: String) -> Self {
        let memory = MemoryStorage::new();
        let hooks = Arc::new(AtomicUsize::new(0));
        let policy = flow.policy(&hooks);
        let open = watch::channel(false).0;
        let gate = open.clone();
        let handler = move |execution, request: Request<Body>| {
            let gate = gate.clone();
            async move { handle(flow, execution, request, gate).await }
        };
        let staged = match sent {
            true => Staged::sent(&memory, WAY),
            false => Staged::recalled(&memory, WAY),
        };
        let node = Till::new(staged, policy.clone(), handler.clone());
        let other = Till::new(Staged::new(&memory), policy.clone(), handler);
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
        Self { flow, what, memory, node, other, hooks, open }
    }

    fn request(&self) -> Request<Body> {
        match self.flow {
            Conflict | Waiting => charge("a-key", "slow"),
            Uploading => {
                let pieces = stream::unfold(0, |piece| async move {
                    sleep(STEP).await;
                    (piece < 3).then(|| (Ok::<_, Infallible>("act"), piece + 1))
                });
                charge("a-key", "").map(|_| Body::from_stream(pieces))
            }
            _ => charge("a-key", "act"),
        }
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
        self.open.send_replace(true);
        sleep(SETTLED).await;

        if self.flow == Waiting {
            self.check_places_of_waiters().await;
        }
        if self.flow == Marking && left == Left::Unknown {
            self.assert(listed(&self.node.layer).await.len() == 1, "no operator sees it");
        }
        let next = self.node.send(self.request()).await;
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
        self.open.send_replace(false);
        spawn(&self.other, "d-key", "slow").await;
        let waits = self.node.charge("d-key", "slow");
        let (answer, ()) = tokio::join!(waits, async {
            sleep(STEP).await;
            self.open.send_replace(true);
        });
        self.assert_answer(&answer, (201, true, ""));
    }
}

/// Sends a request in the background, and waits until its handler runs.
async fn spawn(till: &Till, key: &'static str, body: &'static str) {
    let before = till.executions();
    let sender = till.clone();
    tokio::spawn(async move { sender.charge(key, body).await });
    while till.executions() == before {
        sleep(Duration::from_millis(1)).await;
    }
}

async fn handle(
    flow: Flow,
    execution: usize,
    mut request: Request<Body>,
    gate: watch::Sender<bool>,
) -> Response<Body> {
    let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
    let body = axum::body::to_bytes(request.into_body(), 100).await.unwrap();
    match &body[..] {
        b"plain" => {
            if flow == Begin || flow == TakeOverBeforeCommit {
                attempt.begin().await.unwrap();
            }
            return receipt(execution);
        }
        b"slow" => {
            let _ = gate.subscribe().wait_for(|open| *open).await;
            if flow == Waiting {
                sleep(STEP).await;
            }
            return receipt(execution);
        }
        _ => sleep(STEP).await,
    }
    match flow {
        Begin | TakeOverBeforeCommit => {
            attempt.begin().await.unwrap();
            sleep(STEP).await;
        }
        Release => {
            return Response::builder().status(422).body(Body::empty()).unwrap();
        }
        Seal => attempt.seal(),
        StoredFull => {
            return Response::builder().status(201).body(vec![0; 2_000].into()).unwrap();
        }
        Streaming => {
            let pieces = stream::unfold(0, |piece| async move {
                sleep(STEP).await;
                (piece < 3).then(|| (Ok::<_, Infallible>("receipt"), piece + 1))
            });
            return Response::builder().status(201).body(Body::from_stream(pieces)).unwrap();
        }
        _ => {}
    }
    receipt(execution)
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
                    let open = case.open.clone();
                    tokio::spawn(async move {
                        sleep(20 * STEP).await;
                        open.send_replace(true);
                    });
                }
                let answer = dropped_after(point, case.node.send(case.request())).await;
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
