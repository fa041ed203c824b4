//! What happens while the storage gives no answer, and after that.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    body::Body,
    http::{Request, StatusCode},
    response::Response,
    routing::{get, post},
};
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage, RedisStorage, SessionLayer, Storage,
    session::{
        Notice, Outage, Policy, Principal, ReadSession, SaveFailure, Session, SessionHandle,
        SessionMap,
    },
    storage::{AnyStorage, ErrorKind},
};

use crate::{
    shop::{Answer, Client, Visitor, app, routes},
    support::{RedisServer, until},
    watched::Watched,
};

/// What a request may take whose storage does not answer: the policy's half a second, and as much
/// again and more for a busy test machine.
const DEADLINE: Duration = Duration::from_secs(3);

async fn storage(server: &RedisServer) -> AnyStorage {
    RedisStorage::builder().url(server.url()).prefix("outage").build().await.unwrap().erase()
}

async fn in_time(client: &mut Client, method: &str, path: &str) -> Answer {
    let began = Instant::now();
    let answer = client.send(method, path).await;
    assert!(began.elapsed() < DEADLINE, "{path} took {:?}", began.elapsed());
    answer
}

/// Waits until the client is who it was.
async fn is_back(client: &Client) {
    let ask = || async {
        let answer = client.clone().get("/me").await;
        (answer.status == StatusCode::OK).then_some(answer.text)
    };
    assert_eq!(until(Duration::from_secs(10), ask).await.0, "alice");
}

