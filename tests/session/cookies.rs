//! The cookie as browsers get it, and bearer tokens beside it.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    http::{HeaderValue, Request},
    routing::get,
};
use tokio::time::advance;
use tower_keep::{
    MemoryStorage, SessionLayer,
    session::{CookieSettings, Policy, SameSite, SessionHandle},
};

#[cfg(feature = "secure-cookies")]
use tower_keep::session::KeyRing;

use crate::shop::{Answer, Client, app, routes};
#[cfg(feature = "secure-cookies")]
use crate::watched::{Watched, as_token};

const DAY: Duration = Duration::from_secs(24 * 3_600);

#[tokio::test(start_paused = true)]
async fn set_cookie_says_what_was_chosen_and_the_removal_matches() {
    let settings = CookieSettings::new;
    let table = [
        (Policy::new(), "__Host-sid=*; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=2592000"),
        (
            Policy::named("shop").with_lifetime(DAY),
            "__Host-shop=*; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=86400",
        ),
        (
            Policy::new().with_cookie(settings().with_same_site(SameSite::Strict)),
            "__Host-sid=*; HttpOnly; SameSite=Strict; Secure; Path=/; Max-Age=2592000",
        ),
        (
            Policy::new().with_cookie(settings().with_same_site(SameSite::None).partitioned()),
            "__Host-sid=*; HttpOnly; SameSite=None; Secure; Partitioned; Path=/; Max-Age=2592000",
        ),
        (
            Policy::new().with_cookie(settings().with_name("PHPSESSID")),
            "PHPSESSID=*; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=2592000",
        ),
        (
            Policy::new().with_cookie(settings().with_name("__Host-Http-id")),
            "__Host-Http-id=*; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=2592000",
        ),
        (
            Policy::new().with_cookie(settings().with_domain(".shop.example")),
            "__Secure-sid=*; HttpOnly; SameSite=Lax; Secure; Path=/; Domain=shop.example; \
             Max-Age=2592000",
        ),
        (
            Policy::new().with_cookie(settings().with_path("/app")),
            "__Secure-sid=*; HttpOnly; SameSite=Lax; Secure; Path=/app; Max-Age=2592000",
        ),
        (
            Policy::new().with_cookie(settings().insecure_for_development()),
            "sid=*; HttpOnly; SameSite=Lax; Path=/; Max-Age=2592000",
        ),
        (
            Policy::new().with_cookie(settings().until_browser_closes()),
            "__Host-sid=*; HttpOnly; SameSite=Lax; Secure; Path=/",
        ),
        (
            Policy::new().with_lifetime(400 * DAY),
            "__Host-sid=*; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=34560000",
        ),
    ];
    // In whatever order they are written.
    let sorted = |line: &str| {
        let mut parts: Vec<_> = line.split("; ").map(str::to_owned).collect();
        parts[1..].sort();
        parts
    };
    for (policy, wanted) in table {
        let app = app(MemoryStorage::new(), policy);
        let mut client = Client::new(&app);
        let answer = client.post("/login/alice").await.expect(200);
        let [line] = answer.set_cookies()[..] else { panic!("{answer:?}") };
        let (name, rest) = line.split_once('=').unwrap();
        let (value, rest) = rest.split_once(';').unwrap();
        assert_eq!(value.len(), 43);
        assert!(line.len() <= 4_096);
        assert_eq!(sorted(&format!("{name}=*;{rest}")), sorted(wanted));
        assert!(answer.headers["set-cookie"].is_sensitive());
        client.get("/me").await.expect(200);

        let answer = client.post("/logout").await.expect(200);
        let [line] = answer.set_cookies()[..] else { panic!("{answer:?}") };
        let attributes = |line: &str| {
            let mut parts = sorted(line);
            parts.retain(|part| !part.starts_with("Max-Age") && !part.starts_with("Expires"));
            parts
        };
        assert_eq!(attributes(line), attributes(&wanted.replace('*', "")));
        assert!(line.contains("Max-Age=0") && line.contains("Expires=Thu, 01 Jan 1970"), "{line}");
        client.get("/me").await.expect(401);
    }
}

#[cfg(feature = "secure-cookies")]
fn ring(current: u8, previous: &[u8]) -> KeyRing {
    previous.iter().fold(KeyRing::new(&[current; 32]).unwrap(), |ring, secret| {
        ring.add_previous(&[*secret; 32]).unwrap()
    })
}

