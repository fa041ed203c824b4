//! Lookups on Redis are several commands; here others run between any two of them.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{JoinHandle, JoinSet, yield_now},
    time::sleep,
};
use tower_keep::{
    RedisStorage, Storage,
    cache::{CacheHandle, NearCache},
    storage::{Get, Identity, Key, Name, Put, Tag, Touch, When},
};

use crate::{
    support::RedisServer,
    world::{Counts, Dice, Rules, World, count},
};

/// A way to the server on which commands that were sent as one piece arrive one by one.
struct Tearing {
    port: u16,
    task: JoinHandle<()>,
}

impl Tearing {
    async fn start(target: u16, dice: Dice) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await.unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let ((commands, mut to_client), (mut replies, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(tear(commands, to_server, dice.clone()));
                tokio::spawn(async move { copy(&mut replies, &mut to_client).await });
            }
        });
        Self { port, task }
    }

    async fn storage(&self) -> RedisStorage {
        RedisStorage::builder()
            .url(format!("redis://127.0.0.1:{}", self.port))
            .prefix("torn")
            .secret("of what is torn, long enough")
            .decision_deadline(Duration::from_secs(30))
            .entry_deadline(Duration::from_secs(30))
            .connect_timeout(Duration::from_secs(10))
            .build()
            .await
            .unwrap()
    }
}

impl Drop for Tearing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tear(commands: OwnedReadHalf, mut to: OwnedWriteHalf, dice: Dice) {
    let mut commands = BufReader::new(commands);
    while let Some(command) = next_command(&mut commands).await {
        match dice.below(6) {
            0 => sleep(Duration::from_millis(1)).await,
            1 | 2 => yield_now().await,
            _ => {}
        }
        if to.write_all(&command).await.is_err() {
            return;
        }
    }
}

/// The next command, as it was sent: an array of strings.
async fn next_command(from: &mut BufReader<OwnedReadHalf>) -> Option<Vec<u8>> {
    let mut command = Vec::new();
    for _ in 0..number(from, &mut command).await? {
        let length = number(from, &mut command).await?;
        let begin = command.len();
        command.resize(begin + length + 2, 0);
        from.read_exact(&mut command[begin..]).await.ok()?;
    }
    Some(command)
}

/// Reads a line of a letter and a number.
async fn number(from: &mut BufReader<OwnedReadHalf>, command: &mut Vec<u8>) -> Option<usize> {
    let begin = command.len();
    while !command[begin..].ends_with(b"\r\n") {
        command.push(from.read_u8().await.ok()?);
    }
    std::str::from_utf8(&command[begin + 1..command.len() - 2]).ok()?.parse().ok()
}

/// So many worlds at once, to use the time in which they sleep.
const AT_ONCE: usize = 10;

