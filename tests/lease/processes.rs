//! Holders that are stopped, killed, cut off, or forgotten by the server.

use std::time::Duration;

use tokio::time::sleep;
use tower_keep::{
    Lease,
    lease::{Attempt, Extension, Leases},
};

use crate::{
    holder::{Acquired, Holder, PATIENCE, PREFIX, now},
    race::redis_storage,
    support::{Proxy, RedisServer, until},
};

/// Longer than any of these tests, for leases that do not end by themselves.
const LONG: Duration = Duration::from_secs(600);

/// Those who wait for the lease of the other process, in this one.
async fn others(server: &RedisServer) -> Leases {
    Leases::new(redis_storage(&server.url(), PREFIX).await, LONG)
}

async fn is_held(leases: &Leases, name: &str) -> bool {
    leases.try_acquire(name).await.unwrap().acquired().is_none()
}

async fn next(leases: &Leases, name: &str) -> Lease {
    leases.acquire(name, PATIENCE).await.unwrap().acquired().expect("it does not become free")
}

/// Nothing that the holder of before does or did takes this lease away.
async fn check_undisturbed(lease: &Lease, leases: &Leases, name: &str) {
    assert!(is_held(leases, name).await);
    assert_eq!(lease.extend().await.unwrap(), Extension::Extended);
}

