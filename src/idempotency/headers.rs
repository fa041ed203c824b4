//! Which header fields of a response are kept with it, and sent again.
//!
//! What describes the result is kept, every line and every byte of it. What belongs to one exchange
//! is not: the connection, the limits and the trace of the first request, and above all its cookies,
//! which would put a session into other hands.
//!
//! A `Content-Encoding` is kept, as the body is kept with it; a retry that accepts no such coding
//! gets it nevertheless. So compression belongs outside this layer, where it is decided anew for
//! every request.

use http::{HeaderMap, HeaderName, header};

use crate::envelope::is_named_by_connection;

/// Which fields are kept beyond, or fewer than, what is right for all.
#[derive(Debug, Clone, Default)]
pub(super) struct HeaderRules {
    /// Not kept, whatever they are.
    pub(super) extra_dropped: Vec<HeaderName>,
    /// Of the fields that do not describe the content, only these are kept.
    pub(super) allow_only: Option<Vec<HeaderName>>,
}

impl HeaderRules {
    /// The fields of a response that are kept.
    pub(super) fn stored(&self, headers: &HeaderMap) -> HeaderMap {
        let mut stored = HeaderMap::with_capacity(headers.keys_len());
        let connection = headers.contains_key(header::CONNECTION);
        for (name, value) in headers {
            if self.keeps(name) && !(connection && is_named_by_connection(name, headers)) {
                stored.append(name.clone(), value.clone());
            }
        }
        stored
    }

    pub(super) fn keeps(&self, name: &HeaderName) -> bool {
        let allowed = match &self.allow_only {
            Some(allowed) => describes_result(name) || allowed.contains(name),
            None => true,
        };
        allowed && !belongs_to_one_exchange(name) && !self.extra_dropped.contains(name)
    }
}

/// Without these nobody could read the result.
fn describes_result(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "cache-control"
            | "content-disposition"
            | "content-encoding"
            | "content-language"
            | "content-location"
            | "content-range"
            | "content-type"
            | "deprecation"
            | "etag"
            | "expires"
            | "last-modified"
            | "link"
            | "location"
            | "vary"
    )
}

