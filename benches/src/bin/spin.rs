//! Sends requests through one contestant, to be watched by a profiler:
//! `valgrind --tool=callgrind target/release/spin "tower-keep, all headers" 20000`.

use tower_keep_benches::{cache, contestants, idempotency, session};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().expect("the name of a contestant");
    let requests = arguments.next();
    let requests = requests.map_or(10_000, |text| text.parse().expect("how many requests"));
    if let Some(mut contestant) = contestants().into_iter().find(|one| one.name == name) {
        for turn in 0..requests {
            contestant.send(turn);
        }
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        if let Some(mut contestant) =
            cache::contestants().into_iter().find(|one| one.name() == name)
        {
            for turn in 0..requests {
                contestant.send(turn).await;
            }
            return;
        }
        if let Some(mut contestant) =
            idempotency::contestants().into_iter().find(|one| one.name() == name)
        {
            for _ in 0..requests {
                contestant.send().await;
            }
            return;
        }
        let mut all = session::contestants().await.into_iter();
        let mut contestant = all.find(|one| one.name() == name).expect("the name of a contestant");
        for _ in 0..requests {
            contestant.send().await;
        }
    });
}
