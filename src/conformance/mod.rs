//! The [storage contract](crate::storage) as a test suite that any backend can run.
//!
//! Each clause of the contract is a public async function, named as the sentence that it checks,
//! which takes a [`Harness`] and panics if the backend breaks its word. [`conformance_tests!`]
//! turns all of them into tests; [`run_all`] runs them in one go and returns a [`Report`];
//! [`agrees_with_the_model`] compares long random histories with a small reference model, and
//! shrinks what it finds.
//!
//! # Stability
//!
//! This module is exempt from semantic versioning. Any release may add a clause that your backend
//! does not pass yet: that is its purpose.
//!
//! # Running it on your backend
//!
//! Depend on `tower-keep` with the feature `conformance` under `[dev-dependencies]`, next to
//! `tokio` with `macros` and `rt` (and `test-util` for a paused clock). Then write a [`Harness`]:
//! how to make a fresh storage, and how to let time pass.
//!
//! ```
//! use std::time::Duration;
//! use tower_keep::{
//!     MemoryStorage,
//!     conformance::{self, Harness},
//!     storage::Name,
//! };
//!
//! struct MemoryHarness;
//!
//! impl Harness for MemoryHarness {
//!     type Storage = MemoryStorage;
//!
//!     async fn storage(&self) -> MemoryStorage {
//!         MemoryStorage::new()
//!     }
//!
//!     async fn advance(&self, by: Duration) {
//!         tokio::time::advance(by).await;
//!     }
//!
//!     fn tick(&self) -> Duration {
//!         Duration::from_secs(1)
//!     }
//!
//!     fn tolerance(&self) -> Duration {
//!         Duration::ZERO
//!     }
//!
//!     async fn lose_tags(&self, _: &MemoryStorage, _: &Name) -> bool {
//!         false
//!     }
//! }
//!
//! // One test for each clause, and the model.
//! tower_keep::conformance_tests!(MemoryHarness, start_paused = true);
//!
//! #[tokio::test(start_paused = true)]
//! async fn agrees_with_the_model() {
//!     conformance::agrees_with_the_model(&MemoryHarness, 256).await;
//! }
//!
//! // Or all clauses at once.
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let report = conformance::run_all(&MemoryHarness).await;
//! assert!(report.is_success(), "{report}");
//! # }
//! ```
//!
//! A whole backend to begin from, of some 300 lines with its sabotages, is `tests/naive/mod.rs` in
//! the repository.
//!
//! A server is run on real time: `advance` sleeps, the tick is as short as the machine allows (100
//! ms serve well), the tolerance about a tick as well, and `storage` makes a connection with a prefix
//! of its own. The clauses then take about a second each and run side by side.
//!
//! # What a pass does not show
//!
//! The suite sees a backend through its front door. It cannot show what happens when the server
//! fails over, loses acknowledged writes or has its clock set back; and on a runtime with one
//! thread it races only at await points, so run a backend that is shared by threads on
//! `flavor = "multi_thread"` too.
//!
//! [`conformance_tests!`]: crate::conformance_tests

mod cancel;
mod harness;
mod known;
mod kv;
mod life;
mod list;
mod loss;
mod model;
mod quota;
mod refund;
mod report;
mod save;
mod spend;
mod stage;
mod tags;
mod waits;

pub use self::{
    cancel::*,
    harness::Harness,
    known::*,
    kv::*,
    life::*,
    list::{CLAUSES, run_all},
    loss::*,
    model::agrees_with_the_model,
    quota::*,
    refund::*,
    report::{Outcome, Report},
    save::*,
    spend::*,
    tags::*,
    waits::*,
};
