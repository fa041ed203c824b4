//! A little world in which everything happens at once, and what may be seen in it.
//!
//! Pages are rendered from a database of numbers that only rise. Writers raise one and then purge.
//! When the purge has returned, no lookup that begins later may show a number from before.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::HeaderMap,
    response::IntoResponse,
    routing::get,
};
use futures_util::stream;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage, Storage,
    cache::{CacheHandle, CacheLayer, CacheTags, FillError, Keep, Outcome, Policy, Source},
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result, Tags, Verdict, When,
    },
};

pub(crate) use crate::race::{Dice, count};

/// A memory storage at the other end of a network that delays, and loses, requests and replies.
#[derive(Debug, Clone)]
pub(crate) struct Distant {
    memory: MemoryStorage,
    dice: Dice,
    /// One way in so many is lost; 0: none.
    losses: u64,
    /// Whether it stores with a new fence instead of that of the lookup: to show that it matters.
    forges_fences: bool,
}

impl Distant {
    pub(crate) fn new(memory: &MemoryStorage, dice: &Dice, losses: u64) -> Self {
        Self { memory: memory.clone(), dice: dice.clone(), losses, forges_fences: false }
    }

    pub(crate) fn forging(mut self) -> Self {
        self.forges_fences = true;
        self
    }

    async fn way(&self) -> Result<()> {
        self.dice.pause().await;
        if self.losses > 0 && self.dice.one_in(self.losses) {
            return Err(Error::new(ErrorKind::Unavailable, "lost on the way"));
        }
        Ok(())
    }
}

impl Storage for Distant {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.way().await?;
        let lookup = self.memory.get(key, get).await;
        self.way().await?;
        lookup
    }

    async fn put(&self, key: &Key, mut put: Put<'_>) -> Result<PutOutcome> {
        self.way().await?;
        if self.forges_fences && put.fence.is_some() {
            put.fence = self.memory.get(key, Get::new().with_fence()).await?.fence;
        }
        let outcome = self.memory.put(key, put).await;
        self.way().await?;
        outcome
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.way().await?;
        let deleted = self.memory.delete(key, when).await;
        self.way().await?;
        deleted
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.way().await?;
        let invalidated = self.memory.invalidate(namespace, tags, how).await;
        self.way().await?;
        invalidated
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.memory.acquire(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}

pub(crate) const PAGES: usize = 2;

/// What a node must show at least, and from when on.
#[derive(Debug, Default)]
struct Floors {
    /// Numbers of responses, by page.
    responses: [Floor; PAGES],
    /// As long as they are not said to be stale.
    fresh: [Floor; PAGES],
    values: [Floor; PAGES],
    fresh_values: [Floor; PAGES],
}

#[derive(Debug, Default)]
struct Floor(Mutex<Vec<(Option<Instant>, u64)>>);

impl Floor {
    /// For lookups that begin after the time; at once if there is none.
    fn raise(&self, after: Option<Instant>, number: u64) {
        self.0.lock().unwrap().push((after, number));
    }

    fn now(&self) -> u64 {
        let now = Instant::now();
        let counts = |(after, number): &(Option<Instant>, u64)| {
            after.is_none_or(|after| now > after).then_some(*number)
        };
        self.0.lock().unwrap().iter().filter_map(counts).max().unwrap_or(0)
    }
}

/// How a world is made.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// How late a node may see the purges of another: the lag of its near cache.
    pub(crate) lag: Duration,
    pub(crate) readers: usize,
    pub(crate) writers: usize,
    /// The answers say themselves how long they live, and vary.
    pub(crate) http: bool,
    pub(crate) stale: Duration,
    pub(crate) lease: bool,
}

impl Rules {
    pub(crate) fn thrown(dice: &Dice) -> Self {
        Self {
            lag: Duration::ZERO,
            readers: 6,
            writers: 2,
            http: dice.one_in(2),
            stale: Duration::from_secs([0, 30][dice.below(2) as usize]),
            lease: dice.one_in(3),
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        let minute = Duration::from_secs(60);
        let mut policy = match self.http {
            true => Policy::http(),
            false => Policy::output(minute)
                .with_stale_while_revalidate(self.stale)
                .with_stale_if_error(self.stale),
        };
        if self.lease {
            policy = policy.with_lease(Duration::from_secs(2));
        }
        policy.with_tags(["pages"])
    }

    fn keep(&self, page: usize) -> Keep {
        let keep = Keep::for_ttl(Duration::from_secs(60))
            .with_tags([format!("page:{page}")])
            .with_stale_while_revalidate(self.stale)
            .with_stale_if_error(self.stale);
        if self.lease { keep.with_lease(Duration::from_secs(2)) } else { keep }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) hits: AtomicUsize,
    pub(crate) stale: AtomicUsize,
    pub(crate) rendered: AtomicUsize,
    pub(crate) collapsed: AtomicUsize,
    pub(crate) values: AtomicUsize,
    pub(crate) failures: AtomicUsize,
    pub(crate) purges: AtomicUsize,
    pub(crate) failed_purges: AtomicUsize,
    pub(crate) violations: Mutex<Vec<String>>,
}

impl Counts {
    /// Fails if anything was seen that may not be, or if too little happened to tell.
    pub(crate) fn check(&self, what: &str, rounds: usize) {
        println!("{what}: {rounds} rounds, {self}");
        let violations = self.violations.lock().unwrap();
        assert!(
            violations.is_empty(),
            "{} violations, such as {}",
            violations.len(),
            violations[0]
        );
        for count in [&self.hits, &self.rendered, &self.collapsed, &self.values, &self.purges] {
            assert!(count.load(SeqCst) > 0, "{self}");
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} hits, {} stale, {} rendered, {} collapsed, {} values, {} failures, {} purges, \
             {} failed purges, {} violations",
            self.hits.load(SeqCst),
            self.stale.load(SeqCst),
            self.rendered.load(SeqCst),
            self.collapsed.load(SeqCst),
            self.values.load(SeqCst),
            self.failures.load(SeqCst),
            self.purges.load(SeqCst),
            self.failed_purges.load(SeqCst),
            self.violations.lock().unwrap().len(),
        )
    }
}

