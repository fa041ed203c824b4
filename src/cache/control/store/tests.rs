use http::Request;

use super::{super::header_map, *};

/// 2026-11-20 12:00:00
const NOW: Duration = Duration::from_secs(1_795_176_000);
const AT_ONCE: Arrival = Arrival { now: NOW, delay: Duration::ZERO };
const ETAG: (&str, &str) = ("etag", "\"a\"");
const DAY: u64 = 24 * 60 * 60;

type Lines<'a> = &'a [(&'a str, &'a str)];

fn facts(method: Method, request: Lines<'_>, rules: &Rules) -> RequestFacts {
    let mut plain = Request::new(());
    *plain.method_mut() = method;
    *plain.headers_mut() = header_map(request);
    RequestFacts::new(RequestHead::new(&plain), rules)
}

fn judged(
    rules: &Rules,
    request: Lines<'_>,
    status: u16,
    response: Lines<'_>,
) -> Result<Storable, Refusal> {
    let facts = facts(Method::GET, request, rules);
    let status = StatusCode::from_u16(status).unwrap();
    store(&facts, status, &header_map(response), rules, AT_ONCE)
}

fn answered(status: u16, response: Lines<'_>) -> Result<Storable, Refusal> {
    judged(&Rules::default(), &[], status, response)
}

/// Of a 200 in HTTP mode.
fn ok(response: Lines<'_>) -> Result<Storable, Refusal> {
    answered(200, response)
}

#[track_caller]
fn freshness(response: Lines<'_>) -> Freshness {
    ok(response).unwrap_or_else(|refusal| panic!("{response:?}: {refusal:?}")).freshness
}

/// Seconds that a 200 is fresh once it has come; that it be stored anyhow, it has a validator.
#[track_caller]
fn fresh_for(response: Lines<'_>) -> i64 {
    let mut lines = response.to_vec();
    lines.push(ETAG);
    freshness(&lines).ttl_seconds(Duration::ZERO)
}

#[track_caller]
fn with_control(value: &str) -> i64 {
    fresh_for(&[("cache-control", value)])
}

fn ago(seconds: i64) -> String {
    let now = NOW.as_secs().checked_add_signed(-seconds).unwrap();
    date::value(Duration::from_secs(now)).to_str().unwrap().to_owned()
}

fn output(ttl: u64) -> Rules {
    let output = Output {
        ttl: Duration::from_secs(ttl),
        stale_while_revalidate: Duration::from_secs(5),
        stale_if_error: Duration::from_secs(7),
        negative: vec![
            (StatusCode::NOT_FOUND, Duration::from_secs(3)),
            (StatusCode::SERVICE_UNAVAILABLE, Duration::from_secs(2)),
        ],
    };
    Rules { output: Some(output), ..Rules::default() }
}

const FRESH: (&str, &str) = ("cache-control", "max-age=3600");

// Which responses are stored (RFC 9111, section 3).

#[test]
fn only_the_answer_to_a_get_is_stored() {
    for method in [Method::HEAD, Method::POST, Method::PUT, Method::OPTIONS] {
        let rules = Rules::default();
        let facts = facts(method, &[], &rules);
        let stored = store(&facts, StatusCode::OK, &header_map(&[FRESH]), &rules, AT_ONCE);
        assert_eq!(stored, Err(Refusal::Method));
    }
    assert!(ok(&[FRESH]).is_ok());
}

#[test]
fn a_final_status_with_explicit_freshness_is_stored() {
    for status in [
        200, 201, 203, 204, 299, 301, 302, 303, 307, 308, 400, 403, 404, 410, 499, 500, 502, 503,
        504, 599,
    ] {
        assert!(answered(status, &[FRESH]).is_ok(), "{status}");
        let expires = ago(-60);
        assert!(answered(status, &[("expires", &expires)]).is_ok(), "{status}");
    }
}

#[test]
fn what_is_no_final_response_is_never_stored() {
    let refused = |status| answered(status, &[FRESH, ETAG]).unwrap_err();
    assert_eq!(refused(100), Refusal::Status);
    assert_eq!(refused(103), Refusal::Status);
    assert_eq!(refused(101), Refusal::Upgrade);
    assert_eq!(refused(304), Refusal::Status);
    assert_eq!(refused(600), Refusal::Status);
    assert_eq!(refused(999), Refusal::Status);
}

#[test]
fn a_part_is_never_stored() {
    assert_eq!(answered(206, &[FRESH, ETAG]), Err(Refusal::Partial));
    for range in ["bytes 0-1/4", "Bytes */4", " bytes 0-1/*"] {
        assert_eq!(ok(&[FRESH, ("content-range", range)]), Err(Refusal::Partial), "{range}");
    }
    // Of other units nothing is known (RFC 9110, section 14.4).
    assert!(ok(&[FRESH, ("content-range", "rows 0-1/4")]).is_ok());
    assert!(ok(&[FRESH, ("content-range", "")]).is_ok());
}

