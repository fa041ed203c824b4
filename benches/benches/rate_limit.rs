//! Time per request of each contestant. `report` puts the same into one table of differences.

use criterion::{Criterion, criterion_group, criterion_main};
use tower_keep_benches::contestants;

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("rate_limit");
    for mut contestant in contestants() {
        for turn in 0..contestant.clients.max(2) {
            contestant.send(turn);
        }
        let mut turn = 0_u32;
        group.bench_function(contestant.name, |bench| {
            bench.iter(|| {
                turn = turn.wrapping_add(1);
                contestant.send(turn)
            })
        });
    }
}

criterion_group!(benches, requests);
criterion_main!(benches);
