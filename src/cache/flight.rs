//! One fill per key and fence in this process.
//!
//! Who saw the same fence may have the answer, for nothing was invalidated since. Without a fence,
//! while the storage gives no answer, another node may have purged just now: then only a fill that
//! began after the request was made will do, and who comes while one is under way waits for the next.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use tokio::sync::watch;

/// The fills that are under way.
pub(super) struct Flights<K, T> {
    under_way: Mutex<HashMap<K, Arc<Flight<T>>>>,
    /// Counts requests and departures, to tell their order.
    clock: AtomicU64,
}

struct Flight<T> {
    news: watch::Sender<Option<Landing<T>>>,
    /// When the fill began; [`NOT_YET`] before.
    departed: AtomicU64,
}

const NOT_YET: u64 = u64::MAX;

/// When a request was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked(u64);

/// How a fill ended.
#[derive(Debug, Clone)]
pub(super) enum Landing<T> {
    /// With something that all who waited may have.
    Shared(T),
    /// With something for the leader alone; everybody else has to ask for himself.
    Alone,
    /// Without an answer. One of those who waited tries again.
    Failed,
    /// It began before this request was made, so the answer may be too old for it.
    TooEarly,
}

/// What became of the wish for an answer.
pub(super) enum Boarding<K: Hash + Eq, T> {
    /// Nobody is at it: fill, and tell.
    Lead(Leader<K, T>),
    /// Somebody is.
    Follow(Follower<T>),
}

impl<K: Hash + Eq + Clone, T: Clone> Flights<K, T> {
    pub(super) fn new() -> Self {
        Self { under_way: Mutex::default(), clock: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Flight<T>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is made now.
    pub(super) fn ask(&self) -> Asked {
        Asked(self.clock.fetch_add(1, SeqCst))
    }

    /// Leads the fill of this key, or follows who does. `after`: only a fill will do that begins
    /// after this.
    pub(super) fn board(self: &Arc<Self>, key: K, after: Option<Asked>) -> Boarding<K, T> {
        let mut under_way = self.lock();
        if let Some(flight) = under_way.get(&key) {
            let news = flight.news.subscribe();
            return Boarding::Follow(Follower { flight: Arc::clone(flight), news, after });
        }
        let flight =
            Arc::new(Flight { news: watch::Sender::new(None), departed: AtomicU64::new(NOT_YET) });
        under_way.insert(key.clone(), Arc::clone(&flight));
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
        self.lock().len()
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
        self.flight.departed.store(self.flights.clock.fetch_add(1, SeqCst), SeqCst);
    }

    /// Tells all who wait.
    pub(super) fn land(mut self, landing: Landing<T>) {
        self.landing = Some(landing);
    }
}

impl<K: Hash + Eq, T> Drop for Leader<K, T> {
    fn drop(&mut self) {
        // First the place, then the news: who is woken by a failure leads the next flight.
        self.flights.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.flight.news.send_replace(self.landing.take());
    }
}

/// Who waits for another's fill.
pub(super) struct Follower<T> {
    flight: Arc<Flight<T>>,
    news: watch::Receiver<Option<Landing<T>>>,
    after: Option<Asked>,
}

impl<T: Clone> Follower<T> {
    /// How the fill ends.
    pub(super) async fn landing(mut self) -> Landing<T> {
        let landing = match self.news.wait_for(Option::is_some).await {
            Ok(landing) => landing.clone().unwrap_or(Landing::Failed),
            Err(_) => Landing::Failed,
        };
        let departed = self.flight.departed.load(SeqCst);
        match self.after {
            Some(Asked(asked)) if departed < asked => Landing::TooEarly,
            _ => landing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = Arc<Flights<&'static str, u32>>;

    fn lead(flights: &Numbers, key: &'static str) -> Leader<&'static str, u32> {
        match flights.board(key, None) {
            Boarding::Lead(leader) => leader,
            Boarding::Follow(_) => panic!("somebody leads already"),
        }
    }

    fn follow(flights: &Numbers, key: &'static str) -> Follower<u32> {
        match flights.board(key, None) {
            Boarding::Lead(_) => panic!("nobody leads"),
            Boarding::Follow(follower) => follower,
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
    async fn who_asks_after_the_departure_waits_for_the_next_flight() {
        let flights = Numbers::new(Flights::new());
        let early = flights.ask();
        let leader = lead(&flights, "a");
        let waiting = flights.ask();
        leader.depart();
        let late = flights.ask();
        let landings = [early, waiting, late].map(|asked| {
            let Boarding::Follow(follower) = flights.board("a", Some(asked)) else {
                panic!("nobody leads")
            };
            follower.landing()
        });
        leader.land(Landing::Shared(7));
        let [early, waiting, too_late] = landings;
        assert!(matches!(early.await, Landing::Shared(7)));
        assert!(matches!(waiting.await, Landing::Shared(7)));
        assert!(matches!(too_late.await, Landing::TooEarly));
        let next = lead(&flights, "a");
        next.depart();
        let Boarding::Follow(follower) = flights.board("a", Some(late)) else {
            panic!("nobody leads")
        };
        next.land(Landing::Shared(8));
        assert!(matches!(follower.landing().await, Landing::Shared(8)));
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
}