#[test]
fn what_never_ends_is_not_stored() {
    for kind in [
        "text/event-stream",
        "Text/Event-Stream; charset=utf-8",
        "multipart/x-mixed-replace;boundary=a",
    ] {
        let lines = [FRESH, ("content-type", kind)];
        assert_eq!(ok(&lines), Err(Refusal::EventStream), "{kind}");
        assert_eq!(judged(&output(60), &[], 200, &lines), Err(Refusal::EventStream), "{kind}");
    }
    assert!(ok(&[FRESH, ("content-type", "text/event-streams")]).is_ok());
}

#[test]
fn a_challenge_is_not_stored() {
    let challenge = ("www-authenticate", "Basic");
    assert_eq!(ok(&[FRESH, challenge]), Err(Refusal::Challenge));
    assert_eq!(answered(401, &[FRESH, challenge]), Err(Refusal::Status));
    assert_eq!(judged(&output(60), &[], 200, &[challenge]), Err(Refusal::Challenge));
}

#[test]
fn a_cookie_is_stripped_by_wish_and_otherwise_not_stored() {
    let lines = [FRESH, ("set-cookie", "a=b")];
    assert_eq!(ok(&lines), Err(Refusal::SetCookie));
    let strips = Rules { strip_set_cookie: true, ..Rules::default() };
    assert!(judged(&strips, &[], 200, &lines).is_ok());
}

#[test]
fn no_store_and_private_forbid() {
    for (control, refusal) in [
        ("no-store", Refusal::NoStore),
        ("max-age=9, nO-StOrE", Refusal::NoStore),
        ("no-store=1", Refusal::NoStore),
        ("private, max-age=9", Refusal::Private),
        ("Private=\"x-a\", max-age=9", Refusal::Private),
        ("public, private, max-age=9", Refusal::Private),
    ] {
        let lines = [("cache-control", control), ETAG];
        assert_eq!(ok(&lines), Err(refusal), "{control}");
        assert_eq!(judged(&output(60), &[], 200, &lines), Err(refusal), "{control}");
    }
    let lines = [FRESH, ("cache-control", "no-store")];
    assert_eq!(ok(&lines), Err(Refusal::NoStore), "on a line of its own");
    let expires = ago(-60);
    assert!(ok(&[FRESH, ("pragma", "no-cache"), ("expires", &expires)]).is_ok());
}

#[test]
fn the_request_can_forbid_where_it_is_honoured() {
    let forbids = [("cache-control", "no-store")];
    assert!(judged(&Rules::default(), &forbids, 200, &[FRESH]).is_ok());
    let honours = Rules { honour_request: true, ..Rules::default() };
    assert_eq!(judged(&honours, &forbids, 200, &[FRESH]), Err(Refusal::RequestNoStore));
    let output = Rules { honour_request: true, ..output(60) };
    assert!(judged(&output, &forbids, 200, &[]).is_ok(), "the route decides alone");
}

/// RFC 9111, section 5.2.2.3.
#[test]
fn must_understand_outdoes_no_store_where_the_status_is_understood() {
    let lines = [("cache-control", "max-age=60, no-store, must-understand")];
    assert!(ok(&lines).is_ok());
    assert!(answered(404, &lines).is_ok());
    assert_eq!(answered(599, &lines), Err(Refusal::Status));
    assert_eq!(answered(299, &lines), Err(Refusal::Status));
    let without = [("cache-control", "max-age=60, must-understand")];
    assert_eq!(answered(299, &without), Err(Refusal::Status));
    assert_eq!(judged(&output(60), &[], 200, &lines), Err(Refusal::NoStore));
    let broken = [("cache-control", "max-age=60, no-store, must-understand, a=\"")];
    assert_eq!(ok(&broken), Err(Refusal::NoStore), "what cannot be read allows nothing");
}

/// RFC 9111, section 3.5.
#[test]
fn authorization_needs_permission() {
    let authorized = [("authorization", "Bearer a")];
    let judged = |rules: &Rules, control| {
        judged(rules, &authorized, 200, &[("cache-control", control), ETAG])
    };
    let http = Rules::default();
    for allows in [
        "public, max-age=60",
        "s-maxage=60",
        "s-maxage=0",
        "must-revalidate, max-age=60",
        "Must-Revalidate=1, max-age=60",
    ] {
        assert!(judged(&http, allows).unwrap().freshness.authorized, "{allows}");
    }
    for silent in [
        "max-age=60",
        "proxy-revalidate, max-age=60",
        "no-cache",
        "s-maxage=a, max-age=60",
        "public =1, max-age=60",
        "public, max-age=60, a=\"",
        "a=\"public\", max-age=60",
    ] {
        assert_eq!(judged(&http, silent), Err(Refusal::Authorization), "{silent}");
    }
    let keyed = Rules { keyed_principal: true, ..Rules::default() };
    assert!(judged(&keyed, "max-age=60").unwrap().freshness.authorized);
    assert_eq!(judged(&output(60), "public"), Err(Refusal::Authorization));
    assert!(!freshness(&[FRESH]).authorized);
    assert!(freshness(&[("cache-control", "public, max-age=60")]).authorized);
}

