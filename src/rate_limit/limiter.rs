//! The decisions of a policy, inside and outside of HTTP.

use std::{
    fmt,
    ops::ControlFlow,
    pin::pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{runtime::Handle, time::Instant};

use super::{
    Decision, Outage, Policy, PolicyError, Settlement,
    decision::{Inner, Verdicts},
    policy::QuotaItem,
    reservation::Reservation,
    tier::Choice,
};
use crate::{
    MemoryStorage,
    storage::{
        AnyStorage, Charge, Error, ErrorKind, Identity, Key, Name, Result, Spend, Storage, Verdict,
        acquire_now,
    },
    tasks::Tasks,
};

/// The namespace of all limiters unless told otherwise.
const DEFAULT_NAMESPACE: &str = "ratelimit";

/// The least time between two warnings of one limiter about its storage.
const BETWEEN_WORDS: Duration = Duration::from_secs(1);

/// Decides by a policy on a storage: what the layer does for requests, for everything else, such as
/// WebSocket messages, jobs or one phone number.
///
/// A cheap handle: clones share the policy, and so do the layers made from it with
/// [`RateLimitLayer::from_limiter`](super::RateLimitLayer::from_limiter).
///
/// # Examples
///
/// ```
/// use tower_keep::{Limiter, MemoryStorage, rate_limit::Policy};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limiter = Limiter::new(MemoryStorage::new(), Policy::new("mail", "2/h".parse()?));
///
/// assert!(limiter.check("alice").await?.is_allowed());
/// let second = limiter.check("alice").await?;
/// assert!(!limiter.check("alice").await?.is_allowed());
/// assert!(limiter.check("bob").await?.is_allowed());
///
/// // The mail could not be sent: it does not count.
/// limiter.refund(&second).await?;
/// assert!(limiter.check("alice").await?.is_allowed());
///
/// // An address is an identity too, whole: what counts IPv6 by its prefix is `ClientAddress`, asked
/// // where a connection begins.
/// let peer: std::net::IpAddr = "192.0.2.1".parse()?;
/// assert!(limiter.check(peer).await?.is_allowed());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Limiter {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    storage: AnyStorage,
    rules: ArcSwap<InForce>,
    /// Decides while the storage gives no answer.
    local: OnceLock<MemoryStorage>,
    /// When it was last said that the storage gives no answer.
    outage_told: Mutex<Option<Instant>>,
}

/// A policy at work: all that a decision has to hold on to.
pub(super) struct InForce {
    pub(super) policy: Arc<Policy>,
    pub(super) namespace: Name,
}

/// One charge of a request, ready to be decided. The choice has quotas.
pub(super) struct Question {
    pub(super) rules: Arc<InForce>,
    pub(super) choice: Choice,
    pub(super) identity: Identity,
    pub(super) spend: Spend,
    pub(super) outer: Option<Decision>,
}

impl Limiter {
    /// A limiter under the namespace `ratelimit`.
    pub fn new(storage: impl Storage, policy: Policy) -> Self {
        Self::with_namespace(storage, Name::new(DEFAULT_NAMESPACE), policy)
    }

    /// A limiter under a namespace of its own, where policies of one name but different meaning
    /// share a storage.
    pub fn with_namespace(storage: impl Storage, namespace: Name, policy: Policy) -> Self {
        Self {
            shared: Arc::new(Shared {
                storage: storage.erase(),
                rules: ArcSwap::from_pointee(InForce { policy: Arc::new(policy), namespace }),
                local: OnceLock::new(),
                outage_told: Mutex::default(),
            }),
        }
    }

    /// Takes one unit of the identity's quotas, if all of them have room.
    ///
    /// Tiers, cost, exemptions and lists are about requests and play no part; the quotas are those
    /// of the policy itself.
    ///
    /// # Errors
    ///
    /// Only if the storage gives no answer and the policy says [`Outage::Closed`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the unit may have been taken.
    pub async fn check(&self, identity: impl Into<Identity>) -> Result<Decision> {
        self.check_units(identity, 1).await
    }

    /// Takes several units, or none.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the units may have been taken.
    pub async fn check_units(&self, identity: impl Into<Identity>, units: u32) -> Result<Decision> {
        self.ask(identity.into(), Spend::Take(units)).await
    }

