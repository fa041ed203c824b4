//! What handlers keep in sessions, and what becomes of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::Path,
    http::{Request, StatusCode},
    middleware::{Next, from_fn},
    response::Response,
    routing::{get, post},
};
use futures_util::stream;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage, SessionLayer, Storage,
    session::{
        Notice, Policy, ReadSession, SaveFailure, Session, SessionError, SessionErrorKind,
        SessionHandle, SessionMap, Sessions,
    },
    storage::{Get, Put},
};

use crate::{
    shop::{Client, Visitor, app, routes},
    watched::Watched,
};

/// What was noticed, kept for the test to read.
#[derive(Clone, Default)]
struct Notices(Arc<Mutex<Vec<Notice>>>);

impl Notices {
    fn of(&self, policy: Policy) -> Policy {
        let notices = Arc::clone(&self.0);
        policy.with_observer(move |notice| notices.lock().unwrap().push(notice.clone()))
    }

    fn take(&self) -> Vec<Notice> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Basket {
    items: Vec<String>,
    voucher: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Profile {
    language: String,
}

#[tokio::test]
async fn extractors_of_one_request_see_one_another() {
    let before = async |mut visitor: Session<Visitor>, request: Request<Body>, next: Next| {
        visitor.count += 1;
        drop(visitor);
        let response: Response = next.run(request).await;
        response
    };
    let handler = async |handle: SessionHandle, mut first: Session<Visitor>| {
        assert_eq!(first.count, 1, "what the middleware has changed");
        first.theme = "dark".to_owned();
        drop(first);
        let second = handle.session::<Visitor>().await.unwrap();
        assert_eq!((second.count, &*second.theme), (1, "dark"));
        let mut map = handle.session::<SessionMap>().await.unwrap();
        assert_eq!(map.get::<u64>("count").unwrap(), Some(1));
        map.insert("cart", &[7]).unwrap();
        // Two at the same time: each sees what the other has not yet let go of as it was.
        let mut third = handle.session::<Visitor>().await.unwrap();
        third.count = 10;
        drop((map, third));
        let read: ReadSession<Visitor> = handle.read().await.unwrap();
        Json((*read).clone())
    };
    let storage = Watched::new(MemoryStorage::new());
    let app = routes()
        .route("/several", post(handler))
        .layer(from_fn(before))
        .layer(SessionLayer::new(storage.clone(), Policy::new()));
    let mut client = Client::new(&app);
    let answer = client.post("/several").await.expect(200);
    let wanted = json!({ "count": 10, "theme": "dark", "cart": [7] });
    assert_eq!(answer.json(), wanted);
    assert_eq!(storage.writes(), 1, "all of it is one write");
    assert_eq!(answer.set_cookies().len(), 1);
    let kept = Client::clone(&client).get("/required").await.expect(200).json();
    assert_eq!(kept, json!({ "count": 11, "theme": "dark", "cart": [7] }));
}

#[tokio::test]
async fn two_types_share_a_session_and_neither_loses_the_other() {
    let add = async |Path(item): Path<String>, mut basket: Session<Basket>| {
        basket.items.push(item);
    };
    let speak = async |Path(language): Path<String>, mut profile: Session<Profile>| {
        profile.language = language;
    };
    let both = async |basket: ReadSession<Basket>, profile: ReadSession<Profile>| {
        format!("{:?} in {}", basket.items, profile.language)
    };
    let app = Router::new()
        .route("/add/{item}", post(add))
        .route("/speak/{language}", post(speak))
        .route("/both", get(both))
        .layer(SessionLayer::new(MemoryStorage::new(), Policy::new()));
    let mut client = Client::new(&app);
    for path in ["/add/tea", "/speak/de", "/add/milk", "/speak/nl"] {
        client.post(path).await.expect(200);
    }
    assert_eq!(client.get("/both").await.text, r#"["tea", "milk"] in nl"#);
}

#[tokio::test]
async fn a_message_is_read_once() {
    let app = app(MemoryStorage::new(), Policy::new());
    let mut client = Client::new(&app);
    assert_eq!(client.get("/flash").await.text, "null");
    assert_eq!(client.cookie, None, "to ask begins no session");
    client.post("/flash/saved").await.expect(200);
    client.get("/untouched").await.expect(200);
    client.get("/read").await.expect(200);
    assert_eq!(client.get("/all").await.text, "{}", "messages are not among the data");
    assert_eq!(client.get("/flash").await.text, r#""saved""#);
    assert_eq!(client.get("/flash").await.text, "null");
    client.post("/flash/one").await.expect(200);
    client.post("/flash/two").await.expect(200);
    client.post("/login/alice").await.expect(200);
    assert_eq!(client.get("/flash").await.text, r#""two""#, "the last, over a login");
}

#[tokio::test]
async fn a_map_of_any_names() {
    let app = app(MemoryStorage::new(), Policy::new());
    let mut client = Client::new(&app);
    let mut wanted = BTreeMap::new();
    for name in ["a", "__proto__", "%C3%A4", "x".repeat(300).leak()] {
        client.post(&format!("/set/{name}/1{name}")).await.expect(204);
        wanted.insert(name.replace("%C3%A4", "ä"), format!("1{name}").replace("%C3%A4", "ä"));
    }
    assert_eq!(client.get("/all").await.json(), json!(wanted));
}

/// An application whose sessions are of this schema.
fn of_schema(storage: &MemoryStorage, version: u32, notices: &Notices) -> Router {
    let policy = Policy::new().with_schema(version, |from, data| {
        if from < 1
            && let Some(name) = data.take::<String>("name")?
        {
            data.insert("user", &name)?;
        }
        if data.contains("poison") {
            return Err("unheard of".into());
        }
        Ok(())
    });
    app(storage.clone(), notices.of(policy))
}

#[tokio::test]
async fn old_and_new_processes_run_side_by_side() {
    let storage = MemoryStorage::new();
    let notices = Notices::default();
    let old = app(storage.clone(), notices.of(Policy::new()));
    let new = of_schema(&storage, 1, &notices);
    let newer = of_schema(&storage, 2, &notices);
    let at = |app: &Router, client: &Client| {
        let mut same = Client::new(app);
        same.cookie = client.cookie.clone();
        same
    };
    let mut client = Client::new(&old);
    client.post("/set/name/ann").await.expect(204);

    // Seen by the new process, but not written: the old one still has it.
    let user = json!({ "user": "ann" });
    assert_eq!(at(&new, &client).get("/all").await.json(), user);
    assert_eq!(at(&newer, &client).get("/all").await.json(), user);
    assert_eq!(client.get("/all").await.json(), json!({ "name": "ann" }));

    // Written by the new one: the old one leaves it alone.
    at(&new, &client).post("/set/theme/dark").await.expect(204);
    let answer = client.get("/maybe").await.expect(200);
    assert_eq!(answer.text, "null");
    assert!(answer.set_cookies().is_empty());
    client.get("/required").await.expect(401);
    let both = json!({ "user": "ann", "theme": "dark" });
    assert_eq!(at(&new, &client).get("/all").await.json(), both);
    assert_eq!(at(&newer, &client).get("/all").await.json(), both);
    // Neither does it begin another in its place, whose cookie would take that of this one.
    let answer = client.post("/set/name/bob").await;
    assert!(answer.set_cookies().is_empty());
    assert_eq!(at(&new, &client).get("/all").await.json(), both);
    let refused = SaveFailure::Unavailable(tower_keep::storage::ErrorKind::Unavailable);
    assert_eq!(notices.take(), [Notice::NotSaved(refused)]);

    // What cannot be migrated is left as it is.
    let mut poisoned = Client::new(&old);
    poisoned.post("/set/poison/1").await.expect(204);
    assert_eq!(at(&new, &poisoned).get("/maybe").await.text, "null");
    assert_eq!(notices.take(), [Notice::Mismatch]);
    assert_eq!(poisoned.get("/all").await.json(), json!({ "poison": "1" }));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_put_aside_once() {
    let memory = MemoryStorage::new();
    let storage = Watched::new(memory.clone());
    let notices = Notices::default();
    let app = app(storage.clone(), notices.of(Policy::new()));
    let mut client = Client::new(&app);
    client.post("/set/a/b").await.expect(204);
    let [key] = &storage.keys("record")[..] else { panic!("{storage:?}") };
    let whole = memory.get(key, Get::new()).await.unwrap().entry.unwrap().value;
    let day = Duration::from_secs(24 * 3_600);
    let mut damages = vec![
        Bytes::new(),
        whole.slice(..whole.len() - 1),
        whole.slice(..12),
        Bytes::from([&whole[..], b"x"].concat()),
        Bytes::from(vec![b'x'; 1 << 20]),
        Bytes::from_static(b"{\"user\":\"admin\"}"),
    ];
    for at in [0, 4, 12, 13, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.to_vec();
        damaged[at] ^= 1;
        damages.push(damaged.into());
    }
    for damaged in damages {
        memory.put(key, Put::new(damaged.clone(), day)).await.unwrap();
        for _ in 0..3 {
            assert_eq!(client.get("/maybe").await.expect(200).text, "null", "{damaged:?}");
            client.get("/required").await.expect(401);
        }
        assert_eq!(notices.take(), [Notice::Corrupt], "once");
        assert!(memory.get(key, Get::new()).await.unwrap().entry.is_none());
        let [aside] = &storage.keys("quarantine")[..] else { panic!("{storage:?}") };
        assert_eq!(memory.get(aside, Get::new()).await.unwrap().entry.unwrap().value, damaged);
        let mut writer = client.clone();
        writer.post("/set/a/b").await.expect(204);
        assert_ne!(writer.cookie, client.cookie, "the id is not used again");
    }

    // Of another version of this crate: left where it is.
    let mut other = whole.to_vec();
    other[3] += 1;
    memory.put(key, Put::new(other.clone().into(), day)).await.unwrap();
    assert_eq!(client.get("/maybe").await.expect(200).text, "null");
    assert!(notices.take().is_empty());
    assert_eq!(memory.get(key, Get::new()).await.unwrap().entry.unwrap().value, other);
}

#[tokio::test]
async fn a_type_that_does_not_fit_counts_as_none_and_nothing_is_lost() {
    let notices = Notices::default();
    let app = app(MemoryStorage::new(), notices.of(Policy::new()));
    let mut client = Client::new(&app);
    client.post("/set/count/many").await.expect(204);
    client.post("/set/theme/dark").await.expect(204);
    let data = json!({ "count": "many", "theme": "dark" });
    for (path, status) in [("/read", 200), ("/required", 401), ("/maybe", 200)] {
        let answer = client.get(path).await.expect(status);
        assert!(answer.set_cookies().is_empty(), "{path}");
        assert_eq!(notices.take(), [Notice::Mismatch], "{path}");
    }
    assert_eq!(client.get("/maybe").await.text, "null");
    assert_eq!(client.get("/read").await.json()["theme"], "");
    assert_eq!(client.get("/all").await.json(), data);
    // What is written then is a session of its own.
    let mut writer = client.clone();
    writer.post("/theme/light").await.expect(200);
    assert_ne!(writer.cookie, client.cookie);
    assert_eq!(client.get("/all").await.json(), data);
    assert_eq!(writer.get("/read").await.json()["theme"], "light");
}

#[tokio::test]
async fn changes_are_saved_after_these_statuses() {
    let by_default = |status: u16| status < 500 && status != 408;
    let own = |status: u16| status == 503 || (200..300).contains(&status);
    let policies: [(Policy, &dyn Fn(u16) -> bool); 2] = [
        (Policy::new(), &by_default),
        (Policy::new().with_saves(move |status| own(status.as_u16())), &own),
    ];
    for (policy, is_saved) in policies {
        let app = app(MemoryStorage::new(), policy);
        for status in [101, 200, 204, 303, 304, 400, 401, 404, 408, 409, 429, 500, 503, 504] {
            let path = format!("/status/{status}");
            let mut client = Client::new(&app);
            client.post("/count").await.expect(200);
            client.post(&path).await.expect(status);
            let count = if is_saved(status) { 2 } else { 1 };
            assert_eq!(client.get("/read").await.json()["count"], count, "{status}");
            let mut first = Client::new(&app);
            let answer = first.post(&path).await;
            assert_eq!(answer.set_cookies().len(), usize::from(is_saved(status)), "{status}");
        }
    }
}

/// What goes wrong while a handler runs.
#[derive(Clone)]
struct Trouble {
    storage: Watched,
    sessions: Sessions,
}

fn troubled(policy: Policy) -> (Router, Trouble) {
    let storage = Watched::new(MemoryStorage::new());
    let sessions = Sessions::new(storage.clone(), policy);
    let trouble = Trouble { storage, sessions: sessions.clone() };
    let handler = async |Path(what): Path<String>,
                         Extension(trouble): Extension<Trouble>,
                         mut session: Session<Visitor>| {
        session.theme = what.clone();
        match &*what {
            "outage" => trouble.storage.cut_off(true),
            "gone" => trouble.sessions.end_all("alice").await.unwrap(),
            _ => {}
        }
        "done"
    };
    let app = routes()
        .route("/trouble/{what}", post(handler))
        .layer(Extension(trouble.clone()))
        .layer(SessionLayer::from_sessions(sessions));
    (app, trouble)
}

/// What was answered, and what the layer says of the save.
async fn post_with_failure(
    app: &Router,
    client: &Client,
    path: &str,
) -> (Response, Option<SaveFailure>) {
    let request = Request::post(path).header("cookie", client.cookie.clone().unwrap());
    let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let failure = response.extensions().get().copied();
    (response, failure)
}

#[tokio::test]
async fn what_cannot_be_saved_is_told_and_with_strict_saves_refused() {
    let unavailable = SaveFailure::Unavailable(tower_keep::storage::ErrorKind::Unavailable);
    for strict in [false, true] {
        let notices = Notices::default();
        let policy = notices.of(Policy::new());
        let (app, trouble) = troubled(if strict { policy.with_strict_saves() } else { policy });
        for (what, failure, status) in [
            ("nothing", None, 200),
            ("outage", Some(unavailable), if strict { 503 } else { 200 }),
            ("gone", Some(SaveFailure::Gone), if strict { 409 } else { 200 }),
        ] {
            let mut client = Client::new(&app);
            client.post("/login/alice").await.expect(200);
            let (response, seen) =
                post_with_failure(&app, &client, &format!("/trouble/{what}")).await;
            trouble.storage.cut_off(false);
            assert_eq!((response.status().as_u16(), seen), (status, failure), "{what}");
            assert!(!response.headers().contains_key("set-cookie"), "{what}");
            assert_eq!(response.headers().contains_key("retry-after"), status == 503);
            assert_eq!(notices.take(), Vec::from_iter(failure.map(Notice::NotSaved)));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body == "done", status == 200, "{what}");
            match what {
                "gone" => client.get("/me").await.expect(401),
                _ => client.get("/me").await.expect(200),
            };
            let theme = client.get("/read").await.json()["theme"].clone();
            assert_eq!(theme, if what == "nothing" { "nothing" } else { "" });
        }
    }
}

#[tokio::test]
async fn a_session_may_move_into_the_body_and_save_from_there() {
    let notices = Notices::default();
    let policy = notices.of(Policy::new());
    let stream = async |Path(how): Path<String>, mut session: Session<Visitor>| {
        session.theme = "head".to_owned();
        if how != "unsaved" {
            session.save().await.unwrap();
        }
        let body = stream::once(async move {
            if how != "unsaved" {
                session.theme = "body".to_owned();
            }
            if how == "save" {
                session.save().await.unwrap();
            }
            drop(session);
            Ok::<_, SessionError>(Bytes::from_static(b"data: done\n\n"))
        });
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(Body::from_stream(body))
            .unwrap()
    };
    let begin_late = async |handle: SessionHandle| {
        let body = stream::once(async move {
            let mut session = handle.session::<Visitor>().await?;
            session.theme = "late".to_owned();
            let kind = session
                .save()
                .await
                .map_err(|error| matches!(error.kind(), SessionErrorKind::HeadSent) as u8);
            let login = handle.login("alice").await.unwrap_err();
            let login = matches!(login.kind(), SessionErrorKind::HeadSent);
            Ok::<_, SessionError>(Bytes::from(format!("{kind:?} {login}")))
        });
        Body::from_stream(body)
    };
    let app = routes()
        .route("/stream/{how}", post(stream))
        .route("/late", post(begin_late))
        .layer(SessionLayer::new(MemoryStorage::new(), policy));
    for (how, at_head, at_end, late) in [
        ("save", "head", "body", false),
        ("change", "head", "head", true),
        ("unsaved", "first", "first", true),
    ] {
        let mut client = Client::new(&app);
        client.post("/theme/first").await.expect(200);
        let (response, failure) = post_with_failure(&app, &client, &format!("/stream/{how}")).await;
        assert_eq!((response.status(), failure), (StatusCode::OK, None));
        assert_eq!(client.get("/read").await.json()["theme"], at_head, "{how}");
        response.into_body().collect().await.unwrap();
        assert_eq!(client.get("/read").await.json()["theme"], at_end, "{how}");
        let wanted = late.then_some(Notice::NotSaved(SaveFailure::Late));
        assert_eq!(notices.take(), Vec::from_iter(wanted), "{how}");
    }
    let mut stranger = Client::new(&app);
    let answer = stranger.post("/late").await.expect(200);
    assert_eq!(answer.text, "Err(1) true");
    assert!(answer.set_cookies().is_empty());
}
