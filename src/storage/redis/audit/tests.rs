use proptest::prelude::*;

use super::*;
use crate::{
    MemoryStorage, Storage,
    storage::{
        Get, Identity, Key, Name,
        redis::tests::support::{RedisServer, until},
    },
};

#[cfg(feature = "tracing")]
#[path = "../../../../tests/support/log.rs"]
mod log;

const LONG: Duration = Duration::from_secs(10);

fn bulk(text: &str) -> Value {
    Value::BulkString(text.into())
}

fn findings(replies: &[Value]) -> Vec<RedisFinding> {
    let mut facts = Facts::default();
    replies.iter().for_each(|reply| facts.learn_from(reply));
    facts.findings()
}

fn config(name: &str, value: &str) -> Value {
    Value::Array(vec![bulk(name), bulk(value)])
}

const INFO: &str = "# Memory\r\nmaxmemory:52428800\r\nmaxmemory_human:50.00M\r\n\
                    maxmemory_policy:volatile-ttl\r\n\r\n# Persistence\r\naof_enabled:0\r\n\
                    # Replication\r\nrole:slave\r\n";

fn evicts() -> RedisFinding {
    RedisFinding::Evicts { policy: "volatile-ttl".to_owned(), maxmemory: 52_428_800 }
}

#[test]
fn info_alone_tells_of_eviction_and_of_a_replica() {
    assert_eq!(findings(&[bulk(INFO)]), [evicts(), RedisFinding::Replica]);
    let verbatim =
        Value::VerbatimString { format: redis::VerbatimFormat::Text, text: INFO.to_owned() };
    assert_eq!(findings(&[verbatim, Value::Nil]), [evicts(), RedisFinding::Replica]);
}

#[test]
fn config_alone_tells_of_eviction_and_persistence() {
    let replies = |save| {
        [
            config("maxmemory", "52428800"),
            Value::Map(vec![(bulk("maxmemory-policy"), bulk("volatile-ttl"))]),
            config("appendonly", "no"),
            config("save", save),
        ]
    };
    assert_eq!(findings(&replies("")), [evicts(), RedisFinding::NotPersistent]);
    assert_eq!(findings(&replies("3600 1 300 100")), [evicts()]);
}

#[test]
fn what_is_not_told_is_no_finding() {
    for replies in [
        vec![],
        vec![config("maxmemory", "52428800")],
        vec![config("maxmemory-policy", "allkeys-lru")],
        vec![config("maxmemory", "0"), config("maxmemory-policy", "allkeys-lru")],
        vec![config("maxmemory", "9"), config("maxmemory-policy", "noeviction")],
        vec![config("appendonly", "no")],
        vec![config("save", "")],
        vec![config("appendonly", "yes"), config("save", "")],
        vec![bulk("role:master\r\n")],
    ] {
        assert_eq!(findings(&replies), [], "{replies:?}");
    }
}

#[test]
fn a_servers_own_words_do_not_get_into_a_log() {
    let policy = "lru\u{1b}[2J; drop table";
    let replies = [config("maxmemory", "9"), config("maxmemory-policy", policy)];
    assert_eq!(findings(&replies), []);
}

proptest! {
    #[test]
    fn whatever_a_server_answers_is_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        fields in proptest::collection::vec(("[a-z_-]{0,20}", ":?", ".{0,20}"), 0..9),
        odd in any::<bool>(),
    ) {
        let lines: String =
            fields.iter().map(|(name, colon, value)| format!("{name}{colon}{value}\n")).collect();
        let mut items = vec![Value::Int(1), bulk(&lines), Value::BulkString(bytes.clone())];
        if odd {
            items.push(Value::Nil);
        }
        findings(&[Value::BulkString(bytes), bulk(&lines), Value::Array(items)]);
    }
}

#[test]
fn several_parameters_in_one_question_are_younger_than_redis_6_2() {
    for question in questions().cmd_iter().skip(1) {
        assert_eq!(question.args_iter().count(), 3);
    }
}

/// How often the server was asked for its configuration.
fn questions_to(server: &RedisServer) -> u64 {
    server.calls("config|get") / 4
}

async fn connected(server: &RedisServer) -> RedisStorage {
    RedisStorage::builder()
        .url(server.url())
        .entry_deadline(LONG)
        .decision_deadline(LONG)
        .connect_timeout(LONG)
        .build()
        .await
        .unwrap()
}

async fn asked(server: &RedisServer, times: u64) {
    until(LONG, || async { (questions_to(server) >= times).then_some(()) }).await;
}

#[tokio::test]
async fn however_many_layers_ask_a_server_is_looked_at_once() {
    let server = RedisServer::start();
    let storage = connected(&server).await;
    for _ in 0..3 {
        let any = storage.clone().erase();
        any.audit_for_claims();
        any.clone().audit_for_claims();
    }
    asked(&server, 1).await;
    storage.clone().erase().audit_for_claims();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(questions_to(&server), 1);
    let another = connected(&server).await.erase();
    another.audit_for_claims();
    asked(&server, 2).await;
}

