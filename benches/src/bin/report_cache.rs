//! Prints what each cache adds to a request: `cargo run --release --bin report_cache [rounds] [name]`.
//!
//! All are measured in turn, round by round; a figure is the median of the differences to the bare
//! route, asked the same in the same round, in nanoseconds of thread time. Tasks run on this thread.

use tokio::runtime;
use tower_keep_benches::{
    cache::{BARE, Contestant, MOKA, NOOP, contestants},
    measure::{Counting, allocations, median, thread_nanos},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REQUESTS: u32 = 2_000;

/// Nanoseconds per request.
async fn burst(contestant: &mut Contestant, turn: &mut u32, requests: u32) -> f64 {
    let start = thread_nanos();
    for _ in 0..requests {
        *turn = turn.wrapping_add(1);
        assert_eq!(contestant.send(*turn).await, contestant.status, "{}", contestant.name());
    }
    (thread_nanos() - start) as f64 / f64::from(requests)
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(60, |text| text.parse().expect("rounds"));
    let only = std::env::args().nth(2).unwrap_or_default();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut all = contestants();
    all.retain(|contestant| contestant.question.name.contains(&only));
    let mut turns = vec![0; all.len()];
    let mut allocated = vec![0.0; all.len()];
    for (i, contestant) in all.iter_mut().enumerate() {
        // The first answer comes from the route.
        runtime.block_on(contestant.send(0));
        runtime.block_on(burst(contestant, &mut turns[i], 1_000));
        let before = allocations();
        runtime.block_on(burst(contestant, &mut turns[i], 1_000));
        allocated[i] = (allocations() - before) as f64 / 1_000.0;
    }

    let mut times = vec![Vec::new(); all.len()];
    for _ in 0..rounds {
        for (i, contestant) in all.iter_mut().enumerate() {
            times[i].push(runtime.block_on(burst(contestant, &mut turns[i], REQUESTS)));
        }
    }

    println!(
        "| asked | of | ns | over bare | over no-op | to moka by hand | allocations over bare |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (i, contestant) in all.iter().enumerate() {
        let same = |cache| {
            let question = contestant.question.name;
            all.iter().position(|c| c.question.name == question && c.cache == cache)
        };
        let over = |i: usize, other: usize| {
            median(times[i].iter().zip(&times[other]).map(|(time, base)| time - base).collect())
        };
        let bare = same(BARE).expect("each question is asked of the bare route");
        let noop = same(NOOP).expect("each question is asked of a layer that does nothing");
        let ns = median(times[i].clone());
        let name = format!("| {} | {} | {ns:.0}", contestant.question.name, contestant.cache);
        if i == bare {
            println!("{name} | | | | ({:.1}) |", allocated[i]);
            continue;
        }
        let to_moka = match same(MOKA) {
            Some(moka) if i != noop => format!("{:.2}", over(i, bare) / over(moka, bare)),
            _ => String::new(),
        };
        let over_noop = if i == noop { String::new() } else { format!("{:.0}", over(i, noop)) };
        println!(
            "{name} | {:.0} | {over_noop} | {to_moka} | {:.1} |",
            over(i, bare),
            allocated[i] - allocated[bare],
        );
    }
}
