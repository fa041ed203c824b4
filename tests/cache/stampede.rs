//! Many requests at once: how often the handler runs, who waits, and for how long.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures_util::{FutureExt, future::join_all, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::{
    runtime::{Builder, Handle},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower::{ServiceExt, service_fn, util::ServiceFn};
use tower_keep::{
    MemoryStorage, RedisStorage,
    cache::{Cache, CacheHandle, FillError, Keep, Outcome, Policy, Source},
};

use crate::support::{RedisServer, until};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// How long the handlers here take.
const WORK: Duration = Duration::from_millis(200);

type Answer = Result<Response<Body>, Broken>;

#[derive(Debug, PartialEq)]
struct Broken;

/// How often the handler ran, and how often at the same time at most.
#[derive(Clone, Default)]
struct Work(Arc<Counts>);

#[derive(Default)]
struct Counts {
    calls: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    done: AtomicUsize,
}

impl Work {
    fn calls(&self) -> usize {
        self.0.calls.load(SeqCst)
    }

    fn done(&self) -> usize {
        self.0.done.load(SeqCst)
    }

    /// The most at once since the last question.
    fn most(&self) -> usize {
        self.0.most.swap(0, SeqCst)
    }

    /// Takes its time, and says how many came before.
    async fn take(&self, time: Duration) -> usize {
        struct Running<'a>(&'a Counts);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.running.fetch_sub(1, SeqCst);
            }
        }
        let counts = &*self.0;
        let call = counts.calls.fetch_add(1, SeqCst);
        counts.most.fetch_max(counts.running.fetch_add(1, SeqCst) + 1, SeqCst);
        let _running = Running(counts);
        sleep(time).await;
        counts.done.fetch_add(1, SeqCst);
        call
    }
}

/// An answer that came, with all of its body.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    source: Option<Source>,
    body: String,
    took: Duration,
}

fn answer(control: &'static str, body: impl ToString) -> Answer {
    Ok(Response::builder()
        .header("cache-control", control)
        .body(Body::from(body.to_string()))
        .unwrap())
}

fn status(status: u16) -> Answer {
    Ok(Response::builder().status(status).body(Body::from("no")).unwrap())
}

fn get() -> Request<Body> {
    with(&[])
}

