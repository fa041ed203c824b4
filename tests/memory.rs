//! What the memory backend promises beyond the contract: bounds, small steps, and who gives way.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::advance;
use tower_keep::{
    MemoryStorage, Quota, Storage,
    quota::Algorithm,
    storage::{
        Charge, ErrorKind, Get, Identity, Invalidation, Key, Name, Put, PutOutcome, Result, Spend,
        Tag, Tags, Touch, Verdict, When,
    },
};

const MINUTE: Duration = Duration::from_secs(60);
/// The most slots that any operation below may look at, move or link anew, besides evictions of
/// large values.
const MOST_WORK: usize = 100;
const PER_MINUTE: Quota = Quota::sliding_window(10, MINUTE);

fn key(identity: impl Into<Identity>) -> Key {
    Key::new(&Name::new("test"), &Name::new("it"), identity.into())
}

fn number(n: u64) -> Key {
    key(Identity::new(n.to_be_bytes()))
}

fn address(n: u32) -> Key {
    key(IpAddr::from(Ipv4Addr::from_bits(n)))
}

/// Operations of the memory backend never wait.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the memory backend answers at once")
}

fn spend(storage: &MemoryStorage, key: &Key, quota: Quota, spend: Spend) -> Verdict {
    now(storage.acquire(&[Charge::new(key, quota, spend)])).unwrap()[0]
}

fn take(storage: &MemoryStorage, key: &Key) -> Verdict {
    spend(storage, key, PER_MINUTE, Spend::Take(1))
}

fn put(storage: &MemoryStorage, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
    now(storage.put(key, put))
}

fn value(len: usize) -> Put<'static> {
    Put::new(Bytes::from(vec![7; len]), MINUTE)
}

fn is_there(storage: &MemoryStorage, key: &Key) -> bool {
    now(storage.get(key, Get::new())).unwrap().entry.is_some()
}

fn is_full<T>(result: Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::Full)
}

#[tokio::test(start_paused = true)]
async fn a_counter_takes_less_than_the_stated_80_bytes() {
    let storage = MemoryStorage::new();
    let (empty, count) = (storage.stats().bytes, 100_000);
    for n in 0..count {
        take(&storage, &number(n));
    }
    let each = (storage.stats().bytes - empty) as f64 / count as f64;
    println!("{each:.1} bytes per identity");
    assert!(each < 80.0, "{each} bytes per identity");
}

