//! What layers run beside requests, and its end.
//!
//! A task is tracked if something would be lost with it that somebody counts on: an answer that is to
//! be stored, a session's save, units that go back. What never ends by itself and is owed to nobody is
//! not: the connections of a storage, the polls of a near cache, the heartbeats of leases, which end
//! with what they serve.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long before the end of a shutdown the tasks are told, at most.
const LONGEST_NOTICE: Duration = Duration::from_secs(1);

/// What came of a shutdown: see [`AnyStorage::shutdown`](crate::storage::AnyStorage::shutdown).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "tasks may have been given up"]
#[non_exhaustive]
pub struct Drained {
    /// How many tasks had not come to their end in time. They go on as long as their runtime does,
    /// and what they do counts; but nobody waits for them any more.
    pub abandoned: usize,
}

impl Drained {
    /// Whether there was a moment at which nothing was left to be done.
    pub fn is_clean(&self) -> bool {
        self.abandoned == 0
    }
}

/// The tasks of all layers on one storage. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    notice: Arc<Mutex<Notice>>,
}

/// Word to the tasks that nobody will wait for them much longer.
#[derive(Default)]
struct Notice {
    given: CancellationToken,
    /// How many shutdowns are about to give up.
    givers: usize,
}

// Some belong to one layer.
#[cfg_attr(not(feature = "cache"), allow(dead_code))]
impl Tasks {
    /// Runs a task that a shutdown waits for, in the span of the caller.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tracker.spawn(in_current_span(task))
    }

    /// The same on a runtime that need not be the current one.
    pub(crate) fn spawn_on<F>(&self, task: F, runtime: &Handle) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tracker.spawn_on(in_current_span(task), runtime)
    }

    /// Resolves when a shutdown will soon give up, so that a task can leave word of what it cannot
    /// finish: at once during the last moments of a shutdown, and not for one that is over. So a task
    /// asks when it begins, and keeps the future.
    pub(crate) fn abandoned(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.notice().given.clone().cancelled_owned()
    }

    /// Whether a shutdown is about to give up.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.notice().given.is_cancelled()
    }

    /// Waits until there is a moment without tasks, for at most that long.
    pub(crate) async fn shutdown(&self, within: Duration) -> Drained {
        // Does not keep tasks from beginning. It stays closed, for another may be waiting.
        self.tracker.close();
        let notice = (within / 10).min(LONGEST_NOTICE);
        if timeout(within - notice, self.tracker.wait()).await.is_ok() {
            return Drained { abandoned: 0 };
        }
        // Whoever called the first of several shutdowns may end the process after it: so the first
        // gives notice to all.
        let giving = Giving::notice(self);
        let abandoned = match timeout(notice, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        };
        drop(giving);
        if abandoned > 0 {
            event!(warn, abandoned, "tasks have not ended before the end of the shutdown");
        }
        Drained { abandoned }
    }

    fn notice(&self) -> MutexGuard<'_, Notice> {
        self.notice.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shutdown that is about to give up. When the last of them is over, the next tasks know nothing of
/// them: the process may go on with the storage.
struct Giving<'a>(&'a Tasks);

impl<'a> Giving<'a> {
    fn notice(tasks: &'a Tasks) -> Self {
        let mut notice = tasks.notice();
        notice.givers += 1;
        let given = notice.given.clone();
        drop(notice);
        // It may wake whoever asks for more of it.
        given.cancel();
        Self(tasks)
    }
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        let mut notice = self.0.notice();
        notice.givers -= 1;
        if notice.givers == 0 {
            notice.given = CancellationToken::new();
        }
    }
}

/// A task belongs to the request which causes it, for those who trace.
#[cfg(feature = "tracing")]
fn in_current_span<F: Future>(task: F) -> tracing::instrument::Instrumented<F> {
    tracing::Instrument::in_current_span(task)
}

#[cfg(not(feature = "tracing"))]
fn in_current_span<F: Future>(task: F) -> F {
    task
}
