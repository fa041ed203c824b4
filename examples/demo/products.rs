//! Cached answers, and writes that are never followed by an older read.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{
        Path, State,
        rejection::{JsonRejection, PathRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::{
    CacheHandle, CacheLayer, Storage,
    cache::{CacheTags, Policy, Query},
    storage::{AnyStorage, Get, Identity, Key, Name, Put},
};

use crate::routes::problem;

/// What a query of a real shop would take.
const SLOW: Duration = Duration::from_millis(150);
const NAMES: [&str; 3] = ["lantern", "ladder", "rope"];

pub(crate) fn products(storage: &AnyStorage) -> Router {
    let policy = Policy::output(Duration::from_secs(60))
        .with_negative_ttl(StatusCode::NOT_FOUND, Duration::from_secs(5))
        .with_tags(["products"])
        // `?x=1` is not another product.
        .with_query(Query::Ignored)
        .with_cookies_ignored();
    let layer = CacheLayer::new(storage.clone(), policy);
    let shop = Shop {
        cache: layer.handle().clone(),
        prices: Arc::new(Prices::new(storage.clone())),
        renders: Arc::default(),
    };
    Router::new()
        .route("/api/products", get(list))
        .route("/api/products/{id}", get(show).put(change))
        .layer(layer)
        .with_state(shop)
}

#[derive(Clone)]
struct Shop {
    cache: CacheHandle,
    prices: Arc<Prices>,
    /// How often the handler of each product has run.
    renders: Arc<[AtomicU64; NAMES.len()]>,
}

impl Shop {
    async fn describe(&self, index: usize, renders: u64) -> Value {
        json!({
            "id": index + 1,
            "name": NAMES[index],
            "price": self.prices.read(index).await,
            "renders": renders,
        })
    }
}

async fn list(State(shop): State<Shop>) -> impl IntoResponse {
    tokio::time::sleep(SLOW).await;
    let mut products = Vec::new();
    for index in 0..NAMES.len() {
        products.push(shop.describe(index, shop.renders[index].load(Relaxed)).await);
    }
    let tags: CacheTags = (1..=NAMES.len()).map(|id| format!("product:{id}")).collect();
    (tags, Json(json!({ "products": products })))
}

async fn show(State(shop): State<Shop>, id: Id) -> Response {
    tokio::time::sleep(SLOW).await;
    match find(id) {
        Some(index) => {
            let renders = shop.renders[index].fetch_add(1, Relaxed) + 1;
            let product = Json(shop.describe(index, renders).await);
            (CacheTags::new([tag(index)]), product).into_response()
        }
        None => problem(StatusCode::NOT_FOUND, "there is no such product"),
    }
}

#[derive(Deserialize)]
struct Change {
    price: u32,
}

async fn change(
    State(shop): State<Shop>,
    id: Id,
    body: Result<Json<Change>, JsonRejection>,
) -> Response {
    let Some(index) = find(id) else {
        return problem(StatusCode::NOT_FOUND, "there is no such product");
    };
    let Ok(Json(Change { price })) = body else {
        return problem(StatusCode::BAD_REQUEST, "send {\"price\": 5} as application/json");
    };
    shop.prices.write(index, price).await;
    // First the write, then the purge, then the answer: whoever reads after it reads the new price.
    // If the storage does not acknowledge the purge, the cache repeats it, and is passed by until it
    // has succeeded.
    if let Err(error) = shop.cache.invalidate([tag(index)]).await {
        tracing::warn!(%error, "a purge is under way");
    }
    Json(json!({ "id": index + 1, "name": NAMES[index], "price": price })).into_response()
}

/// Not all paths are UTF-8.
type Id = Result<Path<String>, PathRejection>;

/// A product has one address: neither `01` nor `+1` is another for `1`.
fn find(id: Id) -> Option<usize> {
    let Path(id) = id.ok()?;
    (0..NAMES.len()).find(|index| (index + 1).to_string() == id)
}

pub(crate) fn exists(id: u32) -> bool {
    usize::try_from(id).is_ok_and(|id| (1..=NAMES.len()).contains(&id))
}

fn tag(index: usize) -> String {
    format!("product:{}", index + 1)
}

/// Stands for the shop's database: one for all processes on a Redis, and each its own while that is
/// away.
struct Prices {
    storage: AnyStorage,
    known: Mutex<[Price; NAMES.len()]>,
}

/// The newest wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Price {
    written: u64,
    price: u32,
}

impl Prices {
    fn new(storage: AnyStorage) -> Self {
        let known = Mutex::new([20, 45, 12].map(|price| Price { written: 0, price }));
        Self { storage, known }
    }

    async fn read(&self, index: usize) -> u32 {
        let found = self.storage.get(&key(index), Get::new()).await;
        let stored = found.ok().and_then(|found| Price::decode(&found.entry?.value));
        let known = self.merge(index, stored);
        if known.written > 0 && stored.is_none_or(|stored| stored < known) {
            self.store(index, known).await;
        }
        known.price
    }

    async fn write(&self, index: usize, price: u32) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let newest = self.merge(index, None);
        let written = (now.as_micros() as u64).max(newest.written + 1);
        let newest = self.merge(index, Some(Price { written, price }));
        self.store(index, newest).await;
    }

    fn merge(&self, index: usize, other: Option<Price>) -> Price {
        let mut known = self.known.lock().unwrap();
        known[index] = known[index].max(other.unwrap_or(known[index]));
        known[index]
    }

    async fn store(&self, index: usize, price: Price) {
        let put = Put::new(price.encode().into(), Duration::from_secs(86_400));
        if let Err(error) = self.storage.put(&key(index), put).await {
            tracing::debug!(%error, "the price is known to this process alone");
        }
    }
}

impl Price {
    fn encode(self) -> Vec<u8> {
        [&self.written.to_be_bytes()[..], &self.price.to_be_bytes()[..]].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (written, price) = bytes.split_first_chunk()?;
        Some(Self {
            written: u64::from_be_bytes(*written),
            price: u32::from_be_bytes(price.try_into().ok()?),
        })
    }
}

fn key(index: usize) -> Key {
    Key::new(&Name::new("demo"), &Name::new("price"), Identity::new(index.to_string()))
}