/// RFC 9111, section 5.2.2.4.
#[test]
fn no_cache_is_stored_where_it_can_be_revalidated() {
    let modified = ago(60);
    for validator in [ETAG, ("last-modified", &modified)] {
        let stored = ok(&[("cache-control", "no-cache, max-age=60"), validator]).unwrap();
        assert!(stored.freshness.always_revalidate);
        assert_eq!(stored.keep, Duration::from_secs(60 + 60 * 60));
    }
    assert!(ok(&[("cache-control", "No-CaChE=\"a\""), ETAG]).unwrap().freshness.always_revalidate);
    assert_eq!(ok(&[("cache-control", "max-age=60, no-cache")]), Err(Refusal::NoCache));
    let useless = [("cache-control", "no-cache"), ("last-modified", "yesterday")];
    assert_eq!(ok(&useless), Err(Refusal::NoCache));
    let lines = [("cache-control", "no-cache"), ETAG];
    assert_eq!(judged(&output(60), &[], 200, &lines), Err(Refusal::NoCache));
    let swr = "no-cache, max-age=1, stale-while-revalidate=60, stale-if-error=60";
    let swr = freshness(&[("cache-control", swr), ETAG]);
    assert!(swr.stale_while_revalidate.is_zero() && swr.stale_if_error.is_zero());
}

#[test]
fn no_cache_alone_makes_no_status_storable() {
    let lines = [("cache-control", "no-cache"), ETAG];
    assert_eq!(answered(201, &lines), Err(Refusal::NoCache));
    assert_eq!(answered(302, &lines), Err(Refusal::NoCache));
    let explicit = [("cache-control", "no-cache, max-age=0"), ETAG];
    assert!(answered(201, &explicit).is_ok());
}

#[test]
fn only_a_success_is_kept_to_be_revalidated() {
    let lines = [("cache-control", "max-age=10"), ETAG];
    assert_eq!(answered(404, &lines).unwrap().keep, Duration::from_secs(10));
    assert_eq!(answered(200, &lines).unwrap().keep, Duration::from_secs(10 + 60 * 60));
}

#[test]
fn refusals_of_errors_are_not_held_against_the_target() {
    let forbids = [("cache-control", "private")];
    assert_eq!(answered(500, &forbids), Err(Refusal::Status));
    assert_eq!(answered(403, &[("set-cookie", "a=b")]), Err(Refusal::Status));
    for status in [200, 302, 404, 405, 410] {
        assert_eq!(answered(status, &forbids), Err(Refusal::Private), "{status}");
    }
    assert!(Refusal::Private.is_remembered() && !Refusal::Status.is_remembered());
}

// How long (section 4.2).

#[test]
fn s_maxage_comes_before_max_age_and_that_before_expires() {
    let expires = ago(-30);
    let expires = ("expires", expires.as_str());
    assert_eq!(fresh_for(&[expires]), 30);
    assert_eq!(fresh_for(&[expires, ("cache-control", "max-age=10")]), 10);
    assert_eq!(fresh_for(&[expires, ("cache-control", "max-age=10, s-maxage=20")]), 20);
    assert_eq!(fresh_for(&[expires, ("cache-control", "s-maxage=0, max-age=10")]), 0);
    let lines = [("cache-control", "max-age=10"), ("cache-control", "s-maxage=1")];
    assert_eq!(fresh_for(&lines), 1);
}

#[test]
fn of_two_values_the_first_counts() {
    assert_eq!(with_control("max-age=1800, max-age=1"), 1800);
    assert_eq!(with_control("max-age=1, max-age=1800"), 1);
    assert_eq!(with_control("max-age=a, max-age=1800"), 0);
    let lines = [("cache-control", "max-age=1"), ("cache-control", "max-age=1800")];
    assert_eq!(fresh_for(&lines), 1);
}

