//! The lanes against a real server, with trivial scripts in place of operations.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use redis::Value;

use super::{
    RedisStorage, RedisStorageBuilder,
    call::{Call, Script},
    lanes::Class,
};
use crate::storage::{
    Error, ErrorKind, Get, Identity, Invalidation, Key, Name, Put, Result, Storage, Tag, Tags,
};

#[path = "../../../tests/support/mod.rs"]
pub(crate) mod support;

use support::{Proxy, RedisServer, answer_with, until};

const MS: Duration = Duration::from_millis(1);
/// What a deadline or an answer "at once" may be late by on a machine that does other work.
const SLACK: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(10);

static ECHO: LazyLock<Script> = LazyLock::new(|| Script::new(&["return ARGV[1]"]));
static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new(&["return redis.call('INCR', KEYS[1])"]));
static SPIN: LazyLock<Script> = LazyLock::new(|| Script::new(&["while true do end"]));

fn echo(text: &str) -> Call {
    Call {
        script: &ECHO,
        keys: vec![b"tk:{k}".to_vec()],
        args: vec![text.as_bytes().to_vec()],
        repeatable: true,
        large: false,
    }
}

fn count() -> Call {
    Call {
        script: &COUNT,
        keys: vec![b"tk:{k}".to_vec()],
        args: vec![],
        repeatable: false,
        large: false,
    }
}

async fn run(storage: &RedisStorage, call: &Call) -> Result<Value> {
    storage.inner.lanes.enter(Class::Decision).await?.run(call).await
}

/// With the deadlines of a service, for tests of what happens at the deadline.
fn hasty(url: &str) -> RedisStorageBuilder {
    RedisStorage::builder().url(url).secret("a secret for these tests")
}

/// With deadlines that a busy machine does not run out of.
fn builder(url: &str) -> RedisStorageBuilder {
    patient(hasty(url))
}

fn patient(builder: RedisStorageBuilder) -> RedisStorageBuilder {
    builder.decision_deadline(LONG).entry_deadline(LONG).connect_timeout(LONG)
}

async fn heals(storage: &RedisStorage) -> Duration {
    until(LONG, || async { run(storage, &echo("x")).await.ok() }).await.1
}

/// Calls until the breaker is open; returns the longest call and the first error.
async fn fails_until_open(storage: &RedisStorage) -> (Duration, Error) {
    let (mut longest, mut first) = (Duration::ZERO, None);
    loop {
        let began = Instant::now();
        let error = run(storage, &echo("x")).await.unwrap_err();
        longest = longest.max(began.elapsed());
        if error.to_string().contains("until a probe") {
            return (longest, first.unwrap_or(error));
        }
        first = first.or(Some(error));
    }
}

async fn fastest_of_ten(storage: &RedisStorage) -> Duration {
    let mut fastest = LONG;
    for _ in 0..10 {
        let began = Instant::now();
        let _ = run(storage, &echo("x")).await;
        fastest = fastest.min(began.elapsed());
    }
    fastest
}

#[tokio::test]
async fn a_server_that_is_down_at_the_start_is_no_error_and_heals() {
    let mut server = RedisServer::stopped();
    let storage = builder(&server.url()).build().await.unwrap();
    let began = Instant::now();
    let error = run(&storage, &echo("x")).await.unwrap_err();
    assert!(began.elapsed() < SLACK);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_transient());
    server.restart();
    assert!(heals(&storage).await < Duration::from_millis(900));
}

#[tokio::test]
async fn a_server_that_is_killed_in_use_and_restarted_is_found_again() {
    let mut server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    assert_eq!(run(&storage, &count()).await.unwrap(), Value::Int(1));
    let epoch = storage.inner.lanes.links().epoch();
    server.kill();
    let (longest, first) = fails_until_open(&storage).await;
    assert!(longest < 100 * MS + SLACK, "{longest:?}");
    assert_eq!(first.kind(), ErrorKind::Unavailable);
    server.restart();
    heals(&storage).await;
    assert_eq!(run(&storage, &count()).await.unwrap(), Value::Int(1));
    assert!(storage.inner.lanes.links().epoch() > epoch);
}

