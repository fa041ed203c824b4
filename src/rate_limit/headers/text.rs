//! Numbers and fields as bytes, without a formatter: this runs on every response.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

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

pub(super) fn digits(number: u64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

pub(super) fn push_number(text: &mut Vec<u8>, mut number: u64) {
    let start = text.len();
    let end = start + digits(number);
    text.resize(end, b'0');
    for digit in text[start..].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// The numbers below 1000, three digits each: most that are written, and none is allocated.
static SMALL_NUMBERS: [u8; 3_000] = {
    let mut text = [0; 3_000];
    let mut n = 0;
    while n < 1_000 {
        text[3 * n] = b'0' + (n / 100) as u8;
        text[3 * n + 1] = b'0' + (n / 10 % 10) as u8;
        text[3 * n + 2] = b'0' + (n % 10) as u8;
        n += 1;
    }
    text
};

pub(super) fn number(number: u64) -> HeaderValue {
    if number < 1_000 {
        let end = 3 * number as usize + 3;
        let text = std::str::from_utf8(&SMALL_NUMBERS[end - digits(number)..end]);
        return HeaderValue::from_static(text.expect("digits are ASCII"));
    }
    let mut text = Vec::with_capacity(digits(number));
    push_number(&mut text, number);
    value(text)
}

pub(super) fn value(text: Vec<u8>) -> HeaderValue {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("names and digits are visible")
}

pub(super) fn number_in(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}