/// Both kinds of holders: who extends by hand, and with a heartbeat.
async fn with_and_without_heartbeat(test: impl AsyncFn(bool, &'static str)) {
    tokio::join!(test(false, "manual"), test(true, "beating"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_was_stopped_for_too_long_finds_its_lease_lost_and_does_no_harm() {
    let server = RedisServer::start();
    let leases = others(&server).await;
    let ttl = Duration::from_millis(600);
    with_and_without_heartbeat(async |beats, name| {
        let mut holder = Holder::start(&server.url(), name, ttl, beats);
        let first = holder.acquire().await;
        if beats {
            // What ends it is the stop, not its time.
            sleep(ttl * 3 / 2).await;
            assert!(is_held(&leases, name).await);
            assert_eq!(holder.ask("state").await, "held");
        }
        holder.signal("-STOP");
        let second = next(&leases, name).await;
        assert!(now() >= first.began + ttl);
        assert!(second.fence() > first.fence);
        holder.signal("-CONT");
        assert_eq!(holder.ask("state").await, "lost");
        holder.lost().await;
        check_undisturbed(&second, &leases, name).await;
        assert_eq!(holder.ask("extend").await, "lost");
        assert_eq!(holder.ask("release").await, "false");
        check_undisturbed(&second, &leases, name).await;
        assert!(second.release().await.unwrap());
    })
    .await;
    server.check_keys(PREFIX);
}

/// Asks again and again, and checks by the shared clock what each answer says.
async fn check_end(leases: &Leases, name: &str, not_before: Duration, by: Duration) {
    loop {
        let sent = now();
        match leases.try_acquire(name).await.unwrap() {
            Attempt::Acquired(lease) => {
                let early = not_before.saturating_sub(now());
                assert!(early < Duration::from_millis(2), "it is free {early:?} too early");
                assert!(lease.release().await.unwrap());
                return;
            }
            Attempt::Held { remaining } => {
                assert!(sent <= by + Duration::from_millis(2), "it is still held");
                sleep(remaining.min(Duration::from_millis(5))).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_process_held_is_free_after_the_ttl_and_not_earlier() {
    let server = RedisServer::start();
    let leases = others(&server).await;
    let ttl = Duration::from_millis(900);
    let dies = async |name: &str, beats, order: Option<&str>| {
        let mut holder = Holder::start(&server.url(), name, ttl, beats);
        let Acquired { began, ended, .. } = holder.acquire().await;
        if beats {
            sleep(ttl).await;
        }
        match order {
            Some(order) => holder.tell(order).await,
            None => holder.signal("-KILL"),
        }
        holder.gone().await;
        match beats {
            // When the last beat was, only the dead one knows.
            true => check_end(&leases, name, began + ttl, now() + ttl).await,
            false => check_end(&leases, name, began + ttl, ended + ttl).await,
        }
    };
    tokio::join!(
        dies("killed", false, None),
        dies("killed-beating", true, None),
        dies("exited", false, Some("exit")),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_dropped_or_released_is_free_at_once() {
    let server = RedisServer::start();
    let leases = others(&server).await;
    with_and_without_heartbeat(async |beats, name| {
        let mut holder = Holder::start(&server.url(), name, LONG, beats);
        let mut fence = 0;
        for (order, answer) in [("drop", "dropped"), ("release", "true")] {
            let first = holder.acquire().await;
            assert!(is_held(&leases, name).await);
            assert_eq!(holder.ask(order).await, answer);
            let free = || async { leases.try_acquire(name).await.unwrap().acquired() };
            let (second, _) = until(PATIENCE, free).await;
            assert!(fence < first.fence && first.fence < second.fence());
            fence = second.fence();
            assert!(second.release().await.unwrap());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_whose_connection_was_cut_goes_on_when_it_is_back_in_time() {
    let server = RedisServer::start();
    let leases = others(&server).await;
    let proxy = Proxy::start(server.port()).await;
    let mut holder = Holder::start(&proxy.url(), "job", LONG, false);
    let first = holder.acquire().await;
    for cut in [Proxy::cut, Proxy::half_open, Proxy::cut] {
        let connections = proxy.opened();
        cut(&proxy);
        assert_eq!(holder.extend().await, "extended");
        assert!(proxy.opened() > connections, "it went on by the connection that was cut");
        assert_eq!(holder.ask("state").await, "held");
        assert!(is_held(&leases, "job").await);
    }
    assert_eq!(holder.ask("release").await, "true");
    assert!(next(&leases, "job").await.fence() > first.fence);

    // With a heartbeat it needs nobody's help.
    let ttl = Duration::from_secs(3);
    let mut holder = Holder::start(&proxy.url(), "beating", ttl, true);
    let first = holder.acquire().await;
    proxy.half_open();
    while now() < first.ended + ttl * 5 / 4 {
        assert!(is_held(&leases, "beating").await);
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(holder.ask("state").await, "held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_fires_before_the_next_one_gets_in_when_the_connection_does_not_come_back() {
    let server = RedisServer::start();
    let leases = others(&server).await;
    // One percent of it is what a busy machine may take to wake a process.
    let ttl = Duration::from_secs(4);
    with_and_without_heartbeat(async |beats, name| {
        let proxy = Proxy::start(server.port()).await;
        let mut holder = Holder::start(&proxy.url(), name, ttl, beats);
        let first = holder.acquire().await;
        proxy.set_partitioned(true);
        assert!(holder.ask("extend").await.starts_with("error"));
        assert_eq!(holder.ask("state").await, "held", "an error loses nothing");
        holder.tell("lost").await;
        let second = next(&leases, name).await;
        let entered = now();
        let lost = Duration::from_micros(holder.answer().await.parse().unwrap());
        assert!(lost < entered, "it was told {:?} too late", lost - entered);
        assert!(first.deadline < first.began + ttl && first.deadline <= entered);
        assert!(lost >= first.deadline, "it was told {:?} too early", first.deadline - lost);
        assert!(second.fence() > first.fence);
        // Back again it is of no use.
        proxy.set_partitioned(false);
        assert_eq!(holder.ask("extend").await, "lost");
        check_undisturbed(&second, &leases, name).await;
        assert_ne!(holder.ask("release").await, "true");
        check_undisturbed(&second, &leases, name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_server_has_forgotten_a_lease_its_holder_finds_it_lost() {
    let mut server = RedisServer::start();
    let leases = others(&server).await;
    // By hand: with somebody else in between, and with nobody. And by its heartbeat.
    let names = ["taken", "free", "beating"];
    let ttl = Duration::from_secs(6);
    let [mut taken, mut free, mut beating] = names.map(|name| {
        let ttl = if name == "beating" { ttl } else { LONG };
        Holder::start(&server.url(), name, ttl, name == "beating")
    });
    let (first, free_first) = (taken.acquire().await, free.acquire().await);
    let beating_first = beating.acquire().await;
    server.restart();
    let back = || async { leases.try_acquire("taken").await.ok()?.acquired() };
    let (second, _) = until(PATIENCE, back).await;
    assert!(second.fence() > first.fence);

    // Until somebody tells it, it cannot know; from then on there is one holder.
    assert_eq!(taken.ask("state").await, "held");
    assert_eq!(taken.extend().await, "lost");
    assert_eq!(taken.ask("state").await, "lost");
    assert_eq!(taken.ask("extend").await, "lost");
    assert_eq!(taken.ask("release").await, "false");
    check_undisturbed(&second, &leases, "taken").await;

    assert_eq!(free.extend().await, "lost", "what was forgotten is not taken back");
    assert!(!is_held(&leases, "free").await);
    let free_second = next(&leases, "free").await;
    assert!(free_second.fence() > free_first.fence);
    assert_eq!(free.ask("state").await, "lost");
    check_undisturbed(&free_second, &leases, "free").await;

    let lost = beating.lost().await;
    assert!(lost < beating_first.began + ttl * 3 / 4, "its beat did not tell it");
    assert!(!is_held(&leases, "beating").await);
    server.check_keys(PREFIX);
}
