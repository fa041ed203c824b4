//! How long sessions live, and how they are carried.

use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;

use super::{
    Device, Notice, SessionMap,
    cookie::{CookieError, CookieSettings, Cookies},
};
use crate::{RequestHead, storage::Name};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Browsers keep no cookie longer (RFC 6265bis §5.5), so no session can outlive its own.
const LONGEST_LIFETIME: Duration = Duration::from_secs(400 * 24 * 3_600);
/// Longer names would not leave room for the rest of the namespace.
const LONGEST_NAME: usize = 40;
/// As many as fit into the first bucket of the index, which one write decides.
const LARGEST_CAP: u8 = 64;

/// Why a [`Policy`] cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// The name is not of 1 to 40 characters from `a-z`, `A-Z`, `0-9`, `-`, `_`, `.`.
    Name(String),
    /// The absolute lifetime is not between a second and 400 days.
    Lifetime(Duration),
    /// The idle timeout is shorter than a second or longer than the absolute lifetime.
    IdleTimeout(Duration),
    /// With a slack as long as the idle timeout, or a longer one, no use would ever be noted.
    TouchSlack(Duration),
    /// There is no time between two rotations.
    Rotation,
    /// In no time at all no storage answers.
    Timeout,
    /// A principal may have 1 to 64 sessions.
    Cap(u8),
    /// A policy for a realm of its own needs a name of its own.
    RealmName,
    /// The settings of the cookie contradict one another.
    Cookie(CookieError),
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(
                f,
                "{name:?} is no name for sessions: use 1 to {LONGEST_NAME} characters from a-z, \
                 A-Z, 0-9, '-', '_', '.'"
            ),
            Self::Lifetime(lifetime) => write!(
                f,
                "an absolute lifetime of {lifetime:?} cannot be used: choose one between a second \
                 and 400 days, after which browsers drop every cookie"
            ),
            Self::IdleTimeout(idle) => write!(
                f,
                "an idle timeout of {idle:?} cannot be used: choose one between a second and the \
                 absolute lifetime"
            ),
            Self::TouchSlack(slack) => write!(
                f,
                "a slack of {slack:?} cannot be used: choose one shorter than the idle timeout, so \
                 that sessions which are used go on"
            ),
            Self::Rotation => f.write_str(
                "a rotation without any time between cannot be used: every request would rotate",
            ),
            Self::Timeout => f.write_str(
                "a timeout of nothing cannot be used: every operation of the storage would fail",
            ),
            Self::Cap(cap) => {
                write!(f, "a principal may have 1 to {LARGEST_CAP} sessions, not {cap}")
            }
            Self::RealmName => f.write_str(
                "the sessions of a realm need a name of their own, so that they share neither \
                 cookie nor keys with others: use `Policy::named(\"admin\")`",
            ),
            Self::Cookie(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PolicyError {}

/// What happens to requests that read their session while the storage gives no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Outage {
    /// They are refused: 503 with `Retry-After`. The default.
    #[default]
    Closed,
    /// They see an empty session, and nothing that they write is kept. The cookie is left alone, so
    /// the session is back when the storage is.
    Anonymous,
}

/// What happens when a principal logs in more often than the cap allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverCap {
    /// The session that began first is ended.
    EndOldest,
    /// The session that was used least recently is ended.
    EndLeastRecentlyUsed,
    /// The new login is refused.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Cap {
    pub(super) most: u8,
    pub(super) over: OverCap,
}

/// How a request is answered that needs a session and has none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Unauthorized {
    #[default]
    Problem,
    Redirect(http::HeaderValue),
}

