//! Which requests may use the cache.

use http::{HeaderMap, Method, header};

use super::{Forward, RequestDirectives, Rules};
use crate::head::RequestHead;

/// What a request may do with the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// It may be answered from the store, and its answer be stored.
    Lookup(Wishes),
    /// It goes to the handler and nothing is stored.
    Pass(Pass),
    /// It goes to the handler and its answer may invalidate what is stored.
    Invalidates,
}

/// What decides whether a stored response suits a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wishes {
    pub(crate) head: bool,
    pub(crate) authorization: bool,
    /// There is a condition or a range, so that the answer may be other than the stored response.
    pub(crate) conditional: bool,
    /// The default unless the rules honour them.
    pub(crate) directives: RequestDirectives,
}

/// Why a request passes the cache by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Method,
    MethodOverride,
    Upgrade,
    Body,
    Condition,
    Authorization,
    Cookie,
}

impl Pass {
    pub(crate) fn forward(self) -> Forward {
        match self {
            Self::Method => Forward::Method,
            Self::Condition => Forward::Request,
            _ => Forward::Bypass,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::MethodOverride => "method-override",
            Self::Upgrade => "upgrade",
            Self::Body => "body",
            Self::Condition => "condition",
            Self::Authorization => "authorization",
            Self::Cookie => "cookie",
        }
    }
}

/// Whether a method is safe (RFC 9110, section 9.2.1), of those that IANA registers as such. What
/// nobody knows is not.
pub(super) fn is_safe(method: &Method) -> bool {
    method.is_safe()
        || matches!(method.as_str(), "PROPFIND" | "QUERY" | "REPORT" | "SEARCH" | "PRI")
}

/// Whether and how a request may use the cache at all.
pub(crate) fn enter(head: RequestHead<'_>, has_body: bool, rules: &Rules) -> Entrance {
    let method = head.method();
    if *method != Method::GET && *method != Method::HEAD {
        // A CONNECT is neither safe nor about a resource that could be stored.
        return if is_safe(method) || *method == Method::CONNECT {
            Entrance::Pass(Pass::Method)
        } else {
            Entrance::Invalidates
        };
    }
    if has_body {
        return Entrance::Pass(Pass::Body);
    }
    let Seen { upgrade, overridden, origin_condition, conditional, authorization, cookie } =
        Seen::of(head.headers());
    let output = rules.output.is_some();
    if upgrade && upgrades(head.headers()) {
        return Entrance::Pass(Pass::Upgrade);
    }
    if overridden {
        return Entrance::Pass(Pass::MethodOverride);
    }
    if origin_condition {
        return Entrance::Pass(Pass::Condition);
    }
    if output && authorization && !rules.keyed_principal {
        return Entrance::Pass(Pass::Authorization);
    }
    if output && cookie && !rules.output_cookies_ignored && !rules.keyed_principal {
        return Entrance::Pass(Pass::Cookie);
    }
    let honoured = rules.honour_request && !output;
    Entrance::Lookup(Wishes {
        head: *method == Method::HEAD,
        // With the principal in the key, what is found there is the principal's own.
        authorization: authorization && !rules.keyed_principal,
        conditional,
        directives: if honoured {
            RequestDirectives::of(head.headers())
        } else {
            RequestDirectives::default()
        },
    })
}

/// The fields that matter, found in one walk: a look-up of each would cost more.
#[derive(Default)]
struct Seen {
    upgrade: bool,
    overridden: bool,
    origin_condition: bool,
    conditional: bool,
    authorization: bool,
    cookie: bool,
}

impl Seen {
    fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "upgrade" => seen.upgrade = true,
                // A framework that honours these makes the GET something else.
                "x-http-method-override" | "x-http-method" | "x-method-override" => {
                    seen.overridden = true;
                }
                // A cache must not evaluate what only applies to an origin server (RFC 9111,
                // section 4.3.2).
                "if-match" | "if-unmodified-since" => seen.origin_condition = true,
                "if-none-match" | "if-modified-since" | "if-range" | "range" => {
                    seen.conditional = true;
                }
                "authorization" => seen.authorization = true,
                "cookie" => seen.cookie = true,
                _ => {}
            }
        }
        seen
    }
}

/// `Upgrade` means nothing unless `Connection` names it (RFC 9110, section 7.8). Clients offer `h2c`
/// with ordinary requests, and no handler can take it up.
fn upgrades(headers: &HeaderMap) -> bool {
    let named = headers.get_all(header::CONNECTION).iter().any(|line| {
        let mut names = line.as_bytes().split(|&byte| byte == b',');
        names.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    named && !protocols.all(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"h2c"))
}
