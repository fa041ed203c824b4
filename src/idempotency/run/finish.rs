//! The last word of an execution to the storage.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use bytes::Bytes;
use http::header::LOCATION;

use super::Run;
use crate::{
    idempotency::{
        KeyHandle, Repeat, SealReason,
        record::{Phase, Record, Sealed, State, StoredResponse},
        shared::{TakenFrom, persist},
    },
    lease::Finish,
    storage::{Entry, ErrorKind, Result},
};

/// What became of the last word.
pub(super) enum Finished {
    Written,
    /// The key is somebody else's by now, who may have stored a response to the same request.
    Theirs(Option<StoredResponse>),
    /// The storage gives no answer; it is tried again for the rest of a lease.
    Failed,
}

impl Run {
    /// Stores what came of the request.
    pub(super) async fn finish(&self, state: State) -> Finished {
        self.write_last(Record { state, ..self.record.clone() }).await
    }

    async fn write_last(&self, mut record: Record) -> Finished {
        let (shared, digest) = (&self.shared, &self.ticket.digest);
        let mut value = shared.encode(&record, digest);
        let mut finished = shared.in_time(self.hold.finish(value.clone())).await;
        if let (Err(error), State::Done(StoredResponse { status, headers, .. })) =
            (&finished, &record.state)
            && (error.kind() == ErrorKind::Full || !error.is_transient())
        {
            // There is no room for the response, but for the word that there was one.
            let key = self.handle.handle();
            event!(error, %key, %error, "the response of a request with a key could not be stored");
            let (status, location) = (*status, headers.get(LOCATION).cloned());
            let reason = SealReason::OverQuota;
            record.state = State::Sealed(Sealed { status, location, reason });
            value = shared.encode(&record, digest);
            finished = shared.in_time(self.hold.finish(value.clone())).await;
        }
        let finished = match finished {
            Ok(Finish::Written) => Finished::Written,
            Ok(Finish::NotOurs(entry)) => {
                let key = self.handle.handle();
                event!(warn, %key, "an attempt was late: its key is somebody else's by now");
                Finished::Theirs(entry.and_then(|entry| self.theirs(entry)))
            }
            Err(error) => {
                let key = self.handle.handle();
                event!(warn, %key, %error, "what came of a request with a key is not stored yet");
                self.finish_later(value, matches!(record.state, State::Unknown(_)));
                Finished::Failed
            }
        };
        self.over();
        finished
    }

    /// Frees the key: nothing was done.
    pub(super) async fn release(&self) {
        if let Err(error) = self.shared.in_time(self.hold.clear()).await {
            event!(warn, %error, "a key is not free yet");
            let hold = Arc::clone(&self.hold);
            self.repeat(false, move || {
                let hold = Arc::clone(&hold);
                async move { hold.clear().await.map(drop) }
            });
        }
        self.over();
    }

    /// Frees the key, for this attempt has done nothing; but what the owner before it may have done is
    /// not to be forgotten. `attempt` is how many there have been.
    pub(super) async fn step_back(&self, attempt: u32) {
        match self.taken_from {
            None | Some(TakenFrom { phase: Phase::BeforeCommit, .. }) => self.release().await,
            Some(TakenFrom { phase, .. }) => {
                let state = State::Unknown(phase);
                let record = Record { state, attempt, ..self.record.clone() };
                if let Finished::Written = self.write_last(record).await
                    && self.shared.policy.repeat == Repeat::AtMostOnce
                {
                    self.shared.enlist(&self.ticket.digest).await;
                }
            }
        }
    }

    /// The handler was stopped, as the process ends.
    pub(super) async fn give_up(&self) {
        match (self.shared.policy.commit_point, self.handle.close()) {
            (true, true) => self.step_back(self.record.attempt).await,
            (_, false) => self.mark_unknown(Phase::AfterCommit).await,
            (false, true) => self.mark_unknown(self.shared.first_phase()).await,
        }
    }

    /// Stores that nobody knows what came of the request.
    pub(super) async fn mark_unknown(&self, phase: Phase) {
        if let Finished::Written = self.finish(State::Unknown(phase)).await {
            self.shared.enlist(&self.ticket.digest).await;
        }
    }

    fn theirs(&self, entry: Entry) -> Option<StoredResponse> {
        let record = self.shared.read(entry, &self.ticket.digest).ok()?.record;
        match record.state {
            State::Done(stored) if record.fingerprint == self.ticket.fingerprint => Some(stored),
            _ => None,
        }
    }

    fn finish_later(&self, value: Bytes, is_unknown: bool) {
        let hold = Arc::clone(&self.hold);
        self.repeat(is_unknown, move || {
            let (hold, value) = (Arc::clone(&hold), value.clone());
            async move { hold.finish(value).await.map(drop) }
        });
    }

    /// Tries again in the background for the rest of a lease. After that the owner counts as vanished.
    fn repeat<F>(&self, is_unknown: bool, word: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = Result<()>> + Send,
    {
        let (shared, digest) = (Arc::clone(&self.shared), self.ticket.digest);
        let repeat = async move {
            let (storage, policy) = (&shared.storage, &shared.policy);
            match persist(storage, policy.timeout, policy.lease, word).await {
                Some(()) => {
                    shared.board.tell(&digest);
                    if is_unknown {
                        shared.enlist(&digest).await;
                    }
                }
                None => {
                    let key = KeyHandle(digest);
                    event!(error, %key, "what came of a request with a key is not stored");
                    if storage.tasks().is_abandoned() {
                        storage.tasks().note_stopped();
                    }
                }
            }
        };
        drop(self.shared.storage.tasks().spawn(repeat));
    }

    fn over(&self) {
        self.is_over.store(true, SeqCst);
        self.hold.lose();
        self.shared.board.tell(&self.ticket.digest);
    }
}
