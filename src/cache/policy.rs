//! What is stored, for how long, and under what.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderName, StatusCode, header};

use super::{
    control::{Output, Rules},
    key::{KeyRule, Query},
    tags::{TagForwarding, TagRule},
};
use crate::{RequestHead, storage::Identity};

/// Bodies above this are not stored unless told otherwise.
const DEFAULT_MAX_BODY: usize = 1 << 20;
const DEFAULT_LONGEST_LIFE: Duration = Duration::from_secs(7 * 86_400);
const DEFAULT_KEEP_STALE: Duration = Duration::from_secs(86_400);
const DEFAULT_FILL_TIMEOUT: Duration = Duration::from_secs(60);

type TagsFn = dyn Fn(RequestHead<'_>) -> Vec<String> + Send + Sync;

/// How much `Cache-Status` (RFC 9211) tells the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StatusHeader {
    /// No field is sent.
    Off,
    /// Hit or miss, and the time to live. The default.
    #[default]
    Brief,
    /// Also why an answer was not stored or not used (`detail`), for development: it tells strangers
    /// how the service decides.
    Detailed,
}

/// What is stored, for how long, and under what.
///
/// There are two modes. [`http`](Self::http) does what the handler's `Cache-Control` says, as a
/// shared cache by RFC 9111 does, and has no time to live of its own. [`output`](Self::output) gives
/// every answer of the route one that is set here, whatever the handler says about it, short of
/// `no-store`, `no-cache` and `private`.
///
/// # Security
///
/// Answers of touched [sessions](crate::marks::SessionMark), with `Set-Cookie`, `Vary: *`,
/// `Vary: Cookie`, `private` or `no-store` are not stored, and those to requests with `Authorization`
/// only where RFC 9111 §3.5 allows it (`public`, `s-maxage`, `must-revalidate`).
///
/// In HTTP mode cookies mean nothing to the cache: handlers whose answers depend on them say `private`
/// or `Vary: Cookie`. The handler does not see fields by which proxies overrule the request line
/// (`X-Forwarded-Host` and the like).
///
/// In output mode requests with `Authorization` or `Cookie` pass by, and of the header fields the
/// handler sees `Host`, `Accept`, `Accept-Language`, `Content-Length`, `traceparent`, `tracestate`,
/// those in the key, those made [visible](Self::add_visible_header), and the `If-None-Match` of a
/// revalidation: what it cannot see it cannot leak into the answer of somebody else. If it uses
/// `Accept` or `Accept-Language`, it has to say so in `Vary`.
///
/// What it learns from request extensions, such as a user that an authentication layer has put there,
/// is not hidden: such a layer should touch the [mark](crate::marks::SessionMark), or the policy name
/// a [principal](Self::with_principal).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use http::StatusCode;
/// use tower_keep::cache::Policy;
///
/// let policy = Policy::output(Duration::from_secs(60))
///     .with_stale_while_revalidate(Duration::from_secs(10))
///     .with_negative_ttl(StatusCode::NOT_FOUND, Duration::from_secs(5))
///     .with_tags(["products"]);
/// # let _ = policy;
/// ```
#[derive(Clone)]
pub struct Policy {
    pub(super) rules: Rules,
    pub(super) key: KeyRule,
    pub(super) tags: Vec<String>,
    pub(super) request_tags: Vec<Arc<TagsFn>>,
    pub(super) tag_rule: TagRule,
    pub(super) visible: Vec<HeaderName>,
    pub(super) max_body: usize,
    pub(super) etag: bool,
    pub(super) status: StatusHeader,
    pub(super) status_name: Arc<str>,
    pub(super) early_refresh: Option<f64>,
    pub(super) jitter: f64,
    pub(super) lease: Option<Duration>,
    pub(super) fill_timeout: Duration,
}

