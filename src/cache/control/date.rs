//! Dates of HTTP (RFC 9110, section 5.6.7), in seconds since the Unix epoch.

use std::time::{Duration, UNIX_EPOCH};

use http::HeaderValue;

const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// 9999-12-31 23:59:59, the last second that the format can say.
const LAST_SECOND: u64 = 253_402_300_799;

/// All three formats that recipients must accept, with names in any case and nothing else: a date
/// that is slightly off is an invalid date. What lies before 1970 is 1970. `now` places years of two
/// digits.
pub(super) fn parse(value: &[u8], now: Duration) -> Option<u64> {
    imf_fixdate(value).or_else(|| rfc850(value, now)).or_else(|| asctime(value))
}

pub(super) fn parse_value(value: &HeaderValue, now: Duration) -> Option<u64> {
    parse(value.as_bytes(), now)
}

pub(super) fn value(now: Duration) -> HeaderValue {
    let seconds = now.as_secs().min(LAST_SECOND);
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(value: &[u8]) -> Option<u64> {
    let (weekday, rest) = value.split_at_checked(3)?;
    let rest: &[u8; 26] = rest.try_into().ok()?;
    let [b',', b' ', d1, d2, b' ', m1, m2, m3, b' ', y1, y2, y3, y4, b' ', time @ ..] = rest else {
        return None;
    };
    abbreviated_weekday(weekday)?;
    let year = number(&[*y1, *y2, *y3, *y4])?;
    seconds(year, month(&[*m1, *m2, *m3])?, number(&[*d1, *d2])?, time_of_day_gmt(time)?)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(value: &[u8], now: Duration) -> Option<u64> {
    let comma = value.iter().position(|&byte| byte == b',')?;
    let (weekday, rest) = value.split_at(comma);
    let rest: &[u8; 24] = rest.try_into().ok()?;
    let [b',', b' ', d1, d2, b'-', m1, m2, m3, b'-', y1, y2, b' ', time @ ..] = rest else {
        return None;
    };
    WEEKDAYS.iter().find(|name| name.as_bytes().eq_ignore_ascii_case(weekday))?;
    let (month, day) = (month(&[*m1, *m2, *m3])?, number(&[*d1, *d2])?);
    let time = time_of_day_gmt(time)?;
    // "A timestamp that appears to be more than 50 years in the future" is of the century before.
    let this_year = year_of(now);
    let year = this_year - this_year % 100 + number(&[*y1, *y2])?;
    let date = seconds(year, month, day, time)?;
    if year > this_year + 50 || (year == this_year + 50 && date > fifty_years_after(now)) {
        return seconds(year.checked_sub(100)?, month, day, time);
    }
    Some(date)
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(value: &[u8]) -> Option<u64> {
    let (weekday, rest) = value.split_at_checked(3)?;
    let rest: &[u8; 21] = rest.try_into().ok()?;
    let [b' ', m1, m2, m3, b' ', d1, d2, b' ', time @ .., b' ', y1, y2, y3, y4] = rest else {
        return None;
    };
    abbreviated_weekday(weekday)?;
    let day = if *d1 == b' ' { number(&[*d2]) } else { number(&[*d1, *d2]) }?;
    let year = number(&[*y1, *y2, *y3, *y4])?;
    seconds(year, month(&[*m1, *m2, *m3])?, day, time_of_day(time)?)
}

fn abbreviated_weekday(name: &[u8]) -> Option<()> {
    WEEKDAYS.iter().any(|day| day.as_bytes()[..3].eq_ignore_ascii_case(name)).then_some(())
}

fn month(name: &[u8]) -> Option<u64> {
    let index = MONTHS.iter().position(|month| month.as_bytes().eq_ignore_ascii_case(name))?;
    Some(index as u64 + 1)
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

fn time_of_day_gmt(text: &[u8]) -> Option<u64> {
    let (time, zone) = text.split_at_checked(8)?;
    zone.eq_ignore_ascii_case(b" GMT").then(|| time_of_day(time)).flatten()
}

fn time_of_day(text: &[u8]) -> Option<u64> {
    let &[h1, h2, b':', m1, m2, b':', s1, s2] = text else { return None };
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[m1, m2])?, number(&[s1, s2])?);
    // A 61st second is a leap second.
    (hour < 24 && minute < 60 && second <= 60).then_some((hour * 60 + minute) * 60 + second)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 0001-01-01 to the first of January of a year.
fn days_before(year: u64) -> u64 {
    let past = year.saturating_sub(1);
    past * 365 + past / 4 - past / 100 + past / 400
}

fn seconds(year: u64, month: u64, day: u64, time: u64) -> Option<u64> {
    if day == 0 || day > days_in(year, month) {
        return None;
    }
    let day_of_year = (1..month).map(|month| days_in(year, month)).sum::<u64>() + day - 1;
    let days = days_before(year) + day_of_year;
    Some(days.checked_sub(days_before(1970)).map_or(0, |days| days * 86_400 + time))
}

fn year_of(now: Duration) -> u64 {
    let days = now.as_secs().min(LAST_SECOND) / 86_400 + days_before(1970);
    let guess = days / 366 + 1;
    (guess..).take_while(|year| days_before(*year) <= days).last().unwrap_or(guess)
}

/// To the second but for leap years between, which is exact enough for a rule about half centuries.
fn fifty_years_after(now: Duration) -> u64 {
    let year = year_of(now);
    let into_year =
        now.as_secs().min(LAST_SECOND) - (days_before(year) - days_before(1970)) * 86_400;
    (days_before(year + 50) - days_before(1970)) * 86_400 + into_year
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-20 12:00:00
    const NOW: Duration = Duration::from_secs(1_795_176_000);

    fn at(text: &str) -> Option<u64> {
        parse(text.as_bytes(), NOW)
    }

    #[test]
    fn three_formats_are_one_date() {
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(at("Sunday, 06-Nov-94 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(at("Sun Nov  6 08:49:37 1994"), Some(784_111_777));
    }

    #[test]
    fn names_may_be_in_any_case() {
        for text in [
            "THU, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 AUG 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 gMT",
            "Thursday, 18-Aug-50 02:01:18 GMT",
        ] {
            assert_eq!(at(text), Some(2_544_400_878), "{text}");
        }
        assert!(at("Thu Aug  8 02:01:18 2050").is_some());
        assert!(at("Sun, 21 Nov 2286 04:46:39 GMT").is_some());
    }

    #[test]
    fn a_date_that_is_slightly_off_is_no_date() {
        for text in [
            "",
            "0",
            "foo",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Thu, 18 Aug 2050 24:01:18 GMT",
            "Thu, 31 Apr 2050 02:01:18 GMT",
            "Thu, 00 Apr 2050 02:01:18 GMT",
            "Xxx, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 GMT, Thu, 18 Aug 2050 02:01:18 GMT",
        ] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    #[test]
    fn two_digits_are_at_most_fifty_years_ahead() {
        assert_eq!(at("Tuesday, 17-Nov-76 12:00:00 GMT"), at("Tue, 17 Nov 2076 12:00:00 GMT"));
        assert_eq!(at("Wednesday, 02-Dec-76 12:00:00 GMT"), at("Thu, 02 Dec 1976 12:00:00 GMT"));
        assert_eq!(at("Wednesday, 02-Dec-99 12:00:00 GMT"), at("Thu, 02 Dec 1999 12:00:00 GMT"));
    }

    #[test]
    fn what_lies_before_1970_is_1970() {
        assert_eq!(at("Mon, 01 Jan 1601 00:00:00 GMT"), Some(0));
        assert_eq!(at("Mon, 01 Jan 0000 00:00:00 GMT"), Some(0));
        assert_eq!(at("Thu, 01 Jan 1970 00:00:01 GMT"), Some(1));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seconds in 0..=LAST_SECOND) {
            let written = value(Duration::from_secs(seconds));
            prop_assert_eq!(parse_value(&written, NOW), Some(seconds));
        }

        #[test]
        fn no_bytes_and_no_clock_panic(bytes: Vec<u8>, text in "[A-Za-z]{3,9}, ?[0-9]{2}[- ](Jan|feb|MAR)[- ][0-9]{2,4} [0-9:]{8} GMT", now: Duration) {
            parse(&bytes, now);
            parse(text.as_bytes(), now);
            value(now);
        }
    }
}
