//! Rates of contestants that take turns.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::measure::median;

const TURN: Duration = Duration::from_millis(250);

/// What a task does over and over; the number tells its requests apart.
pub trait Work: Clone + Send + 'static {
    fn step(&mut self, turn: u64) -> impl Future<Output = ()> + Send;
}

/// Steps per second of these workers.
async fn rate<W: Work>(workers: &[W]) -> f64 {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let tasks: Vec<_> = workers
        .iter()
        .zip(0_u64..)
        .map(|(worker, number)| {
            let (mut worker, stop, done) = (worker.clone(), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let mut turn = number * 7_919;
                while !stop.load(Relaxed) {
                    turn += 101;
                    worker.step(turn).await;
                    done.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(TURN).await;
    stop.store(true, Relaxed);
    for task in tasks {
        task.await.expect("a task");
    }
    done.load(Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// Lets all take turns, and prints their rates and the ratio to the first.
pub async fn compare<W: Work>(name: &str, contestants: &[(&str, Vec<W>)], rounds: u32) {
    let mut rates = vec![Vec::new(); contestants.len()];
    for round in 0..=rounds {
        for (i, (_, workers)) in contestants.iter().enumerate() {
            let rate = rate(workers).await;
            // The first round warms up.
            if round > 0 {
                rates[i].push(rate);
            }
        }
    }
    for (i, (contestant, _)) in contestants.iter().enumerate() {
        let ratios = rates[i].iter().zip(&rates[0]).map(|(rate, first)| rate / first).collect();
        println!(
            "| {contestant} | {name} | {:.0} | {:.2} |",
            median(rates[i].clone()),
            median(ratios)
        );
    }
}
