//! Work within a limit of time.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Timeout, timeout};

use crate::storage::Error;

pin_project! {
    /// Work that is given up when its time is over.
    ///
    /// Written by hand, as an `async` block keeps its work twice, once as it was given and once as it
    /// runs. One in another would double the size at each step, and all of it is moved around.
    #[project = TimedProj]
    pub(super) enum Timed<F> {
        /// Work that is done at once needs no clock.
        AtOnce { #[pin] work: F },
        Within { #[pin] work: Timeout<F>, limit: Duration, expired: fn(Duration) -> Error },
    }
}

impl<F: Future> Timed<F> {
    pub(super) fn at_once(work: F) -> Self {
        Self::AtOnce { work }
    }

    /// The limit counts from now on.
    pub(super) fn within(limit: Duration, work: F, expired: fn(Duration) -> Error) -> Self {
        Self::Within { work: timeout(limit, work), limit, expired }
    }
}

impl<F, T, E> Future for Timed<F>
where
    F: Future<Output = Result<T, E>>,
    E: From<Error>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            TimedProj::AtOnce { work } => work.poll(cx),
            TimedProj::Within { work, limit, expired } => {
                let in_time = ready!(work.poll(cx));
                Poll::Ready(in_time.unwrap_or_else(|_| Err(expired(*limit).into())))
            }
        }
    }
}