#[tokio::test]
async fn a_mute_server_costs_the_deadline_and_then_nothing() {
    let server = RedisServer::start();
    let storage = hasty(&server.url()).build().await.unwrap();
    heals(&storage).await;
    server.pause_process();
    let (longest, first) = fails_until_open(&storage).await;
    assert_eq!(first.kind(), ErrorKind::Timeout);
    assert!(longest < 100 * MS + SLACK, "{longest:?}");
    assert!(fastest_of_ten(&storage).await < 2 * MS);
    server.resume();
    assert!(heals(&storage).await < Duration::from_millis(2000));
}

#[tokio::test]
async fn a_wave_of_calls_on_a_mute_server_ends_within_the_deadline() {
    let server = RedisServer::start();
    let storage = Arc::new(hasty(&server.url()).build().await.unwrap());
    heals(&storage).await;
    server.pause_process();
    let began = Instant::now();
    let wave: Vec<_> = (0..200)
        .map(|_| {
            let storage = storage.clone();
            tokio::spawn(async move { run(&storage, &echo("x")).await })
        })
        .collect();
    for call in wave {
        call.await.unwrap().unwrap_err();
    }
    assert!(began.elapsed() < 100 * MS + 2 * SLACK, "{:?}", began.elapsed());
    server.resume();
    heals(&storage).await;
}

#[tokio::test]
async fn a_half_open_connection_is_left_within_a_few_calls() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let storage = hasty(&proxy.url()).build().await.unwrap();
    heals(&storage).await;
    proxy.half_open();
    assert!(heals(&storage).await < Duration::from_millis(1000));
}

#[tokio::test]
async fn a_probe_takes_a_fresh_connection() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let storage = hasty(&proxy.url()).decision_deadline(300 * MS).build().await.unwrap();
    heals(&storage).await;
    proxy.half_open();
    let wave: Vec<_> = (0..16)
        .map(|_| {
            let storage = storage.clone();
            tokio::spawn(async move { run(&storage, &echo("x")).await })
        })
        .collect();
    for call in wave {
        call.await.unwrap().unwrap_err();
    }
    // One wave is one strike against the connection, and still the first call that is let through
    // must not go over it.
    let (probe, _) = until(LONG, || async {
        let reply = run(&storage, &echo("x")).await;
        let refused = reply.as_ref().is_err_and(|e| e.to_string().contains("until a probe"));
        (!refused).then_some(reply)
    })
    .await;
    probe.unwrap();
}

#[tokio::test]
async fn a_half_open_connection_is_left_even_if_every_caller_gives_up_early() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let storage = hasty(&proxy.url()).build().await.unwrap();
    heals(&storage).await;
    proxy.half_open();
    let (_, took) = until(LONG, || async {
        tokio::time::timeout(20 * MS, run(&storage, &echo("x"))).await.ok()?.ok()
    })
    .await;
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn a_connection_that_was_cut_while_idle_loses_no_call() {
    let server = RedisServer::start();
    let storage = builder(&server.url()).idle(20 * MS).build().await.unwrap();
    for round in 1..=3 {
        server.ask("CLIENT KILL TYPE normal SKIPME yes");
        tokio::time::sleep(30 * MS).await;
        // A wave: only the first asks, and none goes ahead of it.
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let storage = storage.clone();
                tokio::spawn(async move { run(&storage, &count()).await })
            })
            .collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert_eq!(server.ask("GET tk:{k}").lines().nth(1), Some(&*(20 * round).to_string()));
    }
}

