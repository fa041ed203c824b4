//! Two processes that want the same lease all the time.

use std::{fs::OpenOptions, io::Write, time::Duration};

use futures_util::future::join_all;
use tower_keep::lease::{Attempt, Extension, Leases};

use crate::{
    holder::Holder,
    race::{Dice, count},
    support::RedisServer,
};

/// Tasks of each process.
const TASKS: usize = 2;

/// Takes the lease so many times, and notes in the log when it is inside.
pub(crate) async fn contend(leases: &Leases, name: &str, turns: usize, log: &str) {
    let tasks = (0..TASKS).map(|task| {
        let dice = Dice::new(u64::from(std::process::id()) * TASKS as u64 + task as u64);
        contend_once(leases.clone(), name.to_owned(), turns / TASKS, log.to_owned(), dice)
    });
    for task in join_all(tasks.map(tokio::spawn)).await {
        task.unwrap();
    }
}

async fn contend_once(leases: Leases, name: String, turns: usize, log: String, dice: Dice) {
    let mut log = OpenOptions::new().append(true).create(true).open(log).unwrap();
    let process = std::process::id();
    for _ in 0..turns {
        let lease = loop {
            let attempt = match dice.below(3) {
                0 => leases.acquire(&*name, Duration::from_millis(30)).await,
                _ => leases.try_acquire(&*name).await,
            };
            match attempt {
                Ok(Attempt::Acquired(lease)) => break lease,
                Ok(Attempt::Held { .. }) => dice.pause().await,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        };
        let fence = lease.fence();
        // A line is one write, so that none is torn.
        let mut note = |what| log.write_all(format!("{what} {process} {fence}\n").as_bytes());
        note("enter").unwrap();
        dice.pause().await;
        let how = dice.below(4);
        if how == 0 {
            assert_ne!(lease.extend().await.ok(), Some(Extension::Lost));
        }
        assert!(!lease.is_lost(), "this machine is too busy for this test");
        note("leave").unwrap();
        match how {
            1 => drop(lease),
            _ => assert_ne!(lease.release().await.ok(), Some(false)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_never_two_are_inside_and_fences_rise() {
    let server = RedisServer::start();
    let turns = count(200, 4_000) / 2;
    let log = server.dir().join("turns");
    let order = format!("contend {turns} {}", log.display());
    let ttl = Duration::from_secs(60);
    let mut processes = [false, true].map(|beats| Holder::start(&server.url(), "job", ttl, beats));
    for process in &mut processes {
        process.tell(&order).await;
    }
    for process in &mut processes {
        assert_eq!(process.answer().await, "fine");
    }

    let log = std::fs::read_to_string(log).unwrap();
    let notes: Vec<Vec<_>> = log.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(notes.len(), turns * 2 * 2);
    let (mut last, mut changes, mut before) = (0, 0, "");
    for turn in notes.chunks(2) {
        let [&["enter", process, fence], &["leave", leaving, left]] = [&turn[0][..], &turn[1][..]]
        else {
            panic!("two are inside: {turn:?}");
        };
        assert_eq!((process, fence), (leaving, left), "two are inside");
        let fence: u64 = fence.parse().unwrap();
        assert!(fence > last, "{fence} comes after {last}");
        changes += usize::from(process != before);
        (last, before) = (fence, process);
    }
    assert!(changes > turns / 10, "they took turns only {changes} times");
    server.check_keys("lease");
}
