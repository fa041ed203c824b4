//! The future of a limited request.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    Decision, Policy, Rejection, ResponseBody, reservation::Reservation, settle::ResponseHead,
};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the limiter says of a request.
pub(super) enum Verdict {
    Exempt,
    Admit { decision: Decision, reservation: Option<Reservation> },
    Refuse(Arc<Policy>, Rejection),
}

/// A request's way to a [`Verdict`].
pub(super) enum Passage {
    Decided(Verdict),
    Pending(BoxFuture<Verdict>),
}

impl Passage {
    pub(super) fn pending(future: impl Future<Output = Verdict> + Send + 'static) -> Self {
        Self::Pending(Box::pin(future))
    }
}

pin_project! {
    /// The response of a [`RateLimit`](super::RateLimit) service.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the response is there, it gives back what a
    /// [`Settlement`](super::Settlement) had reserved.
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
        Deciding { verdict: Option<Verdict>, pending: Option<BoxFuture<Verdict>>, call: Option<(S, Request<B>)> },
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
    pub(super) fn new(service: S, request: Request<B>, passage: Passage) -> Self {
        let (verdict, pending) = match passage {
            Passage::Decided(verdict) => (Some(verdict), None),
            Passage::Pending(pending) => (None, Some(pending)),
        };
        Self { state: State::Deciding { verdict, pending, call: Some((service, request)) } }
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
                StateProj::Deciding { verdict, pending, call } => {
                    let verdict = match (verdict.take(), pending) {
                        (Some(verdict), _) => verdict,
                        (None, Some(pending)) => ready!(pending.as_mut().poll(cx)),
                        (None, None) => unreachable!("a passage is decided or pending"),
                    };
                    let (mut service, mut request) =
                        call.take().expect("polled after it was ready");
                    let admitted = match verdict {
                        Verdict::Refuse(policy, rejection) => {
                            return Poll::Ready(Ok(refuse(&policy, rejection)));
                        }
                        Verdict::Exempt => None,
                        Verdict::Admit { decision, reservation } => {
                            request.extensions_mut().insert(decision.clone());
                            Some(Admitted { decision, reservation })
                        }
                    };
                    State::Running { response: service.call(request), admitted }
                }
                StateProj::Running { response, admitted } => {
                    let mut response = ready!(response.poll(cx))?;
                    let Some(Admitted { decision, reservation }) = admitted.take() else {
                        return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                    };
                    let Some(reservation) = reservation else {
                        decision.write_headers(response.headers_mut());
                        return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                    };
                    let cost = reservation.cost(ResponseHead::new(&response));
                    State::Settling {
                        settled: Box::pin(reservation.settle(cost)),
                        response: Some(response),
                    }
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

fn refuse<R>(policy: &Policy, rejection: Rejection) -> Response<ResponseBody<R>> {
    let mut response = policy.respond(&rejection);
    response.extensions_mut().insert(rejection);
    response.map(ResponseBody::rejection)
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
