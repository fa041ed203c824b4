//! What a storage finds out about the server that it is on.
#![cfg(feature = "redis")]

mod support;

use std::time::{Duration, Instant};

use support::{Proxy, RedisServer, answer_with};
use tower_keep::{RedisFinding, RedisStorage, RedisStorageBuilder, storage::ErrorKind};

const LONG: Duration = Duration::from_secs(10);
const EVICTING: [&str; 4] = ["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"];
const DURABLE: [&str; 2] = ["--appendonly", "yes"];
/// What the error of a user without permissions says is needed.
const GRANT: &str = "+@read +@write +@scripting +ping +time";

/// With deadlines that a busy machine does not run out of.
fn patient(url: impl Into<String>) -> RedisStorageBuilder {
    let builder = RedisStorage::builder().url(url).secret("a secret for these tests");
    builder.entry_deadline(LONG).decision_deadline(LONG).connect_timeout(LONG)
}

async fn findings_at(url: impl Into<String>) -> Vec<RedisFinding> {
    patient(url).build().await.unwrap().audit().await.unwrap()
}

async fn findings(options: &[&str]) -> Vec<RedisFinding> {
    findings_at(RedisServer::start_with(options).url()).await
}

fn evicts(policy: &str) -> RedisFinding {
    RedisFinding::Evicts { policy: policy.to_owned(), maxmemory: 50 << 20 }
}

#[tokio::test]
async fn a_server_that_keeps_everything_is_in_order() {
    assert_eq!(findings(&DURABLE).await, []);
    assert_eq!(findings(&["--save", "3600 1"]).await, [], "a save point is enough");
    let full = ["--maxmemory", "50mb", "--maxmemory-policy", "noeviction"];
    assert_eq!(findings(&[&full[..], &DURABLE].concat()).await, []);
    let unbounded = ["--maxmemory-policy", "allkeys-lru"];
    assert_eq!(findings(&[&unbounded[..], &DURABLE].concat()).await, [], "nothing is ever evicted");
}

#[tokio::test]
async fn every_policy_that_evicts_keys_with_an_expiry_is_found() {
    let server = RedisServer::start_with(&[&EVICTING[..], &DURABLE].concat());
    let storage = patient(server.url()).build().await.unwrap();
    for policy in [
        "allkeys-lru",
        "allkeys-lfu",
        "allkeys-random",
        "volatile-lru",
        "volatile-lfu",
        "volatile-random",
        "volatile-ttl",
    ] {
        let set = server.ask(&format!("CONFIG SET maxmemory-policy {policy}"));
        assert!(set.starts_with("+OK"), "{set}");
        assert_eq!(storage.audit().await.unwrap(), [evicts(policy)]);
    }
}

#[tokio::test]
async fn a_server_that_forgets_at_a_restart_is_found() {
    assert_eq!(
        findings(&["--appendonly", "no", "--save", ""]).await,
        [RedisFinding::NotPersistent]
    );
    let both = findings(&EVICTING).await;
    assert_eq!(both, [evicts("allkeys-lru"), RedisFinding::NotPersistent]);
}

#[tokio::test]
async fn a_replica_is_found() {
    let primary = RedisServer::start();
    let port = primary.port().to_string();
    let replica = [&["--replicaof", "127.0.0.1", &port], &DURABLE[..]].concat();
    assert_eq!(findings(&replica).await, [RedisFinding::Replica]);
}

#[tokio::test]
async fn either_question_alone_tells_of_eviction_and_none_is_silence() {
    let server = RedisServer::start_with(&EVICTING);
    for (more, expected) in [
        ("", vec![]),
        ("+info", vec![evicts("allkeys-lru")]),
        ("+config|get", vec![evicts("allkeys-lru"), RedisFinding::NotPersistent]),
    ] {
        let user = format!("ACL SETUSER shop reset on >hunter2 ~tk:* {GRANT} {more}");
        assert!(server.ask(&user).starts_with("+OK"));
        let url = format!("redis://shop:hunter2@127.0.0.1:{}", server.port());
        for url in [format!("{url}?protocol=resp3"), url] {
            let storage = patient(url).build().await.unwrap();
            assert_eq!(storage.audit().await.unwrap(), expected, "{more}");
            storage.ping().await.unwrap();
        }
    }
}

#[tokio::test]
async fn commands_that_a_service_has_renamed_are_silence() {
    let hidden = ["--rename-command", "CONFIG", "", "--rename-command", "INFO", ""];
    assert_eq!(findings(&[&EVICTING[..], &hidden].concat()).await, []);
    let hidden = ["--rename-command", "CONFIG", ""];
    let found = findings(&[&EVICTING[..], &hidden].concat()).await;
    assert_eq!(found, [evicts("allkeys-lru")]);
}

#[tokio::test]
async fn a_server_that_says_nonsense_is_silence() {
    let nonsense: &[u8] =
        b"+PONG\r\n+PONG\r\n+maxmemory:1\r\n*3\r\n$9\r\nmaxmemory\r\n:7\r\n$-1\r\n";
    let port = answer_with(nonsense).await;
    let builder = patient(format!("redis://127.0.0.1:{port}"));
    let storage = builder.entry_deadline(Duration::from_millis(300)).build().await.unwrap();
    let answer = tokio::time::timeout(LONG, storage.audit()).await.unwrap();
    assert!(answer.is_err() || answer.is_ok_and(|findings| findings.is_empty()));
}

#[tokio::test]
async fn a_mute_server_is_an_error_within_the_deadline() {
    let server = RedisServer::start_with(&EVICTING);
    let proxy = Proxy::start(server.port()).await;
    let deadline = Duration::from_millis(300);
    let storage = patient(proxy.url()).entry_deadline(deadline).build().await.unwrap();
    proxy.half_open();
    let began = Instant::now();
    assert_eq!(storage.audit().await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(began.elapsed() < deadline + Duration::from_millis(500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_server_that_is_down_is_an_error() {
    let server = RedisServer::stopped();
    let storage = patient(server.url()).build().await.unwrap();
    assert_eq!(storage.audit().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[test]
fn each_finding_says_what_to_do() {
    for (finding, advice) in [
        (evicts("volatile-lru"), "set maxmemory-policy noeviction"),
        (RedisFinding::NotPersistent, "set appendonly yes"),
        (RedisFinding::Replica, "give the address of the primary"),
    ] {
        let text = finding.to_string();
        assert!(text.contains(advice), "{text}");
        assert!(!text.contains("  ") && !text.contains('\n'), "{text}");
    }
    assert!(evicts("volatile-lru").to_string().contains("volatile-lru"));
}
