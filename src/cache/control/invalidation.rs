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
