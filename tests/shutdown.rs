//! The end of a process: what layers have begun beside requests is done before it.

mod support;

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use support::RedisServer;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, advance, sleep},
};
use tower::ServiceExt;
use tower_keep::{
    CacheHandle, CacheLayer, Limiter, MemoryStorage, Quota, RateLimitLayer, RedisStorage,
    SessionLayer, Storage,
    cache::{self, Keep},
    lease::Leases,
    rate_limit::{self, KeyExtractor, Settlement},
    session::{self, Session, SessionMap},
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Tags, Verdict, When,
    },
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// How long an operation of [`Distant`] takes, to half there and to half back.
const TRIP: Duration = Duration::from_millis(40);
/// Timers fire on whole milliseconds.
const TICK: Duration = Duration::from_millis(2);

/// A memory storage at the other end of a network.
#[derive(Debug, Clone)]
struct Distant {
    memory: MemoryStorage,
    is_down: Arc<AtomicBool>,
    under_way: Arc<AtomicUsize>,
}

impl Distant {
    fn new() -> Self {
        Self { memory: MemoryStorage::new(), is_down: Arc::default(), under_way: Arc::default() }
    }

    async fn ask<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        struct UnderWay(Arc<AtomicUsize>);
        impl Drop for UnderWay {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        self.under_way.fetch_add(1, SeqCst);
        let _under_way = UnderWay(Arc::clone(&self.under_way));
        sleep(TRIP / 2).await;
        if self.is_down.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "down"));
        }
        let outcome = operation.await;
        sleep(TRIP / 2).await;
        outcome
    }

    fn is_idle(&self) -> bool {
        self.under_way.load(SeqCst) == 0
    }
}

impl Storage for Distant {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.ask(self.memory.get(key, get)).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.ask(self.memory.put(key, put)).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.ask(self.memory.delete(key, when)).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.ask(self.memory.invalidate(namespace, tags, how)).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.ask(self.memory.acquire(charges)).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new().with_atomic_across_identities()
    }
}

/// A page that counts how often it was asked for, and takes its time.
#[derive(Clone, Default)]
struct Page {
    calls: Arc<AtomicUsize>,
    takes: Duration,
}

impl Page {
    fn taking(takes: Duration) -> Self {
        Self { calls: Arc::default(), takes }
    }

