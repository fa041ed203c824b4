//! However many ask at once, whatever the network does and whoever dies: the promise of the policy.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::sleep;
use tower_keep::{
    MemoryStorage,
    idempotency::{InFlight, Policy, Repeat},
};

use crate::{
    desk::{Act, Desk, Order},
    history::{Answer, History, Id, Log, Promise},
    network::{Forgery, Remote},
    race::{Dice, count},
};

pub(crate) const REPEATS: [Repeat; 2] = [Repeat::AtLeastOnce, Repeat::AtMostOnce];
const LEASE: Duration = Duration::from_secs(3);

/// How duplicates that are under way are told.
pub(crate) fn waits(dice: &Dice) -> InFlight {
    match dice.one_in(2) {
        true => InFlight::Conflict,
        false => InFlight::Wait(Duration::from_secs(20)),
    }
}

/// Sends so many duplicates at once, half of them to each node, from this number on.
pub(crate) async fn duplicates(desks: &[Desk], orders: Vec<Order>, dice: &Dice) -> Vec<Answer> {
    let tasks: Vec<_> = orders
        .into_iter()
        .enumerate()
        .map(|(n, order)| {
            let (desk, dice) = (desks[n % desks.len()].clone(), dice.clone());
            tokio::spawn(async move {
                if !dice.one_in(3) {
                    dice.pause().await;
                }
                desk.ask(&order).await.unwrap()
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

/// One execution, and nothing but its answer, a replay of it, or 409.
#[track_caller]
pub(crate) fn one_execution(history: &History, what: &str) {
    history.assert(what);
    assert_eq!(history.executions(), 1, "{what}");
    let own: Vec<_> = history.answers().filter(|answer| matches!(answer, Answer::Own(_))).collect();
    let [Answer::Own(own)] = own[..] else { panic!("{what}: {own:?}") };
    for answer in history.answers() {
        match answer {
            Answer::Own(text) | Answer::Replay(text) => assert_eq!(text, own, "{what}"),
            Answer::InFlight => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory_duplicates_at_once_are_executed_once() {
    for seed in 0..count(6, 100) {
        let (dice, storage, log) = (Dice::new(seed as u64), MemoryStorage::new(), Log::new());
        let repeat = REPEATS[seed % 2];
        let policy = Policy::scope_public().with_repeat(repeat).with_in_flight(waits(&dice));
        let desk = || Desk::new(storage.clone(), policy.clone(), false, &log);
        let order = |id| {
            let order = Order::new(id, "a-key")
                .doing(Act::KEPT[dice.below(3) as usize], Duration::from_millis(dice.below(20)));
            Order { patience: Duration::from_secs(60), ..order }
        };
        let orders = (0..count(200, 1_000) as Id).map(order).collect();
        duplicates(&[desk(), desk()], orders, &dice).await;
        let promise = Promise::new(repeat, Duration::from_secs(30));
        one_execution(&History::new(log.take(), promise), &format!("seed {seed}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory_the_history_of_a_key_is_linearizable() {
    for seed in 0..count(20, 2_000) {
        let (dice, storage, log) = (Dice::new(seed as u64), MemoryStorage::new(), Log::new());
        let policy = Policy::scope_public().with_in_flight(waits(&dice));
        let commit_point = dice.one_in(3);
        let desk = || Desk::new(storage.clone(), policy.clone(), commit_point, &log);
        let order = |id| {
            let act = Act::MIXED[dice.below(Act::MIXED.len() as u64) as usize];
            let order = Order::new(id, "a-key").doing(act, Duration::from_millis(dice.below(4)));
            Order { payload: dice.one_in(20).into(), ..order }
        };
        duplicates(&[desk(), desk()], (0..60).map(order).collect(), &dice).await;
        let mut promise = Promise::new(Repeat::AtLeastOnce, Duration::from_secs(30));
        promise.commit_point = commit_point;
        History::new(log.take(), promise).assert(&format!("seed {seed}"));
    }
}

/// What goes wrong in a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Nothing,
    /// One operation in some is lost, unanswered, or late.
    Losses,
    /// One node is not heard of for longer than a lease, and goes on then.
    Pause,
    /// One node is not heard of any more.
    Cut,
}

/// How often what was seen, over all worlds.
#[derive(Debug, Default)]
struct Tally(BTreeMap<String, usize>);

impl Tally {
    fn count(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }
}

/// Some nodes in paused time, one key, and what the dice say.
async fn world(
    seed: u64,
    trouble: Trouble,
    forgery: Option<Forgery>,
    tally: &mut Tally,
) -> Result<(), String> {
    let (dice, memory, log) = (Dice::new(seed), MemoryStorage::new(), Log::new());
    let repeat = REPEATS[dice.below(2) as usize];
    let commit_point = dice.one_in(3);
    let faults = if trouble == Trouble::Losses { 2 + dice.below(8) } else { 0 };
    // With a long patience what was held back is applied when it comes through at last.
    let patience = match dice.one_in(2) {
        true => Duration::from_millis(500),
        false => Duration::from_secs(3_600),
    };
    let policy = Policy::scope_public()
        .with_repeat(repeat)
        .with_lease(LEASE)
        .with_timeout(if trouble == Trouble::Losses { LEASE / 6 } else { patience })
        .with_in_flight(waits(&dice));
    let remotes: Vec<_> = (0..2 + dice.below(2))
        .map(|_| Remote::new(&memory, &dice, LEASE, faults).forging(forgery))
        .collect();
    let desk = |remote: &Remote| Desk::new(remote.clone(), policy.clone(), commit_point, &log);
    let desks: Vec<_> = remotes.iter().map(desk).collect();

    let mut promise = Promise::new(repeat, LEASE);
    (promise.commit_point, promise.lossy) = (commit_point, trouble == Trouble::Losses);
    let requests = 6 + dice.below(10) as Id;
    let mut tasks = Vec::new();
    for id in 0..requests {
        let in_trouble = matches!(trouble, Trouble::Pause | Trouble::Cut);
        // The first is likely to be of the node that is in trouble soon.
        let is_first = id == 0 && in_trouble;
        let node = if is_first { 0 } else { dice.below(desks.len() as u64) as usize };
        if node == 0 && in_trouble {
            match trouble {
                Trouble::Cut => promise.dead.insert(id),
                _ => promise.silent.insert(id),
            };
        }
        let act = match dice.below(16) {
            0 => Act::Seal,
            1 | 2 => Act::Busy,
            3 => Act::Fail,
            4 => Act::Panic,
            5 => Act::Early,
            6 | 7 => Act::Stream,
            _ => Act::Receipt,
        };
        let work = match dice.below(3) {
            0 => Duration::from_millis(dice.below(20)),
            1 => LEASE.mul_f64(dice.below(100) as f64 / 100.0),
            _ => 3 * LEASE.mul_f64(dice.below(100) as f64 / 100.0),
        };
        let mut order = Order::new(id, "a-key").doing(act, work);
        order.payload = dice.one_in(12).into();
        order.patience = match dice.one_in(6) {
            true => Duration::from_millis(dice.below(100)),
            false => Duration::from_secs(120),
        };
        if is_first {
            order.work = LEASE + LEASE.mul_f64(dice.below(200) as f64 / 100.0);
            (order.payload, order.patience) = (0, Duration::from_secs(120));
        }
        let (desk, dice) = (desks[node].clone(), dice.clone());
        tasks.push(tokio::spawn(async move {
            if !is_first && !dice.one_in(3) {
                sleep(4 * LEASE.mul_f64(dice.below(1_000) as f64 / 1_000.0)).await;
            }
            dice.pause().await;
            desk.ask(&order).await;
        }));
    }
    if matches!(trouble, Trouble::Pause | Trouble::Cut) {
        sleep(Duration::from_millis(dice.below(1_500))).await;
        remotes[0].open(false);
    }
    if trouble == Trouble::Pause {
        sleep(LEASE + LEASE.mul_f64(dice.below(300) as f64 / 100.0)).await;
        remotes[0].open(true);
    }
    for task in tasks {
        task.await.unwrap();
    }

    // Nothing stays stuck.
    remotes.iter().for_each(Remote::calm);
    sleep(20 * LEASE).await;
    let first = usize::from(trouble == Trouble::Cut);
    for (id, desk) in (requests..).zip(desks[first..].iter().chain(&desks[first..])) {
        let answer = desk.ask(&Order::new(id, "a-key")).await.unwrap();
        let stuck = matches!(answer, Answer::InFlight | Answer::Refused);
        if stuck {
            return Err(format!("the key is stuck: {answer:?}"));
        }
        tally.count(format!("{trouble:?} in the end {}", kind(&answer)));
    }
    let history = History::new(log.take(), promise);
    history.check().map_err(|wrong| format!("{policy:?}: {wrong}\n{history}"))?;
    if let Some(overtaken) = remotes.iter().flat_map(Remote::overtaken).next() {
        return Err(format!("{policy:?}: {overtaken}\n{history}"));
    }
    for answer in history.answers() {
        tally.count(format!("{trouble:?} {}", kind(answer)));
    }
    for attempt in history.attempts().filter(|attempt| *attempt > 1) {
        tally.count(format!("{trouble:?} attempt {attempt}"));
    }
    for answer in &history.late() {
        tally.count(format!("{trouble:?} late {}", kind(answer)));
    }
    Ok(())
}

fn kind(answer: &Answer) -> &'static str {
    match answer {
        Answer::Own(_) => "own",
        Answer::Replay(_) => "replay",
        Answer::InFlight => "in flight",
        Answer::Sealed => "sealed",
        Answer::Unknown => "unknown",
        Answer::Mismatch => "mismatch",
        Answer::Refused => "refused",
    }
}

async fn worlds(trouble: Trouble, expected: &[&str]) {
    let mut tally = Tally::default();
    for seed in 0..count(100, 10_000) {
        if let Err(wrong) = world(seed as u64, trouble, None, &mut tally).await {
            panic!("seed {seed}, {trouble:?}: {wrong}");
        }
    }
    println!("{:#?}", tally.0);
    for what in expected {
        let what = format!("{trouble:?} {what}");
        assert!(tally.0.contains_key(&what), "there was no {what}: {:?}", tally.0);
    }
}

#[tokio::test(start_paused = true)]
async fn across_a_network_the_history_of_a_key_is_linearizable() {
    let expected = ["own", "replay", "in flight", "sealed", "mismatch"];
    worlds(Trouble::Nothing, &expected).await;
}

#[tokio::test(start_paused = true)]
async fn across_a_network_that_loses_replies_the_history_of_a_key_is_linearizable() {
    let expected = ["own", "replay", "in flight", "refused", "attempt 2"];
    worlds(Trouble::Losses, &expected).await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_silent_for_longer_than_its_lease_overwrites_nothing() {
    let expected = ["own", "replay", "unknown", "attempt 2", "late own", "late replay"];
    worlds(Trouble::Pause, &expected).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_owner_is_cut_off_is_taken_over_or_unknown() {
    let expected = ["own", "replay", "unknown", "attempt 2", "in the end unknown"];
    worlds(Trouble::Cut, &expected).await;
}

/// The worlds would notice.
#[tokio::test(start_paused = true)]
async fn a_storage_that_breaks_its_word_is_found() {
    for (forgery, trouble) in [
        (Forgery::Claims, Trouble::Nothing),
        (Forgery::Writes, Trouble::Pause),
        (Forgery::Deletes, Trouble::Pause),
    ] {
        let (mut tally, mut found) = (Tally::default(), 0);
        for seed in 0..40 {
            let wrong = world(seed, trouble, Some(forgery), &mut tally).await;
            found += usize::from(wrong.is_err());
        }
        println!("{forgery:?}: {found} of 40");
        assert!(found > 0, "{forgery:?}");
    }
}
