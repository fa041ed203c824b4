//! A purge is seen by every later lookup, and what was read before it is never served after it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{HeaderMap, Request, StatusCode};
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage, Storage,
    cache::{CacheHandle, CacheLayer, CacheTags, NearCache, Outcome, Policy, Source},
    storage::AnyStorage,
};

use crate::world::{Counts, Dice, Distant, Rules, World, count};

fn cache(storage: AnyStorage, near: Option<NearCache>) -> CacheHandle {
    let builder = CacheHandle::builder(storage).with_hit_for_miss(Duration::ZERO);
    match near {
        Some(near) => builder.with_near_cache(near).build(),
        None => builder.build(),
    }
}

fn maybe_near(dice: &Dice) -> Option<NearCache> {
    dice.one_in(2).then(|| NearCache::strict(1 << 20))
}

#[tokio::test(start_paused = true)]
async fn in_memory_nothing_old_is_served_after_a_purge() {
    let (rounds, counts) = (count(1_000, 10_000), Arc::default());
    for seed in 0..rounds {
        let dice = Dice::new(seed as u64);
        let caches = vec![cache(MemoryStorage::new().erase(), maybe_near(&dice))];
        World::new(Rules::thrown(&dice), &dice, caches, &counts).run().await;
    }
    Counts::check(&counts, "memory", rounds);
}

async fn across_a_network(rounds: usize, losses: u64, forging: bool) -> Arc<Counts> {
    let counts = Arc::default();
    for seed in 0..rounds {
        let dice = Dice::new(seed as u64);
        let memory = MemoryStorage::new();
        let node = || {
            let storage = Distant::new(&memory, &dice, losses);
            let storage = if forging { storage.forging() } else { storage };
            cache(storage.erase(), maybe_near(&dice))
        };
        let caches = vec![node(), node()];
        World::new(Rules::thrown(&dice), &dice, caches, &counts).run().await;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn across_a_network_nothing_old_is_served_after_a_purge() {
    let rounds = count(300, 10_000);
    across_a_network(rounds, 0, false).await.check("two nodes", rounds);
}

#[tokio::test(start_paused = true)]
async fn across_a_network_that_loses_messages_nothing_old_is_served_after_a_purge() {
    let rounds = count(300, 10_000);
    across_a_network(rounds, 12, false).await.check("two nodes, messages lost", rounds);
}

/// The world would notice.
#[tokio::test(start_paused = true)]
async fn without_the_fence_of_the_lookup_something_old_is_served() {
    let counts = across_a_network(50, 0, true).await;
    println!("{counts}");
    assert!(!counts.violations.lock().unwrap().is_empty());
}

/// A 304 may name tags anew; those of the policy stay.
#[tokio::test(start_paused = true)]
async fn a_purge_by_a_tag_of_the_policy_reaches_what_was_revalidated() {
    let renders = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&renders);
    let page = move |headers: HeaderMap| async move {
        count.fetch_add(1, SeqCst);
        let known = headers.contains_key("if-none-match");
        let status = if known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let fields = [("etag", "\"1\""), ("cache-control", "max-age=10, stale-if-error=100")];
        (status, fields, CacheTags::new(["page"]), ())
    };
    let policy =
        Policy::http().with_tags(["pages"]).add_tags_from_request(|_| vec!["asked".to_owned()]);
    let layer = CacheLayer::new(MemoryStorage::new(), policy);
    let cache = layer.handle().clone();
    let app = Router::new().route("/", get(page)).layer(layer);
    let read = async || {
        let request = Request::get("/").header("host", "shop.example").body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        response.extensions().get::<Outcome>().unwrap().source
    };
    for tag in ["pages", "asked", "page"] {
        assert_eq!(read().await, Source::Handler, "{tag}");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(read().await, Source::Revalidated);
        assert_eq!(read().await, Source::Hit);
        cache.invalidate([tag]).await.unwrap();
    }
    assert_eq!(read().await, Source::Handler);
    assert_eq!(renders.load(SeqCst), 7);
}
