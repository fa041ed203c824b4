//! What the services of one layer share, and what they say to the storage.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use super::{
    KeyHandle, Policy, PolicyError,
    fingerprint::Fingerprint,
    judge::Rule,
    record::{self, Phase, Record, State},
    waiting::Board,
};
use crate::{
    lease::{Claim, Hold, Standing},
    storage::{
        AnyStorage, Entry, Error, ErrorKind, Get, Identity, Key, Name, Result, Storage, Version,
        When,
    },
};

/// What the services of one layer share.
pub(super) struct Shared {
    pub(super) policy: Policy,
    pub(super) storage: AnyStorage,
    pub(super) namespace: Name,
    pub(super) detail: Name,
    pub(super) running: Arc<Semaphore>,
    pub(super) waiting: Semaphore,
    withdrawals: Arc<Semaphore>,
    pub(super) board: Board,
}

/// One request's wish to execute, as far as the storage knows it.
pub(super) struct Ticket {
    pub(super) digest: [u8; 32],
    pub(super) fingerprint: Fingerprint,
    pub(super) label: Box<str>,
    pub(super) scope: Identity,
}

/// What a request has found under its key.
pub(super) enum Found {
    /// The key is its own from now on.
    Ours(Claimed),
    /// Somebody's record.
    Theirs(Seen),
    /// Nothing any more.
    Nobodys,
}

/// A key that was claimed.
pub(super) struct Claimed {
    pub(super) hold: Arc<Hold>,
    pub(super) record: Record,
    pub(super) taken_from: Option<TakenFrom>,
}

/// The owner from which a key was taken over.
#[derive(Clone, Copy)]
pub(super) struct TakenFrom {
    /// How far it had come, as far as is known.
    pub(super) phase: Phase,
    pub(super) attempt: u32,
}

/// Somebody's record as it was seen.
pub(super) struct Seen {
    pub(super) record: Record,
    pub(super) version: Version,
    pub(super) age: Duration,
}

impl Shared {
    pub(super) fn try_new(storage: AnyStorage, policy: Policy) -> Result<Self, PolicyError> {
        let namespace = policy.check()?;
        Ok(Self {
            namespace,
            detail: Name::new("key"),
            running: Arc::new(Semaphore::new(policy.max_running.min(Semaphore::MAX_PERMITS))),
            waiting: Semaphore::new(policy.max_waiting.min(Semaphore::MAX_PERMITS)),
            withdrawals: Arc::new(Semaphore::new(MOST_WITHDRAWALS)),
            board: Board::default(),
            storage,
            policy,
        })
    }

    pub(super) fn key(&self, digest: &[u8; 32]) -> Key {
        Key::new(&self.namespace, &self.detail, Identity::new(digest))
    }

    pub(super) fn rule(&self) -> Rule {
        Rule { repeat: self.policy.repeat, can_recover: self.policy.recover.is_some() }
    }

    /// The phase in which a handler starts.
    pub(super) fn first_phase(&self) -> Phase {
        match self.policy.commit_point {
            true => Phase::BeforeCommit,
            false => Phase::Undeclared,
        }
    }

