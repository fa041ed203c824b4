use proptest::prelude::*;

use super::*;
use crate::{
    Quota,
    storage::{Name, Spend},
};

fn verdict(limit: u32, remaining: u32, reset_ms: u64, replenish_ms: u64) -> Verdict {
    Verdict {
        allowed: true,
        limit,
        remaining,
        reset_after: Duration::from_millis(reset_ms),
        replenish_after: Duration::from_millis(replenish_ms),
        retry_after: Some(Duration::ZERO),
        receipt: None,
    }
}

fn refused(limit: u32, remaining: u32, retry_ms: Option<u64>) -> Verdict {
    let wait = retry_ms.unwrap_or(0);
    Verdict {
        allowed: false,
        retry_after: retry_ms.map(Duration::from_millis),
        ..verdict(limit, remaining, wait, wait)
    }
}

fn policy(quotas: &[&str]) -> Vec<Shown> {
    let quotas: Vec<Quota> = quotas.iter().map(|text| text.parse().unwrap()).collect();
    Shown::of_policy(&Name::new("api"), &quotas)
}

fn write_into(headers: &mut HeaderMap, which: &Headers, shown: &[Shown], verdicts: &[Verdict]) {
    let policy = which.policy_value(shown);
    which.write(headers, policy.as_ref(), shown.iter().zip(verdicts));
    if let Some(seconds) = retry_after(verdicts) {
        which.write_retry_after(headers, seconds);
    }
}

fn written(which: &Headers, shown: &[Shown], verdicts: &[Verdict]) -> Vec<String> {
    let mut headers = HeaderMap::new();
    write_into(&mut headers, which, shown, verdicts);
    lines(&headers)
}

fn lines(headers: &HeaderMap) -> Vec<String> {
    headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
}

#[test]
fn an_admitted_request_is_told_what_is_left() {
    assert_eq!(
        written(&Headers::new(), &policy(&["100/min"]), &[verdict(100, 87, 59_001, 600)]),
        [
            "x-ratelimit-limit: 100",
            "x-ratelimit-remaining: 87",
            "x-ratelimit-reset: 60",
            "ratelimit: \"api\";r=87;t=1",
            "ratelimit-policy: \"api\";q=100;w=60",
        ]
    );
}

#[test]
fn a_refused_request_is_told_when_to_come_back() {
    let shown = policy(&["10/s", "100/min", "1000/day"]);
    let verdicts =
        [refused(10, 0, Some(300)), refused(100, 0, Some(12_400)), verdict(1000, 1, 86_000_000, 1)];
    assert_eq!(
        written(&Headers::new(), &shown, &verdicts),
        [
            "x-ratelimit-limit: 100",
            "x-ratelimit-remaining: 0",
            "x-ratelimit-reset: 13",
            "ratelimit: \"api/s\";r=0;t=1,\"api/min\";r=0;t=13,\"api/day\";r=1;t=1",
            "ratelimit-policy: \"api/s\";q=10;w=1,\"api/min\";q=100;w=60,\"api/day\";q=1000;w=86400",
            "retry-after: 13",
        ]
    );
}

#[test]
fn what_never_fits_has_no_retry_after_and_is_shown_first() {
    let shown = policy(&["10/s", "100/min"]);
    let verdicts = [refused(10, 10, None), refused(100, 0, Some(5_000))];
    assert_eq!(retry_after(&verdicts), None);
    let lines = written(&Headers::new().without_draft(), &shown, &verdicts);
    assert_eq!(
        lines,
        ["x-ratelimit-limit: 10", "x-ratelimit-remaining: 10", "x-ratelimit-reset: 0"]
    );
}

#[test]
fn the_binding_quota_has_the_smallest_share_left() {
    let shown = policy(&["10/s", "1000/day"]);
    let only = Headers::new().without_draft();
    let lines = written(&only, &shown, &[verdict(10, 5, 500, 1), verdict(1000, 499, 9_000, 1)]);
    assert_eq!(lines[0], "x-ratelimit-limit: 1000");
    let lines = written(&only, &shown, &[verdict(10, 5, 500, 1), verdict(1000, 500, 9_000, 1)]);
    assert_eq!(lines[0], "x-ratelimit-limit: 10", "the first of equals");
}