fn with(fields: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::get("/").header("host", "shop.example");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

fn app<F, Fut>(cache: &CacheHandle, policy: Policy, handler: F) -> Cache<ServiceFn<F>>
where
    F: FnMut(Request<Body>) -> Fut,
    Fut: Future<Output = Answer>,
{
    Cache::new(service_fn(handler), cache.clone(), policy)
}

fn memory() -> CacheHandle {
    CacheHandle::new(MemoryStorage::new())
}

fn output() -> Policy {
    Policy::output(MINUTE)
}

async fn send<F, Fut>(app: Cache<ServiceFn<F>>, request: Request<Body>) -> Result<Reply, Broken>
where
    F: FnMut(Request<Body>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let began = Instant::now();
    let (parts, body) = app.oneshot(request).await?.into_parts();
    let Ok(body) = body.collect().await else { return Err(Broken) };
    let body = body.to_bytes();
    Ok(Reply {
        status: parts.status,
        source: parts.extensions.get::<Outcome>().map(|outcome| outcome.source),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
        took: began.elapsed(),
    })
}

fn spawn<F, Fut>(
    app: &Cache<ServiceFn<F>>,
    request: Request<Body>,
) -> JoinHandle<Result<Reply, Broken>>
where
    F: FnMut(Request<Body>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    tokio::spawn(send(app.clone(), request))
}

/// All at once, and how long until the last has its answer.
async fn burst<F, Fut>(
    what: impl fmt::Display,
    app: &Cache<ServiceFn<F>>,
    requests: impl IntoIterator<Item = Request<Body>>,
) -> (Vec<Result<Reply, Broken>>, Duration)
where
    F: FnMut(Request<Body>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let began = Instant::now();
    let real = std::time::Instant::now();
    let sent: Vec<_> = requests.into_iter().map(|request| spawn(app, request)).collect();
    let count = sent.len();
    let replies = join_all(sent).await.into_iter().map(Result::unwrap).collect();
    let took = began.elapsed();
    println!("{what}: {count} requests, {took:?} (by the wall {:?})", real.elapsed());
    (replies, took)
}

fn many(count: usize) -> impl Iterator<Item = Request<Body>> {
    (0..count).map(|_| get())
}

fn count(replies: &[Result<Reply, Broken>], matches: impl Fn(&Reply) -> bool) -> usize {
    replies.iter().flatten().filter(|reply| matches(reply)).count()
}

fn from(replies: &[Result<Reply, Broken>], source: Source) -> usize {
    count(replies, |reply| reply.source == Some(source))
}

/// Nothing goes on in the background, at the latest soon.
async fn no_task_is_left(before: usize) {
    let metrics = Handle::current().metrics();
    until(MINUTE, || async { (metrics.num_alive_tasks() <= before).then_some(()) }).await;
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Times as they are with a clock that only moves when all sleep: a timer is at most a
/// millisecond late.
fn is_about(took: Duration, wanted: Duration) -> bool {
    took >= wanted && took < wanted + Duration::from_millis(20)
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_misses_run_the_handler_once() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { answer("", work.take(WORK).await) }
        }
    };
    let app = app(&cache, output(), handler);
    let (replies, took) = burst("memory, a miss", &app, many(10_000)).await;
    assert_eq!(count(&replies, |reply| reply.body == "0" && reply.status == 200), 10_000);
    assert_eq!(from(&replies, Source::Collapsed), 9_999);
    assert_eq!(work.calls(), 1);
    assert!(is_about(took, WORK), "{took:?}");
    no_task_is_left(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_that_miss_together_run_a_quick_handler_once() {
    for round in 0..200 {
        let (work, cache) = (Work::default(), memory());
        let handler = {
            let work = work.clone();
            move |_| {
                let call = work.0.calls.fetch_add(1, SeqCst);
                async move { answer("", call) }
            }
        };
        let app = app(&cache, output(), handler);
        let sent: Vec<_> = many(64).map(|request| spawn(&app, request)).collect();
        for reply in join_all(sent).await {
            assert_eq!(reply.unwrap().unwrap().body, "0", "round {round}");
        }
        assert_eq!(work.calls(), 1, "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_callers_that_miss_a_value_make_it_once() {
    let (work, cache) = (Work::default(), memory());
    let calls = (0..10_000).map(|_| {
        let (cache, work) = (cache.clone(), work.clone());
        tokio::spawn(async move {
            let fill = async move || Ok::<_, Infallible>(work.take(WORK).await);
            cache.get_or_fill("k", Keep::for_ttl(MINUTE), fill).await.unwrap()
        })
    });
    let began = Instant::now();
    assert!(join_all(calls).await.into_iter().all(|value| value.unwrap() == 0));
    println!("memory, a missing value: 10000 callers, {:?}", began.elapsed());
    assert_eq!(work.calls(), 1);
    assert!(is_about(began.elapsed(), WORK));
    no_task_is_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_leader_is_his_own_and_one_successor_runs() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move {
                let call = work.take(WORK).await;
                assert!(call > 0, "on purpose");
                answer("", call)
            }
        }
    };
    let app = app(&cache, output(), handler);
    let (replies, took) = burst("the leader panics", &app, many(1_000)).await;
    let failed: Vec<_> = replies.iter().flatten().filter(|reply| reply.status == 500).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].headers["content-type"], "application/problem+json");
    assert_eq!(count(&replies, |reply| reply.body == "1"), 999);
    assert_eq!(work.calls(), 2);
    assert!(is_about(took, 2 * WORK), "{took:?}");
    no_task_is_left(0).await;
}

/// A panic before there is a future at all.
#[tokio::test(start_paused = true)]
async fn a_service_that_panics_when_it_is_called_is_a_500_too() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let handler = move |_| {
        assert!(count.fetch_add(1, SeqCst) > 0, "on purpose");
        async { answer("", "fine") }
    };
    let app = app(&memory(), output(), handler);
    let (replies, _) = burst("the call panics", &app, many(100)).await;
    assert_eq!(self::count(&replies, |reply| reply.status == 500), 1);
    assert_eq!(self::count(&replies, |reply| reply.body == "fine"), 99);
    assert_eq!(calls.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_is_the_leader_s_alone() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move {
                match work.take(WORK).await {
                    0 => Err(Broken),
                    call => answer("", call),
                }
            }
        }
    };
    let app = app(&cache, output(), handler);
    let (replies, took) = burst("the leader errs", &app, many(1_000)).await;
    assert_eq!(replies.iter().filter(|reply| reply.is_err()).count(), 1);
    assert_eq!(count(&replies, |reply| reply.body == "1"), 999);
    assert_eq!(work.calls(), 2);
    assert!(is_about(took, 2 * WORK), "{took:?}");
    no_task_is_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_500_of_the_leader_is_his_own_and_one_successor_runs() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move {
                match work.take(WORK).await {
                    0 => status(500),
                    call => answer("", call),
                }
            }
        }
    };
    let app = app(&cache, output(), handler);
    let (replies, took) = burst("the leader answers 500", &app, many(1_000)).await;
    assert_eq!(count(&replies, |reply| reply.status == 500), 1);
    assert_eq!(count(&replies, |reply| reply.body == "1"), 999);
    assert_eq!(work.calls(), 2);
    assert!(is_about(took, 2 * WORK), "{took:?}");
    no_task_is_left(0).await;
}

