//! Exactly the quota, however many ask at once.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use http::StatusCode;
use tower_keep::{
    MemoryStorage, Quota, RateLimitLayer, Storage, rate_limit::Policy, storage::AnyStorage,
};

use crate::{Limited, count, limited, redis_storage, request_from, send, support::RedisServer};

const REQUESTS: usize = 1_000;
const LIMIT: u32 = 100;
const CLONES: usize = 4;

fn quotas() -> [Quota; 7] {
    let hour = Duration::from_secs(3_600);
    [
        Quota::sliding_window(LIMIT, hour),
        Quota::fixed_window(LIMIT, hour),
        Quota::calendar_day(LIMIT),
        Quota::calendar_month(LIMIT),
        // No token comes back while the test runs.
        Quota::token_bucket(1, 24 * hour, LIMIT),
        Quota::strict_window(LIMIT, hour),
        Quota::sliding_log(LIMIT, hour),
    ]
}

/// Sends all requests at once over several clones of the service.
async fn race(storage: AnyStorage, quota: Quota, requests: usize) -> usize {
    // The denial memory is off, so that every request is decided by the storage.
    let policy = Policy::new("race", quota).with_denial_memory(Duration::ZERO);
    let service: Limited = limited(&RateLimitLayer::new(storage, policy));
    let mut clones = vec![service; CLONES];
    let tasks: Vec<_> = (0..requests)
        .map(|n| {
            let mut service = clones[n % CLONES].clone();
            tokio::spawn(async move {
                send(&mut service, request_from("192.0.2.1")).await.status() == StatusCode::OK
            })
        })
        .collect();
    clones.clear();
    let mut admitted = 0;
    for task in tasks {
        admitted += usize::from(task.await.unwrap());
    }
    admitted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory_exactly_the_quota_is_admitted() {
    for quota in quotas() {
        for _ in 0..count(5, 100) {
            let admitted = race(MemoryStorage::new().erase(), quota, REQUESTS).await;
            assert_eq!(admitted, LIMIT as usize, "{quota}");
        }
    }
}

const WORKER: &str = "TOWER_KEEP_TEST_WORKER";

/// Not a test of its own: the second process of the race below, which runs it with a URL, a prefix
/// and the index of a quota.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_a_worker_process_it_sends_its_half() {
    let Ok(task) = std::env::var(WORKER) else { return };
    let [url, prefix, index] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let storage = redis_storage(url, prefix).await;
    let quota = quotas()[index.parse::<usize>().unwrap()];
    println!("admitted {}", race(storage, quota, REQUESTS / 2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_two_processes_admit_exactly_the_quota() {
    let server = RedisServer::start();
    for (index, quota) in quotas().into_iter().enumerate() {
        for round in 0..count(1, 20) {
            let prefix = format!("race{index}-{round}");
            let url = server.url();
            let worker = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "concurrency::as_a_worker_process_it_sends_its_half"])
                .args(["--nocapture", "--test-threads=1"])
                .env(WORKER, format!("{url} {prefix} {index}"))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let here = race(redis_storage(&url, &prefix).await, quota, REQUESTS / 2).await;
            let output = tokio::task::spawn_blocking(|| worker.wait_with_output()).await.unwrap();
            let output = String::from_utf8(output.unwrap().stdout).unwrap();
            let there = output
                .lines()
                .find_map(|line| line.split_once("admitted ")?.1.parse::<usize>().ok())
                .unwrap_or_else(|| panic!("no answer of the worker: {output}"));
            assert_eq!(here + there, LIMIT as usize, "{quota}: {here} here, {there} there");
        }
    }
}
