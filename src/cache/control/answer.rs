//! The head of an answer from the store.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{Selection, directives::CDN_CACHE_CONTROL};

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
        headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
    }
    match selection {
        Selection::Full | Selection::Head => {
            // RFC 9110, section 8.6: a 204 has none.
            if status != StatusCode::NO_CONTENT {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
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
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end.saturating_sub(start)));
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
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
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
