//! Two processes and one Redis server: duplicates at once, and processes that are killed.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use axum::http::Response;
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncBufReadExt,
    sync::mpsc,
    time::{sleep, timeout},
};
use tower_keep::{
    idempotency::{InFlight, KeyCursor, Policy, Repeat, Resolution, UnknownKey},
    storage::AnyStorage,
};

use crate::{
    desk::{Act, Desk, Notes, Order},
    history::{Answer, Event, History, Id, Log, Promise, Step},
    race::{Dice, count, redis_storage},
    races::{REPEATS, duplicates, one_execution, waits},
    stopped::{Stop, Stopped},
    support::{Proxy, RedisServer},
};

const WORKER: &str = "TOWER_KEEP_TEST_WORKER";
/// A busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(1);
/// After that a lease is over, also if a last sign of life was on its way to the server.
const OVER: Duration = Duration::from_millis(1_250);

/// Where a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Point {
    BeforeClaim,
    AfterClaim,
    BeforeBegin,
    AfterBegin,
    InHandler,
    BeforeStore,
    AfterStore,
}

/// What a worker is told when it is started.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Setup {
    url: String,
    prefix: String,
    at_most_once: bool,
    commit_point: bool,
    /// Where it stops, to be killed.
    point: Option<Point>,
    lease: Duration,
}

/// What a worker is told then.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Ask(Order),
    Race(Race),
}

/// So many duplicates at once, with numbers from there on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Race {
    seed: u64,
    from: Id,
    many: Id,
    mixed: bool,
}

impl Setup {
    fn new(server: &RedisServer, prefix: &str) -> Self {
        let (url, prefix) = (server.url(), prefix.to_owned());
        let (at_most_once, commit_point) = (false, false);
        Self { url, prefix, at_most_once, commit_point, point: None, lease: LEASE }
    }

    fn repeat(&self) -> Repeat {
        REPEATS[usize::from(self.at_most_once)]
    }

    fn policy(&self) -> Policy {
        Policy::scope_public()
            .with_repeat(self.repeat())
            .with_lease(self.lease)
            .with_timeout(PATIENCE)
    }

    fn promise(&self) -> Promise {
        let mut promise = Promise::new(self.repeat(), self.lease);
        promise.commit_point = self.commit_point;
        promise
    }

    async fn storage(&self) -> AnyStorage {
        redis_storage(&self.url, &self.prefix).await
    }

    /// The desk of this process.
    fn desk(&self, storage: &AnyStorage, log: &Log, in_flight: InFlight) -> Desk {
        let policy = self.policy().with_in_flight(in_flight);
        Desk::new(storage.clone(), policy, self.commit_point, log)
    }

    /// The desk of a process that stops at its point.
    fn stopping(&self, storage: &AnyStorage, log: &Log) -> Desk {
        let Some(point) = self.point else { return self.desk(storage, log, InFlight::Conflict) };
        let stop = match point {
            Point::BeforeClaim | Point::BeforeBegin | Point::BeforeStore => Stop::Before,
            Point::AfterClaim | Point::AfterBegin | Point::AfterStore => Stop::After,
            Point::InHandler => Stop::Nowhere,
        };
        let at_once = matches!(point, Point::BeforeClaim | Point::AfterClaim);
        let armed = Arc::new(AtomicBool::new(at_once));
        let storage = Stopped::new(storage.clone(), stop, &armed);
        let on_step = move |step: &Step| match (point, step) {
            (Point::BeforeBegin | Point::AfterBegin, Step::Begins)
            | (Point::BeforeStore | Point::AfterStore, Step::Left(_)) => armed.store(true, SeqCst),
            _ => {}
        };
        let commit_point = self.commit_point;
        let notes = Notes { log: log.clone(), commit_point, on_step: Some(Arc::new(on_step)) };
        Desk::with_notes(storage, self.policy(), notes)
    }

    /// Handlers that all keep their answer, or that do what the dice say.
    async fn race(&self, storage: &AnyStorage, log: &Log, race: Race) {
        let Race { seed, from, many, mixed } = race;
        let dice = Dice::new(seed);
        let desk = self.desk(storage, log, waits(&dice));
        let order = |id| {
            let acts = if mixed { &Act::MIXED[..] } else { &Act::KEPT[..] };
            let act = acts[dice.below(acts.len() as u64) as usize];
            let work = Duration::from_millis(dice.below(30));
            Order::new(id, &format!("key-{seed}")).doing(act, work)
        };
        duplicates(&[desk], (from..from + many).map(order).collect(), &dice).await;
    }
}

