//! `Cache-Control` of requests and responses (RFC 9111, section 5.2) and its targeted kin (RFC 9213).

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use sfv::{
    BareItemFromInput, KeyRef, Parser,
    visitor::{
        DictionaryVisitor, EntryVisitor, Ignored, InnerListVisitor, ItemVisitor, ParameterVisitor,
    },
};

use super::Rules;

pub(super) const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// What overflows is this many seconds (RFC 9111, section 1.2.2).
const MOST_SECONDS: u64 = 1 << 31;

/// What a request asks of the cache. The default asks nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RequestDirectives {
    pub(crate) no_cache: bool,
    pub(crate) no_store: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) min_fresh: Option<Duration>,
    /// Without a value in the field: however stale.
    pub(crate) max_stale: Option<Duration>,
}

impl RequestDirectives {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        if !headers.contains_key(header::CACHE_CONTROL) {
            // RFC 9111, section 5.4.
            each(headers, &header::PRAGMA, |name, _| {
                found.no_cache |= name.eq_ignore_ascii_case(b"no-cache");
            });
            return found;
        }
        each(headers, &header::CACHE_CONTROL, |name, argument| {
            let name = &lower(name)[..];
            match name.trim_ascii_end() {
                b"no-cache" => found.no_cache = true,
                b"no-store" => found.no_store = true,
                b"only-if-cached" => found.only_if_cached = true,
                // What asks in a way that nobody understands gets the most careful answer.
                b"max-age" => first(&mut found.max_age, argument.seconds(), Duration::ZERO),
                b"min-fresh" => first(&mut found.min_fresh, argument.seconds(), most()),
                b"max-stale" if argument == Argument::None => {
                    first(&mut found.max_stale, Some(Duration::MAX), Duration::MAX);
                }
                b"max-stale" => first(&mut found.max_stale, argument.seconds(), Duration::ZERO),
                _ => {}
            }
        });
        found
    }
}

/// What a response says about being stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Directives {
    pub(super) no_store: bool,
    pub(super) private: bool,
    pub(super) no_cache: bool,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) proxy_revalidate: bool,
    pub(super) must_understand: bool,
    pub(super) max_age: Option<Duration>,
    pub(super) s_maxage: Option<Duration>,
    pub(super) stale_while_revalidate: Option<Duration>,
    pub(super) stale_if_error: Option<Duration>,
    /// They come from a targeted field, so that `Expires` does not count either.
    pub(super) targeted: bool,
    /// Part of the field could not be read: what allows something does not count.
    malformed: bool,
}

impl Directives {
    /// The first of our own field, `CDN-Cache-Control` and `Cache-Control` that is there and can be
    /// read (RFC 9213, section 2.2).
    pub(super) fn of(headers: &HeaderMap, rules: &Rules) -> Self {
        let own = rules.target.as_ref().and_then(|name| Self::targeted(headers, name));
        own.or_else(|| Self::targeted(headers, &CDN_CACHE_CONTROL))
            .unwrap_or_else(|| Self::cache_control(headers))
    }

    fn cache_control(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        each(headers, &header::CACHE_CONTROL, |name, argument| {
            found.malformed |= argument == Argument::Malformed;
            let name = &lower(name)[..];
            match found.slot(name.trim_ascii_end()) {
                // `private` and `no-cache` with field names count as without: fewer are stored.
                Some(Slot::Flag(flag)) => *flag = true,
                Some(Slot::Seconds(seconds)) => {
                    let said = argument.seconds();
                    first(seconds, said, Duration::ZERO);
                    found.malformed |= said.is_none();
                }
                None => {}
            }
        });
        found
    }

    /// Whether it may be stored though the request had `Authorization` (RFC 9111, section 3.5).
    pub(super) fn authorise(&self) -> bool {
        let says_so = self.public || self.must_revalidate || self.s_maxage.is_some();
        says_so && !self.malformed
    }

