//! `Vary`, and what makes two requests alike to it (RFC 9111, section 4.1).

use http::{HeaderMap, HeaderName, header};

/// The fields that selected a response, sorted, each once. `None` if nothing ever selects it again:
/// for `*`, and for what is no field name and can therefore not be compared.
pub(crate) fn vary(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut fields = Vec::new();
    for line in headers.get_all(header::VARY) {
        for name in line.as_bytes().split(|&byte| byte == b',') {
            match name.trim_ascii() {
                b"" => {}
                b"*" => return None,
                name => fields.push(HeaderName::from_bytes(name).ok()?),
            }
        }
    }
    fields.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    fields.dedup();
    Some(fields)
}

/// Appends what of one field of a request matters to the variants of a response.
///
/// All lines are one list. Whitespace at its commas does not count, nor do case and the forms of
/// weights in the fields that have them; nor order, but in `Accept-Language`, where some take it for
/// a preference (RFC 9110, section 12.5.4). An absent field is not an empty one.
pub(crate) fn variant_value(name: &HeaderName, request: &HeaderMap, out: &mut Vec<u8>) {
    let mut lines = request.get_all(name).iter().map(|value| value.as_bytes()).peekable();
    if lines.peek().is_none() {
        out.push(b'-');
        return;
    }
    out.push(b'=');
    let weighted = *name == header::ACCEPT_LANGUAGE
        || *name == header::ACCEPT_ENCODING
        || *name == header::ACCEPT_CHARSET;
    if weighted {
        weighted_list(lines, *name == header::ACCEPT_LANGUAGE, out);
    } else {
        for (index, line) in lines.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            plain_list(line, out);
        }
    }
}

fn plain_list(line: &[u8], out: &mut Vec<u8>) {
    let mut quoted = false;
    let mut escaped = false;
    // Whitespace is held back until it is known that no comma follows.
    let mut held = 0..0;
    let mut at_start = true;
    for (index, &byte) in line.iter().enumerate() {
        if !quoted && matches!(byte, b' ' | b'\t') {
            if held.is_empty() {
                held.start = index;
            }
            held.end = index + 1;
            continue;
        }
        let comma = !quoted && byte == b',';
        if !comma && !at_start {
            out.extend_from_slice(&line[held.clone()]);
        }
        held = 0..0;
        if byte == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && byte == b'\\' && !escaped;
        out.push(byte);
        at_start = comma;
    }
}

/// More than that many members are put in order on the heap.
const FEW: usize = 16;

fn weighted_list<'a>(lines: impl Iterator<Item = &'a [u8]>, ordered: bool, out: &mut Vec<u8>) {
    let start = out.len();
    let mut few = [(0, 0); FEW];
    let mut many = Vec::new();
    let mut count = 0;
    let members = lines.flat_map(|line| line.split(|&byte| byte == b','));
    for member in members {
        let member_start = out.len();
        if member_start > start {
            out.push(b',');
        }
        let text_start = out.len();
        weighted_member(member, out);
        if out.len() == text_start {
            out.truncate(member_start);
            continue;
        }
        if count == FEW {
            many.extend_from_slice(&few);
        }
        match few.get_mut(count) {
            Some(place) => *place = (text_start, out.len()),
            None => many.push((text_start, out.len())),
        }
        count += 1;
    }
    let members = if count > FEW { &mut many[..] } else { &mut few[..count] };
    let text = |&(from, to): &(usize, usize)| from..to;
    if ordered || members.is_sorted_by_key(|member| &out[text(member)]) {
        return;
    }
    members.sort_unstable_by(|one, other| out[text(one)].cmp(&out[text(other)]));
    let end = out.len();
    for (index, member) in members.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_within(text(member));
    }
    out.copy_within(end.., start);
    out.truncate(end);
}

/// In lower case, and a weight in its shortest form, which is none for 1. What is no weight stays as
/// it is, lest it look like another.
fn weighted_member(member: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let member = member.trim_ascii();
    let semicolon = member.iter().position(|&byte| byte == b';');
    let (value, weight) = member.split_at(semicolon.unwrap_or(member.len()));
    let value = value.trim_ascii_end();
    match weight.get(1..).and_then(|weight| shortest_weight(weight.trim_ascii_start())) {
        Some(weight) if !value.is_empty() => {
            out.extend_from_slice(value);
            if weight != b"1" {
                out.extend_from_slice(b";q=");
                out.extend_from_slice(weight);
            }
        }
        _ => out.extend_from_slice(member),
    }
    out[start..].make_ascii_lowercase();
}

/// RFC 9110, section 12.4.2.
fn shortest_weight(weight: &[u8]) -> Option<&[u8]> {
    let [b'q' | b'Q', b'=', value @ ..] = weight else { return None };
    let (whole, decimals) = match value {
        [whole] => (whole, &[][..]),
        [whole, b'.', decimals @ ..] => (whole, decimals),
        _ => return None,
    };
    let zeros = decimals.iter().rev().take_while(|&&digit| digit == b'0').count();
    let significant = decimals.len() - zeros;
    let valid = match whole {
        b'0' => decimals.len() <= 3 && decimals.iter().all(u8::is_ascii_digit),
        b'1' => decimals.len() <= 3 && significant == 0,
        _ => false,
    };
    let length = if significant == 0 { 1 } else { 2 + significant };
    valid.then_some(&value[..length])
}

#[cfg(test)]
mod tests {
    use super::{super::header_map, *};