#[cfg(feature = "secure-cookies")]
#[tokio::test(start_paused = true)]
async fn sealed_cookies_survive_the_change_of_the_secret() {
    let settings = CookieSettings::new;
    type Seal = fn(CookieSettings, KeyRing) -> CookieSettings;
    let ways: [(Seal, &str); 2] =
        [(CookieSettings::signed, "signed"), (CookieSettings::encrypted, "encrypted")];
    for (seal, what) in ways {
        let storage = Watched::new(MemoryStorage::new());
        let under = |ring| app(storage.clone(), Policy::new().with_cookie(seal(settings(), ring)));
        let old = under(ring(1, &[]));
        let both = under(ring(2, &[1]));
        let new = under(ring(2, &[]));
        let plain = app(storage.clone(), Policy::new());
        let mut client = Client::new(&old);
        client.post("/login/alice").await.expect(200);
        let at = |app, client: &Client| {
            let mut same = Client::new(app);
            same.cookie = client.cookie.clone();
            same
        };
        assert!(client.get("/me").await.expect(200).set_cookies().is_empty());

        let before = client.cookie.clone();
        let mut client = at(&both, &client);
        advance(DAY).await;
        let answer = client.get("/me").await.expect(200);
        let [line] = answer.set_cookies()[..] else { panic!("{what}: {answer:?}") };
        assert!(line.contains("Max-Age=2505600"), "29 days are left: {line}");
        assert_eq!(answer.headers["cache-control"], "private, no-store");
        assert_ne!(client.cookie, before, "{what}");
        assert!(client.get("/me").await.expect(200).set_cookies().is_empty(), "once is enough");
        assert_eq!(at(&new, &client).get("/me").await.expect(200).text, "alice");

        // Neither what the old secret has sealed, nor what nobody has, nor one character changed,
        // reaches the storage.
        storage.operations();
        let mut stranger = Client::new(&new);
        stranger.cookie = before;
        let mut strangers = vec![stranger];
        let cookie = client.cookie.clone().unwrap();
        let value = cookie.split_once('=').unwrap().1;
        for (at, byte) in value.bytes().enumerate().step_by(7) {
            let mut changed = value.as_bytes().to_vec();
            changed[at] = if byte == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            let mut stranger = Client::new(&new);
            stranger.cookie = Some(format!("__Host-sid={changed}"));
            strangers.push(stranger);
        }
        let mut stranger = Client::new(&new);
        stranger.cookie = Some(format!("__Host-sid={}", as_token(&[7; 32])));
        strangers.push(stranger);
        strangers.push(at(&plain, &client));
        for stranger in &mut strangers {
            stranger.get("/me").await.expect(401);
        }
        assert_eq!(storage.operations(), 0, "{what}");
    }
}

fn bearer(method: &str, path: &str, tokens: &[&str], cookie: Option<&str>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let headers = request.headers_mut();
    for token in tokens {
        headers.append("authorization", HeaderValue::try_from(*token).unwrap());
    }
    if let Some(cookie) = cookie {
        headers.append("cookie", HeaderValue::try_from(cookie).unwrap());
    }
    request
}

#[tokio::test(start_paused = true)]
async fn a_bearer_token_is_a_session_without_a_cookie() {
    let hour = Duration::from_secs(3_600);
    let app = app(MemoryStorage::new(), Policy::new().with_bearer().with_rotation(hour));
    let mut browser = Client::new(&app);
    browser.post("/login/alice").await.expect(200);
    let token = browser.get("/token").await.expect(200).text;
    let cookie = browser.cookie.clone().unwrap();
    assert_eq!(cookie, format!("__Host-sid={token}"));
    let header = format!("Bearer {token}");
    let ask = async |request| -> Answer { browser.ask(request).await };

    let answer = ask(bearer("GET", "/me", &[&header], None)).await.expect(200);
    assert_eq!(answer.text, "alice");
    assert_eq!(answer.headers["vary"], "Cookie, Authorization");
    // The same twice, and beside the cookie.
    ask(bearer("GET", "/me", &[&header, &header], Some(&cookie))).await.expect(200);

    // Two sessions in one request.
    let mut other = Client::new(&app);
    other.post("/login/bob").await.expect(200);
    let others = format!("Bearer {}", other.get("/token").await.expect(200).text);
    for request in [
        bearer("GET", "/me", &[&others], Some(&cookie)),
        bearer("GET", "/untouched", &[&others], Some(&cookie)),
        bearer("GET", "/me", &[&others, &header], None),
    ] {
        let answer = ask(request).await.expect(400);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert!(!answer.text.contains(&token), "{answer:?}");
    }

    // Credentials that are somebody else's.
    for credentials in ["Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJib2IifQ.", "Basic Ym9iOmJvYg=="] {
        let answer = ask(bearer("GET", "/me", &[credentials], Some(&cookie))).await.expect(200);
        assert_eq!(answer.text, "alice", "the cookie counts");
        ask(bearer("GET", "/me", &[credentials], None)).await.expect(401);
    }

    // A session that came by bearer is never sent as a cookie, and keeps its id.
    for (method, path) in [("POST", "/theme/dark"), ("GET", "/read"), ("POST", "/flash/hello")] {
        advance(2 * hour).await;
        let answer = ask(bearer(method, path, &[&header], None)).await.expect(200);
        assert!(answer.set_cookies().is_empty(), "{path}: {answer:?}");
    }
    for path in ["/rotate", "/logout"] {
        let mut fresh = Client::new(&app);
        fresh.post("/login/carol").await.expect(200);
        let header = format!("Bearer {}", fresh.get("/token").await.text);
        let answer = ask(bearer("POST", path, &[&header], None)).await.expect(200);
        assert!(answer.set_cookies().is_empty(), "{path}: {answer:?}");
        ask(bearer("GET", "/me", &[&header], None)).await.expect(401);
    }
}

#[tokio::test]
async fn without_bearer_in_the_policy_no_token_is_taken_from_it() {
    let app = app(MemoryStorage::new(), Policy::new());
    let mut client = Client::new(&app);
    client.post("/login/alice").await.expect(200);
    let header = format!("Bearer {}", client.get("/token").await.text);
    let answer = client.ask(bearer("GET", "/me", &[&header], None)).await.expect(401);
    assert_eq!(answer.headers["vary"], "Cookie");
}

#[tokio::test]
async fn a_login_tells_the_token_that_works_as_bearer() {
    let token = async |handle: SessionHandle| {
        handle.login("alice").await.unwrap();
        Json(handle.token().unwrap().expose())
    };
    let policy = Policy::new().with_bearer();
    let app = routes()
        .route("/device-login", get(token))
        .layer(SessionLayer::new(MemoryStorage::new(), policy));
    let mut client = Client::new(&app);
    let token = client.get("/device-login").await.expect(200).json();
    let header = format!("Bearer {}", token.as_str().unwrap());
    let answer = client.ask(bearer("GET", "/me", &[&header], None)).await.expect(200);
    assert_eq!(answer.text, "alice");
}
