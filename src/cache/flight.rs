//! One fill per key and fence in this process.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// The fills that are under way.
pub(super) struct Flights<K, T> {
    under_way: Mutex<HashMap<K, Arc<Flight<T>>>>,
}

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
}

impl<K: Hash + Eq + Clone, T: Clone> Flights<K, T> {
    pub(super) fn new() -> Self {
        Self { under_way: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Flight<T>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leads the fill of this key, or follows who does.
    pub(super) fn board(self: &Arc<Self>, key: K) -> Boarding<K, T> {
        let mut under_way = self.lock();
        if let Some(flight) = under_way.get(&key) {
            return Boarding::Follow(Follower(flight.subscribe()));
        }
        let flight = Arc::new(watch::Sender::new(None));
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
    /// Tells all who wait.
    pub(super) fn land(mut self, landing: Landing<T>) {
        self.landing = Some(landing);
    }
}

impl<K: Hash + Eq, T> Drop for Leader<K, T> {
    fn drop(&mut self) {
        // First the place, then the news: who is woken by a failure leads the next flight.
        self.flights.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
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
        match flights.board(key) {
            Boarding::Lead(leader) => leader,
            Boarding::Follow(_) => panic!("somebody leads already"),
        }
    }

    fn follow(flights: &Numbers, key: &'static str) -> Follower<u32> {
        match flights.board(key) {
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