struct Node {
    app: Router,
    cache: CacheHandle,
    floors: Floors,
}

pub(crate) struct World {
    rules: Rules,
    dice: Dice,
    nodes: Vec<Node>,
    database: Arc<Database>,
    counts: Arc<Counts>,
}

struct Database {
    pages: [AtomicU64; PAGES],
    dice: Dice,
    http: bool,
}

impl Database {
    fn read(&self, page: usize) -> u64 {
        self.pages[page].load(SeqCst)
    }
}

async fn render(
    State(database): State<Arc<Database>>,
    Path(page): Path<usize>,
    headers: HeaderMap,
) -> impl IntoResponse + use<> {
    let dice = &database.dice;
    dice.pause().await;
    let number = database.read(page);
    dice.pause().await;
    if dice.one_in(16) {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let tags = CacheTags::new([format!("page:{page}")]);
    let etag = format!("\"{number}\"");
    let mut fields = HeaderMap::new();
    fields.insert("etag", etag.parse().unwrap());
    if database.http {
        let control = "max-age=60, stale-while-revalidate=30, stale-if-error=30";
        fields.insert("cache-control", control.parse().unwrap());
        if page == 1 {
            fields.insert("vary", "x-lang".parse().unwrap());
        }
    }
    if headers.get("if-none-match").is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, fields, tags, ()).into_response();
    }
    let body = match dice.one_in(4) {
        true => {
            let pieces = [number.to_string(), " slowly".to_owned()].into_iter();
            let dice = dice.clone();
            Body::from_stream(stream::unfold(pieces, move |mut pieces| {
                let dice = dice.clone();
                async move {
                    dice.pause().await;
                    Some((Ok::<_, std::io::Error>(Bytes::from(pieces.next()?)), pieces))
                }
            }))
        }
        false => Body::from(number.to_string()),
    };
    (fields, tags, body).into_response()
}

async fn write(State(database): State<Arc<Database>>, Path(page): Path<usize>) -> String {
    database.dice.pause().await;
    let number = database.pages[page].fetch_add(1, SeqCst) + 1;
    database.dice.pause().await;
    number.to_string()
}

impl World {
    pub(crate) fn new(
        rules: Rules,
        dice: &Dice,
        caches: Vec<CacheHandle>,
        counts: &Arc<Counts>,
    ) -> Arc<Self> {
        let database = Arc::new(Database {
            pages: [1.into(), 1.into()],
            dice: dice.clone(),
            http: rules.http,
        });
        let node = |cache: CacheHandle| Node {
            app: Router::new()
                .route("/pages/{page}", get(render).put(write))
                .with_state(Arc::clone(&database))
                .layer(CacheLayer::from_handle(cache.clone(), rules.policy())),
            cache,
            floors: Floors::default(),
        };
        let nodes = caches.into_iter().map(node).collect();
        Arc::new(Self { rules, dice: dice.clone(), nodes, database, counts: Arc::clone(counts) })
    }