#[test]
fn a_number_of_seconds_is_read_strictly() {
    for (value, seconds) in [
        ("max-age=3600", 3600),
        ("MaX-aGe=3600", 3600),
        ("foobar, max-age=3600", 3600),
        (",, max-age=3600 ,", 3600),
        ("max-age=\"3600\"", 3600),
        ("max-age=003600", 3600),
        ("max-age='3600'", 0),
        ("max-age=-3600", 0),
        ("max-age=+3600", 0),
        ("max-age=3600.0", 0),
        ("max-age=3600.5", 0),
        ("max-age=a3600", 0),
        ("max-age=3600a", 0),
        ("max-age=3600;a=b", 0),
        ("max-age= 3600", 0),
        ("max-age =3600", 0),
        ("max-age=\"3600\"a", 0),
        ("max-age=\"3600", 0),
        ("max-age=", 0),
        ("max-age", 0),
        ("a=\"max-age=3600\", max-age=1", 1),
        ("max-age=1, a=\"max-age=3600\"", 1),
        ("a=\"\\\", max-age=3600\", max-age=1", 1),
    ] {
        assert_eq!(with_control(value), seconds, "{value}");
    }
}

/// RFC 9111, section 1.2.2.
#[test]
fn a_number_that_overflows_is_very_long() {
    assert_eq!(with_control("max-age=2147483647"), 2_147_483_647);
    for large in ["2147483648", "2147483649", "99999999999", "99999999999999999999999999"] {
        assert_eq!(with_control(&format!("max-age={large}")), 2_147_483_648, "{large}");
    }
    let stored = ok(&[("cache-control", "max-age=99999999999")]).unwrap();
    assert_eq!(stored.keep, Rules::default().longest_life);
}

/// RFC 9111, section 5.3.
#[test]
fn expires_is_a_date_or_in_the_past() {
    let date = ("date", &ago(0)[..]);
    for fresh in [
        "Tue, 19 Jan 2038 14:14:08 GMT",
        "Sun, 21 Nov 2286 04:46:39 GMT",
        "Thursday, 18-Aug-50 02:01:18 GMT",
        "Thu Aug  8 02:01:18 2050",
        "THU, 18 AUG 2050 02:01:18 gMT",
    ] {
        assert!(fresh_for(&[date, ("expires", fresh)]) > 0, "{fresh}");
    }
    for stale in [
        "0",
        "-1",
        "",
        "Thu, 18 Aug 2050 02:01:18 UTC",
        "Thu, 18 Aug 2050 02:01:18 AEST",
        "Thu, 18 Aug 50 02:01:18 GMT",
        "Thu 18 Aug 2050 02:01:18 GMT",
        "Thu, 18  Aug  2050 02:01:18 GMT",
        "Thu, 18-Aug-2050 02:01:18 GMT",
        "Thu, 18 Aug 2050 02.01.18 GMT",
        "Thu, 18 Aug 2050 2:01:18 GMT",
    ] {
        let modified = ago(1000);
        let lines = [date, ("expires", stale), ("last-modified", &modified)];
        assert_eq!(fresh_for(&lines), 0, "{stale}: nor is there a rule of thumb");
    }
    let expires = ("expires", &ago(-60)[..]);
    assert_eq!(fresh_for(&[date, expires, expires]), 0, "twice");
    assert_eq!(fresh_for(&[date, ("expires", date.1)]), 0);
    assert_eq!(ok(&[date, ("expires", "0")]), Err(Refusal::NoFreshness));
}

#[test]
fn expires_is_compared_with_the_date_of_the_same_clock() {
    let dated =
        |date: i64, expires: i64| fresh_for(&[("date", &ago(-date)), ("expires", &ago(-expires))]);
    assert_eq!(dated(0, 30), 30);
    assert_eq!(dated(400, 300), 0, "both clocks run ahead");
    assert_eq!(dated(400, 430), 30);
    assert_eq!(dated(-10, 10), 20 - 10, "ten seconds passed, or the clock is slow");
    assert_eq!(fresh_for(&[("date", "foo"), ("expires", &ago(-10))]), 10);
    assert_eq!(fresh_for(&[("expires", &ago(-10))]), 10);
}

#[test]
fn the_age_begins_at_the_origin() {
    let hour = "max-age=3600";
    let aged = |date: i64, age: &str| {
        fresh_for(&[("cache-control", hour), ("date", &ago(date)), ("age", age)])
    };
    assert_eq!(aged(0, "0"), 3600);
    assert_eq!(aged(0, "600"), 3000);
    assert_eq!(aged(0, "7200"), -3600);
    assert_eq!(aged(900, "600"), 2700, "the longer of both");
    assert_eq!(aged(-900, "600"), 3000, "a date in the future is of now");
    assert_eq!(fresh_for(&[("cache-control", hour), ("date", &ago(7200))]), -3600);
    assert_eq!(fresh_for(&[("cache-control", hour)]), 3600);
    assert_eq!(fresh_for(&[("cache-control", hour), ("date", "foo")]), 3600);
}

