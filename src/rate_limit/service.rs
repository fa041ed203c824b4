//! The service.

use std::{
    mem,
    ops::ControlFlow,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{
    Decision, Limiter, MissingIdentity, Policy, Rejection, RejectionKind, ResponseBody,
    ResponseFuture,
    future::{Passage, Verdict},
    key::IdentityFuture,
    limiter::{InForce, Question, Shared},
    policy,
    reservation::Reservation,
    tier::{Choice, Resolver},
};
use crate::{
    RequestHead,
    storage::{Identity, Result, Spend},
};

/// A service whose requests are limited. See the [module documentation](super) for an example.
#[derive(Debug, Clone)]
pub struct RateLimit<S> {
    inner: S,
    limiter: Limiter,
}

impl<S> RateLimit<S> {
    /// Limits the requests of `inner`.
    pub fn new(inner: S, limiter: Limiter) -> Self {
        Self { inner, limiter }
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

impl<S, B, R> Service<Request<B>> for RateLimit<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match begin(self.limiter.shared(), RequestHead::new(&request)) {
            Passage::Decided(verdict) => {
                let response = ResponseFuture::decided(&mut self.inner, request, verdict);
                if response.is_refused() {
                    // The inner service is not called. What it reserved when it was polled ready,
                    // such as the permit of a concurrency limit, must not wait for the next request.
                    self.inner = self.inner.clone();
                }
                response
            }
            Passage::Pending(pending) => {
                // The service that was polled ready is the one to call:
                // <https://docs.rs/tower/latest/tower/trait.Service.html#be-careful-when-cloning-inner-services>
                let clone = self.inner.clone();
                let inner = mem::replace(&mut self.inner, clone);
                ResponseFuture::pending(inner, request, pending)
            }
        }
    }
}

/// Finds out what can be said of a request at once, and what has to be asked of the storage.
fn begin(shared: &Arc<Shared>, head: RequestHead<'_>) -> Passage {
    let rules = shared.rules();
    let policy = &rules.policy;
    let refuse =
        |rejection| Passage::Decided(Verdict::Refuse(Arc::clone(&rules.policy), rejection));
    match policy.admission(head) {
        policy::Admission::Exempt => return Passage::Decided(Verdict::Exempt),
        policy::Admission::Denied => return refuse(Rejection::new(RejectionKind::AddressDenied)),
        policy::Admission::NoAddress => return refuse(nobody(policy, true)),
        policy::Admission::Limited => {}
    }
    let outer = head.extensions().get::<Decision>().cloned();
    for decision in outer.iter().flat_map(Decision::chain) {
        if decision.inner().limiter == shared.id() {
            // The same limiter around a router and one of its routes: once is meant.
            return Passage::Decided(Verdict::Exempt);
        }
        let theirs = &decision.inner().rules;
        if theirs.namespace == rules.namespace && theirs.policy.name == policy.name {
            let rejection = Rejection::new(RejectionKind::SameName(policy.name().into()));
            event!(error, "{rejection}");
            return refuse(rejection);
        }
    }
    let identity = policy.key.extract_with(head, &policy.address);
    if let Some(key) = &policy.async_key {
        let wanted = key.extract(head);
        return begin_later(shared, head, Arc::clone(&rules), (wanted, identity), outer);
    }
    let identity = match identified(policy, identity) {
        Ok(identity) => identity,
        Err(verdict) => return Passage::Decided(verdict),
    };
    let spend = Spend::Take(policy.cost(head));
    let question = move |rules, choice| Question { rules, choice, identity, spend, outer };
    match &policy.resolver {
        None => ask(shared, question(rules, Choice::Base)),
        Some(Resolver::Sync(resolve)) => {
            let choice = resolve(head, &policy.tiers);
            ask(shared, question(rules, choice))
        }
        Some(Resolver::Async(resolve)) => {
            let (tier, shared) = (resolve(head), Arc::clone(shared));
            Passage::pending(async move {
                let choice = Choice::of(tier.await.as_deref(), &rules.policy.tiers);
                ask(&shared, question(rules, choice)).verdict().await
            })
        }
    }
}

/// As [`begin`], for a policy whose identity has to be waited for. All that the request itself can
/// tell is found out at once: its head cannot be borrowed for as long.
fn begin_later(
    shared: &Arc<Shared>,
    head: RequestHead<'_>,
    rules: Arc<InForce>,
    (wanted, otherwise): (IdentityFuture, Option<Identity>),
    outer: Option<Decision>,
) -> Passage {
    let policy = &rules.policy;
    let spend = Spend::Take(policy.cost(head));
    let (choice, tier) = match &policy.resolver {
        None => (Choice::Base, None),
        Some(Resolver::Sync(resolve)) => (resolve(head, &policy.tiers), None),
        Some(Resolver::Async(resolve)) => (Choice::Base, Some(resolve(head))),
    };
    let shared = Arc::clone(shared);
    Passage::pending(async move {
        let identity = match identified(&rules.policy, wanted.await.or(otherwise)) {
            Ok(identity) => identity,
            Err(verdict) => return verdict,
        };
        let choice = match tier {
            None => choice,
            Some(tier) => Choice::of(tier.await.as_deref(), &rules.policy.tiers),
        };
        ask(&shared, Question { rules, choice, identity, spend, outer }).verdict().await
    })
}

/// The identity to count against, or what becomes of a request that has none.
fn identified(
    policy: &Arc<Policy>,
    found: Option<Identity>,
) -> std::result::Result<Identity, Verdict> {
    if let Some(identity) = found {
        return Ok(identity);
    }
    match policy.missing_identity {
        MissingIdentity::Exempt => Err(Verdict::Exempt),
        MissingIdentity::Share => Ok(Identity::global().and("no identity")),
        MissingIdentity::Refuse => {
            let rejection = nobody(policy, policy.key.needs_address());
            Err(Verdict::Refuse(Arc::clone(policy), rejection))
        }
    }
}

/// The rejection of a request that has no identity.
fn nobody(policy: &Policy, server_fault: bool) -> Rejection {
    let rejection = Rejection::new(RejectionKind::MissingIdentity { server_fault });
    if server_fault {
        event!(error, policy = policy.name(), "{rejection}");
    }
    rejection
}

fn ask(shared: &Arc<Shared>, question: Question) -> Passage {
    let policy = &question.rules.policy;
    if question.choice == Choice::Unknown {
        event!(warn, policy = policy.name(), "the resolver named a tier that there is not");
    }
    if policy.quotas_of(question.choice).is_none() {
        return Passage::Decided(Verdict::Exempt);
    }
    let settlement = policy.settlement.clone();
    let question = match shared.decide_now(question) {
        ControlFlow::Break(answer) => {
            let reserve =
                |decision: &Decision| Some(Reservation::new(decision.clone(), settlement?));
            let answer = answer.map(|decision| (reserve(&decision), decision));
            return Passage::Decided(judge(shared, answer));
        }
        ControlFlow::Continue(question) => question,
    };
    let shared = Arc::clone(shared);
    Passage::pending(async move {
        let answer = match settlement {
            None => shared.decide(question).await.map(|decision| (None, decision)),
            Some(settlement) => shared.reserve(question, settlement).await.map(|reservation| {
                let decision = reservation.decision().clone();
                (Some(reservation), decision)
            }),
        };
        judge(&shared, answer)
    })
}

fn judge(shared: &Shared, answer: Result<(Option<Reservation>, Decision)>) -> Verdict {
    match answer {
        Ok((reservation, decision)) if decision.is_allowed() => {
            Verdict::Admit { decision, reservation }
        }
        Ok((_, decision)) => {
            event!(debug, policy = decision.policy(), "a request was refused");
            let policy = Arc::clone(&decision.inner().rules.policy);
            Verdict::Refuse(policy, Rejection::new(RejectionKind::QuotaExceeded(decision)))
        }
        Err(error) => {
            let kind = RejectionKind::StorageUnavailable(error.kind());
            Verdict::Refuse(Arc::clone(&shared.rules().policy), Rejection::new(kind))
        }
    }
}
