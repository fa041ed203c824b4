//! The future of a limited request.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    Decision, Policy, Rejection, ResponseBody,
    reservation::{self, Reservation},
    settle::ResponseHead,
};
use crate::marks::ReplayMark;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the limiter says of a request.
pub(super) enum Verdict {
    Exempt,
    Admit { decision: Decision, reservation: Option<Reservation> },
    Refuse(Arc<Policy>, Rejection),
}

/// A request's way to a [`Verdict`].
pub(super) enum Passage {
    /// The storage did not have to be waited for.
    Decided(Verdict),
    Pending(BoxFuture<Verdict>),
}

impl Passage {
    pub(super) fn pending(future: impl Future<Output = Verdict> + Send + 'static) -> Self {
        Self::Pending(Box::pin(future))
    }

    pub(super) async fn verdict(self) -> Verdict {
        match self {
            Self::Decided(verdict) => verdict,
            Self::Pending(verdict) => verdict.await,
        }
    }
}

pin_project! {
    /// The response of a [`RateLimit`](super::RateLimit) service.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the response is there, it gives back what a
    /// [`Settlement`](super::Settlement) had reserved. Dropped while it settles or gives the units of
    /// a replay back, it does so all the same.
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, S::Future, S::Response>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F, R> {
        Refused { response: Option<Response<Bytes>> },
        Deciding { verdict: BoxFuture<Verdict>, call: Option<(S, Request<B>)> },
        Running { #[pin] response: F, admitted: Option<Admitted> },
        Settling { settled: BoxFuture<Decision>, response: Option<R>, },
    }
}

struct Admitted {
    decision: Decision,
    reservation: Option<Reservation>,
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    pub(super) fn decided(service: &mut S, request: Request<B>, verdict: Verdict) -> Self {
        Self { state: State::after(verdict, service, request) }
    }

    pub(super) fn is_refused(&self) -> bool {
        matches!(self.state, State::Refused { .. })
    }

    pub(super) fn pending(service: S, request: Request<B>, verdict: BoxFuture<Verdict>) -> Self {
        Self { state: State::Deciding { verdict, call: Some((service, request)) } }
    }
}

impl<S, B> State<S, B, S::Future, S::Response>
where
    S: Service<Request<B>>,
{
    fn after(verdict: Verdict, service: &mut S, mut request: Request<B>) -> Self {
        let admitted = match verdict {
            Verdict::Refuse(policy, rejection) => {
                let mut response = policy.respond(&rejection);
                response.extensions_mut().insert(rejection);
                return Self::Refused { response: Some(response) };
            }
            Verdict::Exempt => None,
            Verdict::Admit { decision, reservation } => {
                request.extensions_mut().insert(decision.clone());
                Some(Admitted { decision, reservation })
            }
        };
        Self::Running { response: service.call(request), admitted }
    }
}

impl<S, B, R> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<ResponseBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Refused { response } => {
                    let response = response.take().expect("polled after it was ready");
                    return Poll::Ready(Ok(response.map(ResponseBody::own)));
                }
                StateProj::Deciding { verdict, call } => {
                    let verdict = ready!(verdict.as_mut().poll(cx));
                    let (mut service, request) = call.take().expect("polled after it was ready");
                    State::after(verdict, &mut service, request)
                }
                StateProj::Running { response, admitted } => {
                    let mut response = ready!(response.poll(cx))?;
                    let Some(Admitted { decision, reservation }) = admitted.take() else {
                        return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                    };
                    let replayed = response.extensions().get::<ReplayMark>().is_some();
                    let settled: BoxFuture<Decision> = match reservation {
                        Some(reservation) if replayed && decision.is_free_for_replays() => {
                            Box::pin(reservation.give_back())
                        }
                        None if replayed && decision.is_free_for_replays() => {
                            Box::pin(reservation::give_back(decision))
                        }
                        Some(reservation) => {
                            let cost = reservation.cost(ResponseHead::new(&response));
                            Box::pin(reservation.settle(cost))
                        }
                        None => {
                            decision.write_headers(response.headers_mut());
                            return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                        }
                    };
                    State::Settling { settled, response: Some(response) }
                }
                StateProj::Settling { settled, response } => {
                    let decision = ready!(settled.as_mut().poll(cx));
                    let mut response = response.take().expect("polled after it was ready");
                    decision.write_headers(response.headers_mut());
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
            };
            state.set(next);
        }
    }
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