/// RFC 9111, section 5.1.
#[test]
fn of_several_ages_the_first_counts_and_nonsense_is_ignored() {
    let aged = |ages: &[&str]| {
        let mut lines = vec![FRESH];
        lines.extend(ages.iter().map(|age| ("age", *age)));
        fresh_for(&lines)
    };
    for stale in ["7200", "7200, 0", "2147483647", "2147483648", "2147483649", "99999999999999"] {
        assert!(aged(&[stale]) < 0, "{stale}");
    }
    for ignored in ["abc", "-7200", "7200.0", "7200;foo=bar", "7200;foo=111", "", "0, 7200"] {
        assert_eq!(aged(&[ignored]), 3600, "{ignored}");
    }
    assert!(aged(&["7200", "0"]) < 0);
    assert_eq!(aged(&["0", "7200"]), 3600);
    assert_eq!(aged(&["600", "600"]), 3000);
    assert_eq!(aged(&["600, 600"]), 3000);
}

#[test]
fn the_time_that_the_answer_took_is_part_of_its_age() {
    let rules = Rules::default();
    let arrival = Arrival { now: NOW, delay: Duration::from_secs(4) };
    let age = |lines: Lines<'_>| {
        let facts = facts(Method::GET, &[], &rules);
        let stored = store(&facts, StatusCode::OK, &header_map(lines), &rules, arrival);
        stored.unwrap().freshness.initial_age.as_secs()
    };
    assert_eq!(age(&[FRESH]), 4);
    assert_eq!(age(&[FRESH, ("age", "10")]), 14);
    assert_eq!(age(&[FRESH, ("date", &ago(3))]), 4);
    assert_eq!(age(&[FRESH, ("date", &ago(30)), ("age", "10")]), 30);
}

/// RFC 9111, section 4.2.2.
#[test]
fn a_rule_of_thumb_is_a_tenth_of_the_age_at_birth() {
    let heuristic = |seconds| freshness(&[("last-modified", &ago(seconds)), ("date", &ago(0))]);
    assert_eq!(heuristic(1000).lifetime, Duration::from_secs(100));
    assert!(heuristic(1000).heuristic);
    assert_eq!(heuristic(1_000_000_000).lifetime, LONGEST_HEURISTIC);
    assert_eq!(heuristic(-1000).lifetime, Duration::ZERO);
    assert_eq!(ok(&[("date", &ago(0))]), Err(Refusal::NoFreshness));
    assert!(!freshness(&[FRESH, ("last-modified", &ago(1000))]).heuristic);
}

#[test]
fn a_rule_of_thumb_needs_a_status_that_allows_it_or_public() {
    let modified = ago(DAY.cast_signed());
    let lines = [("last-modified", &modified[..])];
    for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
        assert!(answered(status, &lines).is_ok(), "{status}");
    }
    for status in [201, 202, 299, 302, 303, 307, 403, 500, 502, 503, 504, 599] {
        assert_eq!(answered(status, &lines), Err(Refusal::Status), "{status}");
        let public = [lines[0], ("cache-control", "public")];
        assert!(answered(status, &public).is_ok(), "{status}");
        let malformed = [lines[0], ("cache-control", "public =1")];
        assert_eq!(answered(status, &malformed), Err(Refusal::Status), "{status}");
    }
}

// Windows and the life in the storage (section 4.2.4, RFC 5861).

#[test]
fn windows_are_zero_where_nothing_stale_may_be_used() {
    let windows = |control: &str| {
        let control =
            format!("max-age=10, stale-while-revalidate=20, stale-if-error=30, {control}");
        let freshness = freshness(&[("cache-control", &control), ETAG]);
        let seconds = |window: Duration| window.as_secs();
        let windows = (freshness.stale_while_revalidate, freshness.stale_if_error);
        ((seconds(windows.0), seconds(windows.1)), freshness.must_revalidate)
    };
    assert_eq!(windows("a"), ((20, 30), false));
    for never in ["must-revalidate", "proxy-revalidate", "s-maxage=10"] {
        assert_eq!(windows(never), ((0, 0), true), "{never}");
    }
    assert_eq!(windows("no-cache"), ((0, 0), false));
    let control = "max-age=10, stale-while-revalidate=a, stale-if-error=-1";
    let broken = freshness(&[("cache-control", control)]);
    assert!(broken.stale_while_revalidate.is_zero() && broken.stale_if_error.is_zero());
}

