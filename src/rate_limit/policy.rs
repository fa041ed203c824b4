//! What is limited, for whom, and how it is answered.

use std::{collections::HashSet, fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response};

use super::{
    ClientAddress, Headers, KeyExtractor, Networks, Rejection, Settlement, Tiers,
    headers::Shown,
    key::AsyncKey,
    rejection::used_up,
    tier::{Choice, CompiledTiers, Resolver},
};
use crate::{
    Quota, RequestHead,
    storage::{HashKey, Identity, Name},
};

/// Longer policy names would not leave room for the quota in the name of a counter.
const LONGEST_NAME: usize = 40;

/// How long a refusal is remembered in this process unless told otherwise.
const DEFAULT_DENIAL_MEMORY: Duration = Duration::from_secs(1);

/// Why a [`Policy`] cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// The name is not of 1 to 40 characters from `a-z`, `A-Z`, `0-9`, `-`, `_`, `.`.
    Name(String),
    /// There is no quota.
    NoQuota,
    /// Two quotas of one set have the same algorithm and period, and so the same counter.
    SameCounter(Quota, Quota),
    /// A policy can be replaced only by one of the same name, under which the counters are kept.
    Renamed {
        /// The name that is in force.
        from: String,
        /// The name of the policy that was offered.
        to: String,
    },
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(
                f,
                "{name:?} is no policy name: use 1 to {LONGEST_NAME} characters from a-z, A-Z, \
                 0-9, '-', '_', '.'"
            ),
            Self::NoQuota => f.write_str("a policy needs at least one quota"),
            Self::SameCounter(first, second) => write!(
                f,
                "the quotas {first} and {second} count the same thing; keep the smaller one"
            ),
            Self::Renamed { from, to } => write!(
                f,
                "policy {from:?} cannot become {to:?}: its counters are kept under its name; build \
                 another layer"
            ),
        }
    }
}

impl std::error::Error for PolicyError {}

/// What happens to requests while the storage gives no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Outage {
    /// Each process counts for itself, from zero on. The default.
    #[default]
    Local,
    /// Everything passes, without headers.
    Open,
    /// Nothing passes: 503 with `Retry-After`. For quotas that guard a secret.
    Closed,
}

/// What happens to requests that have no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MissingIdentity {
    /// They are refused: with 500 and a log line if the server fails to tell the client's address,
    /// with 400 otherwise. The default, because a shared quota would let one client lock out all.
    #[default]
    Refuse,
    /// They share one quota.
    Share,
    /// They are not limited.
    Exempt,
}

/// Whom a policy really refuses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Enforcement {
    share: f64,
}

impl Enforcement {
    /// Everybody.
    pub const fn everybody() -> Self {
        Self { share: 1.0 }
    }

    /// Nobody: usage is counted and [`Decision::would_refuse`](super::Decision::would_refuse) says
    /// who would have been refused.
    pub const fn shadow() -> Self {
        Self { share: 0.0 }
    }

    /// This share of the identities, from 0 to 1; always the same ones, on every node.
    ///
    /// # Panics
    ///
    /// If the share is not between 0 and 1.
    #[track_caller]
    pub const fn share(share: f64) -> Self {
        assert!(share >= 0.0 && share <= 1.0, "a share of the traffic is between 0 and 1");
        Self { share }
    }

    fn holds_for(self, policy: &Name, identity: &Identity) -> bool {
        if self.share >= 1.0 || self.share <= 0.0 {
            return self.share >= 1.0;
        }
        // The key is no secret: every node has to come to the same answer.
        let hash = HashKey::derive(policy.as_str().as_bytes()).digest(&[identity.as_bytes()]);
        let [high, ..] = hash.as_chunks::<4>().0 else { return false };
        f64::from(u32::from_be_bytes(*high)) < self.share * f64::from(u32::MAX)
    }
}