#[tokio::test]
async fn a_read_is_repeated_on_a_connection_that_is_found_closed_and_a_write_is_not() {
    let server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    run(&storage, &count()).await.unwrap();
    server.ask("CLIENT KILL TYPE normal SKIPME yes");
    assert_eq!(run(&storage, &echo("x")).await.unwrap(), Value::BulkString(b"x".to_vec()));
    server.ask("CLIENT KILL TYPE normal SKIPME yes");
    assert_eq!(run(&storage, &count()).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(run(&storage, &count()).await.unwrap(), Value::Int(2));
}

#[tokio::test]
async fn bytes_that_are_not_the_protocol_are_an_error() {
    for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\0\xff\0\xff\r\n", b"*-7\r\n", b"$9"]
    {
        let port = answer_with(bytes).await;
        let storage = builder(&format!("redis://127.0.0.1:{port}")).build().await.unwrap();
        let error = run(&storage, &echo("x")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_sent_again_unnoticed() {
    let server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    for expected in 1..=3 {
        assert_eq!(run(&storage, &count()).await.unwrap(), Value::Int(expected));
        server.ask("SCRIPT FLUSH");
    }
    let before = (server.calls("evalsha"), server.calls("eval"));
    run(&storage, &count()).await.unwrap();
    run(&storage, &count()).await.unwrap();
    // Once without success, once with the text, once by name.
    assert_eq!((server.calls("evalsha"), server.calls("eval")), (before.0 + 2, before.1 + 1));
}

#[tokio::test]
async fn a_master_that_became_a_replica_and_comes_back_is_found_again() {
    let server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    run(&storage, &count()).await.unwrap();
    let epoch = storage.inner.lanes.links().epoch();
    server.ask("REPLICAOF 127.0.0.1 1");
    let (first, _) = until(LONG, || async { run(&storage, &count()).await.err() }).await;
    assert_eq!(first.kind(), ErrorKind::Unavailable);
    assert!(first.to_string().contains("replica"), "{first}");
    server.ask("REPLICAOF NO ONE");
    heals(&storage).await;
    run(&storage, &count()).await.unwrap();
    assert!(storage.inner.lanes.links().epoch() > epoch);
}

#[tokio::test]
async fn an_answer_that_is_an_error_opens_no_breaker_and_keeps_the_connection() {
    let server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    server.ask("LPUSH tk:{k} x");
    for _ in 0..20 {
        assert_eq!(run(&storage, &count()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    }
    server.ask("CONFIG SET maxmemory 1");
    server.ask("DEL tk:{k}");
    for _ in 0..20 {
        assert_eq!(run(&storage, &count()).await.unwrap_err().kind(), ErrorKind::Full);
    }
    server.ask("CONFIG SET maxmemory 0");
    run(&storage, &count()).await.unwrap();
    assert_eq!(storage.inner.lanes.links().epoch(), 1);
}

#[tokio::test]
async fn a_server_held_up_by_a_script_heals_after_script_kill() {
    let server = RedisServer::start_with(&["--lua-time-limit", "20"]);
    let storage = hasty(&server.url()).build().await.unwrap();
    let spin = Call { script: &SPIN, ..echo("x") };
    assert_eq!(run(&storage, &spin).await.unwrap_err().kind(), ErrorKind::Timeout);
    fails_until_open(&storage).await;
    assert!(server.ask("SCRIPT KILL").starts_with("+OK"));
    heals(&storage).await;
}

#[tokio::test]
async fn a_large_body_does_not_hold_decisions_up() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let storage = builder(&proxy.url()).build().await.unwrap();
    assert_eq!(proxy.opened(), 2);
    let body = "x".repeat(1 << 20);
    let large = Call { large: true, ..echo(&body) };
    let ticket = storage.inner.lanes.enter(Class::Entry).await.unwrap();
    assert_eq!(ticket.epoch(), 1);
    assert_eq!(ticket.run(&large).await.unwrap(), Value::BulkString(body.into_bytes()));
    let clients = server.ask("CLIENT LIST TYPE normal");
    let evals = clients.lines().filter(|line| line.contains("cmd=eval")).count();
    assert_eq!(evals, 1, "{clients}");
    run(&storage, &echo("x")).await.unwrap();
    let clients = server.ask("CLIENT LIST TYPE normal");
    assert_eq!(clients.lines().filter(|line| line.contains("cmd=eval")).count(), 2, "{clients}");
}

#[tokio::test]
async fn a_purge_of_thousands_of_tags_does_not_go_before_decisions() {
    let server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    let tags: Vec<_> = (0..5_000_u32).map(|n| Tag::new(n.to_be_bytes())).collect();
    storage.invalidate(&Name::new("cache"), Tags::Any(&tags), Invalidation::Hard).await.unwrap();
    run(&storage, &echo("x")).await.unwrap();
    let clients = server.ask("CLIENT LIST TYPE normal");
    assert_eq!(clients.lines().filter(|line| line.contains("cmd=eval")).count(), 2, "{clients}");
}

#[tokio::test]
async fn a_lookup_of_a_large_value_does_not_go_before_decisions() {
    let server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    // When a connection is made, `PING` is the last that it says.
    let unused = || {
        let clients = server.ask("CLIENT LIST TYPE normal");
        clients.lines().filter(|line| line.contains("cmd=ping")).count()
    };
    assert_eq!(unused(), 2);
    let key = Key::new(&Name::new("cache"), &Name::new("page"), Identity::new("/"));
    storage.get(&key, Get::new()).await.unwrap();
    run(&storage, &echo("x")).await.unwrap();
    assert_eq!(unused(), 1, "they share the small lane");
    storage.get(&key, Get::new().with_large_value()).await.unwrap();
    assert_eq!(unused(), 0);
}

#[tokio::test]
async fn a_caller_with_a_short_deadline_does_not_keep_a_slow_network_from_connecting() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    proxy.delay(25 * MS);
    // Connecting takes six pieces of 25 ms, the deadline is 80.
    let storage = hasty(&proxy.url()).decision_deadline(80 * MS).connect_timeout(LONG);
    let storage = storage.build_unconnected().unwrap();
    assert_eq!(run(&storage, &echo("x")).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(heals(&storage).await < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_cancelled_calls_leave_no_cross_talk() {
    let server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    let workers: Vec<_> = (0..20)
        .map(|worker| {
            let storage = storage.clone();
            tokio::spawn(async move {
                let mut cancelled = 0;
                for i in 0..1000 {
                    let text = format!("{worker}-{i}");
                    let call = echo(&text);
                    let limit = Duration::from_micros(i * 7 % 900);
                    match tokio::time::timeout(limit, run(&storage, &call)).await {
                        Ok(reply) => assert_eq!(reply.unwrap(), Value::BulkString(text.into())),
                        Err(_) => cancelled += 1,
                    }
                }
                cancelled
            })
        })
        .collect();
    let mut cancelled = 0;
    for worker in workers {
        cancelled += worker.await.unwrap();
    }
    // Not yet ten thousand: the rest are dropped after their first poll, which sends them.
    while cancelled < 10_000 {
        let (call, mut polls) = (echo("dropped"), 0);
        let mut pending = std::pin::pin!(run(&storage, &call));
        std::future::poll_fn(|cx| {
            polls += 1;
            let _ = pending.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
        cancelled += 1;
    }
    assert_eq!(run(&storage, &echo("last")).await.unwrap(), Value::BulkString(b"last".to_vec()));
    assert_eq!(storage.inner.lanes.links().epoch(), 1);
}

#[tokio::test]
async fn a_cancelled_probe_does_not_lock_the_breaker() {
    let mut server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    server.kill();
    fails_until_open(&storage).await;
    for _ in 0..300 {
        let call = echo("x");
        let mut pending = std::pin::pin!(run(&storage, &call));
        std::future::poll_fn(|cx| std::task::Poll::Ready(pending.as_mut().poll(cx).is_ready()))
            .await;
        tokio::time::sleep(MS).await;
    }
    server.restart();
    heals(&storage).await;
}

#[tokio::test]
async fn a_runtime_that_ends_while_connecting_does_not_lock_the_lanes() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    proxy.delay(50 * MS);
    let storage = builder(&proxy.url()).build_unconnected().unwrap();
    let other = storage.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(10 * MS, run(&other, &echo("x"))).await.unwrap_err();
        });
    })
    .join()
    .unwrap();
    proxy.delay(Duration::ZERO);
    heals(&storage).await;
}

#[tokio::test]
async fn storages_without_a_secret_share_the_one_in_the_store() {
    let server = RedisServer::start();
    let open =
        || async { patient(RedisStorage::builder().url(server.url())).build().await.unwrap() };
    let (a, b) = (open().await, open().await);
    let hash = |storage: RedisStorage| async move {
        let ticket = storage.inner.lanes.enter(Class::Decision).await.unwrap();
        ticket.hash_key().digest(&[b"x"])
    };
    assert_eq!(hash(a.clone()).await, hash(b.clone()).await);
    let life: u64 = server.ask("PTTL tk:secret").trim_matches([':', '\r', '\n']).parse().unwrap();
    assert!(life > 29 * 86_400_000, "{life}");
    let other =
        patient(RedisStorage::builder().url(server.url()).prefix("other")).build().await.unwrap();
    assert_ne!(hash(a).await, hash(other).await);
}

#[tokio::test]
async fn an_emptied_server_gets_its_secret_back_and_another_secret_is_adopted() {
    let mut server = RedisServer::start();
    let storage = patient(RedisStorage::builder().url(server.url())).build().await.unwrap();
    let hash = || async {
        let ticket = storage.inner.lanes.enter(Class::Decision).await.unwrap();
        ticket.hash_key().digest(&[b"x"])
    };
    let before = hash().await;
    server.restart();
    heals(&storage).await;
    assert_eq!(hash().await, before);

    server.restart();
    server.ask("SET tk:secret 0123456789abcdef0123456789abcdef");
    heals(&storage).await;
    assert_ne!(hash().await, before);
}

#[tokio::test]
async fn a_secret_that_changes_under_a_connection_is_adopted_with_a_new_epoch() {
    let server = RedisServer::start();
    let storage = patient(RedisStorage::builder().url(server.url())).build().await.unwrap();
    let before = storage.inner.lanes.enter(Class::Decision).await.unwrap();
    server.ask("SET tk:secret 0123456789abcdef0123456789abcdef");
    storage.inner.lanes.links().reread_secret_now().await;
    let after = storage.inner.lanes.enter(Class::Decision).await.unwrap();
    assert_eq!(after.epoch(), before.epoch() + 1);
    assert_ne!(after.hash_key(), before.hash_key());

    server.ask("DEL tk:secret");
    storage.inner.lanes.links().reread_secret_now().await;
    let healed = storage.inner.lanes.enter(Class::Decision).await.unwrap();
    assert_eq!(healed.hash_key(), after.hash_key());
    assert!(server.ask("GET tk:secret").contains("0123456789abcdef"));
}

#[tokio::test]
async fn a_purge_by_a_secret_that_was_replaced_is_not_acknowledged() {
    let server = RedisServer::start();
    let open =
        || async { patient(RedisStorage::builder().url(server.url())).build().await.unwrap() };
    let storage = open().await;
    let (namespace, tags) = (Name::new("cache"), [Tag::new("news")]);
    let key = Key::new(&namespace, &Name::new("page"), Identity::new("/"));
    let purge = || storage.invalidate(&namespace, Tags::Any(&tags), Invalidation::Hard);
    purge().await.unwrap();

    // The server lost its state, and a node that came up since has drawn another secret.
    server.ask("FLUSHALL");
    let other = open().await;
    let fence = other.get(&key, Get::new().with_fence()).await.unwrap().fence.unwrap();
    let put = Put::new("old news".into(), LONG).with_max_lifetime(LONG).with_fence(fence);
    other.put(&key, put.with_tags(&tags)).await.unwrap();
    server.ask("CLIENT KILL TYPE normal SKIPME yes");

    assert_eq!(purge().await.unwrap_err().kind(), ErrorKind::Unavailable);
    purge().await.unwrap();
    assert_eq!(storage.get(&key, Get::new()).await.unwrap().entry, None);
}

#[tokio::test]
async fn a_full_server_still_shares_its_secret() {
    let server = RedisServer::start();
    patient(RedisStorage::builder().url(server.url())).build().await.unwrap();
    server.ask("CONFIG SET maxmemory 1");
    let storage = patient(RedisStorage::builder().url(server.url())).build().await.unwrap();
    run(&storage, &echo("x")).await.unwrap();
    server.ask("DEL tk:secret");
    let storage = patient(RedisStorage::builder().url(server.url())).build().await.unwrap();
    assert!(run(&storage, &echo("x")).await.unwrap_err().to_string().contains("out of memory"));
}

#[tokio::test]
async fn a_password_that_is_refused_later_goes_through_the_breaker() {
    let server = RedisServer::start();
    let storage = builder(&server.url()).build().await.unwrap();
    server.ask("CONFIG SET requirepass hunter2");
    server.ask_all(&["AUTH hunter2", "CLIENT KILL TYPE normal SKIPME yes"]);
    let (_, first) = fails_until_open(&storage).await;
    assert_eq!(first.kind(), ErrorKind::Configuration, "{first}");
    server.ask_all(&["AUTH hunter2", "CONFIG SET requirepass \"\""]);
    heals(&storage).await;
}