    /// Takes nothing and tells whether one unit would be allowed.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    pub async fn peek(&self, identity: impl Into<Identity>) -> Result<Decision> {
        self.ask(identity.into(), Spend::Peek).await
    }

    /// Takes one unit as soon as there is one, if that is at most `patience` from now. Otherwise
    /// returns the refusal at once, without waiting in vain.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    ///
    /// # Panics
    ///
    /// If it has to wait outside of a Tokio runtime, or in one without timers.
    ///
    /// # Cancel safety
    ///
    /// While it waits, nothing has been taken.
    pub async fn wait(
        &self,
        identity: impl Into<Identity>,
        patience: Duration,
    ) -> Result<Decision> {
        let identity = identity.into();
        let start = Instant::now();
        loop {
            let decision = self.check(identity.clone()).await?;
            if decision.is_allowed() {
                return Ok(decision);
            }
            match decision.retry_after() {
                Some(wait) if start.elapsed() + wait <= patience => tokio::time::sleep(wait).await,
                _ => return Ok(decision),
            }
        }
    }

    /// Gives back what the decision took, because what it was for did not happen.
    ///
    /// Units return only to the window they were taken from, and a second refund of the same
    /// decision is the caller's mistake: it returns units that others may have taken.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer. The units then come back when their window ends.
    pub async fn refund(&self, decision: &Decision) -> Result<()> {
        self.shared.refund(decision, u32::MAX).await.map(drop)
    }

    /// Forgets all that the identity used, in every tier.
    ///
    /// # Errors
    ///
    /// If the storage gives no answer; nothing may have been forgotten then.
    pub async fn reset(&self, identity: impl Into<Identity>) -> Result<()> {
        let (rules, identity) = (self.shared.rules(), identity.into());
        let items = rules.policy.all_quotas();
        let keys: Vec<_> = items.iter().map(|item| rules.key(item, &identity)).collect();
        let charges: Vec<_> = items
            .iter()
            .zip(&keys)
            .map(|(item, key)| Charge::new(key, item.shown.quota(), Spend::Reset))
            .collect();
        if let Some(local) = self.shared.local.get() {
            local.acquire(&charges).await?;
        }
        self.shared.storage.acquire(&charges).await.map(drop)
    }

    /// The policy that is in force.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.shared.rules.load().policy)
    }

    /// Puts another policy in force at once, for all clones and layers. Usage is kept where a quota
    /// keeps its algorithm and period.
    ///
    /// # Errors
    ///
    /// If the name is another: under it no usage would be found.
    pub fn replace_policy(&self, policy: Policy) -> Result<(), PolicyError> {
        let current = self.shared.rules.load();
        if current.policy.name != policy.name {
            return Err(PolicyError::Renamed {
                from: current.policy.name().into(),
                to: policy.name().into(),
            });
        }
        let namespace = current.namespace.clone();
        self.shared.rules.store(Arc::new(InForce { policy: Arc::new(policy), namespace }));
        Ok(())
    }

    async fn ask(&self, identity: Identity, spend: Spend) -> Result<Decision> {
        let rules = self.shared.rules();
        let question = Question { rules, choice: Choice::Base, identity, spend, outer: None };
        self.shared.decide(question).await
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("storage", &self.shared.storage)
            .field("namespace", &self.shared.rules.load().namespace)
            .field("policy", &self.shared.rules.load().policy)
            .finish()
    }
}

impl InForce {
    fn key(&self, item: &QuotaItem, identity: &Identity) -> Key {
        Key::new(&self.namespace, &item.detail, identity.clone())
    }

    fn items(&self, choice: Choice) -> &[QuotaItem] {
        self.policy.quotas_of(choice).map_or(&[], |set| &set.items)
    }
}

impl Question {
    fn keys(&self) -> Vec<Key> {
        let items = self.rules.items(self.choice).iter();
        items.map(|item| self.rules.key(item, &self.identity)).collect()
    }