#[test]
fn a_window_wins_over_s_maxage_by_wish_and_over_nothing_else() {
    let rules = Rules { stale_despite_s_maxage: true, ..Rules::default() };
    let stale = |control| {
        let freshness = judged(&rules, &[], 200, &[("cache-control", control)]).unwrap().freshness;
        assert_eq!(freshness.must_revalidate, freshness.stale_if_error.is_zero(), "{control}");
        freshness.stale_if_error.as_secs()
    };
    assert_eq!(stale("s-maxage=10, stale-if-error=30"), 30);
    assert_eq!(stale("s-maxage=10, stale-while-revalidate=0, stale-if-error=30"), 30);
    assert_eq!(stale("s-maxage=10, stale-if-error=30, must-revalidate"), 0);
    assert_eq!(stale("s-maxage=10, stale-if-error=30, proxy-revalidate"), 0);
    assert_eq!(stale("s-maxage=10, stale-if-error=0"), 0);
    assert_eq!(stale("s-maxage=10"), 0);
}

#[test]
fn what_is_stored_is_kept_as_long_as_it_can_be_of_use() {
    let rules = Rules { keep_stale: Duration::from_secs(100), ..Rules::default() };
    let keep_by =
        |rules: &Rules, lines: Lines<'_>| judged(rules, &[], 200, lines).unwrap().keep.as_secs();
    let keep = |lines: Lines<'_>| keep_by(&rules, lines);
    let swr = ("cache-control", "max-age=10, stale-while-revalidate=20");
    let sie = ("cache-control", "max-age=10, stale-while-revalidate=20, stale-if-error=500");
    assert_eq!(keep(&[("cache-control", "max-age=10")]), 10);
    assert_eq!(keep(&[("cache-control", "max-age=10"), ("age", "4")]), 6);
    assert_eq!(keep(&[("cache-control", "max-age=10"), ETAG]), 110);
    assert_eq!(keep(&[("cache-control", "max-age=10"), ("age", "400"), ETAG]), 100);
    assert_eq!(keep(&[swr]), 30);
    assert_eq!(keep(&[swr, ("age", "15")]), 15, "stale, and still of use");
    assert_eq!(keep(&[swr, ETAG]), 110);
    assert_eq!(keep(&[sie, ETAG]), 510);
    assert_eq!(keep(&[("cache-control", "max-age=10, must-revalidate"), ETAG]), 110);
    let unreachable = Rules { stale_if_unreachable: Duration::from_secs(60), ..rules.clone() };
    assert_eq!(keep_by(&unreachable, &[("cache-control", "max-age=10")]), 70);
    assert_eq!(keep_by(&unreachable, &[("cache-control", "s-maxage=10")]), 10);
    assert_eq!(keep_by(&unreachable, &[("cache-control", "max-age=10, must-revalidate")]), 10);
    let short = Rules { longest_life: Duration::from_secs(50), ..rules.clone() };
    assert_eq!(keep_by(&short, &[sie, ETAG]), 50);
}

#[test]
fn what_is_of_no_use_is_not_stored() {
    for control in ["max-age=0", "s-maxage=0", "max-age=a", "max-age=60, s-maxage=0"] {
        assert_eq!(ok(&[("cache-control", control)]), Err(Refusal::NoFreshness), "{control}");
    }
    assert_eq!(ok(&[FRESH, ("age", "7200")]), Err(Refusal::NoFreshness));
    let forgetful = Rules { keep_stale: Duration::ZERO, ..Rules::default() };
    let lines = [("cache-control", "max-age=0"), ETAG];
    assert_eq!(judged(&forgetful, &[], 200, &lines), Err(Refusal::NoFreshness));
    assert!(ok(&lines).is_ok());
}

// Targeted fields (RFC 9213).

#[test]
fn the_targeted_field_comes_before_cache_control_and_expires() {
    let cdn = |value| ("cdn-cache-control", value);
    let past = ago(60);
    assert_eq!(fresh_for(&[cdn("max-age=60")]), 60);
    assert_eq!(fresh_for(&[cdn("max-age=60"), ("cache-control", "max-age=1")]), 60);
    assert_eq!(fresh_for(&[cdn("max-age=1"), ("cache-control", "max-age=60")]), 1);
    assert_eq!(fresh_for(&[cdn("max-age=60"), ("cache-control", "no-store")]), 60);
    assert_eq!(fresh_for(&[cdn("max-age=60"), ("expires", &past)]), 60);
    assert_eq!(fresh_for(&[cdn("max-age=60"), ("expires", "0")]), 60);
    assert_eq!(fresh_for(&[cdn("max-age=0"), ("expires", &ago(-60))]), 0);
    assert_eq!(fresh_for(&[cdn("max-age=3600"), ("age", "7200")]), -3600);
    assert_eq!(fresh_for(&[cdn("max-age=60"), cdn("foobar")]), 60, "on two lines");
    assert_eq!(fresh_for(&[cdn("foobar"), ("expires", &ago(-60))]), 0, "it says nothing of time");
    assert_eq!(ok(&[cdn("private"), FRESH]), Err(Refusal::Private));
    assert_eq!(ok(&[cdn("no-store"), FRESH]), Err(Refusal::NoStore));
    assert_eq!(ok(&[cdn("no-cache"), FRESH]), Err(Refusal::NoCache));
    assert!(ok(&[cdn("no-store=?0"), ETAG]).is_ok());
    assert_eq!(ok(&[cdn("no-store=1"), FRESH]), Err(Refusal::NoStore));
    assert_eq!(ok(&[cdn("private=(\"a\")"), FRESH]), Err(Refusal::Private));
    assert_eq!(fresh_for(&[cdn("max-age=99999999999")]), 2_147_483_648);
    assert_eq!(fresh_for(&[cdn("max-age=-1"), FRESH]), 0);
}

