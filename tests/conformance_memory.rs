//! The conformance suite on the memory backend: on a paused clock, and on threads that race.
#![cfg(feature = "conformance")]

use std::time::Duration;

use tower_keep::{
    MemoryStorage, Storage,
    conformance::{self, Harness},
    storage::{AnyStorage, Name},
};

struct Paused;

impl Harness for Paused {
    type Storage = MemoryStorage;

    async fn storage(&self) -> MemoryStorage {
        MemoryStorage::new()
    }

    async fn advance(&self, by: Duration) {
        tokio::time::advance(by).await;
    }

    fn tick(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn tolerance(&self) -> Duration {
        Duration::ZERO
    }

    async fn lose_tags(&self, _: &MemoryStorage, _: &Name) -> bool {
        false
    }
}

struct RealTime;

impl Harness for RealTime {
    type Storage = MemoryStorage;

    async fn storage(&self) -> MemoryStorage {
        MemoryStorage::new()
    }

    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn tolerance(&self) -> Duration {
        self.tick()
    }

    async fn lose_tags(&self, _: &MemoryStorage, _: &Name) -> bool {
        false
    }
}

/// What every layer holds: the same storage behind a handle of hidden type.
struct Erased;

impl Harness for Erased {
    type Storage = AnyStorage;

    async fn storage(&self) -> AnyStorage {
        MemoryStorage::new().erase()
    }

    async fn advance(&self, by: Duration) {
        tokio::time::advance(by).await;
    }

    fn tick(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn tolerance(&self) -> Duration {
        Duration::ZERO
    }

    async fn lose_tags(&self, _: &AnyStorage, _: &Name) -> bool {
        false
    }
}

mod on_a_paused_clock {
    tower_keep::conformance_tests!(super::Paused, start_paused = true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn races_hold_between_threads() {
    for _ in 0..20 {
        conformance::of_64_racing_absent_puts_one_wins(&RealTime).await;
        conformance::of_64_racing_saves_one_wins(&RealTime).await;
        conformance::of_64_racing_deletes_one_wins(&RealTime).await;
        conformance::racing_takes_admit_exactly_the_limit(&RealTime).await;
        conformance::racing_calls_charge_both_quotas_or_none(&RealTime).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_holds_on_a_real_clock() {
    if std::env::var_os("TOWER_KEEP_LONG").is_none() {
        // It sleeps for half a minute; the same clauses ran on a paused clock.
        println!("skipped: ./test --long runs it");
        return;
    }
    let report = conformance::run_all(&RealTime).await;
    assert!(report.is_success(), "{report}");
    conformance::agrees_with_the_model(&RealTime, 2).await;
}

#[tokio::test(start_paused = true)]
async fn the_suite_holds_through_an_erased_handle() {
    let report = conformance::run_all(&Erased).await;
    assert!(report.is_success(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn the_model_agrees() {
    conformance::agrees_with_the_model(&Paused, 256).await;
}
