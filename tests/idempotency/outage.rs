//! A storage that is lost at every operation, for an answer or for good.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::http::Response;
use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tower_keep::{
    MemoryStorage, Storage,
    idempotency::{Idempotency, Outage, Policy, Repeat},
    storage::{Get, Put, When},
};

use crate::{
    flows::{Flow, Flow::*, Work},
    staged::{Fate, Staged},
    till::{Till, charge, receipt},
    traces::{LEASE, Left, SETTLED, left, listed, place_of, short, vanish},
};

const SECOND: Duration = Duration::from_secs(1);

/// What goes wrong with one operation, while all others work.
const ONCE: [Fate; 7] = [
    Fate::Unapplied,
    Fate::Unanswered,
    Fate::Refused,
    Fate::Unheard,
    Fate::MuteBefore,
    Fate::MuteAfter,
    Fate::Late,
];
/// What goes wrong with one operation and with all after it.
const FROM_THEN_ON: [Fate; 2] = [Fate::DeadBefore, Fate::DeadAfter];

const ACTS: [Flow; 13] = [
    First,
    Streaming,
    Begin,
    Release,
    Seal,
    StoredQuota,
    Replay,
    TakeOver,
    TakeOverBeforeCommit,
    Recovered,
    NotExecuted,
    StillUnknown,
    Marking,
];

struct Case {
    flow: Flow,
    what: String,
    memory: MemoryStorage,
    staged: Staged,
    node: Till,
    other: Till,
    work: Work,
}

impl Case {
    async fn prepare(flow: Flow, number: usize, fate: Fate) -> Self {
        let memory = MemoryStorage::new();
        let policy = flow.policy(&Arc::new(AtomicUsize::new(0)));
        let (staged, work) = (Staged::new(&memory), Work::new(flow));
        let node = work.till(staged.clone(), policy.clone());
        let other = work.till(Staged::new(&memory), policy.clone());
        match flow {
            Replay => drop(other.charge("a-key", "act").await),
            _ if flow.finds_a_vanished_owner() => vanish(&memory, policy, "act").await,
            _ => {}
        }
        work.charges.store(0, SeqCst);
        staged.plan(number, fate);
        let what = format!("{fate:?} at operation {number}");
        Self { flow, what, memory, staged, node, other, work }
    }

    #[track_caller]
    fn assert(&self, holds: bool, why: &str) {
        let (flow, what, log) = (self.flow, &self.what, self.staged.log());
        assert!(holds, "{flow:?}, {what}: {why}; asked was {log:?}");
    }

    /// Sends the request, and says what its client is told: the answer that it would be given
    /// anyway, or that nothing was done.
    async fn act(&self) -> Response<Bytes> {
        let began = Instant::now();
        let answer = self.node.send(self.flow.request()).await;
        self.assert(began.elapsed() < 6 * SECOND, "the client has waited for too long");
        let (status, replay, code) = short(&answer);
        let usual = (status, replay, code.as_str()) == self.flow.answer();
        // Nothing is known of the storage: neither is said "in flight" nor "unknown".
        let nothing_done = status == 503 && answer.headers().contains_key("retry-after");
        self.assert(usual || nothing_done, &format!("it is told {status}, {code:?}"));
        if nothing_done {
            self.assert(self.work.charges() == 0, "charged, and told that it was not");
        } else {
            let charged = usize::from(self.flow.charges());
            self.assert(self.work.charges() == charged, "told without being done");
        }
        answer
    }