fn belongs_to_one_exchange(name: &HeaderName) -> bool {
    let name = name.as_str();
    let exactly = matches!(
        name,
        "age"
            | "alt-svc"
            | "authentication-info"
            | "b3"
            | "baggage"
            | "cache-status"
            | "clear-site-data"
            | "connection"
            | "content-length"
            | "date"
            | "dpop-nonce"
            | "idempotency-key"
            | "idempotent-replayed"
            | "keep-alive"
            | "preference-applied"
            | "ratelimit"
            | "replay-nonce"
            | "request-id"
            | "retry-after"
            | "sentry-trace"
            | "server-timing"
            | "set-cookie"
            | "set-cookie2"
            | "strict-transport-security"
            | "te"
            | "traceparent"
            | "traceresponse"
            | "tracestate"
            | "trailer"
            | "transfer-encoding"
            | "uber-trace-id"
            | "upgrade"
            | "via"
            | "www-authenticate"
            | "x-amzn-trace-id"
            | "x-cloud-trace-context"
            | "x-correlation-id"
            | "x-request-id"
            | "x-trace-id"
    );
    const FAMILIES: [&str; 6] =
        ["access-control-", "proxy-", "ratelimit-", "x-b3-", "x-rate-limit-", "x-ratelimit-"];
    exactly || FAMILIES.iter().any(|family| name.starts_with(family))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What the default rules never keep.
    const NEVER: [&str; 61] = [
        "set-cookie",
        "set-cookie2",
        "date",
        "age",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "proxy-status",
        "content-length",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "x-rate-limit-remaining",
        "ratelimit",
        "ratelimit-policy",
        "ratelimit-limit",
        "ratelimit-reset",
        "retry-after",
        "traceparent",
        "tracestate",
        "traceresponse",
        "baggage",
        "x-request-id",
        "x-correlation-id",
        "request-id",
        "x-trace-id",
        "x-amzn-trace-id",
        "x-cloud-trace-context",
        "uber-trace-id",
        "sentry-trace",
        "via",
        "preference-applied",
        "dpop-nonce",
        "replay-nonce",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-sampled",
        "server-timing",
        "alt-svc",
        "access-control-allow-origin",
        "access-control-allow-credentials",
        "access-control-allow-headers",
        "access-control-allow-methods",
        "access-control-expose-headers",
        "access-control-max-age",
        "strict-transport-security",
        "www-authenticate",
        "authentication-info",
        "clear-site-data",
        "cache-status",
        "idempotent-replayed",
        "idempotency-key",
        "x-ratelimit-",
    ];

    /// What is kept even if little else is.
    const ALWAYS: [&str; 14] = [
        "content-type",
        "content-language",
        "content-disposition",
        "content-encoding",
        "content-location",
        "content-range",
        "location",
        "etag",
        "expires",
        "last-modified",
        "link",
        "deprecation",
        "vary",
        "cache-control",
    ];

    /// Whose names only look like those of others, and what vendors make up.
    const OTHERS: [&str; 14] = [
        "x-order-id",
        "x-ratelimit",
        "x-b3",
        "b30",
        "dates",
        "proxy",
        "tea",
        "access-control",
        "content-security-policy",
        "retry-after-ms",
        "x-set-cookie",
        "server",
        "warning",
        "x-original-request-id",
    ];

    fn map(names: &[&'static str]) -> HeaderMap {
        let line =
            |name: &&'static str| (HeaderName::from_static(name), HeaderValue::from_static("1"));
        names.iter().map(line).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn what_belongs_to_one_exchange_is_not_kept_and_the_rest_is() {
        let all = [&NEVER[..], &ALWAYS, &OTHERS].concat();
        let stored = HeaderRules::default().stored(&map(&all));
        assert_eq!(names(&stored), [&ALWAYS[..], &OTHERS].concat());
    }

    #[test]
    fn what_connection_names_is_not_kept() {
        let mut headers = map(&["x-a", "x-b", "x-c", "x-d", "x-ab"]);
        headers.append("connection", HeaderValue::from_static("close, X-A ,\tx-b"));
        headers.append("connection", HeaderValue::from_bytes(b"\xff,x-d").unwrap());
        assert_eq!(names(&HeaderRules::default().stored(&headers)), ["x-c", "x-ab"]);
    }

    #[test]
    fn values_are_kept_as_they_are() {
        let mut headers = HeaderMap::new();
        let mut secret = HeaderValue::from_static("s");
        secret.set_sensitive(true);
        for (name, value) in [
            ("link", HeaderValue::from_static("</b>")),
            ("x-name", HeaderValue::from_bytes(b"M\xfcller \x80\xff").unwrap()),
            ("link", HeaderValue::from_static("</a>")),
            ("set-cookie", HeaderValue::from_static("a=b")),
            ("x-token", secret),
            ("link", HeaderValue::from_static("</b>")),
            ("x-empty", HeaderValue::from_static("")),
        ] {
            headers.append(name, value);
        }
        let stored = HeaderRules::default().stored(&headers);
        headers.remove("set-cookie");
        assert_eq!(stored, headers);
        let links: Vec<_> = stored.get_all("link").iter().collect();
        assert_eq!(links, ["</b>", "</a>", "</b>"]);
        assert!(stored["x-token"].is_sensitive() && !stored["x-empty"].is_sensitive());
    }

    #[test]
    fn an_allow_list_keeps_the_result_readable_and_lets_nothing_through_that_is_never_kept() {
        let allowed = ["x-order-id", "set-cookie", "x-request-id"];
        let rules = HeaderRules {
            allow_only: Some(allowed.map(HeaderName::from_static).to_vec()),
            ..HeaderRules::default()
        };
        let stored = rules.stored(&map(&[&NEVER[..], &ALWAYS, &OTHERS].concat()));
        assert_eq!(names(&stored), [&ALWAYS[..], &["x-order-id"]].concat());
    }

    #[test]
    fn what_the_policy_drops_is_dropped_before_all() {
        let rules = HeaderRules {
            extra_dropped: ["x-order-id", "etag"].map(HeaderName::from_static).to_vec(),
            allow_only: Some(vec![HeaderName::from_static("x-order-id")]),
        };
        let stored = rules.stored(&map(&["x-order-id", "etag", "location"]));
        assert_eq!(names(&stored), ["location"]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_nothing_is_made_up(
            lines in vec(("[a-e]|connection|set-cookie", vec(any::<u8>(), 0..12)), 0..12),
            connection in "[a-e, ]{0,8}",
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(HeaderName::try_from(name).unwrap(), value);
                }
            }
            headers.append(header::CONNECTION, HeaderValue::try_from(&connection).unwrap());
            let stored = HeaderRules::default().stored(&headers);
            prop_assert!(!stored.contains_key("connection") && !stored.contains_key("set-cookie"));
            for option in connection.split(',') {
                prop_assert!(option.trim().is_empty() || !stored.contains_key(option.trim()));
            }
            for name in stored.keys() {
                prop_assert!(stored.get_all(name).iter().eq(headers.get_all(name)));
            }
            let again = HeaderRules::default().stored(&stored);
            prop_assert_eq!(again, stored);
        }
    }
}
