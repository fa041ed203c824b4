//! The head of an answer from the store.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{Selection, directives::CDN_CACHE_CONTROL};
use crate::number::number;

/// Makes of stored fields those of the answer, and says its status. `length` is that of the stored
/// body.
pub(crate) fn into_answer(
    status: StatusCode,
    headers: &mut HeaderMap,
    selection: Selection,
    age: Option<Duration>,
    length: u64,
) -> StatusCode {
    if let Some(age) = age {
        headers.insert(header::AGE, number(age.as_secs()));
    }
    match selection {
        Selection::Full | Selection::Head => {
            // RFC 9110, section 8.6: a 204 has none.
            if status != StatusCode::NO_CONTENT {
                headers.insert(header::CONTENT_LENGTH, number(length));
            }
            status
        }
        Selection::NotModified => {
            without_content(headers);
            // It would only guide who has no entity tag (RFC 9110, section 15.4.5).
            if headers.contains_key(header::ETAG) {
                headers.remove(header::LAST_MODIFIED);
            }
            StatusCode::NOT_MODIFIED
        }
        Selection::Range { start, end } => {
            // They are those of the whole, not of the part (RFC 9530, section 2).
            headers.remove("content-digest");
            headers.remove("content-md5");
            headers.insert(header::CONTENT_LENGTH, number(end.saturating_sub(start)));
            let range = format!("bytes {start}-{}/{length}", end.saturating_sub(1));
            headers.insert(header::CONTENT_RANGE, ascii(&range));
            StatusCode::PARTIAL_CONTENT
        }
        Selection::Unsatisfiable => {
            without_content(headers);
            headers.remove(header::ETAG);
            headers.remove(header::LAST_MODIFIED);
            // The life is that of the stored response. With it, a cache nearer to the client could
            // store the error and give it to those who want no range.
            headers.remove(header::EXPIRES);
            headers.remove(CDN_CACHE_CONTROL);
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(header::CONTENT_LENGTH, number(0));
            headers.insert(header::CONTENT_RANGE, ascii(&format!("bytes */{length}")));
            StatusCode::RANGE_NOT_SATISFIABLE
        }
    }
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// What describes content that is not sent.
fn without_content(headers: &mut HeaderMap) {
    for name in [
        "content-digest",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-length",
        "content-md5",
        "content-range",
        "content-type",
        "repr-digest",
    ] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::header_map, *};

    const STORED: [(&str, &str); 14] = [
        ("cache-control", "max-age=60"),
        ("cdn-cache-control", "max-age=90"),
        ("content-digest", "a"),
        ("content-encoding", "br"),
        ("content-language", "de"),
        ("content-location", "/a"),
        ("content-md5", "a"),
        ("content-type", "text/plain"),
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("etag", "\"a\""),
        ("expires", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("repr-digest", "a"),
        ("vary", "b"),
    ];

    fn answer(status: u16, selection: Selection) -> (u16, HeaderMap) {
        let mut headers = header_map(&STORED);
        let status = StatusCode::from_u16(status).unwrap();
        let age = Some(Duration::from_millis(4900));
        (into_answer(status, &mut headers, selection, age, 10).as_u16(), headers)
    }

    /// The stored fields but for these, and others instead.
    fn but(left_out: &[&str], instead: &[(&str, &str)]) -> HeaderMap {
        let mut headers = header_map(&STORED);
        for name in left_out {
            headers.remove(*name).unwrap();
        }
        headers.extend(header_map(instead));
        headers
    }

    /// RFC 9111, section 5.1.
    #[test]
    fn what_comes_from_the_store_says_its_age_in_whole_seconds() {
        let whole = but(&[], &[("age", "4"), ("content-length", "10")]);
        assert_eq!(answer(200, Selection::Full), (200, whole.clone()));
        assert_eq!(answer(404, Selection::Full), (404, whole.clone()));
        assert_eq!(answer(200, Selection::Head), (200, whole));
        let mut headers = header_map(&[("age", "3")]);
        into_answer(StatusCode::OK, &mut headers, Selection::Full, None, 0);
        assert_eq!(headers, header_map(&[("age", "3"), ("content-length", "0")]));
    }

    /// RFC 9110, section 8.6.
    #[test]
    fn a_204_has_no_length() {
        assert_eq!(answer(204, Selection::Full), (204, but(&[], &[("age", "4")])));
    }

    /// RFC 9110, section 15.4.5.
    #[test]
    fn a_304_has_what_a_cache_needs_and_nothing_of_the_content() {
        let of_content = [
            "content-digest",
            "content-encoding",
            "content-language",
            "content-md5",
            "content-type",
            "last-modified",
            "repr-digest",
        ];
        let expected = but(&of_content, &[("age", "4")]);
        assert_eq!(answer(200, Selection::NotModified), (304, expected));
        let mut untagged = header_map(&[("last-modified", "a")]);
        into_answer(StatusCode::OK, &mut untagged, Selection::NotModified, None, 10);
        assert_eq!(untagged, header_map(&[("last-modified", "a")]), "it is the only validator");
    }

    /// RFC 9110, section 15.3.7.
    #[test]
    fn a_206_says_which_part_it_is() {
        let part = [("age", "4"), ("content-length", "3"), ("content-range", "bytes 2-4/10")];
        let expected = but(&["content-digest", "content-md5"], &part);
        assert_eq!(answer(200, Selection::Range { start: 2, end: 5 }), (206, expected));
    }

    /// RFC 9110, section 15.5.17.
    #[test]
    fn a_416_says_the_length_and_is_for_nobody_else() {
        let expected = header_map(&[
            ("age", "4"),
            ("cache-control", "no-store"),
            ("content-length", "0"),
            ("content-location", "/a"),
            ("content-range", "bytes */10"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("vary", "b"),
        ]);
        assert_eq!(answer(200, Selection::Unsatisfiable), (416, expected));
    }
}
