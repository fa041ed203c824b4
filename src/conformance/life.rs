//! Expiry, deadlines, touches, age.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Harness,
    stage::{Stage, key},
};
use crate::{
    Storage,
    storage::{Get, Put, Touch, When},
};

fn short(ttl: Duration) -> Put<'static> {
    Put::new(Bytes::from_static(b"short"), ttl)
}

/// An entry lives for its `ttl`, says how much of it is left, and is gone then.
pub async fn an_entry_lives_for_its_ttl<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    stage.stored(&key("a"), short(stage.ticks(3))).await;
    stage.assert_near("ttl", stage.live(&key("a")).await.ttl, stage.ticks(3));
    stage.pass(2).await;
    stage.assert_near("ttl", stage.live(&key("a")).await.ttl, stage.ticks(1));
    stage.pass(2).await;
    assert_eq!(stage.get(&key("a")).await, None);
}

/// Once the `ttl` is over, no operation sees the entry any more.
pub async fn an_expired_entry_is_absent_for_every_operation<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let version = stage.stored(&key("a"), short(stage.ticks(2))).await;
    stage.pass(3).await;
    stage.assert_absent(&key("a"), version).await;
}

/// Once the deadline is over, no operation sees the entry any more.
pub async fn an_entry_past_its_deadline_is_absent_for_every_operation<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let put = stage.value("one").with_max_lifetime(stage.ticks(2));
    let version = stage.stored(&key("a"), put).await;
    stage.pass(3).await;
    stage.assert_absent(&key("a"), version).await;
}

/// An entry past its end stays dead however the time is looked at: a put without condition begins
/// anew and inherits nothing.
pub async fn a_put_begins_a_new_life<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let put = short(stage.ticks(2)).with_max_lifetime(stage.ticks(2));
    stage.stored(&key("a"), put).await;
    stage.stored(&key("a"), short(stage.ticks(6))).await;
    let entry = stage.live(&key("a")).await;
    assert_eq!(entry.life_left, None, "the deadline went with the old entry");
    stage.assert_near("ttl", entry.ttl, stage.ticks(6));
    stage.pass(4).await;
    stage.live(&key("a")).await;
}

/// A `max_lifetime` below the `ttl` cuts it.
pub async fn a_deadline_cuts_the_ttl<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let put = stage.value("one").with_max_lifetime(stage.ticks(3));
    stage.stored(&key("a"), put).await;
    let entry = stage.live(&key("a")).await;
    stage.assert_near("ttl", entry.ttl, stage.ticks(3));
    stage.assert_near("life_left", entry.life_left.expect("a deadline"), stage.ticks(3));
    stage.pass(2).await;
    let entry = stage.live(&key("a")).await;
    stage.assert_near("life_left", entry.life_left.expect("a deadline"), stage.ticks(1));
    stage.pass(2).await;
    assert_eq!(stage.get(&key("a")).await, None);
}

/// The age is the time since the last successful put, whatever was refused or touched since.
pub async fn age_counts_from_the_last_put<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    stage.stored(&key("a"), stage.value("one")).await;
    stage.assert_near("age", stage.live(&key("a")).await.age, Duration::ZERO);
    stage.pass(2).await;
    stage.touch(&key("a"), 20_000, 0).await;
    let there = stage.refused(&key("a"), stage.value("two").with_condition(When::Absent)).await;
    stage.assert_near("age", there.expect("the conflict shows it").age, stage.ticks(2));
    stage.pass(1).await;
    let entry = stage.live(&key("a")).await;
    stage.assert_near("age", entry.age, stage.ticks(3));
    stage.stored(&key("a"), stage.save("two", entry.version)).await;
    stage.assert_near("age", stage.live(&key("a")).await.age, Duration::ZERO);
    stage.pass(1).await;
    stage.stored(&key("a"), stage.value("three")).await;
    stage.assert_near("age", stage.live(&key("a")).await.age, Duration::ZERO);
}

/// A touch lets the entry live that long from now, and its own answer already says so.
pub async fn a_touch_prolongs_the_life<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    stage.stored(&key("a"), short(stage.ticks(3))).await;
    for _ in 0..3 {
        stage.pass(2).await;
        let touched = stage.touch(&key("a"), 3, 0).await.expect("the entry is alive");
        stage.assert_near("ttl", touched.ttl, stage.ticks(3));
    }
    stage.assert_near("ttl", stage.live(&key("a")).await.ttl, stage.ticks(3));
    stage.pass(4).await;
    assert_eq!(stage.get(&key("a")).await, None);
}