    /// What lies there when all is done, and what the next request is told.
    async fn check(&self) {
        let (charges, left) = (self.work.charges(), left(&self.memory).await);
        let expected = if self.flow == Release { 0 } else { charges };
        let may = self.flow.may_leave(expected, left);
        self.assert(may, &format!("{charges} charges have left {left:?}"));
        let (status, replay, code) = short(&self.other.send(self.flow.request()).await);
        let expected = self.flow.next_answer(charges, left);
        self.assert((status, replay, code.as_str()) == expected, &format!("{status}, {code:?}"));
        let charged = usize::from(self.flow.charges());
        self.assert(self.work.charges() == charged, "it was charged twice, or not at all");
        if self.flow == Marking {
            self.assert(listed(&self.other.layer).await.len() == 1, "no operator sees it");
        }
        // Neither is a permit of this process lost.
        let free = self.node.charge("b-key", "plain").await;
        self.assert(free.status() == 201, &format!("{free:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn one_operation_that_fails_costs_an_answer_at_most() {
    for flow in ACTS {
        for fate in ONCE {
            for number in 0.. {
                let case = Case::prepare(flow, number, fate).await;
                case.act().await;
                sleep(2 * SETTLED).await;
                let was_reached = case.staged.was_reached();
                case.staged.all(None);
                case.check().await;
                if !was_reached {
                    assert!(number > 0);
                    break;
                }
            }
        }
    }
}

/// The claim whose answer was lost is this request's own: it goes on, and is not told that somebody
/// else is at it.
#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_is_lost_is_the_requests_own() {
    for flow in [First, TakeOver, TakeOverBeforeCommit, NotExecuted, Recovered] {
        for fate in [Fate::Unanswered, Fate::Unheard, Fate::Refused] {
            let claim = usize::from(flow.finds_a_vanished_owner());
            let case = Case::prepare(flow, claim, fate).await;
            let (status, replay, code) = short(&case.act().await);
            let told = (status, replay, code.as_str());
            case.assert(told == flow.answer(), &format!("it is told {status}, {code:?}"));
            case.check().await;
        }
    }
}

/// What was charged is found again when the storage is back before the lease is over.
#[tokio::test(start_paused = true)]
async fn a_storage_that_is_away_for_less_than_the_lease_loses_nothing() {
    for flow in ACTS {
        for fate in FROM_THEN_ON {
            for number in 0.. {
                let case = Case::prepare(flow, number, fate).await;
                case.act().await;
                let was_reached = case.staged.was_reached();
                sleep(5 * SECOND).await;
                case.staged.all(None);
                sleep(2 * SETTLED).await;
                case.check().await;
                if !was_reached {
                    break;
                }
            }
        }
    }
}

/// Until the lease is over nobody runs it again; after that it is as the policy says.
#[tokio::test(start_paused = true)]
async fn a_process_that_loses_the_storage_for_good_counts_as_vanished() {
    for flow in [First, Begin, Release, Seal] {
        for fate in FROM_THEN_ON {
            for number in 0.. {
                let case = Case::prepare(flow, number, fate).await;
                case.act().await;
                let charged = case.work.charges();
                if !case.staged.was_reached() {
                    break;
                }
                let (left, next) =
                    (left(&case.memory).await, case.other.send(flow.request()).await);
                match left {
                    Left::Nothing if flow == Release => assert_eq!(next.status(), 422),
                    // Nobody has got as far as the handler.
                    Left::Nothing => {
                        case.assert(charged == 0 && next.status() == 201, "it was forgotten");
                        continue;
                    }
                    Left::Pending => {
                        case.assert(short(&next).2 == "in-flight", "the owner was not waited for")
                    }
                    // The last word got through, and its answer did not.
                    Left::Done => case.assert(short(&next).1, "no replay"),
                    Left::Sealed => case.assert(next.status() == 409, "nothing is sealed"),
                    Left::Unknown | Left::Garbage => case.assert(false, "who says so?"),
                }
                let before = case.work.charges();
                case.assert(before == charged, "it was charged while the lease was held");
                sleep(LEASE).await;
                let late = case.other.send(flow.request()).await;
                let repeated = case.work.charges() - before;
                match (left, flow) {
                    (Left::Pending, Begin) if charged == 1 => {
                        // At most once: from the commit point on nobody can tell.
                        case.assert(short(&late).2 == "outcome-unknown", "it is not unknown");
                        case.assert(repeated == 0, "it was charged twice");
                    }
                    (Left::Pending, Begin) => {
                        let phase_known = repeated == 1 && late.status() == 201;
                        let unknown = short(&late).2 == "outcome-unknown";
                        case.assert(phase_known || unknown, "it is stuck");
                    }
                    (Left::Pending, Release) => assert_eq!(late.status(), 422),
                    (Left::Pending, _) => {
                        case.assert(repeated == 1 && late.status() == 201, "it is stuck");
                    }
                    _ => case.assert(repeated == 0, "it was charged twice"),
                }
            }
        }
    }
}

/// There is no room for the answer, but for the word that there was one; and nothing begins if there
/// is none for the claim.
#[tokio::test(start_paused = true)]
async fn what_there_is_no_room_for_is_sealed_and_not_lost() {
    let case = Case::prepare(First, 1, Fate::Full).await;
    assert_eq!(case.act().await.body(), "receipt 1");
    let (status, _, code) = short(&case.other.send(First.request()).await);
    assert_eq!((status, &*code), (409, "response-not-retained"));
    assert_eq!(case.work.charges(), 1);

    let case = Case::prepare(First, 0, Fate::Full).await;
    case.staged.all(Some(Fate::Full));
    assert_eq!(case.act().await.status(), 503);
    case.staged.all(None);
    sleep(SETTLED).await;
    case.check().await;
}

/// The same with a storage that is really full.
#[tokio::test(start_paused = true)]
async fn a_full_memory_seals_what_it_cannot_keep() {
    let memory = MemoryStorage::builder().max_bytes(1 << 20).build();
    let policy = Policy::scope_public().with_max_response_body(8 << 20);
    let till = Till::new(memory.clone(), policy, |_, _| async {
        Response::builder()
            .status(201)
            .header("location", "/receipts/1")
            .body(vec![7; 4 << 20])
            .map(|response| response.map(Into::into))
            .unwrap()
    });
    let first = till.charge("a-key", "").await;
    assert_eq!((first.status().as_u16(), first.body().len()), (201, 4 << 20));
    let again = till.charge("a-key", "").await;
    assert_eq!(short(&again), (409, false, "response-not-retained".into()));
    assert_eq!(again.headers()["location"], "/receipts/1");
    assert_eq!((left(&memory).await, till.executions()), (Left::Sealed, 1));
}

/// A handler that tells when it has lost its lease, and otherwise works for so long.
fn working(storage: &Staged, policy: Policy, work: Duration) -> (Till, Arc<AtomicUsize>) {
    let lost = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&lost);
    let till = Till::new(storage.clone(), policy, move |execution, mut request| {
        let told = Arc::clone(&told);
        async move {
            let attempt = request.extensions_mut().remove::<Idempotency>().unwrap();
            let began = Instant::now();
            tokio::select! {
                () = sleep(work) => assert!(!attempt.is_lost()),
                () = attempt.lost() => {
                    assert!(attempt.is_lost());
                    told.store(began.elapsed().as_millis() as usize, SeqCst);
                    sleep(work.saturating_sub(began.elapsed())).await;
                }
            }
            receipt(execution)
        }
    });
    (till, lost)
}

fn in_background(till: &Till) -> tokio::task::JoinHandle<Response<Bytes>> {
    let till = till.clone();
    tokio::spawn(async move { till.charge("a-key", "").await })
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_lasts_longer_than_its_lease_stays_the_owner() {
    let memory = MemoryStorage::new();
    let (till, lost) = working(&Staged::new(&memory), Policy::scope_public(), 10 * LEASE);
    let other = Till::counting(Staged::new(&memory), Policy::scope_public());
    let first = in_background(&till);
    for _ in 0..99 {
        sleep(LEASE / 10).await;
        assert_eq!(short(&other.charge("a-key", "").await).2, "in-flight");
    }
    assert_eq!(first.await.unwrap().body(), "receipt 1");
    assert_eq!(short(&other.charge("a-key", "").await), (201, true, String::new()));
    assert_eq!((lost.load(SeqCst), other.executions()), (0, 0));
}

/// Whenever it begins, and however the storage is away.
#[tokio::test(start_paused = true)]
async fn a_storage_that_is_away_for_half_a_lease_costs_nobody_his_key() {
    for fate in
        [Fate::Refused, Fate::Unapplied, Fate::Unanswered, Fate::MuteBefore, Fate::MuteAfter]
    {
        for begins in (1..40).step_by(3) {
            let memory = MemoryStorage::new();
            let staged = Staged::new(&memory);
            let (till, lost) = working(&staged, Policy::scope_public(), 2 * LEASE);
            let other = Till::counting(Staged::new(&memory), Policy::scope_public());
            let first = in_background(&till);
            sleep(begins * SECOND).await;
            staged.all(Some(fate));
            sleep(LEASE / 3).await;
            staged.all(None);
            while !first.is_finished() {
                let told = short(&other.charge("a-key", "").await);
                let in_flight = told == (409, false, "in-flight".into());
                assert!(in_flight || told.1, "{told:?}, {fate:?} after {begins} s");
                sleep(SECOND).await;
            }
            assert_eq!(first.await.unwrap().body(), "receipt 1");
            assert_eq!(short(&other.charge("a-key", "").await), (201, true, String::new()));
            assert_eq!((lost.load(SeqCst), other.executions()), (0, 0), "{fate:?}, {begins}");
        }
    }
}

/// The late owner overwrites nothing, and tells its client what all others are told.
#[tokio::test(start_paused = true)]
async fn who_is_silent_for_longer_than_the_lease_is_taken_over() {
    for fate in [Fate::Refused, Fate::MuteBefore] {
        for slow in [false, true] {
            let memory = MemoryStorage::new();
            let staged = Staged::new(&memory);
            let (till, lost) = working(&staged, Policy::scope_public(), 2 * LEASE);
            let (other, _) = match slow {
                true => working(&Staged::new(&memory), Policy::scope_public(), 2 * LEASE),
                false => working(&Staged::new(&memory), Policy::scope_public(), SECOND),
            };
            other.executions.store(100, SeqCst);
            let first = in_background(&till);
            sleep(SECOND).await;
            staged.all(Some(fate));
            sleep(LEASE - SECOND - SECOND / 10).await;
            // It knows before anybody else can think so.
            let lost = lost.load(SeqCst) as u128;
            assert!((1..LEASE.as_millis()).contains(&lost), "{lost}");
            assert_eq!(short(&other.charge("a-key", "").await).2, "in-flight");
            sleep(SECOND).await;
            let second = in_background(&other);
            sleep(2 * SECOND).await;
            staged.all(None);
            let first = first.await.unwrap();
            match slow {
                // By then the other has stored nothing: the client is told what was done for it.
                true => {
                    assert_eq!((&first.body()[..], short(&first).1), (&b"receipt 1"[..], false))
                }
                false => {
                    assert_eq!((&first.body()[..], short(&first).1), (&b"receipt 101"[..], true))
                }
            }
            assert_eq!(second.await.unwrap().body(), "receipt 101");
            for till in [&till, &other] {
                assert_eq!(till.charge("a-key", "").await.body(), "receipt 101");
            }
            assert_eq!((till.executions(), other.executions()), (1, 101));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_longest_run_there_are_no_signs_of_life() {
    let memory = MemoryStorage::new();
    let policy = Policy::scope_public().with_longest_run(3 * LEASE);
    let (till, lost) = working(&Staged::new(&memory), policy, 10 * LEASE);
    let other = Till::counting(Staged::new(&memory), Policy::scope_public());
    let first = in_background(&till);
    sleep(3 * LEASE).await;
    assert_eq!(short(&other.charge("a-key", "").await).2, "in-flight");
    sleep(LEASE + SECOND).await;
    let lost = Duration::from_millis(lost.load(SeqCst) as u64);
    assert!((3 * LEASE..4 * LEASE).contains(&lost), "{lost:?}");
    assert_eq!(other.charge("a-key", "").await.status(), 201);
    assert!(short(&first.await.unwrap()).1, "all are told the same");
    assert_eq!(other.executions(), 1);

    let endless = Policy::scope_public().with_longest_run(Duration::MAX);
    let till = Till::counting(Staged::new(&memory), endless);
    assert_eq!(till.charge("b-key", "").await.status(), 201);
}

/// A sign of life that hangs does not hold up the answer, and is not written over it.
#[tokio::test(start_paused = true)]
async fn a_sign_of_life_under_way_does_not_stand_in_the_way_of_the_last_word() {
    for fate in [Fate::MuteBefore, Fate::MuteAfter, Fate::Late, Fate::HeldBefore, Fate::HeldAfter] {
        let memory = MemoryStorage::new();
        let staged = Staged::new(&memory);
        let (till, _) = working(&staged, Policy::scope_public(), LEASE / 3 + SECOND / 2);
        staged.plan(1, fate);
        let began = Instant::now();
        assert_eq!(till.charge("a-key", "").await.status(), 201);
        assert!(staged.was_reached(), "there was no sign of life");
        assert!(began.elapsed() < LEASE / 3 + SECOND * 3 / 5, "{fate:?}: {:?}", began.elapsed());
        assert_eq!(left(&memory).await, Left::Done, "{fate:?}");
        staged.release();
        sleep(SETTLED).await;
        assert_eq!(left(&memory).await, Left::Done, "{fate:?}");
    }
}

/// The client has its answer; the record comes as soon as it can.
#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_stored_is_given_and_stored_later() {
    for fate in [Fate::Refused, Fate::MuteBefore] {
        for back in [1, 10, 25] {
            let memory = MemoryStorage::new();
            let staged = Staged::new(&memory);
            let cut = staged.clone();
            let till = Till::new(staged.clone(), Policy::scope_public(), move |execution, _| {
                cut.all(Some(fate));
                async move { receipt(execution) }
            });
            let began = Instant::now();
            assert_eq!(till.charge("a-key", "").await.body(), "receipt 1");
            assert!(began.elapsed() < SECOND);
            assert_eq!(left(&memory).await, Left::Pending);
            sleep(back * SECOND).await;
            staged.all(None);
            sleep(SETTLED).await;
            assert_eq!(left(&memory).await, Left::Done, "{fate:?}, back after {back} s");
            assert!(short(&till.charge("a-key", "").await).1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_is_repeated() {
    for back in [1, 10, 25] {
        let memory = MemoryStorage::new();
        let staged = Staged::new(&memory);
        let cut = staged.clone();
        let till = Till::new(staged.clone(), Policy::scope_public(), move |_, _| {
            cut.all(Some(Fate::Refused));
            async { Response::builder().status(422).body("".into()).unwrap() }
        });
        assert_eq!(till.charge("a-key", "").await.status(), 422);
        assert_eq!(left(&memory).await, Left::Pending);
        sleep(back * SECOND).await;
        staged.all(None);
        sleep(SETTLED).await;
        assert_eq!(left(&memory).await, Left::Nothing, "back after {back} s");
    }
}

/// A scope has one place; none is lost for the hour that it would take to be free by itself.
#[tokio::test(start_paused = true)]
async fn a_place_that_is_not_granted_or_too_late_is_not_taken() {
    let policy = || Policy::scope_public().with_max_in_flight(1);
    for fate in
        [Fate::Unapplied, Fate::Refused, Fate::MuteBefore, Fate::HeldBefore, Fate::HeldAfter]
    {
        let memory = MemoryStorage::new();
        let staged = Staged::new(&memory);
        let till = Till::counting(staged.clone(), policy());
        staged.plan(1, fate);
        assert_eq!(short(&till.charge("a-key", "").await), (503, false, "unavailable".into()));
        assert_eq!((left(&memory).await, till.executions()), (Left::Nothing, 0));
        sleep(SECOND).await;
        staged.release();
        sleep(SETTLED).await;
        for key in ["a-key", "b-key"] {
            assert_eq!(till.charge(key, "").await.status(), 201, "{fate:?}");
        }
    }
}

/// An open policy runs what it cannot check, and nothing else.
#[tokio::test(start_paused = true)]
async fn an_open_policy_runs_what_it_cannot_check() {
    for fate in [Fate::Refused, Fate::Unapplied, Fate::MuteBefore, Fate::MuteAfter, Fate::Unheard] {
        for (outage, status, ran) in [(Outage::Open, 201, 2), (Outage::Closed, 503, 0)] {
            let memory = MemoryStorage::new();
            let staged = Staged::new(&memory);
            let till = Till::counting(staged.clone(), Policy::scope_public().with_outage(outage));
            staged.all(Some(fate));
            for _ in 0..2 {
                let answer = till.charge("a-key", "").await;
                assert_eq!(answer.status(), status, "{fate:?}, {outage:?}");
                assert!(!short(&answer).1);
            }
            assert_eq!(till.executions(), ran);
            staged.all(None);
            sleep(LEASE).await;
            assert_eq!(left(&memory).await, Left::Nothing, "{fate:?}, {outage:?}");
            assert_eq!(till.charge("a-key", "").await.status(), 201);
        }
    }
}

/// Nobody knows what it says; so nothing is run, whatever the policy is.
#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_refused_and_left_alone() {
    let memory = MemoryStorage::new();
    let till = Till::counting(memory.clone(), Policy::scope_public());
    till.charge("a-key", "").await;
    let place = place_of("a-key").await;
    let good = memory.get(&place, Get::new()).await.unwrap().entry.unwrap().value;
    let changed = |at: usize, to: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = to;
        Bytes::from(bytes)
    };
    let records = [
        Bytes::new(),
        Bytes::from_static(b"garbage"),
        Bytes::from(vec![0xff; 4_096]),
        good.slice(..good.len() - 1),
        // Another version; another key; a state that there is not yet; a bit that has turned.
        changed(19, 2),
        changed(40, !good[40]),
        changed(32, 9),
        changed(100, !good[100]),
    ];
    for record in records {
        for outage in [Outage::Closed, Outage::Open] {
            for repeat in [Repeat::AtLeastOnce, Repeat::AtMostOnce] {
                let policy = Policy::scope_public().with_outage(outage).with_repeat(repeat);
                let till = Till::counting(memory.clone(), policy);
                let put = Put::new(record.clone(), 100 * LEASE).with_condition(When::Always);
                memory.put(&place, put).await.unwrap();
                for _ in 0..2 {
                    let answer = till.send(charge("a-key", "")).await;
                    assert_eq!(short(&answer), (503, false, "record-unreadable".into()));
                    sleep(2 * LEASE).await;
                }
                let entry = memory.get(&place, Get::new()).await.unwrap().entry.unwrap();
                assert_eq!((till.executions(), entry.value), (0, record.clone()));
            }
        }
    }
}
