//! What an adversary has found: purges that came back, and waits without an end.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::State, routing::get};
use http::{Request, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage, RedisStorage, Storage,
    cache::{CacheHandle, CacheLayer, Keep, Policy},
    storage::{Get, Identity, Invalidation, Key, Name, Put, Tag, Tags},
};

use crate::support::RedisServer;

const MINUTE: Duration = Duration::from_secs(60);

async fn storage(url: &str) -> RedisStorage {
    RedisStorage::builder()
        .url(url)
        .prefix("adversary")
        .secret("of the adversary, long enough")
        .entry_deadline(Duration::from_secs(10))
        .decision_deadline(Duration::from_secs(10))
        .build()
        .await
        .unwrap()
}

/// A way to the server that loses a reply, with the connection, and then is closed for a while.
struct Losing {
    port: u16,
    next: AtomicBool,
    open: Semaphore,
}

impl Losing {
    async fn start(target: u16) -> Arc<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::new(Self { port, next: false.into(), open: Semaphore::new(1) });
        let shared = Arc::clone(&way);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                drop(shared.open.acquire().await);
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await.unwrap();
                tokio::spawn(Arc::clone(&shared).forward(client, server));
            }
        });
        way
    }

    async fn forward(self: Arc<Self>, mut client: TcpStream, mut server: TcpStream) {
        let (mut commands, mut replies) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            tokio::select! {
                read = client.read(&mut commands) => match read {
                    Ok(length) if length > 0 => server.write_all(&commands[..length]).await.unwrap(),
                    _ => return,
                },
                read = server.read(&mut replies) => match read {
                    Ok(length) if length > 0 => {
                        if self.next.swap(false, SeqCst) {
                            self.open.forget_permits(1);
                            return;
                        }
                        client.write_all(&replies[..length]).await.unwrap();
                    }
                    _ => return,
                },
            }
        }
    }

    async fn has_lost(&self) {
        while self.open.available_permits() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// What is sent again because its reply was lost must not undo what happened since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_everything_that_is_sent_again_leaves_later_purges_alone() {
    let server = RedisServer::start();
    let way = Losing::start(server.port()).await;
    let far = storage(&format!("redis://127.0.0.1:{}", way.port)).await;
    let near = storage(&server.url()).await;
    let namespace = Name::new("cache");
    let key = Key::new(&namespace, &Name::new("r"), Identity::new("page"));
    let tags = [Tag::new("page")];
    far.invalidate(&namespace, Tags::Any(&tags), Invalidation::Hard).await.unwrap();

    way.next.store(true, SeqCst);
    let everything = {
        let namespace = namespace.clone();
        tokio::spawn(async move { far.invalidate(&namespace, Tags::All, Invalidation::Hard).await })
    };
    way.has_lost().await;
    let fence = near.get(&key, Get::new().with_fence()).await.unwrap().fence.unwrap();
    let old = Put::new("old".into(), MINUTE).with_max_lifetime(MINUTE);
    near.put(&key, old.with_tags(&tags).with_fence(fence)).await.unwrap();
    assert!(near.get(&key, Get::new()).await.unwrap().entry.is_some());
    near.invalidate(&namespace, Tags::Any(&tags), Invalidation::Hard).await.unwrap();
    assert!(!everything.is_finished());
    way.open.add_permits(1);
    everything.await.unwrap().unwrap();
    assert_eq!(near.get(&key, Get::new()).await.unwrap().entry, None, "it was purged");
}

/// A secret that the server has evicted is drawn anew by the next process to come; the others use the
/// old one for up to a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_reaches_a_node_that_has_another_secret() {
    let server = RedisServer::start();
    let node = async || {
        let builder = RedisStorage::builder().url(server.url()).prefix("adversary");
        CacheHandle::new(builder.build().await.unwrap())
    };
    let number = AtomicUsize::new(0);
    let read = async |cache: &CacheHandle| {
        let number = number.load(SeqCst);
        let keep = Keep::for_ttl(MINUTE).with_tags(["numbers"]);
        let fill = async move || Ok::<_, std::io::Error>(number);
        cache.get_or_fill("number", keep, fill).await.unwrap()
    };
    let old = node().await;
    read(&old).await;
    server.ask("DEL adversary:secret");
    let new = node().await;
    read(&new).await;
    for (purging, other) in [(&old, &new), (&new, &old)] {
        read(other).await;
        let next = number.fetch_add(1, SeqCst) + 1;
        purging.invalidate(["numbers"]).await.unwrap();
        assert_eq!(read(other).await, next);
    }
}

/// Who holds a place with the handlers never waits for another.
#[tokio::test(start_paused = true)]
async fn during_an_outage_handlers_that_want_values_are_not_stuck() {
    async fn page(State(cache): State<CacheHandle>) -> String {
        let fill = async || Ok::<_, std::io::Error>("value".to_owned());
        cache.get_or_fill("value", Keep::for_ttl(MINUTE), fill).await.unwrap()
    }
    let server = RedisServer::stopped();
    let storage = storage(&server.url()).await;
    let cache = CacheHandle::builder(storage).with_outage_concurrency(2).build();
    let layer = CacheLayer::from_handle(cache.clone(), Policy::output(MINUTE));
    let app = Router::new().route("/{page}", get(page)).with_state(cache).layer(layer);
    let pages = (0..2).map(|page| {
        let request = Request::get(format!("/{page}")).header("host", "shop.example");
        tokio::spawn(app.clone().oneshot(request.body(Body::empty()).unwrap()))
    });
    for page in pages.collect::<Vec<_>>() {
        let response = timeout(60 * MINUTE, page).await.expect("stuck").unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_wants_its_own_value_does_not_wait_for_itself() {
    let cache = CacheHandle::new(MemoryStorage::new());
    let (began, inner) = (Instant::now(), cache.clone());
    let fill = async move || {
        let fill = async || Ok::<_, std::io::Error>(1);
        inner.get_or_fill("a", Keep::for_ttl(MINUTE), fill).await
    };
    assert_eq!(cache.get_or_fill("a", Keep::for_ttl(MINUTE), fill).await.unwrap(), 1);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// As of a command of an admin's, or a job, in a thread with a runtime of its own.
#[test]
fn a_purge_that_failed_is_repeated_although_its_runtime_has_gone() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut server = RedisServer::start();
    let main = runtime();
    let cache = main.block_on(async { CacheHandle::new(storage(&server.url()).await) });
    server.kill();
    runtime().block_on(cache.invalidate(["x"])).unwrap_err();
    server.restart();
    main.block_on(async {
        let calls = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        loop {
            let (before, count) = (calls.load(SeqCst), Arc::clone(&calls));
            let fill = async move || Ok::<_, std::io::Error>(count.fetch_add(1, SeqCst));
            cache.get_or_fill("a", Keep::for_ttl(MINUTE), fill).await.unwrap();
            if calls.load(SeqCst) == before {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "the cache is passed by for ever");
            sleep(Duration::from_millis(20)).await;
        }
    });
}
