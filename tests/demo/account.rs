//! Sessions, carts and who is asking.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Demo, json as body, support::RedisServer};

/// Somebody with a cookie jar.
#[derive(Clone, Default)]
pub(crate) struct Visitor {
    cookie: Option<String>,
}

impl Visitor {
    pub(crate) async fn logged_in(demo: &Demo, user: &str) -> Self {
        let mut visitor = Self::default();
        let answer = visitor.login(demo, user).await;
        assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
        visitor
    }

    pub(crate) async fn ask(
        &mut self,
        demo: &Demo,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: &str,
    ) -> Response<Bytes> {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(more);
        headers.extend(self.cookie.as_deref().map(|cookie| ("cookie", cookie)));
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = demo.send(method, path, &headers, body).await;
        if let Some(line) = set_cookie(&answer) {
            let pair = line.split(';').next().unwrap();
            self.cookie = Some(pair.to_owned()).filter(|_| !line.contains("Max-Age=0"));
        }
        answer
    }

    async fn get(&mut self, demo: &Demo, path: &str) -> Response<Bytes> {
        self.ask(demo, "GET", path, &[], "").await
    }

    pub(crate) async fn post(&mut self, demo: &Demo, path: &str, body: &str) -> Response<Bytes> {
        self.ask(demo, "POST", path, &[], body).await
    }

    async fn delete(&mut self, demo: &Demo, handle: &str) -> Response<Bytes> {
        self.ask(demo, "DELETE", &format!("/api/sessions/{handle}"), &[], "").await
    }

    async fn login(&mut self, demo: &Demo, user: &str) -> Response<Bytes> {
        self.post(demo, "/api/login", &json!({ "user": user }).to_string()).await
    }

    async fn add(&mut self, demo: &Demo, product: u32, quantity: u32) -> Response<Bytes> {
        let item = json!({ "product": product, "quantity": quantity });
        self.post(demo, "/api/cart", &item.to_string()).await
    }

    async fn cart(&mut self, demo: &Demo) -> Value {
        body(&self.get(demo, "/api/cart").await)["items"].clone()
    }

    async fn sessions(&mut self, demo: &Demo) -> Vec<Value> {
        let answer = self.get(demo, "/api/sessions").await;
        assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
        body(&answer)["sessions"].as_array().unwrap().clone()
    }

    #[track_caller]
    fn bearer(&self) -> String {
        let (_, token) = self.cookie.as_ref().unwrap().split_once('=').unwrap();
        format!("Bearer {token}")
    }
}

fn set_cookie(answer: &Response<Bytes>) -> Option<String> {
    let mut lines = answer.headers().get_all(header::SET_COOKIE).iter();
    let line = lines.next().map(|line| line.to_str().unwrap().to_owned());
    assert_eq!(lines.next(), None, "one cookie is enough");
    line
}

#[track_caller]
pub(crate) fn assert_problem(answer: &Response<Bytes>, status: StatusCode) {
    assert_eq!(answer.status(), status, "{answer:?}");
    assert_eq!(answer.headers()["content-type"], "application/problem+json", "{answer:?}");
    assert_eq!(body(answer)["status"], status.as_u16());
}

pub(crate) async fn on_both<F: Future<Output = ()>>(test: impl Fn(Demo) -> F) {
    test(Demo::start(&[])).await;
    let server = RedisServer::start();
    test(Demo::start(&[("REDIS_URL", &server.url())])).await;
}