#[tokio::test]
async fn nobody_asks_for_a_storage_without_claims() {
    let server = RedisServer::start();
    let any = connected(&server).await.erase();
    let key = Key::new(&Name::new("t"), &Name::new("d"), Identity::new("a"));
    any.get(&key, Get::new()).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(questions_to(&server), 0);
}

#[test]
fn without_a_runtime_nothing_happens_and_the_question_can_be_asked_again() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let any = runtime.block_on(connected(&server)).erase();
    any.audit_for_claims();
    MemoryStorage::new().erase().audit_for_claims();
    runtime.block_on(async {
        any.audit_for_claims();
        asked(&server, 1).await;
    });
}

#[tokio::test]
async fn a_server_that_comes_later_is_looked_at_then() {
    let mut server = RedisServer::stopped();
    let storage = connected(&server).await;
    storage.clone().erase().audit_for_claims();
    server.restart();
    sleep(Duration::from_millis(200)).await;
    assert_eq!(questions_to(&server), 0, "the audit itself connects to nothing");
    until(LONG, || async { storage.ping().await.ok() }).await;
    asked(&server, 1).await;
}

#[tokio::test]
async fn a_storage_that_was_never_connected_can_go() {
    let server = RedisServer::stopped();
    let builder = RedisStorage::builder().url(server.url());
    let storage = builder.build_unconnected().unwrap();
    let inner = Arc::downgrade(&storage.inner);
    let work = tokio::spawn(audit_when_connected(
        Arc::downgrade(&storage.inner),
        storage.inner.lanes.connected(),
    ));
    tokio::task::yield_now().await;
    assert!(!work.is_finished());
    drop(storage);
    assert!(inner.upgrade().is_none());
    tokio::time::timeout(LONG, work).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_is_mute_for_a_while_is_asked_again() {
    let server = RedisServer::start();
    let builder = RedisStorage::builder().url(server.url()).connect_timeout(LONG);
    let storage = builder.entry_deadline(Duration::from_millis(200)).build().await.unwrap();
    let any = storage.erase();
    server.pause_process();
    any.audit_for_claims();
    sleep(Duration::from_millis(500)).await;
    server.resume();
    // What the server was sent while it was mute it answers now, to nobody.
    asked(&server, 2).await;
}

#[cfg(feature = "tracing")]
mod logged {
    use super::{log::Log, *};

    async fn log_of(options: &[&str], prepare: impl AsyncFnOnce(&RedisServer) -> String) -> String {
        let (log, _guard) = Log::of_this_thread();
        let server = RedisServer::start_with(options);
        let url = prepare(&server).await;
        let builder = RedisStorage::builder().url(url).secret("a secret for this test");
        let builder = builder.entry_deadline(LONG).decision_deadline(LONG).connect_timeout(LONG);
        let storage = builder.build().await.unwrap();
        storage.clone().erase().audit_for_claims();
        let weak = Arc::downgrade(&storage.inner);
        // Asked or turned away; the task holds the storage until it has logged.
        until(LONG, || async {
            server.ask("INFO commandstats").contains("cmdstat_config|get").then_some(())
        })
        .await;
        drop(storage);
        until(LONG, || async { weak.upgrade().is_none().then_some(()) }).await;
        log.text()
    }

    #[tokio::test]
    async fn each_finding_is_a_warning_that_says_what_to_do() {
        let options = ["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"];
        let log = log_of(&options, async |server| server.url()).await;
        assert_eq!(log.matches(" WARN ").count(), 2, "{log}");
        for words in ["allkeys-lru", "set maxmemory-policy noeviction", "set appendonly yes"] {
            assert_eq!(log.matches(words).count(), 1, "{words}:\n{log}");
        }
    }

    #[tokio::test]
    async fn a_server_in_order_is_not_worth_a_word() {
        let log = log_of(&["--appendonly", "yes"], async |server| server.url()).await;
        assert_eq!(log.matches(" WARN ").count() + log.matches("ERROR").count(), 0, "{log}");
    }

    #[tokio::test]
    async fn a_server_that_forbids_the_question_is_not_worth_a_word() {
        let options = ["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"];
        let log = log_of(&options, async |server| {
            let grant = "+@read +@write +@scripting +ping +time";
            server.ask(&format!("ACL SETUSER shop on >hunter2 ~tk:* {grant}"));
            format!("redis://shop:hunter2@127.0.0.1:{}", server.port())
        })
        .await;
        assert_eq!(log.matches(" WARN ").count() + log.matches("ERROR").count(), 0, "{log}");
    }

    #[tokio::test]
    async fn a_mute_server_is_not_worth_a_word() {
        let (log, _guard) = Log::of_this_thread();
        let server = RedisServer::start();
        let builder = RedisStorage::builder().url(server.url()).secret("a secret for this test");
        let builder = builder.entry_deadline(Duration::from_millis(100)).connect_timeout(LONG);
        let any = builder.build().await.unwrap().erase();
        server.pause_process();
        any.audit_for_claims();
        // Two attempts.
        sleep(Duration::from_millis(1_500)).await;
        server.resume();
        let log = log.text();
        assert_eq!(log.matches(" WARN ").count() + log.matches("ERROR").count(), 0, "{log}");
    }
}
