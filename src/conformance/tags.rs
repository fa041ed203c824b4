//! Fences, invalidations and the record of tags.

use super::{
    Harness,
    stage::{RACERS, Stage, alpha, key, key_in, race, tags},
};
use crate::{
    Storage,
    storage::{Fence, Get, Invalidation, Name, Put, Tag, Tags, When},
};

/// An entry with an invalidated tag is never served again; its neighbours live on.
pub async fn an_invalidated_tag_is_never_served<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("a", fence, &tags(["x"]))).await;
    stage.stored(&key("b"), stage.fill("b", fence, &tags(["w", "x", "y"]))).await;
    stage.stored(&key("c"), stage.fill("c", fence, &tags(["w", "y"]))).await;
    stage.invalidate(&alpha(), &tags(["v", "x"]), Invalidation::Hard).await;
    assert_eq!(stage.get(&key("a")).await, None);
    assert_eq!(stage.get(&key("b")).await, None);
    let neighbour = stage.live(&key("c")).await;
    assert!(neighbour.value == "c" && !neighbour.stale);
}

/// Once one of its tags is invalidated, no operation sees the entry any more.
pub async fn an_invalidated_entry_is_absent_for_every_operation<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("one", fence, &tags(["x"]))).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    stage.assert_absent(&key("a"), version).await;
}

/// Once "end all" has ended it, no operation sees the entry any more.
pub async fn an_entry_of_another_generation_is_absent_for_every_operation<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("one", fence, &[])).await;
    stage.end_all(&alpha()).await;
    stage.assert_absent(&key("a"), version).await;
}

/// What was computed before an invalidation of one of its tags is not stored after it.
pub async fn a_late_fill_is_refused<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let before = stage.fence(&key("a")).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    let late = tags(["w", "x"]);
    assert_eq!(stage.refused(&key("a"), stage.fill("old", before, &late)).await, None);
    let absent = stage.fill("old", before, &late).with_condition(When::Absent);
    assert_eq!(stage.refused(&key("a"), absent).await, None);
    assert_eq!(stage.get(&key("a")).await, None);
    stage.stored(&key("b"), stage.fill("other", before, &tags(["w"]))).await;
    assert_eq!(stage.live(&key("b")).await.value, "other", "its tag was not invalidated");
    let after = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("new", after, &late)).await;
    assert_eq!(stage.live(&key("a")).await.value, "new");
}

/// What was computed before "end all" is not stored after it, tagged or not.
pub async fn a_late_fill_after_end_all_is_refused<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let before = stage.fence(&key("a")).await;
    stage.end_all(&alpha()).await;
    assert_eq!(stage.refused(&key("a"), stage.fill("old", before, &tags(["x"]))).await, None);
    assert_eq!(stage.refused(&key("a"), stage.fill("old", before, &[])).await, None);
    let after = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("new", after, &tags(["x"]))).await;
    assert_eq!(stage.live(&key("a")).await.value, "new");
}

/// A fill that is refused for its fence leaves what is there, and returns it.
pub async fn a_refused_fill_returns_what_is_there<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let before = stage.fence(&key("a")).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    let after = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("new", after, &tags(["x"]))).await;
    let there = stage.refused(&key("a"), stage.fill("old", before, &tags(["x"]))).await;
    assert_eq!(there.map(|entry| (entry.value, entry.version)), Some(("new".into(), version)));
    assert_eq!(stage.live(&key("a")).await.value, "new");
}

/// "End all" ends everything that has a fence, and nothing else.
pub async fn an_end_all_ends_only_what_has_a_fence<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("tagged"), stage.fill("tagged", fence, &tags(["x"]))).await;
    stage.stored(&key("fenced"), stage.fill("fenced", fence, &[])).await;
    let claim = stage.value("claim").with_condition(When::Absent);
    let version = stage.stored(&key("claim"), claim).await;
    stage.end_all(&alpha()).await;
    assert_eq!(stage.get(&key("tagged")).await, None);
    assert_eq!(stage.get(&key("fenced")).await, None);
    assert_eq!(stage.live(&key("claim")).await.version, version);
    stage.stored(&key("claim"), stage.save("renewed", version)).await;
}

/// An invalidation reaches one namespace: entries and fences of others stay good.
pub async fn an_invalidation_reaches_its_namespace_only<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let (here, there) = (key("a"), key_in("beta", "a"));
    let (fence, other) = (stage.fence(&here).await, stage.fence(&there).await);
    stage.stored(&there, stage.fill("there", other, &tags(["x"]))).await;
    stage.stored(&here, stage.fill("here", fence, &tags(["x"]))).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    assert_eq!(stage.get(&here).await, None);
    assert_eq!(stage.live(&there).await.value, "there");
    stage.end_all(&alpha()).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Soft).await;
    let entry = stage.live(&there).await;
    assert!(entry.value == "there" && !entry.stale);
    stage.stored(&there, stage.fill("again", other, &tags(["x"]))).await;
}