    fn charges<'a>(&self, keys: &'a [Key]) -> Vec<Charge<'a>> {
        let enforce = self.rules.policy.enforces(&self.identity);
        let items = self.rules.items(self.choice).iter().zip(keys);
        items.map(|(item, key)| self.charge(item, key, enforce)).collect()
    }

    fn charge<'a>(&self, item: &QuotaItem, key: &'a Key, enforce: bool) -> Charge<'a> {
        Charge { enforce, ..Charge::new(key, item.shown.quota(), self.spend) }
    }

    /// Asks a storage that does not wait: for one quota, the usual case, without an allocation.
    fn ask<T>(&self, storage: impl FnOnce(&[Charge<'_>]) -> T) -> T {
        if let [item] = self.rules.items(self.choice) {
            let key = self.rules.key(item, &self.identity);
            let enforce = self.rules.policy.enforces(&self.identity);
            return storage(&[self.charge(item, &key, enforce)]);
        }
        let keys = self.keys();
        storage(&self.charges(&keys))
    }
}

impl Shared {
    pub(super) fn rules(&self) -> Arc<InForce> {
        self.rules.load_full()
    }

    /// By which a decision names the limiter that made it.
    pub(super) fn id(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }

    /// Decides at once, if the storage does not wait; otherwise returns the question.
    pub(super) fn decide_now(
        self: &Arc<Self>,
        question: Question,
    ) -> ControlFlow<Result<Decision>, Question> {
        if !self.storage.answers_at_once() {
            return ControlFlow::Continue(question);
        }
        if let Some(verdicts) = self.charge_known(&question) {
            return ControlFlow::Break(Ok(self.decision(question, verdicts, false)));
        }
        match question.ask(|charges| self.storage.acquire_now(charges)) {
            Some(answer) => ControlFlow::Break(self.conclude(question, answer)),
            None => ControlFlow::Continue(question),
        }
    }

    /// The verdicts, if all counters are in this process and there already.
    fn charge_known(&self, question: &Question) -> Option<Verdicts> {
        let Question { rules, choice, identity, spend, .. } = question;
        let namespace = &rules.namespace;
        if let [item] = rules.items(*choice) {
            let counter = (namespace, &item.detail, identity);
            let verdict = self.storage.charge_known(counter, &item.shown.quota(), *spend)?;
            return Some(Verdicts::One([verdict]));
        }
        let details = rules.items(*choice).iter().map(|item| (&item.detail, item.shown.quota()));
        let enforce = rules.policy.enforces(identity);
        let verdicts =
            self.storage.charge_few_known((namespace, identity), details, *spend, enforce)?;
        Some(Verdicts::Several(verdicts))
    }

    pub(super) async fn decide(self: &Arc<Self>, question: Question) -> Result<Decision> {
        let question = match self.decide_now(question) {
            ControlFlow::Break(decision) => return decision,
            ControlFlow::Continue(question) => question,
        };
        let keys = question.keys();
        let charges = question.charges(&keys);
        let memory = question.rules.policy.denial_memory();
        let answer = self.storage.acquire_or_recall(&charges, memory).await;
        self.conclude(question, answer)
    }

    /// The decision by what the storage answered.
    fn conclude(
        self: &Arc<Self>,
        question: Question,
        answer: Result<Vec<Verdict>>,
    ) -> Result<Decision> {
        let policy = &question.rules.policy;
        let (verdicts, degraded) = match answer {
            Ok(verdicts) => (verdicts, false),
            Err(error) => {
                self.tell_of_outage(policy, &error);
                match policy.outage {
                    Outage::Local => {
                        (question.ask(|charges| acquire_now(self.local(), charges))?, true)
                    }
                    Outage::Open => (Vec::new(), true),
                    Outage::Closed => return Err(error),
                }
            }
        };
        Ok(self.decision(question, Verdicts::Several(verdicts), degraded))
    }

    fn decision(
        self: &Arc<Self>,
        question: Question,
        verdicts: Verdicts,
        degraded: bool,
    ) -> Decision {
        let enforced = question.rules.policy.enforces(&question.identity);
        let Question { rules, choice, identity, outer, .. } = question;
        let limiter = self.id();
        Decision::new(Inner {
            rules,
            choice,
            identity,
            verdicts,
            enforced,
            degraded,
            limiter,
            outer,
        })
    }

    /// Once in a while: a log line for every request would make an outage worse.
    fn tell_of_outage(&self, policy: &Policy, error: &Error) {
        let now = Instant::now();
        let mut told = self.outage_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| now - told >= BETWEEN_WORDS) {
            *told = Some(now);
            event!(warn, policy = policy.name(), %error, "the storage gave no answer");
        }
    }

    /// As [`decide`](Self::decide), with what was taken under a guard. On a storage that has to be
    /// waited for the question runs in a task of its own: if the caller goes away before the answer,
    /// the guard in the answer gives the units back all the same.
    pub(super) async fn reserve(
        self: &Arc<Self>,
        question: Question,
        settlement: Settlement,
    ) -> Result<Reservation> {
        let shared = Arc::clone(self);
        let reserve = async move {
            let decision = shared.decide(question).await?;
            Ok(Reservation::new(shared, decision, settlement))
        };
        let Some(runtime) = self.background() else { return reserve.await };
        // An answer that nobody takes is dropped after its task has ended, and begins the next.
        let until_taken = self.tasks().token();
        let reserve = async move { (reserve.await, until_taken) };
        match self.tasks().spawn_on(reserve, &runtime).await {
            Ok((reservation, _)) => reservation,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::new(ErrorKind::Unavailable, "the runtime is shutting down")),
            },
        }
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
            return self.local().acquire(&charges).await;
        }
        self.storage.acquire(&charges).await
    }

    fn local(&self) -> &MemoryStorage {
        self.local.get_or_init(MemoryStorage::new)
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
