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

    fn keeps(&self, name: &HeaderName) -> bool {
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
            | "idempotency-key"
            | "idempotent-replayed"
            | "keep-alive"
            | "ratelimit"
            | "retry-after"
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
            | "upgrade"
            | "www-authenticate"
            | "x-correlation-id"
            | "x-request-id"
    );
    const FAMILIES: [&str; 5] =
        ["access-control-", "proxy-", "ratelimit-", "x-b3-", "x-ratelimit-"];
    exactly || FAMILIES.iter().any(|family| name.starts_with(family))
}

/// Whether `Connection` declares the field to concern one connection only (RFC 9110, section 7.6.1).
fn is_named_by_connection(name: &HeaderName, headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|line| {
        let mut options = line.as_bytes().split(|&byte| byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
}
