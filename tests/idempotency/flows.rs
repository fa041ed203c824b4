//! What a request with a key may run into, and what is to come of it.

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
    http::{Request, Response},
};
use futures_util::stream;
use tokio::{sync::watch, time::sleep};
use tower_keep::{
    Storage,
    idempotency::{Idempotency, InFlight, Policy, Recovery, Repeat},
};

use crate::{
    till::{Till, charge, receipt},
    traces::Left,
};

pub(crate) const STEP: Duration = Duration::from_millis(5);

/// What a request runs into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
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

pub(crate) const FLOWS: [Flow; 23] = [
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
    pub(crate) fn policy(self, hooks: &Arc<AtomicUsize>) -> Policy {
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

    pub(crate) fn finds_a_vanished_owner(self) -> bool {
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

    pub(crate) fn is_crowded(self) -> bool {
        matches!(self, Busy | TakeOverBusy | RecoveredBusy | InFlightFull)
    }

    /// Whether something is charged in the end.
    pub(crate) fn charges(self) -> bool {
        matches!(
            self,
            First
                | Uploading
                | Streaming
                | Begin
                | Seal
                | InFlightQuota
                | StoredQuota
                | StoredFull
                | TakeOver
                | TakeOverBeforeCommit
                | NotExecuted
        )
    }

    /// What the request is answered if nobody drops it.
    pub(crate) fn answer(self) -> (u16, bool, &'static str) {
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
    pub(crate) fn may_leave(self, executions: usize, left: Left) -> bool {
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
            // Before the commit point the owner has done nothing.
            (TakeOverBeforeCommit, 0, Left::Nothing) => true,
            // What the owner may have done is not forgotten.
            (_, 0, Left::Pending | Left::Unknown) => self.finds_a_vanished_owner(),
            (Recovered, 0, Left::Done) => true,
            (Recovered | StillUnknown | Marking | TakeOverBusy | RecoveredBusy, ..) => false,
            (_, 0, Left::Nothing) => !self.finds_a_vanished_owner(),
            (_, 1, Left::Done) => true,
            _ => false,
        }
    }

    pub(crate) fn request(self) -> Request<Body> {
        match self {
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

    /// What the same request is told next.
    pub(crate) fn next_answer(self, executions: usize, left: Left) -> (u16, bool, &'static str) {
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

/// Sends a request in the background, and waits until its handler runs.
pub(crate) async fn spawn(till: &Till, key: &'static str, body: &'static str) {
    let before = till.executions();
    let sender = till.clone();
    tokio::spawn(async move { sender.charge(key, body).await });
    while till.executions() == before {
        sleep(Duration::from_millis(1)).await;
    }
}

/// What handlers have to do.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) flow: Flow,
    /// Lets the slow ones come to their end.
    pub(crate) open: watch::Sender<bool>,
    /// How often something was charged.
    pub(crate) charges: Arc<AtomicUsize>,
}

impl Work {
    pub(crate) fn new(flow: Flow) -> Self {
        Self { flow, open: watch::channel(false).0, charges: Arc::default() }
    }

    pub(crate) fn till(&self, storage: impl Storage, policy: Policy) -> Till {
        let work = self.clone();
        Till::new(storage, policy, move |execution, request| {
            let work = work.clone();
            async move { work.handle(execution, request).await }
        })
    }

    pub(crate) fn charges(&self) -> usize {
        self.charges.load(SeqCst)
    }

    async fn handle(self, execution: usize, mut request: Request<Body>) -> Response<Body> {
        let flow = self.flow;
        let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
        let body = axum::body::to_bytes(request.into_body(), 100).await.unwrap();
        if matches!(flow, Begin | TakeOverBeforeCommit) && body != "slow" {
            sleep(STEP).await;
            if let Err(refused) = attempt.begin().await {
                return refused.to_response().map(Body::from);
            }
        }
        match &body[..] {
            b"plain" => return receipt(execution),
            b"slow" => {
                let _ = self.open.subscribe().wait_for(|open| *open).await;
                if flow == Waiting {
                    sleep(STEP).await;
                }
                return receipt(execution);
            }
            _ => sleep(STEP).await,
        }
        if flow == Release {
            return Response::builder().status(422).body(Body::empty()).unwrap();
        }
        self.charges.fetch_add(1, SeqCst);
        match flow {
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
}