#[tokio::test(start_paused = true)]
async fn an_entry_takes_less_than_the_stated_overhead() {
    let storage = MemoryStorage::new();
    let (mut before, count) = (storage.stats().bytes, 50_000);
    for n in 0..count {
        put(&storage, &number(n), value(100)).unwrap();
    }
    let each = (storage.stats().bytes - before) as f64 / count as f64 - 100.0;
    println!("{each:.1} bytes per entry");
    assert!(each < 160.0, "{each} bytes per entry");

    before = storage.stats().bytes;
    let fence = now(storage.get(&key("fence"), Get::new().with_fence())).unwrap().fence.unwrap();
    let tags = [Tag::new("a")];
    for n in count..2 * count {
        let tagged = value(100).with_max_lifetime(MINUTE).with_fence(fence).with_tags(&tags);
        put(&storage, &number(n), tagged).unwrap();
    }
    let tagged = (storage.stats().bytes - before) as f64 / count as f64 - 100.0;
    println!("{tagged:.1} bytes per tagged entry");
    assert!(tagged < 160.0 + 130.0, "{tagged} bytes per tagged entry");
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_dropped_by_later_operations_in_small_steps() {
    let storage = MemoryStorage::new();
    for n in 0..50_000 {
        take(&storage, &number(n));
        put(&storage, &number(n), value(20)).unwrap();
    }
    let full = storage.stats();
    assert_eq!((full.counters, full.entries), (50_000, 50_000));
    advance(3 * MINUTE).await;
    assert_eq!(storage.stats().counters, 50_000, "nothing happens by itself");
    for n in 0..30_000 {
        take(&storage, &number(n % 100));
        is_there(&storage, &number(n % 100));
    }
    assert!(storage.stats().counters < 25_000, "reads and charges drop what they meet");
    for n in 0..25_000 {
        take(&storage, &number(1_000_000 + n));
        put(&storage, &number(1_000_000 + n), value(20)).unwrap();
    }
    let stats = storage.stats();
    assert!(stats.counters <= 25_100 && stats.entries <= 25_100, "{stats:?}");
    assert!(stats.bytes < full.bytes * 6 / 10, "{} of {}", stats.bytes, full.bytes);
    assert!(stats.most_work <= MOST_WORK, "{} slots in one operation", stats.most_work);
}

#[tokio::test(start_paused = true)]
async fn memory_stays_level_when_new_identities_take_the_place_of_expired_ones() {
    let storage = MemoryStorage::new();
    let mut peak = 0;
    for round in 0..5 {
        for n in 0..10_000 {
            take(&storage, &number(round * 10_000 + n));
            put(&storage, &number(round * 10_000 + n), value(50)).unwrap();
        }
        if round == 0 {
            peak = storage.stats().bytes;
        }
        let bytes = storage.stats().bytes;
        assert!(bytes < peak + peak / 10, "round {round}: {bytes}, at first {peak}");
        advance(3 * MINUTE).await;
    }
    assert!(storage.stats().most_work <= MOST_WORK);
}

#[tokio::test(start_paused = true)]
async fn invalidated_entries_are_dropped_by_later_operations() {
    let storage = MemoryStorage::new();
    let fence = now(storage.get(&key("fence"), Get::new().with_fence())).unwrap().fence.unwrap();
    let long = Duration::from_secs(86_400);
    for n in 0..10_000 {
        let entry = Put::new(Bytes::from_static(b"page"), long).with_max_lifetime(long);
        put(&storage, &number(n), entry.with_fence(fence)).unwrap();
    }
    now(storage.invalidate(&Name::new("test"), Tags::All, Invalidation::Hard)).unwrap();
    for n in 0..10_000 {
        assert!(!is_there(&storage, &number(20_000 + n)));
    }
    assert_eq!(storage.stats().entries, 0);
    assert!(storage.stats().most_work <= MOST_WORK);
}

#[tokio::test(start_paused = true)]
async fn a_flood_neither_frees_an_offender_nor_locks_newcomers_out() {
    let storage = MemoryStorage::builder().max_counters(5_000).build();
    let offender = address(0x0A00_0001);
    for _ in 0..10 {
        assert!(take(&storage, &offender).allowed);
    }
    assert!(!take(&storage, &offender).allowed);
    // One network makes up addresses.
    for n in 0..50_000_u32 {
        take(&storage, &address(0xC633_0000 | (n & 0xFFFF)));
        if n % 1_000 == 0 {
            assert!(!take(&storage, &offender).allowed, "after {n} made-up addresses");
        }
    }
    let stats = storage.stats();
    assert!(stats.counters <= 5_000 && stats.overflowed > 0, "{stats:?}");
    assert!(!take(&storage, &offender).allowed);
    assert!(!take(&storage, &address(0xC633_FFFF)).allowed, "the network shares one bucket");
    let served = (0..200_u32).filter(|n| take(&storage, &address((20 + n) << 24)).allowed).count();
    assert!(served >= 195, "{served} of 200 newcomers of other networks were served");
    assert!(storage.stats().most_work <= MOST_WORK);
}

#[tokio::test(start_paused = true)]
async fn takes_and_refunds_of_an_overflowed_identity_act_on_its_bucket() {
    let storage = MemoryStorage::builder().max_counters(0).build();
    let (one, neighbour) = (address(0x0A00_0001), address(0x0A00_0002));
    let receipt = spend(&storage, &one, PER_MINUTE, Spend::Take(8)).receipt.unwrap();
    assert_eq!(spend(&storage, &neighbour, PER_MINUTE, Spend::Peek).remaining, 2);
    assert!(!spend(&storage, &neighbour, PER_MINUTE, Spend::Take(3)).allowed);
    let refund = Spend::Refund { units: 5, receipt };
    assert_eq!(spend(&storage, &one, PER_MINUTE, refund).remaining, 7);
    assert_eq!(spend(&storage, &neighbour, PER_MINUTE, Spend::Peek).remaining, 7);
    assert_eq!(storage.stats().counters, 0);
    assert_eq!(storage.stats().overflowed, 3);
}

#[tokio::test(start_paused = true)]
async fn a_reset_of_an_overflowed_identity_gives_its_neighbours_nothing() {
    let storage = MemoryStorage::builder().max_counters(0).build();
    let (one, neighbour) = (address(0x0A00_0001), address(0x0A00_0002));
    let receipt = spend(&storage, &one, PER_MINUTE, Spend::Take(10)).receipt.unwrap();
    let verdict = spend(&storage, &one, PER_MINUTE, Spend::Reset);
    assert!(verdict.allowed && verdict.remaining == 0 && verdict.receipt.is_none());
    assert!(!take(&storage, &neighbour).allowed);
    let refund = Spend::Refund { units: 1, receipt };
    assert_eq!(spend(&storage, &one, PER_MINUTE, refund).remaining, 1, "receipts are still good");
}

#[tokio::test(start_paused = true)]
async fn a_reset_of_an_identity_with_a_counter_of_its_own_works_while_others_share() {
    let storage = MemoryStorage::builder().max_counters(1).build();
    let (own, sharing) = (address(0x0A00_0001), address(0x0A00_0002));
    assert_eq!(spend(&storage, &own, PER_MINUTE, Spend::Take(10)).remaining, 0);
    assert_eq!(spend(&storage, &sharing, PER_MINUTE, Spend::Take(10)).remaining, 0);
    assert_eq!(spend(&storage, &own, PER_MINUTE, Spend::Reset).remaining, 10);
    assert!(!take(&storage, &sharing).allowed);
}

#[tokio::test(start_paused = true)]
async fn two_charges_of_one_call_that_share_a_bucket_cannot_take_twice() {
    let storage = MemoryStorage::builder().max_counters(0).build();
    let (one, two) = (address(0x0A00_0001), address(0x0A00_0002));
    let both = |units| {
        let charge = |key| Charge::new(key, PER_MINUTE, Spend::Take(units));
        now(storage.acquire(&[charge(&one), charge(&two)])).unwrap()
    };
    let verdicts = both(6);
    assert!(verdicts[0].allowed && !verdicts[1].allowed);
    assert_eq!(spend(&storage, &one, PER_MINUTE, Spend::Peek).remaining, 10, "nothing was taken");
    assert_eq!(both(5)[1].remaining, 0);
    assert!(!take(&storage, &two).allowed);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_a_shared_bucket_keeps_what_was_used() {
    let storage = MemoryStorage::builder().max_bytes(1 << 20).max_counters(1).build();
    let quota = Quota::token_bucket(10, MINUTE, 10);
    let (first, second) = (address(0x0A00_0001), address(0x0B00_0001));
    let short = Quota::fixed_window(1, Duration::from_secs(1));
    spend(&storage, &first, short, Spend::Take(1));
    let receipt = spend(&storage, &second, quota, Spend::Take(10)).receipt.unwrap();
    assert_eq!(storage.stats().overflowed, 1);
    advance(Duration::from_secs(6)).await;
    assert!(spend(&storage, &second, quota, Spend::Take(1)).allowed);
    assert_eq!(storage.stats().overflowed, 1, "it has a counter of its own now");
    assert!(!spend(&storage, &second, quota, Spend::Take(1)).allowed);
    let refund = Spend::Refund { units: 1, receipt };
    assert_eq!(spend(&storage, &second, quota, refund).remaining, 1);
    assert!(spend(&storage, &second, quota, Spend::Take(1)).allowed);
}

#[tokio::test(start_paused = true)]
async fn newcomers_have_counters_of_their_own_again_once_others_have_expired() {
    let storage = MemoryStorage::builder().max_counters(1_000).build();
    for n in 0..2_000 {
        take(&storage, &number(n));
    }
    advance(3 * MINUTE).await;
    let before = storage.stats().overflowed;
    for n in 5_000..5_500 {
        assert_eq!(take(&storage, &number(n)).remaining, 9);
    }
    let shared = storage.stats().overflowed - before;
    assert!(shared < 10, "{shared} of 500 still shared");
}

#[tokio::test(start_paused = true)]
async fn a_charge_that_changes_nothing_leaves_no_counter() {
    let storage = MemoryStorage::new();
    let receipt = take(&storage, &key("other")).receipt.unwrap();
    for spent in [
        Spend::Peek,
        Spend::Take(0),
        Spend::Take(11),
        Spend::Force(0),
        Spend::Reset,
        Spend::Refund { units: 1, receipt },
    ] {
        spend(&storage, &key("newcomer"), PER_MINUTE, spent);
    }
    assert_eq!(storage.stats().counters, 1);
}

#[tokio::test(start_paused = true)]
async fn distinct_identities_without_end_stay_under_the_bound() {
    let count: u64 =
        if std::env::var_os("TOWER_KEEP_LONG").is_some() { 10_000_000 } else { 1_000_000 };
    let bound = 16 << 20;
    let storage = MemoryStorage::builder().max_bytes(bound).build();
    let mut peak = 0;
    for n in 0..count {
        take(&storage, &number(n));
        if n % 1_000 == 0 {
            advance(Duration::from_millis(1)).await;
            peak = peak.max(storage.stats().bytes);
        }
    }
    let stats = storage.stats();
    println!("{count} identities: at most {peak} of {bound} bytes, {stats:?}");
    assert!(peak <= bound && stats.overflowed > count / 2);
    assert!(stats.most_work <= MOST_WORK, "{} slots in one operation", stats.most_work);
}

#[tokio::test(start_paused = true)]
async fn only_evictable_entries_give_way() {
    let storage = MemoryStorage::builder().max_bytes(4 << 20).build();
    for n in 0..100 {
        put(&storage, &number(n), value(1_000)).unwrap();
        take(&storage, &number(n));
    }
    for n in 1_000..21_000 {
        put(&storage, &number(n), value(1_000).with_eviction()).unwrap();
    }
    let stats = storage.stats();
    assert!(stats.bytes <= 4 << 20 && stats.entries > 2_500, "{stats:?}");
    assert!((0..100).all(|n| is_there(&storage, &number(n))), "a pinned entry was evicted");
    assert!((0..100).all(|n| take(&storage, &number(n)).remaining == 8), "a counter was evicted");
    assert!(is_there(&storage, &number(20_999)), "what was put last is there");
    assert!(stats.most_work <= MOST_WORK, "{} slots in one operation", stats.most_work);
}

#[tokio::test(start_paused = true)]
async fn what_is_used_outlives_what_is_not() {
    let storage = MemoryStorage::builder().max_entries(1_000).build();
    for n in 0..5_000 {
        put(&storage, &number(n), value(10).with_eviction()).unwrap();
        for used in 0..10 {
            is_there(&storage, &number(used));
        }
    }
    let kept = (0..10).filter(|n| is_there(&storage, &number(*n))).count();
    assert!(kept >= 9, "{kept} of 10 entries in constant use are left");
    assert!(storage.stats().entries <= 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_put_that_finds_no_room_is_refused_and_changes_nothing() {
    let storage = MemoryStorage::builder().max_bytes(1 << 20).build();
    let mut stored = 0;
    while put(&storage, &number(stored), value(1_000)).is_ok() {
        stored += 1;
        assert!(stored < 2_000, "the bound does not hold");
    }
    assert!(stored > 400, "{stored} values fit");
    assert!(is_full(put(&storage, &key("another"), value(1_000))));
    assert!(is_full(put(&storage, &key("another"), value(1_000).with_eviction())));
    assert!(is_full(put(&storage, &number(0), value(100_000))), "an overwrite is a put, too");
    assert!((0..stored).all(|n| is_there(&storage, &number(n))));
    put(&storage, &number(0), value(1_000)).unwrap();
    assert!(take(&storage, &key("newcomer")).allowed, "a newcomer shares a counter");
    assert!(now(storage.delete(&number(0), When::Always)).unwrap());
    put(&storage, &key("another"), value(900)).unwrap();
    advance(2 * MINUTE).await;
    put(&storage, &key("late"), value(1_000)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn entries_are_bounded_in_number_too() {
    let storage = MemoryStorage::builder().max_entries(10).build();
    for n in 0..10 {
        put(&storage, &number(n), value(1)).unwrap();
    }
    assert!(is_full(put(&storage, &number(10), value(1))));
    put(&storage, &number(3), value(2)).unwrap();
    assert!(now(storage.delete(&number(3), When::Always)).unwrap());
    put(&storage, &number(10), value(1).with_eviction()).unwrap();
    put(&storage, &number(11), value(1)).unwrap();
    assert!(!is_there(&storage, &number(10)), "the one that could was evicted");
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_fills_the_storage_makes_room_for_counters() {
    let storage = MemoryStorage::builder().max_bytes(2 << 20).build();
    for n in 0..10_000 {
        put(&storage, &number(n), value(500).with_eviction()).unwrap();
    }
    for n in 0..5_000 {
        assert_eq!(take(&storage, &number(n)).remaining, 9);
    }
    let stats = storage.stats();
    assert_eq!((stats.counters, stats.overflowed), (5_000, 0));
    assert!(stats.bytes <= 2 << 20 && stats.entries > 100);
}

#[tokio::test(start_paused = true)]
async fn an_entry_may_change_between_evictable_and_not() {
    let storage = MemoryStorage::builder().max_entries(20).build();
    for n in 0..20 {
        put(&storage, &number(n), value(10).with_eviction()).unwrap();
    }
    put(&storage, &number(5), value(11)).unwrap();
    for n in 20..200 {
        put(&storage, &number(n), value(10).with_eviction()).unwrap();
    }
    assert!(is_there(&storage, &number(5)), "it was pinned");
    put(&storage, &number(5), value(12).with_eviction()).unwrap();
    for n in 200..400 {
        put(&storage, &number(n), value(10).with_eviction()).unwrap();
    }
    assert!(!is_there(&storage, &number(5)), "it may go again");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_cannot_grow_forgets_nothing() {
    let storage = MemoryStorage::builder().max_bytes(1 << 20).build();
    let quota = Quota::sliding_log(100, MINUTE);
    let log = key("log");
    assert!(spend(&storage, &log, quota, Spend::Take(1)).allowed);
    let mut n = 0;
    for len in [10_000, 1_000, 100, 1] {
        while put(&storage, &number(n), value(len)).is_ok() {
            n += 1;
            assert!(n < 20_000, "the bound does not hold");
        }
    }
    for used in 2..=100 {
        advance(Duration::from_millis(1)).await;
        let verdict = spend(&storage, &log, quota, Spend::Take(1));
        assert!(verdict.allowed && verdict.remaining == 100 - used);
    }
    assert!(!spend(&storage, &log, quota, Spend::Take(1)).allowed);
    assert!(storage.stats().bytes <= 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn the_shared_logs_of_one_policy_leave_room_for_the_buckets_of_others() {
    let storage = MemoryStorage::builder().max_bytes(1 << 20).max_counters(0).build();
    let quota = Quota::sliding_log(100, 60 * MINUTE);
    for n in 0..40_000 {
        if n % 100 == 0 {
            advance(Duration::from_micros(1)).await;
        }
        spend(&storage, &number(n), quota, Spend::Take(1));
    }
    let other = Key::new(&Name::new("test"), &Name::new("other"), Identity::new("newcomer"));
    assert!(take(&storage, &other).allowed);
    assert!(storage.stats().bytes <= 1 << 20);
    // About 39 of each bucket.
    for n in 0..1_000 {
        assert!(
            spend(&storage, &number(n), quota, Spend::Peek).remaining < 95,
            "{n} was forgotten"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn newcomers_that_fit_one_by_one_but_not_together_share() {
    let storage = MemoryStorage::builder().max_bytes(1 << 20).build();
    let quota = Quota::try_new(Algorithm::StrictWindow { slots: 60 }, 5, MINUTE).unwrap();
    // The tables have room, and of the bytes are left what one of two states takes.
    assert!(take(&storage, &number(0)).allowed);
    put(&storage, &key("filler"), value(1)).unwrap();
    let bound = (1 << 20) - (256 << 10);
    let left = || bound - storage.stats().bytes;
    put(&storage, &key("filler"), value(left() / 16 * 16 - 360)).unwrap();
    assert!((256..512).contains(&left()), "{} bytes are left", left());

    let (one, two) = (address(0x0A00_0001), address(0x0B00_0001));
    let both = [&one, &two].map(|key| Charge::new(key, quota, Spend::Take(5)));
    let verdicts = now(storage.acquire(&both)).unwrap();
    assert!(verdicts.iter().all(|verdict| verdict.allowed));
    let verdicts = now(storage.acquire(&both)).unwrap();
    assert!(verdicts.iter().all(|verdict| !verdict.allowed));
    assert!(storage.stats().overflowed > 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_that_a_caller_passes_overflows() {
    let storage = MemoryStorage::new();
    let long = Duration::MAX;
    let entry = Put::new(Bytes::from_static(b"x"), long).with_max_lifetime(long);
    assert!(matches!(put(&storage, &key("x"), entry).unwrap(), PutOutcome::Stored(_)));
    let touched =
        now(storage
            .get(&key("x"), Get::new().with_touch(Touch { ttl: long, slack: Duration::ZERO })))
        .unwrap();
    assert!(touched.entry.unwrap().ttl > Duration::from_secs(86_400 * 365 * 99));
    let year = Duration::from_secs(366 * 86_400);
    for quota in [
        Quota::sliding_window(u32::MAX, year),
        Quota::fixed_window(u32::MAX, year),
        Quota::token_bucket(1, year, 99),
        Quota::token_bucket(u32::MAX, Duration::from_millis(1), u32::MAX),
        Quota::strict_window(u32::MAX, year),
        Quota::sliding_log(1_000, year),
    ] {
        let key = key(Identity::new(quota.to_string()));
        let receipt = spend(&storage, &key, quota, Spend::Force(u32::MAX)).receipt.unwrap();
        spend(&storage, &key, quota, Spend::Force(u32::MAX));
        spend(&storage, &key, quota, Spend::Take(u32::MAX));
        spend(&storage, &key, quota, Spend::Refund { units: u32::MAX, receipt });
        spend(&storage, &key, quota, Spend::Reset);
    }
    assert!(now(storage.acquire(&[])).unwrap().is_empty());
    let tiny = MemoryStorage::builder().max_bytes(0).max_counters(0).max_entries(0).build();
    assert!(take(&tiny, &key("x")).allowed);
    assert!(is_full(put(&tiny, &key("x"), value(0))));
}

#[tokio::test(start_paused = true)]
async fn debug_shows_sizes_and_nothing_else() {
    let storage = MemoryStorage::new();
    put(&storage, &key("secret-key"), Put::new(Bytes::from_static(b"secret-value"), MINUTE))
        .unwrap();
    take(&storage, &key("secret-key"));
    let shown = format!("{storage:?}");
    assert!(shown.starts_with("MemoryStorage { counters: 1, entries: 1, bytes: "), "{shown}");
    assert!(!shown.contains("secret"));
}

/// Runs `work` on so many threads at once.
fn race<T: Send>(threads: u32, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(threads as usize);
    thread::scope(|scope| {
        let (start, work) = (&start, &work);
        let run = move |n| {
            start.wait();
            work(n)
        };
        let threads: Vec<_> = (0..threads).map(|n| scope.spawn(move || run(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn racing_takes_never_over_admit() {
    let hour = Duration::from_secs(3_600);
    for quota in [
        Quota::sliding_window(1_000, hour),
        Quota::fixed_window(1_000, hour),
        Quota::token_bucket(1, 100 * hour, 1_000),
        Quota::strict_window(1_000, hour),
        Quota::sliding_log(1_000, hour),
    ] {
        for storage in [MemoryStorage::new(), MemoryStorage::builder().max_counters(0).build()] {
            let admitted = race(8, |_| {
                let key = key("one");
                (0..400).filter(|_| spend(&storage, &key, quota, Spend::Take(1)).allowed).count()
            });
            assert_eq!(admitted.iter().sum::<usize>(), 1_000, "{quota}");
        }
    }
}

#[test]
fn one_of_64_racing_absent_puts_wins() {
    for round in 0..50 {
        let storage = MemoryStorage::new();
        let won = race(64, |n| {
            let claim = Put::new(Bytes::from(n.to_string()), MINUTE).with_condition(When::Absent);
            match put(&storage, &number(round), claim).unwrap() {
                PutOutcome::Stored(_) => 1,
                PutOutcome::Conflict(entry) => {
                    assert!(entry.is_some());
                    0
                }
            }
        });
        assert_eq!(won.iter().sum::<u32>(), 1);
    }
}

#[test]
fn racing_saves_of_one_version_never_overwrite_each_other() {
    let storage = MemoryStorage::new();
    put(&storage, &key("n"), Put::new(Bytes::from_static(&[0, 0]), MINUTE)).unwrap();
    race(8, |_| {
        for _ in 0..200 {
            loop {
                let entry = now(storage.get(&key("n"), Get::new())).unwrap().entry.unwrap();
                let n = u16::from_be_bytes(entry.value[..].try_into().unwrap()) + 1;
                let save = Put::new(Bytes::copy_from_slice(&n.to_be_bytes()), MINUTE)
                    .with_condition(When::Version(entry.version));
                if let PutOutcome::Stored(version) = put(&storage, &key("n"), save).unwrap() {
                    assert!(version > entry.version);
                    break;
                }
            }
        }
    });
    let entry = now(storage.get(&key("n"), Get::new())).unwrap().entry.unwrap();
    assert_eq!(u16::from_be_bytes(entry.value[..].try_into().unwrap()), 1_600);
}

#[test]
fn calls_over_several_keys_in_any_order_neither_deadlock_nor_over_admit() {
    let storage = MemoryStorage::new();
    let keys: Vec<_> = (0..6).map(number).collect();
    let quotas = [300, 500, 700, 900, 1_100, 1_300]
        .map(|limit| Quota::fixed_window(limit, Duration::from_secs(3_600)));
    let taken: [AtomicU32; 6] = Default::default();
    let refused = AtomicU32::new(0);
    race(8, |thread| {
        for i in 0..600_usize {
            // Every thread in another order, of two to four keys.
            let mut order: Vec<usize> = (0..6).collect();
            order.rotate_left((i + thread as usize) % 6);
            if thread % 2 == 1 {
                order.reverse();
            }
            order.truncate(2 + i % 3);
            let charge = |k: &usize| Charge::new(&keys[*k], quotas[*k], Spend::Take(1));
            let charges: Vec<_> = order.iter().map(charge).collect();
            let verdicts = now(storage.acquire(&charges)).unwrap();
            if verdicts.iter().all(|verdict| verdict.allowed) {
                order.iter().for_each(|k| _ = taken[*k].fetch_add(1, Relaxed));
            } else {
                refused.fetch_add(1, Relaxed);
                assert!(verdicts.iter().all(|verdict| verdict.receipt.is_none()));
            }
        }
    });
    assert!(refused.load(Relaxed) > 0, "the race was too short to mean anything");
    for (k, taken) in taken.iter().enumerate() {
        let left = spend(&storage, &keys[k], quotas[k], Spend::Peek).remaining;
        assert_eq!(taken.load(Relaxed) + left, quotas[k].limit(), "what was granted was taken");
    }
}

#[test]
fn everything_at_once_under_pressure_neither_hangs_nor_breaks_the_bounds() {
    let bound = 2 << 20;
    let storage = MemoryStorage::builder().max_bytes(bound).max_counters(2_000).build();
    let namespace = Name::new("test");
    let until = Instant::now() + Duration::from_millis(700);
    let done = race(6, |thread| {
        let mut n = u64::from(thread);
        while Instant::now() < until {
            for _ in 0..100 {
                n = n
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let key = number((n >> 33) % 5_000);
                let tags = [Tag::new([(n >> 60) as u8])];
                match n >> 40 & 7 {
                    0 => _ = take(&storage, &key),
                    1 => {
                        let other = number((n >> 20) % 5_000 + 5_000);
                        let charge = |key| Charge::new(key, PER_MINUTE, Spend::Take(1));
                        now(storage.acquire(&[charge(&other), charge(&key)])).unwrap();
                    }
                    2 => _ = put(&storage, &key, value((n >> 50) as usize % 300)),
                    3 => _ = put(&storage, &key, value((n >> 50) as usize).with_eviction()),
                    4 => {
                        let fence = now(storage.get(&key, Get::new().with_fence())).unwrap().fence;
                        let tagged = value(100).with_max_lifetime(MINUTE).with_eviction();
                        let tagged = tagged.with_fence(fence.unwrap()).with_tags(&tags);
                        _ = put(&storage, &key, tagged);
                    }
                    5 => _ = now(storage.delete(&key, When::Always)),
                    6 => {
                        now(storage.invalidate(&namespace, Tags::Any(&tags), Invalidation::Hard))
                            .unwrap();
                    }
                    _ => _ = is_there(&storage, &key),
                }
            }
            let stats = storage.stats();
            assert!(stats.bytes <= bound + 16 * 160 && stats.counters <= 2_000, "{stats:?}");
        }
    });
    assert_eq!(done.len(), 6);
}

#[test]
fn a_panic_while_a_lock_is_held_does_not_end_the_storage() {
    let storage = Arc::new(MemoryStorage::new());
    take(&storage, &key("x"));
    let held = Arc::clone(&storage);
    assert!(
        thread::spawn(move || {
            let _verdict = take(&held, &key("x"));
            panic!("a caller's panic");
        })
        .join()
        .is_err()
    );
    assert_eq!(take(&storage, &key("x")).remaining, 7);
}
