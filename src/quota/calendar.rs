//! Days and months of the proleptic Gregorian calendar, UTC, without leap seconds.

const DAY_US: u64 = 86_400_000_000;

/// The start and end of the day, in microseconds since the Unix epoch.
pub(super) fn day(now: u64) -> (u64, u64) {
    let start = now - now % DAY_US;
    (start, start + DAY_US)
}

/// The start and end of the month, in microseconds since the Unix epoch.
pub(super) fn month(now: u64) -> (u64, u64) {
    let (year, month, day) = civil(now / DAY_US);
    let start = now / DAY_US - (day - 1);
    (start * DAY_US, (start + days_in(year, month)) * DAY_US)
}

/// Year, month and day of a number of days since 1970-01-01: `civil_from_days` of Howard Hinnant's
/// "chrono-Compatible Low-Level Date Algorithms".
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn days_in(year: u64, month: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_match_known_days() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_778), (2026, 11, 21));
        assert_eq!(civil(47_540), (2100, 2, 28));
        assert_eq!(civil(47_541), (2100, 3, 1));
    }

    #[test]
    fn months_follow_one_another_without_gap_for_four_centuries() {
        let mut start = 0;
        for _ in 0..4 * 1_200 {
            let (from, to) = month(start);
            assert_eq!(from, start);
            assert_eq!(month(to - 1), (from, to));
            start = to;
        }
        assert_eq!(civil(start / DAY_US), (2370, 1, 1));
    }
}
