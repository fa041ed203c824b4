//! The conformance suite on a third party's backend.
#![cfg(feature = "conformance")]

#[allow(dead_code, reason = "here nothing is sabotaged")]
mod naive;

use naive::NaiveHarness;
use tower_keep::conformance;

tower_keep::conformance_tests!(NaiveHarness(None), start_paused = true);

#[tokio::test(start_paused = true)]
async fn the_model_agrees() {
    conformance::agrees_with_the_model(&NaiveHarness(None), 256).await;
}