/// How long ten thousand wait when there is never an answer: a few fills after each other, then
/// the rest at once.
#[tokio::test(start_paused = true)]
async fn a_handler_that_always_fails_keeps_nobody_for_long() {
    for kind in ["a 500", "a 503", "an error", "a panic", "a broken body"] {
        let (work, cache) = (Work::default(), memory());
        let handler = {
            let work = work.clone();
            move |_| {
                let work = work.clone();
                async move {
                    work.take(WORK).await;
                    match kind {
                        "a 500" => status(500),
                        "a 503" => status(503),
                        "an error" => Err(Broken),
                        "a broken body" => {
                            let chunks = [Ok("some"), Err(std::io::Error::other("cut"))];
                            Ok(Response::new(Body::from_stream(stream::iter(chunks))))
                        }
                        _ => panic!("on purpose"),
                    }
                }
            }
        };
        let app = app(&cache, output(), handler);
        let began = Instant::now();
        let real = std::time::Instant::now();
        let requests = if kind == "a panic" { 500 } else { 10_000 };
        let sent: Vec<_> = many(requests).map(|request| spawn(&app, request)).collect();
        join_all(sent).await;
        let took = began.elapsed();
        println!(
            "always {kind}: {requests} requests, {took:?} (by the wall {:?}), the handler ran {} \
             times, {} at once",
            real.elapsed(),
            work.calls(),
            work.most()
        );
        assert!(took <= 4 * WORK + Duration::from_millis(20), "{kind}: {took:?}");
        assert_eq!(work.calls(), requests, "{kind}: everybody hears of his own failure");
        no_task_is_left(0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_leaves_before_the_head_leaves_the_fill_running() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { answer("", work.take(WORK).await) }
        }
    };
    let app = app(&cache, output(), handler);
    let leader = spawn(&app, get());
    sleep(WORK / 4).await;
    let followers: Vec<_> = many(1_000).map(|request| spawn(&app, request)).collect();
    sleep(WORK / 4).await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    let began = Instant::now();
    for follower in followers {
        assert_eq!(follower.await.unwrap().unwrap().body, "0");
    }
    println!("the leader leaves half way: the others wait {:?} more", began.elapsed());
    assert!(is_about(began.elapsed(), WORK / 2));
    assert_eq!(work.calls(), 1);
    no_task_is_left(0).await;
}

/// Nobody waits, and the answer is stored all the same.
#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_waits_for_is_stored() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { answer("", work.take(WORK).await) }
        }
    };
    let app = app(&cache, output(), handler);
    assert!(timeout(WORK / 2, send(app.clone(), get())).await.is_err());
    sleep(WORK).await;
    assert_eq!(send(app, get()).await.unwrap().source, Some(Source::Hit));
    assert_eq!(work.calls(), 1);
    no_task_is_left(0).await;
}

/// Half a second of body in ten pieces.
fn slow_body(call: usize) -> Body {
    Body::from_stream(stream::unfold(0, move |piece| async move {
        if piece == 10 {
            return None;
        }
        sleep(Duration::from_millis(50)).await;
        Some((Ok::<_, Infallible>(Bytes::from(call.to_string())), piece + 1))
    }))
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_leaves_after_the_head_leaves_the_body_to_the_others() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { Ok(Response::new(slow_body(work.take(WORK).await))) }
        }
    };
    let app = app(&cache, output(), handler);
    let leader = tokio::spawn(app.clone().oneshot(get()));
    sleep(WORK / 2).await;
    let followers: Vec<_> = many(1_000).map(|request| spawn(&app, request)).collect();
    let response = leader.await.unwrap().unwrap();
    sleep(Duration::from_millis(120)).await;
    drop(response);
    let began = Instant::now();
    for follower in followers {
        let reply = follower.await.unwrap().unwrap();
        assert_eq!((reply.body.as_str(), reply.source), ("0000000000", Some(Source::Collapsed)));
    }
    println!("the leader leaves in the body: the others wait {:?} more", began.elapsed());
    assert!(began.elapsed() < Duration::from_millis(400));
    assert_eq!(work.calls(), 1);
    no_task_is_left(0).await;
}

