//! The promises of leases, on paused time.

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::{
    task::yield_now,
    time::{Instant, advance, sleep, timeout},
};
use tower_keep::{
    Lease, MemoryStorage, Storage,
    lease::{Attempt, Extension, Leases},
    storage::{ErrorKind, Get, Identity, Key, Name, When},
};

use crate::faulty::{Fault, Faulty, Op};

const TTL: Duration = Duration::from_secs(10);

fn leases(storage: &(impl Storage + Clone)) -> Leases {
    Leases::new(storage.clone(), TTL)
}

fn key() -> Key {
    Key::new(&Name::new("lease"), &Name::new("lease"), Identity::new("job"))
}

async fn take(leases: &Leases) -> Lease {
    leases.try_acquire("job").await.unwrap().acquired().expect("the lease is free")
}

async fn is_free(storage: &MemoryStorage) -> bool {
    storage.get(&key(), Get::new()).await.unwrap().entry.is_none()
}

/// Lets background tasks run that wait for no time to pass.
async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

/// Polls a future at most `times` times; whatever it has come to then is dropped.
async fn poll_and_drop<F: Future>(future: F, times: usize) -> bool {
    let mut future = pin!(future);
    for _ in 0..times {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if polled.is_ready() {
            return true;
        }
        yield_now().await;
    }
    false
}

#[tokio::test(start_paused = true)]
async fn of_64_racers_one_wins() {
    let leases = leases(&Faulty::with_hops(3));
    let racers = (0..64).map(|_| {
        let leases = leases.clone();
        tokio::spawn(async move { leases.try_acquire("job").await.unwrap().acquired() })
    });
    let won: Vec<_> = join_all(racers).await.into_iter().filter_map(|won| won.unwrap()).collect();
    assert_eq!(won.len(), 1);
    assert!(!won[0].is_lost());
}

