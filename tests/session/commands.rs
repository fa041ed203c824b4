//! How many round trips each thing costs: on Redis, as the server counts its commands, and one after
//! another, as a clock counts them.

use std::time::Duration;

use tower_keep::{
    MemoryStorage, SessionLayer,
    session::{OverCap, Policy, Sessions},
};

use crate::{
    redis_storage,
    shop::{Client, app, routes},
    support::{RedisServer, monitor::Monitor, until},
    watched::{Watched, in_a_row},
};

const STEP: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_trips_on_redis() {
    let server = RedisServer::start();
    let storage = redis_storage(&server.url(), "commands").await;
    let policy = Policy::new()
        .with_timeout(Duration::from_secs(10))
        .with_idle_timeout(Duration::from_secs(3_600))
        .with_touch_slack(Duration::from_secs(3));
    let sessions = Sessions::new(storage, policy);
    let app = routes().layer(SessionLayer::from_sessions(sessions.clone()));
    // The server has the scripts, and the record of tags.
    let mut warm = Client::new(&app);
    for path in ["/count", "/login/warm", "/rotate", "/sessions/others", "/theme/w", "/logout"] {
        warm.post(path).await.expect(200);
    }
    warm.post("/login/warm").await.expect(200);
    sessions.end_all("warm").await.unwrap();
    let mut monitor = Monitor::start(&server);

    let mut client = Client::new(&app);
    client.get("/untouched").await.expect(200);
    client.get("/read").await.expect(200);
    monitor.expect(0, "without a cookie, read or not").await;
    client.post("/theme/dark").await.expect(200);
    monitor.expect(1, "without a cookie, written").await;
    client.get("/untouched").await.expect(200);
    monitor.expect(0, "a session that is not touched").await;

    client.get("/read").await.expect(200);
    monitor.count().await;
    let written = writes(&server);
    client.get("/read").await.expect(200);
    client.get("/read").await.expect(200);
    assert_eq!(writes(&server), written, "nothing is due");
    monitor.expect(2, "two reads").await;
    client.post("/theme/dark").await.expect(200);
    assert_eq!(writes(&server), written, "nothing has changed");
    monitor.expect(1, "a write that changes nothing").await;
    tokio::time::sleep(Duration::from_millis(3_200)).await;
    client.get("/read").await.expect(200);
    until(Duration::from_secs(5), || async { (writes(&server) > written).then_some(()) }).await;
    let what = "a read whose touch is due: one trip, and a touch that nobody waits for";
    monitor.expect(3, what).await;

    client.post("/theme/light").await.expect(200);
    monitor.expect(2, "a write: the lookup and the put").await;
    client.post("/count").await.expect(200);
    monitor.expect(2, "an update: the lookup and the put").await;
    client.post("/flash/hello").await.expect(200);
    let what = "a message by the handle: the lookup, beside it a fence for a login, and the put";
    monitor.expect(3, what).await;

    let mut other = Client::new(&app);
    other.post("/login/alice").await.expect(200);
    monitor.expect(4, "a login: the fence; the record and the list; the list").await;
    client.post("/login/alice").await.expect(200);
    monitor.expect(6, "a login with a session: as well, the lookup and the end of the old").await;
    client.get("/me").await.expect(200);
    monitor.expect(1, "who it is").await;
    client.post("/logout").await.expect(200);
    let what = "a logout: the lookup, beside it a fence, the end, and the list read and written";
    monitor.expect(5, what).await;
    client.get("/me").await.expect(401);
    monitor.expect(0, "a client that has logged out").await;
    sessions.end_all("alice").await.unwrap();
    monitor.expect(1, "the end of all sessions of a principal").await;
    other.get("/me").await.expect(401);
    monitor.expect(1, "a session that was ended").await;
    server.check_keys("commands");
}

/// Commands that have written, also those of scripts.
fn writes(server: &RedisServer) -> u64 {
    ["hset", "set", "pexpire", "pexpireat", "expire", "getex", "del", "unlink", "zadd"]
        .iter()
        .map(|command| server.calls(command))
        .sum()
}

/// What the requests of one client wait for, one after another.
struct Walk {
    client: Client,
    storage: Watched,
}

impl Walk {
    fn new(policy: Policy) -> Self {
        let storage = Watched::new(MemoryStorage::new()).slow(STEP);
        let app = app(storage.clone(), policy.with_timeout(20 * STEP));
        Self { client: Client::new(&app), storage }
    }

    async fn expect(&mut self, method: &str, path: &str, wanted: u32) {
        self.storage.operations();
        let (answer, steps) = in_a_row(STEP, self.client.send(method, path)).await;
        println!("{path}: {steps} in a row of {}", self.storage.operations());
        answer.expect(200);
        assert_eq!(steps, wanted, "{method} {path}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_waited_for_one_after_another() {
    let mut walk = Walk::new(Policy::new());
    walk.expect("GET", "/untouched", 0).await;
    walk.expect("GET", "/read", 0).await;
    walk.expect("POST", "/theme/dark", 1).await;
    walk.expect("GET", "/read", 1).await;
    walk.expect("POST", "/theme/light", 2).await;
    walk.expect("POST", "/count", 2).await;
    walk.expect("POST", "/login/alice", 3).await;
    walk.expect("POST", "/login/alice", 3).await;
    walk.expect("GET", "/me", 1).await;
    walk.expect("GET", "/sessions", 3).await;
    walk.expect("POST", "/logout", 4).await;
    walk.expect("POST", "/login/alice", 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_login_waits_for_three_things_in_a_row() {
    let capped = |over| Policy::new().with_cap(3, over);
    for policy in [
        Policy::new(),
        capped(OverCap::EndOldest),
        capped(OverCap::EndLeastRecentlyUsed),
        Policy::new().with_rotation(Duration::from_secs(60)),
    ] {
        println!("{policy:?}");
        let mut walk = Walk::new(policy.clone());
        walk.expect("POST", "/login/alice", 3).await;
        walk.client.cookie = None;
        walk.expect("POST", "/login/alice", 3).await;
        walk.client.cookie = None;
        walk.expect("POST", "/theme/dark", 1).await;
        walk.expect("POST", "/login/alice", 3).await;
    }
    // Whoever may be refused keeps its old session until then: one step more.
    let mut walk = Walk::new(capped(OverCap::Refuse));
    walk.expect("POST", "/login/alice", 3).await;
    walk.client.cookie = None;
    walk.expect("POST", "/theme/dark", 1).await;
    walk.expect("POST", "/login/alice", 4).await;
}
