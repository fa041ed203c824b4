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
    #[cfg(test)]
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

#[cfg(test)]
mod tests {
    use std::{
        pin::{Pin, pin},
        sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn key(number: u8) -> QueueKey {
        [number; 32]
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn entered<V>(future: Pin<&mut impl Future<Output = Turn<V>>>) -> Turn<V> {
        match poll(future) {
            Poll::Ready(turn) => turn,
            Poll::Pending => panic!("it is another's turn"),
        }
    }

    #[test]
    fn who_comes_first_is_first_and_other_keys_do_not_wait() {
        let queues = Queues::<()>::new();
        let first = entered(pin!(queues.enter(key(1))));
        let (mut second, mut third) = (pin!(queues.enter(key(1))), pin!(queues.enter(key(1))));
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(third.as_mut()).is_pending());
        drop(entered(pin!(queues.enter(key(2)))));
        assert!(queues.try_enter(key(1)).is_none());
        drop(first);
        assert!(queues.try_enter(key(1)).is_none(), "it is the second's");
        assert!(poll(third.as_mut()).is_pending());
        drop(entered(second));
        drop(entered(third));
        assert_eq!(queues.len(), 0);
        assert!(queues.try_enter(key(1)).is_some());
    }

    #[test]
    fn what_a_turn_leaves_goes_to_the_next_and_ends_with_the_line() {
        let queues = Queues::new();
        let mut first = entered(pin!(queues.enter(key(1))));
        assert_eq!(first.last(), None);
        let (mut second, mut third) = (pin!(queues.enter(key(1))), pin!(queues.enter(key(1))));
        assert!(poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
        first.leave("one");
        drop(first);
        let second = entered(second);
        assert_eq!(second.last(), Some(&"one"));
        drop(second);
        let mut third = entered(third);
        assert_eq!((third.take(), third.last()), (Some("one"), None));
        third.leave("three");
        drop(third);
        assert_eq!(entered(pin!(queues.enter(key(1)))).last(), None);
    }

    #[test]
    fn who_leaves_the_line_at_any_point_leaves_nothing_behind() {
        for called in [false, true] {
            let queues = Queues::new();
            let mut first = queues.try_enter(key(1)).unwrap();
            let mut gone = Box::pin(queues.enter(key(1)));
            drop(Box::pin(queues.enter(key(1))));
            let mut next = pin!(queues.enter(key(1)));
            assert!(poll(gone.as_mut()).is_pending() && poll(next.as_mut()).is_pending());
            first.leave(7);
            let mut first = Some(first);
            if called {
                first = None;
            }
            drop(gone);
            let waiting = queues.shard(&key(1))[&key(1)].waiting.len();
            assert_eq!(waiting, usize::from(!called), "called: {called}");
            drop(first);
            let turn = entered(next);
            assert_eq!(turn.last(), Some(&7), "called: {called}");
            drop(turn);
            assert_eq!(queues.len(), 0);
        }
    }

    #[test]
    fn the_last_to_leave_ends_the_line() {
        let queues = Queues::<()>::new();
        let first = queues.try_enter(key(1)).unwrap();
        let mut gone = Box::pin(queues.enter(key(1)));
        assert!(poll(gone.as_mut()).is_pending());
        drop(first);
        assert_eq!(queues.len(), 1, "the turn is on its way");
        drop(gone);
        assert_eq!(queues.len(), 0);
    }

    #[test]
    fn a_flood_of_keys_gives_its_memory_back() {
        let queues = Queues::<()>::new();
        let numbered = |number: u16| {
            let mut key = key(0);
            key[1..3].copy_from_slice(&number.to_be_bytes());
            key
        };
        let turns: Vec<_> = (0..10_000).map(|n| queues.try_enter(numbered(n)).unwrap()).collect();
        assert_eq!(queues.len(), 10_000);
        drop(turns);
        assert_eq!(queues.len(), 0);
        assert!(queues.shard(&key(0)).capacity() <= 2 * SPARE);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn ten_thousand_tasks_are_one_at_a_time_and_in_order() {
        const KEYS: usize = 4;
        let queues = Queues::<usize>::new();
        let inside: Arc<[AtomicBool; KEYS]> = Arc::default();
        let firsts: Vec<_> = (0..KEYS).map(|k| queues.try_enter(key(k as u8)).unwrap()).collect();
        let mut tasks = Vec::new();
        for number in 0..10_000 {
            let at = key((number % KEYS) as u8);
            // Lined up here, so that the order is known.
            let mut place = queues.line_up(at).expect_err("the first turn is held");
            let inside = Arc::clone(&inside);
            tasks.push(tokio::spawn(async move {
                let mut turn = (&mut place.call).await.unwrap();
                let flag = &inside[number % KEYS];
                assert!(!flag.swap(true, SeqCst), "two at a time");
                tokio::task::yield_now().await;
                assert_eq!(turn.last().copied(), number.checked_sub(KEYS), "out of order");
                turn.leave(number);
                assert!(flag.swap(false, SeqCst));
            }));
        }
        drop(firsts);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(queues.len(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_storm_of_cancellations_neither_blocks_nor_leaks() {
        let queues = Queues::<usize>::new();
        let inside: Arc<[AtomicBool; 3]> = Arc::default();
        let entered = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..10_000_usize)
            .map(|number| {
                let (queues, inside, entered) =
                    (queues.clone(), Arc::clone(&inside), Arc::clone(&entered));
                tokio::spawn(async move {
                    let mut turn = queues.enter(key((number % 3) as u8)).await;
                    let flag = &inside[number % 3];
                    assert!(!flag.swap(true, SeqCst), "two at a time");
                    turn.leave(number);
                    entered.fetch_add(1, SeqCst);
                    if number % 7 == 0 {
                        std::thread::yield_now();
                    }
                    assert!(flag.swap(false, SeqCst));
                    drop(turn);
                })
            })
            .collect();
        for (number, task) in tasks.iter().enumerate() {
            if number % 3 != 1 || number % 2 == 0 {
                task.abort();
            }
        }
        for task in tasks {
            if let Err(error) = task.await {
                assert!(error.is_cancelled(), "{error}");
            }
        }
        assert!(entered.load(SeqCst) >= 1_666);
        assert_eq!(queues.len(), 0);
    }
}
