//! Duplicates that wait for the first.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::HeaderMap;
use tokio::{
    sync::{SemaphorePermit, watch},
    time::{Instant, timeout_at},
};

use super::{
    InFlight,
    reply::preferred_wait,
    shared::{Shared, after},
};

/// After that a waiting duplicate asks the storage again; it doubles from there. A first that runs in
/// this process wakes it sooner.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Who waits for which key in this process. What other processes do is found by asking the storage.
#[derive(Default)]
pub(super) struct Board {
    waits: Mutex<HashMap<[u8; 32], Wait>>,
    /// Of all keys, so that nobody has to look while nobody waits.
    waiting: AtomicUsize,
}

struct Wait {
    news: watch::Sender<()>,
    waiting: usize,
}

impl Board {
    /// Wakes all who wait for the key.
    pub(super) fn tell(&self, key: &[u8; 32]) {
        if self.waiting.load(SeqCst) == 0 {
            return;
        }
        if let Some(wait) = self.waits().get(key) {
            wait.news.send_replace(());
        }
    }

    fn enter(&self, key: [u8; 32]) -> watch::Receiver<()> {
        let mut waits = self.waits();
        self.waiting.fetch_add(1, SeqCst);
        let wait =
            waits.entry(key).or_insert_with(|| Wait { news: watch::Sender::new(()), waiting: 0 });
        wait.waiting += 1;
        wait.news.subscribe()
    }

    fn leave(&self, key: &[u8; 32]) {
        let mut waits = self.waits();
        self.waiting.fetch_sub(1, SeqCst);
        if let Some(wait) = waits.get_mut(key) {
            wait.waiting -= 1;
            if wait.waiting == 0 {
                waits.remove(key);
            }
        }
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<[u8; 32], Wait>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One duplicate that waits.
pub(super) struct Queue<'a> {
    board: &'a Board,
    key: [u8; 32],
    news: watch::Receiver<()>,
    until: Instant,
    pause: Duration,
    _place: SemaphorePermit<'a>,
}

impl<'a> Queue<'a> {
    /// A place among those that wait, if the policy and the client want that, and there is room.
    pub(super) fn enter(shared: &'a Shared, key: [u8; 32], request: &HeaderMap) -> Option<Self> {
        let preferred = preferred_wait(request);
        let patience = match shared.policy.in_flight {
            InFlight::Conflict => return None,
            InFlight::Wait(most) => preferred.map_or(most, |preferred| preferred.min(most)),
            InFlight::WaitIfPreferred(most) => preferred?.min(most),
        };
        let place = shared.waiting.try_acquire().ok()?;
        let until = after(patience);
        let (board, pause) = (&shared.board, FIRST_PAUSE);
        Some(Self { board, key, news: board.enter(key), until, pause, _place: place })
    }

    /// Waits for news, or until it is time to ask again: at the latest when the owner counts as
    /// vanished, unless it gives a sign of life. `false` if the patience is over.
    pub(super) async fn pause(&mut self, sure: Duration) -> bool {
        let now = Instant::now();
        if self.until <= now {
            return false;
        }
        let ask = now + self.pause.min(sure).max(Duration::from_millis(1));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let _ = timeout_at(ask.min(self.until), self.news.changed()).await;
        true
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        self.board.leave(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryStorage, Storage, idempotency::Policy};

    const KEY: [u8; 32] = [1; 32];

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_leaves_nothing_on_the_board() {
        let policy = Policy::scope_public()
            .with_in_flight(InFlight::Wait(Duration::from_secs(5)))
            .with_max_waiting(2);
        let shared = Shared::try_new(MemoryStorage::new().erase(), policy).unwrap();
        let enter = || Queue::enter(&shared, KEY, &HeaderMap::new());
        let (first, second) = (enter().unwrap(), enter().unwrap());
        assert!(enter().is_none(), "there is room for two");
        drop(first);
        assert_eq!(shared.board.waits().len(), 1, "the other one waits");
        let mut third = enter().unwrap();
        assert!(timeout_at(Instant::now(), third.pause(Duration::MAX)).await.is_err());
        drop((second, third));
        assert!(shared.board.waits().is_empty());
        assert_eq!(shared.board.waiting.load(SeqCst), 0);
        shared.board.tell(&KEY);
    }
}
