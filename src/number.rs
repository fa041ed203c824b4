//! Numbers as header fields have them, without a formatter: this runs on every response.

use std::sync::LazyLock;

use http::HeaderValue;

/// How many it has.
pub(crate) fn digits(number: u64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// The numbers below 10,000, four digits each: most that are written, and none is allocated.
static SMALL_NUMBERS: [[u8; 4]; 10_000] = {
    let mut texts = [[0; 4]; 10_000];
    let mut n = 0;
    while n < 10_000 {
        texts[n] = [digit(n / 1_000), digit(n / 100), digit(n / 10), digit(n)];
        n += 1;
    }
    texts
};

const fn digit(number: usize) -> u8 {
    b'0' + (number % 10) as u8
}

fn small_number(number: usize) -> &'static [u8] {
    let zeros = usize::from(number < 1_000) + usize::from(number < 100) + usize::from(number < 10);
    &SMALL_NUMBERS[number][zeros..]
}

/// The digits of a number, at the end of the space.
fn write_number(space: &mut [u8; 20], mut number: u64) -> &[u8] {
    let mut start = space.len();
    while number >= 10_000 {
        start -= 4;
        space[start..start + 4].copy_from_slice(&SMALL_NUMBERS[(number % 10_000) as usize]);
        number /= 10_000;
    }
    let first = small_number(number as usize);
    start -= first.len();
    space[start..start + first.len()].copy_from_slice(first);
    &space[start..]
}

#[cfg(feature = "rate-limit")]
pub(crate) fn push_number(text: &mut Vec<u8>, number: u64) {
    text.extend_from_slice(write_number(&mut [0; 20], number));
}

/// Values that only have to be cloned, which is cheap: they are static.
static SMALL_VALUES: LazyLock<Vec<HeaderValue>> =
    LazyLock::new(|| (0..1_000).map(small_value).collect());

fn small_value(number: usize) -> HeaderValue {
    let text = std::str::from_utf8(small_number(number));
    HeaderValue::from_static(text.expect("digits are ASCII"))
}

/// In at most one allocation; `HeaderValue::from` takes two.
pub(crate) fn number(number: u64) -> HeaderValue {
    if number < 1_000 {
        return SMALL_VALUES[number as usize].clone();
    }
    if number < 10_000 {
        return small_value(number as usize);
    }
    value(write_number(&mut [0; 20], number).to_vec())
}

/// # Panics
///
/// If the text is not visible ASCII.
pub(crate) fn value(text: Vec<u8>) -> HeaderValue {
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("names and digits are visible")
}
