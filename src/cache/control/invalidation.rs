//! What a successful unsafe request makes invalid (RFC 9111, section 4.4).

use http::{HeaderMap, StatusCode, Uri, header, uri::Scheme};

/// The targets that a response to an unsafe request invalidates, as path and query: that of the
/// request, and `Location` and `Content-Location` of the same origin. None after an error.
///
/// `host` is the `Host` field, for targets that do not name an authority.
pub(crate) fn invalidated(
    target: &Uri,
    host: Option<&str>,
    status: StatusCode,
    response: &HeaderMap,
) -> Vec<String> {
    if !is_non_error(status) {
        return Vec::new();
    }
    let own = target.path_and_query().map_or("/", |path| path.as_str());
    let mut targets = vec![own.to_owned()];
    let authority = target.authority().map(|authority| authority.as_str()).or(host);
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        // Neither may be said twice; who does so may mean any of them.
        for value in response.get_all(name) {
            let Ok(reference) = value.to_str() else { continue };
            let Some(found) = resolve(reference, target, authority) else { continue };
            if !targets.contains(&found) {
                targets.push(found);
            }
        }
    }
    targets
}

pub(super) fn is_non_error(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// The path and query of a reference, if it is of the same origin (RFC 3986, section 5.2).
fn resolve(reference: &str, target: &Uri, authority: Option<&str>) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default().trim();
    let scheme = target.scheme();
    if let Some((named, rest)) = reference.split_once("://") {
        // A service seldom knows by which scheme it was asked; then either is its own.
        let web = named.eq_ignore_ascii_case("http") || named.eq_ignore_ascii_case("https");
        let same = scheme.is_none_or(|scheme| scheme.as_str().eq_ignore_ascii_case(named));
        if is_scheme(named) {
            return if web && same { of_authority(rest, Some(named), authority) } else { None };
        }
    }
    if let Some(rest) = reference.strip_prefix("//") {
        return of_authority(rest, scheme.map(Scheme::as_str), authority);
    }
    let (path, query) = split_query(reference);
    let path = match path {
        "" => target.path().to_owned(),
        absolute if absolute.starts_with('/') => without_dots(absolute),
        // `mailto:` and its like; a colon in a first segment is a scheme.
        opaque if opaque.split('/').next().is_some_and(|first| first.contains(':')) => return None,
        relative => {
            let folder = target.path().rfind('/').map_or("/", |slash| &target.path()[..=slash]);
            without_dots(&format!("{folder}{relative}"))
        }
    };
    let inherited = if reference.is_empty() { target.query() } else { None };
    Some(with_query(path, query.or(inherited)))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// What follows `//`, if it names the authority of the request.
fn of_authority(rest: &str, scheme: Option<&str>, own: Option<&str>) -> Option<String> {
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (named, path) = rest.split_at(end);
    let same = host_and_port(named, scheme).eq_ignore_ascii_case(host_and_port(own?, scheme));
    if !same {
        return None;
    }
    let (path, query) = split_query(path);
    let path = if path.is_empty() { "/".to_owned() } else { without_dots(path) };
    Some(with_query(path, query))
}

/// Without user information and without a port that goes without saying.
fn host_and_port<'a>(authority: &'a str, scheme: Option<&str>) -> &'a str {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let implied = match scheme {
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => ":443",
        _ => ":80",
    };
    let host = host.strip_suffix(implied).unwrap_or(host);
    host.strip_suffix(':').unwrap_or(host)
}

fn split_query(reference: &str) -> (&str, Option<&str>) {
    match reference.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (reference, None),
    }
}

fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// RFC 3986, section 5.2.4, for a path that starts with a slash.
fn without_dots(path: &str) -> String {
    if !path.contains("/.") {
        return path.to_owned();
    }
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            part => segments.push(part),
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::{super::header_map, *};

    fn of(target: &str, host: Option<&str>, location: &str) -> Vec<String> {
        let headers = header_map(&[("location", location)]);
        invalidated(&target.parse().unwrap(), host, StatusCode::OK, &headers)
    }

    /// What `Location` adds to the target itself.
    fn adds(target: &str, location: &str) -> Option<String> {
        let mut targets = of(target, Some("a.example"), location);
        assert!(targets.len() <= 2, "{targets:?}");
        targets.drain(1..).next()
    }

    /// RFC 9111, section 4.4.
    #[test]
    fn a_success_or_a_redirection_invalidates_the_target() {
        let target = |status| {
            let uri = "/a?b=c".parse().unwrap();
            invalidated(&uri, None, StatusCode::from_u16(status).unwrap(), &HeaderMap::new())
        };
        for status in [200, 201, 204, 301, 303, 399] {
            assert_eq!(target(status), ["/a?b=c"], "{status}");
        }
        for status in [100, 400, 404, 500, 599] {
            assert!(target(status).is_empty(), "{status}");
        }
    }

    #[test]
    fn locations_of_the_same_origin_are_invalidated_too() {
        let headers = header_map(&[
            ("location", "/b"),
            ("location", "/d"),
            ("content-location", "c?d"),
            ("content-location", "/x/a"),
        ]);
        let uri = "/x/a".parse().unwrap();
        let targets = invalidated(&uri, Some("a.example"), StatusCode::CREATED, &headers);
        assert_eq!(targets, ["/x/a", "/b", "/d", "/x/c?d"]);
    }

    /// RFC 3986, sections 5.2 and 5.4.
    #[test]
    fn references_are_resolved() {
        for (reference, expected) in [
            ("/e", Some("/e")),
            ("e", Some("/b/c/e")),
            ("./e", Some("/b/c/e")),
            ("../e", Some("/b/e")),
            ("../../../e", Some("/e")),
            ("e/./f/../g", Some("/b/c/e/g")),
            ("..", Some("/b/")),
            (".", Some("/b/c/")),
            ("/../e", Some("/e")),
            ("/e/..", Some("/")),
            ("?y", Some("/b/c/d?y")),
            ("e?y#z", Some("/b/c/e?y")),
            ("#z", None),
            ("", None),
            (" /e ", Some("/e")),
            ("//a.example/e", Some("/e")),
            ("//a.example:80/e", Some("/e")),
            ("//u@A.Example:/e", Some("/e")),
            ("//a.example", Some("/")),
            ("//a.example?y", Some("/?y")),
            ("http://a.example/e/../f?y#z", Some("/f?y")),
            ("HTTPS://a.example:443/e", Some("/e")),
            ("e?u=http://b.example/", Some("/b/c/e?u=http://b.example/")),
            ("mailto:e", None),
            ("ftp://a.example/e", None),
            ("http://b.example/e", None),
            ("//a.example:81/e", None),
            ("//a.example@b.example/e", None),
            ("http://a.example.b.example/e", None),
        ] {
            assert_eq!(adds("/b/c/d?x", reference).as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn the_authority_is_that_of_the_target_or_of_the_host() {
        assert_eq!(of("http://a.example/b", Some("c.example"), "http://a.example/d").len(), 2);
        assert_eq!(of("http://a.example/b", Some("c.example"), "http://c.example/d").len(), 1);
        assert_eq!(
            of("http://a.example/b", None, "https://a.example/d").len(),
            1,
            "another scheme"
        );
        assert_eq!(of("/b", None, "http://a.example/d").len(), 1, "nobody knows");
        assert_eq!(of("/b", None, "/d").len(), 2);
        assert_eq!(of("/b", Some("a.example:8080"), "http://a.example:8080/d").len(), 2);
    }

    #[test]
    fn a_location_that_is_no_text_adds_nothing() {
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, http::HeaderValue::from_bytes(b"/\xff").unwrap());
        let targets = invalidated(&"/a".parse().unwrap(), None, StatusCode::OK, &headers);
        assert_eq!(targets, ["/a"]);
    }
}
