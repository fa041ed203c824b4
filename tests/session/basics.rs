//! What a session is for, on both storages.

use tower_keep::{
    MemoryStorage, SessionLayer, Sessions, Storage,
    session::{OverCap, Policy},
    storage::AnyStorage,
};

use crate::{
    redis_storage,
    shop::{Client, app, routes},
    support::RedisServer,
};

/// Runs a test in memory and on Redis.
async fn on_both<F>(test: impl Fn(AnyStorage) -> F)
where
    F: Future<Output = ()>,
{
    test(MemoryStorage::new().erase()).await;
    let server = RedisServer::start();
    test(redis_storage(&server.url(), "first").await).await;
    server.check_keys("first");
}

#[tokio::test]
async fn a_session_begins_with_the_first_write_and_ends_with_the_logout() {
    on_both(async |storage| {
        let app = app(storage, Policy::new());
        let mut client = Client::new(&app);
        let answer = client.get("/untouched").await.expect(200);
        assert!(answer.headers.get("vary").is_none() && answer.set_cookies().is_empty());
        let answer = client.get("/read").await.expect(200);
        assert_eq!(answer.json()["count"], 0);
        assert_eq!(answer.headers["vary"], "Cookie");
        assert!(answer.set_cookies().is_empty());
        client.get("/required").await.expect(401);
        assert_eq!(client.get("/maybe").await.text, "null");

        let answer = client.post("/count").await.expect(200);
        assert_eq!(answer.text, "1");
        assert_eq!(answer.headers["cache-control"], "private, no-store");
        let cookie = answer.set_cookies()[0].to_owned();
        assert!(cookie.starts_with("__Host-sid="), "{cookie}");
        assert!(cookie.contains("HttpOnly") && cookie.contains("Secure"), "{cookie}");

        let answer = client.post("/count").await.expect(200);
        assert_eq!(answer.text, "2");
        assert!(answer.set_cookies().is_empty(), "the cookie is there already");
        client.post("/theme/dark").await.expect(200);
        let answer = client.get("/required").await.expect(200);
        assert_eq!(answer.json(), serde_json::json!({ "count": 2, "theme": "dark", "cart": [] }));
        client.get("/me").await.expect(401);

        let old = client.clone();
        let answer = client.post("/login/alice").await.expect(200);
        assert_eq!(answer.set_cookies().len(), 1);
        assert_eq!(client.get("/me").await.text, "alice");
        assert_eq!(client.get("/read").await.json()["count"], 2, "the cart survives the login");
        assert_eq!(old.clone().get("/maybe").await.text, "null", "the old id is dead");

        let mut thief = client.clone();
        let answer = client.post("/logout").await.expect(200);
        assert!(answer.set_cookies()[0].contains("Max-Age=0"), "{answer:?}");
        assert_eq!(client.cookie, None);
        thief.get("/me").await.expect(401);
        assert_eq!(thief.get("/maybe").await.text, "null");
    })
    .await;
}

#[tokio::test]
async fn a_principal_sees_and_ends_its_sessions() {
    on_both(async |storage| {
        let app = app(storage, Policy::new());
        let mut clients = [(); 4].map(|()| Client::new(&app));
        let mut ids = Vec::new();
        for client in &mut clients {
            ids.push(client.post("/login/alice").await.expect(200).text);
        }
        let mut bob = Client::new(&app);
        bob.post("/login/bob").await.expect(200);

        let listed = clients[0].get("/sessions").await.expect(200).json();
        let listed = listed["sessions"].as_array().unwrap();
        assert_eq!(listed.len(), 4);
        for session in listed {
            assert_eq!(session["current"], session["id"] == *ids[0]);
        }
        bob.delete(&format!("/sessions/{}", ids[1])).await.expect(200);
        clients[1].get("/me").await.expect(200);
        clients[0].delete(&format!("/sessions/{}", ids[1])).await.expect(200);
        clients[1].get("/me").await.expect(401);
        let before = clients[0].cookie.clone();
        clients[0].post("/sessions/others").await.expect(200);
        assert_ne!(clients[0].cookie, before);
        assert_eq!(clients[0].get("/me").await.text, "alice");
        clients[2].get("/me").await.expect(401);
        clients[3].get("/me").await.expect(401);
        bob.get("/me").await.expect(200);
        let listed = clients[0].get("/sessions").await.expect(200).json();
        assert_eq!(listed["sessions"].as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_cap_ends_the_oldest_or_refuses_the_newest() {
    on_both(async |storage| {
        let policy = Policy::named("oldest").with_cap(2, OverCap::EndOldest);
        let oldest = app(storage.clone(), policy);
        let mut clients = [(); 3].map(|()| Client::new(&oldest));
        for client in &mut clients {
            client.post("/login/alice").await.expect(200);
        }
        clients[0].get("/me").await.expect(401);
        clients[1].get("/me").await.expect(200);
        clients[2].get("/me").await.expect(200);

        let policy = Policy::named("refuse").with_cap(2, OverCap::Refuse);
        let refuse = app(storage, policy);
        let mut clients = [(); 3].map(|()| Client::new(&refuse));
        clients[0].post("/login/alice").await.expect(200);
        clients[1].post("/login/alice").await.expect(200);
        clients[2].post("/login/alice").await.expect(409);
        clients[1].post("/logout").await.expect(200);
        clients[2].post("/login/alice").await.expect(200);
    })
    .await;
}

#[tokio::test]
async fn everybody_who_has_logged_in_can_be_logged_out_at_once() {
    on_both(async |storage| {
        let sessions = Sessions::new(storage, Policy::new());
        let app = routes().layer(SessionLayer::from_sessions(sessions.clone()));
        let [mut alice, mut bob, mut visitor] = [(); 3].map(|()| Client::new(&app));
        alice.post("/login/alice").await.expect(200);
        bob.post("/login/bob").await.expect(200);
        visitor.post("/count").await.expect(200);
        sessions.end_everybody().await.unwrap();
        alice.get("/me").await.expect(401);
        bob.get("/me").await.expect(401);
        assert_eq!(visitor.post("/count").await.expect(200).text, "2");
        alice.post("/login/alice").await.expect(200);
        assert_eq!(alice.get("/me").await.text, "alice");
    })
    .await;
}
