//! Lookups per second on Redis, against one `GET` written by hand on a shared connection:
//! `cargo bench --bench redis_read [-- rounds]`.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use redis::aio::MultiplexedConnection;
use tower_keep::{RedisStorage, Storage, storage::{Get, Identity, Key, Name, Put, PutOutcome, Tag}};
use tower_keep_benches::measure::median;

const KEYS: u64 = 10_000;
const TURN: Duration = Duration::from_millis(250);

struct Server { child: Child, url: String }
impl Server {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = free.expect("a free port").port().to_string();
        let child = Command::new("redis-server")
            .args(["--port", &port, "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Self { child, url: format!("redis://127.0.0.1:{port}") }
    }
    async fn connect(&self) -> MultiplexedConnection {
        let info: redis::ConnectionInfo = redis::IntoConnectionInfo::into_connection_info(self.url.as_str()).unwrap();
        let info = info.set_tcp_settings(redis::io::tcp::TcpSettings::default().set_nodelay(true));
        let client = redis::Client::open(info).expect("a URL");
        for _ in 0..100 {
            if let Ok(connection) = client.get_multiplexed_async_connection().await { return connection; }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not answer");
    }
}
impl Drop for Server { fn drop(&mut self) { let _ = self.child.kill(); let _ = self.child.wait(); } }

fn key(n: u64) -> Key { Key::new(&Name::new("cache"), &Name::new("page"), Identity::new(n.to_be_bytes())) }

#[derive(Clone)]
enum C {
    Hand(MultiplexedConnection),
    Pipe(MultiplexedConnection, bool, bool, usize),
    Storage(RedisStorage, Get),
}
impl C {
    async fn read(&mut self, n: u64) {
        match self {
            C::Hand(c) => { let v: Vec<u8> = redis::cmd("GET").arg(format!("hand:{n:032}")).query_async(c).await.unwrap(); assert_eq!(v.len(), 1024); }
            C::Pipe(c, multi, check, tags) => {
                let mut p = redis::Pipeline::with_capacity(4);
                if *multi { p.atomic(); }
                if *check { p.cmd("PING").arg(b"12345678"); }
                p.cmd("TIME");
                p.cmd("GET").arg(format!("hand:{n:032}"));
                let h = p.cmd("HMGET").arg("rec").arg("g").arg("l").arg("f").arg("m");
                for t in 0..*tags { h.arg([t as u8; 16].as_slice()); }
                let v: Vec<redis::Value> = p.query_async(c).await.unwrap();
                assert!(v.len() >= 3);
            }
            C::Storage(s, get) => { let l = s.get(&key(n), *get).await.unwrap(); assert_eq!(l.entry.unwrap().value.len(), 1024); }
        }
    }
}

async fn rate(contestant: &C, tasks: u64) -> f64 {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let tasks: Vec<_> = (0..tasks).map(|task| {
        let (mut contestant, stop, done) = (contestant.clone(), Arc::clone(&stop), Arc::clone(&done));
        tokio::spawn(async move {
            let mut n = task * 7_919;
            while !stop.load(Relaxed) {
                n = (n + 101) % KEYS;
                contestant.read(n).await;
                done.fetch_add(1, Relaxed);
            }
        })
    }).collect();
    tokio::time::sleep(TURN).await;
    stop.store(true, Relaxed);
    for task in tasks { task.await.expect("a task"); }
    done.load(Relaxed) as f64 / start.elapsed().as_secs_f64()
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let rounds = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(15_u32);
    let server = Server::start();
    let mut c = server.connect().await;
    let d = Duration::from_secs(5);
    let storage = RedisStorage::builder().url(server.url.clone()).decision_deadline(d).entry_deadline(d).build().await.unwrap();
    let fence = storage.get(&key(0), Get::new().with_fence()).await.unwrap().fence.unwrap();
    let tags = ["a", "b", "c"].map(Tag::new);
    let hour = Duration::from_secs(3600);
    for n in 0..KEYS {
        let _: () = redis::cmd("SET").arg(format!("hand:{n:032}")).arg(vec![b'x'; 1024]).query_async(&mut c).await.unwrap();
        let put = Put::new(vec![b'x'; 1024].into(), hour).with_max_lifetime(hour).with_fence(fence).with_tags(&tags);
        assert!(matches!(storage.put(&key(n), put).await.unwrap(), PutOutcome::Stored(_)));
    }
    let _: () = redis::cmd("HSET").arg("rec").arg("g").arg("1234567890123456").arg("l").arg(0).arg("f").arg(0).arg("m").arg(3600000000u64).query_async(&mut c).await.unwrap();
    let cs = [
        ("GET by hand", C::Hand(c.clone())),
        ("pipe TIME GET HMGET3", C::Pipe(c.clone(), false, false, 3)),
        ("pipe PING TIME GET HMGET3", C::Pipe(c.clone(), false, true, 3)),
        ("multi TIME GET HMGET3", C::Pipe(c.clone(), true, false, 3)),
        ("multi PING TIME GET HMGET3", C::Pipe(c.clone(), true, true, 3)),
        ("storage get+fence", C::Storage(storage.clone(), Get::new().with_fence())),
        ("storage get", C::Storage(storage.clone(), Get::new())),
    ];
    for tasks in [64, 256] {
        let mut rates = vec![Vec::new(); cs.len()];
        for round in 0..=rounds {
            for (i, (_, x)) in cs.iter().enumerate() {
                let r = rate(x, tasks).await;
                if round > 0 { rates[i].push(r); }
            }
        }
        for (i, (name, _)) in cs.iter().enumerate() {
            let ratio = median(rates[i].iter().zip(&rates[0]).map(|(a, b)| a / b).collect());
            println!("| {name} | {tasks} | {:.0} | {ratio:.2} |", median(rates[i].clone()));
        }
    }
}
