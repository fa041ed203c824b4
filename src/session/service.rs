//! The service.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode};
use tower_service::Service;

use super::{ResponseBody, ResponseFuture, SessionHandle, Sessions};
use crate::{marks::SessionMark, problem::Problem};

/// A service whose requests have sessions. See the [module documentation](super) for an example.
pub struct SessionService<S, R = ()> {
    inner: S,
    sessions: Sessions<R>,
}

impl<S, R> SessionService<S, R> {
    /// Gives the requests of `inner` sessions.
    pub fn new(inner: S, sessions: Sessions<R>) -> Self {
        Self { inner, sessions }
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

impl<S, R, B, C> Service<Request<B>> for SessionService<S, R>
where
    S: Service<Request<B>, Response = Response<C>> + Clone,
    R: 'static,
{
    type Response = Response<ResponseBody<C>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let shared = self.sessions.shared();
        if let Some(outer) = request.extensions().get::<SessionHandle<R>>() {
            if Arc::ptr_eq(&outer.inner.shared, shared) {
                // The same sessions around a router and one of its routes: once is meant.
                return ResponseFuture::outer(self.inner.call(request));
            }
            event!(
                error,
                "two different session layers around one route have the same realm: give one of \
                 them another with `SessionLayer::in_realm`, or use clones of one layer"
            );
            return self.refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the server's sessions are set up wrongly",
            );
        }
        let mark = request.extensions_mut().get_or_insert_default::<SessionMark>().clone();
        let handle = SessionHandle::<R>::new(Arc::clone(shared), request.headers(), mark);
        if handle.inner.is_contradictory() {
            return self.refuse(
                StatusCode::BAD_REQUEST,
                "the cookie and the bearer token are two different sessions; send one of them",
            );
        }
        let session = Arc::clone(&handle.inner);
        request.extensions_mut().insert(handle);
        ResponseFuture::running(self.inner.call(request), session)
    }
}

impl<S, R> SessionService<S, R> {
    fn refuse<F, C>(&mut self, status: StatusCode, detail: &'static str) -> ResponseFuture<F, C>
    where
        S: Clone,
    {
        // The inner service is not called. What it reserved when it was polled ready, such as the
        // permit of a concurrency limit, must not wait for the next request.
        self.inner = self.inner.clone();
        ResponseFuture::refused(Problem::from_status(status).with_detail(detail).into_response())
    }
}

impl<S: Clone, R> Clone for SessionService<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), sessions: self.sessions.clone() }
    }
}

impl<S: fmt::Debug, R> fmt::Debug for SessionService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionService")
            .field("inner", &self.inner)
            .field("sessions", &self.sessions)
            .finish()
    }
}