    /// Whether a cache that knows what the status requires may overlook `no-store` (RFC 9111,
    /// section 5.2.2.3).
    pub(super) fn understood_suffices(&self) -> bool {
        self.must_understand && !self.malformed
    }

    pub(super) fn explicitly_public(&self) -> bool {
        self.public && !self.malformed
    }

    /// `None` if the field is absent, empty or no dictionary of the right types, in which case it
    /// must be ignored (RFC 9213, section 2.1).
    fn targeted(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let mut lines = headers.get_all(name).iter();
        let only = lines.next()?;
        let joined: Vec<u8>;
        let input = if lines.next().is_none() {
            only.as_bytes()
        } else {
            let lines: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            joined = lines.join(&b','.to_owned());
            &joined
        };
        let mut found = Found { directives: Self::default(), members: 0 };
        Parser::new(input).parse_dictionary_with_visitor(&mut found).ok()?;
        (found.members > 0).then_some(Self { targeted: true, ..found.directives })
    }

    fn slot(&mut self, lower_case_name: &[u8]) -> Option<Slot<'_>> {
        Some(match lower_case_name {
            b"no-store" => Slot::Flag(&mut self.no_store),
            b"private" => Slot::Flag(&mut self.private),
            b"no-cache" => Slot::Flag(&mut self.no_cache),
            b"public" => Slot::Flag(&mut self.public),
            b"must-revalidate" => Slot::Flag(&mut self.must_revalidate),
            b"proxy-revalidate" => Slot::Flag(&mut self.proxy_revalidate),
            b"must-understand" => Slot::Flag(&mut self.must_understand),
            b"max-age" => Slot::Seconds(&mut self.max_age),
            b"s-maxage" => Slot::Seconds(&mut self.s_maxage),
            b"stale-while-revalidate" => Slot::Seconds(&mut self.stale_while_revalidate),
            b"stale-if-error" => Slot::Seconds(&mut self.stale_if_error),
            _ => return None,
        })
    }
}

fn most() -> Duration {
    Duration::from_secs(MOST_SECONDS)
}

/// Of several values the first counts (RFC 9111, section 4.2.1).
fn first(slot: &mut Option<Duration>, value: Option<Duration>, otherwise: Duration) {
    slot.get_or_insert(value.unwrap_or(otherwise));
}

/// Names of directives are compared in lower case; longer ones are nobody's.
fn lower(name: &[u8]) -> [u8; 24] {
    let mut lower = [b' '; 24];
    if name.len() <= lower.len() {
        lower[..name.len()].copy_from_slice(name);
        lower.make_ascii_lowercase();
    }
    lower
}

/// Non-negative whole seconds (RFC 9111, section 1.2.2).
pub(super) fn delta_seconds(text: &[u8]) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    let seconds = text.iter().try_fold(0u64, |seconds, digit| {
        digit.is_ascii_digit().then(|| (seconds * 10 + u64::from(digit - b'0')).min(MOST_SECONDS))
    })?;
    Some(Duration::from_secs(seconds))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Argument<'a> {
    None,
    /// A token, or what stands between quotes, escapes and all.
    Text(&'a [u8]),
    Malformed,
}

impl Argument<'_> {
    fn seconds(self) -> Option<Duration> {
        match self {
            Self::Text(text) => delta_seconds(text),
            Self::None | Self::Malformed => None,
        }
    }
}

fn each<'a>(
    headers: &'a HeaderMap,
    field: &HeaderName,
    mut visit: impl FnMut(&'a [u8], Argument<'a>),
) {
    for line in headers.get_all(field) {
        each_in(line.as_bytes(), &mut visit);
    }
}