/// A soft invalidation marks what carries the tag, and ends nothing.
pub async fn a_soft_invalidation_only_marks<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("one", fence, &tags(["x", "y"]))).await;
    stage.stored(&key("b"), stage.fill("two", fence, &tags(["y"]))).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Soft).await;
    let entry = stage.live(&key("a")).await;
    assert!(entry.stale && entry.version == version);
    assert!(!stage.live(&key("b")).await.stale);
    let there = stage.refused(&key("a"), stage.value("no").with_condition(When::Absent)).await;
    assert!(there.expect("the conflict shows it").stale);
    stage.stored(&key("c"), stage.fill("late", fence, &tags(["x"]))).await;
    assert!(stage.live(&key("c")).await.stale, "a late fill is stale at once");
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    assert_eq!(stage.get(&key("a")).await, None, "hard after soft");
}

/// What is filled with a fence from after a soft invalidation is fresh.
pub async fn a_fill_with_a_newer_fence_is_fresh<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("one", fence, &tags(["x"]))).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Soft).await;
    let newer = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("two", newer, &tags(["x"]))).await;
    let entry = stage.live(&key("a")).await;
    assert!(entry.value == "two" && !entry.stale);
}

/// A soft "end all" ends all the same: a new generation has no memory of the old.
pub async fn a_soft_end_all_ends_too<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let version = stage.stored(&key("a"), stage.fill("one", fence, &tags(["x"]))).await;
    stage.storage.invalidate(&alpha(), Tags::All, Invalidation::Soft).await.unwrap();
    stage.assert_absent(&key("a"), version).await;
}

/// A fence is good only in the namespace and the storage that gave it.
pub async fn a_fence_from_elsewhere_is_refused<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let elsewhere = Stage::new(harness).await;
    let foreign = elsewhere.fence(&key("a")).await;
    assert_eq!(stage.refused(&key("a"), stage.fill("a", foreign, &[])).await, None);
    stage.fence(&key("a")).await;
    assert_eq!(stage.refused(&key("a"), stage.fill("a", foreign, &tags(["x"]))).await, None);
    let beta = stage.fence(&key_in("beta", "a")).await;
    assert_eq!(stage.refused(&key("a"), stage.fill("a", beta, &tags(["x"]))).await, None);
    assert_eq!(stage.get(&key("a")).await, None);
}

/// A fence with a stamp that was never given is refused.
pub async fn a_fence_from_the_future_is_refused<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    let fence = stage.fence(&key("a")).await;
    let future = Fence::new(fence.generation(), fence.stamp() + 1, fence.epoch());
    assert_eq!(stage.refused(&key("a"), stage.fill("a", future, &tags(["y"]))).await, None);
    stage.stored(&key("a"), stage.fill("a", fence, &tags(["x"]))).await;
}

/// However fast invalidations and lookups follow one another, each invalidation counts against the
/// fences before it and none after.
pub async fn invalidations_within_one_instant_all_count<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for _ in 0..20 {
        let before = stage.fence(&key("a")).await;
        stage.stored(&key("a"), stage.fill("one", before, &tags(["x"]))).await;
        stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
        assert_eq!(stage.get(&key("a")).await, None);
        assert_eq!(stage.refused(&key("a"), stage.fill("late", before, &tags(["x"]))).await, None);
    }
}

/// A tag may be forgotten once nothing can carry it, but a late fill is still refused.
pub async fn a_forgotten_tag_lets_no_late_fill_in<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let before = stage.fence(&key("a")).await;
    let brief = |fence| stage.fill("brief", fence, &[]).with_max_lifetime(stage.ticks(1));
    stage.stored(&key("b"), brief(before)).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    stage.pass(3).await;
    for n in 0..10_u8 {
        stage.invalidate(&alpha(), &[Tag::new([n])], Invalidation::Hard).await;
    }
    let late = tags(["x"]);
    let late = stage.fill("late", before, &late).with_max_lifetime(stage.ticks(1));
    assert_eq!(stage.refused(&key("a"), late).await, None);
    let now = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("now", now, &tags(["x"]))).await;
    assert_eq!(stage.live(&key("a")).await.value, "now");
}

/// A tag is remembered as long as any entry that could carry it lives, whatever else happens.
pub async fn a_tag_is_remembered_for_the_longest_life<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("long", fence, &tags(["x"]))).await;
    stage.stored(&key("b"), stage.fill("long", fence, &tags(["y"]))).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    stage.pass(3).await;
    for n in 0..10_u8 {
        stage.invalidate(&alpha(), &[Tag::new([n])], Invalidation::Hard).await;
    }
    assert_eq!(stage.get(&key("a")).await, None);
    assert_eq!(stage.live(&key("b")).await.value, "long", "nothing was forgotten for its sake");
}