/// Not a test of its own: the second process of the tests below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_a_worker_process_it_does_what_it_is_told() {
    let Ok(setup) = std::env::var(WORKER) else { return };
    let setup: Setup = serde_json::from_str(&setup).unwrap();
    let (storage, log) = (setup.storage().await, Log::echoing());
    println!("\nready");
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        match serde_json::from_str(&line).unwrap() {
            Word::Ask(order) => {
                let desk = setup.stopping(&storage, &log);
                tokio::spawn(async move { desk.ask(&order).await });
            }
            Word::Race(race) => {
                setup.race(&storage, &log, race).await;
                println!("done");
            }
        }
    }
}

/// A second process.
struct Worker {
    child: Child,
    orders: ChildStdin,
    lines: mpsc::UnboundedReceiver<String>,
    events: Vec<Event>,
}

impl Worker {
    async fn start(setup: &Setup) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nodes::as_a_worker_process_it_does_what_it_is_told"])
            .args(["--nocapture", "--test-threads=1"])
            .env(WORKER, serde_json::to_string(setup).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut worker = Self { child, orders, lines, events: Vec::new() };
        worker.until(|line| line == "ready").await;
        worker
    }

    fn tell(&mut self, command: &Word) {
        writeln!(self.orders, "{}", serde_json::to_string(command).unwrap()).unwrap();
    }

    /// Reads what the worker prints.
    async fn until(&mut self, mut is_it: impl FnMut(&str) -> bool) {
        loop {
            let line = timeout(PATIENCE, self.lines.recv()).await.expect("the worker is silent");
            let line = line.expect("the worker has ended");
            self.keep(&line);
            if is_it(&line) {
                return;
            }
        }
    }

