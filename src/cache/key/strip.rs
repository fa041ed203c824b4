//! Header fields that must not reach a handler whose answer others will get.

use http::{HeaderMap, HeaderName, header};

/// What a handler sees of every request in output mode.
///
/// `Accept` and `Accept-Language` are what answers are commonly negotiated by, and answers say so in
/// `Vary`; the others tell clients apart in no way that an answer depends on.
static HARMLESS: [HeaderName; 6] = [
    header::HOST,
    header::ACCEPT,
    header::ACCEPT_LANGUAGE,
    header::CONTENT_LENGTH,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Fields by which clients or proxies overrule the request line and `Host`. What caches have been
/// poisoned with; `_` and `-` are one to gateways that make environment variables of fields.
const OVERRIDES: [&str; 22] = [
    "front-end-https",
    "x-forwarded",
    "x-forwarded-host",
    "x-forwarded-path",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-protocol",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
    "x-url-scheme",
];

/// Leaves what is in the key, what was made visible, and what is harmless.
pub(crate) fn strip_unkeyed(headers: &mut HeaderMap, keyed: &[HeaderName], visible: &[HeaderName]) {
    let stays = |name: &HeaderName| {
        HARMLESS.contains(name) || keyed.contains(name) || visible.contains(name)
    };
    remove(headers, |name| !stays(name));
}

/// Removes what overrules the request line or `Host`, unless it is in the key or was made visible.
pub(crate) fn strip_overrides(
    headers: &mut HeaderMap,
    keyed: &[HeaderName],
    visible: &[HeaderName],
) {
    // The whole field: whoever reads the rest of it may split it in another way than we would.
    let overrules = headers.get_all(header::FORWARDED).iter().any(|line| {
        let line = line.as_bytes().to_ascii_lowercase();
        line.windows(4).any(|part| part == b"host") || line.windows(5).any(|part| part == b"proto")
    });
    remove(headers, |name| {
        let stays = keyed.contains(name) || visible.contains(name);
        !stays && (is_override(name) || overrules && *name == header::FORWARDED)
    });
}

fn is_override(name: &HeaderName) -> bool {
    let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte };
    OVERRIDES.iter().any(|one| {
        let (name, one) = (name.as_str(), one.as_bytes());
        name.len() == one.len() && name.bytes().map(dashed).eq(one.iter().copied())
    })
}

fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let names: Vec<_> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}
