//! One fill per key and fence in this process.
//!
//! Who saw the same fence may have the answer, for nothing was invalidated since. Without a fence,
//! while the storage gives no answer, another node may have purged just now: then only a fill that
//! began after the lookup will do, and who comes while one is under way waits for the next.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// For how many groups of keys it is remembered when a fill has landed last.
const GROUPS: usize = 1_024;

/// The fills that are under way.
pub(super) struct Flights<K, T> {
    board: Mutex<Board<K, T>>,
    /// Counts departures and landings, to tell their order.
    clock: AtomicU64,
    hasher: RandomState,
}

struct Board<K, T> {
    under_way: HashMap<K, Arc<Flight<T>>>,
    /// Of each group of keys, when a fill has landed last with something for all.
    last: Box<[Moment]>,
}

struct Flight<T> {
    boarded: Instant,
    news: watch::Sender<Option<Landing<T>>>,
    /// When the fill began; [`NOT_YET`] before.
    departed: AtomicU64,
}

const NOT_YET: u64 = u64::MAX;

/// A point in the sequence of departures and landings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

/// How a fill ended.
#[derive(Debug, Clone)]
pub(super) enum Landing<T> {
    /// With something that all who waited may have.
    Shared(T),
    /// With something for the leader alone; everybody else has to ask for himself.
    Alone,
    /// Without an answer. One of those who waited tries again.
    Failed,
    /// It began before this lookup, so the answer may be too old for it.
    TooEarly,
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
        let board = Board { under_way: HashMap::new(), last: vec![Moment(0); GROUPS].into() };
        Self { board: Mutex::new(board), clock: AtomicU64::new(0), hasher: RandomState::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Board<K, T>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be asked for before a lookup. What has happened has happened before or at this moment.
    pub(super) fn now(&self) -> Moment {
        Moment(self.clock.load(SeqCst))
    }

    /// Something happens, after every moment that was given.
    fn tick(&self) -> Moment {
        Moment(self.clock.fetch_add(1, SeqCst) + 1)
    }

    fn group(&self, key: &K) -> usize {
        self.hasher.hash_one(key) as usize % GROUPS
    }

    /// Leads the fill of this key, or follows who does. The lookup was begun at `looked`, and saw the
    /// fence that is part of the key, if it is `fenced`.
    ///
    /// A fill that takes longer than `patience` is nobody's to wait for: the next one begins.
    pub(super) fn board(
        self: &Arc<Self>,
        key: K,
        looked: Moment,
        fenced: bool,
        patience: Duration,
    ) -> Boarding<K, T>
    where
        K: Clone,
    {
        let group = self.group(&key);
        let mut board = self.lock();
        let under_way = board.under_way.get(&key);
        if let Some(flight) = under_way.filter(|flight| flight.boarded.elapsed() <= patience) {
            let (flight, news) = (Arc::clone(flight), flight.news.subscribe());
            let after = (!fenced).then_some(looked);
            return Boarding::Follow(Follower { flight, news, after });
        }
        // Without a fence nothing was stored that could be found.
        if fenced && board.last[group] > looked {
            return Boarding::Landed;
        }
        let flight = Arc::new(Flight {
            boarded: Instant::now(),
            news: watch::Sender::new(None),
            departed: AtomicU64::new(NOT_YET),
        });
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
    /// The fill begins now.
    pub(super) fn depart(&self) {
        self.flight.departed.store(self.flights.tick().0, SeqCst);
    }

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
            // Another may have taken its place.
            let is_own = |flight: &Arc<Flight<T>>| Arc::ptr_eq(flight, &self.flight);
            if board.under_way.get(&self.key).is_some_and(is_own) {
                board.under_way.remove(&self.key);
            }
            if let Some(Landing::Shared(_)) = self.landing {
                board.last[self.flights.group(&self.key)] = self.flights.tick();
            }
        }
        self.flight.news.send_replace(self.landing.take());
    }
}

/// Who waits for another's fill.
pub(super) struct Follower<T> {
    flight: Arc<Flight<T>>,
    news: watch::Receiver<Option<Landing<T>>>,
    after: Option<Moment>,
}

