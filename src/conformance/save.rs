//! `Version` puts: what they keep, and what they do not outlive.

use std::time::Duration;

use super::{
    Harness,
    stage::{Stage, alpha, key, tags},
};
use crate::storage::{Fence, Invalidation, When};

/// A save without a `max_lifetime` keeps the deadline, whatever its `ttl`.
pub async fn a_save_keeps_the_deadline<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let put = stage.value("one").with_max_lifetime(stage.ticks(4));
    let first = stage.stored(&key("a"), put).await;
    stage.pass(2).await;
    let version = stage.stored(&key("a"), stage.save("two", first)).await;
    let entry = stage.live(&key("a")).await;
    stage.assert_near("life_left", entry.life_left.expect("a deadline"), stage.ticks(2));
    stage.assert_near("ttl", entry.ttl, stage.ticks(2));
    stage.pass(3).await;
    stage.assert_absent(&key("a"), version).await;
}

/// A save with a `max_lifetime` can bring the deadline forward, or set one, never put it off.
pub async fn a_save_only_brings_the_deadline_forward<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let put = stage.value("one").with_max_lifetime(stage.ticks(9));
    let version = stage.stored(&key("a"), put).await;
    let save = |version, ticks| stage.save("next", version).with_max_lifetime(stage.ticks(ticks));
    let left = async || stage.live(&key("a")).await.life_left.expect("a deadline");
    let version = stage.stored(&key("a"), save(version, 30)).await;
    stage.assert_near("life_left", left().await, stage.ticks(9));
    let version = stage.stored(&key("a"), save(version, 5)).await;
    stage.assert_near("life_left", left().await, stage.ticks(5));
    stage.stored(&key("a"), save(version, 7)).await;
    stage.assert_near("life_left", left().await, stage.ticks(5));

    let version = stage.stored(&key("b"), stage.value("one")).await;
    stage.stored(&key("b"), save(version, 2)).await;
    stage.pass(3).await;
    assert_eq!(stage.get(&key("b")).await, None, "an entry without a deadline gets one");
}

/// A save has the `ttl` of its own from now on, longer or shorter.
pub async fn a_save_begins_its_own_ttl<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let version = stage.stored(&key("a"), stage.value("one")).await;
    let mut save = stage.save("two", version);
    save.ttl = stage.ticks(2);
    stage.stored(&key("a"), save).await;
    stage.assert_near("ttl", stage.live(&key("a")).await.ttl, stage.ticks(2));
    stage.pass(3).await;
    assert_eq!(stage.get(&key("a")).await, None);
}

/// A save keeps the tags: invalidating one ends the saved entry.
pub async fn a_save_keeps_the_tags<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let first = stage.stored(&key("a"), stage.fill("one", fence, &tags(["t", "u"]))).await;
    let second = stage.stored(&key("a"), stage.save("two", first)).await;
    let third = stage.stored(&key("a"), stage.save("three", second)).await;
    assert_eq!(stage.live(&key("a")).await.value, "three");
    stage.invalidate(&alpha(), &tags(["u"]), Invalidation::Hard).await;
    stage.assert_absent(&key("a"), third).await;
}

/// A save keeps the fence of birth: "end all" ends what was saved before it.
pub async fn an_end_all_ends_a_saved_entry<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let first = stage.stored(&key("a"), stage.fill("one", fence, &[])).await;
    let second = stage.stored(&key("a"), stage.save("two", first)).await;
    stage.end_all(&alpha()).await;
    stage.assert_absent(&key("a"), second).await;
}

/// A save that was begun before "end all" and comes after it is refused.
pub async fn a_save_does_not_outlive_an_end_all_before_it<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("one", fence, &tags(["user"]))).await;
    let read = stage.live(&key("a")).await.version;
    stage.end_all(&alpha()).await;
    assert_eq!(stage.refused(&key("a"), stage.save("two", read)).await, None);
    assert_eq!(stage.get(&key("a")).await, None);
}

/// A save that was begun before one of its tags was invalidated and comes after is refused, with or
/// without a fence, also when the namespace has been looked at again since.
pub async fn a_save_does_not_outlive_an_invalidation_before_it<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("one", fence, &tags(["user"]))).await;
    let read = stage.live(&key("a")).await.version;
    stage.invalidate(&alpha(), &tags(["user"]), Invalidation::Hard).await;
    assert_eq!(stage.refused(&key("a"), stage.save("two", read)).await, None);
    let newer = stage.fence(&key("a")).await;
    let save = stage.save("three", read).with_fence(newer);
    assert_eq!(stage.refused(&key("a"), save).await, None);
    assert_eq!(stage.get(&key("a")).await, None);
}

/// A save leaves a soft mark where it is: only a fill with a newer fence is fresh.
pub async fn a_save_keeps_the_soft_mark<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("one", fence, &tags(["t"]))).await;
    stage.invalidate(&alpha(), &tags(["t"]), Invalidation::Soft).await;
    stage.stored(&key("a"), stage.save("two", version)).await;
    let entry = stage.live(&key("a")).await;
    assert!(entry.value == "two" && entry.stale);
}

/// A save with a fence is stored only if the version is there and the fence is good.
pub async fn a_save_with_a_fence_obeys_both<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let version = stage.stored(&key("a"), stage.value("one")).await;
    let old = stage.fence(&key("a")).await;
    let save = |version, fence: Fence| stage.save("next", version).with_fence(fence);
    let version = stage.stored(&key("a"), save(version, old)).await;
    stage.end_all(&alpha()).await;
    let there = stage.refused(&key("a"), save(version, old)).await;
    assert_eq!(there.expect("it has no fence of its own").version, version);
    let new = stage.fence(&key("a")).await;
    let second = stage.stored(&key("a"), save(version, new)).await;
    assert!(stage.refused(&key("a"), save(version, new)).await.is_some());
    stage.end_all(&alpha()).await;
    let entry = stage.live(&key("a")).await;
    assert_eq!(entry.version, second, "an entry that was born without a fence has none");
}

/// A refused save changes nothing: neither value nor life nor age.
pub async fn a_refused_save_changes_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let first = stage.stored(&key("a"), stage.value("one")).await;
    let put = stage.value("two").with_max_lifetime(stage.ticks(20));
    let second = stage.stored(&key("a"), put).await;
    stage.pass(2).await;
    let save = stage.save("stale", first).with_max_lifetime(stage.ticks(1));
    stage.refused(&key("a"), save).await;
    let absent = stage.value("claim").with_condition(When::Absent);
    stage.refused(&key("a"), absent).await;
    let entry = stage.live(&key("a")).await;
    assert_eq!((&entry.value[..], entry.version), (&b"two"[..], second));
    stage.assert_near("age", entry.age, stage.ticks(2));
    stage.assert_near("life_left", entry.life_left.unwrap_or(Duration::ZERO), stage.ticks(18));
}
