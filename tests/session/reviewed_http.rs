//! What a review of HTTP, limits and the public face of sessions has found.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{Request, header},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tower_keep::{
    CacheLayer, MemoryStorage, RateLimitLayer, RequestHead, SessionLayer, Sessions, cache,
    rate_limit,
    session::{Policy, Session, SessionError, SessionHandle, SessionService},
};

use crate::{
    redis_storage,
    shop::{Answer, Client, Visitor, app, routes},
    support::RedisServer,
};

/// Sends cookie and bearer token, and keeps what is set.
async fn send_both(client: &mut Client, token: &str, method: &str, path: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::COOKIE, client.cookie.clone().unwrap_or_default());
    let answer = client.ask(request.body(Body::empty()).unwrap()).await;
    for line in answer.set_cookies() {
        let pair = line.split(';').next().unwrap();
        client.cookie = Some(pair.to_owned()).filter(|_| !line.contains("Max-Age=0"));
    }
    answer
}

#[tokio::test]
async fn a_client_that_sends_cookie_and_bearer_keeps_both_when_the_id_changes() {
    let prove = post(|handle: SessionHandle| async move {
        handle.reauthenticate().await?;
        Ok::<_, SessionError>(handle.token().unwrap().expose())
    });
    let app = routes()
        .route("/prove-by-bearer", prove)
        .layer(SessionLayer::new(MemoryStorage::new(), Policy::new().with_bearer()));
    let mut client = Client::new(&app);
    client.post("/login/alice").await.expect(200);
    let token = client.get("/token").await.expect(200).text;
    send_both(&mut client, &token, "GET", "/me").await.expect(200);
    let token = send_both(&mut client, &token, "POST", "/prove-by-bearer").await.expect(200).text;
    send_both(&mut client, &token, "GET", "/me").await.expect(200);
    send_both(&mut client, &token, "POST", "/logout").await.expect(200);
    assert_eq!(client.cookie, None, "the logout takes the cookie along");
}

#[tokio::test]
async fn a_save_after_the_session_has_ended_never_says_that_it_was_made() {
    let sessions = Sessions::new(MemoryStorage::new(), Policy::new());
    let outside = sessions.clone();
    let gone_twice = post(move |mut session: Session<Visitor>| {
        let outside = outside.clone();
        async move {
            outside.end_all("alice").await.unwrap();
            session.theme = "first".into();
            let first = session.save().await;
            session.theme = "second".into();
            let second = session.save().await;
            format!("{:?} {:?}", first.map_err(|e| e.is_gone()), second.map_err(|e| e.is_gone()))
        }
    });
    let destroyed = post(|mut session: Session<Visitor>| async move {
        session.handle().destroy().await.unwrap();
        session.theme = "after".into();
        format!("{:?}", session.save().await.map_err(|error| error.is_gone()))
    });
    let app = routes()
        .route("/gone-twice", gone_twice)
        .route("/destroyed", destroyed)
        .layer(SessionLayer::from_sessions(sessions));
    let mut client = Client::new(&app);
    client.post("/login/alice").await.expect(200);
    assert_eq!(client.post("/gone-twice").await.expect(200).text, "Err(true) Err(true)");
    client.post("/login/alice").await.expect(200);
    assert_eq!(client.post("/destroyed").await.expect(200).text, "Err(true)");
}

#[tokio::test]
async fn an_old_process_does_not_replace_the_cookie_of_a_session_of_a_newer_schema() {
    let storage = MemoryStorage::new();
    let old = app(storage.clone(), Policy::new());
    let new = app(storage, Policy::new().with_schema(1, |_, _| Ok(())));
    let mut at_old = Client::new(&old);
    at_old.post("/login/alice").await.expect(200);
    let mut at_new = Client::new(&new);
    at_new.cookie = at_old.cookie.clone();
    at_new.post("/theme/dark").await.expect(200);
    // The balancer sends the next request to the old one.
    at_old.post("/theme/light").await;
    at_new.cookie = at_old.cookie.clone();
    assert_eq!(at_new.get("/me").await.expect(200).text, "alice");
}

#[tokio::test(start_paused = true)]
async fn the_shortest_idle_timeout_slides() {
    let policy = Policy::new().with_idle_timeout(Duration::from_secs(1));
    let app = app(MemoryStorage::new(), policy);
    let mut client = Client::new(&app);
    client.post("/login/alice").await.expect(200);
    for _ in 0..5 {
        tokio::time::advance(Duration::from_millis(800)).await;
        client.get("/me").await.expect(200);
    }
}

#[test]
fn times_that_cannot_be_meant_are_refused() {
    let day = Duration::from_secs(86_400);
    for policy in [
        Policy::new().with_timeout(Duration::ZERO),
        Policy::new().with_rotation(Duration::ZERO),
        Policy::new().with_idle_timeout(day).with_touch_slack(day),
        Policy::new().with_touch_slack(Duration::MAX),
    ] {
        assert!(Sessions::try_new(MemoryStorage::new(), policy.clone()).is_err(), "{policy:?}");
    }
}

