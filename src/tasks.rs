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
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// How long before the end of a shutdown the tasks are told, at most.
const LONGEST_NOTICE: Duration = Duration::from_secs(1);

/// What came of a shutdown: see [`AnyStorage::shutdown`](crate::storage::AnyStorage::shutdown).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "tasks may have been given up"]
#[non_exhaustive]
pub struct Drained {
    /// How many tasks had not come to their end in time. They go on as long as their runtime does,
    /// and what they do counts, but nobody waits for them any more. Among them are the handlers of
    /// requests with an idempotency key, which do not go on: they were stopped, and their keys say so.
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
    /// How many tasks have ended before their work was done, since that was given.
    stopped: usize,
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

    /// The same in no span, for what may outlive the request that causes it by far: its span would stay
    /// open, and who exports spans would not see it.
    pub(crate) fn spawn_apart<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Counts as a task, as long as it lives. For what a task returns and begins another when it is
    /// dropped: a task that nobody joins drops that after its end.
    #[cfg_attr(not(feature = "rate-limit"), allow(dead_code))]
    pub(crate) fn token(&self) -> TaskTrackerToken {
        self.tracker.token()
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

    /// Says that a task which was given word ends without having done its work.
    #[cfg_attr(not(feature = "idempotency"), allow(dead_code))]
    pub(crate) fn note_stopped(&self) {
        self.notice().stopped += 1;
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
        let running = match timeout(notice, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        };
        let abandoned = running + self.notice().stopped;
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
            notice.stopped = 0;
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

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
    };

    use tokio::{
        sync::oneshot,
        time::{Instant, advance, sleep},
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// Timers fire on whole milliseconds.
    const TICK: Duration = Duration::from_millis(2);
    const CLEAN: Drained = Drained { abandoned: 0 };

    #[tokio::test(start_paused = true)]
    async fn with_nothing_to_wait_for_it_returns_at_once() {
        let (tasks, began) = (Tasks::default(), Instant::now());
        for within in [Duration::ZERO, SECOND, Duration::MAX] {
            assert!(tasks.shutdown(within).await.is_clean());
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn it_returns_when_the_last_task_ends() {
        let (tasks, began) = (Tasks::default(), Instant::now());
        for seconds in [3, 1, 2] {
            tasks.spawn(sleep(seconds * SECOND));
            tasks.clone().spawn_on(sleep(seconds * SECOND), &Handle::current());
            tasks.spawn_apart(sleep(seconds * SECOND));
        }
        assert_eq!(tasks.shutdown(Duration::MAX).await, CLEAN);
        assert!((3 * SECOND..3 * SECOND + TICK).contains(&began.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_begins_meanwhile_is_waited_for() {
        let (tasks, began) = (Tasks::default(), Instant::now());
        let within = tasks.clone();
        tasks.spawn(async move {
            sleep(SECOND).await;
            within.spawn(sleep(2 * SECOND));
        });
        assert!(tasks.shutdown(10 * SECOND).await.is_clean());
        assert!((3 * SECOND..3 * SECOND + TICK).contains(&began.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_of_its_patience_it_says_how_many_still_run() {
        for within in [Duration::ZERO, SECOND, 60 * SECOND] {
            let (tasks, began) = (Tasks::default(), Instant::now());
            let ends = Arc::new(AtomicBool::new(false));
            for _ in 0..3 {
                tasks.spawn(pending::<()>());
            }
            tasks.spawn({
                let ends = Arc::clone(&ends);
                async move {
                    sleep(61 * SECOND).await;
                    ends.store(true, SeqCst);
                }
            });
            let drained = tasks.shutdown(within).await;
            assert_eq!(drained, Drained { abandoned: 4 });
            assert!(!drained.is_clean());
            assert!((within..within + 2 * TICK).contains(&began.elapsed()), "{within:?}");
            sleep(62 * SECOND).await;
            assert!(ends.load(SeqCst), "what was given up was not stopped");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_is_aborted_is_not_waited_for() {
        let tasks = Tasks::default();
        let panics = tasks.spawn(async {
            sleep(SECOND).await;
            panic!("on purpose");
        });
        tasks.spawn(pending::<()>()).abort();
        assert!(tasks.shutdown(10 * SECOND).await.is_clean());
        assert!(panics.await.unwrap_err().is_panic());
    }

    #[test]
    fn a_task_that_goes_with_its_runtime_is_not_waited_for() {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (tasks, short) = (Tasks::default(), runtime());
        tasks.spawn_on(pending::<()>(), short.handle());
        drop(short);
        assert!(runtime().block_on(tasks.shutdown(60 * SECOND)).is_clean());
    }

    /// When a task is told that it is given up, from now on.
    async fn told(tasks: &Tasks) -> Duration {
        let (told, when) = oneshot::channel();
        let (began, abandoned) = (Instant::now(), tasks.abandoned());
        tasks.spawn(async move {
            let _ = timeout(600 * SECOND, abandoned).await;
            let _ = told.send(began.elapsed());
        });
        when.await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_are_told_shortly_before_the_end_and_may_end_then() {
        for (within, notice) in [(5 * SECOND, SECOND / 2), (60 * SECOND, SECOND)] {
            let tasks = Tasks::default();
            let (told, drained) = tokio::join!(told(&tasks), tasks.shutdown(within));
            assert_eq!(drained, CLEAN, "who has left word is not given up");
            assert!((within - notice..within - notice + TICK).contains(&told), "{told:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn word_of_an_end_is_for_those_who_run_then_and_for_nobody_later() {
        let tasks = Tasks::default();
        tasks.spawn(pending::<()>());
        let (early, during) = (tasks.abandoned(), tasks.clone());
        let late = tokio::spawn(async move {
            sleep(Duration::from_millis(9_500)).await;
            assert!(during.is_abandoned());
            assert!(timeout(SECOND, during.abandoned()).await.is_ok());
        });
        assert!(!tasks.is_abandoned());
        assert_eq!(tasks.shutdown(10 * SECOND).await.abandoned, 1);
        late.await.unwrap();
        assert!(!tasks.is_abandoned(), "the process goes on");
        assert!(timeout(SECOND, early).await.is_ok());
        assert!(timeout(60 * SECOND, tasks.abandoned()).await.is_err());
        assert_eq!(tasks.shutdown(SECOND).await.abandoned, 1, "and may be shut down again");
    }

    #[tokio::test(start_paused = true)]
    async fn two_at_once_wait_each_for_its_time() {
        let (tasks, began) = (Tasks::default(), Instant::now());
        tasks.spawn(sleep(5 * SECOND));
        let impatient = tokio::spawn({
            let tasks = tasks.clone();
            async move { (tasks.shutdown(2 * SECOND).await, Instant::now()) }
        });
        assert!(tasks.shutdown(20 * SECOND).await.is_clean());
        assert!((5 * SECOND..5 * SECOND + TICK).contains(&began.elapsed()));
        let (drained, at) = impatient.await.unwrap();
        assert_eq!(drained.abandoned, 1);
        assert!((2 * SECOND..2 * SECOND + 2 * TICK).contains(&(at - began)));
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_that_give_up_together_the_end_of_one_takes_no_word_back() {
        let tasks = Tasks::default();
        tasks.spawn(pending::<()>());
        let later = tokio::spawn({
            let tasks = tasks.clone();
            async move { tasks.shutdown(Duration::from_millis(10_500)).await }
        });
        assert_eq!(tasks.shutdown(10 * SECOND).await.abandoned, 1);
        assert!(tasks.is_abandoned(), "the other is about to give up");
        assert!(timeout(TICK, tasks.abandoned()).await.is_ok());
        assert_eq!(later.await.unwrap().abandoned, 1);
        assert!(!tasks.is_abandoned());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_that_is_dropped_ends_nothing() {
        let tasks = Tasks::default();
        let task = tasks.spawn(sleep(20 * SECOND));
        for patience in [SECOND, Duration::from_millis(9_500)] {
            assert!(timeout(patience, tasks.shutdown(10 * SECOND)).await.is_err());
            assert!(!tasks.is_abandoned());
        }
        advance(SECOND).await;
        assert!(!task.is_finished());
        assert!(tasks.shutdown(20 * SECOND).await.is_clean());
        assert!(task.is_finished());
    }
}
