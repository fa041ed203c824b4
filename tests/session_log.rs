//! What an operator reads of sessions, and what nobody must read anywhere.
//!
//! A binary of its own: `tracing` remembers per process who wants an event.
#![cfg(all(feature = "tracing", feature = "secure-cookies"))]

#[path = "support/log.rs"]
mod log;
#[allow(dead_code)]
#[path = "session/shop.rs"]
mod shop;
#[allow(dead_code)]
#[path = "session/watched.rs"]
mod watched;

use std::{
    fmt::Write as _,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, Request},
    routing::post,
};
use futures_util::stream;
use http_body_util::BodyExt;
use log::Log;
use shop::{Client, Visitor, routes};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    MemoryStorage, RequestHead, SessionLayer, Storage,
    session::{
        CookieSettings, Device, KeyRing, Login, Notice, OverCap, Policy, Principal, ReadSession,
        RequiredSession, Session, SessionData, SessionHandle, SessionMap, Sessions,
    },
    storage::Put,
};
use watched::{Watched, spellings};

/// The log of this process, which the tests share: each looks for what only it can cause.
static LOG: LazyLock<Log> = LazyLock::new(Log::start);

const HOUR: Duration = Duration::from_secs(3_600);

/// A text that must never be shown, for each thing that is nobody's business.
const PRINCIPAL: &str = "principal-Zaphod";
const VALUE: &str = "value-Trillian";
const SECRET: [u8; 32] = *b"secret-Marvin-secret-Marvin-32by";

/// The layer's own lines. Other crates log what they like.
fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains("tower_keep")).collect()
}

#[tokio::test(start_paused = true)]
async fn no_log_line_and_no_debug_output_holds_a_token_a_cookie_or_data() {
    LazyLock::force(&LOG);
    let shown = Arc::new(Mutex::new(String::new()));
    let ring = KeyRing::new(&SECRET).unwrap().add_previous(&[b'p'; 32]).unwrap();
    let plain = CookieSettings::new();
    let settings = [
        plain.clone(),
        plain.clone().signed(ring.clone()),
        plain.clone().encrypted(ring.clone()),
        plain.insecure_for_development(),
    ];
    let mut tokens = Vec::new();
    for settings in settings {
        let output = Arc::clone(&shown);
        let show = move |what: &dyn std::fmt::Debug| {
            writeln!(output.lock().unwrap(), "{what:?} {what:#?}").unwrap();
        };
        let noticed = show.clone();
        let policy = Policy::new()
            .with_cookie(settings)
            .with_bearer()
            .with_rotation(HOUR)
            .with_cap(2, OverCap::EndOldest)
            .with_observer(move |notice| match notice {
                // It is for the application, and says who it was.
                Notice::Evicted { .. } => {}
                other => noticed(other),
            });
        let storage = Watched::new(MemoryStorage::new());
        let layer = SessionLayer::new(storage.clone(), policy.clone());
        let show_all = {
            let show = show.clone();
            move |handle: SessionHandle,
                  session: Session<SessionMap>,
                  read: ReadSession<SessionMap>,
                  principal: Option<Principal>,
                  head: HeaderMap| {
                show(&handle);
                show(&handle.token());
                show(&*session);
                show(&session);
                show(&read);
                show(&principal);
                show(&session.encode());
                let mut request = Request::new(());
                *request.headers_mut() = head;
                show(&RequestHead::new(&request));
                async {}
            }
        };
        let shows_too = show.clone();
        let required = async move |session: RequiredSession<SessionMap>| shows_too(&session);
        let app = routes()
            .route("/show", post(show_all))
            .route("/needed", post(required))
            .layer(layer.clone());
        show(&policy);
        show(&layer);
        show(&layer.sessions());
        show(&layer.layer(service_fn(async |_: Request<Body>| {
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
        })));
        let mut clients = [(); 3].map(|()| Client::new(&app));
        let mut see = async |client: &mut Client, method: &str, path: &str| {
            let answer = client.send(method, path).await;
            show(&format!("{:?}", answer.headers.get("set-cookie")));
            let token = client.get("/token").await;
            if token.status == 200 {
                tokens.push(token.text);
            }
            let cookie = client.cookie.iter().flat_map(|cookie| cookie.split_once('='));
            tokens.extend(cookie.map(|(_, value)| value.to_owned()));
            answer.status.as_u16()
        };
        for client in &mut clients {
            for path in [
                "/needed".to_owned(),
                format!("/set/name/{VALUE}"),
                format!("/flash/{VALUE}"),
                format!("/login/{PRINCIPAL}"),
                "/show".to_owned(),
                "/rotate".to_owned(),
                "/prove".to_owned(),
                format!("/login/{PRINCIPAL}"),
            ] {
                see(client, "POST", &path).await;
            }
            advance(2 * HOUR).await;
        }
        let [evicted, second, third] = &mut clients;
        assert_eq!(see(evicted, "GET", "/me").await, 401);
        assert_eq!(see(second, "GET", "/me").await, 200);
        assert_eq!(see(second, "POST", "/sessions/others").await, 200);
        assert_eq!(see(third, "GET", "/me").await, 401);
        for path in ["/recent", "/sessions", "/read", "/all"] {
            advance(2 * HOUR).await;
            see(second, "GET", path).await;
        }
        // An id that was used too late, two cookies, nonsense.
        let old = second.clone();
        advance(2 * HOUR).await;
        see(second, "GET", "/me").await;
        see(second, "GET", "/me").await;
        advance(HOUR / 2).await;
        assert_eq!(see(&mut old.clone(), "GET", "/me").await, 401);
        let mut both = Client::new(&app);
        let cookies = [&old.cookie, &second.cookie].map(|cookie| cookie.clone().unwrap());
        both.cookie = Some(cookies.join("; "));
        see(&mut both, "GET", "/me").await;
        // An outage, in reading and in saving.
        storage.cut_off(true);
        for path in ["/count", "/logout", &format!("/set/name/{VALUE}")] {
            assert_eq!(see(second, "POST", path).await, 503);
        }
        storage.cut_off(false);
        // A record that is damaged, one of another type.
        see(second, "POST", &format!("/set/count/{VALUE}")).await;
        see(second, "GET", "/read").await;
        for key in storage.keys("record") {
            storage.put(&key, Put::new(Bytes::from_static(b"x"), HOUR)).await.unwrap();
        }
        assert_eq!(see(second, "GET", "/me").await, 401);
        assert_eq!(see(second, "POST", &format!("/login/{PRINCIPAL}")).await, 200);
        assert_eq!(see(second, "POST", "/logout").await, 200);
        show(&Login::new(PRINCIPAL).with_device(Device::new().with_user_agent("a browser")));
    }
    let shown = shown.lock().unwrap();
    let text = LOG.text();
    let log = lines(&text).join("\n");
    for wanted in
        ["looked up", "used long after", "put aside", "does not fit", "was ended", "neither counts"]
    {
        assert!(log.contains(wanted), "the story has a line of {wanted:?}: {log}");
    }
    assert!(shown.contains("SessionToken(..)") && shown.contains("Principal(..)"), "{shown}");
    tokens.sort();
    tokens.dedup();
    assert!(tokens.len() > 40);
    for (where_, text) in [("log", &*text), ("Debug", &**shown)] {
        for token in &tokens {
            let is_token = token.len() == 43 && !token.contains(['+', '/']);
            let spelt = if is_token { spellings(token) } else { vec![token.clone().into()] };
            for spelling in spelt.iter().filter_map(|text| std::str::from_utf8(text).ok()) {
                assert!(!text.contains(spelling), "{where_}: {token}");
            }
        }
        let secret = std::str::from_utf8(&SECRET).unwrap();
        for private in [PRINCIPAL, VALUE, secret, &format!("{SECRET:?}"), "112, 112, 112"] {
            assert!(!text.contains(private), "{where_} shows {private}");
        }
    }
}

