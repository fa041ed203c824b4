//! What came of a run.

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

/// How a clause ended that did not panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The backend keeps the clause.
    Passed,
    /// The clause could not be tested, and why.
    Skipped(&'static str),
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Passed
    }
}

/// What [`run_all`](super::run_all) found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// The clauses that the backend keeps.
    pub passed: Vec<&'static str>,
    /// The clauses that could not be tested, and why.
    pub skipped: Vec<(&'static str, &'static str)>,
    /// The clauses that the backend breaks, and how.
    pub failed: Vec<(&'static str, String)>,
}

impl Report {
    /// Whether no clause failed.
    pub fn is_success(&self) -> bool {
        self.failed.is_empty()
    }

    pub(super) fn note(&mut self, clause: &'static str, outcome: Result<Outcome, String>) {
        match outcome {
            Ok(Outcome::Passed) => self.passed.push(clause),
            Ok(Outcome::Skipped(why)) => self.skipped.push((clause, why)),
            Err(message) => self.failed.push((clause, message)),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, skipped, failed } = self;
        write!(f, "{} passed, {} skipped, {} failed", passed.len(), skipped.len(), failed.len())?;
        for (clause, why) in skipped {
            write!(f, "\n  skipped {clause}: {why}")?;
        }
        for (clause, message) in failed {
            write!(f, "\n  FAILED  {clause}: {message}")?;
        }
        Ok(())
    }
}

/// The outcome of a future, or the message with which it panicked.
pub(super) async fn caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        // A future that has panicked is not polled again.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(outcome)) => Poll::Ready(Ok(outcome)),
            Err(payload) => Poll::Ready(Err(message(&*payload))),
        }
    })
    .await
}

fn message(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(message), _) => (*message).into(),
        (_, Some(message)) => message.clone(),
        _ => "panicked".into(),
    }
}
