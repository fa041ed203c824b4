//! The service.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{
    Decision, Limiter, MissingIdentity, Policy, Rejection, RejectionKind, ResponseBody,
    ResponseFuture,
    future::{Passage, Verdict},
    limiter::{Question, Shared},
    policy,
    tier::{Choice, Resolver},
};
use crate::{
    RequestHead,
    storage::{Identity, Spend},
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

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that was polled ready is the one to call:
        // <https://docs.rs/tower/latest/tower/trait.Service.html#be-careful-when-cloning-inner-services>
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let passage = begin(self.limiter.shared(), RequestHead::new(&request));
        ResponseFuture::new(inner, request, passage)
    }
}

/// Finds out what can be said of a request at once, and what has to be asked of the storage.
fn begin(shared: &Arc<Shared>, head: RequestHead<'_>) -> Passage {
    let policy = shared.policy();
    let refuse = |policy: &Arc<Policy>, kind| {
        Passage::Decided(Verdict::Refuse(Arc::clone(policy), Rejection::new(kind)))
    };
    match policy.admission(head) {
        policy::Admission::Exempt => return Passage::Decided(Verdict::Exempt),
        policy::Admission::Denied => return refuse(&policy, RejectionKind::AddressDenied),
        policy::Admission::Limited => {}
    }
    let outer = head.extensions().get::<Decision>().cloned();
    for decision in outer.iter().flat_map(Decision::chain) {
        if decision.inner().limiter == shared.id() {
            // The same limiter around a router and one of its routes: once is meant.
            return Passage::Decided(Verdict::Exempt);
        }
        if decision.inner().namespace == *shared.namespace()
            && decision.inner().policy.name == policy.name
        {
            let rejection = Rejection::new(RejectionKind::SameName(policy.name().into()));
            event!(error, "{rejection}");
            return Passage::Decided(Verdict::Refuse(policy, rejection));
        }
    }
    let identity = match policy.key.extract_with(head, &policy.address) {
        Some(identity) => identity,
        None => match policy.missing_identity {
            MissingIdentity::Exempt => return Passage::Decided(Verdict::Exempt),
            MissingIdentity::Share => Identity::global().and("no identity"),
            MissingIdentity::Refuse => {
                let server_fault = policy.key.needs_address();
                let rejection = Rejection::new(RejectionKind::MissingIdentity { server_fault });
                if server_fault {
                    event!(error, policy = policy.name(), "{rejection}");
                }
                return Passage::Decided(Verdict::Refuse(policy, rejection));
            }
        },
    };
    let spend = Spend::Take(policy.cost(head));
    match &policy.resolver {
        None => ask(shared, policy, Choice::Base, identity, spend, outer),
        Some(Resolver::Sync(resolve)) => {
            let choice = resolve(head, &policy.tiers);
            ask(shared, policy, choice, identity, spend, outer)
        }
        Some(Resolver::Async(resolve)) => {
            let (tier, shared) = (resolve(head), Arc::clone(shared));
            Passage::pending(async move {
                let choice = Choice::of(tier.await.as_deref(), &policy.tiers);
                match ask(&shared, policy, choice, identity, spend, outer) {
                    Passage::Decided(verdict) => verdict,
                    Passage::Pending(pending) => pending.await,
                }
            })
        }
    }
}

fn ask(
    shared: &Arc<Shared>,
    policy: Arc<Policy>,
    choice: Choice,
    identity: Identity,
    spend: Spend,
    outer: Option<Decision>,
) -> Passage {
    if choice == Choice::Unknown {
        event!(warn, policy = policy.name(), "the resolver named a tier that there is not");
    }
    let Some(set) = policy.quotas_of(choice).cloned() else {
        return Passage::Decided(Verdict::Exempt);
    };
    let shared = Arc::clone(shared);
    Passage::pending(async move {
        let settlement = policy.settlement.clone();
        let question = Question { policy: Arc::clone(&policy), set, identity, spend, outer };
        let answer = match settlement {
            None => shared.decide(question).await.map(|decision| (decision, None)),
            Some(settlement) => shared
                .reserve(question, settlement)
                .await
                .map(|reservation| (reservation.decision().clone(), Some(reservation))),
        };
        match answer {
            Ok((decision, reservation)) if decision.is_allowed() => {
                Verdict::Admit { decision, reservation }
            }
            Ok((decision, _)) => {
                event!(debug, policy = policy.name(), "a request was refused");
                let kind = RejectionKind::QuotaExceeded(decision);
                Verdict::Refuse(policy, Rejection::new(kind))
            }
            Err(error) => {
                let kind = RejectionKind::StorageUnavailable(error.kind());
                Verdict::Refuse(policy, Rejection::new(kind))
            }
        }
    })
}