#[test]
fn quotas_that_share_a_period_are_told_apart() {
    let names = |quotas: &[&str]| -> Vec<String> {
        policy(quotas).iter().map(|shown| shown.name().to_owned()).collect()
    };
    assert_eq!(names(&["10/s burst 20"]), ["api"]);
    assert_eq!(names(&["10/s", "100/10min"]), ["api/s", "api/10min"]);
    assert_eq!(
        names(&["100/min", "10/min burst 5", "9/h"]),
        ["api/100/min", "api/10/min burst 5", "api/h"]
    );
}

#[test]
fn windows_are_whole_seconds_rounded_up() {
    let shown = policy(&["5/500ms", "7/1500ms"]);
    assert_eq!(
        Headers::new().policy_value(&shown).unwrap(),
        "\"api/500ms\";q=5;w=1,\"api/1500ms\";q=7;w=2"
    );
    assert_eq!(Headers::new().policy_value(&[]), None);
    assert_eq!(Headers::none().policy_value(&shown), None);
}

#[test]
fn a_burst_is_the_limit_of_the_old_fields_and_never_more_than_q_in_the_new() {
    let lines = written(&Headers::new(), &policy(&["10/min burst 50"]), &[verdict(50, 49, 1, 1)]);
    assert_eq!(lines[0], "x-ratelimit-limit: 50");
    assert_eq!(lines[1], "x-ratelimit-remaining: 49");
    assert_eq!(lines[3], "ratelimit: \"api\";r=10;t=1");
    assert_eq!(lines[4], "ratelimit-policy: \"api\";q=10;w=60");
}

#[test]
fn a_whole_quota_has_no_t() {
    let lines = written(&Headers::new(), &policy(&["10/min"]), &[verdict(10, 10, 0, 0)]);
    assert_eq!(lines[2], "x-ratelimit-reset: 0");
    assert_eq!(lines[3], "ratelimit: \"api\";r=10");
}

#[test]
fn a_verdict_on_a_share_of_the_quota_states_the_share() {
    let lines = written(&Headers::new(), &policy(&["100/min"]), &[verdict(25, 24, 1, 1)]);
    assert_eq!(lines[0], "x-ratelimit-limit: 25");
}

#[test]
fn each_family_can_be_left_out() {
    let shown = policy(&["10/min"]);
    let verdicts = [refused(10, 0, Some(1))];
    let names = |which: Headers| -> Vec<String> {
        written(&which, &shown, &verdicts)
            .into_iter()
            .map(|line| line.split_once(':').unwrap().0.to_owned())
            .collect()
    };
    assert!(names(Headers::none()).is_empty());
    assert_eq!(names(Headers::none().with_retry_after()), ["retry-after"]);
    assert_eq!(names(Headers::none().with_draft(Draft::V11)), ["ratelimit", "ratelimit-policy"]);
    assert_eq!(names(Headers::new().without_draft().without_retry_after()).len(), 3);
    assert_eq!(names(Headers::new().without_x_rate_limit()).len(), 3);
    let mut all = names(Headers::new());
    all.sort();
    let mut exposed: Vec<_> = EXPOSED_HEADERS.iter().map(|name| name.to_string()).collect();
    exposed.sort();
    assert_eq!(all, exposed);
}

#[test]
fn unix_time_is_rounded_up_and_a_calendar_period_ends_on_its_second() {
    let at = |ms: u64| Duration::from_millis(ms);
    let window = Algorithm::FixedWindow;
    assert_eq!(unix_reset(at(1_000_000), at(1), window), 1_001);
    assert_eq!(unix_reset(at(1_000_000), at(1_000), window), 1_001);
    for late in [0, 1, 400] {
        assert_eq!(unix_reset(at(1_000_500 + late), at(2_500), Algorithm::CalendarDay), 1_003);
    }
    let which = Headers::none().with_x_rate_limit(ResetFormat::UnixTime);
    let before = clock::since_epoch().as_secs();
    let lines = written(&which, &policy(&["10/min"]), &[verdict(10, 9, 60_000, 1)]);
    let reset: u64 = lines[2].strip_prefix("x-ratelimit-reset: ").unwrap().parse().unwrap();
    assert!((before + 60..before + 63).contains(&reset));
}

