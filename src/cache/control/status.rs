//! What a cache did with a request (RFC 9211).

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::number::digits;

const HIT: &str = "; hit; ttl=";
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
        // What has room to spare costs one more allocation to be shared.
        let room = match self.outcome {
            Outcome::Hit { ttl } if self.detail.is_none() => {
                self.cache.len() + HIT.len() + usize::from(ttl < 0) + digits(ttl.unsigned_abs())
            }
            _ => 96,
        };
        let mut text = String::with_capacity(room);
        push_name(&mut text, self.cache);
        // Writing to a string cannot fail.
        let _ = match self.outcome {
            Outcome::Hit { ttl } => write!(text, "{HIT}{ttl}"),
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

#[cfg(test)]
mod tests {
    use sfv::{BareItem, ListEntry, Parser};

    use super::*;

    fn text(cache: &str, outcome: Outcome, detail: Option<&str>) -> String {
        CacheStatus { cache, outcome, detail }.value().to_str().unwrap().to_owned()
    }

    const PLAIN: Outcome = Outcome::Forward {
        reason: Forward::UriMiss,
        status: None,
        stored: false,
        collapsed: false,
        ttl: None,
    };

    #[test]
    fn a_hit_says_how_long_it_stays_fresh() {
        assert_eq!(text("keep", Outcome::Hit { ttl: 30 }, None), "keep; hit; ttl=30");
        assert_eq!(
            text("keep", Outcome::Hit { ttl: -3 }, Some("stale")),
            "keep; hit; ttl=-3; detail=stale"
        );
    }

    #[test]
    fn a_forward_says_why_and_what_became_of_it() {
        assert_eq!(text("keep", PLAIN, None), "keep; fwd=uri-miss");
        let all = Outcome::Forward {
            reason: Forward::Stale,
            status: Some(StatusCode::NOT_MODIFIED),
            stored: true,
            collapsed: true,
            ttl: Some(60),
        };
        let expected = "keep; fwd=stale; fwd-status=304; stored; collapsed; ttl=60; detail=a";
        assert_eq!(text("keep", all, Some("a")), expected);
    }

    /// RFC 9211, section 2.2.
    #[test]
    fn reasons_are_those_that_are_registered() {
        let reasons = [
            (Forward::Bypass, "bypass"),
            (Forward::Method, "method"),
            (Forward::UriMiss, "uri-miss"),
            (Forward::VaryMiss, "vary-miss"),
            (Forward::Request, "request"),
            (Forward::Stale, "stale"),
        ];
        for (reason, name) in reasons {
            assert_eq!(reason.as_str(), name);
        }
    }

    #[test]
    fn a_name_that_is_no_token_is_a_string() {
        for name in
            ["keep", "*", "a:80/b", "my cache", "1a", "", "a\"b\\c", "käse", "a,b;c=d", "\0\n"]
        {
            let member = text(name, PLAIN, Some(name));
            let list: sfv::List = Parser::new(&member).parse().unwrap();
            let [ListEntry::Item(item)] = &list[..] else { panic!("{member}") };
            let said = |bare: &BareItem| match bare {
                BareItem::Token(token) => token.as_str().to_owned(),
                BareItem::String(string) => string.as_str().to_owned(),
                _ => panic!("{member}"),
            };
            let visible: String = name.chars().filter(|c| matches!(c, ' '..='~')).collect();
            assert_eq!(said(&item.bare_item), visible);
            assert_eq!(said(&item.params["detail"]), visible);
        }
    }

    #[test]
    fn the_member_comes_after_those_nearer_to_the_origin() {
        let mut headers = super::super::header_map(&[("cache-status", "origin; hit")]);
        CacheStatus { cache: "keep", outcome: PLAIN, detail: None }.append_to(&mut headers);
        let lines: Vec<_> = headers.get_all(CACHE_STATUS).iter().collect();
        assert_eq!(lines, ["origin; hit", "keep; fwd=uri-miss"]);
    }
}