pub(super) type Migrate = dyn Fn(u32, &mut SessionMap) -> Result<(), MigrateError> + Send + Sync;
type Saves = dyn Fn(StatusCode) -> bool + Send + Sync;
type DescribeDevice = dyn Fn(RequestHead<'_>) -> Device + Send + Sync;
type Observe = dyn Fn(&Notice) + Send + Sync;

/// Why the data of a session could not be brought to the present schema.
pub type MigrateError = Box<dyn std::error::Error + Send + Sync>;

/// How long sessions live, and how they are carried.
///
/// Everything has a default that is safe to keep: an idle timeout of 7 days, an absolute lifetime of
/// 30 (NIST SP 800-63B-4, AAL1), the cookie `__Host-sid` with `Secure`, `HttpOnly` and
/// `SameSite=Lax`, and requests that need a session refused while the storage is away.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_keep::session::{CookieSettings, OverCap, Policy, SameSite};
///
/// let policy = Policy::aal2()
///     .with_cookie(CookieSettings::new().with_same_site(SameSite::Strict))
///     .with_rotation(Duration::from_secs(3_600))
///     .with_cap(5, OverCap::EndLeastRecentlyUsed);
/// # let _ = policy;
/// ```
#[derive(Clone)]
pub struct Policy {
    name: String,
    pub(super) idle: Duration,
    pub(super) lifetime: Duration,
    slack: Option<Duration>,
    pub(super) rotation: Option<Duration>,
    pub(super) grace: Duration,
    pub(super) timeout: Duration,
    cookie: CookieSettings,
    pub(super) bearer: bool,
    pub(super) outage: Outage,
    pub(super) cap: Option<Cap>,
    pub(super) max_size: usize,
    pub(super) unauthorized: Unauthorized,
    pub(super) strict_saves: bool,
    pub(super) schema: u32,
    pub(super) migrate: Option<Arc<Migrate>>,
    saves: Option<Arc<Saves>>,
    device: Option<Arc<DescribeDevice>>,
    observe: Option<Arc<Observe>>,
}

impl Policy {
    /// Sessions named `sid`: the cookie is `__Host-sid`.
    pub fn new() -> Self {
        Self::named("sid")
    }

    /// Sessions of this name: they share neither cookie nor keys with those of another. The cookie is
    /// `__Host-` and the name.
    ///
    /// Names that cannot be used are refused where the policy is.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            idle: 7 * DAY,
            lifetime: 30 * DAY,
            slack: None,
            rotation: None,
            grace: Duration::from_secs(20),
            timeout: Duration::from_millis(500),
            cookie: CookieSettings::new(),
            bearer: false,
            outage: Outage::default(),
            cap: None,
            max_size: 64 << 10,
            unauthorized: Unauthorized::default(),
            strict_saves: false,
            schema: 0,
            migrate: None,
            saves: None,
            device: None,
            observe: None,
        }
    }

    /// NIST SP 800-63B-4 §2.1.3, the lowest level: 30 days in all.
    pub fn aal1() -> Self {
        Self::new().with_lifetime(30 * DAY)
    }

    /// NIST SP 800-63B-4 §2.2.3: 24 hours in all, an hour without use.
    pub fn aal2() -> Self {
        Self::new().with_lifetime(DAY).with_idle_timeout(HOUR)
    }

    /// NIST SP 800-63B-4 §2.3.3: 12 hours in all, 15 minutes without use.
    pub fn aal3() -> Self {
        Self::new().with_lifetime(12 * HOUR).with_idle_timeout(15 * MINUTE)
    }

    /// The time without use after which a session is over. Default: 7 days, but never more than the
    /// absolute lifetime.
    #[must_use]
    pub fn with_idle_timeout(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// The time after which a session is over however much it is used: at least a second, at most
    /// 400 days. Default: 30 days. It counts from the beginning of the session or the last login.
    ///
    /// An idle timeout that is longer is cut to it. A shorter lifetime than before holds for sessions
    /// that are there already.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self.idle = self.idle.min(lifetime);
        self
    }

    /// How far the remaining life may fall below the idle timeout before a read writes it back.
    /// Default: a twentieth of the idle timeout, from a second to 5 minutes, and at most half of it.
    /// It has to be shorter than the idle timeout.
    #[must_use]
    pub fn with_touch_slack(mut self, slack: Duration) -> Self {
        self.slack = Some(slack);
        self
    }

    /// Gives the session a new id at most that often, while it is used. Default: only at a login and
    /// when a handler asks for it.
    ///
    /// The old id goes on working until the new one has been used, and for a short
    /// [grace](Self::with_rotation_grace) after, for requests that were under way.
    #[must_use]
    pub fn with_rotation(mut self, every: Duration) -> Self {
        self.rotation = Some(every);
        self
    }

    /// How long the old id works after the new one of a periodic rotation was first used. Default:
    /// 20 seconds. After that, its use is reported as [`Notice::IdReused`].
    #[must_use]
    pub fn with_rotation_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long one operation of the storage may take. Default: 500 ms. A save that has to be tried
    /// again, or waits for others of the same session, gives up after ten times that.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How the cookie is made.
    #[must_use]
    pub fn with_cookie(mut self, cookie: CookieSettings) -> Self {
        self.cookie = cookie;
        self
    }

    /// Also takes the session from `Authorization: Bearer`, for clients that are no browsers. The
    /// token is the one that [`SessionHandle::token`](super::SessionHandle::token) tells.
    ///
    /// A request whose cookie and bearer token are two sessions is refused with 400. A session that
    /// came by bearer is not sent as a cookie, unless the cookie came too; nor does it
    /// [rotate](Self::with_rotation) by itself, for its client would not get to know the new token.
    #[must_use]
    pub fn with_bearer(mut self) -> Self {
        self.bearer = true;
        self
    }

    /// What happens while the storage gives no answer. Default: [`Outage::Closed`].
    #[must_use]
    pub fn with_outage(mut self, outage: Outage) -> Self {
        self.outage = outage;
        self
    }

    /// How many sessions one principal may have at a time, 1 to 64, and what happens at the next
    /// login. Default: any number.
    #[must_use]
    pub fn with_cap(mut self, most: u8, over: OverCap) -> Self {
        self.cap = Some(Cap { most, over });
        self
    }

    /// How many bytes the data of one session may take on the storage. Default: 64 KiB. A change that
    /// makes it larger is refused with 413.
    ///
    /// It bounds one session, not how many of them visitors begin: put a rate limit by address around
    /// routes that write to the sessions of anybody.
    #[must_use]
    pub fn with_max_size(mut self, bytes: usize) -> Self {
        self.max_size = bytes;
        self
    }

    /// Requests that need a session and have none are sent here with 303, instead of 401: by the
    /// extractors [`Principal`](super::Principal), [`RequiredSession`](super::RequiredSession) and
    /// [`RecentAuth`](super::RecentAuth), on all routes of the layer. A
    /// [`SessionError`](super::SessionError) stays what it is.
    ///
    /// For routes that answer programs, or to come back after the login, take
    /// `Result<Principal, SessionRejection>` and answer yourself.
    ///
    /// # Panics
    ///
    /// If the target cannot be the value of a header field.
    #[must_use]
    #[track_caller]
    pub fn with_login_redirect(mut self, target: &str) -> Self {
        let target = target.parse().expect("the target of a redirect is a URI reference");
        self.unauthorized = Unauthorized::Redirect(target);
        self
    }

    /// Answers 503 instead of the handler's response when what it changed could not be saved, and
    /// 409 when the session had ended meanwhile. Default: the response goes out, and the failure is
    /// an event and a [`SaveFailure`](super::SaveFailure) among its extensions.
    ///
    /// A handler that needs to know calls [`Session::save`](super::Session::save).
    #[must_use]
    pub fn with_strict_saves(mut self) -> Self {
        self.strict_saves = true;
        self
    }

    /// After which responses the changes are saved. Default: after all but server errors (5xx) and
    /// 408, which an inner timeout answers while the handler was half-way.
    ///
    /// What a handler awaits itself (login, rotation, `save`, `update`, `destroy`) is done then.
    #[must_use]
    pub fn with_saves(
        mut self,
        saves: impl Fn(StatusCode) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.saves = Some(Arc::new(saves));
        self
    }

    /// The version of the session's data, and how older data is brought up to it. Default: 0.
    ///
    /// The function is given the older version and the data, and is called when such a session is
    /// read; the outcome is stored with the next change. Sessions of a higher version than this are
    /// left alone and count as none, and a save in their place is refused as in an outage (503), so old
    /// and new processes can run side by side. A login or logout ends them.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_keep::session::Policy;
    ///
    /// let policy = Policy::new().with_schema(1, |_from, data| {
    ///     // Version 0 called it `name`.
    ///     if let Some(name) = data.take::<String>("name")? {
    ///         data.insert("user", &name)?;
    ///     }
    ///     Ok(())
    /// });
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn with_schema(
        mut self,
        version: u32,
        migrate: impl Fn(u32, &mut SessionMap) -> Result<(), MigrateError> + Send + Sync + 'static,
    ) -> Self {
        self.schema = version;
        self.migrate = Some(Arc::new(migrate));
        self
    }

    /// How the client of a login is told from others in lists of sessions. Default: its `User-Agent`
    /// and the network of the socket's peer (with the feature `axum`).
    ///
    /// Behind a proxy, tell the client's address:
    ///
    /// ```
    /// # #[cfg(feature = "rate-limit")] {
    /// use tower_keep::{rate_limit::ClientAddress, session::{Device, Policy}};
    ///
    /// let address = ClientAddress::behind_proxies(["10.0.0.0/8"]).unwrap();
    /// let policy = Policy::new().with_device(move |head| {
    ///     let device = Device::of(head);
    ///     match address.resolve(head) {
    ///         Some(address) => device.with_address(address),
    ///         None => device,
    ///     }
    /// });
    /// # let _ = policy;
    /// # }
    /// ```
    #[must_use]
    pub fn with_device(
        mut self,
        device: impl Fn(RequestHead<'_>) -> Device + Send + Sync + 'static,
    ) -> Self {
        self.device = Some(Arc::new(device));
        self
    }

    /// Is told what happens to sessions unasked: the reuse of an old id, an eviction by the cap, a
    /// record that cannot be read, a save that came too late.
    #[must_use]
    pub fn with_observer(mut self, observe: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.observe = Some(Arc::new(observe));
        self
    }

    pub(super) fn cookies(&self) -> Result<Cookies, PolicyError> {
        self.cookie.clone().build(&self.name).map_err(PolicyError::Cookie)
    }

    /// The part of the storage that belongs to these sessions.
    pub(super) fn namespace(&self) -> Result<Name, PolicyError> {
        Name::try_new(&format!("session.{}", self.name))
            .ok()
            .filter(|_| (1..=LONGEST_NAME).contains(&self.name.len()))
            .ok_or_else(|| PolicyError::Name(self.name.chars().take(80).collect()))
    }

    pub(super) fn check(&self, realm_is_default: bool) -> Result<(), PolicyError> {
        self.namespace()?;
        let second = Duration::from_secs(1);
        if !(second..=LONGEST_LIFETIME).contains(&self.lifetime) {
            return Err(PolicyError::Lifetime(self.lifetime));
        }
        if !(second..=self.lifetime).contains(&self.idle) {
            return Err(PolicyError::IdleTimeout(self.idle));
        }
        if self.slack() >= self.idle {
            return Err(PolicyError::TouchSlack(self.slack()));
        }
        if self.rotation.is_some_and(|every| every.is_zero()) {
            return Err(PolicyError::Rotation);
        }
        if self.timeout.is_zero() {
            return Err(PolicyError::Timeout);
        }
        match self.cap {
            Some(cap) if !(1..=LARGEST_CAP).contains(&cap.most) => {
                return Err(PolicyError::Cap(cap.most));
            }
            _ => {}
        }
        if !realm_is_default && self.name == "sid" {
            return Err(PolicyError::RealmName);
        }
        Ok(())
    }

    /// How long a whole change may take.
    pub(super) fn patience(&self) -> Duration {
        self.timeout.saturating_mul(10)
    }

    pub(super) fn slack(&self) -> Duration {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(300));
        self.slack.unwrap_or((self.idle / 20).clamp(least, most).min(self.idle / 2))
    }

    pub(super) fn saves_after(&self, status: StatusCode) -> bool {
        match &self.saves {
            Some(saves) => saves(status),
            None => !status.is_server_error() && status != StatusCode::REQUEST_TIMEOUT,
        }
    }

    pub(super) fn device(&self, head: RequestHead<'_>) -> Device {
        match &self.device {
            Some(device) => device(head),
            None => Device::of(head),
        }
    }

    pub(super) fn observe(&self, notice: &Notice) {
        if let Some(observe) = &self.observe {
            observe(notice);
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("idle_timeout", &self.idle)
            .field("lifetime", &self.lifetime)
            .field("rotation", &self.rotation)
            .field("cookie", &self.cookie)
            .field("bearer", &self.bearer)
            .field("outage", &self.outage)
            .field("cap", &self.cap)
            .field("strict_saves", &self.strict_saves)
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}
