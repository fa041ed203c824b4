//! What happens when the backend has lost the record of tags.

use super::{
    Harness, Outcome,
    stage::{Stage, alpha, key, tags},
};
use crate::storage::Invalidation;

const CANNOT: Outcome = Outcome::Skipped("this backend cannot lose its record of tags");

/// Losing the record ends what belonged to it, for every operation.
pub async fn a_lost_record_ends_its_entries<H: Harness>(harness: &H) -> Outcome {
    let stage = Stage::new(harness).await;
    let fence = stage.fence(&key("a")).await;
    let tagged = stage.stored(&key("a"), stage.fill("one", fence, &tags(["x"]))).await;
    let fenced = stage.stored(&key("b"), stage.fill("two", fence, &[])).await;
    if !harness.lose_tags(&stage.storage, &alpha()).await {
        return CANNOT;
    }
    stage.assert_absent(&key("a"), tagged).await;
    stage.fence(&key("b")).await;
    stage.assert_absent(&key("b"), fenced).await;
    Outcome::Passed
}

/// Entries without a fence do not notice that the record is lost.
pub async fn a_lost_record_leaves_entries_without_a_fence<H: Harness>(harness: &H) -> Outcome {
    let stage = Stage::new(harness).await;
    stage.fence(&key("a")).await;
    let version = stage.stored(&key("claim"), stage.value("claim")).await;
    if !harness.lose_tags(&stage.storage, &alpha()).await {
        return CANNOT;
    }
    assert_eq!(stage.live(&key("claim")).await.version, version);
    stage.stored(&key("claim"), stage.save("renewed", version)).await;
    Outcome::Passed
}

/// A put never makes a record: with the purge forgotten, a late fill would come through.
pub async fn a_put_does_not_recreate_a_lost_record<H: Harness>(harness: &H) -> Outcome {
    let stage = Stage::new(harness).await;
    let before = stage.fence(&key("a")).await;
    stage.invalidate(&alpha(), &tags(["x"]), Invalidation::Hard).await;
    if !harness.lose_tags(&stage.storage, &alpha()).await {
        return CANNOT;
    }
    assert_eq!(stage.refused(&key("a"), stage.fill("late", before, &tags(["x"]))).await, None);
    assert_eq!(stage.refused(&key("a"), stage.fill("late", before, &[])).await, None);
    assert_eq!(stage.get(&key("a")).await, None);
    Outcome::Passed
}

/// The record that replaces a lost one has another name: fences from before the loss stay refused.
pub async fn a_new_record_is_of_another_generation<H: Harness>(harness: &H) -> Outcome {
    let stage = Stage::new(harness).await;
    let before = stage.fence(&key("a")).await;
    if !harness.lose_tags(&stage.storage, &alpha()).await {
        return CANNOT;
    }
    let after = stage.fence(&key("a")).await;
    assert_ne!(before.generation(), after.generation());
    assert_eq!(stage.refused(&key("a"), stage.fill("late", before, &[])).await, None);
    stage.stored(&key("a"), stage.fill("new", after, &tags(["x"]))).await;
    harness.lose_tags(&stage.storage, &alpha()).await;
    stage.invalidate(&alpha(), &tags(["y"]), Invalidation::Hard).await;
    assert_eq!(stage.get(&key("a")).await, None, "an invalidation made another record");
    assert_eq!(stage.refused(&key("a"), stage.fill("late", after, &[])).await, None);
    Outcome::Passed
}