impl Policy {
    /// Stores what the handler's header fields allow, for as long as they say: RFC 9111 as a shared
    /// cache.
    pub fn http() -> Self {
        Self {
            rules: Rules {
                output: None,
                target: Some(HeaderName::from_static("tower-keep-cache-control")),
                strip_set_cookie: false,
                keyed_principal: false,
                honour_request: false,
                stale_despite_s_maxage: false,
                longest_life: DEFAULT_LONGEST_LIFE,
                keep_stale: DEFAULT_KEEP_STALE,
                stale_if_unreachable: Duration::ZERO,
                output_cookies_ignored: false,
            },
            key: KeyRule::default(),
            tags: Vec::new(),
            request_tags: Vec::new(),
            tag_rule: TagRule::default(),
            visible: Vec::new(),
            max_body: DEFAULT_MAX_BODY,
            etag: true,
            status: StatusHeader::default(),
            status_name: "tower-keep".into(),
            early_refresh: None,
            jitter: 0.0,
            lease: None,
            fill_timeout: DEFAULT_FILL_TIMEOUT,
        }
    }

    /// Stores every answer with status 200, 203, 204, 301 or 308 for this long, unless the handler
    /// forbids it by `no-store`, `no-cache` or `private`.
    ///
    /// The time is the cache's own: clients are not told, and fetch or revalidate each time.
    pub fn output(ttl: Duration) -> Self {
        let mut policy = Self::http();
        policy.rules.output = Some(Output {
            ttl,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            negative: Vec::new(),
        });
        policy
    }

    #[track_caller]
    fn output_mut(&mut self, setting: &str) -> &mut Output {
        match &mut self.rules.output {
            Some(output) => output,
            None => {
                panic!("{setting} belongs to `Policy::output`; in HTTP mode the handler says so")
            }
        }
    }

    /// Output mode: for this long after its end an answer is still given, while one request renews
    /// it in the background.
    ///
    /// # Panics
    ///
    /// In HTTP mode, where the handler says `stale-while-revalidate`.
    #[must_use]
    #[track_caller]
    pub fn with_stale_while_revalidate(mut self, window: Duration) -> Self {
        self.output_mut("stale-while-revalidate").stale_while_revalidate = window;
        self
    }

    /// Output mode: for this long after its end an answer is given instead of an error.
    ///
    /// # Panics
    ///
    /// In HTTP mode, where the handler says `stale-if-error`.
    #[must_use]
    #[track_caller]
    pub fn with_stale_if_error(mut self, window: Duration) -> Self {
        self.output_mut("stale-if-error").stale_if_error = window;
        self
    }

    /// Output mode: also stores answers of this status, for a time of their own.
    ///
    /// # Panics
    ///
    /// In HTTP mode, where the handler says `max-age`.
    #[must_use]
    #[track_caller]
    pub fn with_negative_ttl(mut self, status: StatusCode, ttl: Duration) -> Self {
        let negative = &mut self.output_mut("a negative TTL").negative;
        negative.retain(|(known, _)| *known != status);
        negative.push((status, ttl));
        self
    }

    /// Which part of the query belongs to the key. Default: all of it, as it is.
    #[must_use]
    pub fn with_query(mut self, query: Query) -> Self {
        self.key.query = query;
        self
    }

    /// Makes a header field of the request part of the key; the handler may then depend on it.
    ///
    /// # Panics
    ///
    /// If that is no name of a header field, or that of a credential (`Cookie`, `Authorization`).
    #[must_use]
    #[track_caller]
    pub fn add_key_header(mut self, name: &str) -> Self {
        self.key.headers.push(plain_header_name(name));
        self
    }

