//! Session layers beside one another, and beside the other layers.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, Response, StatusCode},
    routing::{get, post},
};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    MemoryStorage, Quota, RateLimitLayer, RequestHead, SessionLayer,
    cache::{self, CacheHandle, CacheLayer, Outcome, Source},
    rate_limit::{self, KeyExtractor, Tiers},
    session::{
        Policy, Principal, RequiredSession, Session, SessionCursor, SessionHandle, SessionMap,
        Sessions,
    },
};

use crate::{
    shop::{Client, Visitor, app, routes},
    watched::Watched,
};

const MINUTE: Duration = Duration::from_secs(60);

struct Admin;

/// One who keeps cookies of several names.
#[derive(Default)]
struct Jar(Vec<(String, String)>);

impl Jar {
    async fn send(&mut self, app: &Router, method: &str, path: &str) -> (StatusCode, String) {
        let cookies: Vec<_> =
            self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("cookie", cookies.join("; "))
            .body(Body::empty())
            .unwrap();
        let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
        for line in parts.headers.get_all("set-cookie") {
            let line = line.to_str().unwrap();
            let (name, value) = line.split(';').next().unwrap().split_once('=').unwrap();
            self.0.retain(|(other, _)| other != name);
            if !line.contains("Max-Age=0") {
                self.0.push((name.to_owned(), value.to_owned()));
            }
        }
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[tokio::test]
async fn two_realms_on_one_router_do_not_meet() {
    let both = async |user: Option<Principal>, admin: Option<Principal<Admin>>| {
        let name = |name: Option<String>| name.unwrap_or_else(|| "nobody".to_owned());
        let user = name(user.map(Principal::into_string));
        format!("{user}, {}", name(admin.map(Principal::into_string)))
    };
    let write = async |mut user: Session<SessionMap>, mut admin: Session<SessionMap, Admin>| {
        user.insert("who", "user").unwrap();
        admin.insert("who", "admin").unwrap();
    };
    let read = async |user: Session<SessionMap>, admin: Session<SessionMap, Admin>| {
        let of = |map: &SessionMap| map.get::<String>("who").unwrap().unwrap_or_default();
        format!("{} {}", of(&user), of(&admin))
    };
    let admin_login = async |handle: SessionHandle<Admin>| handle.login("root").await;
    let admin_logout = async |handle: SessionHandle<Admin>| handle.destroy().await;
    let storage = MemoryStorage::new();
    let admins = SessionLayer::in_realm::<Admin>(storage.clone(), Policy::named("admin")).unwrap();
    let sessions = admins.sessions().clone();
    let app = routes()
        .route("/both", get(both))
        .route("/write", post(write))
        .route("/both-data", get(read))
        .route("/admin/login", post(admin_login))
        .route("/admin/logout", post(admin_logout))
        .layer(SessionLayer::new(storage, Policy::new()))
        .layer(admins);
    let mut jar = Jar::default();
    let mut who = async |method: &str, path: &str| {
        let (status, _) = jar.send(&app, method, path).await;
        assert!(status.is_success(), "{path}: {status}");
        let names: Vec<_> = jar.0.iter().map(|(name, _)| name.clone()).collect();
        let (_, both) = jar.send(&app, "GET", "/both").await;
        let (_, data) = jar.send(&app, "GET", "/both-data").await;
        (names, both, data)
    };
    let (names, both, _) = who("POST", "/login/ann").await;
    assert_eq!((names, &*both), (vec!["__Host-sid".to_owned()], "ann, nobody"));
    let (mut names, both, _) = who("POST", "/admin/login").await;
    names.sort();
    assert_eq!((names, &*both), (vec!["__Host-admin".into(), "__Host-sid".into()], "ann, root"));
    let (_, _, data) = who("POST", "/write").await;
    assert_eq!(data, "user admin");
    let (names, both, data) = who("POST", "/admin/logout").await;
    assert_eq!((names, &*both, &*data), (vec!["__Host-sid".into()], "ann, nobody", "user "));
    let (_, both, _) = who("POST", "/admin/login").await;
    assert_eq!(both, "ann, root");
    let (names, both, _) = who("POST", "/logout").await;
    assert_eq!((names, &*both), (vec!["__Host-admin".into()], "nobody, root"));
    // The principals of one realm are not those of the other.
    sessions.end_all("ann").await.unwrap();
    let (_, both, _) = who("POST", "/login/root").await;
    assert_eq!(both, "root, root");
    sessions.end_all("root").await.unwrap();
    assert_eq!(who("GET", "/untouched").await.1, "root, nobody");
}

#[tokio::test]
async fn the_token_of_one_realm_opens_nothing_in_another() {
    let storage = MemoryStorage::new();
    let [one, two] = ["one", "two"].map(|name| app(storage.clone(), Policy::named(name)));
    let mut client = Client::new(&one);
    client.post("/login/alice").await.expect(200);
    let mut stranger = Client::new(&two);
    stranger.cookie = client.cookie.map(|cookie| cookie.replace("-one=", "-two="));
    stranger.get("/me").await.expect(401);
}

#[tokio::test]
async fn two_different_layers_of_one_realm_are_a_mistake() {
    let storage = Watched::new(MemoryStorage::new());
    let layer = |name| SessionLayer::new(storage.clone(), Policy::named(name));
    let app = routes().layer(layer("one")).layer(layer("two"));
    for path in ["/untouched", "/read"] {
        let answer = Client::new(&app).get(path).await.expect(500);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
    assert_eq!(storage.operations(), 0);
}

#[tokio::test]
async fn the_same_layer_twice_is_meant_once() {
    let storage = Watched::new(MemoryStorage::new());
    let layer = SessionLayer::new(storage.clone(), Policy::new());
    let from_sessions = SessionLayer::from_sessions(layer.sessions().clone());
    let app = routes().layer(layer.clone()).layer(from_sessions).layer(layer);
    let mut client = Client::new(&app);
    let answer = client.post("/theme/dark").await.expect(200);
    assert_eq!((answer.set_cookies().len(), storage.operations()), (1, 1));
    let answer = client.post("/theme/light").await.expect(200);
    assert_eq!((answer.set_cookies().len(), storage.operations()), (0, 2));
    assert_eq!(answer.headers.get_all("vary").iter().count(), 1);
}

#[tokio::test]
async fn a_route_outside_of_the_layer_is_a_mistake() {
    for path in ["/read", "/maybe", "/required", "/me", "/recent", "/token", "/sessions"] {
        let answer = Client::new(&routes()).get(path).await.expect(500);
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{path}");
    }
    let admin = async |_: RequiredSession<Visitor, Admin>| {};
    let app = Router::new()
        .route("/admin", get(admin))
        .layer(SessionLayer::new(MemoryStorage::new(), Policy::new()));
    Client::new(&app).get("/admin").await.expect(500);
}

#[tokio::test]
async fn whoever_needs_to_log_in_is_sent_there() {
    let app = app(MemoryStorage::new(), Policy::new().with_login_redirect("/login?next=%2F"));
    let mut client = Client::new(&app);
    for path in ["/required", "/me", "/recent"] {
        let answer = client.get(path).await.expect(303);
        assert_eq!(answer.headers["location"], "/login?next=%2F", "{path}");
        assert_eq!(answer.headers["vary"], "Cookie");
        assert!(answer.headers["cache-control"].to_str().unwrap().contains("no-store"));
        assert!(answer.set_cookies().is_empty());
    }
    client.post("/count").await.expect(200);
    client.get("/required").await.expect(200);
    client.get("/me").await.expect(303);
    client.post("/login/alice").await.expect(200);
    for path in ["/required", "/me", "/recent"] {
        client.get(path).await.expect(200);
    }
}

/// Pages that say by mistake that everybody may keep them.
fn public_pages(runs: &Arc<AtomicUsize>) -> Router {
    let public = |body: String| ([("cache-control", "public, max-age=60")], body);
    let counted = |runs: &Arc<AtomicUsize>| {
        let runs = Arc::clone(runs);
        move || runs.fetch_add(1, SeqCst)
    };
    let count = counted(runs);
    let page = move |user: Option<Principal>| async move {
        count();
        public(format!("for {}", user.map_or("nobody".to_owned(), Principal::into_string)))
    };
    let count = counted(runs);
    let late = move |handle: SessionHandle| async move {
        count();
        handle.login("eve").await.unwrap();
        public("welcome".to_owned())
    };
    let count = counted(runs);
    let plain = move || async move {
        count();
        public("the same for all".to_owned())
    };
    routes().route("/page", get(page)).route("/welcome", get(late)).route("/plain", get(plain))
}

async fn get_page(app: &Router, cookie: Option<&str>, path: &str) -> (HeaderMap, String, Source) {
    let mut request = Request::get(path).header("host", "shop.example");
    if let Some(cookie) = cookie {
        request = request.header("cookie", cookie);
    }
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    assert_eq!(parts.status, StatusCode::OK);
    let body = body.collect().await.unwrap().to_bytes();
    let source = parts.extensions.get::<Outcome>().unwrap().source;
    (parts.headers, String::from_utf8(body.to_vec()).unwrap(), source)
}

#[tokio::test]
async fn no_cache_keeps_what_a_session_was_read_for() {
    // What no session was read for is everybody's, but not by every policy if there is a cookie.
    let policies =
        [(cache::Policy::http(), Source::Hit), (cache::Policy::output(MINUTE), Source::Passed)];
    for (policy, with_cookie) in policies {
        for cache_is_inside in [false, true] {
            let runs = Arc::default();
            let pages = public_pages(&runs);
            let session = SessionLayer::new(MemoryStorage::new(), Policy::new());
            let cache = CacheHandle::builder(MemoryStorage::new())
                .with_hit_for_miss(Duration::ZERO)
                .build();
            let cache = CacheLayer::from_handle(cache, policy.clone());
            let app = match cache_is_inside {
                true => pages.layer(cache).layer(session),
                false => pages.layer(session).layer(cache),
            };
            let mut alice = Client::new(&app);
            alice.post("/login/alice").await.expect(200);
            let mut bob = Client::new(&app);
            bob.post("/login/bob").await.expect(200);

            runs.store(0, SeqCst);
            for _ in 0..3 {
                for (client, name) in
                    [(&alice.cookie, "alice"), (&bob.cookie, "bob"), (&None, "nobody")]
                {
                    let (headers, body, source) = get_page(&app, client.as_deref(), "/page").await;
                    assert_eq!(body, format!("for {name}"), "inside: {cache_is_inside}");
                    assert_ne!(source, Source::Hit);
                    assert_eq!(headers["vary"], "Cookie");
                    assert_eq!(headers["cache-control"], "private, max-age=60");
                }
            }
            assert_eq!(runs.swap(0, SeqCst), 9);

            let mut cookies = Vec::new();
            for _ in 0..3 {
                let (headers, _, source) = get_page(&app, None, "/welcome").await;
                assert_ne!(source, Source::Hit);
                assert_eq!(headers["cache-control"], "private, no-store, max-age=60");
                cookies.push(headers["set-cookie"].clone());
            }
            assert_eq!(runs.swap(0, SeqCst), 3);
            assert!(cookies[0] != cookies[1] && cookies[1] != cookies[2]);

            get_page(&app, None, "/plain").await;
            assert_eq!(get_page(&app, None, "/plain").await.2, Source::Hit);
            assert_eq!(get_page(&app, alice.cookie.as_deref(), "/plain").await.2, with_cookie);
            let (headers, body, _) = get_page(&app, None, "/plain").await;
            assert_eq!(body, "the same for all");
            assert!(!headers.contains_key("set-cookie") && !headers.contains_key("vary"));
        }
    }
}

#[tokio::test]
async fn the_tier_of_a_limit_comes_from_the_session() {
    let tiers = Tiers::new().tier("member", [Quota::fixed_window(5, MINUTE)]);
    let policy = rate_limit::Policy::new("api", Quota::fixed_window(2, MINUTE))
        .with_key(KeyExtractor::global())
        .with_async_tiers(tiers, |head| {
            let handle = SessionHandle::<()>::of(head);
            async move {
                let handle = handle?;
                handle.load().await.ok()?;
                handle.principal().map(|_| "member")
            }
        });
    let storage = MemoryStorage::new();
    let limited = RateLimitLayer::new(storage.clone(), policy);
    let sessions = Sessions::new(storage, Policy::new());
    let logins = routes().layer(SessionLayer::from_sessions(sessions.clone()));
    let app = routes().layer(limited).layer(SessionLayer::from_sessions(sessions));
    let mut member = Client::new(&logins);
    member.post("/login/alice").await.expect(200);
    let mut stranger = Client::new(&app);
    for _ in 0..2 {
        stranger.get("/untouched").await.expect(200);
    }
    let answer = stranger.get("/untouched").await.expect(429);
    assert_eq!(answer.headers["vary"], "Cookie", "who asked was looked at");
    let mut same = Client::new(&app);
    same.cookie = member.cookie;
    for _ in 0..3 {
        same.get("/untouched").await.expect(200);
    }
    same.get("/me").await.expect(429);
}

async fn without_axum(request: Request<String>) -> Result<Response<String>, Infallible> {
    let handle = SessionHandle::<()>::of(RequestHead::new(&request)).expect("a layer is there");
    let answer = match request.uri().path() {
        "/count" => {
            let mut session = handle.session::<Visitor>().await.unwrap();
            session.update(|visitor| visitor.count += 1).await.unwrap();
            session.theme = "dark".to_owned();
            session.count.to_string()
        }
        "/login" => {
            handle.load().await.unwrap();
            handle.login(request.into_body()).await.unwrap();
            String::new()
        }
        "/who" => {
            handle.load().await.unwrap();
            format!("{:?} {}", handle.principal(), handle.exists())
        }
        _ => {
            let refusal = handle.reauthenticate().await.unwrap_err();
            return Ok(refusal.to_response().map(|body| format!("{body:?}")));
        }
    };
    Ok(Response::new(answer))
}

#[tokio::test]
async fn a_service_without_axum_has_its_handle_in_the_request() {
    assert!(SessionHandle::<()>::of(RequestHead::new(&Request::new(()))).is_none());
    let layer = SessionLayer::new(MemoryStorage::new(), Policy::new());
    let service = layer.layer(service_fn(without_axum));
    let mut cookie = None::<String>;
    let mut send = async |path: &str, body: &str| {
        let mut request = Request::builder().uri(path).header("user-agent", "a tower");
        if let Some(cookie) = &cookie {
            request = request.header("cookie", cookie);
        }
        let response =
            service.clone().oneshot(request.body(body.to_owned()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        if let Some(line) = parts.headers.get("set-cookie") {
            let pair = line.to_str().unwrap().split(';').next().unwrap();
            cookie = Some(pair.to_owned());
        }
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(send("/who", "").await, (200, "None false".to_owned()));
    assert_eq!(send("/prove", "").await.0, 401);
    assert_eq!(send("/count", "").await, (200, "1".to_owned()));
    assert_eq!(send("/count", "").await, (200, "2".to_owned()));
    assert_eq!(send("/login", "alice").await.0, 200);
    assert_eq!(send("/who", "").await, (200, "Some(\"alice\") true".to_owned()));
    let page = layer.sessions().list("alice", Default::default()).await.unwrap();
    assert_eq!(page.sessions[0].device.to_string(), "a tower");
}

/// Without optimisation a future is moved about on the stack, of which a thread has two megabytes.
#[tokio::test]
async fn what_a_handler_awaits_is_small() {
    let handler = async |handle: SessionHandle, mut session: Session<Visitor>| {
        let sizes = [
            size_of_val(&handle.load()),
            size_of_val(&handle.login("alice")),
            size_of_val(&handle.reauthenticate()),
            size_of_val(&handle.rotate()),
            size_of_val(&handle.destroy()),
            size_of_val(&handle.end_others()),
            size_of_val(&handle.list(SessionCursor::START)),
            { size_of_val(&session.save()) },
            { size_of_val(&session.update(|_| ())) },
        ];
        format!("{sizes:?} {}", sizes.iter().all(|size| *size < 10_000))
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(SessionLayer::new(MemoryStorage::new(), Policy::new()));
    let sizes = Client::new(&app).get("/").await.expect(200).text;
    assert!(sizes.ends_with("true"), "{sizes}");
}