#[test]
fn a_targeted_field_with_an_error_is_as_if_it_were_not_there() {
    for value in [
        "",
        "max-age=10000, &&&&&",
        "max-age=\"10000\"",
        "max-age=10.5",
        "max-age=(1 2)",
        "max-age",
        "max-age =100",
        "max-age= 100",
        "MaX-aGe=3600",
        "max-age=1000000000000000",
        "max-age=100,",
        "stale-if-error=a, max-age=100",
    ] {
        let cdn = ("cdn-cache-control", value);
        assert_eq!(fresh_for(&[cdn, ("cache-control", "max-age=1")]), 1, "{value}");
        assert_eq!(ok(&[cdn, ("cache-control", "no-store")]), Err(Refusal::NoStore), "{value}");
    }
}

#[test]
fn our_own_target_comes_first() {
    let rules =
        Rules { target: Some(HeaderName::from_static("keep-cache-control")), ..Rules::default() };
    let fresh =
        |lines: Lines<'_>| judged(&rules, &[], 200, lines).unwrap().freshness.lifetime.as_secs();
    let (own, cdn) = (("keep-cache-control", "max-age=1"), ("cdn-cache-control", "max-age=2"));
    assert_eq!(fresh(&[FRESH, cdn, own]), 1);
    assert_eq!(fresh(&[FRESH, cdn, ("keep-cache-control", "max-age=a")]), 2);
    assert_eq!(fresh(&[FRESH, own]), 1);
    assert_eq!(freshness(&[FRESH, own]).lifetime.as_secs(), 3600, "it means nothing to others");
}

// What selects (section 4.1).

#[test]
fn vary_names_what_selects_and_some_of_it_is_implied() {
    let names = |request: Lines<'_>, response: Lines<'_>| {
        let mut lines = vec![FRESH];
        lines.extend(response);
        let stored = judged(&Rules::default(), request, 200, &lines).unwrap();
        stored.vary.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&[], &[]), "");
    assert_eq!(names(&[], &[("vary", "B, a"), ("vary", "b")]), "a b");
    assert_eq!(names(&[], &[("content-encoding", "br")]), "accept-encoding");
    let both = [("content-encoding", "br"), ("vary", "Accept-Encoding")];
    assert_eq!(names(&[], &both), "accept-encoding");
    let origin = [("origin", "https://a.example")];
    let reflected = ("access-control-allow-origin", "https://a.example");
    assert_eq!(names(&origin, &[reflected]), "origin");
    assert_eq!(names(&origin, &[("access-control-allow-origin", "*")]), "");
    assert_eq!(names(&[], &[reflected]), "");
}

#[test]
fn what_varies_by_everything_or_by_cookies_is_not_stored() {
    for vary in ["*", "*, *", ", *", "a, *", "*, a", "a b"] {
        assert_eq!(ok(&[FRESH, ("vary", vary)]), Err(Refusal::VaryAll), "{vary}");
    }
    assert_eq!(ok(&[FRESH, ("vary", ""), ("vary", "*")]), Err(Refusal::VaryAll));
    assert_eq!(ok(&[FRESH, ("vary", "a, Cookie")]), Err(Refusal::VaryCookie));
    assert_eq!(judged(&output(60), &[], 200, &[("vary", "*")]), Err(Refusal::VaryAll));
    assert_eq!(judged(&output(60), &[], 200, &[("vary", "cookie")]), Err(Refusal::VaryCookie));
}

// Output mode.