    fn fields(lines: &[&str]) -> Option<String> {
        let lines: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
        let names = vary(&header_map(&lines))?;
        Some(names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(" "))
    }

    fn variant(name: &str, lines: &[&str]) -> Vec<u8> {
        let lines: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
        let mut out = b"before".to_vec();
        variant_value(&HeaderName::try_from(name).unwrap(), &header_map(&lines), &mut out);
        out.strip_prefix(b"before").unwrap().to_vec()
    }

    #[track_caller]
    fn assert_alike(name: &str, one: &[&str], other: &[&str]) {
        assert_eq!(variant(name, one), variant(name, other), "{one:?} {other:?}");
    }

    #[track_caller]
    fn assert_differ(name: &str, one: &[&str], other: &[&str]) {
        assert_ne!(variant(name, one), variant(name, other), "{one:?} {other:?}");
    }

    #[test]
    fn fields_are_sorted_and_each_once() {
        assert_eq!(fields(&[]).unwrap(), "");
        assert_eq!(fields(&["Foo"]).unwrap(), "foo");
        assert_eq!(fields(&["foo, Bar,,", "bar ,\tBAZ", ""]).unwrap(), "bar baz foo");
    }

    #[test]
    fn nothing_selects_again_after_a_star_or_what_is_no_name() {
        for line in ["*", "*, *", ", *", "*, foo", "foo, *", "foo bar", "foo;q=1", "\"foo\""] {
            assert_eq!(fields(&[line]), None, "{line}");
        }
        assert_eq!(fields(&["", "*"]), None);
        assert_eq!(fields(&["foo", "*"]), None);
    }

    #[test]
    fn an_absent_field_is_not_an_empty_one() {
        for name in ["foo", "accept-language"] {
            assert_differ(name, &[], &[""]);
            assert_differ(name, &[], &["a"]);
            assert_differ(name, &[], &["-"]);
        }
    }

    /// RFC 9111, section 4.1.
    #[test]
    fn lines_and_whitespace_at_commas_do_not_count() {
        assert_alike("foo", &["1, 2"], &["1", "2"]);
        assert_alike("foo", &["1,2"], &[" 1,\t 2 "]);
        assert_alike("foo", &["1 ,2"], &["1", " 2"]);
        assert_alike("foo", &["a b, \"c , d\""], &["a b", "\"c , d\""]);
        assert_alike("foo", &["\"a\\\"\" , b"], &["\"a\\\"\",b"]);
    }

    #[test]
    fn all_else_counts() {
        assert_differ("foo", &["1"], &["2"]);
        assert_differ("foo", &["1, 2"], &["2, 1"]);
        assert_differ("foo", &["a"], &["A"]);
        assert_differ("foo", &["a b"], &["a  b"]);
        assert_differ("foo", &["a b"], &["ab"]);
        assert_differ("foo", &["\"a, b\""], &["\"a,b\""]);
        assert_differ("foo", &["\"a\\\" , b\""], &["\"a\\\",b\""]);
        assert_differ("foo", &["a"], &["", "a"]);
        assert_differ("foo", &["a"], &["a", ""]);
        assert_differ("foo", &["a;q=1"], &["a"]);
    }

    /// RFC 9110, section 12.5.
    #[test]
    fn what_has_weights_is_a_set() {
        for name in ["accept-language", "accept-encoding", "accept-charset"] {
            if name == "accept-language" {
                assert_differ(name, &["en, de"], &["de, en"]);
            } else {
                assert_alike(name, &["en, de"], &["de, en"]);
            }
            assert_alike(name, &["en, de"], &["eN", " De"]);
            assert_alike(name, &["en, de"], &[" en ,   de,, "]);
            assert_alike(name, &["en;q=0.5, de"], &["en ; Q=0.500,de;q=1.0"]);
            assert_alike(name, &["en;q=0"], &["en;q=0.000"]);
            assert_alike(name, &["en;q=1"], &["en;q=1."]);
            assert_differ(name, &["en, de"], &["en"]);
            assert_differ(name, &["en"], &["en, en"]);
            assert_differ(name, &["en;q=0.5, de"], &["en, de;q=0.5"]);
            assert_differ(name, &["en;q=0.5"], &["en;q=0.05"]);
            assert_differ(name, &["en;q=0"], &["en"]);
            assert_differ(name, &["e n"], &["en"]);
        }
    }

    #[test]
    fn what_is_no_weight_is_left_alone() {
        let name = "accept-language";
        assert_differ(name, &["en;q=0.5;x=10"], &["en;q=0.5;x=1"]);
        assert_differ(name, &["en;v=1.10"], &["en;v=1.1"]);
        assert_differ(name, &["en;q=0. 5"], &["en;q=0.5"]);
        assert_differ(name, &["en;q=10"], &["en;q=1"]);
        assert_differ(name, &["en;q=1.001"], &["en"]);
        assert_differ(name, &["en;q=0.0000"], &["en;q=0"]);
        assert_differ(name, &["en;"], &["en"]);
        assert_differ(name, &["en, ;q=1"], &["en"]);
        assert_differ(name, &["en;q=0.5x0"], &["en;q=0.5x"]);
    }

    #[test]
    fn many_members_are_put_in_order_as_few_are() {
        let mut names: Vec<_> = (0..FEW * 3).map(|n| format!("l{n:03};q=0.{}", n % 10)).collect();
        let forth = names.join(", ");
        names.reverse();
        assert_alike("accept-encoding", &[&forth], &[&names.join(",")]);
        names.pop();
        assert_differ("accept-encoding", &[&forth], &[&names.join(",")]);
    }
}