impl<T: Clone> Follower<T> {
    /// How the fill ends.
    pub(super) async fn landing(mut self) -> Landing<T> {
        let landing = match self.news.wait_for(Option::is_some).await {
            Ok(landing) => landing.clone().unwrap_or(Landing::Failed),
            Err(_) => Landing::Failed,
        };
        let departed = Moment(self.flight.departed.load(SeqCst));
        match self.after {
            Some(looked) if departed <= looked => Landing::TooEarly,
            _ => landing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = Arc<Flights<&'static str, u32>>;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn board(flights: &Numbers, key: &'static str) -> Boarding<&'static str, u32> {
        flights.board(key, flights.now(), true, PATIENCE)
    }

    fn lead(flights: &Numbers, key: &'static str) -> Leader<&'static str, u32> {
        match board(flights, key) {
            Boarding::Lead(leader) => leader,
            _ => panic!("somebody leads already"),
        }
    }

    fn follow(boarding: Boarding<&'static str, u32>) -> Follower<u32> {
        match boarding {
            Boarding::Follow(follower) => follower,
            _ => panic!("nobody leads"),
        }
    }

    #[tokio::test]
    async fn followers_get_what_the_leader_landed() {
        let flights = Numbers::new(Flights::new());
        let leader = lead(&flights, "a");
        let (one, two) = (follow(board(&flights, "a")), follow(board(&flights, "a")));
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
        let follower = follow(board(&flights, "a"));
        drop(leader);
        assert!(matches!(follower.landing().await, Landing::Failed));
        let _successor = lead(&flights, "a");
        follow(board(&flights, "a"));
    }

    #[tokio::test]
    async fn who_looked_before_a_landing_looks_again_instead_of_filling() {
        let flights = Numbers::new(Flights::new());
        let before = flights.now();
        lead(&flights, "a").land(Landing::Alone);
        assert!(
            matches!(flights.board("a", before, true, PATIENCE), Boarding::Lead(_)),
            "nothing to find"
        );
        lead(&flights, "a").land(Landing::Shared(7));
        assert!(matches!(flights.board("a", before, true, PATIENCE), Boarding::Landed));
        assert!(
            matches!(flights.board("a", before, false, PATIENCE), Boarding::Lead(_)),
            "nothing to find"
        );
        assert!(matches!(board(&flights, "a"), Boarding::Lead(_)), "it was invalidated since");
    }

    #[tokio::test]
    async fn without_a_fence_who_looked_after_the_departure_waits_for_the_next_flight() {
        let flights = Numbers::new(Flights::new());
        let early = flights.now();
        let leader = lead(&flights, "a");
        leader.depart();
        let late = flights.now();
        let landings = [early, late]
            .map(|looked| follow(flights.board("a", looked, false, PATIENCE)).landing());
        leader.land(Landing::Shared(7));
        let [early, too_late] = landings;
        assert!(matches!(early.await, Landing::Shared(7)));
        assert!(matches!(too_late.await, Landing::TooEarly));
        let next = lead(&flights, "a");
        next.depart();
        let follower = follow(flights.board("a", late, false, PATIENCE));
        next.land(Landing::Shared(8));
        assert!(matches!(follower.landing().await, Landing::Shared(8)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fill_that_hangs_gives_its_place_to_the_next() {
        let flights = Numbers::new(Flights::new());
        let hung = lead(&flights, "a");
        let waiting = follow(board(&flights, "a"));
        tokio::time::advance(PATIENCE + Duration::from_millis(1)).await;
        let next = lead(&flights, "a");
        let follower = follow(board(&flights, "a"));
        hung.land(Landing::Shared(7));
        assert!(matches!(waiting.landing().await, Landing::Shared(7)));
        assert_eq!(flights.len(), 1, "the next is still under way");
        next.land(Landing::Shared(8));
        assert!(matches!(follower.landing().await, Landing::Shared(8)));
    }

    #[tokio::test]
    async fn a_panic_of_the_leader_is_a_failure() {
        let flights = Numbers::new(Flights::new());
        let leader = lead(&flights, "a");
        let follower = follow(board(&flights, "a"));
        let task = tokio::spawn(async move {
            let _leader = leader;
            panic!("on purpose");
        });
        assert!(task.await.is_err());
        assert!(matches!(follower.landing().await, Landing::Failed));
        assert_eq!(flights.len(), 0);
    }
}