    /// Gives the storage the time that the policy allows.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        if self.storage.answers_at_once() {
            return work.await;
        }
        timeout(self.policy.timeout, work).await.unwrap_or_else(|_| Err(unanswered()))
    }

    pub(super) fn encode(&self, record: &Record, digest: &[u8; 32]) -> Bytes {
        record::encode(record, digest, self.policy.compression)
    }

    /// Claims the key if nobody has, and says whose it is otherwise.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, what it may have claimed is freed in the background.
    pub(super) async fn claim(&self, ticket: &Ticket) -> Result<Found> {
        if self.storage.answers_at_once() {
            // A look is no trip there, and costs less than a claim in vain, with its random token.
            let found = self.storage.get(&self.key(&ticket.digest), Get::new()).await?;
            if let Some(entry) = found.entry {
                return self.read(entry, &ticket.digest).map(Found::Theirs);
            }
        }
        self.write_claim(ticket, None, self.first_phase()).await
    }

    /// Takes the key over from an owner that has vanished, if nobody else does.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, what it may have taken over is given back in the background.
    pub(super) async fn take_over(
        &self,
        ticket: &Ticket,
        seen: &Seen,
        phase: Phase,
    ) -> Result<Found> {
        self.write_claim(ticket, Some(seen), phase).await
    }

    async fn write_claim(
        &self,
        ticket: &Ticket,
        seen: Option<&Seen>,
        phase: Phase,
    ) -> Result<Found> {
        let when = seen.map_or(When::Absent, |seen| When::Version(seen.version));
        let attempt = match (seen, phase) {
            (None, _) => 1,
            // Somebody is asked; the attempt in question is still the one that vanished.
            (Some(seen), Phase::Recovering) => seen.record.attempt,
            (Some(seen), _) => seen.record.attempt.saturating_add(1),
        };
        let taken_from = seen.and_then(|seen| {
            Some(TakenFrom { phase: seen.record.state.phase()?, attempt: seen.record.attempt })
        });
        let claim =
            Claim::new(self.storage.clone(), self.key(&ticket.digest), self.policy.retention);
        let record = Record {
            token: claim.token,
            fingerprint: ticket.fingerprint,
            attempt,
            lease: self.policy.lease,
            label: ticket.label.clone(),
            state: State::Pending(phase),
        };
        let value = self.encode(&record, &ticket.digest);
        let before = taken_from.map(|TakenFrom { phase, attempt }| {
            let state = State::Unknown(phase);
            self.encode(&Record { state, attempt, ..record.clone() }, &ticket.digest)
        });
        let (within, withdrawals) = (self.policy.timeout, Arc::clone(&self.withdrawals));
        let mut bid = Bid { claim, doubt: false, before, within, withdrawals };
        let standing = match self.in_time(bid.place(when, value.clone())).await {
            // A write whose answer was lost, and which cannot be seen, may still be on its way. The
            // same once more finds it, or comes before it.
            Err(error) if error.is_transient() && error.kind() != ErrorKind::Timeout => {
                self.in_time(bid.place(when, value.clone())).await
            }
            standing => standing,
        }?;
        match standing {
            Standing::Ours(grant) => {
                let hold = Hold::new(bid.claim.clone(), grant, value, self.policy.lease);
                Ok(Found::Ours(Claimed { hold: Arc::new(hold), record, taken_from }))
            }
            Standing::NotOurs(Some(entry)) => self.read(entry, &ticket.digest).map(Found::Theirs),
            Standing::NotOurs(None) => Ok(Found::Nobodys),
        }
    }

    /// What an entry says.
    pub(super) fn read(&self, entry: Entry, digest: &[u8; 32]) -> Result<Seen> {
        let Entry { value, version, age, .. } = entry;
        // A record may be of a time when more was allowed.
        let max = self.policy.max_response.max(64 << 20);
        match record::decode(value, digest, max) {
            Ok(record) => Ok(Seen { record, version, age }),
            Err(error) => {
                let key = KeyHandle(*digest);
                event!(error, %key, ?error, "the record of an idempotency key cannot be read");
                Err(Error::new(ErrorKind::Corrupt, "the record of the key cannot be read"))
            }
        }
    }
}

/// A claim on its way.
struct Bid {
    claim: Claim,
    /// The storage may hold the claim without anybody knowing.
    doubt: bool,
    /// What is put in its place then: that the owner from which the key was to be taken over has
    /// vanished. What that may have done is not to be forgotten.
    before: Option<Bytes>,
    within: Duration,
    withdrawals: Arc<Semaphore>,
}

impl Bid {
    async fn place(&mut self, when: When, value: Bytes) -> Result<Standing> {
        self.doubt = true;
        let standing = self.claim.write(when, value).await;
        self.doubt = standing.is_err();
        standing
    }
}

impl Drop for Bid {
    fn drop(&mut self) {
        if self.doubt
            && let Ok(runtime) = Handle::try_current()
            && let Ok(permit) = Arc::clone(&self.withdrawals).try_acquire_owned()
        {
            let (claim, before, within) = (self.claim.clone(), self.before.take(), self.within);
            let (tasks, later) = (self.claim.storage.tasks().clone(), runtime.clone());
            let withdraw = async move {
                let _permit = permit;
                if withdraw(&claim, &before, within).await {
                    return;
                }
                // It may have been left behind on a connection that was given up. Nobody waits for
                // this: after a lease the key is judged anyway.
                later.spawn(async move {
                    sleep(SECOND_LOOK).await;
                    withdraw(&claim, &before, within).await;
                });
            };
            drop(tasks.spawn_on(withdraw, &runtime));
        }
    }
}

/// Takes back what may have been claimed, and says whether there was something.
async fn withdraw(claim: &Claim, before: &Option<Bytes>, within: Duration) -> bool {
    let withdrawn = persist(&claim.storage, within, LONGEST_DOUBT, || async {
        match before {
            None => claim.clear(None).await,
            Some(before) => claim.replace(before.clone()).await,
        }
    });
    withdrawn.await.unwrap_or(false)
}

/// Asks for something until there is an answer, `within` each time, for so long in all; once if the
/// process is about to end.
pub(super) async fn persist<T, F>(
    storage: &AnyStorage,
    within: Duration,
    longest: Duration,
    mut ask: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = Result<T>>,
{
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match timeout(within, ask()).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) if !error.is_transient() => return None,
            _ if longest <= began.elapsed() => return None,
            _ => {}
        }
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            () = storage.tasks().abandoned() => return None,
        }
    }
}

/// How many claims in doubt are withdrawn at once, so that an outage does not make more work than the
/// requests themselves. A claim beyond them is judged after a lease.
const MOST_WITHDRAWALS: usize = 256;
/// How long it is tried to take back what may have been claimed.
const LONGEST_DOUBT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After that it is looked again for a claim that was not there.
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// The moment after this pause, or one that nobody lives to see.
pub(super) fn after(pause: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(pause).unwrap_or_else(|| now + NEVER)
}

const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3_600);

pub(super) fn unanswered() -> Error {
    Error::new(ErrorKind::Timeout, "the storage gave no answer in time")
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("policy", &self.policy)
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}
