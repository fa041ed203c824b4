//! Fields as bytes, without a formatter: this runs on every response.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

/// RFC 9651 §3.3.1: an Integer has at most 15 digits.
pub(super) const LARGEST_INTEGER: u64 = 999_999_999_999_999;

pub(super) fn separate(text: &mut Vec<u8>) {
    if !text.is_empty() {
        text.push(b',');
    }
}

pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

pub(super) fn number_in(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}
