//! Claims whose entries outlive their leases, on paused time.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    task::{JoinHandle, yield_now},
    time::advance,
};

use super::*;
use crate::{
    MemoryStorage,
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Identity, Invalidation, Key,
        Lookup, Name, Put, PutOutcome, Storage, Tags, Verdict,
    },
};

const RETENTION: Duration = Duration::from_secs(24 * 3_600);
const LEASE: Duration = Duration::from_secs(30);

/// What becomes of one call.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It is applied, and the answer is given.
    Fine,
    /// It arrives that much later, and the answer that much after that. It arrives even if nobody
    /// waits for the answer any more.
    Slow(Duration, Duration),
    /// It is applied, and the answer is lost.
    Unanswered,
    /// It is applied, and after so long it is clear that no answer comes.
    TimedOut(Duration),
    /// It is not applied, and nobody can know.
    Unapplied,
    /// Nobody waits for it, and it arrives that much later.
    Late(Duration),
}

/// Memory at the end of a line on which calls meet the fates that a test has planned, in order.
#[derive(Debug, Clone, Default)]
struct Line {
    memory: MemoryStorage,
    puts: Arc<Mutex<VecDeque<Fate>>>,
    gets: Arc<Mutex<VecDeque<Fate>>>,
    deletes: Arc<Mutex<VecDeque<Fate>>>,
    calls: Arc<AtomicUsize>,
}

impl Line {
    async fn call<T: Send + 'static>(
        &self,
        fates: &Mutex<VecDeque<Fate>>,
        apply: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let lost = || Err(Error::new(ErrorKind::Timeout, "no answer"));
        let fate = fates.lock().unwrap().pop_front().unwrap_or(Fate::Fine);
        match fate {
            Fate::Fine => apply.await,
            Fate::Slow(there, back) => {
                let arrived = tokio::spawn(async move {
                    sleep(there).await;
                    let answer = apply.await;
                    sleep(back).await;
                    answer
                });
                arrived.await.unwrap()
            }
            Fate::Unanswered => {
                let _ = apply.await;
                lost()
            }
            Fate::TimedOut(after) => {
                let _ = apply.await;
                sleep(after).await;
                lost()
            }
            Fate::Unapplied => lost(),
            Fate::Late(delay) => {
                tokio::spawn(async move {
                    sleep(delay).await;
                    apply.await
                });
                lost()
            }
        }
    }

    fn plan_puts(&self, fates: impl IntoIterator<Item = Fate>) {
        self.puts.lock().unwrap().extend(fates);
    }

    fn plan_gets(&self, fates: impl IntoIterator<Item = Fate>) {
        self.gets.lock().unwrap().extend(fates);
    }

    fn plan_deletes(&self, fates: impl IntoIterator<Item = Fate>) {
        self.deletes.lock().unwrap().extend(fates);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    async fn entry(&self) -> Option<Entry> {
        self.memory.get(&key(), Get::new()).await.unwrap().entry
    }

    /// What follows the token.
    async fn state(&self) -> String {
        let entry = self.entry().await.expect("there is an entry");
        String::from_utf8(entry.value[16..].to_vec()).unwrap()
    }
}

