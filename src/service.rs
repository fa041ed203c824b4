//! What services have in common that run handlers in tasks of their own.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::body::live::ResponseBody;

/// Calls a service when it is ready.
pub(crate) async fn oneshot<S, B>(
    mut service: S,
    request: Request<B>,
) -> Result<S::Response, S::Error>
where
    S: Service<Request<B>>,
{
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}

type Answer<R, E> = Result<Response<ResponseBody<R>>, E>;

/// The response of a service whose handlers may run in tasks of their own.
///
/// # Cancel safety
///
/// Dropped while the handler runs for a response that is to be stored, it leaves the handler running:
/// others may wait for the answer.
pub struct ResponseFuture<R: Body, E> {
    state: State<R, E>,
}

enum State<R: Body, E> {
    Ready(Option<Response<ResponseBody<R>>>),
    Waiting(Pin<Box<dyn Future<Output = Answer<R, E>> + Send>>),
}

impl<R: Body, E> ResponseFuture<R, E> {
    pub(crate) fn ready(response: Response<ResponseBody<R>>) -> Self {
        Self { state: State::Ready(Some(response)) }
    }

    pub(crate) fn waiting(answer: impl Future<Output = Answer<R, E>> + Send + 'static) -> Self {
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