#[tokio::test]
async fn a_login_keeps_the_cart_and_changes_the_id() {
    on_both(async |demo| {
        let demo = &demo;
        let mut alice = Visitor::default();
        for path in ["/api/whoami", "/api/cart"] {
            let answer = alice.get(demo, path).await;
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(set_cookie(&answer), None, "who only looks gets no cookie");
        }
        assert_problem(&alice.get(demo, "/api/me").await, StatusCode::UNAUTHORIZED);
        assert_problem(&alice.get(demo, "/api/sessions").await, StatusCode::UNAUTHORIZED);

        let answer = alice.add(demo, 3, 1).await;
        let cookie = set_cookie(&answer).unwrap();
        assert!(cookie.starts_with("sid=") && cookie.contains("; HttpOnly"), "{cookie}");
        assert!(cookie.contains("; SameSite=Lax"), "{cookie}");
        assert!(!cookie.contains("Secure"), "it is for plain HTTP: {cookie}");
        alice.add(demo, 1, 2).await;
        let items = json!([{ "product": 1, "quantity": 2 }, { "product": 3, "quantity": 1 }]);
        assert_eq!(alice.cart(demo).await, items);

        let mut planted = alice.clone();
        let answer = alice.login(demo, "alice").await;
        assert_eq!(body(&answer), json!({ "user": "alice" }), "no token unasked");
        assert_ne!(alice.cookie, planted.cookie);
        assert_eq!(alice.cart(demo).await, items);
        assert_eq!(planted.cart(demo).await, json!([]), "the old id is dead");
        assert_eq!(body(&planted.get(demo, "/api/whoami").await), json!({ "user": null }));

        for visits in 1..4 {
            let me = body(&alice.get(demo, "/api/me").await);
            assert_eq!(me, json!({ "user": "alice", "visits": visits }));
        }
        let mut bob = alice.clone();
        bob.login(demo, "bob").await;
        assert_eq!(bob.cart(demo).await, json!([]), "nothing passes from one user to another");

        let mut alice = Visitor::logged_in(demo, "alice").await;
        let mut copy = alice.clone();
        let answer = alice.post(demo, "/api/logout", "").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(alice.cookie, None);
        assert_problem(&copy.get(demo, "/api/me").await, StatusCode::UNAUTHORIZED);
        let again = alice.post(demo, "/api/logout", "").await;
        assert_eq!(again.status(), StatusCode::OK, "to log out twice is no mistake");
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_and_begins_no_session() {
    let demo = &Demo::start(&[]);
    let mut visitor = Visitor::default();
    let long = format!("{{\"user\": \"{}\"}}", "a".repeat(65));
    for wrong in [
        "",
        "{}",
        "[]",
        "\u{0}",
        "{\"user\": 5}",
        "{\"user\": null}",
        "{\"user\": \"\"}",
        "{\"user\": \" \"}",
        "{\"user\": \" alice\"}",
        "{\"user\": \"al\\nice\"}",
        "{\"user\": \"alice\", \"bearer\": \"yes\"}",
        &long,
    ] {
        let answer = visitor.post(demo, "/api/login", wrong).await;
        assert_problem(&answer, StatusCode::BAD_REQUEST);
    }
    for wrong in [
        "",
        "{}",
        "{\"product\": 1}",
        "{\"product\": 1, \"quantity\": 0}",
        "{\"product\": 1, \"quantity\": -1}",
        "{\"product\": 1, \"quantity\": 1.5}",
        "{\"product\": 1, \"quantity\": 1000001}",
        "{\"product\": 1, \"quantity\": 4294967297}",
        "{\"product\": 1, \"quantity\": 99999999999999999999999}",
        "{\"product\": -1, \"quantity\": 1}",
        "{\"product\": \"1\", \"quantity\": 1}",
    ] {
        let answer = visitor.post(demo, "/api/cart", wrong).await;
        assert_problem(&answer, StatusCode::BAD_REQUEST);
    }
    for product in [0, 4, u32::MAX] {
        assert_problem(&visitor.add(demo, product, 1).await, StatusCode::NOT_FOUND);
    }
    assert_eq!(visitor.cookie, None);

    for _ in 0..2 {
        assert_eq!(visitor.add(demo, 2, 500_000).await.status(), StatusCode::OK);
    }
    assert_problem(&visitor.add(demo, 2, 1).await, StatusCode::BAD_REQUEST);
    let full = json!([{ "product": 2, "quantity": 1_000_000 }]);
    assert_eq!(visitor.cart(demo).await, full);

    let mut alice = Visitor::logged_in(demo, "älice 7").await;
    assert_eq!(body(&alice.get(demo, "/api/whoami").await)["user"], "älice 7");
    for wrong in ["x", "1", "%ff", "%00", "0123456789abcdef"] {
        assert_problem(&alice.delete(demo, wrong).await, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn a_request_that_another_site_has_sent_is_refused() {
    let demo = &Demo::start(&[]);
    let mut alice = Visitor::logged_in(demo, "alice").await;
    let own = demo.url.clone();
    let foreign: [&[(&str, &str)]; 5] = [
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "cross-site"), ("origin", &own)],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
    ];
    for headers in foreign {
        for (method, path) in [
            ("POST", "/api/login"),
            ("POST", "/api/logout"),
            ("POST", "/api/cart"),
            ("POST", "/api/sessions/revoke-others"),
            ("DELETE", "/api/sessions/00000000-0000-0000-0000-000000000000"),
        ] {
            let item = "{\"user\": \"mallory\", \"product\": 1, \"quantity\": 1}";
            let answer = alice.ask(demo, method, path, headers, item).await;
            assert_problem(&answer, StatusCode::FORBIDDEN);
            assert_eq!(set_cookie(&answer), None, "{method} {path} {headers:?}");
        }
        let me = alice.ask(demo, "GET", "/api/whoami", headers, "").await;
        assert_eq!(body(&me)["user"], "alice", "to read is safe");
    }
    assert_eq!(alice.cart(demo).await, json!([]));
    let same: [&[(&str, &str)]; 4] = [
        &[],
        &[("origin", &own)],
        &[("sec-fetch-site", "same-origin"), ("origin", &own)],
        &[("sec-fetch-site", "none")],
    ];
    for headers in same {
        let item = "{\"product\": 1, \"quantity\": 1}";
        let answer = alice.ask(demo, "POST", "/api/cart", headers, item).await;
        assert_eq!(answer.status(), StatusCode::OK, "{headers:?}");
    }
}

#[tokio::test]
async fn a_client_without_cookies_sends_its_token() {
    on_both(async |demo| {
        let demo = &demo;
        let mut login = Visitor::default();
        let wanted = "{\"user\": \"alice\", \"bearer\": true}";
        let answer = body(&login.post(demo, "/api/login", wanted).await);
        let bearer = format!("Bearer {}", answer["token"].as_str().unwrap());
        let authorization = [("authorization", &*bearer)];
        let mut client = Visitor::default();
        let me = client.ask(demo, "GET", "/api/me", &authorization, "").await;
        assert_eq!(body(&me), json!({ "user": "alice", "visits": 1 }));
        assert_eq!(client.cookie, None);
        let mut both = login.clone();
        let me = both.ask(demo, "GET", "/api/me", &authorization, "").await;
        assert_eq!(body(&me)["visits"], 2, "the same twice is one");

        let mut bob = Visitor::logged_in(demo, "bob").await;
        for path in ["/api/me", "/api/whoami", "/api/cart"] {
            let answer = bob.ask(demo, "GET", path, &authorization, "").await;
            assert_problem(&answer, StatusCode::BAD_REQUEST);
        }
        let other = [("authorization", &*bob.bearer())];
        let answer = login.ask(demo, "POST", "/api/logout", &other, "").await;
        assert_problem(&answer, StatusCode::BAD_REQUEST);
        assert_eq!(bob.get(demo, "/api/me").await.status(), StatusCode::OK);
        assert_eq!(login.get(demo, "/api/me").await.status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_user_sees_and_ends_the_own_sessions_only() {
    on_both(async |demo| {
        let demo = &demo;
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 1;
        let [mut phone, mut laptop, mut bob] = [(); 3].map(|()| Visitor::default());
        for (visitor, user, agent) in
            [(&mut phone, "alice", "Phone/1"), (&mut laptop, "alice", "<b>"), (&mut bob, "bob", "")]
        {
            let credentials = json!({ "user": user }).to_string();
            visitor.ask(demo, "POST", "/api/login", &[("user-agent", agent)], &credentials).await;
        }
        let listed = phone.sessions(demo).await;
        assert_eq!(listed.len(), 2);
        for session in &listed {
            let names: Vec<_> = session.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(names, ["created", "current", "device", "handle", "last_use"]);
            let device = if session["current"] == true { "Phone/1" } else { "<b>" };
            assert_eq!(session["device"], format!("{device}, 127.0.0.0/24"));
            let times = ["created", "last_use"].map(|name| session[name].as_u64().unwrap());
            assert!(before <= times[0] && times[0] <= times[1] + 1, "{session}");
            assert!(times[1] <= before + 30, "{session}");
        }
        let find = |current| {
            let session = listed.iter().find(|session| session["current"] == current).unwrap();
            session["handle"].as_str().unwrap().to_owned()
        };
        let (own, other) = (find(true), find(false));

        // Nobody learns whether a handle is somebody's.
        for handle in [&other, &Uuid::new_v4().to_string()] {
            assert_eq!(bob.delete(demo, handle).await.status(), StatusCode::NO_CONTENT);
            let stranger = Visitor::default().delete(demo, handle).await;
            assert_problem(&stranger, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(laptop.get(demo, "/api/me").await.status(), StatusCode::OK);

        for _ in 0..2 {
            assert_eq!(phone.delete(demo, &other).await.status(), StatusCode::NO_CONTENT);
            assert_problem(&laptop.get(demo, "/api/me").await, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(phone.sessions(demo).await.len(), 1);
        assert_eq!(phone.delete(demo, &own).await.status(), StatusCode::NO_CONTENT);
        assert_eq!(phone.cookie, None, "to end the present one is to log out");
        assert_eq!(bob.get(demo, "/api/me").await.status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn a_list_of_many_sessions_is_complete() {
    on_both(async |demo| {
        let mut alice = Visitor::logged_in(&demo, "alice").await;
        for _ in 0..99 {
            Visitor::logged_in(&demo, "alice").await;
        }
        let listed = alice.sessions(&demo).await;
        assert_eq!(listed.len(), 100);
        assert_eq!(listed.iter().filter(|session| session["current"] == true).count(), 1);
        let handles: std::collections::BTreeSet<_> =
            listed.iter().map(|session| session["handle"].to_string()).collect();
        assert_eq!(handles.len(), 100);
        let answer = alice.post(&demo, "/api/sessions/revoke-others", "").await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(alice.sessions(&demo).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_device_is_the_clients() {
    let demo = Demo::start(&[("DEMO_TRUSTED_PROXIES", "127.0.0.0/8")]);
    let mut alice = Visitor::default();
    let client = [("x-forwarded-for", "203.0.113.9, 192.0.2.77"), ("user-agent", "Phone/1")];
    alice.ask(&demo, "POST", "/api/login", &client, "{\"user\": \"alice\"}").await;
    let listed = alice.sessions(&demo).await;
    assert_eq!(listed[0]["device"], "Phone/1, 192.0.2.0/24");
}

#[tokio::test]
async fn no_visit_and_no_item_is_lost_in_parallel() {
    on_both(async |demo| {
        let demo = &demo;
        let alice = Visitor::logged_in(demo, "alice").await;
        let visits = join_all((0..32).map(|_| {
            let mut alice = alice.clone();
            async move { body(&alice.get(demo, "/api/me").await)["visits"].as_u64().unwrap() }
        }));
        let adds = join_all((0..32).map(|each| {
            let mut alice = alice.clone();
            async move { alice.add(demo, each % 3 + 1, 2).await.status() }
        }));
        let (mut visits, adds) = tokio::join!(visits, adds);
        visits.sort_unstable();
        assert_eq!(visits, (1..=32).collect::<Vec<_>>());
        assert!(adds.iter().all(|status| *status == StatusCode::OK));
        let items = alice.clone().cart(demo).await;
        let quantities = [22, 22, 20];
        let expected = (1..=3).zip(quantities);
        let expected =
            expected.map(|(product, quantity)| json!({ "product": product, "quantity": quantity }));
        assert_eq!(items, Value::Array(expected.collect()));
    })
    .await;
}

#[tokio::test]
async fn who_is_asking_is_told_to_nobody_else() {
    on_both(async |demo| {
        let demo = &demo;
        let (alice, bob) =
            (Visitor::logged_in(demo, "alice").await, Visitor::logged_in(demo, "bob").await);
        let askers =
            [(alice, json!("alice")), (bob, json!("bob")), (Visitor::default(), json!(null))];
        for _ in 0..10 {
            let asked = join_all(askers.iter().cycle().take(30).map(async |(visitor, user)| {
                let answer = visitor.clone().get(demo, "/api/whoami").await;
                assert_eq!(body(&answer), json!({ "user": user }));
                let said = answer.headers()["cache-control"].to_str().unwrap();
                assert_eq!(said, "private, max-age=60");
                assert!(answer.headers()["vary"].to_str().unwrap().contains("Cookie"));
                assert!(!answer.headers().contains_key("age"), "{answer:?}");
            }));
            asked.await;
        }
    })
    .await;
}

#[tokio::test]
async fn two_processes_on_one_redis_have_the_same_sessions() {
    let server = RedisServer::start();
    let [one, two] = [(); 2].map(|()| Demo::start(&[("REDIS_URL", &server.url())]));
    let mut alice = Visitor::logged_in(&one, "alice").await;
    assert_eq!(body(&alice.get(&two, "/api/me").await)["visits"], 1);
    assert_eq!(body(&alice.get(&one, "/api/me").await)["visits"], 2);

    let adds = join_all((0..64).map(|each| {
        let (mut alice, demo) = (alice.clone(), if each % 2 == 0 { &one } else { &two });
        async move { alice.add(demo, 2, 3).await }
    }));
    for answer in adds.await {
        assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
    }
    for demo in [&one, &two] {
        assert_eq!(alice.cart(demo).await, json!([{ "product": 2, "quantity": 192 }]));
    }

    for round in 0..10 {
        let (near, far) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let mut other = Visitor::logged_in(far, "alice").await;
        let mut bob = Visitor::logged_in(far, "bob").await;
        assert_eq!(other.get(far, "/api/me").await.status(), StatusCode::OK);
        let id = alice.cookie.clone();
        let answer = alice.post(near, "/api/sessions/revoke-others", "").await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_ne!(alice.cookie, id);
        for demo in [far, near] {
            assert_problem(&other.get(demo, "/api/me").await, StatusCode::UNAUTHORIZED);
            assert_eq!(alice.get(demo, "/api/me").await.status(), StatusCode::OK);
            assert_eq!(bob.get(demo, "/api/me").await.status(), StatusCode::OK);
        }
        assert_eq!(alice.sessions(far).await.len(), 1);
    }

    let mut copy = alice.clone();
    alice.post(&two, "/api/logout", "").await;
    assert_problem(&copy.get(&one, "/api/me").await, StatusCode::UNAUTHORIZED);

    let keys = server.ask("KEYS *");
    for secret in ["alice", "bob", copy.cookie.unwrap().trim_start_matches("sid=")] {
        assert!(keys.contains("session.sid") && !keys.contains(secret), "{keys}");
    }
}

/// Asks for all that needs a session, as one who has one.
async fn all_is_refused_at_once(demo: &Demo, alice: &mut Visitor) {
    let item = "{\"product\": 1, \"quantity\": 1}";
    for (method, path, body) in [
        ("GET", "/api/whoami", ""),
        ("GET", "/api/me", ""),
        ("GET", "/api/cart", ""),
        ("GET", "/api/sessions", ""),
        ("POST", "/api/cart", item),
        ("POST", "/api/login", "{\"user\": \"alice\"}"),
        ("POST", "/api/logout", ""),
        ("POST", "/api/sessions/revoke-others", ""),
        ("DELETE", "/api/sessions/00000000-0000-0000-0000-000000000000", ""),
    ] {
        let start = Instant::now();
        let answer = alice.ask(demo, method, path, &[], body).await;
        assert_problem(&answer, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key("retry-after"), "{method} {path}: {answer:?}");
        assert!(start.elapsed() < Duration::from_secs(2), "{method} {path}: {:?}", start.elapsed());
        assert_eq!(set_cookie(&answer), None, "the session is back when the storage is");
    }
    let mut stranger = Visitor::default();
    for (path, body) in [("/api/login", "{\"user\": \"eve\"}"), ("/api/cart", item)] {
        let answer = stranger.post(demo, path, body).await;
        assert_problem(&answer, StatusCode::SERVICE_UNAVAILABLE);
    }
    for path in ["/", "/api/ping", "/api/products/1", "/health/live"] {
        assert_eq!(stranger.get(demo, path).await.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn without_redis_what_needs_a_session_is_refused_at_once() {
    let mut server = RedisServer::start();
    let demo = &Demo::start(&[("REDIS_URL", &server.url())]);
    let mut alice = Visitor::logged_in(demo, "alice").await;

    server.pause_process();
    all_is_refused_at_once(demo, &mut alice).await;
    server.resume();
    let start = Instant::now();
    while alice.get(demo, "/api/me").await.status() != StatusCode::OK {
        assert!(start.elapsed() < Duration::from_secs(10), "it does not heal");
    }

    server.kill();
    all_is_refused_at_once(demo, &mut alice).await;
    // One that never saw Redis says the same.
    all_is_refused_at_once(&Demo::start(&[("REDIS_URL", &server.url())]), &mut alice).await;

    server.restart();
    let mut eve = Visitor::default();
    let start = Instant::now();
    while eve.login(demo, "eve").await.status() != StatusCode::OK {
        assert!(start.elapsed() < Duration::from_secs(10), "it does not heal");
    }
    assert_eq!(body(&eve.get(demo, "/api/me").await)["user"], "eve");
}
