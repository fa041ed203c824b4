//! Another process that holds a lease, and does as the test says.

use std::{
    process::Stdio,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};
use tower_keep::{
    Lease, RedisStorage,
    lease::{Attempt, Extension, Leases},
};

use crate::contention::contend;

/// Longer than anything takes that ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const PREFIX: &str = "lease";

const TASK: &str = "TOWER_KEEP_TEST_HOLDER";

/// What stands before an answer, among all that the test harness prints.
const MARK: &str = "the holder says: ";

/// The clock that all processes of this machine share, Redis included.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// The other process. It is killed with the value.
pub(crate) struct Holder {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// What an acquisition of the other process has come to.
pub(crate) struct Acquired {
    pub(crate) fence: u64,
    /// Before and after the call.
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    /// When the lease is lost if nothing more is heard.
    pub(crate) deadline: Duration,
}

impl Holder {
    /// One that asks the Redis at this URL for the lease of this name.
    pub(crate) fn start(url: &str, name: &str, ttl: Duration, beats: bool) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holder::as_a_holder_process_it_does_as_it_is_told"])
            .args(["--nocapture", "--test-threads=1"])
            .env(TASK, format!("{url} {name} {} {beats}", ttl.as_millis()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, orders, answers }
    }

    /// Orders it to do something, without waiting for the answer.
    pub(crate) async fn tell(&mut self, order: &str) {
        self.orders.write_all(format!("{order}\n").as_bytes()).await.unwrap();
    }

    pub(crate) async fn answer(&mut self) -> String {
        let answer = async {
            loop {
                let line = self.answers.next_line().await.unwrap().expect("the holder has died");
                if let Some((_, answer)) = line.split_once(MARK) {
                    return answer.to_owned();
                }
            }
        };
        timeout(PATIENCE * 10, answer).await.expect("the holder is silent")
    }

    pub(crate) async fn ask(&mut self, order: &str) -> String {
        self.tell(order).await;
        self.answer().await
    }

    pub(crate) async fn acquire(&mut self) -> Acquired {
        let answer = self.ask("acquire").await;
        let numbers: Vec<u64> =
            answer.split(' ').map(|number| number.parse().expect(&answer)).collect();
        let [began, ended, deadline] = [1, 2, 3].map(|i| Duration::from_micros(numbers[i]));
        Acquired { fence: numbers[0], began, ended, deadline }
    }

    /// Extends until the storage answers.
    pub(crate) async fn extend(&mut self) -> String {
        let began = now();
        loop {
            let answer = self.ask("extend").await;
            if !answer.starts_with("error") {
                return answer;
            }
            assert!(now() - began < PATIENCE, "{answer}");
        }
    }

    /// When a task of the other process was told that the lease is lost.
    pub(crate) async fn lost(&mut self) -> Duration {
        Duration::from_micros(self.ask("lost").await.parse().unwrap())
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let status = std::process::Command::new("kill").args([signal, &pid]).status();
        assert!(status.unwrap().success());
    }

    /// Waits until the process is gone.
    pub(crate) async fn gone(&mut self) {
        timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap();
    }
}

/// Not a test of its own: the process of a [`Holder`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_a_holder_process_it_does_as_it_is_told() {
    let Ok(task) = std::env::var(TASK) else { return };
    let [url, name, ttl, beats] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let storage = RedisStorage::builder().url(url).prefix(PREFIX).build().await.unwrap();
    let leases = Leases::new(storage, Duration::from_millis(ttl.parse().unwrap()));
    let leases = if beats == "true" { leases.with_heartbeat() } else { leases };
    let mut held: Option<(Lease, JoinHandle<Duration>)> = None;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = orders.next_line().await.unwrap() {
        let answer = match order.split(' ').collect::<Vec<_>>()[..] {
            ["acquire"] => {
                let began = now();
                let attempt = leases.acquire(name, PATIENCE).await.unwrap();
                let ended = now();
                let Attempt::Acquired(lease) = attempt else { panic!("the lease is not free") };
                let deadline = now() + lease.remaining();
                let lost = lease.lost();
                let watch = tokio::spawn(async move {
                    lost.await;
                    now()
                });
                let fence = lease.fence();
                held = Some((lease, watch));
                let [began, ended, deadline] =
                    [began, ended, deadline].map(|moment| moment.as_micros());
                format!("{fence} {began} {ended} {deadline}")
            }
            ["state"] => if lease(&held).is_lost() { "lost" } else { "held" }.to_owned(),
            ["extend"] => match lease(&held).extend().await {
                Ok(Extension::Extended) => "extended".to_owned(),
                Ok(Extension::Lost) => "lost".to_owned(),
                Err(error) => format!("error {error}"),
            },
            ["lost"] => {
                let (_, watch) = held.as_mut().unwrap();
                watch.await.unwrap().as_micros().to_string()
            }
            ["release"] => match held.take().unwrap().0.release().await {
                Ok(was_held) => was_held.to_string(),
                Err(error) => format!("error {error}"),
            },
            ["drop"] => {
                held = None;
                "dropped".to_owned()
            }
            ["exit"] => std::process::exit(0),
            ["contend", turns, log] => {
                contend(&leases, name, turns.parse().unwrap(), log).await;
                "fine".to_owned()
            }
            _ => panic!("{order}"),
        };
        println!("{MARK}{answer}");
    }
}

fn lease(held: &Option<(Lease, JoinHandle<Duration>)>) -> &Lease {
    &held.as_ref().expect("it was told to acquire the lease").0
}
