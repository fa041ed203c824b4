//! How long sessions live, on a clock that is moved by hand.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::Path,
    routing::{get, post},
};
use tokio::time::{Instant, advance};
use tower_keep::{
    MemoryStorage, SessionLayer,
    session::{CookieSettings, Login, Policy, SessionError, SessionHandle},
};

use crate::{
    shop::{Client, app, routes},
    watched::Watched,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A visitor with a session that began now.
async fn visitor(app: &Router) -> Client {
    let mut client = Client::new(app);
    client.post("/count").await.expect(200);
    client
}

async fn is_alive(client: &Client) -> bool {
    // What only looks must not be kept alive by it: a copy, whose cookie nobody keeps.
    match client.clone().get("/required").await.status.as_u16() {
        200 => true,
        401 => false,
        other => panic!("{other}"),
    }
}

fn max_age(line: &str) -> Duration {
    let (_, rest) = line.split_once("Max-Age=").unwrap();
    Duration::from_secs(rest.split(';').next().unwrap().parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_session_in_use_lives_a_year_and_one_out_of_use_a_week() {
    let storage = Watched::new(MemoryStorage::new());
    let app = app(storage, Policy::new().with_lifetime(365 * DAY).with_idle_timeout(7 * DAY));
    let mut client = Client::new(&app);
    let began = Instant::now();
    let mut set = client.post("/count").await.expect(200).set_cookies().len();
    let forgotten = visitor(&app).await;
    for _ in 0..72 {
        advance(5 * DAY).await;
        set += client.get("/required").await.expect(200).set_cookies().len();
    }
    assert_eq!(set, 1, "the cookie need not move");
    assert!(!is_alive(&forgotten).await);
    advance(364 * DAY + 23 * HOUR - began.elapsed()).await;
    client.get("/required").await.expect(200);
    advance(HOUR).await;
    client.get("/required").await.expect(401);

    let mut client = visitor(&app).await;
    advance(8 * DAY).await;
    client.get("/required").await.expect(401);
}

#[tokio::test(start_paused = true)]
async fn the_absolute_deadline_is_never_passed() {
    let steps: [&[(&str, &str)]; 6] = [
        &[("GET", "/read")],
        &[("POST", "/count"), ("POST", "/theme/dark")],
        &[("POST", "/rotate")],
        &[("POST", "/prove")],
        &[("POST", "/sessions/others")],
        &[
            ("GET", "/sessions"),
            ("POST", "/prove"),
            ("POST", "/flash/hello"),
            ("POST", "/rotate"),
            ("POST", "/count"),
            ("POST", "/sessions/others"),
        ],
    ];
    for policy in [Policy::new(), Policy::new().with_rotation(HOUR)] {
        for steps in steps {
            let app = app(MemoryStorage::new(), policy.clone().with_lifetime(10 * DAY));
            let mut client = Client::new(&app);
            client.post("/login/alice").await.expect(200);
            let began = Instant::now();
            let mut hours = 0;
            while began.elapsed() + 7 * HOUR < 10 * DAY {
                advance(7 * HOUR).await;
                for (method, path) in steps {
                    client.send(method, path).await.expect(200);
                    client.get("/me").await.expect(200);
                }
                hours += 7;
            }
            assert!(hours > 230);
            advance(10 * DAY - SECOND - began.elapsed()).await;
            assert_eq!(client.get("/me").await.expect(200).text, "alice");
            advance(SECOND).await;
            client.get("/me").await.expect(401);
            assert!(!is_alive(&client).await, "{steps:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_login_begins_the_lifetime_anew() {
    let app = app(MemoryStorage::new(), Policy::new().with_lifetime(10 * DAY));
    let mut client = visitor(&app).await;
    for login in 0..3 {
        advance(6 * DAY).await;
        let answer = client.post("/login/alice").await.expect(200);
        assert_eq!(max_age(answer.set_cookies()[0]), 10 * DAY, "login {login}");
    }
    advance(6 * DAY).await;
    client.get("/me").await.expect(200);
    advance(4 * DAY).await;
    client.get("/me").await.expect(401);
}

#[tokio::test(start_paused = true)]
async fn a_busy_session_is_written_once_per_slack() {
    for (policy, slack) in [
        (Policy::new().with_idle_timeout(20 * MINUTE), MINUTE),
        (Policy::new(), 5 * MINUTE),
        (Policy::new().with_touch_slack(30 * SECOND), 30 * SECOND),
    ] {
        let storage = Watched::new(MemoryStorage::new());
        let app = app(storage.clone(), policy);
        let mut client = visitor(&app).await;
        storage.writes();
        let began = Instant::now();
        let (mut writes, mut last) = (0, None::<Instant>);
        for _ in 0..1_000 {
            let answer = client.get("/read").await.expect(200);
            assert!(answer.set_cookies().is_empty());
            match storage.writes() {
                0 => {}
                1 => {
                    let since = last.replace(Instant::now()).map(|last| last.elapsed());
                    assert!(since.is_none_or(|since| since >= slack), "{since:?}");
                    writes += 1;
                }
                more => panic!("{more} writes by one request"),
            }
            advance(SECOND).await;
        }
        let most = began.elapsed().as_secs().div_ceil(slack.as_secs());
        println!("slack {slack:?}: {writes} writes, {most} allowed");
        assert!(writes <= most && writes + 1 >= most / 2, "{writes} of {most}");
    }
}

#[tokio::test(start_paused = true)]
async fn max_age_is_the_life_left() {
    let lifetimes = async |handle: SessionHandle, Path(seconds): Path<u64>| {
        handle.login(Login::new("alice").with_lifetime(Duration::from_secs(seconds))).await?;
        Ok::<_, SessionError>(handle.life_left().unwrap().as_secs().to_string())
    };
    let routes = routes().route("/login/alice/{seconds}", post(lifetimes));
    let app = routes.layer(SessionLayer::new(MemoryStorage::new(), Policy::new()));
    let mut client = Client::new(&app);
    let answer = client.post("/count").await;
    assert_eq!(max_age(answer.set_cookies()[0]), 30 * DAY);
    advance(5 * DAY).await;
    assert!(client.post("/count").await.set_cookies().is_empty());
    let answer = client.post("/rotate").await;
    assert_eq!(max_age(answer.set_cookies()[0]), 25 * DAY);
    let answer = client.post("/login/alice").await;
    assert_eq!(max_age(answer.set_cookies()[0]), 30 * DAY);
    advance(3 * DAY).await;
    let answer = client.post("/prove").await;
    assert_eq!(max_age(answer.set_cookies()[0]), 27 * DAY);
    let answer = client.post("/sessions/others").await;
    assert_eq!(max_age(answer.set_cookies()[0]), 27 * DAY);

    // Shorter at the login, and never longer than the policy allows.
    for (asked, given) in [(HOUR, HOUR), (90 * DAY, 30 * DAY)] {
        let answer = client.post(&format!("/login/alice/{}", asked.as_secs())).await.expect(200);
        assert_eq!(answer.text, given.as_secs().to_string());
        assert_eq!(max_age(answer.set_cookies()[0]), given);
        advance(given - SECOND).await;
        assert_eq!(is_alive(&client).await, given < 7 * DAY);
        advance(SECOND).await;
        assert!(!is_alive(&client).await);
    }

    let policy = Policy::named("short").with_cookie(CookieSettings::new().until_browser_closes());
    let app = self::app(MemoryStorage::new(), policy);
    let answer = Client::new(&app).post("/count").await;
    assert!(!answer.set_cookies()[0].contains("Max-Age"), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shorter_lifetime_holds_for_the_sessions_that_are_there() {
    let policy = |days| Policy::new().with_lifetime(days * DAY).with_idle_timeout(DAY);
    let moments = async |handle: SessionHandle| {
        let times = [handle.life_left(), handle.authenticated_ago()];
        Json(times.map(|time| time.map(|time| time.as_secs() / 3_600)))
    };
    for renewal in ["/count", "/rotate", "/prove", "/sessions/others"] {
        let storage = MemoryStorage::new();
        let long = app(storage.clone(), policy(30));
        let short = routes()
            .route("/moments", get(moments))
            .layer(SessionLayer::new(storage.clone(), policy(5).with_rotation(100 * HOUR)));
        let shortest = app(storage, policy(2));
        let mut client = Client::new(&long);
        client.post("/login/alice").await.expect(200);
        for _ in 0..6 {
            advance(12 * HOUR).await;
            client.get("/me").await.expect(200);
        }
        let of = |app: &Router| {
            let mut same = Client::new(app);
            same.cookie = client.cookie.clone();
            same
        };
        assert!(!is_alive(&of(&shortest)).await, "three days are more than two");
        let mut same = of(&short);
        let answer = same.get("/moments").await;
        assert_eq!(answer.text, "[48,72]");
        assert!(answer.set_cookies().is_empty(), "no rotation is due");
        let answer = same.post(renewal).await.expect(200);
        for line in answer.set_cookies() {
            assert_eq!(max_age(line), 2 * DAY);
        }
        let proved = if renewal == "/prove" { 0 } else { 72 };
        assert_eq!(same.get("/moments").await.text, format!("[48,{proved}]"), "{renewal}");
        for _ in 0..3 {
            advance(12 * HOUR).await;
            same.get("/me").await.expect(200);
        }
        assert_eq!(same.get("/moments").await.text, format!("[12,{}]", proved + 36), "{renewal}");
        advance(12 * HOUR).await;
        same.get("/me").await.expect(401);
    }
}

#[tokio::test(start_paused = true)]
async fn the_levels_of_nist_are_kept() {
    for (policy, idle, lifetime) in [
        (Policy::aal1(), 7 * DAY, 30 * DAY),
        (Policy::aal2(), HOUR, DAY),
        (Policy::aal3(), 15 * MINUTE, 12 * HOUR),
    ] {
        let app = app(MemoryStorage::new(), policy);
        let mut client = visitor(&app).await;
        advance(idle - SECOND).await;
        client.get("/required").await.expect(200);
        advance(idle - SECOND).await;
        client.get("/required").await.expect(200);
        advance(idle).await;
        client.get("/required").await.expect(401);

        let mut client = visitor(&app).await;
        let began = Instant::now();
        while began.elapsed() + idle / 2 < lifetime {
            advance(idle / 2).await;
            client.get("/required").await.expect(200);
        }
        advance(lifetime - SECOND - began.elapsed()).await;
        client.get("/required").await.expect(200);
        advance(SECOND).await;
        client.get("/required").await.expect(401);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_dangerous_needs_a_proof_that_is_fresh() {
    let ago =
        async |handle: SessionHandle| Json(handle.authenticated_ago().map(|ago| ago.as_secs()));
    let routes = routes().route("/ago", get(ago));
    let app = routes.layer(SessionLayer::new(MemoryStorage::new(), Policy::new()));
    let mut client = Client::new(&app);
    let answer = client.get("/recent").await.expect(401);
    assert_eq!(answer.headers["www-authenticate"], "Session", "nobody has logged in");
    client.post("/count").await.expect(200);
    assert_eq!(client.get("/ago").await.text, "null");
    client.get("/recent").await.expect(401);
    client.post("/prove").await.expect(401);

    client.post("/login/alice").await.expect(200);
    assert_eq!(client.get("/ago").await.text, "0");
    client.get("/recent").await.expect(200);
    advance(MINUTE).await;
    assert_eq!(client.get("/ago").await.text, "60");
    client.get("/recent").await.expect(200);
    advance(SECOND).await;
    let answer = client.get("/recent").await.expect(401);
    assert_eq!(
        answer.headers["www-authenticate"],
        "Session error=\"insufficient_user_authentication\", max_age=\"60\""
    );
    // An ordinary rotation proves nothing.
    client.post("/rotate").await.expect(200);
    client.get("/recent").await.expect(401);
    client.get("/me").await.expect(200);
    let old = client.clone();
    client.post("/prove").await.expect(200);
    client.get("/recent").await.expect(200);
    assert_eq!(client.get("/ago").await.text, "0");
    assert!(!is_alive(&old).await, "the id from before the proof is dead");
    advance(3 * DAY).await;
    assert_eq!(client.get("/ago").await.text, (3 * DAY).as_secs().to_string());
    client.get("/recent").await.expect(401);
}
