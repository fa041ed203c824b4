//! A small model of the contract, and random histories that a backend must share with it.

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, TestRunner},
};

mod history;
mod ops;
mod reference;

use self::{
    history::History,
    ops::{NAMESPACES, Op, ops},
};
use super::{Harness, report::caught};
use crate::storage::Name;

/// How many shorter histories are tried once one has failed.
const MOST_SHRINKS: u32 = 2_000;

/// Runs that many random histories of up to 60 operations on the backend and on a reference model,
/// and compares every answer: outcomes and values exactly, versions by identity and order,
/// durations within the [tolerance](Harness::tolerance).
///
/// Lives and periods end between ticks, so a real clock will do; each case then sleeps for some 50
/// ticks. With a tolerance above zero, quotas whose units come back at any time are left out.
///
/// `PROPTEST_RNG_SEED` repeats a run.
///
/// # Panics
///
/// If the answers differ, with the shortest history that shows it.
pub async fn agrees_with_the_model<H: Harness>(harness: &H, cases: u32) {
    let mut runner = TestRunner::new(Config::default());
    let ops = ops(harness.tolerance().is_zero());
    for case in 0..cases {
        let mut tree = ops.new_tree(&mut runner).expect("every draw is a history");
        let Err(mut difference) = run(harness, tree.current()).await else { continue };
        let mut shortest = tree.current();
        // The protocol of `ValueTree`: simplify after a failure, complicate after a pass.
        let mut more = tree.simplify();
        for _ in 0..MOST_SHRINKS {
            if !more {
                break;
            }
            more = match run(harness, tree.current()).await {
                Ok(()) => tree.complicate(),
                Err(message) => {
                    (shortest, difference) = (tree.current(), message);
                    tree.simplify()
                }
            };
        }
        panic!("case {case}: {difference}\nafter this history: {shortest:#?}");
    }
}

/// What differs, if anything does.
async fn run<H: Harness>(harness: &H, ops: Vec<Op>) -> Result<(), String> {
    let mut history = History::new(harness).await;
    let mut compare = async || {
        for namespace in NAMESPACES {
            history.keep_tags(&Name::new(namespace)).await?;
        }
        for (n, op) in ops.iter().enumerate() {
            history.apply(op).await.map_err(|message| format!("operation {n}: {message}"))?;
        }
        Ok(())
    };
    caught(compare()).await?
}