#[tokio::test(start_paused = true)]
async fn never_more_than_one_of_many_waiting_holds_it_and_fences_rise() {
    let leases = leases(&Faulty::with_hops(2));
    let inside = Arc::new(AtomicBool::new(false));
    let fences = Arc::new(Mutex::new(Vec::new()));
    let workers = (0..16).map(|i| {
        let (leases, inside, fences) = (leases.clone(), inside.clone(), fences.clone());
        tokio::spawn(async move {
            let lease = leases.acquire("job", Duration::from_secs(600)).await.unwrap();
            let lease = lease.acquired().unwrap();
            assert!(!inside.swap(true, Ordering::SeqCst));
            fences.lock().unwrap().push(lease.fence());
            sleep(Duration::from_millis(100 + i * 7)).await;
            inside.store(false, Ordering::SeqCst);
            if i % 2 == 0 {
                assert!(lease.release().await.unwrap());
            }
        })
    });
    for worker in join_all(workers).await {
        worker.unwrap();
    }
    let fences = fences.lock().unwrap();
    assert_eq!(fences.len(), 16);
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fence_stays_over_extensions_and_the_next_holder_has_a_higher_one() {
    let leases = leases(&MemoryStorage::new());
    let first = take(&leases).await;
    let fence = first.fence();
    for _ in 0..5 {
        advance(Duration::from_secs(5)).await;
        assert_eq!(first.extend().await.unwrap(), Extension::Extended);
        assert_eq!(first.fence(), fence);
    }
    first.release().await.unwrap();
    assert!(take(&leases).await.fence() > fence);
}

#[tokio::test(start_paused = true)]
async fn lost_fires_before_expiry_lets_the_next_one_in() {
    let leases = leases(&MemoryStorage::new());
    let start = Instant::now();
    let first = take(&leases).await;
    let lost = tokio::spawn({
        let lost = first.lost();
        async move {
            lost.await;
            Instant::now()
        }
    });
    let second = leases.acquire("job", Duration::MAX).await.unwrap().acquired().unwrap();
    assert_eq!(start.elapsed(), TTL);
    let lost = lost.await.unwrap() - start;
    assert!(lost < TTL && lost > TTL * 98 / 100, "{lost:?}");
    assert!(first.is_lost());
    assert!(second.fence() > first.fence());
}

#[tokio::test(start_paused = true)]
async fn extending_keeps_a_lease_and_moves_lost() {
    let leases = leases(&MemoryStorage::new());
    let lease = take(&leases).await;
    let mut lost = pin!(lease.lost());
    for _ in 0..10 {
        assert!(timeout(Duration::from_secs(9), &mut lost).await.is_err());
        assert_eq!(lease.extend().await.unwrap(), Extension::Extended);
        assert!(leases.try_acquire("job").await.unwrap().acquired().is_none());
    }
    assert!(timeout(TTL, lost).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn time_counts_from_before_the_request_was_sent() {
    let storage = Faulty::new();
    storage.plan(Op::Put, Fault::SlowReply(Duration::from_secs(4)));
    let lease = take(&leases(&storage)).await;
    assert!(lease.remaining() <= Duration::from_secs(6), "{:?}", lease.remaining());
    storage.plan(Op::Put, Fault::SlowReply(Duration::from_secs(3)));
    assert_eq!(lease.extend().await.unwrap(), Extension::Extended);
    assert!(lease.remaining() <= Duration::from_secs(7), "{:?}", lease.remaining());
    assert!(lease.remaining() > Duration::from_secs(6), "{:?}", lease.remaining());
    lease.release().await.unwrap();

    // Read back, the entry tells itself how much is left.
    storage.plan(Op::Put, Fault::TimedOut(Duration::from_secs(4)));
    let lease = take(&leases(&storage)).await;
    assert!(lease.remaining() <= Duration::from_secs(6), "{:?}", lease.remaining());
    assert!(lease.remaining() > Duration::from_secs(5), "{:?}", lease.remaining());
}

#[tokio::test(start_paused = true)]
async fn a_late_owner_neither_extends_nor_releases_what_is_somebody_elses() {
    let storage = Faulty::new();
    let leases = leases(&storage);
    let late = take(&leases).await;
    sleep(TTL).await;
    let current = take(&leases).await;
    let version = storage.get(&key(), Get::new()).await.unwrap().entry.unwrap().version;
    assert_eq!(late.extend().await.unwrap(), Extension::Lost);
    assert!(!late.release().await.unwrap());
    let entry = storage.get(&key(), Get::new()).await.unwrap().entry.unwrap();
    assert_eq!((entry.version, version.as_u64()), (version, current.fence()));
    assert_eq!(current.extend().await.unwrap(), Extension::Extended);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_robbed_learns_of_it_and_does_no_harm() {
    let storage = MemoryStorage::new();
    let leases = leases(&storage);
    let robbed = take(&leases).await;
    storage.delete(&key(), When::Always).await.unwrap();
    let current = take(&leases).await;
    // Its own clock says that it is still held, so only the storage can refuse.
    assert!(!robbed.is_lost());
    let lost = robbed.lost();
    assert_eq!(robbed.extend().await.unwrap(), Extension::Lost);
    assert!(robbed.is_lost());
    assert!(lost.now_or_never().is_some());
    drop(robbed);
    settle().await;
    assert_eq!(current.extend().await.unwrap(), Extension::Extended);
}

#[tokio::test(start_paused = true)]
async fn an_answer_after_the_time_has_run_out_does_not_bring_a_lease_back() {
    let storage = Faulty::new();
    let leases = leases(&storage);
    let start = Instant::now();
    let lease = take(&leases).await;
    sleep(Duration::from_secs(9)).await;
    storage.plan(Op::Put, Fault::SlowReply(Duration::from_secs(5)));
    assert_eq!(lease.extend().await.unwrap(), Extension::Lost);
    assert!(start.elapsed() < TTL);
    assert!(lease.lost().now_or_never().is_some());
    // From then on the storage is not even asked.
    let calls = storage.calls();
    assert_eq!(lease.extend().await.unwrap(), Extension::Lost);
    assert_eq!(storage.calls(), calls);
    // The storage has extended it; giving it back is the lost owner's last duty.
    drop(lease);
    settle().await;
    take(&leases).await.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_finds_its_lease_lost_though_the_answer_has_come() {
    let storage = Faulty::new();
    let lease = take(&leases(&storage)).await;
    sleep(Duration::from_secs(9)).await;
    storage.plan(Op::Put, Fault::SlowReply(Duration::from_secs(1)));
    let mut extending = pin!(lease.extend());
    assert!(extending.as_mut().now_or_never().is_none());
    // Neither the answer nor the deadline is seen before both have passed.
    advance(Duration::from_secs(5)).await;
    assert_eq!(extending.await.unwrap(), Extension::Lost);
    assert!(lease.is_lost());
}

#[tokio::test(start_paused = true)]
async fn release_lets_the_next_one_in_at_once() {
    let leases = leases(&MemoryStorage::new());
    let lease = take(&leases).await;
    let lost = lease.lost();
    assert!(lease.release().await.unwrap());
    assert!(lost.now_or_never().is_some());
    assert!(take(&leases).await.release().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn release_and_drop_need_one_command_each_when_all_is_well() {
    let storage = Faulty::new();
    let leases = leases(&storage);
    take(&leases).await.release().await.unwrap();
    settle().await;
    assert_eq!(storage.calls(), 2);
    drop(take(&leases).await);
    settle().await;
    assert_eq!(storage.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn drop_releases() {
    let leases = leases(&MemoryStorage::new());
    let lease = take(&leases).await;
    let lost = lease.lost();
    drop(lease);
    assert!(lost.now_or_never().is_some());
    settle().await;
    drop(take(&leases).await);
}

#[test]
fn drop_outside_of_a_runtime_releases_and_after_its_end_does_not_panic() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let leases = leases(&MemoryStorage::new());
    let (one, other) = runtime.block_on(async {
        let other = leases.try_acquire("other").await.unwrap().acquired().unwrap();
        (take(&leases).await, other)
    });
    drop(one);
    let next = runtime.block_on(leases.acquire("job", Duration::from_secs(5)));
    let next = next.unwrap().acquired().unwrap();
    drop(runtime);
    drop((next, other));
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_keeps_a_lease_over_many_lives_and_stops_with_it() {
    let storage = Faulty::new();
    let leases = leases(&storage).with_heartbeat();
    let lease = take(&leases).await;
    let fence = lease.fence();
    assert!(timeout(TTL * 50, lease.lost()).await.is_err());
    assert!(lease.remaining() > TTL / 2);
    assert_eq!(lease.fence(), fence);
    let calls = storage.calls();
    assert!((149..=151).contains(&calls), "{calls} calls");
    drop((lease, leases));
    settle().await;
    assert_eq!(Arc::strong_count(&storage.calls), 1, "the heartbeat's task is still there");
    assert!(is_free(&storage.memory).await);
    let calls = storage.calls();
    sleep(TTL * 5).await;
    assert_eq!(storage.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_survives_faults_that_are_shorter_than_the_lease() {
    let storage = Faulty::new();
    let lease = take(&leases(&storage).with_heartbeat()).await;
    for fault in [
        Fault::Refused,
        Fault::ReplyLost,
        Fault::NoAnswer,
        Fault::SlowReply(Duration::from_secs(2)),
        Fault::Late(Duration::from_millis(300)),
    ] {
        storage.plan(Op::Put, fault);
        assert!(timeout(TTL * 2, lease.lost()).await.is_err(), "{fault:?}");
    }
    storage.set_down(true);
    sleep(TTL / 2).await;
    storage.set_down(false);
    assert!(timeout(TTL * 3, lease.lost()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_lost_fires_by_the_deadline() {
    for heartbeat in [false, true] {
        let storage = Faulty::new();
        let leases = leases(&storage);
        let leases = if heartbeat { leases.with_heartbeat() } else { leases };
        let start = Instant::now();
        let lease = take(&leases).await;
        storage.set_down(true);
        assert!(lease.extend().await.is_err());
        assert!(!lease.is_lost());
        lease.lost().await;
        assert!(start.elapsed() < TTL);
        storage.set_down(false);
        assert_eq!(lease.extend().await.unwrap(), Extension::Lost);
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_hangs_does_not_hold_lost_back() {
    let storage = Faulty::new();
    let start = Instant::now();
    let lease = take(&leases(&storage).with_heartbeat()).await;
    for _ in 0..100 {
        storage.plan(Op::Put, Fault::Late(TTL * 2));
        storage.plan(Op::Get, Fault::NoAnswer);
    }
    lease.lost().await;
    assert!(start.elapsed() < TTL);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_an_acquisition_is_settled_by_reading_back() {
    let storage = Faulty::new();
    let leases = leases(&storage);
    storage.plan(Op::Put, Fault::ReplyLost);
    let lease = take(&leases).await;
    assert!(leases.try_acquire("job").await.unwrap().acquired().is_none());
    let version = storage.get(&key(), Get::new()).await.unwrap().entry.unwrap().version;
    assert_eq!(lease.fence(), version.as_u64());
    assert_eq!(lease.extend().await.unwrap(), Extension::Extended);
    assert!(lease.release().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_refused_acquisition_is_an_error_and_leaves_nothing() {
    let storage = Faulty::new();
    storage.plan(Op::Put, Fault::Refused);
    let error = leases(&storage).try_acquire("job").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(is_free(&storage.memory).await);
}

#[tokio::test(start_paused = true)]
async fn an_acquisition_that_cannot_be_settled_is_cleared_in_the_background() {
    let storage = Faulty::new();
    storage.plan(Op::Put, Fault::ReplyLost);
    storage.plan(Op::Get, Fault::Refused);
    let error = leases(&storage).try_acquire("job").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(!is_free(&storage.memory).await);
    settle().await;
    assert!(is_free(&storage.memory).await);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_acquire_never_conflicts_with_its_own_earlier_try() {
    let start = Instant::now();
    for fault in [Fault::ReplyLost, Fault::Late(Duration::from_millis(1)), Fault::Refused] {
        let storage = Faulty::new();
        storage.plan(Op::Put, fault);
        storage.plan(Op::Get, Fault::Refused);
        let lease = leases(&storage).acquire("job", TTL).await.unwrap().acquired().unwrap();
        assert!(lease.remaining() > TTL * 98 / 100);
        assert!(lease.release().await.unwrap());
    }
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_gets_no_answer_ends_with_the_ttl() {
    let storage = Faulty::new();
    storage.plan(Op::Put, Fault::NoAnswer);
    let start = Instant::now();
    let error = leases(&storage).try_acquire("job").await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, TTL));
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_an_extension_is_adopted() {
    let storage = Faulty::new();
    let leases = leases(&storage);
    let lease = take(&leases).await;
    advance(Duration::from_secs(5)).await;
    storage.plan(Op::Put, Fault::ReplyLost);
    assert_eq!(lease.extend().await.unwrap(), Extension::Extended);
    assert!(lease.remaining() > TTL * 98 / 100);

    // Not even reading back works: the next call meets its own token and goes on from there.
    advance(Duration::from_secs(5)).await;
    storage.plan(Op::Put, Fault::ReplyLost);
    storage.plan(Op::Get, Fault::Refused);
    assert!(lease.extend().await.is_err());
    assert!(lease.remaining() < TTL / 2);
    assert_eq!(lease.extend().await.unwrap(), Extension::Extended);
    assert!(lease.remaining() > TTL * 98 / 100);
    assert!(lease.release().await.unwrap());
    assert!(is_free(&storage.memory).await);
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_arrives_late_does_not_keep_a_lease_from_its_owner() {
    let storage = Faulty::new();
    let lease = take(&leases(&storage)).await;
    storage.plan(Op::Put, Fault::Late(Duration::from_secs(1)));
    assert!(lease.extend().await.is_err());
    sleep(Duration::from_secs(2)).await;
    assert!(lease.release().await.unwrap());
    assert!(is_free(&storage.memory).await);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_a_release_is_settled_by_reading_back() {
    let storage = Faulty::new();
    let lease = take(&leases(&storage)).await;
    storage.plan(Op::Delete, Fault::ReplyLost);
    assert!(lease.release().await.unwrap());
    assert!(is_free(&storage.memory).await);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_is_an_error_and_the_lease_ends_by_itself() {
    let storage = Faulty::new();
    let leases = leases(&storage);
    let lease = take(&leases).await;
    storage.set_down(true);
    assert!(lease.release().await.is_err());
    settle().await;
    storage.set_down(false);
    assert!(leases.try_acquire("job").await.unwrap().acquired().is_none());
    sleep(TTL).await;
    drop(take(&leases).await);
}

#[tokio::test(start_paused = true)]
async fn overlapping_extensions_do_not_lose_the_lease() {
    let storage = Faulty::with_hops(3);
    let lease = take(&leases(&storage).with_heartbeat()).await;
    for _ in 0..20 {
        let answers = join_all((0..8).map(|_| lease.extend())).await;
        assert!(answers.into_iter().all(|answer| answer.unwrap() == Extension::Extended));
        sleep(TTL / 5).await;
    }
    assert!(lease.release().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_acquisition_dropped_anywhere_leaves_nothing() {
    let mut finished = BTreeSet::new();
    for times in 1..60 {
        for faulty in [false, true] {
            let storage = Faulty::with_hops(4);
            if faulty {
                storage.plan(Op::Put, Fault::ReplyLost);
            }
            let leases = leases(&storage).with_heartbeat();
            let done = poll_and_drop(leases.try_acquire("job"), times).await;
            finished.insert(done);
            settle().await;
            assert!(is_free(&storage.memory).await, "after {times} polls");
            poll_and_drop(leases.acquire("job", TTL), times).await;
            settle().await;
            assert!(is_free(&storage.memory).await, "after {times} polls of a waiting call");
        }
    }
    assert_eq!(finished.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_extension_or_release_dropped_anywhere_leaves_nothing_beyond_the_ttl() {
    for times in 1..60 {
        for faulty in [false, true] {
            let storage = Faulty::with_hops(4);
            let lease = take(&leases(&storage)).await;
            if faulty {
                storage.plan(Op::Put, Fault::ReplyLost);
                storage.plan(Op::Delete, Fault::ReplyLost);
            }
            poll_and_drop(lease.extend(), times).await;
            assert!(!lease.is_lost());
            assert_eq!(lease.extend().await.unwrap(), Extension::Extended);
            poll_and_drop(lease.release(), times).await;
            settle().await;
            assert!(is_free(&storage.memory).await, "after {times} polls");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn when_nothing_can_be_cleared_nothing_outlives_the_ttl() {
    for times in 1..40 {
        let storage = Faulty::with_hops(4);
        let leases = leases(&storage).with_heartbeat();
        poll_and_drop(leases.try_acquire("job"), times).await;
        storage.set_down(true);
        settle().await;
        sleep(TTL).await;
        assert!(is_free(&storage.memory).await, "after {times} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_acquire_is_bounded() {
    let storage = Faulty::new();
    let leases = leases(&storage);
    let holder = take(&leases.clone().with_heartbeat()).await;
    for wait in [0, 1, 9, 50, 1_000, 30_000].map(Duration::from_millis) {
        let start = Instant::now();
        let Attempt::Held { remaining } = leases.acquire("job", wait).await.unwrap() else {
            panic!("two holders");
        };
        assert!(remaining <= TTL);
        let took = start.elapsed();
        assert!(took <= wait && took + Duration::from_millis(11) >= wait, "{took:?} of {wait:?}");
    }
    drop(holder);
    settle().await;

    let start = Instant::now();
    let wait = Duration::from_secs(3);
    storage.set_down(true);
    let error = leases.acquire("job", wait).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(start.elapsed() <= wait);
    storage.set_down(false);

    let start = Instant::now();
    storage.plan(Op::Put, Fault::NoAnswer);
    let error = leases.acquire("job", wait).await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (ErrorKind::Timeout, wait));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_acquire_asks_rarely_and_wakes_with_the_holders_expiry() {
    let storage = Faulty::new();
    let leases = leases(&storage);
    let start = Instant::now();
    let holder = take(&leases).await;
    let next = leases.acquire("job", TTL * 2).await.unwrap().acquired().unwrap();
    assert_eq!(start.elapsed(), TTL);
    assert!(storage.calls() < 60, "{} calls", storage.calls());
    drop(holder);
    settle().await;
    assert_eq!(next.extend().await.unwrap(), Extension::Extended);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_acquire_outlasts_an_outage() {
    let storage = Faulty::new();
    storage.set_down(true);
    let waiting = tokio::spawn({
        let leases = leases(&storage);
        async move { leases.acquire("job", TTL).await.unwrap().acquired().is_some() }
    });
    sleep(Duration::from_secs(3)).await;
    storage.set_down(false);
    assert!(waiting.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn names_and_namespaces_do_not_collide() {
    let leases = leases(&MemoryStorage::new());
    let one = take(&leases).await;
    let two = leases.try_acquire("other").await.unwrap().acquired().unwrap();
    let three = take(&leases.clone().with_namespace(Name::new("fills"))).await;
    assert!(!one.is_lost() && !two.is_lost() && !three.is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_ttl_may_be_very_long_but_not_shorter_than_ten_milliseconds() {
    let leases = leases(&MemoryStorage::new());
    let short = leases.clone().with_ttl(Duration::from_millis(9));
    assert_eq!(short.try_acquire("job").await.unwrap_err().kind(), ErrorKind::Invalid);
    let brief = take(&leases.clone().with_ttl(Duration::from_millis(10))).await;
    assert!(!brief.is_lost());
    brief.release().await.unwrap();
    let long = take(&leases.with_ttl(Duration::MAX)).await;
    assert!(timeout(TTL, long.lost()).await.is_err());
}

#[test]
fn everything_can_be_moved_to_and_shared_with_other_threads() {
    fn check<T: Send + Sync + 'static>() {}
    fn check_value<T: Send>(_: &T) {}
    check::<Leases>();
    check::<Lease>();
    check::<Attempt>();
    let _never_run = async |leases: Leases| {
        check_value(&leases.acquire("job", TTL));
        let lease = take(&leases).await;
        check_value(&lease.extend());
        check_value(&lease.release());
    };
}

#[tokio::test(start_paused = true)]
async fn debug_shows_no_name() {
    let leases = leases(&MemoryStorage::new());
    let lease = leases.try_acquire("secret").await.unwrap();
    assert!(!format!("{leases:?} {lease:?}").contains("secret"));
}
