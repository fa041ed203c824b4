//! How a `RedisStorage` connects, seen from outside.
#![cfg(feature = "redis")]

mod support;

use std::time::Duration;

use support::{Proxy, RedisServer, answer_with, until};
use tower_keep::{
    RedisStorage, RedisStorageBuilder,
    bb8_redis::{RedisConnectionManager, bb8},
    storage::ErrorKind,
};

const LONG: Duration = Duration::from_secs(10);

/// With deadlines that a busy machine does not run out of.
fn patient(url: impl Into<String>) -> RedisStorageBuilder {
    RedisStorage::builder().url(url).decision_deadline(LONG).connect_timeout(LONG)
}

#[tokio::test]
async fn a_url_with_a_password_and_a_database_connects() {
    let server = RedisServer::start_with(&["--requirepass", "p@ss/word"]);
    let url = format!("redis://:p%40ss%2Fword@127.0.0.1:{}/3", server.port());
    let storage = patient(url).build().await.unwrap();
    storage.ping().await.unwrap();
    assert!(server.ask_all(&["AUTH p@ss/word", "INFO keyspace"]).contains("db3:keys=1"));
}

#[tokio::test]
async fn a_url_with_a_user_connects_with_the_permissions_that_the_error_names() {
    let server = RedisServer::start();
    let grant = "+@read +@write +@scripting +ping +time";
    assert!(server.ask(&format!("ACL SETUSER shop on >hunter2 ~tk:* {grant}")).starts_with("+OK"));
    let url = format!("redis://shop:hunter2@127.0.0.1:{}", server.port());
    patient(&url).build().await.unwrap().ping().await.unwrap();

    let error = patient(url).prefix("other").build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains(grant), "{error}");
}

#[tokio::test]
async fn a_wrong_password_user_or_database_is_refused_without_showing_the_password() {
    let server = RedisServer::start_with(&["--requirepass", "secret"]);
    let port = server.port();
    for (url, word) in [
        (format!("redis://:hunter2@127.0.0.1:{port}"), "password"),
        (format!("redis://nobody:hunter2@127.0.0.1:{port}"), "password"),
        (format!("redis://127.0.0.1:{port}"), "password"),
        (format!("redis://:secret@127.0.0.1:{port}/9999"), "database"),
    ] {
        let error = patient(url).build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(word), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("secret"), "{shown}");
    }
}

#[tokio::test]
async fn a_unix_socket_connects() {
    let server = RedisServer::start_unix();
    patient(server.url()).build().await.unwrap().ping().await.unwrap();
    let url = format!("{}?db=2", server.url());
    patient(url).build().await.unwrap().ping().await.unwrap();
    assert!(server.ask("INFO keyspace").contains("db2:keys=1"));
}

#[cfg(feature = "redis-tls")]
#[tokio::test]
async fn tls_connects_to_a_server_whose_certificate_is_trusted_and_to_no_other() {
    let server = RedisServer::start_tls();
    let builder = || patient(server.url());
    let storage = builder().root_certificate(server.certificate()).build().await.unwrap();
    storage.ping().await.unwrap();

    let error = builder().build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[cfg(not(feature = "redis-tls"))]
#[tokio::test]
async fn a_tls_url_without_the_feature_names_the_feature() {
    let error = RedisStorage::connect("rediss://localhost").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("`redis-tls`"), "{error}");
}

#[tokio::test]
async fn a_pool_of_the_users_is_only_asked_for_connections() {
    let server = RedisServer::start();
    let manager = RedisConnectionManager::new(server.url()).unwrap();
    let pool = bb8::Pool::builder().max_size(1).build_unchecked(manager);
    let held = pool.get().await.unwrap();
    let storage = RedisStorage::from_pool(pool.clone()).unwrap();
    until(LONG, || async { storage.ping().await.ok() }).await;
    assert_eq!(pool.state().connections, 1);
    drop(held);
}

#[tokio::test]
async fn an_outage_is_answered_at_once_and_ends_by_itself() {
    let mut server = RedisServer::start();
    let storage = RedisStorage::connect(server.url()).await.unwrap();
    server.stop();
    let (during, _) = until(LONG, || async {
        storage.ping().await.err().filter(|error| error.to_string().contains("until a probe"))
    })
    .await;
    assert_eq!(during.kind(), ErrorKind::Unavailable);
    server.restart();
    let (_, took) = until(LONG, || async { storage.ping().await.ok() }).await;
    assert!(took < Duration::from_millis(900), "{took:?}");
}

#[tokio::test]
async fn a_connection_that_breaks_is_replaced() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let storage = patient(proxy.url()).build().await.unwrap();
    for round in 2..5 {
        proxy.cut();
        until(LONG, || async { storage.ping().await.ok() }).await;
        assert!(proxy.opened() >= 2 * round, "{}", proxy.opened());
    }
}

#[tokio::test]
async fn a_server_of_another_kind_is_an_outage() {
    let port = answer_with(b"SSH-2.0-OpenSSH_9.2\r\n").await;
    let storage = patient(format!("redis://127.0.0.1:{port}")).build().await.unwrap();
    let error = storage.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("not the redis protocol"), "{error}");
}

#[tokio::test]
async fn debug_shows_no_password_and_no_secret() {
    let server = RedisServer::start_with(&["--requirepass", "hunter2"]);
    let url = format!("redis://:hunter2@127.0.0.1:{}", server.port());
    let builder = RedisStorage::builder().url(url).secret("hunter2 and then some");
    let before = format!("{builder:?}");
    let shown = format!("{before} {:?}", builder.build().await.unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");
}
