//! One fill per key and fence in this process.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use tokio::sync::watch;

/// For how many groups of keys it is remembered when a fill has landed last.
const GROUPS: usize = 1_024;

/// The fills that are under way.
pub(super) struct Flights<K, T> {
    board: Mutex<Board<K, T>>,
    /// How many fills have landed with something for all.
    landed: AtomicU64,
    hasher: RandomState,
}

struct Board<K, T> {
    under_way: HashMap<K, Arc<Flight<T>>>,
    /// Of each group of keys, the number of the last landing.
    last: Box<[u64]>,
}

/// A point in the sequence of landings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

type Flight<T> = watch::Sender<Option<Landing<T>>>;

/// How a fill ended.
#[derive(Debug, Clone)]
pub(super) enum Landing<T> {
    /// With something that all who waited may have.
    Shared(T),
    /// With something for the leader alone; everybody else has to ask for himself.
    Alone,
    /// Without an answer. One of those who waited tries again.
    Failed,
}

/// What became of the wish for an answer.
pub(super) enum Boarding<K: Hash + Eq, T> {
    /// Nobody is at it: fill, and tell.
    Lead(Leader<K, T>),
    /// Somebody is.
    Follow(Follower<T>),
    /// Somebody was, and has brought it since the lookup was begun: look again.
    Landed,
}

impl<K: Hash + Eq, T> Flights<K, T> {
    pub(super) fn new() -> Self {
        let board = Board { under_way: HashMap::new(), last: vec![0; GROUPS].into() };
        Self { board: Mutex::new(board), landed: AtomicU64::new(0), hasher: RandomState::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Board<K, T>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be asked for before a lookup.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.landed.load(SeqCst))
    }

    fn group(&self, key: &K) -> usize {
        self.hasher.hash_one(key) as usize % GROUPS
    }

    /// Leads the fill of this key, or follows who does. A fill that has landed between the lookup,
    /// which was begun at this moment, and now would be made twice.
    pub(super) fn board(self: &Arc<Self>, key: K, looked: Moment) -> Boarding<K, T>
    where
        K: Clone,
    {
        let group = self.group(&key);
        let mut board = self.lock();
        if let Some(flight) = board.under_way.get(&key) {
            return Boarding::Follow(Follower(flight.subscribe()));
        }
        if board.last[group] > looked.0 {
            return Boarding::Landed;
        }
        let flight = Arc::new(watch::Sender::new(None));
        board.under_way.insert(key.clone(), Arc::clone(&flight));
        Boarding::Lead(Leader {
            flights: Arc::clone(self),
            key,
            flight,
            landing: Some(Landing::Failed),
        })
    }

    /// How many fills are under way.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().under_way.len()
    }
}

/// Who fills. Dropped without a word, by a panic or with its task, it has failed.
pub(super) struct Leader<K: Hash + Eq, T> {
    flights: Arc<Flights<K, T>>,
    key: K,
    flight: Arc<Flight<T>>,
    landing: Option<Landing<T>>,
}

impl<K: Hash + Eq, T> Leader<K, T> {
    /// Tells all who wait.
    pub(super) fn land(mut self, landing: Landing<T>) {
        self.landing = Some(landing);
    }
}

impl<K: Hash + Eq, T> Drop for Leader<K, T> {
    fn drop(&mut self) {
        // First the place, then the news: who is woken by a failure leads the next flight.
        {
            let mut board = self.flights.lock();
            board.under_way.remove(&self.key);
            if let Some(Landing::Shared(_)) = self.landing {
                let number = self.flights.landed.fetch_add(1, SeqCst) + 1;
                board.last[self.flights.group(&self.key)] = number;
            }
        }
        self.flight.send_replace(self.landing.take());
    }
}

/// Who waits for another's fill.
pub(super) struct Follower<T>(watch::Receiver<Option<Landing<T>>>);

impl<T: Clone> Follower<T> {
    /// How the fill ends.
    pub(super) async fn landing(mut self) -> Landing<T> {
        match self.0.wait_for(Option::is_some).await {
            Ok(landing) => landing.clone().unwrap_or(Landing::Failed),
            Err(_) => Landing::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = Arc<Flights<&'static str, u32>>;

    fn lead(flights: &Numbers, key: &'static str) -> Leader<&'static str, u32> {
        match flights.board(key, flights.moment()) {
            Boarding::Lead(leader) => leader,
            _ => panic!("somebody leads already"),
        }
    }

    fn follow(flights: &Numbers, key: &'static str) -> Follower<u32> {
        match flights.board(key, flights.moment()) {
            Boarding::Follow(follower) => follower,
            _ => panic!("nobody leads"),
        }
    }

    #[tokio::test]
    async fn followers_get_what_the_leader_landed() {
        let flights = Numbers::new(Flights::new());
        let leader = lead(&flights, "a");
        let (one, two) = (follow(&flights, "a"), follow(&flights, "a"));
        let _other = lead(&flights, "b");
        leader.land(Landing::Shared(7));
        assert!(matches!(one.landing().await, Landing::Shared(7)));
        assert!(matches!(two.landing().await, Landing::Shared(7)));
        assert_eq!(flights.len(), 1);
    }

    #[tokio::test]
    async fn a_leader_that_vanishes_makes_room_for_one_successor() {
        let flights = Numbers::new(Flights::new());
        let leader = lead(&flights, "a");
        let follower = follow(&flights, "a");
        drop(leader);
        assert!(matches!(follower.landing().await, Landing::Failed));
        let _successor = lead(&flights, "a");
        follow(&flights, "a");
    }

    #[tokio::test]
    async fn a_panic_of_the_leader_is_a_failure() {
        let flights = Numbers::new(Flights::new());
        let leader = lead(&flights, "a");
        let follower = follow(&flights, "a");
        let task = tokio::spawn(async move {
            let _leader = leader;
            panic!("on purpose");
        });
        assert!(task.await.is_err());
        assert!(matches!(follower.landing().await, Landing::Failed));
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn who_looked_before_a_landing_looks_again() {
        let flights = Numbers::new(Flights::new());
        let before = flights.moment();
        let leader = lead(&flights, "a");
        let during = flights.moment();
        leader.land(Landing::Shared(7));
        for looked in [before, during] {
            assert!(matches!(flights.board("a", looked), Boarding::Landed));
        }
        lead(&flights, "a");
    }

    #[test]
    fn what_is_for_nobody_else_is_not_looked_for_again() {
        let flights = Numbers::new(Flights::new());
        let before = flights.moment();
        for landing in [Landing::Alone, Landing::Failed] {
            lead(&flights, "a").land(landing);
            assert!(matches!(flights.board("a", before), Boarding::Lead(_)));
        }
    }
}
