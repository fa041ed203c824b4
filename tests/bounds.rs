//! The worst case that each algorithm states, in any true window, under four shapes of traffic: in
//! memory and on Redis alike.
#![cfg(feature = "conformance")]

use std::time::Duration;

use tower_keep::{
    MemoryStorage, Quota, RedisStorage, Storage,
    bb8_redis::redis::{self, aio::MultiplexedConnection},
    storage::{AnyStorage, Charge, Identity, Key, Name, Spend},
};

mod support;

use support::RedisServer;

const LIMIT: u32 = 20;
const PERIOD: Duration = Duration::from_secs(10);
const PERIOD_US: u64 = 10_000_000;
const CLOCK: &str = "bounds:clock";

/// A storage whose time the test turns.
enum World {
    Memory(AnyStorage),
    Redis(AnyStorage, MultiplexedConnection),
}

impl World {
    fn memory() -> Self {
        Self::Memory(MemoryStorage::new().erase())
    }

    async fn redis(server: &RedisServer) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let () = redis::cmd("HSET")
            .arg(CLOCK)
            .arg(&["s", "1800000000", "us", "0"])
            .query_async(&mut connection)
            .await
            .unwrap();
        let storage = RedisStorage::builder()
            .url(server.url())
            .virtual_clock_key(CLOCK)
            .decision_deadline(Duration::from_secs(10))
            .build()
            .await
            .unwrap();
        Self::Redis(storage.erase(), connection)
    }

    async fn advance(&mut self, us: u64) {
        match self {
            Self::Memory(_) => tokio::time::advance(Duration::from_micros(us)).await,
            Self::Redis(_, connection) => {
                let command = redis::cmd("HINCRBY").arg(CLOCK).arg("us").arg(us).to_owned();
                let _: u64 = command.query_async(connection).await.unwrap();
            }
        }
    }

    async fn takes(&self, key: &Key, quota: Quota) -> bool {
        let (Self::Memory(storage) | Self::Redis(storage, _)) = self;
        storage.acquire(&[Charge::new(key, quota, Spend::Take(1))]).await.unwrap()[0].allowed
    }
}

/// Every algorithm with the most that it may admit in any time of a period's length.
fn quotas() -> [(Quota, u32); 6] {
    [
        (Quota::sliding_window(LIMIT, PERIOD), 2 * LIMIT - 1),
        (Quota::fixed_window(LIMIT, PERIOD), 2 * LIMIT),
        (Quota::token_bucket(LIMIT, PERIOD, LIMIT), 2 * LIMIT),
        (Quota::token_bucket(LIMIT, PERIOD, 2), 2 + LIMIT),
        (Quota::strict_window(LIMIT, PERIOD), LIMIT),
        (Quota::sliding_log(LIMIT, PERIOD), LIMIT),
    ]
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// The pauses before each request, in microseconds, over about four periods.
fn traffic() -> [(&'static str, Vec<u64>); 4] {
    let mut random = Random(0x5eed);
    let flood = PERIOD_US / u64::from(LIMIT) / 30;
    let mut edge = vec![0];
    // One request opens a window; a burst comes at its end and another right after.
    edge.push(PERIOD_US - 1_000);
    edge.extend([10; 30]);
    edge.push(1_000);
    edge.extend([10; 30]);
    edge.extend(std::iter::repeat_n(flood, 900));
    let poisson = std::iter::repeat_with(|| {
        let uniform = (random.below(1 << 52) + 1) as f64 / (1_u64 << 52) as f64;
        (-uniform.ln() * PERIOD_US as f64 / f64::from(LIMIT)) as u64
    });
    let poisson = poisson.take(160).collect();
    let mut bursts = Vec::new();
    for _ in 0..12 {
        bursts.push(random.below(PERIOD_US));
        bursts.extend(vec![10; 5 + random.below(60) as usize]);
    }
    [
        ("a burst at the edge, then a flood", edge),
        ("a flood of thirty times the limit", vec![flood; 2_400]),
        ("chance arrivals at the limit", poisson),
        ("random bursts", bursts),
    ]
}

/// The most admissions in any time of a period's length.
fn most(admitted: &[u64]) -> usize {
    let ends = |start: &u64| admitted.partition_point(|time| *time < start + PERIOD_US);
    admitted.iter().enumerate().map(|(i, start)| ends(start) - i).max().unwrap_or(0)
}

async fn the_stated_worst_case_holds(mut world: World) {
    let mut nearest = [0; 6];
    for (shape, (name, pauses)) in traffic().into_iter().enumerate() {
        let keys: Vec<_> = (0..6)
            .map(|n| {
                let detail = Name::new(&format!("bound{n}"));
                Key::new(&Name::new("bounds"), &detail, Identity::new([shape as u8]))
            })
            .collect();
        let mut admitted: [Vec<u64>; 6] = Default::default();
        let mut now = 0;
        for pause in pauses {
            world.advance(pause).await;
            now += pause;
            for ((key, (quota, _)), admitted) in keys.iter().zip(quotas()).zip(&mut admitted) {
                if world.takes(key, quota).await {
                    admitted.push(now);
                }
            }
        }
        for (((quota, bound), admitted), nearest) in
            quotas().iter().zip(&admitted).zip(&mut nearest)
        {
            let most = most(admitted);
            assert!(most <= *bound as usize, "{quota}: {most} in one period under {name}");
            *nearest = most.max(*nearest);
        }
    }
    println!("the most in any period: {nearest:?}");
    // The traffic is hard enough to tell one algorithm from the other.
    assert!(nearest[0] > LIMIT as usize && nearest[1] >= 2 * LIMIT as usize - 1, "{nearest:?}");
    assert!(nearest[4] > LIMIT as usize / 2 && nearest[5] == LIMIT as usize, "{nearest:?}");
}

#[tokio::test(start_paused = true)]
async fn in_memory_the_stated_worst_case_holds() {
    the_stated_worst_case_holds(World::memory()).await;
}

#[tokio::test]
async fn on_redis_the_stated_worst_case_holds() {
    let server = RedisServer::start();
    the_stated_worst_case_holds(World::redis(&server).await).await;
}