type CostFn = dyn Fn(RequestHead<'_>) -> u32 + Send + Sync;
type Exempt = dyn Fn(RequestHead<'_>) -> bool + Send + Sync;
type Respond = dyn Fn(&Rejection) -> Response<Bytes> + Send + Sync;

/// What is limited, for whom, and how it is answered.
///
/// A policy has a name, one or several quotas that are decided together in one round trip, and
/// settings that all have a default: by client address, one unit a request, all headers.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_keep::{Quota, rate_limit::{KeyExtractor, Policy}};
///
/// let policy = Policy::new("search", "5/10s".parse()?)
///     .add_quota(Quota::sliding_window(50, Duration::from_secs(3_600)))
///     .with_key(KeyExtractor::header("x-api-key").or(KeyExtractor::client_address()))
///     .with_cost(|head| if head.uri().path() == "/export" { 5 } else { 1 });
/// # let _ = policy;
/// # Ok::<_, tower_keep::quota::ParseQuotaError>(())
/// ```
#[derive(Clone)]
pub struct Policy {
    pub(super) name: Name,
    pub(super) quotas: Arc<QuotaSet>,
    pub(super) tiers: CompiledTiers,
    pub(super) resolver: Option<Resolver>,
    pub(super) key: KeyExtractor,
    pub(super) async_key: Option<AsyncKey>,
    pub(super) address: ClientAddress,
    cost: Option<Arc<CostFn>>,
    pub(super) settlement: Option<Settlement>,
    pub(super) counts_replays: bool,
    exempt: Option<Arc<Exempt>>,
    allowed: Option<Networks>,
    denied: Option<Networks>,
    enforcement: Enforcement,
    pub(super) headers: Headers,
    pub(super) missing_identity: MissingIdentity,
    pub(super) outage: Outage,
    respond: Option<Arc<Respond>>,
    denial_memory: Duration,
}

impl Policy {
    /// A policy of one quota.
    ///
    /// Counters are kept under the name: policies of one name on one storage, in one
    /// [namespace](super::Limiter::with_namespace), count together where their quotas have one
    /// algorithm and period.
    ///
    /// # Panics
    ///
    /// If the name is not of 1 to 40 characters from `a-z`, `A-Z`, `0-9`, `-`, `_`, `.`. For names
    /// from outside use [`try_new`](Self::try_new).
    #[track_caller]
    pub fn new(name: &str, quota: Quota) -> Self {
        Self::try_new(name, [quota]).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A policy of several quotas, all of which must have room.
    ///
    /// # Errors
    ///
    /// If the name is not valid, there is no quota, or two quotas count the same thing.
    pub fn try_new(
        name: &str,
        quotas: impl IntoIterator<Item = Quota>,
    ) -> Result<Self, PolicyError> {
        let name = Name::try_new(name)
            .ok()
            .filter(|name| name.as_str().len() <= LONGEST_NAME)
            .ok_or_else(|| PolicyError::Name(name.chars().take(80).collect()))?;
        let quotas: Vec<_> = quotas.into_iter().collect();
        Ok(Self {
            quotas: Arc::new(QuotaSet::new(&name, &quotas)?),
            name,
            tiers: Vec::new(),
            resolver: None,
            key: KeyExtractor::default(),
            async_key: None,
            address: ClientAddress::peer(),
            cost: None,
            settlement: None,
            counts_replays: false,
            exempt: None,
            allowed: None,
            denied: None,
            enforcement: Enforcement::everybody(),
            headers: Headers::default(),
            missing_identity: MissingIdentity::default(),
            outage: Outage::default(),
            respond: None,
            denial_memory: DEFAULT_DENIAL_MEMORY,
        })
    }

    /// One more quota, decided together with the others.
    ///
    /// # Panics
    ///
    /// If the policy has a quota of the same algorithm and period.
    #[must_use]
    #[track_caller]
    pub fn add_quota(mut self, quota: Quota) -> Self {
        let quotas: Vec<_> = self.quotas.quotas().chain([quota]).collect();
        let set = QuotaSet::new(&self.name, &quotas).unwrap_or_else(|error| panic!("{error}"));
        self.quotas = Arc::new(set);
        self
    }

    /// Quotas by tier, picked by name for each request. Whoever has no tier has the quotas of the
    /// policy itself; an unknown name too, with a warning.
    ///
    /// # Panics
    ///
    /// If two quotas of one tier count the same thing.
    ///
    /// # Security
    ///
    /// Resolve from what an outer layer has verified, never from a header that the client writes.
    #[must_use]
    #[track_caller]
    pub fn with_tiers<F, T>(mut self, tiers: Tiers, resolve: F) -> Self
    where
        F: Fn(RequestHead<'_>) -> Option<T> + Send + Sync + 'static,
        T: AsRef<str>,
    {
        self.tiers = tiers.compile(&self.name).unwrap_or_else(|error| panic!("{error}"));
        self.resolver = Some(Resolver::from_fn(resolve));
        self
    }

    /// As [`with_tiers`](Self::with_tiers), for a resolver that has to wait. It takes from the
    /// request what it needs and returns a future that borrows nothing.
    ///
    /// # Panics
    ///
    /// If two quotas of one tier count the same thing.
    #[must_use]
    #[track_caller]
    pub fn with_async_tiers<F, R, T>(mut self, tiers: Tiers, resolve: F) -> Self
    where
        F: Fn(RequestHead<'_>) -> R + Send + Sync + 'static,
        R: Future<Output = Option<T>> + Send + 'static,
        T: Into<String>,
    {
        self.tiers = tiers.compile(&self.name).unwrap_or_else(|error| panic!("{error}"));
        self.resolver = Some(Resolver::from_async_fn(resolve));
        self
    }

    /// Whose quota a request counts against. Default: the client's address.
    #[must_use]
    pub fn with_key(mut self, key: KeyExtractor) -> Self {
        self.key = key;
        self
    }

    /// Whose quota a request counts against, where that has to be waited for, as for a session. The
    /// function takes from the request what it needs and returns a future that borrows nothing (a
    /// named one says `-> impl Future<..> + use<>`). Where it finds nobody, [`with_key`](Self::with_key) decides: visitors without a session
    /// count by address unless told otherwise.
    ///
    /// The lists and the exemption are asked before, asynchronous tiers after.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{collections::HashMap, convert::Infallible, sync::Arc};
    /// use bytes::Bytes;
    /// use http::{Request, Response, header::AUTHORIZATION};
    /// use http_body_util::Full;
    /// use tokio::sync::RwLock;
    /// use tower::{Service, ServiceBuilder, ServiceExt};
    /// use tower_keep::{MemoryStorage, RateLimitLayer, rate_limit::{PeerAddr, Policy}};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let tokens = HashMap::from([("t-1", "alice"), ("t-2", "alice"), ("t-3", "bob")]);
    /// let users = Arc::new(RwLock::new(tokens));
    /// let policy = Policy::new("api", "10/min".parse()?).with_async_key(move |head| {
    ///     let (users, token) = (Arc::clone(&users), head.headers().get(AUTHORIZATION).cloned());
    ///     async move { users.read().await.get(token?.to_str().ok()?).copied() }
    /// });
    ///
    /// let layer = RateLimitLayer::new(MemoryStorage::new(), policy);
    /// let mut service = ServiceBuilder::new().layer(layer).service_fn(|_: Request<()>| async {
    ///     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("hello"))))
    /// });
    /// let peer = PeerAddr("192.0.2.1:4711".parse()?);
    /// // All from one address; the token t-9 is nobody's.
    /// for (token, left) in [("t-1", "9"), ("t-2", "8"), ("t-3", "9"), ("t-9", "9"), ("", "8")] {
    ///     let request = Request::builder().header(AUTHORIZATION, token).extension(peer).body(())?;
    ///     let response = service.ready().await?.call(request).await?;
    ///     assert_eq!(response.headers()["x-ratelimit-remaining"], left);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Security
    ///
    /// What is looked up is not limited by this policy: whoever makes up tokens causes as many
    /// lookups. Put a limit by address outside of it.
    #[must_use]
    pub fn with_async_key<F, R, I>(mut self, extract: F) -> Self
    where
        F: Fn(RequestHead<'_>) -> R + Send + Sync + 'static,
        R: Future<Output = Option<I>> + Send + 'static,
        I: Into<Identity>,
    {
        self.async_key = Some(AsyncKey::from_fn(extract));
        self
    }

    /// How the client's address is found. Default: the peer of the connection.
    #[must_use]
    pub fn with_client_address(mut self, address: ClientAddress) -> Self {
        self.address = address;
        self
    }

    /// The units that a request costs. Default: 1. A cost of 0 always passes.
    #[must_use]
    pub fn with_cost(
        mut self,
        cost: impl Fn(RequestHead<'_>) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// Reserves the cost before the handler runs and settles for the real one after.
    #[must_use]
    pub fn with_settlement(mut self, settlement: Settlement) -> Self {
        self.settlement = Some(settlement);
        self
    }

    /// Lets a request count whose answer only repeats a stored one. Default: a response with a
    /// [`ReplayMark`](crate::marks::ReplayMark) costs nothing, whatever a [`Settlement`] would say:
    /// its units are given back, as the handler did not run.
    ///
    /// Units are taken before anybody knows what the answer will be. So a client that has none left
    /// is refused, replay or not.
    ///
    /// # Security
    ///
    /// What is free can be repeated as often as one likes, and each time costs a lookup and the
    /// bytes of the answer. Of several limits, let the outermost one, by address, count replays.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_keep::rate_limit::{KeyExtractor, Policy};
    ///
    /// let by_address = Policy::new("address", "600/min".parse()?).with_replays_counted();
    /// let by_customer = Policy::new("orders", "20/min".parse()?)
    ///     .with_key(KeyExtractor::header("x-api-key"));
    /// # let _ = (by_address, by_customer);
    /// # Ok::<_, tower_keep::quota::ParseQuotaError>(())
    /// ```
    #[must_use]
    pub fn with_replays_counted(mut self) -> Self {
        self.counts_replays = true;
        self
    }

    /// Requests that are not limited at all.
    #[must_use]
    pub fn with_exemption(
        mut self,
        exempt: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.exempt = Some(Arc::new(exempt));
        self
    }

    /// Client addresses that are not limited at all.
    #[must_use]
    pub fn with_allow_list(mut self, networks: Networks) -> Self {
        self.allowed = Some(networks);
        self
    }

    /// Client addresses that are refused with 403, before anything is counted. Wins over the allow
    /// list.
    ///
    /// A request of which the server does not know the address could be anybody's, so it is refused
    /// as one without identity, unless [`with_missing_identity`](Self::with_missing_identity) says
    /// otherwise.
    #[must_use]
    pub fn with_deny_list(mut self, networks: Networks) -> Self {
        self.denied = Some(networks);
        self
    }

    /// Whom the policy really refuses. Default: everybody.
    #[must_use]
    pub fn with_enforcement(mut self, enforcement: Enforcement) -> Self {
        self.enforcement = enforcement;
        self
    }

    /// Which header fields tell the client about its quota. Default: all.
    ///
    /// # Security
    ///
    /// On a login route they also tell an attacker; see [`Headers::none`].
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// What happens to requests that have no identity. Default: they are refused.
    #[must_use]
    pub fn with_missing_identity(mut self, missing: MissingIdentity) -> Self {
        self.missing_identity = missing;
        self
    }

    /// What happens while the storage gives no answer. Default: each process counts for itself.
    #[must_use]
    pub fn with_outage(mut self, outage: Outage) -> Self {
        self.outage = outage;
        self
    }

    /// Replaces the responses of rejections, of every [kind](Rejection::kind). The quota's header
    /// fields are added to it; the status is yours to set.
    ///
    /// The body is [`Bytes`], so axum's `into_response` does not fit; build it with `http`.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::Response;
    /// use tower_keep::rate_limit::Policy;
    ///
    /// let policy = Policy::new("api", "100/min".parse()?).with_rejection(|rejection| {
    ///     let mut response = Response::new(Bytes::from_static(b"slow down\n"));
    ///     *response.status_mut() = rejection.status();
    ///     response
    /// });
    /// # let _ = policy;
    /// # Ok::<_, tower_keep::quota::ParseQuotaError>(())
    /// ```
    #[must_use]
    pub fn with_rejection(
        mut self,
        respond: impl Fn(&Rejection) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.respond = Some(Arc::new(respond));
        self
    }

    /// How long a refusal may be remembered in this process, so that a flood costs the storage
    /// nothing. Default: 1 s; zero asks every time.
    ///
    /// Within the process the memory is exact. What others give back, reset or raise is seen when
    /// it ends. Policies with a [`Settlement`] remember nothing.
    #[must_use]
    pub fn with_denial_memory(mut self, memory: Duration) -> Self {
        self.denial_memory = memory;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    pub(super) fn cost(&self, head: RequestHead<'_>) -> u32 {
        self.cost.as_ref().map_or(1, |cost| cost(head))
    }

    pub(super) fn denial_memory(&self) -> Duration {
        if self.settlement.is_some() { Duration::ZERO } else { self.denial_memory }
    }

    pub(super) fn enforces(&self, identity: &Identity) -> bool {
        self.enforcement.holds_for(&self.name, identity)
    }

    /// Whether the lists or the exemption settle the request without a quota.
    pub(super) fn admission(&self, head: RequestHead<'_>) -> Admission {
        if self.denied.is_some() || self.allowed.is_some() {
            let address = self.address.resolve(head);
            let lists = |list: &Option<Networks>| {
                list.as_ref().zip(address).is_some_and(|(list, address)| list.contains(address))
            };
            if lists(&self.denied) {
                return Admission::Denied;
            }
            let refuse = self.missing_identity == MissingIdentity::Refuse;
            if self.denied.is_some() && address.is_none() && refuse {
                return Admission::NoAddress;
            }
            if lists(&self.allowed) {
                return Admission::Exempt;
            }
        }
        match &self.exempt {
            Some(exempt) if exempt(head) => Admission::Exempt,
            _ => Admission::Limited,
        }
    }

    /// The quotas of a tier; `None` is unlimited.
    pub(super) fn quotas_of(&self, choice: Choice) -> Option<&QuotaSet> {
        match choice {
            Choice::Base | Choice::Unknown => Some(&self.quotas),
            Choice::Tier(index) => self.tiers.get(index)?.1.as_deref(),
        }
    }

    /// Every quota that a request of any tier could be charged to, each counter once.
    pub(super) fn all_quotas(&self) -> Vec<&QuotaItem> {
        let tiers = self.tiers.iter().filter_map(|(_, set)| set.as_deref());
        let mut seen = HashSet::new();
        std::iter::once(&*self.quotas)
            .chain(tiers)
            .flat_map(|set| &set.items)
            .filter(|item| seen.insert(item.detail.clone()))
            .collect()
    }

    pub(super) fn respond(&self, rejection: &Rejection) -> Response<Bytes> {
        match &self.respond {
            Some(respond) => {
                let mut response = respond(rejection);
                rejection.write_headers(&mut response);
                response
            }
            None => rejection.to_response(),
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("quotas", &self.quotas.quotas().collect::<Vec<_>>())
            .field("tiers", &self.tiers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("key", &self.key)
            .field("async_key", &self.async_key.is_some())
            .field("outage", &self.outage)
            .finish_non_exhaustive()
    }
}

/// What the lists and exemptions of a policy say of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Limited,
    Exempt,
    Denied,
    /// The deny list cannot be asked.
    NoAddress,
}

/// Quotas that are decided together, with their names in responses and keys.
#[derive(Debug)]
pub(super) struct QuotaSet {
    pub(super) items: Vec<QuotaItem>,
    pub(super) policy_header: Option<HeaderValue>,
}

#[derive(Debug)]
pub(super) struct QuotaItem {
    /// The quota, and its name in headers and problem details.
    pub(super) shown: Shown,
    /// In keys.
    pub(super) detail: Name,
    /// The body of the response when this quota is used up and the others are not.
    pub(super) used_up: Bytes,
}

impl QuotaSet {
    pub(super) fn new(policy: &Name, quotas: &[Quota]) -> Result<Self, PolicyError> {
        if quotas.is_empty() {
            return Err(PolicyError::NoQuota);
        }
        let shown = Shown::of_policy(policy, quotas);
        let policy_header = Headers::new().policy_value(&shown);
        let mut items: Vec<QuotaItem> = Vec::with_capacity(quotas.len());
        for (quota, shown) in quotas.iter().zip(shown) {
            let detail = Name::new(&format!("{policy:?}.{}", quota.counter_name()));
            if let Some(same) = items.iter().find(|item| item.detail == detail) {
                return Err(PolicyError::SameCounter(same.shown.quota(), *quota));
            }
            let used_up = used_up([shown.name()]).body();
            items.push(QuotaItem { shown, detail, used_up });
        }
        Ok(Self { items, policy_header })
    }

    pub(super) fn quotas(&self) -> impl Iterator<Item = Quota> {
        self.items.iter().map(|item| item.shown.quota())
    }
}