    /// Makes something about the request part of the key: the tenant, the API version, a bucket of
    /// an experiment. `None` is a key of its own.
    #[must_use]
    pub fn add_key_part<P: Into<Identity>>(
        mut self,
        part: impl Fn(RequestHead<'_>) -> Option<P> + Send + Sync + 'static,
    ) -> Self {
        self.key.parts.push(Arc::new(move |head| part(head).map(Into::into)));
        self
    }

    /// Stores answers per principal, also those to requests with `Authorization` or `Cookie` and of
    /// touched sessions: the opt-in for private answers. Requests without a principal (`None`) pass
    /// by. An answer that itself says `Cache-Control: private` is still not stored.
    ///
    /// # Security
    ///
    /// The principal has to be what the *authentication* has found out, such as a user id in the
    /// request extensions; never a header field that a client can choose freely. An answer is given
    /// to everybody with an equal principal.
    #[must_use]
    pub fn with_principal<P: Into<Identity>>(
        mut self,
        principal: impl Fn(RequestHead<'_>) -> Option<P> + Send + Sync + 'static,
    ) -> Self {
        self.key.principal = Some(Arc::new(move |head| principal(head).map(Into::into)));
        self.rules.keyed_principal = true;
        self
    }

    /// Lets the handler see a header field that is not part of the key, and would be removed: in HTTP
    /// mode one of those by which proxies overrule the request line (`X-Forwarded-Proto` and the
    /// like), in output mode any. It must not influence the answer.
    ///
    /// # Panics
    ///
    /// If that is no name of a header field, or that of a credential (`Cookie`, `Authorization`).
    #[must_use]
    #[track_caller]
    pub fn add_visible_header(mut self, name: &str) -> Self {
        self.visible.push(plain_header_name(name));
        self
    }

    /// Output mode: cookies do not matter to this route. They are removed from what the handler sees,
    /// and no longer a reason to pass by.
    ///
    /// # Panics
    ///
    /// In HTTP mode, where cookies mean nothing to the cache: handlers whose answers depend on them
    /// say `private` or `Vary: Cookie`.
    #[must_use]
    #[track_caller]
    pub fn with_cookies_ignored(mut self) -> Self {
        self.output_mut("ignoring cookies");
        self.rules.output_cookies_ignored = true;
        self
    }

    /// Stores answers with `Set-Cookie`, without that field. By default they are not stored.
    #[must_use]
    pub fn with_set_cookie_stripped(mut self) -> Self {
        self.rules.strip_set_cookie = true;
        self
    }

    /// HTTP mode: honours the `Cache-Control` and `Pragma` of requests. By default they are ignored,
    /// for they let any client send any request to the handler.
    #[must_use]
    pub fn with_request_directives(mut self) -> Self {
        self.rules.honour_request = true;
        self
    }

    /// HTTP mode: lets an explicit `stale-while-revalidate` or `stale-if-error` win over `s-maxage`,
    /// which by RFC 9111 §5.2.2.10 forbids stale answers.
    #[must_use]
    pub fn with_stale_despite_s_maxage(mut self) -> Self {
        self.rules.stale_despite_s_maxage = true;
        self
    }

    /// For this long after its end an answer is given where the service gives none at all: it fails
    /// with an error, or a gateway says so with 502 or 504 (RFC 9111 §4.2.4). Not those that forbid
    /// it, by `must-revalidate` and the like. Default: none.
    #[must_use]
    pub fn with_stale_if_unreachable(mut self, window: Duration) -> Self {
        self.rules.stale_if_unreachable = window;
        self
    }

    /// HTTP mode: the name of the targeted field (RFC 9213) that speaks to this cache alone, before
    /// `CDN-Cache-Control`. It is removed from responses. Default: `tower-keep-cache-control`.
    ///
    /// # Panics
    ///
    /// If that is no name of a header field.
    #[must_use]
    #[track_caller]
    pub fn with_target_field(mut self, name: &str) -> Self {
        self.rules.target = Some(header_name(name));
        self
    }

    /// Labels all answers of the route, instead of with what was set before.
    #[must_use]
    pub fn with_tags<T: Into<String>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// Labels answers by their request, such as by an id in the path.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_keep::cache::Policy;
    ///
    /// let policy = Policy::output(Duration::from_secs(60)).add_tags_from_request(|head| {
    ///     let id = head.uri().path().rsplit('/').next().unwrap_or_default();
    ///     vec![format!("product:{id}")]
    /// });
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn add_tags_from_request(
        mut self,
        tags: impl Fn(RequestHead<'_>) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        self.request_tags.push(Arc::new(tags));
        self
    }

    /// What becomes of tag fields in responses. Default: they are removed.
    #[must_use]
    pub fn with_tag_forwarding(mut self, forwarding: TagForwarding) -> Self {
        self.tag_rule.forwarding = forwarding;
        self
    }

    /// The largest body that is stored, in bytes: 1 MiB unless set. Larger ones stream through.
    #[must_use]
    pub fn with_max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// The longest that anything is kept, stale windows included: a week unless set, at least a
    /// second. The record of tags is kept as long.
    #[must_use]
    pub fn with_longest_life(mut self, life: Duration) -> Self {
        self.rules.longest_life = life.max(Duration::from_secs(1));
        self
    }

    /// How long a response with `ETag` or `Last-Modified` is kept after its end, to be revalidated
    /// instead of being made anew: a day unless set.
    #[must_use]
    pub fn with_kept_stale(mut self, window: Duration) -> Self {
        self.rules.keep_stale = window;
        self
    }

    /// Leaves responses without an `ETag` as they are. By default a stored one is given an `ETag` by
    /// its content, so that clients need not fetch it twice.
    #[must_use]
    pub fn without_etag(mut self) -> Self {
        self.etag = false;
        self
    }

    /// How much `Cache-Status` tells.
    #[must_use]
    pub fn with_status_header(mut self, status: StatusHeader) -> Self {
        self.status = status;
        self
    }

    /// What `Cache-Status` calls this cache: `tower-keep` unless set.
    ///
    /// # Panics
    ///
    /// If the name is not of 1 to 64 characters from `a-z`, `A-Z`, `0-9`, `-`, `_`, `.`, the first of
    /// them a letter.
    #[must_use]
    #[track_caller]
    pub fn with_status_name(mut self, name: &str) -> Self {
        let token = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && crate::storage::Name::try_new(name).is_ok();
        assert!(token, "{name:?} cannot stand in Cache-Status: use letters, digits, '-', '_', '.'");
        self.status_name = name.into();
        self
    }

    /// Renews an answer before its end, the likelier the nearer the end and the longer the handler
    /// takes (XFetch, VLDB 2015). `eagerness` is the paper's beta: 1 is usual, more is earlier.
    ///
    /// # Panics
    ///
    /// If the eagerness is not between 0 and 100.
    #[must_use]
    #[track_caller]
    pub fn with_early_refresh(mut self, eagerness: f64) -> Self {
        assert!((0.0..=100.0).contains(&eagerness), "an eagerness is between 0 and 100");
        self.early_refresh = Some(eagerness);
        self
    }

    /// Shortens every time to live by a random part of up to this share, so that what was stored
    /// together does not end together.
    ///
    /// # Panics
    ///
    /// If the share is not between 0 and 1.
    #[must_use]
    #[track_caller]
    pub fn with_jitter(mut self, share: f64) -> Self {
        assert!((0.0..=1.0).contains(&share), "a share is between 0 and 1");
        self.jitter = share;
        self
    }

    /// Lets one *node* fill at a time, by a [lease](crate::lease) that lives this long, while the
    /// others wait for its answer. For handlers that take long: each fill waits for two more round
    /// trips, and frees the lease by a third.
    /// What is stored does not depend on it: a node that loses its lease costs work, never
    /// correctness.
    #[must_use]
    pub fn with_lease(mut self, ttl: Duration) -> Self {
        self.lease = Some(ttl.max(Duration::from_millis(100)));
        self
    }

    /// How long others wait for a fill before they ask the handler themselves, and how long a body
    /// is stored while it streams: 60 s unless set.
    #[must_use]
    pub fn with_fill_timeout(mut self, timeout: Duration) -> Self {
        self.fill_timeout = timeout;
        self
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("rules", &self.rules)
            .field("tags", &self.tags)
            .field("max_body", &self.max_body)
            .field("status", &self.status)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

#[track_caller]
fn header_name(name: &str) -> HeaderName {
    HeaderName::try_from(name)
        .unwrap_or_else(|_| panic!("{name:?} cannot be the name of a header field"))
}

/// One that says nothing about who asks.
#[track_caller]
fn plain_header_name(name: &str) -> HeaderName {
    let name = header_name(name);
    assert!(
        name != header::COOKIE && name != header::AUTHORIZATION,
        "{name} says who asks: name the principal with `with_principal` instead"
    );
    name
}
