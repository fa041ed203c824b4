//! `X-Forwarded-For` and `Forwarded` (RFC 7239), read from the right.
//!
//! The rightmost element is what the nearest proxy wrote; whatever a client made up stands left of
//! it. So nothing is parsed from the left, and nothing is read that does not have to be.

use std::{
    iter::Rev,
    net::{IpAddr, Ipv6Addr},
};

use http::{HeaderMap, HeaderName, HeaderValue, header::ValueIter};

use super::network::unmapped;

/// How much of a header is read, counted from the right.
const MOST_BYTES: usize = 8 * 1024;
/// An IPv6 address with zone, brackets and port takes at most about 80.
const LONGEST_NODE: usize = 128;

/// The elements of a list header over all its lines, the rightmost first.
pub(super) struct Elements<'a> {
    lines: Rev<ValueIter<'a, HeaderValue>>,
    line: Option<&'a [u8]>,
    bytes_left: usize,
    quotes: Quotes,
}

/// Whether a comma between double quotes separates.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Quotes {
    Plain,
    Quoting,
}

impl<'a> Elements<'a> {
    pub(super) fn new(headers: &'a HeaderMap, name: &HeaderName, quotes: Quotes) -> Self {
        let lines = headers.get_all(name).iter().rev();
        Self { lines, line: None, bytes_left: MOST_BYTES, quotes }
    }

    fn last_comma(&self, bytes: &[u8]) -> Option<usize> {
        if self.quotes == Quotes::Plain {
            return bytes.iter().rposition(|b| *b == b',');
        }
        let mut quoted = false;
        let mut i = bytes.len();
        while i > 0 {
            i -= 1;
            match bytes[i] {
                b',' if !quoted => return Some(i),
                b'"' => {
                    let slashes = bytes[..i].iter().rev().take_while(|b| **b == b'\\').count();
                    i -= slashes;
                    // A quote after an odd number of backslashes is part of the text.
                    quoted ^= slashes % 2 == 0;
                }
                _ => {}
            }
        }
        None
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let line = match self.line.take() {
            Some(line) => line,
            None => self.lines.next()?.as_bytes(),
        };
        let unread = line.len().saturating_sub(self.bytes_left);
        let start = match self.last_comma(&line[unread..]) {
            Some(comma) => {
                self.line = Some(&line[..unread + comma]);
                unread + comma + 1
            }
            None if unread > 0 => {
                self.bytes_left = 0;
                return None;
            }
            None => 0,
        };
        // One for the comma or the end of the line, so that empty lines are counted too.
        self.bytes_left = self.bytes_left.checked_sub(line.len() - start + 1)?;
        Some(&line[start..])
    }
}

/// The address in an element of `Forwarded`: of its one `for` parameter.
pub(super) fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut rest = trim(element);
    let mut node = None;
    loop {
        let equals = rest.iter().position(|b| *b == b'=')?;
        let name = trim(&rest[..equals]);
        rest = &rest[equals + 1..];
        let value;
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            let end = end_of_quoted(quoted)?;
            value = &quoted[..end];
            rest = trim(&quoted[end + 1..]);
        } else {
            let end = rest.iter().position(|b| *b == b';').unwrap_or(rest.len());
            value = &rest[..end];
            rest = &rest[end..];
        }
        // RFC 7239 §4: a parameter occurs at most once in an element.
        if name.eq_ignore_ascii_case(b"for") && node.replace(value).is_some() {
            return None;
        }
        match rest.split_first() {
            None => return address(node?),
            Some((b';', after)) if trim(after).is_empty() => return address(node?),
            Some((b';', after)) => rest = after,
            Some(_) => return None,
        }
    }
}