impl Storage for Line {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        let (memory, key) = (self.memory.clone(), key.clone());
        self.call(&self.gets, async move { memory.get(&key, get).await }).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        let (memory, key) = (self.memory.clone(), key.clone());
        let put = Put::new(put.value, put.ttl).with_condition(put.when);
        self.call(&self.puts, async move { memory.put(&key, put).await }).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        let (memory, key) = (self.memory.clone(), key.clone());
        self.call(&self.deletes, async move { memory.delete(&key, when).await }).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.memory.invalidate(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.memory.acquire(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}

fn key() -> Key {
    Key::new(&Name::new("payments"), &Name::new("key"), Identity::new("4711"))
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// A value of the claim in this state.
fn value(claim: &Claim, state: &str) -> Bytes {
    [&claim.token, state.as_bytes()].concat().into()
}

fn claim(line: &Line) -> Claim {
    Claim::new(line.clone().erase(), key(), RETENTION)
}

async fn granted(claim: &Claim, when: When, state: &str) -> Grant {
    match claim.write(when, value(claim, state)).await.unwrap() {
        Standing::Ours(grant) => grant,
        Standing::NotOurs(entry) => panic!("the key is not free: {entry:?}"),
    }
}

async fn hold(line: &Line) -> Arc<Hold> {
    let claim = claim(line);
    let grant = granted(&claim, When::Absent, "pending").await;
    let pending = value(&claim, "pending");
    Arc::new(Hold::new(claim, grant, pending, LEASE))
}

/// What another process does when the age of the entry says that the owner is gone.
async fn take_over(line: &Line) -> Claim {
    let entry = line.entry().await.unwrap();
    assert!(entry.age >= LEASE, "the owner is still there: {:?}", entry.age);
    let other = claim(line);
    granted(&other, When::Version(entry.version), "taken over").await;
    other
}

async fn change(hold: &Arc<Hold>, state: &str) -> Result<Extension> {
    hold.change(value(hold.claim(), state)).await
}

async fn finish(hold: &Arc<Hold>, state: &str) -> Result<Finish> {
    hold.finish(value(hold.claim(), state)).await
}

fn written(finish: Result<Finish>) -> bool {
    matches!(finish.unwrap(), Finish::Written)
}

/// A heartbeat, and every way in which one of its puts may take long: in time, beyond the beat's
/// patience, and beyond the lease.
fn slow_beats() -> impl Iterator<Item = Fate> {
    let times = [0, 1, 4, 12, 25, 40].map(seconds);
    times.into_iter().flat_map(move |there| times.map(|back| Fate::Slow(there, back)))
}

fn beating(hold: &Arc<Hold>) -> JoinHandle<()> {
    tokio::spawn(beat(Arc::clone(hold)))
}

async fn ended(beats: JoinHandle<()>) {
    timeout(LEASE, beats).await.expect("it goes on beating").unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_entry_outlives_the_lease_and_tells_by_its_age_that_the_owner_is_gone() {
    let line = Line::default();
    let hold = hold(&line).await;
    let began = Instant::now();
    hold.lost().await;
    assert!(began.elapsed() < LEASE && began.elapsed() > LEASE * 98 / 100);
    assert!(line.entry().await.unwrap().age < LEASE, "the others wait as long as the owner works");
    sleep(seconds(1)).await;
    let entry = line.entry().await.unwrap();
    assert!(entry.age >= LEASE);
    assert!(entry.ttl > RETENTION - seconds(60));
}

#[tokio::test(start_paused = true)]
async fn beats_keep_the_others_away_for_as_long_as_the_owner_lives() {
    let line = Line::default();
    let hold = hold(&line).await;
    let beats = beating(&hold);
    for _ in 0..200 {
        sleep(seconds(7)).await;
        assert!(line.entry().await.unwrap().age < LEASE / 2);
    }
    beats.abort();
    assert!(timeout(LEASE, hold.lost()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_lease_counts_from_before_the_write_also_when_that_was_read_back() {
    let line = Line::default();
    let hold = hold(&line).await;
    sleep(seconds(5)).await;
    line.plan_puts([Fate::TimedOut(seconds(4))]);
    line.plan_gets([Fate::Slow(seconds(2), seconds(3))]);
    let applied = Instant::now();
    assert_eq!(hold.extend().await.unwrap(), Extension::Extended);
    assert!(hold.deadline() < applied + LEASE);
    // What is not known is how old the entry was when it was asked for: two seconds on its way.
    assert!(hold.deadline() > applied + LEASE - seconds(3), "{:?}", hold.deadline() - applied);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_applied_extends_nothing() {
    let line = Line::default();
    let hold = hold(&line).await;
    let deadline = hold.deadline();
    sleep(seconds(5)).await;
    line.plan_puts([Fate::Unapplied]);
    assert!(hold.extend().await.is_err());
    assert_eq!(hold.deadline(), deadline);
}

#[tokio::test(start_paused = true)]
async fn a_beat_after_a_slow_answer_comes_while_the_lease_lasts() {
    let line = Line::default();
    line.plan_puts([Fate::Slow(seconds(0), seconds(24))]);
    let hold = hold(&line).await;
    assert!(hold.deadline() < Instant::now() + seconds(6));
    let beats = beating(&hold);
    assert!(timeout(LEASE * 10, hold.lost()).await.is_err());
    beats.abort();
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_under_way_never_undoes_a_change() {
    for fate in slow_beats() {
        for started in [0, 500, 3_000, 11_000, 14_000].map(Duration::from_millis) {
            let line = Line::default();
            let hold = hold(&line).await;
            // The second is one that follows on a first that was given up.
            line.plan_puts([fate, Fate::Fine, fate]);
            let beats = beating(&hold);
            sleep(LEASE / 3 + started).await;
            let changed = change(&hold, "changed").await;
            if matches!(changed, Ok(Extension::Extended)) {
                for _ in 0..100 {
                    assert_eq!(line.state().await, "changed", "{fate:?}, {started:?}");
                    sleep(seconds(1)).await;
                }
            }
            beats.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_stays_over_the_extensions_that_follow() {
    let line = Line::default();
    let hold = hold(&line).await;
    let beats = beating(&hold);
    for state in ["one", "two", "two", "three"] {
        sleep(seconds(13)).await;
        assert_eq!(change(&hold, state).await.unwrap(), Extension::Extended);
        sleep(LEASE).await;
        assert_eq!(line.state().await, state);
    }
    assert!(hold.deadline() > Instant::now());
    assert!(written(finish(&hold, "done").await));
    ended(beats).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_goes_on_from_what_a_lost_reply_has_left() {
    let line = Line::default();
    let hold = hold(&line).await;
    // The version that is known is two behind.
    line.plan_puts([Fate::Unanswered, Fate::Unanswered]);
    line.plan_gets([Fate::Unapplied, Fate::Unapplied]);
    assert!(hold.extend().await.is_err());
    assert!(hold.extend().await.is_err());
    assert_eq!(change(&hold, "changed").await.unwrap(), Extension::Extended);
    assert_eq!(line.state().await, "changed");
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_reply_is_lost_is_known_by_reading_back() {
    let line = Line::default();
    let hold = hold(&line).await;
    line.plan_puts([Fate::Unanswered]);
    assert_eq!(change(&hold, "changed").await.unwrap(), Extension::Extended);
    assert_eq!(hold.extend().await.unwrap(), Extension::Extended);
    assert_eq!(line.state().await, "changed");
}

#[tokio::test(start_paused = true)]
async fn an_older_value_of_its_own_is_not_taken_for_a_change() {
    let line = Line::default();
    let hold = hold(&line).await;
    // What is read back has another version than was asked for, the owner's token, and the value of
    // an extension that has overtaken the change.
    line.plan_puts([Fate::Late(seconds(1))]);
    line.plan_gets([Fate::Unapplied]);
    assert!(hold.extend().await.is_err());
    line.plan_puts([Fate::Unapplied]);
    line.plan_gets([Fate::Slow(seconds(2), seconds(0))]);
    assert!(change(&hold, "changed").await.is_err());
    assert_eq!(line.state().await, "pending");
    assert_eq!(hold.extend().await.unwrap(), Extension::Extended);
    assert_eq!(line.state().await, "pending", "after an error the old one counts");
    assert_eq!(change(&hold, "changed").await.unwrap(), Extension::Extended);
    assert_eq!(line.state().await, "changed");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_arrives_late_is_undone_by_the_next_extension() {
    let line = Line::default();
    let hold = hold(&line).await;
    line.plan_puts([Fate::Late(seconds(3))]);
    assert!(change(&hold, "changed").await.is_err());
    let deadline = hold.deadline();
    sleep(seconds(4)).await;
    assert_eq!(line.state().await, "changed");
    assert_eq!(hold.deadline(), deadline);
    assert_eq!(hold.extend().await.unwrap(), Extension::Extended);
    assert_eq!(line.state().await, "pending");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_by_a_change_after_the_lease_is_lost() {
    let line = Line::default();
    let hold = hold(&line).await;
    hold.lost().await;
    let calls = line.calls();
    assert_eq!(change(&hold, "changed").await.unwrap(), Extension::Lost);
    assert_eq!(line.calls(), calls);
    sleep(seconds(1)).await;
    let other = take_over(&line).await;
    assert_eq!(change(&hold, "changed").await.unwrap(), Extension::Lost);
    assert_eq!(hold.extend().await.unwrap(), Extension::Lost);
    assert_eq!(line.calls(), calls + 1);
    assert_eq!(line.entry().await.unwrap().value, value(&other, "taken over"));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_one_that_was_robbed_is_lost() {
    let line = Line::default();
    let hold = hold(&line).await;
    line.memory.delete(&key(), When::Always).await.unwrap();
    assert_eq!(change(&hold, "changed").await.unwrap(), Extension::Lost);
    assert!(line.entry().await.is_none());
    assert!(hold.deadline() <= Instant::now());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_during_a_change_asks_for_nothing_more() {
    let line = Line::default();
    let hold = hold(&line).await;
    // The change meets an extension that arrived without anybody knowing, and would go on from it.
    line.plan_puts([Fate::Unanswered, Fate::Slow(seconds(0), seconds(1))]);
    line.plan_gets([Fate::Unapplied]);
    assert!(hold.extend().await.is_err());
    let mut changing = pin!(change(&hold, "changed"));
    assert!(timeout(Duration::from_millis(500), &mut changing).await.is_err());
    let calls = line.calls();
    // Neither the answer nor the deadline is seen before both have passed.
    advance(LEASE * 2).await;
    for _ in 0..10 {
        yield_now().await;
    }
    assert_eq!(changing.await.unwrap(), Extension::Lost);
    assert_eq!(line.calls(), calls);
    assert_eq!(line.state().await, "pending");
}

#[tokio::test(start_paused = true)]
async fn no_heartbeat_undoes_a_finish() {
    for fate in slow_beats() {
        for started in [0, 500, 3_000, 11_000, 14_000].map(Duration::from_millis) {
            let line = Line::default();
            let hold = hold(&line).await;
            line.plan_puts([fate, Fate::Fine, fate]);
            let beats = beating(&hold);
            sleep(LEASE / 3 + started).await;
            assert!(written(finish(&hold, "done").await));
            for _ in 0..100 {
                assert_eq!(line.state().await, "done", "{fate:?}, {started:?}");
                sleep(seconds(1)).await;
            }
            assert!(beats.is_finished(), "{fate:?}, {started:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_finish_nothing_is_changed_or_extended() {
    let line = Line::default();
    let hold = hold(&line).await;
    let lost = hold.lost();
    assert!(written(finish(&hold, "done").await));
    assert!(timeout(Duration::ZERO, lost).await.is_ok());
    let calls = line.calls();
    assert_eq!(change(&hold, "changed").await.unwrap(), Extension::Lost);
    assert_eq!(hold.extend().await.unwrap(), Extension::Lost);
    assert_eq!(line.calls(), calls);
    assert!(line.entry().await.unwrap().ttl > RETENTION - seconds(1));
}

#[tokio::test(start_paused = true)]
async fn a_finish_whose_reply_is_lost_is_known_as_written() {
    let line = Line::default();
    let hold = hold(&line).await;
    line.plan_puts([Fate::Unanswered]);
    assert!(written(finish(&hold, "done").await));
    assert_eq!(line.state().await, "done");
}

#[tokio::test(start_paused = true)]
async fn a_finish_that_may_have_been_written_is_not_taken_back_and_may_be_tried_again() {
    for fate in [Fate::Unanswered, Fate::Late(seconds(12))] {
        let line = Line::default();
        let hold = hold(&line).await;
        let beats = beating(&hold);
        line.plan_puts([fate]);
        line.plan_gets([Fate::Unapplied]);
        assert!(finish(&hold, "done").await.is_err());
        assert!(hold.deadline() > Instant::now(), "there is time to try again");
        sleep(seconds(13)).await;
        assert_eq!(line.state().await, "done", "{fate:?}");
        assert!(written(finish(&hold, "done").await));
        sleep(LEASE).await;
        assert_eq!(line.state().await, "done", "{fate:?}");
        ended(beats).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_finish_may_be_tried_again_with_less() {
    let line = Line::default();
    let hold = hold(&line).await;
    line.plan_puts([Fate::Late(seconds(5))]);
    line.plan_gets([Fate::Unapplied]);
    assert!(finish(&hold, "done").await.is_err());
    assert!(written(finish(&hold, "sealed").await));
    sleep(seconds(10)).await;
    assert_eq!(line.state().await, "sealed", "the one that came late is refused");
}

#[tokio::test(start_paused = true)]
async fn a_finish_after_a_heartbeat_whose_reply_was_lost_is_written() {
    for fate in [Fate::Unanswered, Fate::Late(seconds(1))] {
        let line = Line::default();
        let hold = hold(&line).await;
        line.plan_puts([fate]);
        line.plan_gets([Fate::Unapplied]);
        assert!(hold.extend().await.is_err());
        sleep(seconds(2)).await;
        assert!(written(finish(&hold, "done").await));
        assert_eq!(line.state().await, "done");
    }
}

#[tokio::test(start_paused = true)]
async fn a_finish_does_not_wait_for_a_heartbeat_longer_than_that_waits_for_its_answer() {
    let line = Line::default();
    let hold = hold(&line).await;
    let beats = beating(&hold);
    line.plan_puts([Fate::Slow(seconds(600), seconds(0))]);
    sleep(LEASE / 3 + seconds(1)).await;
    let began = Instant::now();
    assert!(written(finish(&hold, "done").await));
    assert!(began.elapsed() <= LEASE / 3);
    ended(beats).await;
}

#[tokio::test(start_paused = true)]
async fn a_finish_after_the_lease_is_written_where_nobody_took_over() {
    let line = Line::default();
    let hold = hold(&line).await;
    sleep(LEASE * 100).await;
    assert!(written(finish(&hold, "done").await));
    assert_eq!(line.state().await, "done");
}

#[tokio::test(start_paused = true)]
async fn a_finish_after_somebody_took_over_reports_whose_entry_it_is() {
    for fates in [vec![], vec![Fate::Unapplied], vec![Fate::Unanswered], vec![Fate::Late(LEASE)]] {
        let line = Line::default();
        let hold = hold(&line).await;
        sleep(LEASE).await;
        let other = take_over(&line).await;
        line.plan_puts(fates);
        let Finish::NotOurs(Some(entry)) = finish(&hold, "done").await.unwrap() else {
            panic!("it is somebody else's");
        };
        assert_eq!(entry.value, value(&other, "taken over"));
        sleep(LEASE * 2).await;
        assert_eq!(line.entry().await.unwrap().value, entry.value, "it is still there");
    }
}

#[tokio::test(start_paused = true)]
async fn a_finish_that_finds_nothing_writes_nothing() {
    for fates in [vec![], vec![Fate::Unapplied], vec![Fate::Late(LEASE)]] {
        let line = Line::default();
        let hold = hold(&line).await;
        line.memory.delete(&key(), When::Always).await.unwrap();
        line.plan_puts(fates);
        assert!(matches!(finish(&hold, "done").await.unwrap(), Finish::NotOurs(None)));
        sleep(LEASE * 2).await;
        assert!(line.entry().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn of_an_owner_that_is_late_and_one_that_takes_over_one_is_told_that_it_wrote() {
    for (first, late) in [(true, Fate::Fine), (false, Fate::Fine), (false, Fate::Late(LEASE))] {
        let line = Line::default();
        let hold = hold(&line).await;
        sleep(LEASE).await;
        let seen = line.entry().await.unwrap().version;
        let other = claim(&line);
        let takes_over = other.write(When::Version(seen), value(&other, "taken over"));
        if first {
            assert!(written(finish(&hold, "done").await));
            assert!(matches!(takes_over.await.unwrap(), Standing::NotOurs(Some(_))));
        } else {
            assert!(matches!(takes_over.await.unwrap(), Standing::Ours(_)));
            line.plan_puts([late]);
            assert!(!written(finish(&hold, "done").await));
        }
        sleep(LEASE * 2).await;
        assert_eq!(line.state().await, if first { "done" } else { "taken over" });
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_ends_the_entry_whatever_its_heartbeats_do() {
    for fate in slow_beats() {
        let line = Line::default();
        let hold = hold(&line).await;
        line.plan_puts([fate, Fate::Fine, fate]);
        let beats = beating(&hold);
        sleep(LEASE / 3 + seconds(1)).await;
        assert!(hold.clear().await.unwrap());
        sleep(LEASE * 3).await;
        assert!(line.entry().await.is_none(), "{fate:?}");
        assert!(beats.is_finished());
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_goes_on_from_what_lost_replies_have_left() {
    let line = Line::default();
    let hold = hold(&line).await;
    line.plan_puts([Fate::Unanswered]);
    line.plan_gets([Fate::Unapplied]);
    assert!(change(&hold, "changed").await.is_err());
    line.plan_deletes([Fate::Unapplied]);
    assert!(hold.clear().await.unwrap());
    assert!(line.entry().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_cleared_is_not_kept_by_heartbeats() {
    let line = Line::default();
    let hold = hold(&line).await;
    let beats = beating(&hold);
    line.plan_deletes([Fate::Unapplied]);
    line.plan_gets([Fate::Unapplied]);
    assert!(hold.clear().await.is_err());
    sleep(LEASE).await;
    take_over(&line).await;
    ended(beats).await;
}

#[tokio::test(start_paused = true)]
async fn a_clear_leaves_what_somebody_took_over() {
    let line = Line::default();
    let hold = hold(&line).await;
    sleep(LEASE).await;
    let other = take_over(&line).await;
    assert!(!hold.clear().await.unwrap());
    assert_eq!(line.entry().await.unwrap().value, value(&other, "taken over"));
}