/// A touch changes nothing but the end.
pub async fn a_touch_keeps_version_and_age<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let put = short(stage.ticks(4)).with_max_lifetime(stage.ticks(20));
    let version = stage.stored(&key("a"), put).await;
    stage.pass(2).await;
    for entry in [stage.touch(&key("a"), 9, 0).await, stage.get(&key("a")).await] {
        let entry = entry.expect("the entry is alive");
        assert_eq!((entry.version, &entry.value[..]), (version, &b"short"[..]));
        stage.assert_near("age", entry.age, stage.ticks(2));
        stage.assert_near("life_left", entry.life_left.expect("a deadline"), stage.ticks(18));
    }
    stage.stored(&key("a"), stage.save("saved", version)).await;
}

/// A touch that would prolong the life by no more than the slack writes nothing.
pub async fn a_touch_is_throttled_by_its_slack<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    stage.stored(&key("a"), short(stage.ticks(10))).await;
    stage.pass(2).await;
    let entry = stage.touch(&key("a"), 10, 4).await.expect("the entry is alive");
    stage.assert_near("ttl", entry.ttl, stage.ticks(8));
    stage.assert_near("ttl", stage.live(&key("a")).await.ttl, stage.ticks(8));
    stage.pass(3).await;
    let entry = stage.touch(&key("a"), 10, 4).await.expect("the entry is alive");
    stage.assert_near("ttl", entry.ttl, stage.ticks(10));
    stage.assert_near("ttl", stage.live(&key("a")).await.ttl, stage.ticks(10));
}

/// A touch whose `ttl` is below the remaining life leaves the entry as it is.
pub async fn a_touch_never_shortens_a_life<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    stage.stored(&key("a"), short(stage.ticks(9))).await;
    let entry = stage.touch(&key("a"), 1, 0).await.expect("the entry is alive");
    stage.assert_near("ttl", entry.ttl, stage.ticks(9));
    stage.pass(2).await;
    stage.assert_near("ttl", stage.live(&key("a")).await.ttl, stage.ticks(7));
}

/// However often it is touched, an entry ends at its deadline.
pub async fn a_touch_never_passes_the_deadline<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let put = short(stage.ticks(3)).with_max_lifetime(stage.ticks(5));
    let version = stage.stored(&key("a"), put).await;
    for left in [3, 1] {
        stage.pass(2).await;
        let entry = stage.touch(&key("a"), 3, 0).await.expect("the entry is alive");
        stage.assert_near("ttl", entry.ttl, stage.ticks(left));
        stage.assert_near("life_left", entry.life_left.expect("a deadline"), stage.ticks(left));
    }
    stage.pass(2).await;
    stage.assert_absent(&key("a"), version).await;
}

/// A touch of a dead or missing entry does nothing.
pub async fn a_touch_never_resurrects<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    assert_eq!(stage.touch(&key("none"), 100, 0).await, None);
    assert_eq!(stage.get(&key("none")).await, None, "a touch creates nothing");
    stage.stored(&key("a"), short(stage.ticks(1))).await;
    stage.pass(2).await;
    assert_eq!(stage.touch(&key("a"), 100, 0).await, None);
    assert_eq!(stage.get(&key("a")).await, None, "a touch brings nothing back");
    let put = stage.value("claim").with_condition(When::Absent);
    stage.stored(&key("a"), put).await;
}

/// Lives beyond all measure are cut, not wrapped around.
pub async fn the_longest_lives_do_not_overflow<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let years = Duration::from_secs(50 * 365 * 86_400);
    let put = short(Duration::MAX).with_max_lifetime(Duration::MAX);
    let version = stage.stored(&key("a"), put.clone()).await;
    let touch = Touch { ttl: Duration::MAX, slack: Duration::MAX };
    let touched = stage.storage.get(&key("a"), Get::new().with_touch(touch)).await.unwrap();
    assert!(touched.entry.expect("the entry is alive").ttl > years);
    let touch = Touch { ttl: Duration::MAX, slack: Duration::ZERO };
    let touched = stage.storage.get(&key("a"), Get::new().with_touch(touch)).await.unwrap();
    let entry = touched.entry.expect("the entry is alive");
    assert!(entry.ttl > years && entry.life_left.is_some_and(|left| left > years));
    stage.stored(&key("a"), put.with_condition(When::Version(version))).await;
    let fence = stage.fence(&key("b")).await;
    let put = short(Duration::MAX).with_max_lifetime(Duration::MAX).with_fence(fence);
    stage.stored(&key("b"), put).await;
    stage.pass(1).await;
    assert!(stage.live(&key("b")).await.ttl > years);
}
