//! Turns by key within this process.
//!
//! Who wants to read, change and store one entry enters the queue of its key, so that the storage's
//! compare-and-swap is left to settle races between processes. What one turn has stored it may leave
//! to the next, which then need not read.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// A digest, of whatever is worked on.
pub(super) type QueueKey = [u8; 32];

/// How many locks the keys share. None is ever held over an await.
const SHARDS: usize = 64;
/// A shard that has made room for more keys gives it back when they are gone.
const SPARE: usize = 32;

/// The queues of this process: fair, and none waits for another.
///
/// A key takes memory only while somebody holds its turn or waits for it.
pub(super) struct Queues<V> {
    shards: Arc<[Mutex<Shard<V>>]>,
}

/// The keys whose turn is held or on its way to who waited for it.
type Shard<V> = HashMap<QueueKey, Line<V>>;

struct Line<V> {
    /// By ticket, so in the order in which they came.
    waiting: BTreeMap<u64, oneshot::Sender<Turn<V>>>,
    next_ticket: u64,
}

impl<V> Queues<V> {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Waits until all who came before have had their turn. May be dropped at any time.
    pub(super) async fn enter(&self, key: QueueKey) -> Turn<V> {
        let mut place = match self.line_up(key) {
            Ok(turn) => return turn,
            Err(place) => place,
        };
        match (&mut place.call).await {
            Ok(turn) => turn,
            Err(_) => unreachable!("only its own drop takes a place out of the line unanswered"),
        }
    }

    /// The turn, if nobody holds it or waits for it.
    pub(super) fn try_enter(&self, key: QueueKey) -> Option<Turn<V>> {
        let mut shard = self.shard(&key);
        if shard.contains_key(&key) {
            return None;
        }
        shard.insert(key, Line { waiting: BTreeMap::new(), next_ticket: 0 });
        drop(shard);
        Some(self.turn(key))
    }

    fn line_up(&self, key: QueueKey) -> Result<Turn<V>, Place<V>> {
        let mut shard = self.shard(&key);
        let Some(line) = shard.get_mut(&key) else {
            shard.insert(key, Line { waiting: BTreeMap::new(), next_ticket: 0 });
            drop(shard);
            return Ok(self.turn(key));
        };
        let (sender, call) = oneshot::channel();
        let ticket = line.next_ticket;
        line.next_ticket += 1;
        line.waiting.insert(ticket, sender);
        drop(shard);
        Err(Place { queues: self.clone(), key, ticket, call })
    }

    fn turn(&self, key: QueueKey) -> Turn<V> {
        Turn { held: Some(Held { queues: self.clone(), key, slot: None }) }
    }

    fn shard(&self, key: &QueueKey) -> MutexGuard<'_, Shard<V>> {
        // A digest is as good as random.
        let shard = &self.shards[usize::from(key[0]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose turn is next; the line ends if nobody waits.
    fn next(&self, key: &QueueKey) -> Option<oneshot::Sender<Turn<V>>> {
        let mut shard = self.shard(key);
        if let Some((_, sender)) = shard.get_mut(key).and_then(|line| line.waiting.pop_first()) {
            return Some(sender);
        }
        shard.remove(key);
        if shard.capacity() > SPARE && shard.len() < shard.capacity() / 8 {
            let twice = shard.len() * 2;
            shard.shrink_to(twice.max(SPARE / 2));
        }
        None
    }

    /// How many keys take memory.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }
}

impl<V> Clone for Queues<V> {
    fn clone(&self) -> Self {
        Self { shards: Arc::clone(&self.shards) }
    }
}

impl<V> fmt::Debug for Queues<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queues(..)")
    }
}

/// A place in the line. Its drop gives it up, and hands on the turn if that has come already.
struct Place<V> {
    queues: Queues<V>,
    key: QueueKey,
    ticket: u64,
    call: oneshot::Receiver<Turn<V>>,
}

impl<V> Drop for Place<V> {
    fn drop(&mut self) {
        // The line is still that of the ticket: it cannot end before `call` is dropped, for either
        // the ticket is in it, or the turn is on its way to `call` or held by who awaited it.
        let mut shard = self.queues.shard(&self.key);
        let sender = shard.get_mut(&self.key).and_then(|line| line.waiting.remove(&self.ticket));
        drop(shard);
        drop(sender);
    }
}

/// The right to work on a key. Dropped, it goes to who has waited longest.
pub(super) struct Turn<V> {
    /// Always there, but while the turn is handed on.
    held: Option<Held<V>>,
}

struct Held<V> {
    queues: Queues<V>,
    key: QueueKey,
    slot: Option<V>,
}

impl<V> Turn<V> {
    /// What an earlier turn, or this one, has left. Another process may have stored something since.
    pub(super) fn last(&self) -> Option<&V> {
        self.held.as_ref()?.slot.as_ref()
    }

    /// The same, to be had and not handed on.
    pub(super) fn take(&mut self) -> Option<V> {
        self.held.as_mut()?.slot.take()
    }

    /// Leaves this to the next turn, if somebody waits for it.
    pub(super) fn leave(&mut self, value: V) {
        if let Some(held) = &mut self.held {
            held.slot = Some(value);
        }
    }
}

impl<V> Drop for Turn<V> {
    fn drop(&mut self) {
        while let Some(held) = self.held.take() {
            let Some(next) = held.queues.next(&held.key) else { return };
            // Who has gone in between gives it back.
            if let Err(mut returned) = next.send(Turn { held: Some(held) }) {
                self.held = returned.held.take();
            }
        }
    }
}

impl<V> fmt::Debug for Turn<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Turn(..)")
    }
}
