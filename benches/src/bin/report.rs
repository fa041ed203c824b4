//! Prints what each contestant adds to a request: `cargo run --release --bin report [rounds]`.
//!
//! All are measured in turn, round by round; a figure is the median of the differences to the bare
//! route of the same round, in nanoseconds of thread time.

use std::{sync::Barrier, thread};

use tower_keep_benches::{
    BARE, Contestant, RIVAL, contestants,
    measure::{Counting, allocations, median, thread_nanos},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REQUESTS: u32 = 4_000;

/// Nanoseconds per request.
fn burst(contestant: &mut Contestant, turn: &mut u32, requests: u32) -> f64 {
    let start = thread_nanos();
    for _ in 0..requests {
        *turn = turn.wrapping_add(1);
        assert_eq!(contestant.send(*turn), contestant.status, "{}", contestant.name);
    }
    (thread_nanos() - start) as f64 / f64::from(requests)
}

/// Both threads' nanoseconds per request while they work on one client at the same time.
fn together(contestant: &Contestant, requests: u32) -> f64 {
    let barrier = Barrier::new(2);
    let work = || {
        let mut contestant = contestant.clone();
        barrier.wait();
        burst(&mut contestant, &mut 0, requests)
    };
    thread::scope(|scope| {
        let other = scope.spawn(work);
        (work() + other.join().expect("the other thread")) / 2.0
    })
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(60, |text| text.parse().expect("rounds"));
    let only = std::env::args().nth(2);
    let mut all = contestants();
    if let Some(only) = only {
        all.retain(|c| [BARE, RIVAL].contains(&c.name) || c.name.contains(&only));
    }
    let mut turns = vec![0; all.len()];
    let mut allocated = vec![0.0; all.len()];
    for (i, contestant) in all.iter_mut().enumerate() {
        for _ in 0..contestant.clients.max(1_000) {
            turns[i] += 1;
            contestant.send(turns[i]);
        }
        let before = allocations();
        burst(contestant, &mut turns[i], 1_000);
        allocated[i] = (allocations() - before) as f64 / 1_000.0;
    }

    let mut alone = vec![Vec::new(); all.len()];
    let mut both = vec![Vec::new(); all.len()];
    for round in 0..rounds {
        for (i, contestant) in all.iter_mut().enumerate() {
            alone[i].push(burst(contestant, &mut turns[i], REQUESTS));
            if contestant.clients == 1 && round % 2 == 0 {
                both[i].push(together(contestant, 2 * REQUESTS));
            }
        }
    }

    let of = |name| all.iter().position(|c| c.name == name).expect("it is among them");
    let added = |i: usize| -> Vec<f64> {
        alone[i].iter().zip(&alone[of(BARE)]).map(|(time, bare)| time - bare).collect()
    };
    let rival = median(added(of(RIVAL)));
    println!("{BARE}: {:.0} ns, {} allocations", median(alone[0].clone()), allocated[0]);
    println!("| added to it | ns | to {RIVAL} | allocations | two threads, share of bare |");
    println!("|---|---|---|---|---|");
    for (i, contestant) in all.iter().enumerate().skip(1) {
        let ns = median(added(i));
        let share = if both[i].is_empty() {
            "".to_owned()
        } else {
            format!("{:.2}", median(both[of(BARE)].clone()) / median(both[i].clone()))
        };
        println!(
            "| {} | {ns:.0} | {:.2} | {:.1} | {share} |",
            contestant.name,
            ns / rival,
            allocated[i] - allocated[0],
        );
    }
}
