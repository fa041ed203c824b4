//! The future of a cached response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use http_body::Body;

use super::ResponseBody;

type Answer<R, E> = Result<Response<ResponseBody<R>>, E>;

/// The response of a [`Cache`](super::Cache) service.
///
/// # Cancel safety
///
/// Dropped while the handler runs for a response that may be stored, it leaves the handler running:
/// others may wait for the answer.
pub struct ResponseFuture<R: Body, E> {
    state: State<R, E>,
}

enum State<R: Body, E> {
    Ready(Option<Response<ResponseBody<R>>>),
    Waiting(Pin<Box<dyn Future<Output = Answer<R, E>> + Send>>),
}

impl<R: Body, E> ResponseFuture<R, E> {
    pub(super) fn ready(response: Response<ResponseBody<R>>) -> Self {
        Self { state: State::Ready(Some(response)) }
    }

    pub(super) fn waiting(answer: impl Future<Output = Answer<R, E>> + Send + 'static) -> Self {
        Self { state: State::Waiting(Box::pin(answer)) }
    }
}

// Nothing is pinned in place: the future that is waited for has a box of its own.
impl<R: Body, E> Unpin for ResponseFuture<R, E> {}

impl<R: Body, E> Future for ResponseFuture<R, E> {
    type Output = Answer<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().state {
            State::Ready(response) => {
                Poll::Ready(Ok(response.take().expect("polled after it was ready")))
            }
            State::Waiting(answer) => answer.as_mut().poll(cx),
        }
    }
}

impl<R: Body, E> fmt::Debug for ResponseFuture<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
