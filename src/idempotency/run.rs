//! Running a handler for a key that was claimed: in a task of its own, which goes on when the client
//! that caused it has gone.

mod finish;

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, header, request, response};
use http_body::Body;
use tokio::{
    sync::{mpsc, oneshot as channel},
    time::{Instant, timeout},
};
use tower_service::Service;

use self::finish::Finished;
use super::{
    Disposition, Idempotency, IdempotencyKey, Outcome, Recovery, ResponseBody, SealReason,
    Vanished,
    classify::Answer,
    record::{Phase, Record, Sealed, State, StoredResponse},
    reply::{self, Refusal, refuse, replay},
    shared::{Claimed, Shared, TakenFrom, Ticket},
    usage::{Full, Place, may_store},
};
use crate::{
    body::{
        chunks::{Chunks, End, now_or_later},
        live::Piece,
    },
    lease::{Extension, Hold, beat},
    service::oneshot,
};

type Reply<R, E> = channel::Sender<Result<Response<ResponseBody<R>>, E>>;

/// One execution.
pub(super) struct Run {
    shared: Arc<Shared>,
    ticket: Ticket,
    hold: Arc<Hold>,
    record: Record,
    /// The owner before, which may have executed the request.
    taken_from: Option<TakenFrom>,
    handle: Idempotency,
    key: IdempotencyKey,
    began: Instant,
    /// The last word was said.
    is_over: AtomicBool,
}

/// The process is about to end, and does not wait any more.
struct Abandoned;

impl Run {
    pub(super) fn new(
        shared: &Arc<Shared>,
        ticket: Ticket,
        key: IdempotencyKey,
        claimed: Claimed,
    ) -> Self {
        let Claimed { hold, record, taken_from } = claimed;
        let handle = handle(shared, &key, &ticket, &record, &hold);
        Self {
            shared: Arc::clone(shared),
            ticket,
            hold,
            record,
            taken_from,
            handle,
            key,
            began: Instant::now(),
            is_over: false.into(),
        }
    }