/// Tags may hold any bytes, and different ones are never confused.
pub async fn any_bytes_are_a_tag<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let long = vec![b'x'; 10_000];
    let awkward = [
        &b""[..],
        b"\0",
        b"\0\0",
        b"a",
        b"a,b",
        b"b",
        b"a b",
        b"*",
        b"\r\n",
        b"\xff",
        b"\xff\xfe",
        &long,
    ];
    let all: Vec<Tag> = awkward.iter().map(Tag::new).collect();
    let fence = stage.fence(&key("all")).await;
    let entry = |n: usize| key(format!("entry {n}"));
    for n in 0..all.len() {
        stage.stored(&entry(n), stage.fill("one", fence, &all[n..=n])).await;
    }
    stage.stored(&key("all"), stage.fill("all", fence, &all)).await;
    for n in 0..all.len() {
        assert_eq!(stage.live(&entry(n)).await.value, "one", "tag {n} too early");
        stage.invalidate(&alpha(), &all[n..=n], Invalidation::Hard).await;
        assert_eq!(stage.get(&entry(n)).await, None, "tag {n}");
        assert_eq!(stage.get(&key("all")).await, None, "tag {n} among others");
    }
}

/// Every tag of an entry counts, and every tag of an invalidation, however many there are.
pub async fn each_of_100_tags_counts<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let all: Vec<Tag> = (0..100_u8).map(|n| Tag::new([n])).collect();
    for n in [0, 15, 16, 63, 64, 99] {
        let fence = stage.fence(&key("all")).await;
        let version = stage.stored(&key("all"), stage.fill("all", fence, &all)).await;
        stage.stored(&key("one"), stage.fill("one", fence, &all[n..=n])).await;
        stage.live(&key("all")).await;
        let knowing = Get::new().with_known(version);
        let known = stage.storage.get(&key("all"), knowing).await.expect("a lookup works");
        assert!(known.entry.is_some_and(|entry| entry.unchanged));
        stage.invalidate(&alpha(), &all[n..=n], Invalidation::Hard).await;
        let known = stage.storage.get(&key("all"), knowing).await.expect("a lookup works");
        assert_eq!(known.entry, None, "tag {n} of a known version");
        assert_eq!(stage.get(&key("all")).await, None, "tag {n}");
        let fence = stage.fence(&key("one")).await;
        stage.stored(&key("one"), stage.fill("one", fence, &all[n..=n])).await;
        stage.invalidate(&alpha(), &all, Invalidation::Hard).await;
        assert_eq!(stage.get(&key("one")).await, None, "tag {n} of an invalidation");
    }
}

/// A soft invalidation does not take a hard one back.
pub async fn a_soft_invalidation_revives_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("one", fence, &tags(["x"]))).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Soft).await;
    assert_eq!(stage.get(&key("a")).await, None);
    assert_eq!(stage.refused(&key("a"), stage.fill("late", fence, &tags(["x"]))).await, None);
}

/// A fence is of the instant of its lookup: an entry that was found beside it is alive by it.
pub async fn a_fence_is_no_newer_than_what_was_found_beside_it<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    for _ in 0..20 {
        let before = stage.fence(&key("a")).await;
        stage.stored(&key("a"), stage.fill("one", before, &tags(["x"]))).await;
        let lookups = race((0..RACERS).map(|n| {
            let storage = stage.storage.clone();
            async move {
                if n == RACERS / 2 {
                    let (namespace, tags) = (alpha(), tags(["x"]));
                    let purge =
                        storage.invalidate(&namespace, Tags::Any(&tags), Invalidation::Hard);
                    purge.await.expect("an invalidation works");
                    return None;
                }
                let get = Get::new().with_fence();
                Some(storage.get(&key("a"), get).await.expect("a lookup works"))
            }
        }))
        .await;
        for lookup in lookups.into_iter().flatten() {
            if lookup.entry.is_some() {
                assert_eq!(lookup.fence, Some(before), "it is dead by the fence beside it");
            }
        }
    }
}

/// An invalidation that meets nothing, or no tag at all, works and may be repeated.
pub async fn an_invalidation_may_meet_nothing<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let empty = Name::new("empty");
    for _ in 0..2 {
        stage.invalidate(&empty, &tags(["x"]), Invalidation::Hard).await;
        stage.invalidate(&empty, &[], Invalidation::Soft).await;
        stage.end_all(&empty).await;
    }
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("one", fence, &tags(["x"]))).await;
    stage.invalidate(&alpha(), &[], Invalidation::Hard).await;
    assert_eq!(stage.live(&key("a")).await.value, "one");
    stage.invalidate(&alpha(), &tags(["x", "x"]), Invalidation::Hard).await;
    assert_eq!(stage.get(&key("a")).await, None);
}

/// What replaces a tagged entry without tags has none.
pub async fn a_put_replaces_the_tags<H: Harness>(harness: &H) {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    stage.stored(&key("a"), stage.fill("one", fence, &tags(["x"]))).await;
    stage.stored(&key("a"), stage.fill("two", fence, &tags(["y"]))).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    assert_eq!(stage.live(&key("a")).await.value, "two");
    stage
        .stored(&key("a"), Put { tags: &[], fence: None, ..stage.fill("three", fence, &[]) })
        .await;
    stage.end_all(&alpha()).await;
    assert_eq!(stage.live(&key("a")).await.value, "three");
}