/// What turns out not to be storable releases all who wait at once, and the next burst waits for
/// nobody.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_is_not_waited_for() {
    let in_http_mode = [
        ("no-store", "no-store", None),
        ("private", "private", None),
        ("no time to live", "", None),
        ("max-age=0", "max-age=0", None),
        ("max-age=0 with a validator", "max-age=0", Some("\"a\"")),
        ("no-cache with a validator", "no-cache", Some("\"a\"")),
    ];
    for (what, control, etag) in in_http_mode {
        let (work, cache) = (Work::default(), memory());
        let handler = {
            let work = work.clone();
            move |request: Request<Body>| {
                let work = work.clone();
                async move {
                    let call = work.take(WORK).await;
                    let mut response = answer(control, call)?;
                    if let Some(etag) = etag {
                        response.headers_mut().insert("etag", etag.parse().unwrap());
                        if request.headers().get("if-none-match").is_some() {
                            *response.status_mut() = StatusCode::NOT_MODIFIED;
                            *response.body_mut() = Body::empty();
                        }
                    }
                    Ok(response)
                }
            }
        };
        let app = app(&cache, Policy::http(), handler);
        let (replies, took) = burst(format!("{what}, first"), &app, many(20)).await;
        assert_eq!(count(&replies, |reply| reply.status == 200), 20);
        assert!(is_about(took, 2 * WORK), "{what}: {took:?}");
        assert_eq!((work.calls(), work.most()), (20, 19), "{what}");
        let (replies, took) = burst(format!("{what}, then"), &app, many(20)).await;
        assert_eq!(count(&replies, |reply| reply.status == 200), 20);
        assert!(is_about(took, WORK), "{what}: {took:?}");
        assert_eq!((work.calls(), work.most()), (40, 20), "{what}");
        no_task_is_left(0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_an_end_is_not_waited_for() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move {
                work.take(WORK).await;
                let chunks =
                    stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 512])));
                let body = Body::from_stream(chunks);
                let response = Response::builder().header("content-type", "text/event-stream");
                Ok(response.body(body).unwrap())
            }
        }
    };
    let app = app(&cache, output(), handler);
    for wanted in [2 * WORK, WORK] {
        let began = Instant::now();
        let sent: Vec<_> =
            many(20).map(|request| tokio::spawn(app.clone().oneshot(request))).collect();
        for response in join_all(sent).await {
            let mut body = response.unwrap().unwrap().into_body();
            assert!(body.frame().await.unwrap().is_ok());
        }
        println!("an event stream: 20 requests, {:?} to the first event", began.elapsed());
        assert!(is_about(began.elapsed(), wanted), "{:?}", began.elapsed());
    }
    assert_eq!(work.calls(), 40);
    no_task_is_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_can_be_stored_ends_what_is_known_of_those_that_could_not() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move {
                let call = work.take(WORK).await;
                answer(if call == 0 { "no-store" } else { "" }, call)
            }
        }
    };
    let app = app(&cache, output(), handler);
    send(app.clone(), get()).await.unwrap();
    // Not collapsed: it is known that the last could not be stored.
    let (_, took) = burst("after no-store", &app, many(20)).await;
    assert!(is_about(took, WORK));
    assert_eq!(work.calls(), 21);
    cache.clear().await.unwrap();
    let (replies, took) = burst("after one that was stored, and a purge", &app, many(20)).await;
    assert!(is_about(took, WORK));
    assert_eq!(from(&replies, Source::Collapsed), 19);
    assert_eq!(work.calls(), 22);
    no_task_is_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_of_an_answer_that_could_not_be_stored_has_an_end() {
    let (work, storage) = (Work::default(), MemoryStorage::new());
    let cache = CacheHandle::builder(storage).with_hit_for_miss(Duration::from_secs(5)).build();
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { answer("no-store", work.take(WORK).await) }
        }
    };
    let app = app(&cache, output(), handler);
    send(app.clone(), get()).await.unwrap();
    sleep(Duration::from_secs(6)).await;
    let (_, took) = burst("after the end of hit-for-miss", &app, many(20)).await;
    assert!(is_about(took, 2 * WORK), "{took:?}");
    assert_eq!(work.most(), 19);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_the_policy_says() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move {
                // The first hangs.
                let first = work.calls() == 0;
                answer("", work.take(if first { 600 * WORK } else { WORK }).await)
            }
        }
    };
    let app = app(&cache, output().with_fill_timeout(Duration::from_secs(2)), handler);
    let leader = spawn(&app, get());
    tokio::task::yield_now().await;
    let (replies, took) = burst("the leader hangs, 2 s of patience", &app, many(1_000)).await;
    assert!(is_about(took, Duration::from_secs(2) + WORK), "{took:?}");
    assert_eq!(count(&replies, |reply| reply.status == 200), 1_000);
    assert_eq!(work.most(), 1_001);
    // Meanwhile it is stored.
    assert_eq!(send(app, get()).await.unwrap().source, Some(Source::Hit));
    leader.await.unwrap().unwrap();
    no_task_is_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn each_variant_of_a_burst_is_made_once() {
    const LANGUAGES: [&str; 5] = ["en", "de", "fr", "it", "es"];
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |request: Request<Body>| {
            let work = work.clone();
            async move {
                work.take(WORK).await;
                let language = request.headers()["accept-language"].to_str().unwrap().to_owned();
                let mut response = answer("max-age=60", language)?;
                response.headers_mut().insert("vary", "accept-language".parse().unwrap());
                Ok(response)
            }
        }
    };
    let app = app(&cache, Policy::http().with_tags(["all"]), handler);
    let requests = || (0..1_000).map(|n| with(&[("accept-language", LANGUAGES[n % 5])]));
    for (what, wanted, calls) in [("met", 2 * WORK, 5), ("known", WORK, 10)] {
        let (replies, took) = burst(format!("five variants, just {what}"), &app, requests()).await;
        for (n, reply) in replies.iter().enumerate() {
            assert_eq!(reply.as_ref().unwrap().body, LANGUAGES[n % 5]);
        }
        assert_eq!(work.calls(), calls);
        assert!(is_about(took, wanted), "{took:?}");
        // By what the answers vary is still known.
        cache.invalidate(["all"]).await.unwrap();
    }
    no_task_is_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn head_requests_wait_for_nobody_and_are_waited_for_by_nobody() {
    let (work, heads, cache) = (Work::default(), Work::default(), memory());
    let handler = {
        let (work, heads) = (work.clone(), heads.clone());
        move |request: Request<Body>| {
            let work = if request.method() == "HEAD" { heads.clone() } else { work.clone() };
            async move { answer("", work.take(WORK).await) }
        }
    };
    let app = app(&cache, output(), handler);
    let requests = (0..100).map(|n| {
        let mut request = get();
        if n % 2 == 0 {
            *request.method_mut() = http::Method::HEAD;
        }
        request
    });
    let (replies, took) = burst("HEAD and GET in turn", &app, requests).await;
    assert_eq!(count(&replies, |reply| reply.status == 200), 100);
    assert!(is_about(took, WORK), "{took:?}");
    assert_eq!((work.calls(), heads.calls()), (1, 50));
    for (n, reply) in replies.iter().enumerate().filter(|(n, _)| n % 2 == 1) {
        assert_eq!(reply.as_ref().unwrap().body, "0", "request {n}");
    }
    no_task_is_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_stale_answers_start_one_refresh_and_none_waits() {
    let (work, cache) = (Work::default(), memory());
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { answer("", work.take(WORK).await) }
        }
    };
    let app = app(&cache, output().with_stale_while_revalidate(MINUTE), handler);
    send(app.clone(), get()).await.unwrap();
    sleep(MINUTE + MINUTE / 2).await;
    let (replies, took) = burst("stale while it is renewed", &app, many(1_000)).await;
    assert!(took < Duration::from_millis(5), "{took:?}");
    assert_eq!(from(&replies, Source::Stale), 1_000);
    sleep(2 * WORK).await;
    assert_eq!(work.calls(), 2);
    let reply = send(app, get()).await.unwrap();
    assert_eq!((reply.source, reply.body.as_str()), (Some(Source::Hit), "1"));
    no_task_is_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn only_so_many_stale_answers_are_renewed_at_once() {
    let work = Work::default();
    let cache = CacheHandle::builder(MemoryStorage::new()).with_refreshes(3).build();
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { answer("", work.take(WORK).await) }
        }
    };
    let app = app(&cache, output().with_stale_while_revalidate(100 * MINUTE), handler);
    let requests = || {
        (0..50).map(|n| {
            let mut request = get();
            *request.uri_mut() = format!("/{n}").parse().unwrap();
            request
        })
    };
    burst("fifty targets", &app, requests()).await;
    assert_eq!(work.most(), 50);
    sleep(2 * MINUTE).await;
    let mut rounds = 0;
    while work.calls() < 100 {
        // The second time while those of the first are under way.
        for _ in 0..2 {
            let (_, took) = burst("fifty stale targets", &app, requests()).await;
            assert!(took < Duration::from_millis(5), "{took:?}");
            sleep(WORK / 2).await;
        }
        sleep(WORK / 4).await;
        rounds += 1;
    }
    assert_eq!(work.most(), 3);
    assert_eq!(rounds, 17);
    no_task_is_left(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_panics_gives_its_place_back() {
    let work = Work::default();
    let cache = CacheHandle::builder(MemoryStorage::new()).with_refreshes(1).build();
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move {
                let call = work.take(WORK).await;
                assert!(call == 0 || call > 3, "on purpose");
                answer("", call)
            }
        }
    };
    let app = app(&cache, output().with_stale_while_revalidate(100 * MINUTE), handler);
    send(app.clone(), get()).await.unwrap();
    sleep(2 * MINUTE).await;
    for _ in 0..4 {
        assert_eq!(send(app.clone(), get()).await.unwrap().source, Some(Source::Stale));
        sleep(2 * WORK).await;
    }
    assert_eq!(send(app, get()).await.unwrap().body, "4");
    no_task_is_left(0).await;
}

