//! The service.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, request};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::oneshot as channel;
use tower_service::Service;

use super::{
    Idempotency, IdempotencyKey, KeyHandle, MissingScope, Outage, Outcome, ResponseBody,
    ResponseFuture, fingerprint,
    handle::NoKey,
    judge::{Judgement, judge},
    policy::ScopeUnavailable,
    record::{Phase, Record, State},
    reply::{Refusal, refuse, replay},
    run::Run,
    shared::{Claimed, Found, Shared, Ticket},
    waiting::Queue,
};
use crate::{
    RequestHead,
    service::oneshot,
    storage::{ErrorKind, Identity},
};

/// How many questions in a row a waiting duplicate asks in vain.
const MOST_UNHEARD: u32 = 2;
/// How often a key is asked for that ends just then.
const MOST_VAIN: u32 = 8;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Reply<R> = Response<ResponseBody<R>>;

/// A service that executes requests with an idempotency key once. See the
/// [module documentation](super) for an example.
///
/// The service inside is `Clone`, and the body of its requests can be made of
/// [`Bytes`], as that of axum can; `hyper::body::Incoming` cannot, so map it outside of this layer (to
/// `axum::body::Body`, say).
///
/// It is always ready: a replay does not wait for the inner service. That is asked for its readiness
/// when a request gets to it.
#[derive(Debug, Clone)]
pub struct IdempotencyService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> IdempotencyService<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service inside.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service inside.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

/// What is to become of a request.
enum Plan {
    /// It goes to the handler as it is.
    Pass,
    /// The same, and the handler may want to know that there is no key.
    PassWithoutKey,
    Keyed(IdempotencyKey),
    Refuse(Refusal),
}

impl Shared {
    fn plan<B>(self: &Arc<Self>, request: &Request<B>) -> Plan {
        if !self.policy.methods.contains(request.method()) {
            return Plan::Pass;
        }
        for outer in Idempotency::all(request.extensions()) {
            if Arc::ptr_eq(&outer.inner.shared, self) {
                // The same layer around a router and one of its routes: once is meant.
                return Plan::Pass;
            }
            if outer.inner.shared.namespace == self.namespace {
                event!(
                    error,
                    "two different idempotency layers around one route have the same name: give \
                     one of them another with `Policy::with_name`, or use clones of one layer"
                );
                return Plan::Refuse(Refusal::SameName);
            }
        }
        match self.policy.key.read(request.headers()) {
            Ok(Some(key)) => Plan::Keyed(key),
            Ok(None) if self.policy.required => Plan::Refuse(Refusal::KeyMissing),
            Ok(None) => Plan::PassWithoutKey,
            Err(error) => Plan::Refuse(Refusal::KeyInvalid(error)),
        }
    }
}

impl<S, B, R> Service<Request<B>> for IdempotencyService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + From<Bytes> + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
    R: Body + Send + 'static,
    R::Data: Send,
    R::Error: Send,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<R, S::Error>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let plan = self.shared.plan(&request);
        match plan {
            Plan::Refuse(refusal) => {
                return ResponseFuture::ready(refuse(&self.shared.policy, &refusal));
            }
            Plan::Keyed(key) => {
                let (shared, inner) = (Arc::clone(&self.shared), self.inner.clone());
                return ResponseFuture::waiting(answer(shared, inner, request, key));
            }
            Plan::PassWithoutKey => drop(request.extensions_mut().insert(NoKey)),
            Plan::Pass => {}
        }
        ResponseFuture::waiting(pass(self.inner.clone(), request))
    }
}

async fn pass<S, B, R>(inner: S, request: Request<B>) -> Result<Reply<R>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    oneshot(inner, request).await.map(|response| response.map(ResponseBody::inner))
}

/// Answers a request with a key.
async fn answer<S, B, R>(
    shared: Arc<Shared>,
    inner: S,
    request: Request<B>,
    key: IdempotencyKey,
) -> Result<Reply<R>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + From<Bytes> + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
    R: Body + Send + 'static,
    R::Data: Send,
    R::Error: Send,
{
    let policy = &shared.policy;
    let scope = policy.scope.find(RequestHead::new(&request));
    let scope = match (scope.await, policy.missing_scope) {
        (Ok(Some(scope)), _) => scope,
        (Ok(None), MissingScope::Refuse) => return Ok(refuse(policy, &Refusal::ScopeMissing)),
        (Ok(None), MissingScope::Pass) => {
            let mut request = request;
            request.extensions_mut().insert(NoKey);
            return pass(inner, request).await;
        }
        (Err(ScopeUnavailable), _) => return Ok(refuse(policy, &Refusal::Unavailable)),
    };
    let (parts, body) = request.into_parts();
    let body = match read(body, policy.max_request).await {
        Ok(body) => body,
        Err(refusal) => return Ok(refuse(policy, &refusal)),
    };
    let ticket = shared.ticket(&parts, &key, scope, &body);
    match decide(&shared, &ticket, &parts).await {
        Decision::Answer(response) => Ok(response),
        Decision::Refuse(refusal) => Ok(refuse(policy, &refusal)),
        Decision::Run(claimed, recovers) => {
            let run = Run::new(&shared, ticket, key, claimed);
            let (reply, answer) = channel::channel();
            // In a box, as it is large, and a spawned future is moved a dozen times.
            let execution = Box::pin(run.execute(inner, parts, body, recovers, reply));
            drop(shared.storage.tasks().spawn(execution));
            // Without a reply the task has panicked, or its runtime has come to its end.
            answer.await.unwrap_or_else(|_| Ok(refuse(&shared.policy, &Refusal::Panicked)))
        }
        Decision::RunUnprotected => {
            let (token, label) = ([0; 16], ticket.label.clone());
            let state = State::Pending(Phase::Undeclared);
            let (fingerprint, lease) = (ticket.fingerprint, policy.lease);
            let record = Record { token, fingerprint, attempt: 1, lease, label, state };
            let handle = Idempotency::new(Arc::clone(&shared), key, &ticket, record, None);
            let mut request = Request::from_parts(parts, B::from(body));
            handle.enter(request.extensions_mut());
            let mut response = pass(inner, request).await?;
            response.extensions_mut().insert(Outcome::Unprotected);
            Ok(response)
        }
    }
}