    /// Does the work, and gives signs of life meanwhile, unless the process ends before it.
    async fn alive<T>(&self, work: impl Future<Output = T>) -> Result<T, Abandoned> {
        // Dropped with this call: one that is under way must not stand in the way of the last word.
        let rest = self.shared.policy.longest_run.saturating_sub(self.began.elapsed());
        let beats = timeout(rest, beat(Arc::clone(&self.hold)));
        let beats = async {
            // Also when the lease is lost: what was begun is brought to its end.
            let _ = beats.await;
            std::future::pending().await
        };
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.shared.storage.tasks().abandoned() => Err(Abandoned),
            never = beats => never,
        }
    }

    /// Recovers if that comes first, runs the handler, and stores what it answers.
    pub(super) async fn execute<S, B, R>(
        mut self,
        inner: S,
        parts: request::Parts,
        body: Bytes,
        recovers: bool,
        reply: Reply<R, S::Error>,
    ) where
        S: Service<Request<B>, Response = Response<R>>,
        B: From<Bytes>,
        R: Body,
    {
        let shared = Arc::clone(&self.shared);
        if shared.storage.tasks().is_abandoned() {
            return self.turn_away(Refusal::Stopping, reply).await;
        }
        let Ok(_permit) = shared.running.try_acquire() else {
            return self.turn_away(Refusal::Busy, reply).await;
        };
        let _place = match Place::take(&shared, &self.ticket.scope).await {
            Ok(Ok(place)) => place,
            Ok(Err(Full)) => return self.turn_away(Refusal::TooManyInFlight, reply).await,
            Err(_) => return self.turn_away(Refusal::Unavailable, reply).await,
        };
        let reply = match recovers {
            true => match self.recover(&parts, &body, reply).await {
                Some(reply) => reply,
                None => return,
            },
            false => reply,
        };
        let mut request = Request::from_parts(parts, B::from(body));
        self.handle.enter(request.extensions_mut());
        let work = AssertUnwindSafe(oneshot(inner, request)).catch_unwind();
        match self.alive(work).await {
            Ok(Ok(Ok(response))) => {
                // The body, and what the policy is made of, may panic as well.
                let answered = AssertUnwindSafe(self.answered(response, reply)).catch_unwind();
                if answered.await.is_err() && !self.is_over.load(SeqCst) {
                    // The handler has come to its end: what fails since does not free the key.
                    let kept = match self.shared.policy.failure {
                        Disposition::Store if !self.handle.is_sealed() => Disposition::Store,
                        _ => Disposition::Seal,
                    };
                    self.failed(Some(kept)).await;
                }
            }
            Ok(Ok(Err(error))) => {
                self.failed(None).await;
                let _ = reply.send(Err(error));
            }
            // In a task, where it ends no connection.
            Ok(Err(_panic)) => {
                self.failed(None).await;
                let _ = reply.send(Ok(refuse(&shared.policy, &Refusal::Panicked)));
            }
            Err(Abandoned) => {
                shared.storage.tasks().note_stopped();
                self.give_up().await;
                let _ = reply.send(Ok(refuse(&shared.policy, &Refusal::Stopping)));
            }
        }
    }

    /// Answers without having done anything.
    async fn turn_away<R: Body, E>(&self, refusal: Refusal, reply: Reply<R, E>) {
        self.step_back(self.taken_from.map_or(1, |before| before.attempt)).await;
        let _ = reply.send(Ok(refuse(&self.shared.policy, &refusal)));
    }

    /// Finds out what the vanished owner has done. The reply comes back if the handler is to run.
    async fn recover<R: Body, E>(
        &mut self,
        parts: &request::Parts,
        body: &Bytes,
        reply: Reply<R, E>,
    ) -> Option<Reply<R, E>> {
        let shared = Arc::clone(&self.shared);
        let policy = &shared.policy;
        let recovery = match &policy.recover {
            Some(recover) => {
                let vanished = self.vanished(parts, body);
                let asked = AssertUnwindSafe(async { recover(vanished).await }).catch_unwind();
                match self.alive(asked).await {
                    Ok(recovery) => recovery.unwrap_or(Recovery::Unknown),
                    Err(Abandoned) => Recovery::Unknown,
                }
            }
            None => Recovery::Unknown,
        };
        let refusal = match recovery {
            Recovery::Completed(response) => {
                let (parts, body) = response.into_parts();
                let stored = self.stored_response(&parts, body.clone());
                let answer = match self.finish(State::Done(stored)).await {
                    // Somebody else has said what came of it. All are to be told the same.
                    Finished::Theirs(Some(stored)) => replay(stored),
                    _ => reply::own(Response::from_parts(parts, body), Outcome::Recovered),
                };
                let _ = reply.send(Ok(answer));
                return None;
            }
            Recovery::NotExecuted => {
                let state = State::Pending(shared.first_phase());
                let attempt = self.record.attempt.saturating_add(1);
                let record = Record { state, attempt, ..self.record.clone() };
                let value = shared.encode(&record, &self.ticket.digest);
                match shared.in_time(self.hold.change(value)).await {
                    Ok(Extension::Extended) => {
                        let (key, ticket, hold) = (&self.key, &self.ticket, &self.hold);
                        self.handle = handle(&shared, key, ticket, &record, hold);
                        (self.record, self.taken_from) = (record, None);
                        return Some(reply);
                    }
                    Ok(Extension::Lost) => Refusal::InFlight,
                    Err(_) => {
                        self.mark_unknown(Phase::Recovering).await;
                        Refusal::Unavailable
                    }
                }
            }
            Recovery::Unknown => {
                self.mark_unknown(Phase::Recovering).await;
                Refusal::Unknown
            }
        };
        let _ = reply.send(Ok(refuse(policy, &refusal)));
        None
    }

    fn vanished(&self, parts: &request::Parts, body: &Bytes) -> Vanished {
        let mut request = Request::new(body.clone());
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.version_mut() = parts.version;
        *request.headers_mut() = parts.headers.clone();
        Vanished {
            key: self.key.clone(),
            digest: self.ticket.digest,
            fingerprint: self.ticket.fingerprint,
            attempt: self.record.attempt,
            fence: self.hold.fence().as_u64(),
            request,
        }
    }

    /// What becomes of the key: the handler's own word first, then its commit point, then the policy.
    fn disposition(
        &self,
        own: Option<Disposition>,
        usual: impl FnOnce() -> Disposition,
    ) -> Disposition {
        if let Some(own) = own {
            return own;
        }
        if self.shared.policy.commit_point && self.handle.close() {
            return Disposition::Release;
        }
        match usual() {
            Disposition::Release if self.handle.close() => Disposition::Release,
            _ if self.handle.is_sealed() => Disposition::Seal,
            Disposition::Release => Disposition::Store,
            kept => kept,
        }
    }

    /// The handler has panicked, or its service has given an error.
    async fn failed(&self, own: Option<Disposition>) {
        let failure = Refusal::Panicked.to_response(&self.shared.policy);
        let (parts, body) = failure.into_parts();
        match self.disposition(own, || self.shared.policy.failure) {
            Disposition::Store => {
                let stored = self.stored_response(&parts, body);
                self.finish(State::Done(stored)).await;
            }
            Disposition::Seal => {
                self.finish(self.sealed(&parts, SealReason::Failed)).await;
            }
            Disposition::Release => self.step_back(self.record.attempt).await,
        }
    }

    async fn answered<R: Body, E>(&self, response: Response<R>, reply: Reply<R, E>) {
        let (mut parts, body) = response.into_parts();
        let own = parts.extensions.remove::<Disposition>();
        parts.extensions.insert(Outcome::Executed);
        let usual = || self.shared.policy.classify(&Answer::new(&parts));
        match self.disposition(own, usual) {
            Disposition::Store => self.store(parts, body, reply).await,
            Disposition::Seal => self.seal(parts, body, SealReason::ByHandler, reply).await,
            Disposition::Release => {
                if self.shared.policy.commit_point && own.is_none() && parts.status.is_success() {
                    event!(
                        warn,
                        status = parts.status.as_u16(),
                        "a key is freed after a success: with `Policy::with_commit_point`, handlers \
                         call `Idempotency::begin` before they do what must not be done twice"
                    );
                }
                // A handler that says so itself has looked; one that was told not to begin has not.
                match own.is_some() && !self.handle.was_refused() {
                    true => self.release().await,
                    false => self.step_back(self.record.attempt).await,
                }
                let _ = reply.send(Ok(Response::from_parts(parts, ResponseBody::inner(body))));
            }
        }
    }

    /// Stores that the request was executed, and lets the response pass.
    async fn seal<R: Body, E>(
        &self,
        parts: response::Parts,
        body: R,
        reason: SealReason,
        reply: Reply<R, E>,
    ) {
        self.finish(self.sealed(&parts, reason)).await;
        let _ = reply.send(Ok(Response::from_parts(parts, ResponseBody::inner(body))));
    }

    /// Stores the response before the client has it, if its body is there; and if it is not, passes
    /// the body on while it comes, and stores the response before the client has the end.
    async fn store<R: Body, E>(&self, parts: response::Parts, body: R, reply: Reply<R, E>) {
        let (policy, size) = (&self.shared.policy, body.size_hint());
        let length = content_length(&parts);
        let most = policy.max_response as u64;
        if length.is_some_and(|length| length > most) || size.lower() > most {
            return self.seal(parts, body, SealReason::TooLarge, reply).await;
        }
        if is_event_stream(&parts) {
            return self.seal(parts, body, SealReason::Streaming, reply).await;
        }
        // That of a 304 tells of the body that it stands for.
        let length = length.filter(|_| parts.status != StatusCode::NOT_MODIFIED);
        let is_whole = |chunks: &Chunks| length.is_none_or(|length| length == chunks.length as u64);
        let mut body = Box::pin(body);
        let mut chunks = Chunks::default();
        let at_once = now_or_later(chunks.read(&mut body, policy.max_response, |_| {})).await;
        if let Some(End::Whole) = at_once
            && is_whole(&chunks)
        {
            let bytes = chunks.join();
            let answer = match self.keep(&parts, bytes.clone()).await {
                // Somebody has taken this attempt for dead. All are to be told the same.
                Finished::Theirs(Some(stored)) => replay(stored),
                _ => Response::from_parts(parts, ResponseBody::whole(bytes)),
            };
            let _ = reply.send(Ok(answer));
            return;
        }

        let (pieces, live) = mpsc::unbounded_channel();
        for chunk in &chunks.chunks {
            let _ = pieces.send(Piece::Data(chunk.clone()));
        }
        let mut head = Response::new(()).into_parts().0;
        (head.status, head.headers) = (parts.status, parts.headers.clone());
        let response = Response::from_parts(parts, ResponseBody::live(live, size));
        let _ = reply.send(Ok(response));
        let end = match at_once {
            Some(end) => Some(end),
            None => {
                let pass_on = |chunk: &Bytes| {
                    let _ = pieces.send(Piece::Data(chunk.clone()));
                };
                let rest = chunks.read(&mut body, policy.max_response, pass_on);
                match self.alive(timeout(policy.body_timeout, rest)).await {
                    Ok(Ok(end)) => Some(end),
                    Ok(Err(_)) | Err(Abandoned) => None,
                }
            }
        };
        let (reason, last) = match end {
            Some(End::Whole) if is_whole(&chunks) => {
                self.keep(&head, chunks.join()).await;
                let _ = pieces.send(Piece::End);
                return;
            }
            Some(End::Whole) => (SealReason::Failed, Piece::End),
            Some(End::Trailers(trailers)) => {
                let _ = pieces.send(Piece::Trailers(trailers));
                (SealReason::Trailers, Piece::Rest(body))
            }
            Some(End::TooLong) => (SealReason::TooLarge, Piece::Rest(body)),
            Some(End::Failed(error)) => (SealReason::Failed, Piece::Failed(error)),
            None => (SealReason::Streaming, Piece::Rest(body)),
        };
        self.finish(self.sealed(&head, reason)).await;
        let _ = pieces.send(last);
    }

    /// Stores a complete response, if the scope has room for it.
    async fn keep(&self, parts: &response::Parts, body: Bytes) -> Finished {
        let state = match may_store(&self.shared, &self.ticket.scope, body.len()).await {
            true => State::Done(self.stored_response(parts, body)),
            false => self.sealed(parts, SealReason::OverQuota),
        };
        self.finish(state).await
    }

    fn stored_response(&self, parts: &response::Parts, body: Bytes) -> StoredResponse {
        let headers = self.shared.policy.headers.stored(&parts.headers);
        StoredResponse { status: parts.status, headers, body }
    }

    fn sealed(&self, parts: &response::Parts, reason: SealReason) -> State {
        let keeps = self.shared.policy.headers.keeps(&header::LOCATION);
        let location = parts.headers.get(header::LOCATION).filter(|_| keeps).cloned();
        State::Sealed(Sealed { status: parts.status, location, reason })
    }
}

fn handle(
    shared: &Arc<Shared>,
    key: &IdempotencyKey,
    ticket: &Ticket,
    record: &Record,
    hold: &Arc<Hold>,
) -> Idempotency {
    let (shared, hold) = (Arc::clone(shared), Some(Arc::clone(hold)));
    Idempotency::new(shared, key.clone(), ticket, record.clone(), hold)
}

fn content_length(parts: &response::Parts) -> Option<u64> {
    parts.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Such a response has no end that is worth waiting for.
fn is_event_stream(parts: &response::Parts) -> bool {
    let value = parts.headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    value.is_some_and(|value| {
        let essence = value.split(|byte| *byte == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    })
}