#[tokio::test]
async fn mistakes_in_the_set_up_name_their_remedy() {
    LazyLock::force(&LOG);
    struct Backstage;
    Client::new(&routes()).get("/read").await.expect(500);
    let text = LOG.text();
    let line = |wanted: &str| {
        let found = lines(&text).into_iter().find(|line| line.contains(wanted));
        found.map(str::to_owned).unwrap_or_else(|| panic!("no {wanted:?} in {text}"))
    };
    assert!(line("no session in the request").contains("inside a `SessionLayer`"));
    assert!(line("no session in the request").contains("ERROR"));

    let admin = async |_: RequiredSession<Visitor, Backstage>| {};
    let app = routes()
        .route("/admin", post(admin))
        .layer(SessionLayer::new(MemoryStorage::new(), Policy::new()));
    Client::new(&app).post("/admin").await.expect(500);
    let text = LOG.text();
    assert!(text.contains("Backstage>`?"), "{text}");
    assert!(text.contains("SessionLayer::in_realm::<"), "{text}");

    let layer = |name| SessionLayer::new(MemoryStorage::new(), Policy::named(name));
    let app = routes().layer(layer("one")).layer(layer("two"));
    Client::new(&app).get("/untouched").await.expect(500);
    let text = LOG.text();
    let line = lines(&text).into_iter().find(|line| line.contains("two different session layers"));
    let line = line.expect("the line is there");
    assert!(line.contains("in_realm") && line.contains("clones of one layer"), "{line}");

    let insecure = CookieSettings::new().insecure_for_development();
    let _ = Sessions::new(MemoryStorage::new(), Policy::named("dev-only").with_cookie(insecure));
    let tossed = CookieSettings::new().with_domain("shop.example");
    let _ = Sessions::new(MemoryStorage::new(), Policy::named("wide").with_cookie(tossed));
    let text = LOG.text();
    assert!(text.contains("insecure_for_development() in development only"), "{text}");
    assert!(text.contains("__Secure-wide"), "{text}");
}

#[tokio::test]
async fn a_change_after_the_head_is_warned_of() {
    LazyLock::force(&LOG);
    let late = async |mut session: Session<Visitor>| {
        let body = stream::once(async move {
            session.count += 1;
            drop(session);
            Ok::<_, std::convert::Infallible>(Bytes::new())
        });
        Body::from_stream(body)
    };
    let app = routes()
        .route("/late", post(late))
        .layer(SessionLayer::new(MemoryStorage::new(), Policy::new()));
    let request = Request::post("/late").body(Body::empty()).unwrap();
    let response = app.oneshot(request).await.unwrap();
    let before = LOG.text().matches("after the head of the response").count();
    assert_eq!(before, 0);
    response.into_body().collect().await.unwrap();
    let text = LOG.text();
    let line = lines(&text).into_iter().find(|line| line.contains("after the head of the"));
    assert!(
        line.is_some_and(|line| line.contains("WARN") && line.contains("call `save`")),
        "{text}"
    );
}
