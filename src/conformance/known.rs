//! Lookups by readers that already hold a value.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Harness,
    stage::{Stage, alpha, key, tags},
};
use crate::{
    Storage,
    storage::{Entry, Fence, Get, Invalidation, Key, Put, Touch, Version, When},
};

async fn get<H: Harness>(stage: &Stage<'_, H>, key: &Key, get: Get) -> Option<Entry> {
    stage.storage.get(key, get).await.expect("a lookup works").entry
}

async fn knowing<H: Harness>(stage: &Stage<'_, H>, key: &Key, version: Version) -> Option<Entry> {
    get(stage, key, Get::new().with_known(version)).await
}

/// An entry without its value and the times that pass between two lookups.
fn outline(entry: &Entry) -> (Version, bool, bool) {
    (entry.version, entry.stale, entry.life_left.is_some())
}

/// A lookup that knows the version gets everything but the value.
pub async fn a_known_version_is_confirmed_without_its_value<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("one", fence, &tags(["x"]))).await;
    stage.pass(2).await;
    let plain = stage.live(&key("a")).await;
    assert!(!plain.unchanged && plain.value == "one");
    let known = knowing(&stage, &key("a"), version).await.expect("the entry is alive");
    assert!(known.unchanged && known.value.is_empty(), "{known:?}");
    assert_eq!(outline(&known), outline(&plain));
    stage.assert_near("age", known.age, plain.age);
    stage.assert_near("ttl", known.ttl, plain.ttl);
    let life_left = |entry: &Entry| entry.life_left.expect("a deadline");
    stage.assert_near("life_left", life_left(&known), life_left(&plain));
    assert_eq!(stage.live(&key("a")).await.value, "one", "the value stays");
}

/// A lookup that knows the version gets the fence that any other would get.
pub async fn a_known_version_comes_with_the_fence<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let version = stage.stored(&key("a"), stage.value("one")).await;
    let knowing = Get::new().with_known(version);
    let lookup = stage.storage.get(&key("a"), knowing).await.expect("a lookup works");
    assert_eq!(lookup.fence, None, "no fence was asked for");
    let lookup = stage.storage.get(&key("a"), knowing.with_fence()).await.expect("a lookup works");
    assert!(lookup.entry.expect("the entry is alive").unchanged);
    let fence: Fence = lookup.fence.expect("a fence was asked for");
    assert_eq!(fence, stage.fence(&key("a")).await);
    stage.stored(&key("b"), stage.fill("two", fence, &tags(["x"]))).await;
}

/// A lookup that knows another version than the one that is there gets the value.
pub async fn another_version_comes_with_its_value<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let first = stage.stored(&key("a"), stage.value("one")).await;
    let second = stage.stored(&key("a"), stage.value("two")).await;
    let newer = Version::from_u64(second.as_u64() + 1);
    for other in [first, newer, Version::from_u64(0), Version::from_u64(u64::MAX)] {
        let entry = knowing(&stage, &key("a"), other).await.expect("the entry is alive");
        assert!(!entry.unchanged && entry.value == "two" && entry.version == second, "{entry:?}");
    }
    let there = stage.refused(&key("a"), stage.save("stale", first)).await;
    assert!(!there.expect("the conflict shows it").unchanged);
}

/// An empty value is told from one that was left out.
pub async fn a_known_version_of_an_empty_value_is_confirmed<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let version = stage.stored(&key("a"), stage.value("")).await;
    assert!(!stage.live(&key("a")).await.unchanged);
    let entry = knowing(&stage, &key("a"), version).await.expect("the entry is alive");
    assert!(entry.unchanged && entry.value.is_empty());
}

/// What has died is not confirmed, whatever ended it.
pub async fn a_known_version_is_not_confirmed_once_dead<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let never = Version::from_u64(1);
    assert_eq!(knowing(&stage, &key("none"), never).await, None, "nothing was ever there");

    let version = stage.stored(&key("a"), stage.value("one")).await;
    assert!(stage.delete(&key("a"), When::Always).await);
    assert_eq!(knowing(&stage, &key("a"), version).await, None, "it was deleted");

    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("two", fence, &tags(["x"]))).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    assert_eq!(knowing(&stage, &key("a"), version).await, None, "its tag was invalidated");

    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("three", fence, &[])).await;
    stage.end_all(&alpha()).await;
    let lookup = stage.storage.get(&key("a"), Get::new().with_known(version).with_fence()).await;
    let lookup = lookup.expect("a lookup works");
    assert_eq!(lookup.entry, None, "its generation has ended");
    assert!(lookup.fence.is_some_and(|newer| newer.generation() != fence.generation()));

    let mut put = stage.value("four");
    put.ttl = stage.ticks(1);
    let version = stage.stored(&key("a"), put).await;
    stage.pass(2).await;
    assert_eq!(knowing(&stage, &key("a"), version).await, None, "it has expired");
}

/// A soft invalidation shows on an entry whose value is left out.
pub async fn a_known_version_is_marked_when_stale<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("one", fence, &tags(["x", "y"]))).await;
    stage.invalidate(&alpha(), &tags(["y"]), Invalidation::Soft).await;
    let entry = knowing(&stage, &key("a"), version).await.expect("the entry is alive");
    assert!(entry.unchanged && entry.stale && entry.value.is_empty(), "{entry:?}");
}

/// A touch of a known version prolongs the life as any other.
pub async fn a_known_version_is_touched<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let mut put = stage.value("one");
    put.ttl = stage.ticks(4);
    let version = stage.stored(&key("a"), put).await;
    let touch = Touch { ttl: stage.ticks(20), slack: Duration::ZERO };
    let touching = Get::new().with_known(version).with_touch(touch);
    let entry = get(&stage, &key("a"), touching).await.expect("the entry is alive");
    assert!(entry.unchanged);
    stage.assert_near("ttl", entry.ttl, stage.ticks(20));
    stage.pass(8).await;
    assert_eq!(stage.live(&key("a")).await.value, "one");
}

/// Whether a value is said to be large makes no difference, be it large or not.
pub async fn the_hint_of_a_large_value_changes_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let hinted = Get::new().with_large_value();
    let lookup = stage.storage.get(&key("a"), hinted.with_fence()).await.expect("a lookup works");
    let fence = lookup.fence.expect("a fence was asked for");
    assert_eq!((lookup.entry, fence), (None, stage.fence(&key("a")).await));
    for size in [1, 1 << 18] {
        let value = Bytes::from(vec![b'x'; size]);
        let put = stage.fill("", fence, &[]);
        let version = stage.stored(&key("a"), Put { value: value.clone(), ..put }).await;
        let entry = get(&stage, &key("a"), hinted).await.expect("the entry is alive");
        assert!(entry.value == value && entry.version == version && !entry.unchanged);
        let known = get(&stage, &key("a"), hinted.with_known(version)).await;
        assert!(known.expect("the entry is alive").unchanged);
    }
}