#[test]
fn of_stacked_limits_the_tighter_one_is_shown_and_all_are_listed() {
    let (inner, outer) = (policy(&["10/s"]), policy(&["1000/day"]));
    for (inner_left, outer_left, limit) in [(5, 600, "10"), (5, 400, "1000"), (5, 500, "10")] {
        let mut headers = HeaderMap::new();
        write_into(&mut headers, &Headers::new(), &inner, &[verdict(10, inner_left, 1, 1)]);
        write_into(&mut headers, &Headers::new(), &outer, &[verdict(1000, outer_left, 1, 1)]);
        assert_eq!(headers[X_RATELIMIT_LIMIT], limit);
        assert_eq!(headers.get_all(X_RATELIMIT_LIMIT).iter().count(), 1);
        assert_eq!(headers.get_all(RATELIMIT).iter().count(), 2);
        assert_eq!(headers.get_all(RATELIMIT_POLICY).iter().count(), 2);
    }
}

#[test]
fn an_inner_refusal_keeps_its_numbers() {
    let mut headers = HeaderMap::new();
    write_into(&mut headers, &Headers::new(), &policy(&["10/s"]), &[refused(10, 9, Some(900))]);
    write_into(&mut headers, &Headers::new(), &policy(&["1000/day"]), &[verdict(1000, 1, 1, 1)]);
    assert_eq!(headers[X_RATELIMIT_LIMIT], "10");
    assert_eq!(headers[header::RETRY_AFTER], "1");
}

#[test]
fn what_a_handler_wrote_stays_where_it_means_more() {
    let shown = policy(&["10/s"]);
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(X_RATELIMIT_LIMIT, HeaderValue::from_static("plenty"));
    write_into(&mut headers, &Headers::new(), &shown, &[verdict(10, 9, 1, 1)]);
    assert_eq!(headers[X_RATELIMIT_LIMIT], "10");
    assert_eq!(headers[header::CONTENT_TYPE], "text/plain");

    for (already, kept) in [("120", "120"), ("1", "3"), ("soon", "3")] {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(already));
        Headers::new().write_retry_after(&mut headers, 3);
        assert_eq!(headers[header::RETRY_AFTER], kept);
    }
}

fn list_of(headers: &HeaderMap, name: HeaderName) -> Vec<(String, Vec<(String, i64)>)> {
    let list: sfv::List = sfv::Parser::new(headers[name].as_bytes()).parse().unwrap();
    let integer = |(key, value): (&sfv::Key, &sfv::BareItem)| {
        let sfv::BareItem::Integer(value) = value else { panic!("{value:?} is no Integer") };
        (key.as_str().to_owned(), i64::from(*value))
    };
    list.into_iter()
        .map(|entry| {
            let sfv::ListEntry::Item(item) = entry else { panic!("an inner list") };
            let sfv::BareItem::String(name) = item.bare_item else { panic!("no String") };
            (name.as_str().to_owned(), item.params.iter().map(integer).collect())
        })
        .collect()
}

fn quota() -> impl Strategy<Value = Quota> {
    (1..u32::MAX, 1_000_u64..31_622_400_000_000, prop::option::of(1..u32::MAX)).prop_filter_map(
        "a bucket that takes centuries to fill is none",
        |(limit, period, burst)| {
            let algorithm = match burst {
                Some(burst) => Algorithm::TokenBucket { burst },
                None => Algorithm::SlidingWindow,
            };
            Quota::try_new(algorithm, limit, Duration::from_micros(period)).ok()
        },
    )
}

