//! How much of the storage a scope uses.

use std::{sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::timeout};

use super::shared::{Shared, unanswered};
use crate::{
    Quota,
    storage::{Charge, Identity, Key, Name, Receipt, Result, Spend, Storage},
};

/// A place of an owner that vanished is free after that.
const PLACE_FOR: Duration = Duration::from_secs(3_600);
/// So long an answer is waited for that comes too late.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);

/// One of the keys that a scope may have in flight; it is given back when this is dropped.
pub(super) struct Place {
    shared: Arc<Shared>,
    key: Key,
    quota: Quota,
    receipt: Receipt,
}

impl Place {
    /// A place for one more key of the scope. `Ok(None)` if there is no bound.
    ///
    /// # Errors
    ///
    /// The inner one if all places are taken.
    pub(super) async fn take(
        shared: &Arc<Shared>,
        scope: &Identity,
    ) -> Result<std::result::Result<Option<Self>, Full>> {
        let Some(most) = shared.policy.most_in_flight else { return Ok(Ok(None)) };
        let quota = Quota::sliding_log(most, PLACE_FOR);
        let key = Key::new(&shared.namespace, &Name::new("in-flight"), scope.clone());
        let asker = Arc::clone(shared);
        let ask = async move {
            let charge = [Charge::new(&key, quota, Spend::Take(1))];
            let verdicts = asker.storage.acquire(&charge).await?;
            Ok(match verdicts.first().and_then(|verdict| verdict.receipt) {
                Some(receipt) => Ok(Some(Self { shared: asker, key, quota, receipt })),
                None => Err(Full),
            })
        };
        if shared.storage.answers_at_once() {
            return ask.await;
        }
        // In a task of its own: a place that is granted too late is given back.
        let asked = shared.storage.tasks().spawn(timeout(LONGEST_ANSWER, ask));
        let answer = async move {
            match asked.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => Err(unanswered()),
            }
        };
        shared.in_time(answer).await
    }
}

/// All places of a scope are taken.
pub(super) struct Full;

impl Drop for Place {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        let (shared, key, quota) = (Arc::clone(&self.shared), self.key.clone(), self.quota);
        let spend = Spend::Refund { units: 1, receipt: self.receipt };
        let give_back = async move {
            let charge = [Charge::new(&key, quota, spend)];
            let _ = timeout(LONGEST_ANSWER, shared.storage.acquire(&charge)).await;
        };
        drop(self.shared.storage.tasks().spawn_on(give_back, &runtime));
    }
}

/// Whether the scope may have so many bytes more stored, which then count as used until the retention
/// is over.
pub(super) async fn may_store(shared: &Shared, scope: &Identity, bytes: usize) -> bool {
    let Some(most) = shared.policy.most_stored else { return true };
    let quota = Quota::sliding_window(most.max(1), shared.policy.retention);
    let key = Key::new(&shared.namespace, &Name::new("stored"), scope.clone());
    let kibibytes = bytes.div_ceil(1 << 10).try_into().unwrap_or(u32::MAX);
    let charge = [Charge::new(&key, quota, Spend::Take(kibibytes))];
    match shared.in_time(shared.storage.acquire(&charge)).await {
        Ok(verdicts) => verdicts.iter().all(|verdict| verdict.allowed),
        // The record is about to show whether the storage gives answers.
        Err(_) => true,
    }
}
