//! The future of a request with a session.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use pin_project_lite::pin_project;

use super::{ResponseBody, SaveFailure, SessionError, request::Inner};

type Settled = Pin<Box<dyn Future<Output = Result<(), SessionError>> + Send>>;

pin_project! {
    /// The response of a [`SessionService`](super::SessionService).
    ///
    /// # Cancel safety
    ///
    /// Dropped before the handler has answered, it saves nothing but what the handler awaited itself.
    /// From then on the save is carried out to its end.
    pub struct ResponseFuture<F, C> {
        #[pin]
        state: State<F, C>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, C> {
        Refused { response: Option<Response<Bytes>> },
        /// Another service of the same sessions further out does the work.
        Outer { #[pin] response: F },
        Running { #[pin] response: F, session: Arc<Inner> },
        Settling { settled: Settled, response: Option<Response<C>>, session: Arc<Inner> },
    }
}

impl<F, C> ResponseFuture<F, C> {
    pub(super) fn refused(response: Response<Bytes>) -> Self {
        Self { state: State::Refused { response: Some(response) } }
    }

    pub(super) fn outer(response: F) -> Self {
        Self { state: State::Outer { response } }
    }

    pub(super) fn running(response: F, session: Arc<Inner>) -> Self {
        Self { state: State::Running { response, session } }
    }
}

impl<F, C, E> Future for ResponseFuture<F, C>
where
    F: Future<Output = Result<Response<C>, E>>,
{
    type Output = Result<Response<ResponseBody<C>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Refused { response } => {
                    let response = response.take().expect("polled after it was ready");
                    return Poll::Ready(Ok(response.map(ResponseBody::own)));
                }
                StateProj::Outer { response } => {
                    return response.poll(cx).map_ok(|response| response.map(ResponseBody::inner));
                }
                StateProj::Running { response, session } => {
                    let mut response = ready!(response.poll(cx))?;
                    if session.write_head_if_done(response.headers_mut()) {
                        return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                    }
                    let settled = Inner::settled(session, response.status());
                    State::Settling {
                        settled,
                        response: Some(response),
                        session: Arc::clone(session),
                    }
                }
                StateProj::Settling { settled, response, session } => {
                    let outcome = ready!(settled.as_mut().poll(cx));
                    let mut response = response.take().expect("polled after it was ready");
                    let Err(error) = outcome else {
                        session.write_head(response.headers_mut());
                        return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                    };
                    let failure = SaveFailure::of(&error);
                    let mut response = if session.answers_failures() {
                        error.to_conflict_response().map(ResponseBody::own)
                    } else {
                        response.map(ResponseBody::inner)
                    };
                    session.write_head(response.headers_mut());
                    response.extensions_mut().insert(failure);
                    return Poll::Ready(Ok(response));
                }
            };
            state.set(next);
        }
    }
}

impl<F, C> fmt::Debug for ResponseFuture<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::{
        MemoryStorage,
        marks::SessionMark,
        session::{Policy, SessionHandle, Sessions},
    };

    /// They are moved several times on their way into a task or a box, and it was most of what a
    /// save in memory cost.
    #[test]
    fn what_a_request_waits_for_is_small() {
        let sessions = Sessions::new(MemoryStorage::new(), Policy::new());
        let shared = Arc::clone(sessions.shared());
        let handle = SessionHandle::<()>::new(shared, &HeaderMap::new(), SessionMark::new());
        let (load, settle) = (handle.load(), handle.inner.settle(StatusCode::OK));
        let sizes = [size_of_val(&load), size_of_val(&settle)];
        assert!(sizes[0] <= 2_048 && sizes[1] <= 4_096, "{sizes:?}");
    }
}
