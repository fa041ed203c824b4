//! Bodies that come slowly, too long, too short, never to an end or not at all: what is stored was
//! whole, and who asked gets what came, when it came.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::{ServiceExt, service_fn};
use tower_keep::{
    MemoryStorage, Storage,
    cache::{Cache, CacheHandle, Policy, Source},
    storage::AnyStorage,
};

use crate::{
    redis_storage,
    stage::{Stage, calm, get, of_status, ok, outcome, piece, request, whole},
    support::RedisServer,
};

const TTL: Duration = Duration::from_secs(60);

fn policy() -> Policy {
    Policy::output(TTL)
}

fn stage() -> Stage {
    Stage::new(policy())
}

#[tokio::test(start_paused = true)]
async fn a_body_of_another_length_than_announced_is_passed_on_and_not_stored() {
    for announced in ["2", "10"] {
        for slowly in [false, true] {
            let stage = stage();
            let client = stage.get();
            let mut run = stage.run().await;
            let head = ok().header("content-length", announced);
            if slowly {
                run.respond(head);
                calm().await;
                run.say("four");
                run.end();
            } else {
                run.respond_whole(head, "four");
            }
            let (response, body) = whole(client.await.unwrap()).await.unwrap();
            assert_eq!(body, "four");
            assert_eq!(response.headers()["content-length"], announced, "it must be told");
            assert!(stage.stored().await.is_none(), "announced {announced}, slowly: {slowly}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_of_the_announced_length_is_stored() {
    let stage = stage();
    let client = stage.get();
    let mut run = stage.run().await;
    run.respond(ok().header("content-length", "4"));
    calm().await;
    run.say("four");
    run.end();
    whole(client.await.unwrap()).await.unwrap();
    assert_eq!(stage.stored().await.unwrap().1, "four");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_an_error_for_who_asked_and_one_follower_tries_again() {
    for at_once in [false, true] {
        let stage = stage();
        let leader = stage.get();
        let mut first = stage.run().await;
        let followers: Vec<_> = (0..5).map(|_| stage.get()).collect();
        assert!(stage.is_quiet().await);
        if at_once {
            first.say("half");
            first.break_off();
            first.respond_ok();
        } else {
            first.respond_ok();
            calm().await;
            first.say("half");
            calm().await;
            first.break_off();
        }
        let mut body = leader.await.unwrap().unwrap().into_body();
        assert_eq!(piece(&mut body).await.unwrap(), "half");
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "broken");
        assert!(body.frame().await.is_none());

        let mut second = stage.run().await;
        assert!(stage.is_quiet().await, "one successor is enough");
        second.respond_whole(ok(), "all of it");
        for follower in followers {
            assert_eq!(whole(follower.await.unwrap()).await.unwrap().1, "all of it");
        }
        assert_eq!(stage.stored().await.unwrap().1, "all of it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_cap_streams_on_and_nobody_waits_for_the_next() {
    for at_once in [false, true] {
        let stage = Stage::new(policy().with_max_body(8));
        let client = stage.get();
        let mut run = stage.run().await;
        let follower = stage.get();
        calm().await;
        if at_once {
            (0..10).for_each(|number| run.say(format!("piece {number},")));
            run.end();
            run.respond_ok();
            calm().await;
        } else {
            run.respond_ok();
            for number in 0..10 {
                calm().await;
                run.say(format!("piece {number},"));
            }
            run.end();
        }
        let expected: String = (0..10).map(|number| format!("piece {number},")).collect();
        assert_eq!(whole(client.await.unwrap()).await.unwrap().1, expected);

        let mut own = stage.run().await;
        own.respond_whole(ok(), "for the follower");
        assert_eq!(whole(follower.await.unwrap()).await.unwrap().1, "for the follower");

        let (one, two) = (stage.get(), stage.get());
        let began = Instant::now();
        let (mut first, mut second) = (stage.run().await, stage.run().await);
        assert_eq!(began.elapsed(), Duration::ZERO, "one has waited for the other");
        first.respond_whole(ok(), "a long answer");
        second.respond_whole(ok(), "a long answer");
        for client in [one, two] {
            assert_eq!(whole(client.await.unwrap()).await.unwrap().1, "a long answer");
        }
        assert!(stage.stored().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn what_announces_a_body_over_the_cap_is_not_read_by_the_cache() {
    let stage = Stage::new(policy().with_max_body(8));
    let client = stage.get();
    let mut run = stage.run().await;
    run.respond_whole(ok().header("content-length", "9"), "123456789");
    let (response, body) = whole(client.await.unwrap()).await.unwrap();
    assert_eq!(body, "123456789");
    assert_eq!(outcome(&response).reason, Some("too-large"));
    assert!(!outcome(&response).stored);
}

#[tokio::test(start_paused = true)]
async fn a_body_of_exactly_the_cap_is_stored_and_one_of_a_byte_more_is_not() {
    for (body, is_stored) in [("12345678", true), ("123456789", false)] {
        for pieces in [1, 2] {
            let stage = Stage::new(policy().with_max_body(8));
            let client = stage.get();
            let mut run = stage.run().await;
            run.respond_ok();
            for piece in body.as_bytes().chunks(body.len().div_ceil(pieces)) {
                calm().await;
                run.say(piece);
            }
            run.end();
            assert_eq!(whole(client.await.unwrap()).await.unwrap().1, body);
            assert_eq!(stage.stored().await.is_some(), is_stored, "{body} in {pieces}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_passed_on_as_it_comes_and_stored_whole() {
    let stage = stage();
    let client = stage.get();
    let mut run = stage.run().await;
    run.respond_ok();
    let mut body = client.await.unwrap().unwrap().into_body();
    for number in 0..3 {
        sleep(Duration::from_secs(1)).await;
        let said = format!("piece {number},");
        run.say(&said);
        calm().await;
        assert_eq!(timeout(Duration::ZERO, piece(&mut body)).await.unwrap().unwrap(), said);
    }
    run.end();
    assert!(piece(&mut body).await.is_none());
    assert_eq!(stage.stored().await.unwrap().1, "piece 0,piece 1,piece 2,");
}

#[tokio::test(start_paused = true)]
async fn followers_of_a_slow_body_get_it_when_it_is_whole() {
    let stage = stage();
    let leader = stage.get();
    let mut run = stage.run().await;
    run.respond_ok();
    run.say("slow ");
    let follower = stage.get();
    assert!(stage.is_quiet().await);
    assert!(!follower.is_finished());
    run.say("body");
    run.end();
    let (response, body) = whole(follower.await.unwrap()).await.unwrap();
    assert_eq!(body, "slow body");
    assert_eq!(outcome(&response).source, Source::Collapsed);
    assert_eq!(whole(leader.await.unwrap()).await.unwrap().1, "slow body");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let stage = stage();
    let leader = stage.get();
    let mut run = stage.run().await;
    run.respond_ok();
    let unread = leader.await.unwrap().unwrap();
    let follower = stage.get();
    calm().await;
    for _ in 0..100 {
        run.say([b'x'; 1000]);
    }
    run.end();
    assert_eq!(whole(follower.await.unwrap()).await.unwrap().1.len(), 100_000);
    assert_eq!(stage.stored().await.unwrap().1.len(), 100_000);
    assert_eq!(whole(Ok(unread)).await.unwrap().1.len(), 100_000);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_before_the_head_or_in_the_body_does_not_stop_the_fill() {
    for leaves_before_the_head in [true, false] {
        let stage = stage();
        let client = stage.get();
        let mut run = stage.run().await;
        if leaves_before_the_head {
            client.abort();
            calm().await;
            run.respond_ok();
        } else {
            run.respond_ok();
            run.say("one ");
            let mut body = client.await.unwrap().unwrap().into_body();
            assert_eq!(piece(&mut body).await.unwrap(), "one ");
            drop(body);
        }
        calm().await;
        if leaves_before_the_head {
            run.say("one ");
        }
        run.say("two");
        run.end();
        calm().await;
        assert!(run.body_is_dropped());
        assert_eq!(stage.stored().await.unwrap().1, "one two");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_body_is_not_read_for_a_client_that_has_gone() {
    // It trickles below the cap: until the fill times out.
    let stage = Stage::new(policy().with_fill_timeout(Duration::from_secs(10)));
    let client = stage.get();
    let mut run = stage.run().await;
    run.respond_ok();
    drop(client.await.unwrap().unwrap());
    for _ in 0..9 {
        run.say("drop ");
        advance(Duration::from_secs(1)).await;
        calm().await;
        assert!(!run.body_is_dropped(), "it may still become an answer for others");
    }
    advance(Duration::from_secs(2)).await;
    calm().await;
    assert!(run.body_is_dropped());
    assert!(stage.stored().await.is_none());

    // It passes the cap: from then on.
    let stage = Stage::new(policy().with_max_body(8));
    let client = stage.get();
    let mut run = stage.run().await;
    run.respond_ok();
    drop(client.await.unwrap().unwrap());
    run.say("more than eight bytes");
    calm().await;
    assert!(run.body_is_dropped());

    // It cannot be stored: at once.
    let stage = self::stage();
    let client = stage.get();
    let mut run = stage.run().await;
    run.respond(ok().header("content-type", "text/event-stream"));
    drop(client.await.unwrap().unwrap());
    calm().await;
    assert!(run.body_is_dropped());
    // And no task is left.
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_endless_body_goes_on_when_the_time_to_store_it_is_over() {
    let stage = Stage::new(policy().with_fill_timeout(Duration::from_secs(10)));
    let client = stage.get();
    let mut run = stage.run().await;
    run.respond_ok();
    let mut body = client.await.unwrap().unwrap().into_body();
    let began = Instant::now();
    let follower = stage.get();
    let mut other = stage.run().await;
    assert_eq!(began.elapsed().as_secs(), 10, "a follower waits no longer");
    other.respond_whole(ok(), "another");
    assert_eq!(whole(follower.await.unwrap()).await.unwrap().1, "another");
    for number in 0..40 {
        let said = format!("piece {number}");
        run.say(&said);
        assert_eq!(piece(&mut body).await.unwrap(), said);
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(stage.stored().await.unwrap().1, "another");
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn events_flow_for_an_hour_and_every_client_has_his_own() {
    let stage = stage();
    let head = || ok().header("content-type", "text/event-stream");
    let (one, two) = (stage.get(), stage.get());
    let mut first = stage.run().await;
    first.respond(head());
    let mut one = one.await.unwrap().unwrap();
    assert_eq!(outcome(&one).reason, Some("event-stream"));
    let mut second = stage.run().await;
    second.respond(head());
    let mut two = two.await.unwrap().unwrap();
    for minute in 0..60 {
        for (run, client, name) in [(&first, &mut one, "one"), (&second, &mut two, "two")] {
            let event = format!("data: {name} {minute}\n\n");
            run.say(&event);
            let arrived = timeout(Duration::ZERO, piece(client.body_mut())).await;
            assert_eq!(arrived.expect("an event is held up").unwrap(), event);
        }
        advance(Duration::from_secs(60)).await;
    }
    first.end();
    assert!(piece(one.body_mut()).await.is_none());
    drop(two);
    assert!(second.body_is_dropped());
    assert!(stage.stored().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_gets_through_with_all_that_belongs_to_it() {
    /// As hyper's `OnUpgrade` does, it rides in the extensions.
    #[derive(Clone)]
    struct OnUpgrade;
    let stage = stage();
    let mut asked = get();
    asked.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    asked.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    asked.headers_mut().insert("sec-websocket-key", HeaderValue::from_static("x3JJ"));
    asked.extensions_mut().insert(OnUpgrade);
    let client = stage.send(asked);
    let mut run = stage.run().await;
    assert_eq!(run.request.headers()["upgrade"], "websocket");
    assert_eq!(run.request.headers()["sec-websocket-key"], "x3JJ");
    assert!(run.request.extensions().get::<OnUpgrade>().is_some());
    run.respond(of_status(101).header("upgrade", "websocket").extension(OnUpgrade));
    let response = client.await.unwrap().unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "websocket");
    assert!(response.extensions().get::<OnUpgrade>().is_some());
    assert!(stage.stored().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn trailers_are_passed_on_and_nothing_of_the_answer_is_stored() {
    for slowly in [true, false] {
        let stage = stage();
        let client = stage.get();
        let mut run = stage.run().await;
        if slowly {
            run.respond_ok();
            calm().await;
        }
        run.say("body");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("17"));
        run.trailers(trailers);
        run.end();
        if !slowly {
            run.respond_ok();
        }
        let body = client.await.unwrap().unwrap().into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-checksum"], "17");
        assert_eq!(body.to_bytes(), "body");
        assert!(stage.stored().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn parts_and_answers_without_content_are_not_stored_for_the_whole() {
    for (method, status) in [("GET", 206), ("GET", 304), ("HEAD", 200)] {
        let stage = stage();
        let client = stage.send(request(method));
        let mut run = stage.run().await;
        run.respond(of_status(status).header("content-length", "100"));
        let response = client.await.unwrap().unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["content-length"], "100");
        run.end();
        assert_eq!(whole(Ok(response)).await.unwrap().1, "");
        assert!(stage.stored().await.is_none(), "{method} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_without_a_byte_is_one() {
    for (status, length) in [(200, Some("0")), (200, None), (204, None)] {
        for slowly in [true, false] {
            let stage = stage();
            let client = stage.get();
            let mut run = stage.run().await;
            let head = of_status(status);
            let head = length.into_iter().fold(head, |head, it| head.header("content-length", it));
            if slowly {
                run.respond(head);
                calm().await;
                run.say("");
                run.end();
            } else {
                run.respond_whole(head, "");
            }
            assert_eq!(whole(client.await.unwrap()).await.unwrap().1, "");
            let (response, body) = stage.stored().await.expect("it is stored");
            assert_eq!((response.status().as_u16(), &body[..]), (status, &b""[..]));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_knows_its_length() {
    let stage = stage();
    let client = stage.get();
    let mut run = stage.run().await;
    run.respond_whole(ok(), "twelve bytes");
    whole(client.await.unwrap()).await.unwrap();
    let body = stage.get().await.unwrap().unwrap().into_body();
    assert_eq!(body.size_hint().exact(), Some(12));
    assert!(!body.is_end_stream());
}

/// A MiB in which no two pieces are equal, so that nothing can be swapped unnoticed.
fn mebibyte() -> Bytes {
    (0_u32..1 << 18).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

async fn a_mebibyte_comes_back_as_it_was(storage: AnyStorage) {
    for chunk in [1 << 20, 1000] {
        let cache = CacheHandle::builder(storage.clone())
            .with_namespace(tower_keep::storage::Name::new(&format!("chunks-of-{chunk}")))
            .build();
        let handler = service_fn(move |_: Request<Body>| async move {
            let whole = mebibyte();
            let pieces: Vec<_> = (0..whole.len())
                .step_by(chunk)
                .map(|at| Ok::<_, std::io::Error>(whole.slice(at..whole.len().min(at + chunk))))
                .collect();
            let stream = futures_util::stream::iter(pieces);
            Ok::<_, std::io::Error>(http::Response::new(Body::from_stream(stream)))
        });
        let service = Cache::new(handler, cache, policy());
        let mut sources = Vec::new();
        while sources.last() != Some(&Source::Hit) {
            assert!(sources.len() < 100, "it is never found");
            let request = Request::get("/").header("host", "a").body(Body::empty()).unwrap();
            let response = service.clone().oneshot(request).await.unwrap();
            sources.push(outcome(&response).source);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(body == mebibyte(), "{sources:?}: a body of {} bytes is another", body.len());
        }
    }
}

#[tokio::test]
async fn a_mebibyte_comes_back_as_it_was_on_memory() {
    a_mebibyte_comes_back_as_it_was(MemoryStorage::new().erase()).await;
}

#[tokio::test]
async fn a_mebibyte_comes_back_as_it_was_on_redis() {
    let server = RedisServer::start();
    a_mebibyte_comes_back_as_it_was(redis_storage(&server.url(), "tk").await).await;
}
