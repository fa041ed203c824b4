//! Duplicates that wait for the first of this process.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::sync::Notify;

/// Who waits for which key. What other processes do is found by asking the storage.
#[derive(Default)]
pub(super) struct Board {
    waits: Mutex<HashMap<[u8; 32], Wait>>,
    /// Of all keys, so that nobody has to look while nobody waits.
    waiting: AtomicUsize,
}

struct Wait {
    news: Arc<Notify>,
    waiting: usize,
}

/// One that waits.
pub(super) struct Waiting<'a> {
    board: &'a Board,
    key: [u8; 32],
    news: Arc<Notify>,
}

impl Board {
    pub(super) fn wait(&self, key: [u8; 32]) -> Waiting<'_> {
        let mut waits = self.waits();
        let wait =
            waits.entry(key).or_insert_with(|| Wait { news: Arc::default(), waiting: 0 });
        wait.waiting += 1;
        self.waiting.fetch_add(1, SeqCst);
        let news = Arc::clone(&wait.news);
        Waiting { board: self, key, news }
    }

    /// Wakes all who wait for the key.
    pub(super) fn tell(&self, key: &[u8; 32]) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        if let Some(wait) = self.waits().get(key) {
            wait.news.notify_waiters();
        }
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<[u8; 32], Wait>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// For news after this moment: ask before looking, so that none is missed.
    pub(super) fn news(&self) -> tokio::sync::futures::Notified<'_> {
        self.news.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waits = self.board.waits();
        self.board.waiting.fetch_sub(1, SeqCst);
        if let Some(wait) = waits.get_mut(&self.key) {
            wait.waiting -= 1;
            if wait.waiting == 0 {
                waits.remove(&self.key);
            }
        }
    }
}
