//! Where units are counted: on the storage, and in this process while that gives no answer.

use std::{
    future::Future,
    pin::pin,
    sync::OnceLock,
    task::{Context, Waker},
};

use tokio::runtime::Handle;

use super::{Decision, decision::Inner};
use crate::{
    MemoryStorage,
    storage::{AnyStorage, Charge, Result, Spend, Storage, Verdict},
    tasks::Tasks,
};

pub(super) struct Counters {
    pub(super) storage: AnyStorage,
    /// Decides while the storage gives no answer.
    stand_in: OnceLock<MemoryStorage>,
}

impl Counters {
    pub(super) fn new(storage: AnyStorage) -> Self {
        Self { storage, stand_in: OnceLock::new() }
    }

    /// What decides while the storage gives no answer.
    pub(super) fn stand_in(&self) -> &MemoryStorage {
        self.stand_in.get_or_init(MemoryStorage::new)
    }

    /// Applies charges that refuse nothing wherever there may be counters.
    pub(super) async fn everywhere(&self, charges: &[Charge<'_>]) -> Result<()> {
        if let Some(stand_in) = self.stand_in.get() {
            stand_in.acquire(charges).await?;
        }
        self.storage.acquire(charges).await.map(drop)
    }

    /// Gives back up to `units` of what each quota of the decision took.
    pub(super) async fn refund(&self, decision: &Decision, units: u32) -> Result<Vec<Verdict>> {
        self.adjust(decision, |verdict| match verdict.receipt {
            Some(receipt) => Spend::Refund { units: units.min(receipt.units()), receipt },
            None => Spend::Take(0),
        })
        .await
    }

    /// Takes more units, whether they are there or not.
    pub(super) async fn force(&self, decision: &Decision, units: u32) -> Result<Vec<Verdict>> {
        self.adjust(decision, |_| Spend::Force(units)).await
    }

    async fn adjust(
        &self,
        decision: &Decision,
        spend: impl Fn(&Verdict) -> Spend,
    ) -> Result<Vec<Verdict>> {
        let Inner { rules, choice, identity, verdicts, degraded, .. } = decision.inner();
        let items = rules.items(*choice);
        let keys: Vec<_> = items.iter().map(|item| rules.key(item, identity)).collect();
        let charges: Vec<_> = items
            .iter()
            .zip(&keys)
            .zip(&**verdicts)
            .map(|((item, key), verdict)| Charge::new(key, item.shown.quota(), spend(verdict)))
            .collect();
        if charges.is_empty() {
            return Ok(Vec::new());
        }
        if *degraded {
            return self.stand_in().acquire(&charges).await;
        }
        self.storage.acquire(&charges).await
    }

    pub(super) fn tasks(&self) -> &Tasks {
        self.storage.tasks()
    }

    /// Where to run what has to outlive its caller. `None` if nothing has to be waited for, and
    /// outside of a Tokio runtime.
    pub(super) fn background(&self) -> Option<Handle> {
        if self.storage.answers_at_once() { None } else { Handle::try_current().ok() }
    }

    /// Runs to its end whatever becomes of the caller; outside of a runtime as far as it gets
    /// without waiting.
    pub(super) fn detach(&self, work: impl Future<Output = ()> + Send + 'static) {
        match self.background() {
            Some(runtime) => drop(self.tasks().spawn_on(work, &runtime)),
            None => {
                let ready = pin!(work).poll(&mut Context::from_waker(Waker::noop())).is_ready();
                debug_assert!(ready || !self.storage.answers_at_once(), "it has to be waited for");
            }
        }
    }
}
