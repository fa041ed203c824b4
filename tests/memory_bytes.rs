//! The byte bound of the memory backend against what the allocator has really given out.
//!
//! One test, alone in its process: whatever else runs would be counted too.

use std::{alloc::System, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::time::advance;
use tower_keep::{
    MemoryStorage, Quota, Storage,
    storage::{Charge, Get, Identity, Invalidation, Key, Name, Put, Spend, Tag, Tags},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BOUND: usize = 8 << 20;
const MINUTE: Duration = Duration::from_secs(60);

fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the memory backend answers at once")
}

#[tokio::test(start_paused = true)]
async fn what_is_allocated_never_exceeds_what_is_counted_nor_the_bound() {
    let (namespace, detail) = (Name::new("test"), Name::new("it"));
    let key = |n: u64| Key::new(&namespace, &detail, Identity::new(n.to_be_bytes()));
    let quotas = [
        Quota::sliding_window(10, MINUTE),
        Quota::token_bucket(10, MINUTE, 10),
        Quota::strict_window(10, MINUTE),
        Quota::sliding_log(10, MINUTE),
    ];
    let start = allocated();
    let storage = MemoryStorage::builder().max_bytes(BOUND).build();
    let mut peak = 0;
    for round in 0..4 {
        for n in 0..30_000_u64 {
            let id = round * 10_000 + n % 20_000;
            let quota = quotas[(id % 4) as usize];
            now(storage.acquire(&[Charge::new(&key(id), quota, Spend::Take(1))])).unwrap();
            // A slice of a large buffer must not keep all of it.
            let value = Bytes::from(vec![1; 5_000]).slice(..(id % 700) as usize);
            let mut put = Put::new(value, MINUTE);
            let tags = [Tag::new((id % 200).to_be_bytes()), Tag::new("all")];
            if id % 3 == 0 {
                let lookup = now(storage.get(&key(id), Get::new().with_fence())).unwrap();
                put = put.with_max_lifetime(MINUTE).with_fence(lookup.fence.unwrap());
                put = put.with_tags(&tags);
            }
            if id % 10 != 1 {
                put = put.with_eviction();
            }
            _ = now(storage.put(&key(id), put));
            if n % 100 == 0 {
                let tags = Tags::Any(&tags[..1]);
                now(storage.invalidate(&namespace, tags, Invalidation::Hard)).unwrap();
                let (real, counted) = (allocated() - start, storage.stats().bytes);
                assert!(real <= counted, "{real} bytes allocated, {counted} counted");
                assert!(counted <= BOUND, "{counted} bytes counted");
                peak = peak.max(real);
            }
        }
        advance(3 * MINUTE).await;
    }
    println!("at most {peak} of {BOUND} bytes, {:?}", storage.stats());
    assert!(peak > BOUND / 2, "the test filled {peak} bytes only");
    drop(storage);
    assert!(allocated() - start < 4_096, "{} bytes leaked", allocated() - start);
}
