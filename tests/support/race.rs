//! What races need: how many, at random moments, and a storage to race on.
#![allow(dead_code)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::time::sleep;
use tower_keep::{RedisStorage, Storage, storage::AnyStorage};

/// How often something is done: the full count with `./test --long`.
pub(crate) fn count(reduced: usize, full: usize) -> usize {
    if std::env::var_os("TOWER_KEEP_LONG").is_some() { full } else { reduced }
}

/// A storage on this server. A busy test machine may take longer than the default allows, and what
/// a slow answer does is tested elsewhere.
pub(crate) async fn redis_storage(url: &str, prefix: &str) -> AnyStorage {
    RedisStorage::builder()
        .url(url)
        .prefix(prefix)
        .decision_deadline(Duration::from_secs(10))
        .entry_deadline(Duration::from_secs(10))
        .connect_timeout(Duration::from_secs(10))
        .build()
        .await
        .unwrap()
        .erase()
}

/// Numbers that are the same in each run, as long as the tasks ask in the same order.
#[derive(Debug, Clone)]
pub(crate) struct Dice(Arc<AtomicU64>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).into()))
    }

    /// SplitMix64.
    pub(crate) fn below(&self, end: u64) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(GAMMA, SeqCst).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    pub(crate) fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Not at all, until others had their turn, or some milliseconds.
    pub(crate) async fn pause(&self) {
        match self.below(5) {
            0 => {}
            1 => tokio::task::yield_now().await,
            _ => sleep(Duration::from_millis(1 + self.below(8))).await,
        }
    }
}