/// Total: a quote that is never closed does not hide what follows it, but everything after it
/// counts as malformed. So a broken line can forbid, and never allow.
fn each_in<'a>(line: &'a [u8], visit: &mut impl FnMut(&'a [u8], Argument<'a>)) {
    let mut rest = line;
    let mut broken = false;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b','));
        let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
        let mut argument = Argument::None;
        rest = after.get(1..).unwrap_or_default();
        if after.first() == Some(&b'=') {
            let value = rest;
            if let Some(quoted) = value.strip_prefix(b"\"") {
                if let Some(close) = closing_quote(quoted) {
                    let (junk, next) = split_at_comma(&quoted[close + 1..]);
                    rest = next;
                    argument = match junk.trim_ascii() {
                        b"" => Argument::Text(&quoted[..close]),
                        _ => Argument::Malformed,
                    };
                } else {
                    broken = true;
                    rest = split_at_comma(quoted).1;
                }
            } else {
                let (token, next) = split_at_comma(value);
                rest = next;
                argument = Argument::Text(token.trim_ascii_end());
            }
            // No whitespace may surround the sign.
            if name.ends_with(b" ") || name.ends_with(b"\t") {
                argument = Argument::Malformed;
            }
        }
        if broken {
            argument = Argument::Malformed;
        }
        visit(name.trim_ascii(), argument);
    }
}

fn split_at_comma(text: &[u8]) -> (&[u8], &[u8]) {
    let comma = text.iter().position(|&byte| byte == b',').unwrap_or(text.len());
    (&text[..comma], text.get(comma + 1..).unwrap_or_default())
}

fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|&byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

enum Slot<'d> {
    Flag(&'d mut bool),
    Seconds(&'d mut Option<Duration>),
}

struct Found {
    directives: Directives,
    members: usize,
}

#[derive(Debug)]
struct WrongType;

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be an integer")
    }
}

impl std::error::Error for WrongType {}

impl<'de> DictionaryVisitor<'de> for Found {
    type Error = WrongType;

    fn entry(&mut self, key: &'de KeyRef) -> Result<impl EntryVisitor<'de>, WrongType> {
        self.members += 1;
        Ok(self.directives.slot(key.as_str().as_bytes()))
    }
}

impl<'de> ItemVisitor<'de> for Slot<'_> {
    type Error = WrongType;

    fn bare_item(
        self,
        item: BareItemFromInput<'de>,
    ) -> Result<impl ParameterVisitor<'de>, WrongType> {
        match (self, item) {
            (Self::Flag(_), BareItemFromInput::Boolean(false)) => {}
            (Self::Flag(flag), _) => *flag = true,
            (Self::Seconds(seconds), BareItemFromInput::Integer(number)) => {
                let number = u64::try_from(i64::from(number)).unwrap_or_default();
                *seconds = Some(Duration::from_secs(number.min(MOST_SECONDS)));
            }
            (Self::Seconds(_), _) => return Err(WrongType),
        }
        Ok(Ignored)
    }
}

