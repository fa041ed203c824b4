//! Futures that are dropped: applied in full or not at all, and nothing is blocked.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use bytes::Bytes;
use tokio::task::yield_now;

use super::{
    Harness,
    stage::{Stage, alpha, counter, key, tags},
};
use crate::{
    Quota, Storage,
    storage::{Charge, Get, Invalidation, Put, Spend, Tags, Touch, When},
};

/// Futures are dropped after every number of polls below this.
const POLLS: usize = 8;

/// Polls the future so often, gives its backend a chance in between, and drops it unless it is
/// done before.
async fn dropped_after<T>(polls: usize, future: impl Future<Output = T>) {
    let mut future = pin!(future);
    for _ in 0..polls {
        let ready = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
        if ready {
            return;
        }
        yield_now().await;
    }
}

/// A put that is dropped leaves the old value or the new one, and the key can be put again.
pub async fn a_dropped_put_is_whole_or_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for polls in 0..POLLS {
        let old = stage.stored(&key("a"), stage.value("old")).await;
        dropped_after(polls, stage.storage.put(&key("a"), stage.value("new"))).await;
        let entry = stage.live(&key("a")).await;
        assert_eq!(entry.value == "new", entry.version > old, "{entry:?}");
        assert!(entry.value == "old" || entry.value == "new", "{entry:?}");
        let long = vec![7; 1 << 16];
        let put = Put::new(Bytes::from(long.clone()), stage.long());
        dropped_after(polls, stage.storage.put(&key("long"), put)).await;
        assert!(stage.get(&key("long")).await.is_none_or(|entry| entry.value == long));
    }
    let there = stage.live(&key("a")).await;
    stage.stored(&key("a"), stage.save("saved", there.version)).await;
}

/// A lookup that is dropped, with or without a touch, harms nothing.
pub async fn a_dropped_lookup_harms_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let touch = Touch { ttl: stage.long(), slack: stage.ticks(0) };
    let version = stage.stored(&key("a"), stage.value("one")).await;
    for polls in 0..POLLS {
        let get = Get::new().with_touch(touch).with_fence();
        dropped_after(polls, stage.storage.get(&key("a"), get)).await;
        let entry = stage.live(&key("a")).await;
        assert_eq!((&entry.value[..], entry.version), (&b"one"[..], version));
    }
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("two", fence, &tags(["x"]))).await;
}

/// A delete that is dropped has deleted or has not.
pub async fn a_dropped_delete_is_whole_or_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for polls in 0..POLLS {
        let version = stage.stored(&key("a"), stage.value("one")).await;
        dropped_after(polls, stage.storage.delete(&key("a"), When::Always)).await;
        let there = stage.get(&key("a")).await;
        assert!(there.is_none_or(|entry| entry.version == version && entry.value == "one"));
        stage.delete(&key("a"), When::Always).await;
        stage.assert_absent(&key("a"), version).await;
    }
}

/// An invalidation that is dropped may or may not have happened; repeated, it has.
pub async fn a_dropped_invalidation_can_be_repeated<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let labels = tags(["x"]);
    for polls in 0..POLLS {
        for reach in [Tags::Any(&labels), Tags::All] {
            let fence = stage.fence(&key("a")).await;
            stage.stored(&key("a"), stage.fill("one", fence, &labels)).await;
            let hard = Invalidation::Hard;
            dropped_after(polls, stage.storage.invalidate(&alpha(), reach, hard)).await;
            assert!(stage.get(&key("a")).await.is_none_or(|entry| entry.value == "one"));
            stage.storage.invalidate(&alpha(), reach, hard).await.expect("it may be repeated");
            assert_eq!(stage.get(&key("a")).await, None);
            let late = stage.fill("late", fence, &labels);
            assert_eq!(stage.refused(&key("a"), late).await, None);
        }
    }
}

/// A call that is dropped has charged all of its quotas or none.
pub async fn a_dropped_acquire_is_whole_or_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (a, b) = (counter("a"), counter("b"));
    let quota = Quota::fixed_window(1_000, stage.long());
    // A backend that reserves in order promises this of single charges only.
    let charged = if stage.storage.capabilities().atomic_across_identities { 2 } else { 1 };
    for (round, polls) in (1..).zip(0..POLLS) {
        let charges = [&a, &b].map(|key| Charge::new(key, quota, Spend::Take(3)));
        dropped_after(polls, stage.storage.acquire(&charges[..charged])).await;
        let peeks = [&a, &b].map(|key| Charge::new(key, quota, Spend::Peek));
        let verdicts = stage.acquire(&peeks[..charged]).await;
        let used = 1_000 - verdicts[0].remaining;
        assert!(used % 3 == 0 && used <= 3 * round, "{used} used after {round} calls");
        for verdict in verdicts {
            assert_eq!(verdict.remaining, 1_000 - used);
        }
    }
    assert!(stage.spend(&a, quota, Spend::Take(1)).await.allowed);
}