/// A client of `alice`, with a theme and a message that waits.
async fn alice(app: &Router) -> Client {
    let mut client = Client::new(app);
    let logged_in = || async {
        let mut client = Client::new(app);
        let answer = client.post("/login/alice").await;
        (answer.status == StatusCode::OK).then_some(client)
    };
    client.cookie = until(Duration::from_secs(10), logged_in).await.0.cookie;
    client.post("/theme/dark").await.expect(200);
    client.post("/flash/hello").await.expect(200);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_mute_requests_are_refused_in_time() {
    let server = RedisServer::start();
    let app = app(storage(&server).await, Policy::new());
    let mut client = alice(&app).await;
    let cookie = client.cookie.clone();
    server.pause_process();
    for (method, path) in [
        ("GET", "/read"),
        ("GET", "/required"),
        ("GET", "/me"),
        ("GET", "/recent"),
        ("GET", "/all"),
        ("GET", "/sessions"),
        ("GET", "/flash"),
        ("POST", "/count"),
        ("POST", "/theme/light"),
        ("POST", "/login/bob"),
        ("POST", "/rotate"),
        ("POST", "/prove"),
        ("POST", "/sessions/others"),
        ("POST", "/logout"),
    ] {
        let answer = in_time(&mut client, method, path).await.expect(503);
        assert_eq!(answer.headers["retry-after"], "1", "{path}");
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{path}");
        assert!(answer.set_cookies().is_empty(), "{path}");
    }
    // Who has no session needs none, until he begins one.
    let mut stranger = Client::new(&app);
    assert_eq!(in_time(&mut stranger, "GET", "/read").await.expect(200).json()["count"], 0);
    in_time(&mut stranger, "GET", "/me").await.expect(401);
    in_time(&mut stranger, "POST", "/login/bob").await.expect(503);
    in_time(&mut client, "GET", "/untouched").await.expect(200);
    // Optional sessions go on without.
    let answer = in_time(&mut client, "GET", "/maybe").await.expect(200);
    assert_eq!(answer.text, "null");
    assert!(answer.set_cookies().is_empty());
    server.resume();
    assert_eq!(client.cookie, cookie);
    is_back(&client).await;
    assert_eq!(client.get("/read").await.expect(200).json()["theme"], "dark");
    assert_eq!(client.get("/flash").await.expect(200).text, "\"hello\"");
    client.post("/logout").await.expect(200);
    client.get("/me").await.expect(401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_requests_are_refused_and_with_a_new_one_all_goes_on() {
    let mut server = RedisServer::start();
    let app = app(storage(&server).await, Policy::new());
    let mut client = alice(&app).await;
    let cookie = client.cookie.clone();
    server.kill();
    for path in ["/me", "/read", "/required"] {
        in_time(&mut client, "GET", path).await.expect(503);
    }
    in_time(&mut client, "POST", "/logout").await.expect(503);
    assert_eq!(client.cookie, cookie);
    server.restart();
    // It is empty: nobody has a session, and everybody can begin one.
    let answered = || async {
        let answer = client.clone().get("/me").await;
        (answer.status == StatusCode::UNAUTHORIZED).then_some(answer)
    };
    let (answer, _) = until(Duration::from_secs(10), answered).await;
    assert!(answer.set_cookies().is_empty(), "the cookie is nobody's business");
    let client = alice(&app).await;
    is_back(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_anonymous_outage_shows_an_empty_session_and_keeps_the_real_one() {
    let server = RedisServer::start();
    let policy = Policy::new().with_outage(Outage::Anonymous);
    let app = app(storage(&server).await, policy);
    let mut client = alice(&app).await;
    let cookie = client.cookie.clone();
    server.pause_process();
    for (method, path, status) in [
        ("GET", "/read", 200),
        ("GET", "/maybe", 200),
        ("GET", "/required", 401),
        ("GET", "/me", 401),
        ("GET", "/all", 200),
        ("GET", "/flash", 200),
        ("POST", "/theme/light", 200),
        ("POST", "/flash/lost", 200),
        ("POST", "/set/a/b", 204),
        // What has to be done at once cannot be.
        ("POST", "/count", 503),
        ("POST", "/login/bob", 503),
        ("POST", "/logout", 503),
        ("POST", "/sessions/others", 401),
    ] {
        let answer = in_time(&mut client, method, path).await.expect(status);
        assert!(answer.set_cookies().is_empty(), "{path}: {answer:?}");
        assert!(!answer.text.contains("dark") && !answer.text.contains("hello"), "{answer:?}");
    }
    server.resume();
    assert_eq!(client.cookie, cookie);
    is_back(&client).await;
    assert_eq!(client.get("/all").await.json(), serde_json::json!({ "theme": "dark" }));
    assert_eq!(client.get("/flash").await.text, "\"hello\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_that_fails_leaves_the_answer_and_is_told() {
    let server = Arc::new(RedisServer::start());
    let told = Arc::new(Mutex::new(Vec::new()));
    let notices = Arc::clone(&told);
    let policy = Policy::new()
        .with_observer(move |notice: &Notice| notices.lock().unwrap().push(notice.clone()));
    let handler = async |Extension(server): Extension<Arc<RedisServer>>,
                         mut session: Session<Visitor>| {
        session.theme = "light".to_owned();
        server.pause_process();
        "ordered"
    };
    let app = routes()
        .route("/order", post(handler))
        .layer(Extension(Arc::clone(&server)))
        .layer(SessionLayer::new(storage(&server).await, policy));
    let client = alice(&app).await;
    let request = Request::post("/order").header("cookie", client.cookie.clone().unwrap());
    let began = Instant::now();
    let response: Response =
        app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    server.resume();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("set-cookie"));
    let Some(SaveFailure::Unavailable(kind)) = response.extensions().get() else {
        panic!("{response:?}")
    };
    assert!(matches!(kind, ErrorKind::Timeout | ErrorKind::Unavailable), "{kind:?}");
    let told = told.lock().unwrap().clone();
    assert_eq!(told, [Notice::NotSaved(SaveFailure::Unavailable(*kind))]);
    is_back(&client).await;
}

/// Every way to ask for a session that need not be there.
#[tokio::test]
async fn whoever_can_do_without_a_session_does() {
    let optional = async |session: Option<Session<SessionMap>>,
                          read: Option<ReadSession<Visitor>>,
                          user: Option<Principal>| {
        format!("{} {} {}", session.is_some(), read.is_some(), user.is_some())
    };
    let write = async |session: Option<Session<SessionMap>>| {
        if let Some(mut session) = session {
            session.insert("written", &true).unwrap();
        }
    };
    for outage in [Outage::Closed, Outage::Anonymous] {
        let storage = Watched::new(MemoryStorage::new());
        let app = routes()
            .route("/optional", get(optional))
            .route("/write", post(write))
            .layer(SessionLayer::new(storage.clone(), Policy::new().with_outage(outage)));
        let mut client = alice(&app).await;
        assert_eq!(client.get("/optional").await.text, "true true true");
        storage.writes();
        storage.cut_off(true);
        let answer = client.get("/optional").await.expect(200);
        assert_eq!(answer.text, "false false false");
        assert!(answer.set_cookies().is_empty());
        let answer = client.post("/write").await.expect(200);
        assert!(answer.set_cookies().is_empty());
        storage.cut_off(false);
        assert_eq!(storage.writes(), 0);
        assert_eq!(client.get("/optional").await.text, "true true true");
        assert_eq!(client.get("/all").await.json(), serde_json::json!({ "theme": "dark" }));
    }
}

#[tokio::test]
async fn a_request_that_has_missed_its_session_begins_no_other_when_the_storage_is_back() {
    let write = async |Extension(storage): Extension<Watched>, mut session: Session<SessionMap>| {
        storage.cut_off(false);
        session.insert("written", &true).unwrap();
    };
    let at_once = async |Extension(storage): Extension<Watched>,
                         handle: SessionHandle,
                         mut session: Session<Visitor>| {
        storage.cut_off(false);
        let updated = session.update(|visitor| visitor.count += 1).await;
        let outcomes = [updated, handle.login("bob").await, handle.destroy().await];
        format!("{}", outcomes.iter().all(|outcome| outcome.is_err()))
    };
    let storage = Watched::new(MemoryStorage::new());
    let policy = Policy::new().with_outage(Outage::Anonymous);
    let app = routes()
        .route("/write", post(write))
        .route("/at-once", post(at_once))
        .layer(Extension(storage.clone()))
        .layer(SessionLayer::new(storage.clone(), policy));
    let mut client = alice(&app).await;
    storage.writes();
    for (path, text) in [("/write", ""), ("/at-once", "true")] {
        storage.cut_off(true);
        let answer = client.post(path).await.expect(200);
        assert_eq!(answer.text, text);
        assert!(answer.set_cookies().is_empty(), "{path}: {answer:?}");
        assert_eq!(storage.writes(), 0, "{path}");
    }
    is_back(&client).await;
    assert_eq!(client.get("/all").await.json(), serde_json::json!({ "theme": "dark" }));
}
