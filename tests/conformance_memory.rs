//! The conformance suite on the memory backend: on a paused clock, and on threads that race.
#![cfg(feature = "conformance")]

use std::time::Duration;

use tower_keep::{
    MemoryStorage, Storage,
    conformance::{self, Harness},
    storage::{AnyStorage, Name},
};

/// The memory backend, on tokio's clock: paused and advanced, or slept through.
struct Memory {
    sleeps: bool,
}

const PAUSED: Memory = Memory { sleeps: false };
const REAL_TIME: Memory = Memory { sleeps: true };

impl Harness for Memory {
    type Storage = MemoryStorage;

    async fn storage(&self) -> MemoryStorage {
        MemoryStorage::new()
    }

    async fn advance(&self, by: Duration) {
        if self.sleeps {
            tokio::time::sleep(by).await;
        } else {
            tokio::time::advance(by).await;
        }
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn tolerance(&self) -> Duration {
        if self.sleeps { self.tick() } else { Duration::ZERO }
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
        PAUSED.storage().await.erase()
    }

    async fn advance(&self, by: Duration) {
        PAUSED.advance(by).await;
    }

    fn tick(&self) -> Duration {
        PAUSED.tick()
    }

    fn tolerance(&self) -> Duration {
        PAUSED.tolerance()
    }

    async fn lose_tags(&self, _: &AnyStorage, _: &Name) -> bool {
        false
    }
}

mod on_a_paused_clock {
    tower_keep::conformance_tests!(super::PAUSED, start_paused = true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn races_hold_between_threads() {
    for _ in 0..20 {
        conformance::of_64_racing_absent_puts_one_wins(&REAL_TIME).await;
        conformance::of_64_racing_saves_one_wins(&REAL_TIME).await;
        conformance::of_64_racing_deletes_one_wins(&REAL_TIME).await;
        conformance::racing_takes_admit_exactly_the_limit(&REAL_TIME).await;
        conformance::racing_calls_charge_both_quotas_or_none(&REAL_TIME).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_holds_on_a_real_clock() {
    if std::env::var_os("TOWER_KEEP_LONG").is_none() {
        // It sleeps for half a minute; the same clauses ran on a paused clock.
        println!("skipped: ./test --long runs it");
        return;
    }
    let report = conformance::run_all(&REAL_TIME).await;
    assert!(report.is_success(), "{report}");
    conformance::agrees_with_the_model(&REAL_TIME, 2).await;
}

#[tokio::test(start_paused = true)]
async fn the_suite_holds_through_an_erased_handle() {
    let report = conformance::run_all(&Erased).await;
    assert!(report.is_success(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn the_model_agrees() {
    conformance::agrees_with_the_model(&PAUSED, 256).await;
}