proptest! {
    #[test]
    fn retry_after_is_the_least_whole_second_not_below_the_wait(
        waits in prop::collection::vec(any::<u64>(), 1..4),
    ) {
        let verdicts: Vec<Verdict> = waits
            .iter()
            .map(|nanos| Verdict {
                retry_after: Some(Duration::from_nanos(*nanos)),
                ..refused(1, 0, Some(0))
            })
            .collect();
        let seconds = retry_after(&verdicts).unwrap();
        let exact = Duration::from_nanos(*waits.iter().max().unwrap());
        prop_assert!(seconds >= 1);
        prop_assert!(Duration::from_secs(seconds) >= exact);
        prop_assert!(seconds == 1 || Duration::from_secs(seconds - 1) < exact);
    }

    #[test]
    fn a_lone_client_that_obeys_retry_after_is_admitted_and_its_t_is_true(
        algorithm in 0_u8..5,
        limit in 1_u32..50,
        period_ms in 1_u64..100_000,
        takes in prop::collection::vec((0_u64..30_000_000, 1_u32..5), 1..60),
    ) {
        let algorithm = match algorithm {
            0 => Algorithm::SlidingWindow,
            1 => Algorithm::FixedWindow,
            2 => Algorithm::TokenBucket { burst: limit },
            3 => Algorithm::StrictWindow { slots: 10 },
            _ => Algorithm::SlidingLog,
        };
        let quota = Quota::try_new(algorithm, limit, Duration::from_millis(period_ms)).unwrap();
        let (mut state, mut now) = (None, 1_700_000_000_000_000);
        for (pause, units) in takes {
            now += pause;
            let spend = Spend::Take(units);
            let step = quota.step(state.as_ref(), now, spend);
            if step.verdict.allowed {
                state = Some(step.state);
                continue;
            }
            let refused = quota.judge(state.as_ref(), now, spend);
            prop_assert_eq!(retry_after([&refused]).is_none(), units > limit);
            if let Some(seconds) = retry_after([&refused]) {
                prop_assert!(seconds >= whole_seconds(refused.replenish_after));
                let then = quota.step(state.as_ref(), now + seconds * 1_000_000, spend);
                prop_assert!(then.verdict.allowed);
            }
            // `t`: until then no more than `r` is there.
            let replenish = refused.replenish_after.as_micros() as u64;
            if replenish > 1 {
                let before = quota.step(state.as_ref(), now + replenish - 1, Spend::Peek).verdict;
                prop_assert!(before.remaining <= refused.remaining);
            }
        }
    }

    #[test]
    fn another_parser_reads_back_what_was_written(
        outcomes in prop::collection::vec((quota(), any::<u32>(), any::<u64>(), any::<bool>()), 1..5),
    ) {
        let quotas: Vec<Quota> = outcomes.iter().map(|outcome| outcome.0).collect();
        let shown = Shown::of_policy(&Name::new("a.b_c-9"), &quotas);
        let verdicts: Vec<Verdict> = outcomes
            .iter()
            .map(|(quota, remaining, micros, allowed)| Verdict {
                allowed: *allowed,
                remaining: (*remaining).min(quota.capacity()),
                replenish_after: Duration::from_micros(*micros),
                ..verdict(quota.capacity(), 0, 0, 0)
            })
            .collect();
        let mut headers = HeaderMap::new();
        write_into(&mut headers, &Headers::new(), &shown, &verdicts);

        let (limits, policies) = (list_of(&headers, RATELIMIT), list_of(&headers, RATELIMIT_POLICY));
        prop_assert_eq!(limits.len(), outcomes.len());
        prop_assert_eq!(policies.len(), outcomes.len());
        for (i, (quota, verdict)) in quotas.iter().zip(&verdicts).enumerate() {
            prop_assert_eq!(&limits[i].0, shown[i].name());
            prop_assert_eq!(&policies[i].0, shown[i].name());
            let w = quota.period().as_micros().div_ceil(1_000_000) as i64;
            let q = i64::from(quota.limit());
            prop_assert_eq!(&policies[i].1, &[("q".to_owned(), q), ("w".to_owned(), w)]);
            let mut expected = vec![("r".to_owned(), i64::from(verdict.remaining).min(q))];
            let t = verdict.replenish_after.as_micros().div_ceil(1_000_000) as i64;
            if t > 0 {
                expected.push(("t".to_owned(), t));
            }
            prop_assert_eq!(&limits[i].1, &expected);
            if let (false, Some(seconds)) = (verdict.allowed, retry_after(&verdicts)) {
                prop_assert!(seconds as i64 >= t);
            }
        }
    }

    #[test]
    fn numbers_are_written_as_the_standard_library_does(n in any::<u64>()) {
        for n in [n, 0, 9, 10, u64::MAX, n % 1_000] {
            prop_assert!(number(n) == n.to_string().as_str());
        }
    }
}
