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