/// The whole body: it belongs to the fingerprint, and the handler must not wait for a client that may
/// go away.
async fn read<B>(body: B, max: usize) -> Result<Bytes, Refusal>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    if body.size_hint().lower() > max as u64 {
        return Err(Refusal::BodyTooLarge);
    }
    match Limited::new(body, max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if is_limit(&*error) => Err(Refusal::BodyTooLarge),
        Err(error) => {
            event!(debug, %error, "the body of a request with an idempotency key broke off");
            Err(Refusal::BodyFailed)
        }
    }
}

/// Whether a body was too large for this layer, or for one outside.
fn is_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(cause) = error {
        if cause.is::<LengthLimitError>() {
            return true;
        }
        error = cause.source();
    }
    false
}

impl Shared {
    fn ticket(
        &self,
        parts: &request::Parts,
        key: &IdempotencyKey,
        scope: Identity,
        body: &[u8],
    ) -> Ticket {
        let head = RequestHead::from_parts(parts);
        let target = head.target();
        let path = target.path();
        // Method and path are hashed once, wherever they count.
        let (of_key, of_payload) = match self.policy.per_route {
            true => (Some(path), None),
            false => (None, Some(path)),
        };
        let name = self.namespace.as_str();
        Ticket {
            digest: fingerprint::key_digest(name, &scope, &parts.method, of_key, key),
            fingerprint: self.policy.fingerprint.of(head, of_payload, target.query(), body),
            label: [parts.method.as_str(), " ", path].concat().into(),
            scope,
        }
    }
}

enum Decision<R: Body> {
    Answer(Reply<R>),
    Refuse(Refusal),
    /// The key is this request's; whether a recovery comes first.
    Run(Claimed, bool),
    RunUnprotected,
}

/// Claims the key, or finds out what to say instead.
async fn decide<R: Body>(
    shared: &Arc<Shared>,
    ticket: &Ticket,
    parts: &request::Parts,
) -> Decision<R> {
    let mut found = shared.claim(ticket).await;
    let mut wait: Option<Queue<'_>> = None;
    let (mut vain, mut unheard) = (0, 0);
    let mut seen_one = false;
    loop {
        let seen = match found {
            Ok(Found::Ours(claimed)) => return Decision::Run(claimed, false),
            Ok(Found::Theirs(seen)) => seen,
            // What was to be taken over has come to its end.
            Ok(Found::Nobodys) if vain < MOST_VAIN => {
                vain += 1;
                found = shared.claim(ticket).await;
                continue;
            }
            Ok(Found::Nobodys) => return Decision::Refuse(Refusal::Unavailable),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                return Decision::Refuse(Refusal::Unreadable);
            }
            Err(error) => {
                // Who waits has time to ask again, but not for the length of an outage.
                unheard += 1;
                if let Some(queue) = &mut wait
                    && error.is_transient()
                    && unheard <= MOST_UNHEARD
                    && queue.pause(Duration::MAX).await
                {
                    found = shared.claim(ticket).await;
                    continue;
                }
                event!(warn, %error, "an idempotency key could not be checked");
                return match shared.policy.outage {
                    Outage::Open if !seen_one => Decision::RunUnprotected,
                    // Somebody else may be at it, or has been.
                    Outage::Open | Outage::Closed => Decision::Refuse(Refusal::Unavailable),
                };
            }
        };
        (seen_one, unheard) = (true, 0);
        found = match judge(&seen.record, seen.age, &ticket.fingerprint, shared.rule()) {
            Judgement::Mismatch => return Decision::Refuse(Refusal::Mismatch),
            Judgement::Replay => return Decision::Answer(replayed(seen.record)),
            Judgement::Sealed => return Decision::Refuse(sealed(seen.record)),
            Judgement::Unknown { marked } => {
                if !marked {
                    shared.mark_unknown(&ticket.digest, seen).await;
                }
                return Decision::Refuse(Refusal::Unknown);
            }
            Judgement::TakeOver => {
                let (key, attempt) = (KeyHandle(ticket.digest), seen.record.attempt);
                event!(warn, %key, attempt, "the owner of a key has vanished");
                shared.take_over(ticket, &seen, shared.first_phase()).await
            }
            Judgement::Recover => match shared.take_over(ticket, &seen, Phase::Recovering).await {
                Ok(Found::Ours(claimed)) => return Decision::Run(claimed, true),
                other => other,
            },
            Judgement::InFlight { sure } => {
                if wait.is_none() {
                    wait = Queue::enter(shared, ticket.digest, &parts.headers);
                }
                let waited = match &mut wait {
                    Some(queue) => queue.pause(sure).await,
                    None => false,
                };
                if !waited {
                    return Decision::Refuse(Refusal::InFlight);
                }
                shared.claim(ticket).await
            }
        };
    }
}

fn replayed<R: Body>(record: Record) -> Reply<R> {
    let State::Done(stored) = record.state else { unreachable!("only responses are replayed") };
    replay(stored)
}

fn sealed(record: Record) -> Refusal {
    let State::Sealed(sealed) = record.state else { unreachable!("it was judged to be sealed") };
    Refusal::Sealed(sealed)
}