impl<'de> EntryVisitor<'de> for Slot<'_> {
    fn inner_list(self) -> Result<impl InnerListVisitor<'de>, WrongType> {
        match self {
            Self::Flag(flag) => {
                *flag = true;
                Ok(Ignored)
            }
            Self::Seconds(_) => Err(WrongType),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::header_map, *};

    fn asked(value: &str) -> RequestDirectives {
        RequestDirectives::of(&header_map(&[("cache-control", value)]))
    }

    fn said(value: &str) -> Directives {
        Directives::of(&header_map(&[("cache-control", value)]), &Rules::default())
    }

    fn seconds(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn a_request_asks_by_directives() {
        let all =
            asked("no-cache, No-Store, only-if-cached, max-age=1, min-fresh=\"2\", max-stale=3");
        let expected = RequestDirectives {
            no_cache: true,
            no_store: true,
            only_if_cached: true,
            max_age: seconds(1),
            min_fresh: seconds(2),
            max_stale: seconds(3),
        };
        assert_eq!(all, expected);
        assert_eq!(
            asked("nothing-to-see-here, no-caches, a=no-store"),
            RequestDirectives::default()
        );
    }

    #[test]
    fn what_a_request_asks_in_vain_is_taken_at_its_strictest() {
        assert_eq!(asked("max-age=a").max_age, seconds(0));
        assert_eq!(asked("max-age").max_age, seconds(0));
        assert_eq!(asked("min-fresh=-1").min_fresh, Some(most()));
        assert_eq!(asked("max-stale=a").max_stale, seconds(0));
        assert_eq!(asked("max-stale=").max_stale, seconds(0));
        assert_eq!(asked("max-stale").max_stale, Some(Duration::MAX), "however stale");
    }

    /// RFC 9111, section 5.4.
    #[test]
    fn pragma_counts_where_there_is_no_cache_control() {
        let of = |lines: &[(&str, &str)]| RequestDirectives::of(&header_map(lines)).no_cache;
        assert!(of(&[("pragma", "foo, No-Cache")]));
        assert!(!of(&[("pragma", "foo")]));
        assert!(!of(&[("pragma", "no-cache"), ("cache-control", "max-stale")]));
        assert!(!of(&[]));
    }

    #[test]
    fn a_line_that_is_broken_forbids_and_never_allows() {
        for broken in
            ["public, a=\"b", "a=\", public", "public, b=\"c\"d", "public =1", "public, max-age=a"]
        {
            let directives = said(broken);
            assert!(directives.public, "{broken}");
            assert!(!directives.explicitly_public() && !directives.authorise(), "{broken}");
        }
        let directives = said("a=\"b, no-store, private, max-age=60, must-understand");
        assert!(directives.no_store && directives.private);
        assert!(!directives.understood_suffices());
        assert_eq!(directives.max_age, seconds(0));
    }

    #[test]
    fn what_stands_in_quotes_is_no_directive() {
        let directives = said("a=\"no-store, \\\", private\", b=\"\", public");
        assert_eq!(directives, Directives { public: true, ..Directives::default() });
        assert_eq!(
            said("a=\"b\\\\\", private"),
            Directives { private: true, ..Directives::default() }
        );
    }

    #[test]
    fn names_are_compared_whole() {
        for other in ["no-stores", "xno-store", "no store", "", "\"no-store\"", "no-store;a"] {
            assert_eq!(said(other), Directives::default(), "{other}");
        }
        let long = "stale-while-revalidate-a-name-that-is-longer-than-any";
        assert_eq!(said(&format!("{long}=1, private")).stale_while_revalidate, None);
        assert!(said("\tprivate ").private);
    }

    #[test]
    fn every_directive_of_a_response_has_its_place() {
        let value = "no-store, private, no-cache, public, must-revalidate, proxy-revalidate, \
                     must-understand, max-age=1, s-maxage=2, stale-while-revalidate=3, stale-if-error=4";
        let expected = Directives {
            no_store: true,
            private: true,
            no_cache: true,
            public: true,
            must_revalidate: true,
            proxy_revalidate: true,
            must_understand: true,
            max_age: seconds(1),
            s_maxage: seconds(2),
            stale_while_revalidate: seconds(3),
            stale_if_error: seconds(4),
            targeted: false,
            malformed: false,
        };
        assert_eq!(said(value), expected);
        let targeted = header_map(&[("cdn-cache-control", value), ("cache-control", "max-age=9")]);
        let targeted = Directives::of(&targeted, &Rules::default());
        assert_eq!(targeted, Directives { targeted: true, ..expected });
    }

    #[test]
    fn delta_seconds_are_digits_and_nothing_else() {
        for (text, expected) in [
            ("0", seconds(0)),
            ("007", seconds(7)),
            ("2147483648", seconds(MOST_SECONDS)),
            ("2147483649", seconds(MOST_SECONDS)),
            ("999999999999999999999999999999", seconds(MOST_SECONDS)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.0", None),
            ("1 ", None),
            ("0x1", None),
        ] {
            assert_eq!(delta_seconds(text.as_bytes()), expected, "{text}");
        }
    }
}
