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
    Connection,
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
            Self::Connection => "connection",
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
    let Seen {
        upgrade,
        connection,
        overridden,
        origin_condition,
        conditional,
        authorization,
        cookie,
    } = Seen::of(head.headers());
    let output = rules.output.is_some();
    if upgrade && upgrades(head.headers()) {
        return Entrance::Pass(Pass::Upgrade);
    }
    if connection && names_more(head.headers()) {
        return Entrance::Pass(Pass::Connection);
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
    connection: bool,
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
                "connection" => seen.connection = true,
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

/// Whether `Connection` names a field that is not known to be about the connection. A proxy inside
/// removes it (RFC 9110, section 7.6.1), so that the answer is not the one to what the key says.
fn names_more(headers: &HeaderMap) -> bool {
    const KNOWN: [&str; 8] = [
        "",
        "close",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ];
    headers.get_all(header::CONNECTION).iter().any(|line| {
        let mut names = line.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        names.any(|name| !KNOWN.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes())))
    })
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::{
        super::{Output, header_map},
        *,
    };

    fn entered(rules: &Rules, method: &str, lines: &[(&str, &str)]) -> Entrance {
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        *request.headers_mut() = header_map(lines);
        enter(RequestHead::new(&request), false, rules)
    }

    fn get(lines: &[(&str, &str)]) -> Entrance {
        entered(&Rules::default(), "GET", lines)
    }

    fn output() -> Rules {
        let output = Output {
            ttl: Duration::from_secs(60),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            negative: Vec::new(),
        };
        Rules { output: Some(output), ..Rules::default() }
    }

    #[test]
    fn get_and_head_look_up() {
        assert_eq!(get(&[]), Entrance::Lookup(Wishes::default()));
        let head = Wishes { head: true, ..Wishes::default() };
        assert_eq!(entered(&Rules::default(), "HEAD", &[]), Entrance::Lookup(head));
    }

    /// RFC 9111, section 4.4.
    #[test]
    fn methods_that_are_not_known_to_be_safe_invalidate() {
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "LOCK", "get", "X"] {
            assert_eq!(entered(&Rules::default(), method, &[]), Entrance::Invalidates, "{method}");
        }
        for method in ["OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY", "CONNECT"] {
            let entrance = entered(&Rules::default(), method, &[]);
            assert_eq!(entrance, Entrance::Pass(Pass::Method), "{method}");
        }
    }

    #[test]
    fn a_get_with_a_body_passes() {
        let request = Request::new(());
        let entrance = enter(RequestHead::new(&request), true, &Rules::default());
        assert_eq!(entrance, Entrance::Pass(Pass::Body));
    }

    /// RFC 9111, section 4.3.2.
    #[test]
    fn conditions_for_the_origin_alone_pass_and_others_are_noted() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for lines in [[("if-match", "\"a\"")], [("if-unmodified-since", date)]] {
            assert_eq!(get(&lines), Entrance::Pass(Pass::Condition));
        }
        for lines in [
            [("if-none-match", "*")],
            [("if-modified-since", date)],
            [("if-range", "\"a\"")],
            [("range", "bytes=0-")],
        ] {
            let conditional = Wishes { conditional: true, ..Wishes::default() };
            assert_eq!(get(&lines), Entrance::Lookup(conditional), "{lines:?}");
        }
    }

    #[test]
    fn what_may_make_the_request_another_passes() {
        for name in ["x-http-method-override", "X-HTTP-Method", "x-method-override"] {
            assert_eq!(get(&[(name, "DELETE")]), Entrance::Pass(Pass::MethodOverride), "{name}");
        }
        let upgrade = |protocol, connection| {
            get(&[("upgrade", protocol), ("connection", connection)])
                == Entrance::Pass(Pass::Upgrade)
        };
        assert!(upgrade("websocket", "keep-alive, Upgrade"));
        assert!(upgrade("h2c, websocket", "upgrade"));
        assert!(!upgrade("websocket", "keep-alive"));
        assert!(!upgrade("H2C", "upgrade, http2-settings"), "nobody could take it up");
        assert!(matches!(get(&[("upgrade", "websocket")]), Entrance::Lookup(_)));
    }

    #[test]
    fn authorization_looks_up_by_http_and_passes_where_the_route_decides() {
        let authorized = [("authorization", "Basic a")];
        let noted = Wishes { authorization: true, ..Wishes::default() };
        assert_eq!(get(&authorized), Entrance::Lookup(noted));
        let entrance = entered(&output(), "GET", &authorized);
        assert_eq!(entrance, Entrance::Pass(Pass::Authorization));
        for rules in [Rules::default(), output()] {
            let keyed = Rules { keyed_principal: true, ..rules };
            let own = Entrance::Lookup(Wishes::default());
            assert_eq!(entered(&keyed, "GET", &authorized), own, "what is in the key is his own");
        }
    }

    #[test]
    fn a_cookie_matters_where_the_route_decides() {
        let cookie = [("cookie", "a=b")];
        let lookup = Entrance::Lookup(Wishes::default());
        assert_eq!(get(&cookie), lookup);
        assert_eq!(entered(&output(), "GET", &cookie), Entrance::Pass(Pass::Cookie));
        let ignored = Rules { output_cookies_ignored: true, ..output() };
        assert_eq!(entered(&ignored, "GET", &cookie), lookup);
        let keyed = Rules { keyed_principal: true, ..output() };
        assert_eq!(entered(&keyed, "GET", &cookie), lookup);
    }

    #[test]
    fn directives_count_where_they_are_honoured() {
        let asked = [("cache-control", "no-cache")];
        assert_eq!(get(&asked), Entrance::Lookup(Wishes::default()));
        let honours = Rules { honour_request: true, ..Rules::default() };
        let Entrance::Lookup(wishes) = entered(&honours, "GET", &asked) else { panic!() };
        assert!(wishes.directives.no_cache);
        let output = Rules { honour_request: true, ..output() };
        assert_eq!(entered(&output, "GET", &asked), Entrance::Lookup(Wishes::default()));
    }

    #[test]
    fn a_pass_has_a_reason_of_rfc_9211() {
        assert_eq!(Pass::Method.forward(), Forward::Method);
        assert_eq!(Pass::Condition.forward(), Forward::Request);
        assert_eq!(Pass::Cookie.forward(), Forward::Bypass);
    }
}