    fn keep(&mut self, line: &str) {
        if let Some(event) = line.strip_prefix("event ") {
            self.events.push(serde_json::from_str(event).unwrap());
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// `kill -9`. Returns what the worker has told.
    async fn kill(mut self) -> Vec<Event> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        while let Some(line) = self.lines.recv().await {
            // The last line may be torn.
            if !line.starts_with("event ") || line.ends_with('}') {
                self.keep(&line);
            }
        }
        self.events
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_two_processes_execute_duplicates_at_once_once() {
    let server = RedisServer::start();
    let setups = REPEATS.map(|repeat| Setup {
        at_most_once: repeat == Repeat::AtMostOnce,
        lease: Duration::from_secs(30),
        ..Setup::new(&server, "races")
    });
    let half = count(100, 500) as Id;
    for setup in setups {
        let (storage, log) = (setup.storage().await, Log::of_machine());
        let mut worker = Worker::start(&setup).await;
        for seed in 0..count(2, 50) as u64 {
            // Each repeat has its own keys.
            let seed = 2 * seed + u64::from(setup.at_most_once);
            let race = Race { seed, from: 0, many: half, mixed: false };
            worker.tell(&Word::Race(Race { from: half, ..race }));
            let here = setup.race(&storage, &log, race);
            tokio::join!(here, worker.until(|line| line == "done"));
            let mut events = log.take();
            events.append(&mut worker.events);
            let history = History::new(events, setup.promise());
            assert_eq!(history.answers().count() as Id, 2 * half);
            one_execution(&history, &format!("seed {seed}"));
        }
        worker.kill().await;
    }
    server.check_keys("races");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_a_process_that_is_killed_amid_duplicates_leaves_nothing_stuck() {
    let server = RedisServer::start();
    let (half, mut taken_over) = (50, 0);
    let (seeds, mut undecided) = (count(3, 100), 0);
    for seed in 0..seeds as u64 {
        let dice = Dice::new(seed);
        let mut setup = Setup::new(&server, &format!("killed{seed}"));
        (setup.at_most_once, setup.commit_point) = (dice.one_in(2), dice.one_in(3));
        let (storage, log) = (setup.storage().await, Log::of_machine());
        let mut worker = Worker::start(&setup).await;
        let race = Race { seed, from: 0, many: half, mixed: true };
        worker.tell(&Word::Race(Race { from: half, ..race }));
        let mut left = dice.below(60);
        let reads = worker.until(|_| {
            left = left.saturating_sub(1);
            left == 0
        });
        reads.await;
        let here = setup.race(&storage, &log, race);
        let (mut events, ()) = tokio::join!(worker.kill(), here);

        sleep(OVER).await;
        let desk = setup.desk(&storage, &log, InFlight::Conflict);
        for id in 2 * half..2 * half + 3 {
            let answer = desk.ask(&Order::new(id, &format!("key-{seed}"))).await.unwrap();
            let stuck = matches!(answer, Answer::InFlight | Answer::Refused);
            assert!(!stuck, "seed {seed}: {answer:?}");
        }
        events.extend(log.take());
        let mut promise = setup.promise();
        promise.dead.extend(half..2 * half);
        let history = History::new(events, promise);
        undecided += usize::from(!history.assert_or_undecided(&format!("seed {seed}")));
        taken_over += history.attempts().filter(|attempt| *attempt > 1).count();
    }
    println!("{taken_over} attempts took over, {undecided} histories too long to be decided");
    assert!(undecided <= 1 + seeds / 10, "{undecided} of {seeds}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_a_killed_owner_is_taken_over_once_or_its_outcome_is_unknown() {
    let server = Arc::new(RedisServer::start());
    let points = [
        Point::BeforeClaim,
        Point::AfterClaim,
        Point::BeforeBegin,
        Point::AfterBegin,
        Point::InHandler,
        Point::BeforeStore,
        Point::AfterStore,
    ];
    let mut cases = tokio::task::JoinSet::new();
    for point in points {
        for (at_most_once, commit_point) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let begins = matches!(point, Point::BeforeBegin | Point::AfterBegin);
            if begins && !commit_point {
                continue;
            }
            let setup = Setup {
                at_most_once,
                commit_point,
                point: Some(point),
                ..Setup::new(&server, &format!("kill-{point:?}-{at_most_once}-{commit_point}"))
            };
            cases.spawn(killed_at(setup, point));
        }
        // Some at a time.
        while cases.len() > 8 {
            cases.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

async fn killed_at(setup: Setup, point: Point) {
    let what = format!("{point:?}, {:?}, {}", setup.repeat(), setup.commit_point);
    let mut worker = Worker::start(&setup).await;
    let asked = Instant::now();
    let act = if point == Point::InHandler { Act::Hang } else { Act::Receipt };
    worker.tell(&Word::Ask(Order::new(0, "a-key").doing(act, Duration::ZERO)));
    let commit_point = setup.commit_point;
    worker
        .until(|line| match point {
            Point::InHandler if commit_point => line.contains("Begun"),
            Point::InHandler => line.contains("Entered"),
            _ => line == "reached",
        })
        .await;
    let mut events = worker.kill().await;

    let (storage, log) = (setup.storage().await, Log::of_machine());
    let desk = setup.desk(&storage, &log, InFlight::Conflict);
    let first = desk.ask(&Order::new(1, "a-key")).await.unwrap();
    match point {
        Point::BeforeClaim => assert_eq!(first, Answer::Own("201 of 1".to_owned()), "{what}"),
        Point::AfterStore => assert_eq!(first, Answer::Replay("201 of 0".to_owned()), "{what}"),
        _ => assert!(first == Answer::InFlight || asked.elapsed() >= LEASE, "{what}: {first:?}"),
    }
    sleep(OVER).await;

    // As many as come at once, and then again.
    let orders = (2..32).map(|id| Order::new(id, "a-key")).collect();
    duplicates(
        &[desk.clone(), setup.desk(&storage, &log, InFlight::Conflict)],
        orders,
        &Dice::new(0),
    )
    .await;
    sleep(LEASE / 4).await;
    let last = desk.ask(&Order::new(32, "a-key")).await.unwrap();
    let had_claimed = !matches!(point, Point::BeforeClaim | Point::AfterStore);
    let may_repeat = !setup.at_most_once || (commit_point && point <= Point::BeforeBegin);
    let unknown = had_claimed && !may_repeat;
    events.extend(log.take());
    let mut promise = setup.promise();
    promise.dead.insert(0);
    let history = History::new(events, promise);
    history.assert(&what);
    match (&last, unknown) {
        (Answer::Unknown, true) | (Answer::Replay(_), false) => {}
        _ => panic!("{what}: {last:?}\n{history}"),
    }
    let highest = history.attempts().max();
    let handled = u32::from(!matches!(point, Point::BeforeClaim | Point::AfterClaim));
    match (had_claimed, unknown) {
        (true, false) => assert_eq!(highest, Some(2), "{what}"),
        (true, true) => assert_eq!(highest.unwrap_or(0), handled, "{what}"),
        (false, _) => assert_eq!(highest, Some(1), "{what}"),
    }

    let listed = listed(&desk).await;
    assert_eq!(listed.len(), usize::from(unknown), "{what}");
    if unknown {
        resolve(&desk, &listed[0], commit_point, &what).await;
    }
}

async fn listed(desk: &Desk) -> Vec<UnknownKey> {
    let (keys, mut found) = (desk.till.layer.keys(), Vec::new());
    let mut next = Some(KeyCursor::START);
    while let Some(at) = next {
        let page = keys.list(at).await.unwrap();
        found.extend(page.keys);
        next = page.next;
    }
    found
}

/// For ever unknown, unless an operator says what it was.
async fn resolve(desk: &Desk, key: &UnknownKey, was_executed: bool, what: &str) {
    assert_eq!((key.label.as_str(), key.attempt), ("POST /charge", 1), "{what}");
    sleep(2 * LEASE).await;
    let ask = async |id| desk.ask(&Order::new(id, "a-key")).await.unwrap();
    assert_eq!(ask(40).await, Answer::Unknown, "{what}");
    let keys = desk.till.layer.keys();
    let resolution = match was_executed {
        true => keys.resolve(key.handle, Response::new("in the ledger".into())).await,
        false => keys.delete(key.handle).await,
    };
    assert_eq!(resolution.unwrap(), Resolution::Done, "{what}");
    let answer = ask(41).await;
    match was_executed {
        true => assert_eq!(answer, Answer::Replay("200 in the ledger".to_owned()), "{what}"),
        false => assert_eq!(answer, Answer::Own("201 of 41".to_owned()), "{what}"),
    }
    assert!(matches!(ask(42).await, Answer::Replay(_)), "{what}");
    assert_eq!(listed(desk).await, [], "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_an_owner_that_was_stopped_overwrites_nothing() {
    let server = RedisServer::start();
    let mut cases = tokio::task::JoinSet::new();
    for round in 0..count(1, 10) {
        for (at_most_once, commit_point) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let prefix = format!("stop-{at_most_once}-{commit_point}-{round}");
            cases.spawn(stopped(Setup {
                at_most_once,
                commit_point,
                ..Setup::new(&server, &prefix)
            }));
        }
        while let Some(case) = cases.join_next().await {
            case.unwrap();
        }
    }
}

async fn stopped(setup: Setup) {
    let what = setup.prefix.clone();
    let mut worker = Worker::start(&setup).await;
    // With a commit point the process is stopped before it.
    let order = Order::new(0, "a-key").doing(Act::Receipt, Duration::from_millis(400));
    worker.tell(&Word::Ask(order));
    worker.until(|line| line.contains("Entered")).await;
    worker.signal("-STOP");
    sleep(OVER).await;
    let (storage, log) = (setup.storage().await, Log::of_machine());
    let desk = setup.desk(&storage, &log, InFlight::Conflict);
    let orders = (1..11).map(|id| Order::new(id, "a-key")).collect();
    let answers = duplicates(std::slice::from_ref(&desk), orders, &Dice::new(0)).await;
    worker.signal("-CONT");
    worker.until(|line| line.contains("Answered")).await;
    let last = desk.ask(&Order::new(11, "a-key")).await.unwrap();
    let late = worker.events.last().unwrap().step.clone();
    let mut events = worker.kill().await;
    events.extend(log.take());
    let mut promise = setup.promise();
    promise.silent.insert(0);
    let history = History::new(events, promise);
    history.assert(&what);
    if setup.at_most_once && !setup.commit_point {
        // Nobody else knows, until the owner is back and says.
        assert!(answers.iter().all(|answer| *answer == Answer::Unknown), "{what}: {answers:?}");
        assert_eq!(late, Step::Answered(Answer::Own("201 of 0".to_owned())), "{what}");
        assert_eq!(last, Answer::Replay("201 of 0".to_owned()), "{what}");
        return;
    }
    let Answer::Replay(kept) = &last else { panic!("{what}: {last:?}") };
    assert_ne!(kept, "201 of 0", "{what}");
    assert_eq!(history.attempts().max(), Some(2), "{what}");
    match setup.commit_point {
        // It was told not to begin.
        true => assert_eq!(late, Step::Answered(Answer::Own("409 in-flight".to_owned())), "{what}"),
        // All are told the same.
        false => assert_eq!(late, Step::Answered(last.clone()), "{what}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis_with_connections_that_break_the_history_of_a_key_is_linearizable() {
    let server = RedisServer::start();
    let broken = Arc::new(Proxy::start(server.port()).await);
    let mut setup = Setup::new(&server, "breaks");
    let near = setup.storage().await;
    setup.url = broken.url();
    let far = setup.storage().await;
    let mut refused = 0;
    for seed in 0..count(15, 300) as u64 {
        let dice = Dice::new(seed);
        (setup.at_most_once, setup.commit_point) = (dice.one_in(2), dice.one_in(3));
        let log = Log::of_machine();
        let desks = [&near, &far].map(|storage| setup.desk(storage, &log, InFlight::Conflict));
        let order = |id| {
            let act = Act::MIXED[dice.below(Act::MIXED.len() as u64) as usize];
            let work = Duration::from_millis(dice.below(30));
            Order::new(id, &format!("key-{seed}")).doing(act, work)
        };
        let breaks = async {
            for _ in 0..4 {
                sleep(Duration::from_millis(dice.below(8))).await;
                broken.cut();
            }
        };
        let race = duplicates(&desks, (0..30).map(order).collect(), &dice);
        let (answers, ()) = tokio::join!(race, breaks);
        refused += answers.iter().filter(|answer| **answer == Answer::Refused).count();
        let mut promise = setup.promise();
        promise.lossy = true;
        History::new(log.take(), promise).assert(&format!("seed {seed}"));
    }
    assert!(refused > 0, "nobody has noticed");
}
