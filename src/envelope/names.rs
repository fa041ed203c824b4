//! Names of header fields that are stored as one byte.

use http::{HeaderName, header};

/// The code of a name is its place in this list, counted from 1. Names may be added at the end; to
/// move or remove one is another version of the format.
static NAMES: [HeaderName; 72] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::CONTENT_SECURITY_POLICY,
    header::CONTENT_SECURITY_POLICY_REPORT_ONLY,
    header::CACHE_CONTROL,
    header::ETAG,
    header::LAST_MODIFIED,
    header::DATE,
    header::EXPIRES,
    header::AGE,
    header::VARY,
    header::PRAGMA,
    header::WARNING,
    header::ACCEPT_RANGES,
    header::ALLOW,
    header::ALT_SVC,
    header::LINK,
    header::LOCATION,
    header::SERVER,
    header::SET_COOKIE,
    header::RETRY_AFTER,
    header::REFRESH,
    header::VIA,
    header::UPGRADE,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
    header::STRICT_TRANSPORT_SECURITY,
    header::REFERRER_POLICY,
    header::X_CONTENT_TYPE_OPTIONS,
    header::X_DNS_PREFETCH_CONTROL,
    header::X_FRAME_OPTIONS,
    header::X_XSS_PROTECTION,
    header::PUBLIC_KEY_PINS,
    header::PROXY_AUTHENTICATE,
    header::WWW_AUTHENTICATE,
    header::CACHE_STATUS,
    header::CDN_CACHE_CONTROL,
    HeaderName::from_static("cache-groups"),
    HeaderName::from_static("surrogate-control"),
    HeaderName::from_static("surrogate-key"),
    HeaderName::from_static("cache-tag"),
    HeaderName::from_static("no-vary-search"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("cross-origin-embedder-policy"),
    HeaderName::from_static("cross-origin-opener-policy"),
    HeaderName::from_static("cross-origin-resource-policy"),
    HeaderName::from_static("origin-agent-cluster"),
    HeaderName::from_static("permissions-policy"),
    HeaderName::from_static("accept-ch"),
    HeaderName::from_static("accept-patch"),
    HeaderName::from_static("deprecation"),
    HeaderName::from_static("sunset"),
    HeaderName::from_static("server-timing"),
    HeaderName::from_static("timing-allow-origin"),
    HeaderName::from_static("x-powered-by"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-robots-tag"),
    HeaderName::from_static("x-total-count"),
    HeaderName::from_static("x-ua-compatible"),
];

/// The code of names that are spelled out.
pub(crate) const SPELLED_OUT: u8 = 0;

pub(crate) fn code(name: &HeaderName) -> u8 {
    let place = NAMES.iter().position(|known| known == name);
    place.map_or(SPELLED_OUT, |place| place as u8 + 1)
}

pub(crate) fn name(code: u8) -> Option<HeaderName> {
    NAMES.get(usize::from(code).checked_sub(1)?).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_that_of_its_name() {
        for code in 1..=NAMES.len() as u8 {
            assert_eq!(super::code(&name(code).unwrap()), code);
        }
        assert_eq!(code(&HeaderName::from_static("x-unheard-of")), SPELLED_OUT);
        assert_eq!(name(SPELLED_OUT), None);
        assert_eq!(name(u8::MAX), None);
    }

    #[test]
    fn codes_have_not_moved() {
        for (code, expected) in [(1, "content-type"), (11, "etag"), (49, "cdn-cache-control")] {
            assert_eq!(name(code).unwrap(), expected);
        }
        assert_eq!(name(72).unwrap(), "x-ua-compatible");
    }
}
