//! Prints what idempotency keys add to a request: `cargo run --release --bin report_idempotency [rounds] [name]`.
//!
//! All are measured in turn, round by round; a figure is the median of the differences to the layer
//! that does nothing, asked the same in the same round, in nanoseconds of thread time. Tasks run on
//! this thread.

use tokio::runtime::{self, Runtime};
use tower_keep_benches::{
    idempotency::{BARE, Contestant, NOOP, contestants},
    measure::{Counting, allocations, median, thread_nanos},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REQUESTS: u32 = 1_000;

/// Nanoseconds per request. In a task, as a connection has one: what wakes the main future of a
/// runtime costs system calls.
fn burst(runtime: &Runtime, contestant: &Contestant) -> f64 {
    let mut contestant = contestant.clone();
    let burst = async move {
        let start = thread_nanos();
        for _ in 0..REQUESTS {
            assert!(contestant.send().await.is_success(), "{}", contestant.question.name());
        }
        (thread_nanos() - start) as f64 / f64::from(REQUESTS)
    };
    runtime.block_on(runtime.spawn(burst)).expect("a burst")
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(60, |text| text.parse().expect("rounds"));
    let only = std::env::args().nth(2).unwrap_or_default();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut all = contestants();
    all.retain(|contestant| contestant.question.name().contains(&only));
    let mut allocated = vec![0.0; all.len()];
    for (i, contestant) in all.iter().enumerate() {
        burst(&runtime, contestant);
        let before = allocations();
        burst(&runtime, contestant);
        allocated[i] = (allocations() - before) as f64 / f64::from(REQUESTS);
    }

    let mut times = vec![Vec::new(); all.len()];
    for _ in 0..rounds {
        for (i, contestant) in all.iter().enumerate() {
            times[i].push(burst(&runtime, contestant));
        }
    }

    println!("| asked | of | ns | over bare | over no-op | allocations over bare |");
    println!("|---|---|---|---|---|---|");
    for (i, contestant) in all.iter().enumerate() {
        let same = |keeper| {
            all.iter().position(|c| c.question == contestant.question && c.keeper == keeper)
        };
        let over = |i: usize, other: usize| {
            median(times[i].iter().zip(&times[other]).map(|(time, base)| time - base).collect())
        };
        let bare = same(BARE).expect("each question is asked of the bare route");
        let noop = same(NOOP).expect("each question is asked of a layer that does nothing");
        let ns = median(times[i].clone());
        let name = format!("| {} | {} | {ns:.0}", contestant.question.name(), contestant.keeper);
        if i == bare {
            println!("{name} | | | ({:.1}) |", allocated[i]);
            continue;
        }
        let over_noop = if i == noop { String::new() } else { format!("{:.0}", over(i, noop)) };
        println!(
            "{name} | {:.0} | {over_noop} | {:.1} |",
            over(i, bare),
            allocated[i] - allocated[bare],
        );
    }
}