/// A value whose first makers panic.
#[tokio::test(start_paused = true)]
async fn a_panic_in_a_closure_is_its_caller_s_alone() {
    let (work, cache) = (Work::default(), memory());
    let calls = (0..1_000).map(|_| {
        let (cache, work) = (cache.clone(), work.clone());
        tokio::spawn(async move {
            let fill = async move || {
                let call = work.take(WORK).await;
                assert!(call > 1, "on purpose");
                Ok::<_, Infallible>(call)
            };
            cache.get_or_fill("k", Keep::for_ttl(MINUTE), fill).await
        })
    });
    let began = Instant::now();
    let values: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    let panicked = values.iter().filter(|value| matches!(value, Err(FillError::Panicked)));
    assert_eq!(panicked.count(), 2);
    assert_eq!(values.iter().filter(|value| matches!(value, Ok(2))).count(), 998);
    assert_eq!(work.calls(), 3);
    assert!(is_about(began.elapsed(), 3 * WORK));
    no_task_is_left(0).await;
}

/// Two runtimes share a cache, as servers with one runtime per core do, and the one whose request
/// fills is shut down.
#[test]
fn a_fill_ends_with_its_runtime_and_those_of_others_go_on() {
    for threads in [false, true] {
        let runtime = || match threads {
            false => Builder::new_current_thread().enable_all().build().unwrap(),
            true => Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        };
        let (work, cache) = (Work::default(), memory());
        let handler = {
            let work = work.clone();
            move |_| {
                let work = work.clone();
                async move {
                    let first = work.calls() == 0;
                    answer("", work.take(if first { MINUTE } else { WORK }).await)
                }
            }
        };
        let app = app(&cache, output(), handler);
        let (one, two) = (runtime(), runtime());
        one.block_on(async {
            assert!(timeout(WORK, send(app.clone(), get())).await.is_err());
        });
        assert_eq!(work.calls(), 1);
        let follower = std::thread::spawn({
            let app = app.clone();
            move || two.block_on(async { burst("another runtime's", &app, many(100)).await.0 })
        });
        std::thread::sleep(WORK);
        assert!(!follower.is_finished());
        one.shutdown_background();
        let replies = follower.join().unwrap();
        assert_eq!(count(&replies, |reply| reply.body == "1"), 100);
        assert_eq!(work.calls(), 2);
    }
}