    /// Lets everybody do something, until all are done.
    pub(crate) async fn run(self: &Arc<Self>) {
        let mut tasks = tokio::task::JoinSet::new();
        for reader in 0..self.rules.readers {
            let world = Arc::clone(self);
            tasks.spawn(async move {
                for _ in 0..4 {
                    world.dice.pause().await;
                    match reader % 3 {
                        2 => world.read_value().await,
                        _ => world.read_page().await,
                    }
                }
            });
        }
        for _ in 0..self.rules.writers {
            let world = Arc::clone(self);
            tasks.spawn(async move {
                for _ in 0..3 {
                    world.dice.pause().await;
                    world.dice.pause().await;
                    world.change().await;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }

    fn somewhere(&self) -> usize {
        self.dice.below(self.nodes.len() as u64) as usize
    }

    fn some_page(&self) -> usize {
        self.dice.below(PAGES as u64) as usize
    }

    fn complain(&self, complaint: String) {
        self.counts.violations.lock().unwrap().push(complaint);
    }

    async fn read_page(&self) {
        let (n, page) = (self.somewhere(), self.some_page());
        let node = &self.nodes[n];
        let lang = ["de", "en"][self.dice.below(2) as usize];
        let request = Request::get(format!("/pages/{page}"))
            .header("host", "shop.example")
            .header("x-lang", lang)
            .body(Body::empty())
            .unwrap();
        let (hard, fresh) = (node.floors.responses[page].now(), node.floors.fresh[page].now());
        let (parts, body) = node.app.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let source = parts.extensions.get::<Outcome>().map(|outcome| outcome.source);
        let counter = match source {
            _ if parts.status != StatusCode::OK => &self.counts.failures,
            Some(Source::Hit) => &self.counts.hits,
            Some(Source::Stale) => &self.counts.stale,
            Some(Source::Collapsed) => &self.counts.collapsed,
            _ => &self.counts.rendered,
        };
        counter.fetch_add(1, SeqCst);
        if parts.status != StatusCode::OK {
            return;
        }
        let text = std::str::from_utf8(&body).unwrap();
        let number: u64 = text.split(' ').next().unwrap().parse().unwrap();
        if number < hard {
            self.complain(format!("node {n}, page {page}: {number} after {hard}, {source:?}"));
        }
        if number < fresh && source != Some(Source::Stale) {
            self.complain(format!(
                "node {n}, page {page}: {number} not stale, {fresh}: {source:?}"
            ));
        }
    }

    async fn read_value(&self) {
        let (n, page) = (self.somewhere(), self.some_page());
        let node = &self.nodes[n];
        let (hard, fresh) = (node.floors.values[page].now(), node.floors.fresh_values[page].now());
        let database = Arc::clone(&self.database);
        let fill = async move || {
            database.dice.pause().await;
            let number = database.read(page);
            database.dice.pause().await;
            if database.dice.one_in(16) { Err("no luck") } else { Ok(number) }
        };
        match node.cache.get_or_fill(format!("page {page}"), self.rules.keep(page), fill).await {
            Ok(number) => {
                self.counts.values.fetch_add(1, SeqCst);
                let least = if self.rules.stale.is_zero() { hard.max(fresh) } else { hard };
                if number < least {
                    self.complain(format!("node {n}, value {page}: {number} after {least}"));
                }
            }
            Err(FillError::Fill(_)) => {
                self.counts.failures.fetch_add(1, SeqCst);
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn change(&self) {
        let (n, page) = (self.somewhere(), self.some_page());
        let node = &self.nodes[n];
        let how = self.dice.below(9);
        if how != 0 {
            self.database.pages[page].fetch_add(1, SeqCst);
            self.dice.pause().await;
        }
        // What the database holds when the purge begins is what lookups must show after it.
        let before = [0, 1].map(|page| self.database.read(page));
        let tag = [format!("page:{page}")];
        let (purged, reach) = match how {
            0 => {
                let put = Request::put(format!("/pages/{page}"))
                    .header("host", "shop.example")
                    .body(Body::empty())
                    .unwrap();
                let response = node.app.clone().oneshot(put).await.unwrap();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                let number = std::str::from_utf8(&body).unwrap().parse().unwrap();
                // Whether its purge was acknowledged, the client is not told.
                node.floors.responses[page].raise(None, number);
                return;
            }
            1 => (node.cache.invalidate_uri(&format!("/pages/{page}")).await, Reach::Page),
            2 => (node.cache.clear().await, Reach::Everything),
            3 => (node.cache.invalidate_route("/pages/{page}").await, Reach::Pages),
            4 => (node.cache.invalidate_host("shop.example").await, Reach::Pages),
            5 => (node.cache.invalidate_key(format!("page {page}")).await, Reach::Value),
            6 => (node.cache.invalidate_softly(&tag).await, Reach::SoftTag),
            _ => (node.cache.invalidate(&tag).await, Reach::Tag),
        };
        let counter = if purged.is_ok() { &self.counts.purges } else { &self.counts.failed_purges };
        counter.fetch_add(1, SeqCst);
        let returned = Instant::now();
        for (other, node) in self.nodes.iter().enumerate() {
            if other != n && purged.is_err() {
                continue;
            }
            let late = other != n && !self.rules.lag.is_zero();
            let after = late.then(|| returned + self.rules.lag);
            let Floors { responses, fresh, values, fresh_values } = &node.floors;
            let raised: Vec<(&[Floor; PAGES], usize)> = match reach {
                Reach::Page => vec![(responses, page)],
                Reach::Value => vec![(values, page)],
                Reach::Tag => vec![(responses, page), (values, page)],
                Reach::SoftTag => vec![(fresh, page), (fresh_values, page)],
                Reach::Pages => vec![(responses, 0), (responses, 1)],
                Reach::Everything => {
                    vec![(responses, 0), (responses, 1), (values, 0), (values, 1)]
                }
            };
            for (floors, page) in raised {
                floors[page].raise(after, before[page]);
            }
        }
    }
}

/// What a purge ends.
enum Reach {
    Page,
    Value,
    Tag,
    SoftTag,
    Pages,
    Everything,
}
