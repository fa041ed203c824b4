//! Purges, and those that the storage has not acknowledged.

use std::{
    collections::BTreeSet,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{handle::Shared, shelf::Shelf};
use crate::storage::{Error, ErrorKind, Invalidation, Result, Storage, Tag, Tags};

/// How soon a purge that was not acknowledged is repeated; the pause doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Beyond this many tags that are owed, everything is purged instead.
const MOST_OWED: usize = 10_000;

/// What is to be invalidated, and how.
pub(super) struct Purge {
    /// `None`: everything.
    tags: Option<Vec<Tag>>,
    how: Invalidation,
}

impl Purge {
    pub(super) fn hard(tags: Vec<Tag>) -> Self {
        Self { tags: Some(tags), how: Invalidation::Hard }
    }

    pub(super) fn soft(tags: Vec<Tag>) -> Self {
        Self { tags: Some(tags), how: Invalidation::Soft }
    }

    pub(super) fn everything() -> Self {
        Self { tags: None, how: Invalidation::Hard }
    }

    async fn send(&self, shelf: &Shelf) -> Result<()> {
        let tags = self.tags.as_deref().map_or(Tags::All, Tags::Any);
        shelf.storage.invalidate(&shelf.namespace, tags, self.how).await
    }
}

/// The purges that the storage has not acknowledged. While there is one, the cache is passed by.
#[derive(Default)]
pub(super) struct Owed {
    is_any: AtomicBool,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    debt: Debt,
    /// A task is at it.
    repeating: bool,
}

/// Purges taken together.
#[derive(Default)]
struct Debt {
    everything: bool,
    hard: BTreeSet<Tag>,
    soft: BTreeSet<Tag>,
}

impl Debt {
    fn add(&mut self, purge: Purge) {
        match purge {
            Purge { tags: None, .. } => self.everything = true,
            Purge { tags: Some(tags), how: Invalidation::Hard } => self.hard.extend(tags),
            Purge { tags: Some(tags), how: Invalidation::Soft } => self.soft.extend(tags),
        }
        self.bound();
    }

    fn merge(&mut self, other: Self) {
        self.everything |= other.everything;
        self.hard.extend(other.hard);
        self.soft.extend(other.soft);
        self.bound();
    }

    fn bound(&mut self) {
        self.everything |= self.hard.len() + self.soft.len() > MOST_OWED;
        if self.everything {
            self.hard.clear();
            self.soft.clear();
        }
    }

    fn is_empty(&self) -> bool {
        !self.everything && self.hard.is_empty() && self.soft.is_empty()
    }

    async fn send(&self, shelf: &Shelf) -> Result<()> {
        if self.everything {
            return Purge::everything().send(shelf).await;
        }
        if !self.hard.is_empty() {
            Purge::hard(self.hard.iter().cloned().collect()).send(shelf).await?;
        }
        if !self.soft.is_empty() {
            Purge::soft(self.soft.iter().cloned().collect()).send(shelf).await?;
        }
        Ok(())
    }
}

impl Owed {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Whether the cache is passed by because a purge is not known to have happened.
    pub(super) fn is_bypassed(self: &Arc<Self>) -> bool {
        let is_bypassed = self.owed.is_any.load(SeqCst);
        if is_bypassed {
            // Who was at it may have gone with his runtime.
            self.repeat();
        }
        is_bypassed
    }

    /// Invalidates, and goes on trying in the background if that fails.
    pub(super) async fn purge(self: &Arc<Self>, what: Purge) -> Result<()> {
        if matches!(&what.tags, Some(tags) if tags.is_empty()) {
            return Ok(());
        }
        let purge = Arc::clone(self).purge_once(what);
        if self.shelf.storage.answers_at_once() {
            return purge.await;
        }
        // A task of its own: what has begun is finished, also if the caller goes away.
        self.tasks().spawn(purge).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, "the runtime stops before the purge was sent"))
        })
    }

    async fn purge_once(self: Arc<Self>, what: Purge) -> Result<()> {
        let purged = what.send(&self.shelf).await;
        if let Some(near) = &self.shelf.near {
            near.distrust();
        }
        if purged.as_ref().is_err_and(may_be_repeated) {
            self.owed.books().debt.add(what);
            if !self.owed.is_any.swap(true, SeqCst) {
                event!(warn, "a purge was not acknowledged; the cache is passed by until it is");
            }
            self.repeat();
        }
        purged
    }

    /// Repeats in the background what is owed, unless somebody does.
    fn repeat(self: &Arc<Self>) {
        let mut books = self.owed.books();
        if !books.repeating {
            books.repeating = true;
            // Made at once: the task may be dropped before it has run.
            let repeating = Repeating { shared: Arc::clone(self), debt: None };
            // A shutdown waits for what is owed, as long as it waits for anything.
            self.tasks().spawn_apart(async move { repeating.until_acknowledged().await });
        }
    }

    /// Waits until the next try is due. A shutdown that is about to give up has it at once, for it may be
    /// the last.
    async fn pause(&self, pause: Duration) {
        if self.tasks().is_abandoned() {
            sleep(pause).await;
        } else {
            let _ = timeout(pause, self.tasks().abandoned()).await;
        }
    }
}

/// Who repeats. Dropped with its runtime, it leaves the debt to another.
struct Repeating {
    shared: Arc<Shared>,
    /// What was sent and is not answered yet.
    debt: Option<Debt>,
}

impl Repeating {
    async fn until_acknowledged(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.shared.pause(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            let shared = Arc::clone(&self.shared);
            let debt = self.debt.insert(mem::take(&mut shared.owed.books().debt));
            match debt.send(&shared.shelf).await {
                Err(error) if may_be_repeated(&error) => {
                    let debt = mem::take(debt);
                    shared.owed.books().debt.merge(debt);
                    continue;
                }
                Err(error) => {
                    event!(error, %error, "a purge is given up");
                }
                Ok(()) => {}
            }
            self.debt = None;
            if let Some(near) = &shared.shelf.near {
                near.distrust();
            }
            let books = shared.owed.books();
            if books.debt.is_empty() {
                shared.owed.is_any.store(false, SeqCst);
                return;
            }
            pause = FIRST_PAUSE;
        }
    }
}

impl Drop for Repeating {
    fn drop(&mut self) {
        let mut books = self.shared.owed.books();
        books.repeating = false;
        if let Some(debt) = self.debt.take() {
            books.debt.merge(debt);
        }
    }
}

fn may_be_repeated(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported)
}