fn end_of_quoted(text: &[u8]) -> Option<usize> {
    let mut i = 0;
    loop {
        match text.get(i)? {
            b'"' => return Some(i),
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
}

/// The address of a hop: an address, `ip:port`, `[v6]`, `[v6]:port`, with or without a zone.
///
/// `unknown` and `_hidden` (RFC 7239 §6) are none, like any nonsense.
pub(super) fn address(node: &[u8]) -> Option<IpAddr> {
    let node = trim(node);
    if node.len() > LONGEST_NODE {
        return None;
    }
    let node = std::str::from_utf8(node).ok()?;
    let address = if let Some(bracketed) = node.strip_prefix('[') {
        let (inside, after) = bracketed.split_once(']')?;
        if !after.is_empty() && !is_port(after.strip_prefix(':')?) {
            return None;
        }
        IpAddr::V6(zoned(inside)?)
    } else {
        match node.split_once(':') {
            None => IpAddr::V4(node.parse().ok()?),
            Some((_, port)) if port.contains(':') => IpAddr::V6(zoned(node)?),
            Some((v4, port)) if is_port(port) => IpAddr::V4(v4.parse().ok()?),
            Some(_) => return None,
        }
    };
    Some(unmapped(address))
}

/// The zone (RFC 4007 §11) names an interface of the proxy, not a client, and goes.
fn zoned(text: &str) -> Option<Ipv6Addr> {
    let address = match text.split_once('%') {
        None => text,
        Some((address, zone)) if !zone.is_empty() && zone.bytes().all(is_name) => address,
        Some(_) => return None,
    };
    address.parse().ok()
}

/// RFC 7239 §6.2: a number, or a name that begins with an underscore.
fn is_port(text: &str) -> bool {
    match text.strip_prefix('_') {
        Some(name) => !name.is_empty() && name.bytes().all(is_name),
        None => (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()),
    }
}

fn is_name(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'~')
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(lines: &[&str], quotes: Quotes) -> Vec<String> {
        let name = HeaderName::from_static("forwarded");
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&name, line.parse().unwrap());
        }
        Elements::new(&headers, &name, quotes)
            .map(|element| String::from_utf8(element.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn a_hop_is_an_address_in_any_of_its_spellings() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            (" \t192.0.2.1  ", "192.0.2.1"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("192.0.2.1:_port", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:65535", "2001:db8::1"),
            ("[2001:db8::1]:_x.y-z", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%25eth0]:80", "fe80::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("[::ffff:c000:201]:80", "192.0.2.1"),
            ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ] {
            assert_eq!(address(text.as_bytes()), Some(expected.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_none() {
        let long = format!("fe80::1%{}", "x".repeat(200));
        for text in [
            "",
            " ",
            "unknown",
            "_hidden",
            "localhost",
            "192.0.2",
            "192.0.2.256",
            "192.0.2.01",
            "192.0.2.1:",
            "192.0.2.1:x",
            "192.0.2.1:123456",
            "192.0.2.1 192.0.2.2",
            "[192.0.2.1]",
            "[2001:db8::1",
            "2001:db8::1]",
            "[2001:db8::1]80",
            "[2001:db8::1]:",
            "[]",
            "[::1]]",
            "fe80::1%",
            "fe80::1%et h",
            "192.0.2.1%eth0",
            "for=192.0.2.1",
            "\"192.0.2.1\"",
            "::1::",
            &long,
        ] {
            assert_eq!(address(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(address(b"192.0.2.1\xff"), None);
        assert_eq!(address(b"\xa0192.0.2.1"), None);
    }

    #[test]
    fn forwarded_elements_name_their_client_once() {
        for (text, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=\"192.0.2.1:80\"", "192.0.2.1"),
            ("proto=https; for=\"[2001:db8::1]:80\" ;by=203.0.113.43", "2001:db8::1"),
            ("host=\"a;for=6.6.6.6\";for=192.0.2.1", "192.0.2.1"),
            ("host=\"\\\";for=6.6.6.6;x=\\\"\";for=192.0.2.1;", "192.0.2.1"),
        ] {
            assert_eq!(forwarded_for(text.as_bytes()), Some(expected.parse().unwrap()), "{text:?}");
        }
        for text in [
            "",
            "192.0.2.1",
            "by=192.0.2.1",
            "for=unknown",
            "for=_hidden",
            "for=\"_hidden:80\"",
            "for=",
            "for=192.0.2.1;for=192.0.2.1",
            "for=\"192.0.2.1",
            "for=\"192.0.2.1\\",
            "for=\"192.0.2.1\"x",
            ";for=",
            "for=192.0.2.1;host=\"a",
        ] {
            assert_eq!(forwarded_for(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn elements_come_from_the_right_over_all_lines() {
        let lines = ["a, b", "", "c,", "d"];
        assert_eq!(elements(&lines, Quotes::Plain), ["d", "", "c", "", " b", "a"]);
        assert_eq!(elements(&[], Quotes::Plain), [""; 0]);
    }

    #[test]
    fn a_quoted_comma_separates_only_where_nothing_is_quoted() {
        let lines = [r#"for="a,b";x="\",\\", for=c"#];
        assert_eq!(elements(&lines, Quotes::Quoting), [" for=c", r#"for="a,b";x="\",\\""#]);
        assert_eq!(elements(&lines, Quotes::Plain).len(), 4);
    }

    #[test]
    fn an_unclosed_quote_of_the_client_does_not_reach_what_the_proxy_wrote() {
        let lines = [r#"for="6.6.6.6, for=192.0.2.1"#];
        assert_eq!(elements(&lines, Quotes::Quoting)[0], " for=192.0.2.1");
    }

    #[test]
    fn only_the_right_end_of_a_huge_header_is_read() {
        let huge = format!("{}, 10.0.0.1", "x".repeat(100 * 1024));
        assert_eq!(elements(&[&huge], Quotes::Plain), [" 10.0.0.1"]);
        let many = ["1.1.1.1"; 5_000];
        assert_eq!(elements(&many, Quotes::Plain).len(), MOST_BYTES / 8);
        let empty = [""; 20_000];
        assert_eq!(elements(&empty, Quotes::Plain).len(), MOST_BYTES);
        let commas = ",".repeat(20_000);
        assert_eq!(elements(&[&commas], Quotes::Quoting).len(), MOST_BYTES);
    }
}