async fn worlds(what: &str, rounds: usize, server: &Arc<RedisServer>, disturbing: bool) {
    let counts = Arc::default();
    let (one, other) = (
        Tearing::start(server.port(), Dice::new(1)).await,
        Tearing::start(server.port(), Dice::new(2)).await,
    );
    let storages = [one.storage().await, other.storage().await];
    for first in (0..rounds).step_by(AT_ONCE) {
        let mut tasks = JoinSet::new();
        for round in first..first + AT_ONCE {
            let dice = Dice::new(round as u64);
            let namespace = Name::try_new(&format!("cache{round}")).unwrap();
            let near = dice.below(3);
            let lag = Duration::from_millis(40);
            let caches = storages.iter().map(|storage| {
                let builder = CacheHandle::builder(storage.clone())
                    .with_namespace(namespace.clone())
                    .with_hit_for_miss(Duration::ZERO);
                match near {
                    0 => builder.build(),
                    1 => builder.with_near_cache(NearCache::strict(1 << 20)).build(),
                    _ => builder.with_near_cache(NearCache::bounded(1 << 20, lag)).build(),
                }
            });
            let mut rules = Rules::thrown(&dice);
            rules.lag = if near == 2 { lag } else { Duration::ZERO };
            let world = World::new(rules, &dice, caches.collect(), &counts);
            tasks.spawn(async move { world.run().await });
            if disturbing {
                let server = Arc::clone(server);
                let key = format!("torn:{}:{{e0}}:tags", namespace.as_str());
                tasks.spawn(async move {
                    for _ in 0..6 {
                        dice.pause().await;
                        server.ask(&format!("DEL {key}"));
                        dice.pause().await;
                        server.ask("SCRIPT FLUSH");
                    }
                });
            }
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
    println!(
        "{} lookups of plain commands, {} scripts",
        server.calls("ping"),
        server.calls("evalsha")
    );
    Counts::check(&counts, what, rounds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_runs_between_the_commands_of_a_lookup_nothing_old_is_served_after_a_purge() {
    let server = Arc::new(RedisServer::start());
    worlds("torn lookups", count(100, 2_000), &server, false).await;
    server.check_keys("torn");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_when_records_and_scripts_are_lost_between_them() {
    let server = Arc::new(RedisServer::start());
    worlds("torn lookups, losses", count(100, 2_000), &server, true).await;
}

const TOUCH: Touch = Touch { ttl: Duration::from_millis(100), slack: Duration::from_millis(60) };

/// Reads a session now and then, as others do, and begins it anew when it has ended. What has been
/// seen lives for as long as a touch lets it, less the slack; until when, they tell each other.
async fn visit(
    storage: RedisStorage,
    session: u64,
    dice: Dice,
    ends: Arc<Mutex<Instant>>,
    visits: u64,
) {
    let namespace = Name::new("sessions");
    let key = Key::new(&namespace, &Name::new("session"), Identity::new(session.to_be_bytes()));
    let tags = [Tag::new(session.to_be_bytes())];
    for _ in 0..visits {
        dice.pause().await;
        if dice.one_in(20) {
            sleep(TOUCH.ttl).await;
        }
        let (promised, asked) = (*ends.lock().unwrap(), Instant::now());
        let get = Get::new().with_fence().with_touch(TOUCH);
        let lookup = storage.get(&key, get).await.unwrap();
        if let Some(entry) = lookup.entry {
            let left = entry.life_left.unwrap().min(TOUCH.ttl).saturating_sub(TOUCH.slack);
            assert!(entry.ttl >= left, "{:?} and {left:?}", entry.ttl);
            let mut ends = ends.lock().unwrap();
            *ends = (*ends).max(asked + left);
            continue;
        }
        // The server ends keys by whole milliseconds.
        let now = Instant::now() + Duration::from_millis(2);
        assert!(now >= promised, "it died {:?} too early", promised - now);
        let put = Put::new("session".into(), TOUCH.ttl)
            .with_condition(When::Absent)
            .with_max_lifetime(TOUCH.ttl * 5)
            .with_fence(lookup.fence.unwrap())
            .with_tags(&tags);
        storage.put(&key, put).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_touched_in_time_lives_on_whatever_runs_between_the_commands() {
    let server = Arc::new(RedisServer::start());
    let (one, other) = (
        Tearing::start(server.port(), Dice::new(1)).await,
        Tearing::start(server.port(), Dice::new(2)).await,
    );
    let storages = [one.storage().await, other.storage().await];
    let mut tasks = JoinSet::new();
    for session in 0..10 {
        let ends = Arc::new(Mutex::new(Instant::now()));
        for n in 0..4 {
            let storage = storages[n % 2].clone();
            let dice = Dice::new(session * 4 + n as u64);
            let visits = count(100, 5_000) as u64;
            tasks.spawn(visit(storage, session, dice, Arc::clone(&ends), visits));
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let [plain, scripts, touches] = ["ping", "evalsha", "setrange"].map(|name| server.calls(name));
    println!("{plain} lookups of plain commands, {scripts} scripts, {touches} touches");
    assert!(plain > 2_000 && touches > 20 && scripts < plain);
    server.check_keys("torn");
}
