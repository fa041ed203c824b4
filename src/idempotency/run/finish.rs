//! The last word of an execution to the storage.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use http::header::LOCATION;
use tokio::time::{Instant, sleep};

use super::Run;
use crate::{
    idempotency::{
        SealReason,
        record::{Phase, Record, Sealed, State, StoredResponse},
    },
    lease::Finish,
    storage::{Entry, ErrorKind, Result},
};

/// The first pause before the last word is repeated; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
        let (shared, digest) = (&self.shared, &self.ticket.digest);
        let last = self.last(state);
        let mut value = shared.encode(&last, digest);
        let mut finished = shared.in_time(self.hold.finish(value.clone())).await;
        if let (Err(error), State::Done(StoredResponse { status, headers, .. })) =
            (&finished, &last.state)
            && (error.kind() == ErrorKind::Full || !error.is_transient())
        {
            // There is no room for the response, but for the word that there was one.
            event!(error, %error, "the response of a request with a key could not be stored");
            let (status, location) = (*status, headers.get(LOCATION).cloned());
            let reason = SealReason::OverQuota;
            let sealed = State::Sealed(Sealed { status, location, reason });
            value = shared.encode(&self.last(sealed), digest);
            finished = shared.in_time(self.hold.finish(value.clone())).await;
        }
        let finished = match finished {
            Ok(Finish::Written) => Finished::Written,
            Ok(Finish::NotOurs(entry)) => {
                event!(warn, "an attempt was late: its key is somebody else's by now");
                Finished::Theirs(entry.and_then(|entry| self.theirs(entry)))
            }
            Err(error) => {
                event!(warn, %error, "what came of a request with a key is not stored yet");
                self.finish_later(value);
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
            self.repeat(move || {
                let hold = Arc::clone(&hold);
                async move { hold.clear().await.map(drop) }
            });
        }
        self.over();
    }

    /// The handler was stopped, as the process ends.
    pub(super) async fn give_up(&self) {
        match (self.shared.policy.commit_point, self.handle.has_begun()) {
            (true, false) => self.release().await,
            (_, true) => self.mark_unknown(Phase::AfterCommit).await,
            (false, false) => self.mark_unknown(self.shared.first_phase()).await,
        }
    }

    /// Stores that nobody knows what came of the request.
    pub(super) async fn mark_unknown(&self, phase: Phase) {
        if let Finished::Written = self.finish(State::Unknown(phase)).await {
            self.shared.enlist(&self.ticket.digest).await;
        }
    }

    fn last(&self, state: State) -> Record {
        Record { state, ..self.record.clone() }
    }

    fn theirs(&self, entry: Entry) -> Option<StoredResponse> {
        let record = self.shared.read(entry, &self.ticket.digest).ok()?.record;
        match record.state {
            State::Done(stored) if record.fingerprint == self.ticket.fingerprint => Some(stored),
            _ => None,
        }
    }

    fn finish_later(&self, value: Bytes) {
        let hold = Arc::clone(&self.hold);
        self.repeat(move || {
            let (hold, value) = (Arc::clone(&hold), value.clone());
            async move { hold.finish(value).await.map(drop) }
        });
    }

    /// Tries again in the background for the rest of a lease. After that the owner counts as vanished.
    fn repeat<F>(&self, mut word: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = Result<()>> + Send,
    {
        let (shared, digest) = (Arc::clone(&self.shared), self.ticket.digest);
        let until = Instant::now() + shared.policy.lease;
        let abandoned = shared.storage.tasks().abandoned();
        let repeat = async move {
            let mut pause = FIRST_PAUSE;
            loop {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                match shared.in_time(word()).await {
                    Ok(()) => return shared.board.tell(&digest),
                    Err(error) if !error.is_transient() || until <= Instant::now() => {
                        event!(error, %error, "what came of a request with a key is not stored");
                        return;
                    }
                    Err(_) => {}
                }
            }
        };
        drop(self.shared.storage.tasks().spawn(async move {
            tokio::select! {
                () = repeat => {}
                () = abandoned => {}
            }
        }));
    }

    fn over(&self) {
        self.is_over.store(true, SeqCst);
        self.hold.lose();
        self.shared.board.tell(&self.ticket.digest);
    }
}