/// What is asked while a runtime stops, is answered with a 500 and not with a panic.
#[test]
fn a_request_outlives_the_runtime_of_its_fill() {
    let handler = |_| async {
        sleep(MINUTE).await;
        answer("", "never")
    };
    let app = app(&memory(), output(), handler);
    let one = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let waiting = {
        let _inside = one.enter();
        let mut future = Box::pin(send(app.clone(), get()));
        assert!((&mut future).now_or_never().is_none());
        future
    };
    one.shutdown_timeout(Duration::from_secs(5));
    let two = Builder::new_current_thread().enable_all().build().unwrap();
    let reply = std::panic::catch_unwind(AssertUnwindSafe(|| two.block_on(waiting)));
    assert_eq!(reply.unwrap().unwrap().status, 500);
}

async fn redis(server: &RedisServer) -> RedisStorage {
    let patience = Duration::from_secs(30);
    RedisStorage::builder()
        .url(server.url())
        .entry_deadline(patience)
        .decision_deadline(patience)
        .connect_timeout(patience)
        .build()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_a_thousand_misses_run_the_handler_once() {
    let server = RedisServer::start();
    let cache = CacheHandle::new(redis(&server).await);
    cache.clear().await.unwrap();
    let before = tasks();
    // Also one that has answered before the last of the others has looked.
    for (what, time) in [("slow", WORK), ("quick", Duration::ZERO)] {
        for _ in 0..5 {
            let work = Work::default();
            let handler = {
                let work = work.clone();
                move |_| {
                    let work = work.clone();
                    async move { answer("", work.take(time).await) }
                }
            };
            let app = app(&cache, output(), handler);
            let name = format!("redis, a miss of what is {what}");
            let (replies, took) = burst(&name, &app, many(1_000)).await;
            assert_eq!(count(&replies, |reply| reply.body == "0"), 1_000);
            assert_eq!(work.calls(), 1, "{what}");
            assert!(took < time + Duration::from_secs(10), "{took:?}");
            cache.clear().await.unwrap();
        }
    }
    no_task_is_left(before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_a_thousand_stale_answers_start_one_refresh() {
    let server = RedisServer::start();
    let cache = CacheHandle::new(redis(&server).await);
    for time in [WORK, Duration::ZERO] {
        let work = Work::default();
        let handler = {
            let work = work.clone();
            move |_| {
                let work = work.clone();
                async move { answer("", work.take(time).await) }
            }
        };
        let policy = output().with_tags(["all"]).with_stale_while_revalidate(MINUTE);
        let app = app(&cache, policy, handler);
        send(app.clone(), get()).await.unwrap();
        // The leader has the answer before it is stored.
        until(MINUTE, || async {
            let reply = send(app.clone(), get()).await.unwrap();
            (reply.source == Some(Source::Hit)).then_some(())
        })
        .await;
        cache.invalidate_softly(["all"]).await.unwrap();
        let (replies, _) = burst("redis, stale", &app, many(1_000)).await;
        let slowest = replies.iter().flatten().map(|reply| reply.took).max();
        println!("the slowest {slowest:?}, {} stale", from(&replies, Source::Stale));
        assert_eq!(from(&replies, Source::Stale) + from(&replies, Source::Hit), 1_000);
        until(MINUTE, || async { (work.done() >= 2).then_some(()) }).await;
        sleep(WORK).await;
        assert_eq!(work.calls(), 2);
        cache.clear().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_lease_two_nodes_run_the_handler_once_in_all() {
    let server = RedisServer::start();
    let nodes = [CacheHandle::new(redis(&server).await), CacheHandle::new(redis(&server).await)];
    for (lease, calls) in [(true, 1), (false, 2)] {
        let work = Work::default();
        let handler = {
            let work = work.clone();
            move |_| {
                let work = work.clone();
                async move { answer("", work.take(WORK).await) }
            }
        };
        let policy = if lease { output().with_lease(MINUTE) } else { output() };
        let apps = nodes.clone().map(|node| app(&node, policy.clone(), handler.clone()));
        let [one, two] = &apps;
        let (one, two) = tokio::join!(
            burst(format!("node 1, lease {lease}"), one, many(500)),
            burst(format!("node 2, lease {lease}"), two, many(500)),
        );
        assert_eq!(work.calls(), calls);
        for (replies, took) in [one, two] {
            assert_eq!(count(&replies, |reply| reply.status == 200), 500);
            assert!(took < WORK + Duration::from_secs(10), "{took:?}");
        }
        let [one, _] = &nodes;
        one.clear().await.unwrap();
    }
}

/// The same for values, and for a handler that fails on the first node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_lease_two_nodes_make_a_value_once_in_all() {
    let server = RedisServer::start();
    let nodes = [CacheHandle::new(redis(&server).await), CacheHandle::new(redis(&server).await)];
    let work = Work::default();
    let calls = (0..500).map(|n: usize| {
        let (cache, work) = (nodes[n % 2].clone(), work.clone());
        tokio::spawn(async move {
            let fill = async move || match work.take(WORK).await {
                0 => Err(Broken),
                call => Ok(call),
            };
            cache.get_or_fill("k", Keep::for_ttl(MINUTE).with_lease(MINUTE), fill).await
        })
    });
    let began = Instant::now();
    let values: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    println!("two nodes, a value whose first maker fails: {:?}", began.elapsed());
    assert_eq!(values.iter().filter(|value| value.is_err()).count(), 1);
    assert_eq!(values.iter().filter(|value| matches!(value, Ok(1))).count(), 499);
    assert_eq!(work.calls(), 2);
}

/// The nodes take turns, as long as none of them knows better; who waits on one of them does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_lease_what_cannot_be_stored_takes_one_turn_of_each_node() {
    let server = RedisServer::start();
    let nodes = [CacheHandle::new(redis(&server).await), CacheHandle::new(redis(&server).await)];
    let work = Work::default();
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { answer("no-store", work.take(WORK).await) }
        }
    };
    let [one, two] = nodes.map(|node| app(&node, output().with_lease(MINUTE), handler.clone()));
    for (what, turns) in [("first", 3), ("then", 1)] {
        let (one, two) = tokio::join!(
            burst(format!("node 1, no-store with a lease, {what}"), &one, many(50)),
            burst(format!("node 2, no-store with a lease, {what}"), &two, many(50)),
        );
        for (replies, took) in [one, two] {
            assert_eq!(count(&replies, |reply| reply.status == 200), 50);
            assert!(took < turns * WORK + Duration::from_secs(2), "{took:?}");
        }
    }
    assert_eq!(work.calls(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_lease_a_handler_that_always_fails_keeps_nobody_for_long() {
    let server = RedisServer::start();
    let nodes = [CacheHandle::new(redis(&server).await), CacheHandle::new(redis(&server).await)];
    let work = Work::default();
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move {
                work.take(WORK).await;
                status(503)
            }
        }
    };
    let [one, two] = nodes.map(|node| app(&node, output().with_lease(MINUTE), handler.clone()));
    let (one, two) = tokio::join!(
        burst("node 1, always fails with a lease", &one, many(200)),
        burst("node 2, always fails with a lease", &two, many(200)),
    );
    for (replies, took) in [one, two] {
        assert_eq!(count(&replies, |reply| reply.status == 503), 200);
        // Three turns of each node, and the rest at once.
        assert!(took < 7 * WORK + Duration::from_secs(2), "{took:?}");
    }
    assert_eq!(work.calls(), 400);
}

/// Also where nothing is remembered: one fill, then all at once, each time.
#[tokio::test(start_paused = true)]
async fn without_hit_for_miss_what_cannot_be_stored_is_waited_for_once() {
    let work = Work::default();
    let storage = MemoryStorage::new();
    let cache = CacheHandle::builder(storage).with_hit_for_miss(Duration::ZERO).build();
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { answer("no-store", work.take(WORK).await) }
        }
    };
    let app = app(&cache, output(), handler);
    for _ in 0..2 {
        let (_, took) = burst("no-store without hit-for-miss", &app, many(20)).await;
        assert!(is_about(took, 2 * WORK), "{took:?}");
        assert_eq!(work.most(), 19);
    }
    assert_eq!(work.calls(), 40);
    no_task_is_left(0).await;
}

/// The chance that XFetch gives, not that chance twice in a row: e^-1 where as much time is left as
/// the handler takes.
#[tokio::test(start_paused = true)]
async fn answers_are_renewed_early_as_often_as_they_should_be() {
    const TARGETS: usize = 1_000;
    let work = Work::default();
    let cache = CacheHandle::builder(MemoryStorage::new()).with_refreshes(TARGETS).build();
    let handler = {
        let work = work.clone();
        move |_| {
            let work = work.clone();
            async move { answer("", work.take(10 * SECOND).await) }
        }
    };
    let app = app(&cache, output().with_early_refresh(1.0), handler);
    let requests = || {
        (0..TARGETS).map(|n| {
            let mut request = get();
            *request.uri_mut() = format!("/{n}").parse().unwrap();
            request
        })
    };
    burst("a thousand targets", &app, requests()).await;
    sleep(50 * SECOND).await;
    let (replies, _) = burst("a thousand hits, 10 s before the end", &app, requests()).await;
    assert_eq!(from(&replies, Source::Hit), TARGETS);
    sleep(11 * SECOND).await;
    let renewed = work.calls() - TARGETS;
    println!("{renewed} of {TARGETS} were renewed");
    assert!((300..=440).contains(&renewed), "{renewed}");
}
