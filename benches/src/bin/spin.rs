//! Sends requests through one contestant, to be watched by a profiler:
//! `valgrind --tool=callgrind target/release/spin "tower-keep, all headers" 20000`.

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (name, requests) = (arguments.next(), arguments.next());
    let requests = requests.map_or(10_000, |text| text.parse().expect("how many requests"));
    let mut contestant = tower_keep_benches::contestants()
        .into_iter()
        .find(|contestant| Some(contestant.name) == name.as_deref())
        .expect("the name of a contestant");
    for turn in 0..requests {
        contestant.send(turn);
    }
}
