//! What a cache did with a request (RFC 9211).

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// One member of `Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheStatus<'a> {
    /// The name of the cache.
    pub(crate) cache: &'a str,
    pub(crate) outcome: Outcome,
    pub(crate) detail: Option<&'a str>,
}

/// Where the answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// From the store; the seconds that it stays fresh, negative when they are over.
    Hit { ttl: i64 },
    Forward {
        reason: Forward,
        /// The handler's status, where it is not the answer's.
        status: Option<StatusCode>,
        stored: bool,
        /// The handler was asked once for several requests.
        collapsed: bool,
        ttl: Option<i64>,
    },
}

/// Why the handler was asked (RFC 9211, section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forward {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Request,
    Stale,
}

impl Forward {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

impl CacheStatus<'_> {
    /// The member alone.
    pub(crate) fn value(&self) -> HeaderValue {
        let mut text = String::with_capacity(96);
        push_name(&mut text, self.cache);
        // Writing to a string cannot fail.
        let _ = match self.outcome {
            Outcome::Hit { ttl } => write!(text, "; hit; ttl={ttl}"),
            Outcome::Forward { reason, status, stored, collapsed, ttl } => {
                text.push_str("; fwd=");
                text.push_str(reason.as_str());
                if let Some(status) = status {
                    text.push_str("; fwd-status=");
                    text.push_str(status.as_str());
                }
                if stored {
                    text.push_str("; stored");
                }
                if collapsed {
                    text.push_str("; collapsed");
                }
                ttl.map_or(Ok(()), |ttl| write!(text, "; ttl={ttl}"))
            }
        };
        if let Some(detail) = self.detail {
            text.push_str("; detail=");
            push_name(&mut text, detail);
        }
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Adds the member after those of caches nearer to the origin.
    pub(crate) fn append_to(&self, headers: &mut HeaderMap) {
        headers.append(CACHE_STATUS, self.value());
    }
}

/// A token where it can be one, otherwise a string; what neither can hold is left out.
fn push_name(text: &mut String, name: &str) {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'*');
    if starts && bytes.all(is_token_byte) {
        text.push_str(name);
        return;
    }
    text.push('"');
    for c in name.chars().filter(|c| matches!(c, ' '..='~')) {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
}
