//! How much of the query is part of the key.

use std::borrow::Cow;

use http::Uri;

/// How much of a URI's query tells resources apart.
///
/// Queries are taken as the bytes that were sent: nothing is decoded, and pairs are split at `&`
/// only, so that no two requests share an answer which a handler could tell apart by other means
/// than the rule says.
///
/// # Security
///
/// What the rule leaves out is removed from the request before the handler sees it, so that no client
/// decides by it what all others get. A handler that reads `axum::extract::OriginalUri` sees all of
/// the query, and must not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Query {
    /// All of it, as it is: `?a=1&b=2` and `?b=2&a=1` are two resources.
    #[default]
    Raw,
    /// All of it, the pairs sorted by name. Pairs of one name keep their order.
    Sorted,
    /// The pairs of these names, sorted by name. For queries that carry what no handler reads, such
    /// as `utm_source`. Names are compared to the bytes of the query, undecoded.
    Only(Vec<String>),
    /// Nothing.
    Ignored,
}

impl Query {
    /// A number for each rule, so that the keys of one are never those of another.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Raw => 1,
            Self::Sorted => 2,
            Self::Only(_) => 3,
            Self::Ignored => 4,
        }
    }

    /// The part of the query that counts; none is not the same as an empty one.
    pub(super) fn apply<'a>(&self, query: Option<&'a str>) -> Option<Cow<'a, str>> {
        match self {
            Self::Raw => query.map(Cow::Borrowed),
            Self::Sorted => query.map(|query| {
                let names = || query.split('&').map(name);
                match names().is_sorted() {
                    true => Cow::Borrowed(query),
                    false => Cow::Owned(sorted(query.split('&').collect())),
                }
            }),
            Self::Only(names) => {
                let listed = |pair: &&str| names.iter().any(|one| one == name(pair));
                let pairs: Vec<_> = query?.split('&').filter(listed).collect();
                (!pairs.is_empty()).then(|| Cow::Owned(sorted(pairs)))
            }
            Self::Ignored => None,
        }
    }

    /// The target without what does not count, for a handler that must not depend on it; none if all
    /// of it counts.
    pub(crate) fn kept(&self, target: &Uri) -> Option<Uri> {
        let kept = self.apply(target.query());
        if kept.as_deref() == target.query() {
            return None;
        }
        let path = target.path();
        let kept = kept.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let mut parts = target.clone().into_parts();
        parts.path_and_query = Some(kept.parse().ok()?);
        Uri::from_parts(parts).ok()
    }
}

fn name(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

fn sorted(mut pairs: Vec<&str>) -> String {
    pairs.sort_by_key(|pair| name(pair));
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(rule: &Query, query: &str) -> Option<String> {
        rule.apply(Some(query)).map(Cow::into_owned)
    }

    #[test]
    fn sorting_keeps_the_order_of_pairs_of_one_name_and_every_byte() {
        for (query, sorted) in [
            ("b=2&a=1", "a=1&b=2"),
            ("b=1&a=2&b=0&a=1", "a=2&a=1&b=1&b=0"),
            ("b&a=1;c=3&a", "a=1;c=3&a&b"),
            ("ab=1&a=2", "a=2&ab=1"),
            ("%61=1&a=2", "%61=1&a=2"),
            ("b&&a=", "&a=&b"),
            ("a==&a", "a==&a"),
            ("", ""),
        ] {
            assert_eq!(apply(&Query::Sorted, query).as_deref(), Some(sorted), "{query}");
        }
        assert_eq!(Query::Sorted.apply(None), None);
    }

    #[test]
    fn an_allow_list_keeps_whole_pairs_of_the_names_it_has() {
        let rule = Query::Only(vec!["page".into(), "a".into()]);
        for (query, kept) in [
            ("page=2&utm_source=x&a=1", Some("a=1&page=2")),
            ("pages=2", None),
            ("page", Some("page")),
            ("page=", Some("page=")),
            ("x;page=2", None),
            ("%70age=2", None),
            ("Page=2", None),
            ("", None),
        ] {
            assert_eq!(apply(&rule, query).as_deref(), kept, "{query}");
        }
    }

    #[test]
    fn the_handler_sees_what_counts() {
        let target = |uri: &str| uri.parse::<Uri>().unwrap();
        let only = Query::Only(vec!["page".into()]);
        for (uri, kept) in [
            ("/a?utm=x&page=2", Some("/a?page=2")),
            ("http://shop.example/a?utm=x", Some("http://shop.example/a")),
            ("/a?page=2", None),
            ("/a", None),
        ] {
            assert_eq!(only.kept(&target(uri)), kept.map(target), "{uri}");
        }
        assert_eq!(Query::Raw.kept(&target("/a?b&a&b")), None);
    }

    #[test]
    fn nothing_is_left_of_an_ignored_query_and_all_of_a_raw_one() {
        assert_eq!(apply(&Query::Ignored, "a=1"), None);
        assert_eq!(apply(&Query::Raw, "b=2&a=1&"), Some("b=2&a=1&".into()));
        assert_eq!(Query::Raw.apply(None), None);
    }
}