    /// `/` answers with the number of the call, `/hangs` never.
    fn cached(&self, storage: impl Storage, policy: cache::Policy) -> Router {
        let page = self.clone();
        let answer = move || async move {
            let call = page.calls.fetch_add(1, SeqCst) + 1;
            sleep(page.takes).await;
            call.to_string()
        };
        Router::new()
            .route("/", get(answer))
            .route("/hangs", get(|| async { pending::<String>().await }))
            .layer(CacheLayer::new(storage, policy))
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

fn request(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

async fn send(app: &Router, request: Request<Body>) -> Response<String> {
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(parts, String::from_utf8(body.into()).unwrap())
}

async fn text(app: &Router, path: &str) -> String {
    send(app, request(path)).await.into_body()
}

/// A client that goes away after a while.
async fn goes_away(app: &Router, request: Request<Body>, after: Duration) {
    let client = tokio::time::timeout(after, send(app, request)).await;
    assert!(client.is_err(), "it has got its answer");
}

/// When it was done, from now on.
fn assert_took(began: Instant, expected: Duration) {
    let took = began.elapsed();
    assert!((expected..expected + 10 * TICK).contains(&took), "{took:?}");
}

fn minute() -> cache::Policy {
    cache::Policy::output(MINUTE)
}

#[tokio::test(start_paused = true)]
async fn with_nothing_under_way_it_returns_at_once() {
    let memory = MemoryStorage::new();
    let app = Page::default().cached(memory.clone(), minute());
    assert_eq!(text(&app, "/").await, "1");
    let leases = Leases::new(memory.clone(), MINUTE).with_heartbeat();
    let _held = leases.try_acquire("for long").await.unwrap().acquired().unwrap();
    let began = Instant::now();
    assert!(memory.shutdown(MINUTE).await.is_clean());
    assert!(memory.clone().erase().shutdown(MINUTE).await.is_clean());
    assert!(Distant::new().erase().shutdown(MINUTE).await.is_clean());
    assert_took(began, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_fill_whose_client_has_gone_is_stored_before_the_end() {
    let (storage, page) = (MemoryStorage::new(), Page::taking(3 * SECOND));
    let app = page.cached(storage.clone(), minute());
    goes_away(&app, request("/"), SECOND).await;
    let began = Instant::now();
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert_took(began, 2 * SECOND);
    let other = page.cached(storage, minute());
    assert_eq!(text(&other, "/").await, "1");
    assert_eq!(page.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_in_the_background_is_stored_before_the_end() {
    let (distant, page) = (Distant::new(), Page::taking(3 * SECOND));
    let storage = distant.clone().erase();
    let app = page.cached(storage.clone(), minute().with_stale_while_revalidate(MINUTE));
    assert_eq!(text(&app, "/").await, "1");
    assert!(storage.shutdown(SECOND).await.is_clean());
    advance(MINUTE + SECOND).await;
    assert_eq!(text(&app, "/").await, "1", "stale");
    let began = Instant::now();
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert!(began.elapsed() >= 3 * SECOND);
    assert!(distant.is_idle());
    let other = page.cached(distant.memory, minute());
    assert_eq!(text(&other, "/").await, "2");
    assert_eq!(page.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn values_are_kept_before_the_end_also_if_nobody_waits_for_them() {
    let distant = Distant::new();
    let storage = distant.clone().erase();
    let cache = CacheHandle::new(storage.clone());
    let keep = Keep::for_ttl(MINUTE).with_stale_while_revalidate(MINUTE);
    let make = |value: u32| async move {
        sleep(SECOND).await;
        Ok::<_, Infallible>(value)
    };
    let filling = cache.get_or_fill("value", keep.clone(), move || make(1));
    assert!(tokio::time::timeout(SECOND / 2, filling).await.is_err());
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert!(distant.is_idle());
    let near = CacheHandle::new(distant.memory.clone());
    let now = |value| near.get_or_fill("value", keep.clone(), move || make(value));
    assert_eq!(now(7).await.unwrap(), 1);

    advance(MINUTE + SECOND).await;
    assert_eq!(cache.get_or_fill("value", keep.clone(), move || make(2)).await.unwrap(), 1);
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert!(distant.is_idle());
    assert_eq!(now(7).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_is_given_up_at_the_end_and_nothing_else_is_hurt() {
    let (storage, page) = (MemoryStorage::new().erase(), Page::taking(SECOND));
    let app = page.cached(storage.clone(), minute());
    for _ in 0..2 {
        goes_away(&app, request("/hangs"), SECOND).await;
    }
    goes_away(&app, request("/"), SECOND / 2).await;
    let began = Instant::now();
    let drained = storage.shutdown(5 * SECOND).await;
    assert_took(began, 5 * SECOND);
    assert!(!drained.is_clean());
    // Who comes second follows the first.
    assert_eq!(drained.abandoned, 1);

    assert_eq!(text(&app, "/").await, "1");
    assert_eq!(page.calls(), 1);
    advance(2 * MINUTE).await;
    assert_eq!(text(&app, "/").await, "2", "all works as before");
    assert_eq!(storage.shutdown(SECOND).await, drained);
}

#[tokio::test(start_paused = true)]
async fn two_shutdowns_at_once_wait_each_for_its_time() {
    let memory = MemoryStorage::new();
    let app = Page::taking(3 * SECOND).cached(memory.clone(), minute());
    goes_away(&app, request("/"), SECOND).await;
    let (began, any) = (Instant::now(), memory.clone().erase());
    let impatient = async {
        let drained = any.shutdown(SECOND).await;
        assert_took(began, SECOND);
        drained
    };
    let (impatient, patient) = tokio::join!(impatient, memory.shutdown(MINUTE));
    assert_took(began, 2 * SECOND);
    assert_eq!(impatient.abandoned, 1);
    assert!(patient.is_clean());
}

#[tokio::test(start_paused = true)]
async fn what_begins_meanwhile_is_waited_for() {
    let (storage, page) = (MemoryStorage::new(), Page::taking(3 * SECOND));
    let app = page.cached(storage.clone(), minute());
    goes_away(&app, request("/"), SECOND).await;
    let began = Instant::now();
    let late = async {
        sleep(SECOND).await;
        goes_away(&app, request("/?late"), SECOND).await;
    };
    let ((), drained) = tokio::join!(late, storage.shutdown(MINUTE));
    assert!(drained.is_clean());
    assert_took(began, 4 * SECOND);
    text(&app, "/?late").await;
    assert_eq!(page.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn layers_on_any_handle_to_one_storage_are_waited_for() {
    let memory = MemoryStorage::new();
    for handle in [AnyStorage::new(memory.clone()), memory.clone().erase()] {
        let app = Page::taking(3 * SECOND).cached(handle.clone(), minute());
        goes_away(&app, request("/hangs"), SECOND).await;
    }
    assert_eq!(memory.shutdown(SECOND).await.abandoned, 2);
    assert_eq!(AnyStorage::new(memory.clone()).shutdown(SECOND).await.abandoned, 2);
    assert!(MemoryStorage::new().shutdown(SECOND).await.is_clean());
}

fn sessions(storage: impl Storage, policy: session::Policy) -> Router {
    let set = |mut session: Session<SessionMap>| async move {
        session.insert("name", "value").unwrap();
    };
    let read = |session: Session<SessionMap>| async move {
        session.get::<String>("name").unwrap().unwrap_or_default()
    };
    Router::new().route("/set", get(set)).route("/read", get(read)).route("/clear", get(
        |mut session: Session<SessionMap>| async move { session.insert("name", "").unwrap() },
    )).layer(SessionLayer::new(storage, policy))
}

fn of_session(path: &str, cookie: &str) -> Request<Body> {
    Request::get(path).header(header::COOKIE, cookie).body(Body::empty()).unwrap()
}

async fn begin_session(app: &Router) -> String {
    let began = send(app, request("/clear")).await;
    let cookie = began.headers()[header::SET_COOKIE].to_str().unwrap();
    cookie.split_once(';').unwrap().0.to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_session_is_saved_before_the_end_also_if_the_client_has_gone() {
    let distant = Distant::new();
    let storage = distant.clone().erase();
    let app = sessions(storage.clone(), session::Policy::new());
    let cookie = begin_session(&app).await;
    // The lookup is done, and the save on its way.
    goes_away(&app, of_session("/set", &cookie), TRIP + TRIP / 4).await;
    assert!(!distant.is_idle());
    let began = Instant::now();
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert!(began.elapsed() >= TRIP / 2);
    assert!(distant.is_idle());
    let near = sessions(distant.memory, session::Policy::new());
    assert_eq!(send(&near, of_session("/read", &cookie)).await.into_body(), "value");
}

#[tokio::test(start_paused = true)]
async fn the_use_of_a_session_is_noted_before_the_end() {
    let distant = Distant::new();
    let storage = distant.clone().erase();
    let policy = || session::Policy::new().with_idle_timeout(10 * MINUTE).with_touch_slack(MINUTE);
    let app = sessions(storage.clone(), policy());
    let cookie = begin_session(&app).await;
    advance(5 * MINUTE).await;
    send(&app, of_session("/read", &cookie)).await;
    assert!(!distant.is_idle(), "nobody has waited for the touch");
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert!(distant.is_idle());
    advance(8 * MINUTE).await;
    let near = sessions(distant.memory, policy());
    let read = send(&near, of_session("/read", &cookie)).await;
    assert!(!read.headers().contains_key(header::SET_COOKIE), "it is alive");
}

fn limit() -> rate_limit::Policy {
    rate_limit::Policy::new("five", Quota::sliding_window(5, MINUTE))
        .with_key(KeyExtractor::from_fn(|_| Some("client")))
        .with_settlement(Settlement::by_status(|status| u32::from(status != StatusCode::OK)))
}

/// Answers after a second.
fn limited(storage: impl Storage) -> Router {
    let answer = || async { sleep(SECOND).await };
    Router::new().route("/", get(answer)).layer(RateLimitLayer::new(storage, limit()))
}

async fn remaining(storage: impl Storage) -> u32 {
    Limiter::new(storage, limit()).peek("client").await.unwrap().remaining().unwrap()
}

#[tokio::test(start_paused = true)]
async fn units_are_given_back_before_the_end() {
    // The client goes while they are asked for, while the handler works, and while they are settled.
    let moments = [
        TRIP / 4,
        TRIP * 3 / 4,
        TRIP + SECOND / 2,
        TRIP + SECOND + TRIP / 4,
        TRIP + SECOND + TRIP * 3 / 4,
    ];
    for moment in moments {
        let distant = Distant::new();
        let storage = distant.clone().erase();
        goes_away(&limited(storage.clone()), request("/"), moment).await;
        let began = Instant::now();
        assert!(storage.shutdown(10 * SECOND).await.is_clean());
        assert!(began.elapsed() > Duration::ZERO);
        assert!(distant.is_idle(), "gone after {moment:?}");
        assert_eq!(remaining(distant.memory).await, 5, "gone after {moment:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_dropped_is_released_before_the_end() {
    let distant = Distant::new();
    let storage = distant.clone().erase();
    let (leases, near) =
        (Leases::new(storage.clone(), MINUTE), Leases::new(distant.memory.clone(), MINUTE));
    for is_granted in [true, false] {
        let asking = leases.try_acquire("ledger");
        if is_granted {
            drop(asking.await.unwrap().acquired().unwrap());
        } else {
            // It may be granted without anybody knowing.
            assert!(tokio::time::timeout(TRIP * 3 / 4, asking).await.is_err());
        }
        assert!(near.try_acquire("ledger").await.unwrap().acquired().is_none());
        assert!(storage.shutdown(10 * SECOND).await.is_clean());
        assert!(distant.is_idle());
        let lease = near.try_acquire("ledger").await.unwrap().acquired();
        assert!(lease.unwrap().release().await.unwrap(), "granted: {is_granted}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_was_half_changed_is_purged_before_the_end() {
    let (distant, page) = (Distant::new(), Page::default());
    let storage = distant.clone().erase();
    let app = page.cached(storage.clone(), minute());
    let app = app
        .route("/", axum::routing::put(|| async { pending::<()>().await }))
        .layer(CacheLayer::new(storage.clone(), minute()));
    let put = Request::put("/").body(Body::empty()).unwrap();
    assert_eq!(text(&app, "/").await, "1");
    goes_away(&app, put, SECOND).await;
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert!(distant.is_idle());
    assert_eq!(text(&page.cached(distant.memory, minute()), "/").await, "2");
}

/// A cache of one value, tagged `tag`, on a storage that is down.
async fn purge_in_an_outage(distant: &Distant, storage: &AnyStorage) -> CacheHandle {
    let cache = CacheHandle::new(storage.clone());
    let keep = Keep::for_ttl(60 * MINUTE).with_tags(["tag"]);
    let old = cache.get_or_fill("value", keep, || async { Ok::<_, Infallible>("old".to_owned()) });
    assert_eq!(old.await.unwrap(), "old");
    distant.is_down.store(true, SeqCst);
    assert!(cache.invalidate(["tag"]).await.is_err());
    cache
}

async fn stored(memory: &MemoryStorage) -> String {
    let new = || async { Ok::<_, Infallible>("new".to_owned()) };
    CacheHandle::new(memory.clone()).get_or_fill("value", Keep::for_ttl(MINUTE), new).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_purge_whose_caller_has_gone_is_waited_for() {
    let distant = Distant::new();
    let storage = distant.clone().erase();
    let cache = CacheHandle::new(storage.clone());
    let keep = Keep::for_ttl(60 * MINUTE).with_tags(["tag"]);
    let old = cache.get_or_fill("value", keep, || async { Ok::<_, Infallible>("old".to_owned()) });
    assert_eq!(old.await.unwrap(), "old");
    assert!(tokio::time::timeout(TRIP / 4, cache.invalidate(["tag"])).await.is_err());
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert!(distant.is_idle());
    assert_eq!(stored(&distant.memory).await, "new");
}

#[tokio::test(start_paused = true)]
async fn a_purge_that_is_owed_is_waited_for() {
    let distant = Distant::new();
    let storage = distant.clone().erase();
    purge_in_an_outage(&distant, &storage).await;
    let outage = async {
        sleep(5 * SECOND).await;
        distant.is_down.store(false, SeqCst);
    };
    let began = Instant::now();
    let ((), drained) = tokio::join!(outage, storage.shutdown(MINUTE));
    assert!(drained.is_clean());
    assert!((5 * SECOND..7 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(stored(&distant.memory).await, "new");
}

#[tokio::test(start_paused = true)]
async fn a_purge_that_stays_owed_is_given_up_and_counted() {
    let distant = Distant::new();
    let storage = distant.clone().erase();
    let cache = purge_in_an_outage(&distant, &storage).await;
    let began = Instant::now();
    assert_eq!(storage.shutdown(10 * SECOND).await.abandoned, 1);
    assert_took(began, 10 * SECOND);
    // If the process goes on after all, so does the purge.
    distant.is_down.store(false, SeqCst);
    assert!(storage.shutdown(10 * SECOND).await.is_clean());
    assert_eq!(stored(&distant.memory).await, "new");
    drop(cache);
}

#[tokio::test(start_paused = true)]
async fn a_purge_that_is_owed_is_tried_once_more_when_the_time_is_nearly_up() {
    let distant = Distant::new();
    let storage = distant.clone().erase();
    purge_in_an_outage(&distant, &storage).await;
    // Until the pauses between two tries are a second long, and then until one begins.
    sleep(10 * SECOND).await;
    for is_pausing in [true, false] {
        while distant.is_idle() != is_pausing {
            sleep(TICK).await;
        }
    }
    while !distant.is_idle() {
        sleep(TICK).await;
    }
    distant.is_down.store(false, SeqCst);
    // The next try is due after the end.
    assert!(storage.shutdown(Duration::from_millis(950)).await.is_clean());
    assert_eq!(stored(&distant.memory).await, "new");
}

#[tokio::test(start_paused = true)]
async fn the_second_of_two_purges_is_waited_for_and_made_early_if_that_takes_too_long() {
    for (delay, within, expected) in [(2, 10, 2 * SECOND), (600, 10, 9 * SECOND)] {
        let distant = Distant::new();
        let storage = distant.clone().erase();
        let cache = CacheHandle::new(storage.clone());
        cache.invalidate_after(["tag"], delay * SECOND).await.unwrap();
        let keep = Keep::for_ttl(60 * MINUTE).with_tags(["tag"]);
        let old = || async { Ok::<_, Infallible>("old".to_owned()) };
        let near = CacheHandle::new(distant.memory.clone());
        assert_eq!(near.get_or_fill("value", keep, old).await.unwrap(), "old");
        let began = Instant::now();
        assert!(storage.shutdown(within * SECOND).await.is_clean());
        assert!((expected - TRIP..expected + 2 * TRIP).contains(&began.elapsed()));
        assert_eq!(stored(&distant.memory).await, "new", "{delay} s");
    }
}

/// Sends and waits until the handler is at work.
async fn begin(app: &Router, request: Request<Body>, entered: &Notify) -> JoinHandle<()> {
    let app = app.clone();
    let client = tokio::spawn(async move { drop(send(&app, request).await) });
    entered.notified().await;
    client
}

#[tokio::test]
async fn on_redis_all_layers_are_drained() {
    const MOMENT: Duration = Duration::from_millis(100);
    let server = RedisServer::start();
    let connect = || async {
        let builder = RedisStorage::builder().url(server.url());
        builder.decision_deadline(MINUTE).entry_deadline(MINUTE).build().await.unwrap()
    };
    let (redis, other) = (connect().await, connect().await);
    let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let calls = Arc::new(AtomicUsize::new(0));
    let work = {
        let (entered, release, calls) =
            (Arc::clone(&entered), Arc::clone(&release), Arc::clone(&calls));
        move || async move {
            calls.fetch_add(1, SeqCst);
            entered.notify_one();
            release.notified().await;
            "done"
        }
    };
    let app = |storage: &RedisStorage| {
        let work = work.clone();
        let save = {
            let work = work.clone();
            move |mut session: Session<SessionMap>| async move {
                session.insert("name", work().await).unwrap();
            }
        };
        let policy = session::Policy::new().with_timeout(MINUTE);
        let saved = Router::new()
            .route("/save", get(save))
            .layer(SessionLayer::new(storage.clone(), policy.clone()));
        let limited = Router::new()
            .route("/limited", get(work.clone()))
            .layer(RateLimitLayer::new(storage.clone(), limit()));
        Router::new()
            .route("/", get(work))
            .layer(CacheLayer::new(storage.clone(), minute()))
            .merge(saved)
            .merge(limited)
            .merge(sessions(storage.clone(), policy))
    };
    let here = app(&redis);
    let cookie = begin_session(&here).await;
    assert!(redis.shutdown(SECOND).await.is_clean());

    let filling = begin(&here, request("/"), &entered).await;
    let saving = begin(&here, of_session("/save", &cookie), &entered).await;
    let reserving = begin(&here, request("/limited"), &entered).await;
    assert_eq!(remaining(other.clone()).await, 4);
    let gone = |client: JoinHandle<()>| async move {
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
    };
    server.pause_process();
    gone(reserving).await;
    gone(filling).await;
    release.notify_waiters();
    sleep(MOMENT).await;
    gone(saving).await;
    let began = Instant::now();
    let resume = async {
        sleep(MOMENT).await;
        server.resume();
    };
    let shutdown = async {
        assert!(redis.shutdown(10 * SECOND).await.is_clean());
        assert!(began.elapsed() >= MOMENT);
    };
    tokio::join!(shutdown, resume);

    let there = app(&other);
    assert_eq!(text(&there, "/").await, "done");
    assert_eq!(calls.load(SeqCst), 3, "the answer was stored");
    assert_eq!(send(&there, of_session("/read", &cookie)).await.into_body(), "done");
    assert_eq!(remaining(other).await, 5, "the units were given back");
    let began = Instant::now();
    assert!(redis.shutdown(MINUTE).await.is_clean());
    assert!(began.elapsed() < SECOND, "the connections are not waited for");
}