#[test]
fn the_route_says_how_long() {
    let stored = |status, lines: Lines<'_>| judged(&output(60), &[], status, lines);
    let freshness =
        stored(200, &[("cache-control", "max-age=1"), ("age", "900")]).unwrap().freshness;
    assert_eq!(freshness.lifetime, Duration::from_secs(60));
    assert_eq!(freshness.initial_age, Duration::ZERO);
    assert_eq!(freshness.stale_while_revalidate, Duration::from_secs(5));
    assert_eq!(freshness.stale_if_error, Duration::from_secs(7));
    assert!(!freshness.must_revalidate && !freshness.authorized);
    for status in [200, 203, 204, 301, 308] {
        assert_eq!(stored(status, &[]).unwrap().keep, Duration::from_secs(67), "{status}");
    }
    for status in [201, 206, 302, 304, 400, 403, 410, 500, 599] {
        assert!(stored(status, &[]).is_err(), "{status}");
    }
    assert_eq!(judged(&output(0), &[], 200, &[]).unwrap().keep, Duration::from_secs(7));
}

#[test]
fn errors_are_stored_for_as_long_as_the_route_says() {
    let life =
        |status| judged(&output(60), &[], status, &[]).map(|stored| stored.freshness.lifetime);
    assert_eq!(life(404), Ok(Duration::from_secs(3)));
    assert_eq!(life(503), Ok(Duration::from_secs(2)));
    assert_eq!(life(500), Err(Refusal::Status));
    let forbids = [("cache-control", "no-store")];
    assert_eq!(judged(&output(60), &[], 404, &forbids), Err(Refusal::NoStore));
    assert_eq!(judged(&output(60), &[], 503, &forbids), Err(Refusal::Status));
}

// After a 304 (section 4.3.4).

fn after(rules: &Rules, first: Lines<'_>, not_modified: Lines<'_>) -> Result<Storable, Refusal> {
    let stored = judged(rules, &[], 200, first).unwrap();
    let (first, not_modified) = (header_map(first), header_map(not_modified));
    let first = super::super::stored_headers(&first, rules, NOW);
    let merged = super::super::freshen(&first, &not_modified, rules, NOW);
    let facts = facts(Method::GET, &[], rules);
    let previous = &stored.freshness;
    revalidated(&facts, StatusCode::OK, &merged, &not_modified, previous, rules, AT_ONCE)
}

#[test]
fn a_304_begins_a_new_life() {
    let rules = Rules::default();
    let first = [("cache-control", "max-age=10"), ETAG, ("age", "9")];
    let life = |lines: Lines<'_>| {
        let freshness = after(&rules, &first, lines).unwrap().freshness;
        (freshness.lifetime.as_secs(), freshness.initial_age.as_secs())
    };
    assert_eq!(life(&[]), (10, 0));
    assert_eq!(life(&[("age", "3")]), (10, 3));
    assert_eq!(life(&[("date", &ago(4))]), (10, 4));
    assert_eq!(life(&[("cache-control", "max-age=20")]), (20, 0));
    assert_eq!(life(&[("cdn-cache-control", "max-age=30")]), (30, 0));
}

#[test]
fn a_304_can_end_a_life() {
    let refused = |lines: Lines<'_>| after(&Rules::default(), &[FRESH, ETAG], lines).unwrap_err();
    assert_eq!(refused(&[("cache-control", "no-store")]), Refusal::NoStore);
    assert_eq!(refused(&[("cache-control", "private")]), Refusal::Private);
    assert_eq!(refused(&[("vary", "*")]), Refusal::VaryAll);
    assert_eq!(refused(&[("vary", "cookie")]), Refusal::VaryCookie);
    let rules = Rules { honour_request: true, ..Rules::default() };
    let facts = facts(Method::GET, &[("cache-control", "no-store")], &rules);
    let (fields, previous) = (header_map(&[FRESH, ETAG]), freshness(&[FRESH, ETAG]));
    let none = HeaderMap::new();
    let again = revalidated(&facts, StatusCode::OK, &fields, &none, &previous, &rules, AT_ONCE);
    assert_eq!(again, Err(Refusal::RequestNoStore));
}

#[test]
fn a_life_by_our_own_target_outlasts_a_304_that_is_silent() {
    let rules =
        Rules { target: Some(HeaderName::from_static("keep-cache-control")), ..Rules::default() };
    let first = [("keep-cache-control", "max-age=60"), ("cache-control", "no-store"), ETAG];
    assert_eq!(after(&rules, &first, &[]).unwrap().freshness.lifetime.as_secs(), 60);
    let own = [("keep-cache-control", "max-age=90")];
    assert_eq!(after(&rules, &first, &own).unwrap().freshness.lifetime.as_secs(), 90);
}

#[test]
fn a_rule_of_thumb_is_applied_anew() {
    let modified = ago(1000);
    let first = [("last-modified", &modified[..]), ("date", &ago(100))];
    let again = after(&Rules::default(), &first, &[("date", &ago(0))]).unwrap();
    assert_eq!(again.freshness.lifetime, Duration::from_secs(100));
}
