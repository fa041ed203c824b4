//! Cache groups (RFC 9875).

use std::convert::Infallible;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use sfv::{
    BareItemFromInput, Parser,
    visitor::{
        EntryVisitor, Ignored, InnerListVisitor, ItemVisitor, ListVisitor, ParameterVisitor,
    },
};

use super::{enter::is_safe, invalidation::is_non_error};

const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");
const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");

/// Four times of what must be supported (RFC 9875, section 2). What comes after it is dropped.
const MOST_GROUPS: usize = 128;

/// The groups that a response belongs to.
pub(crate) fn groups(headers: &HeaderMap) -> Vec<String> {
    strings(headers, &CACHE_GROUPS)
}

/// The groups that a response invalidates: none if the request was safe or failed (RFC 9875,
/// section 3).
pub(crate) fn invalidated_groups(
    method: &Method,
    status: StatusCode,
    headers: &HeaderMap,
) -> Vec<String> {
    if is_safe(method) || !is_non_error(status) {
        return Vec::new();
    }
    strings(headers, &CACHE_GROUP_INVALIDATION)
}

/// A list of strings, each once. A field with anything else in it is ignored.
fn strings(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return Vec::new();
    }
    let mut found = Strings { strings: Vec::new(), others: false };
    match Parser::new(&lines.join(&b',')).parse_list_with_visitor(&mut found) {
        Ok(()) if !found.others => found.strings,
        _ => Vec::new(),
    }
}

struct Strings {
    strings: Vec<String>,
    others: bool,
}

impl<'de> ListVisitor<'de> for Strings {
    type Error = Infallible;

    fn entry(&mut self) -> Result<impl EntryVisitor<'de>, Infallible> {
        Ok(self)
    }
}

impl<'de> ItemVisitor<'de> for &mut Strings {
    type Error = Infallible;

    fn bare_item(
        self,
        item: BareItemFromInput<'de>,
    ) -> Result<impl ParameterVisitor<'de>, Infallible> {
        match item {
            BareItemFromInput::String(string) => {
                let string = string.as_str();
                let known = self.strings.iter().any(|other| other == string);
                if !known && self.strings.len() < MOST_GROUPS {
                    self.strings.push(string.to_owned());
                }
            }
            _ => self.others = true,
        }
        Ok(Ignored)
    }
}

impl<'de> EntryVisitor<'de> for &mut Strings {
    fn inner_list(self) -> Result<impl InnerListVisitor<'de>, Infallible> {
        self.others = true;
        Ok(Ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::header_map, *};

    fn of(lines: &[&str]) -> Vec<String> {
        let lines: Vec<_> = lines.iter().map(|line| ("cache-groups", *line)).collect();
        groups(&header_map(&lines))
    }

    #[test]
    fn groups_are_strings_each_once_and_in_any_number_of_lines() {
        assert_eq!(of(&["\"a\", \"B c\"", "\"a\", \"b c\""]), ["a", "B c", "b c"]);
        assert_eq!(of(&["\"a\\\"b\";x=1"]), ["a\"b"], "parameters mean nothing");
        assert_eq!(of(&["\"\""]), [""]);
        assert!(of(&[]).is_empty() && of(&[""]).is_empty());
    }

    #[test]
    fn a_field_with_anything_else_in_it_is_ignored() {
        for line in
            ["a", "\"a\", b", "\"a\", 1", "(\"a\")", "\"a\", (\"b\")", "\"a", "\"a\",", "\"ä\""]
        {
            assert!(of(&[line]).is_empty(), "{line}");
        }
        assert!(of(&["\"a\"", "b"]).is_empty());
    }

    #[test]
    fn what_must_be_supported_is_and_there_is_an_end() {
        let line = |count: usize| {
            let names: Vec<_> = (0..count).map(|n| format!("\"{n:032}\"")).collect();
            names.join(", ")
        };
        assert_eq!(of(&[&line(32)]).len(), 32);
        assert_eq!(of(&[&line(1000)]).len(), MOST_GROUPS);
    }

    /// RFC 9875, section 3.
    #[test]
    fn only_an_unsafe_request_that_succeeds_invalidates_groups() {
        let headers =
            header_map(&[("cache-group-invalidation", "\"a\""), ("cache-groups", "\"b\"")]);
        let invalidated = |method: &str, status| {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            !invalidated_groups(&method, StatusCode::from_u16(status).unwrap(), &headers).is_empty()
        };
        assert_eq!(invalidated_groups(&Method::POST, StatusCode::OK, &headers), ["a"]);
        for (method, status, invalidates) in [
            ("POST", 201, true),
            ("DELETE", 303, true),
            ("M-SEARCH", 200, true),
            ("POST", 404, false),
            ("POST", 500, false),
            ("GET", 200, false),
            ("HEAD", 200, false),
            ("OPTIONS", 200, false),
            ("QUERY", 200, false),
        ] {
            assert_eq!(invalidated(method, status), invalidates, "{method} {status}");
        }
    }
}