#[tokio::test]
async fn the_longest_timeout_and_grace_harm_nothing() {
    let server = RedisServer::start();
    let policy = Policy::new().with_timeout(Duration::MAX).with_rotation_grace(Duration::MAX);
    let app = app(redis_storage(&server.url(), "long").await, policy);
    let mut client = Client::new(&app);
    client.post("/theme/light").await.expect(200);
    client.post("/theme/dark").await.expect(200);
    assert_eq!(client.get("/read").await.json()["theme"], "dark");
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Broken {
    theme: u64,
}

#[tokio::test]
async fn a_type_that_does_not_fit_may_be_read_while_another_is_saved() {
    let server = RedisServer::start();
    let both = post(|mut session: Session<Visitor>| async move {
        let handle = session.handle().clone();
        session.theme = "dark".into();
        let (saved, read) = tokio::join!(session.save(), handle.read::<Broken>());
        read.unwrap();
        format!("{}", saved.is_ok())
    });
    let app = routes()
        .route("/both", both)
        .route("/alive", get(|handle: SessionHandle| async move { handle.exists().to_string() }))
        .layer(SessionLayer::new(redis_storage(&server.url(), "both").await, Policy::new()));
    let mut client = Client::new(&app);
    client.post("/theme/light").await.expect(200);
    client.post("/both").await.expect(200);
    assert_eq!(client.get("/alive").await.expect(200).text, "true");
}

/// In the order that the documentation asks for.
#[tokio::test]
async fn a_rate_limit_by_user_leaves_the_cache_inside_of_use() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let fresh = [("cache-control", "max-age=60")];
    let news = get(move || async move { (fresh, counted.fetch_add(1, Relaxed).to_string()) });
    let me = get(move |handle: axum::Extension<SessionHandle>| async move {
        // Not even loaded by the handler itself.
        (fresh, handle.principal().unwrap_or_default())
    });
    let storage = MemoryStorage::new();
    let limit = rate_limit::Policy::new("api", "100/min".parse().unwrap()).with_async_key(|head| {
        let session: Option<SessionHandle> = SessionHandle::of(head);
        async move {
            let principal = session?.identify().await.ok()?;
            Some(principal.unwrap_or_else(|| "nobody".to_owned()))
        }
    });
    let app = Router::new()
        .route("/news", news)
        .route("/me", me)
        .layer(CacheLayer::new(storage.clone(), cache::Policy::http()))
        .layer(RateLimitLayer::new(storage.clone(), limit))
        .route(
            "/login/{user}",
            post(|Path(user): Path<String>, handle: SessionHandle| async move {
                handle.login(user).await
            }),
        )
        .layer(SessionLayer::new(storage, Policy::new()));
    let mut clients = [(); 3].map(|()| Client::new(&app));
    clients[1].post("/login/alice").await.expect(200);
    clients[2].post("/login/bob").await.expect(200);
    for client in &mut clients {
        let answer = client.get("/news").await.expect(200);
        assert!(!answer.headers.contains_key("vary"), "{answer:?}");
    }
    assert_eq!(runs.load(Relaxed), 1, "the handler reads no session");
    for (client, name) in clients.iter_mut().zip(["", "alice", "bob"]) {
        let answer = client.get("/me").await.expect(200);
        assert_eq!(answer.text, name, "who tells of the session is not stored");
        assert_eq!(answer.headers["vary"], "Cookie");
    }
}

fn is_send_and_sync<T: Send + Sync + 'static>() {}
fn is_send<T: Send>() {}

#[test]
fn public_types_can_be_shared() {
    is_send_and_sync::<Policy>();
    is_send_and_sync::<Sessions>();
    is_send_and_sync::<SessionLayer>();
    is_send_and_sync::<SessionHandle>();
    is_send_and_sync::<SessionError>();
    is_send_and_sync::<tower_keep::session::SessionRejection>();
    is_send_and_sync::<tower_keep::session::SessionService<Router>>();
    is_send_and_sync::<Session<Visitor>>();
    is_send::<tower_keep::session::ResponseFuture<std::future::Ready<()>, Body>>();
}

/// An inner service and bodies that stay in their thread.
#[tokio::test]
async fn a_service_that_is_not_send_can_have_sessions() {
    use tower::{Service, ServiceExt};
    let here = std::rc::Rc::new(());
    let inner = tower::service_fn(move |request: Request<std::rc::Rc<()>>| {
        let (here, handle) = (here.clone(), <SessionHandle>::of(RequestHead::new(&request)));
        async move {
            handle.unwrap().flash("a", &1).await.unwrap();
            Ok::<_, std::convert::Infallible>(axum::http::Response::new(here))
        }
    });
    let mut service =
        SessionService::new(inner, Sessions::new(MemoryStorage::new(), Policy::new()));
    let request = Request::new(std::rc::Rc::new(()));
    let answer = service.ready().await.unwrap().call(request).await.unwrap();
    assert!(answer.headers().contains_key(header::SET_COOKIE));
    assert!(answer.headers()[header::SET_COOKIE].is_sensitive());
}
