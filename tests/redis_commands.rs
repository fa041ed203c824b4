//! Nothing that is sent to Redis, or called by a script there, is younger than Redis 6.2: by what
//! the server itself says in `COMMAND DOCS`, commands and options alike.
#![cfg(feature = "redis")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use support::RedisServer;
use tower_keep::{
    Quota, RedisStorage, Storage,
    bb8_redis::redis::{self, Value, aio::MultiplexedConnection},
    storage::{
        Charge, Get, Identity, Invalidation, Key, Name, Put, PutOutcome, Spend, Tag, Tags, Touch,
        When,
    },
};

const OLDEST: [u32; 3] = [6, 2, 0];
const MINUTE: Duration = Duration::from_secs(60);

/// What the server runs, as `MONITOR` shows it.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn start(server: &RedisServer) -> Self {
        let mut stream = UnixStream::connect(server.dir().join("redis.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"AUTH hunter2\r\nMONITOR\r\n").unwrap();
        let mut monitor = Self(BufReader::new(stream));
        assert_eq!((monitor.line().as_str(), monitor.line().as_str()), ("+OK", "+OK"));
        monitor
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).unwrap();
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    /// The commands up to this word, each with its arguments.
    fn until(mut self, last: &str) -> Vec<Vec<String>> {
        let mut commands = Vec::new();
        loop {
            let line = self.line();
            if line.contains(last) {
                return commands;
            }
            let (_, words) = line.split_once("] ").unwrap();
            commands.push(words.trim_matches('"').split("\" \"").map(str::to_owned).collect());
        }
    }
}

/// `name, value, name, value` as a map.
fn pairs(value: &Value) -> BTreeMap<String, &Value> {
    let pairs: Vec<(&Value, &Value)> = match value {
        Value::Map(pairs) => pairs.iter().map(|(name, value)| (name, value)).collect(),
        Value::Array(items) => items.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
        _ => Vec::new(),
    };
    pairs.into_iter().map(|(name, value)| (text(name), value)).collect()
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        _ => &[],
    }
}

fn text(value: &Value) -> String {
    redis::from_redis_value(value.clone()).unwrap()
}

fn version(text: &str) -> [u32; 3] {
    let mut parts = text.split('.').map(|part| part.parse().unwrap());
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

/// Since when there are the words among these arguments.
fn tokens(arguments: &Value, since: [u32; 3], known: &mut BTreeMap<String, [u32; 3]>) {
    for argument in items(arguments) {
        let argument = pairs(argument);
        let since = argument.get("since").map_or(since, |own| version(&text(own)).max(since));
        if let Some(token) = argument.get("token") {
            let oldest = known.entry(text(token).to_uppercase()).or_insert(since);
            *oldest = (*oldest).min(since);
        }
        if let Some(inner) = argument.get("arguments") {
            tokens(inner, since, known);
        }
    }
}

/// A hard and a soft stamp of the first microsecond.
const LONG_AGO: &str = r#""\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00""#;

async fn everything(storage: &RedisStorage, server: &RedisServer) {
    storage.ping().await.unwrap();
    assert!(!storage.audit().await.unwrap().is_empty());
    let (space, detail) = (Name::new("t"), Name::new("d"));
    let key = |n: usize| Key::new(&space, &detail, Identity::new(n.to_be_bytes()));

    let quotas = [
        Quota::sliding_window(9, MINUTE),
        Quota::fixed_window(9, MINUTE),
        Quota::calendar_day(9),
        Quota::calendar_month(9),
        Quota::token_bucket(9, MINUTE, 9),
        Quota::strict_window(9, MINUTE),
        Quota::sliding_log(9, MINUTE),
    ];
    for (n, quota) in quotas.into_iter().enumerate() {
        let (one, two) = (key(100 + n), key(200 + n));
        let spend = |spend| {
            let one = one.clone();
            async move { storage.acquire(&[Charge::new(&one, quota, spend)]).await.unwrap()[0] }
        };
        let receipt = spend(Spend::Take(2)).await.receipt.unwrap();
        for spent in [Spend::Peek, Spend::Force(99), Spend::Refund { units: 1, receipt }] {
            spend(spent).await;
        }
        assert!(!spend(Spend::Take(9)).await.allowed);
        spend(Spend::Reset).await;
        let both = [&one, &two].map(|key| Charge::new(key, quota, Spend::Take(1)));
        storage.acquire(&both).await.unwrap();
    }

    let tags: Vec<_> = (0..200_u32).map(|n| Tag::new(n.to_be_bytes())).collect();
    let fence = storage.get(&key(1), Get::new().with_fence()).await.unwrap().fence.unwrap();
    let short = Duration::from_millis(1);
    let tagged = |tags, life| {
        Put::new("value".into(), MINUTE).with_fence(fence).with_tags(tags).with_max_lifetime(life)
    };
    storage.put(&key(1), tagged(&tags[..20], short)).await.unwrap();
    let hard = Invalidation::Hard;
    storage.invalidate(&space, Tags::Any(&tags[100..]), hard).await.unwrap();
    // Forgets some of those that were invalidated long ago, as these say they were.
    let old: String = (0..100).map(|n| format!(" tag-of-long-{n:04} {LONG_AGO}")).collect();
    let age = format!("HSET tk:t:{{e0}}:tags{old}");
    server.ask_all(&["AUTH hunter2", "SELECT 3", &age]);
    storage.invalidate(&space, Tags::Any(&tags[60..80]), Invalidation::Soft).await.unwrap();
    storage.invalidate(&space, Tags::All, hard).await.unwrap();

    server.ask_all(&["AUTH hunter2", "SCRIPT FLUSH"]);
    for (n, value) in ["small".to_owned(), "large".repeat(20_000)].into_iter().enumerate() {
        let put = || Put::new(value.clone().into(), MINUTE);
        let first = storage.put(&key(n), put().with_condition(When::Absent)).await.unwrap();
        let PutOutcome::Stored(version) = first else { panic!("{first:?}") };
        let touch = Touch { ttl: 2 * MINUTE, slack: Duration::ZERO };
        storage.get(&key(n), Get::new().with_touch(touch)).await.unwrap();
        storage.get(&key(n), Get::new()).await.unwrap();
        storage.get(&key(n), Get::new().with_known(version)).await.unwrap();
        storage.put(&key(n), put().with_condition(When::Absent)).await.unwrap();
        let save = put().with_condition(When::Version(version));
        storage.put(&key(n), save).await.unwrap();
        assert!(storage.delete(&key(n), When::Always).await.unwrap());
    }
}

#[tokio::test]
async fn every_command_and_option_is_in_redis_6_2() {
    let server = RedisServer::start_with(&["--requirepass", "hunter2"]);
    let monitor = Monitor::start(&server);
    let within = Duration::from_secs(10);
    let storage = RedisStorage::builder()
        .url(format!("redis://:hunter2@127.0.0.1:{}/3", server.port()))
        .decision_deadline(within)
        .entry_deadline(within)
        .connect_timeout(within)
        .build()
        .await
        .unwrap();
    everything(&storage, &server).await;
    server.ask_all(&["AUTH hunter2", "ECHO the-end"]);
    let commands = monitor.until("the-end");

    let names: BTreeSet<_> = commands.iter().map(|words| words[0].to_uppercase()).collect();
    println!("{names:?}");
    for name in [
        "PING", "SELECT", "SET", "GETEX", "EVALSHA", "EVAL", "TIME", "GET", "MGET", "GETRANGE",
        "SETRANGE", "PEXPIRE", "PTTL", "UNLINK", "HGET", "HMGET", "HSET", "HLEN", "HSCAN", "HDEL",
        "INFO",
    ] {
        assert!(names.contains(name), "{name} was not seen, so it was not checked");
    }

    let client = redis::Client::open(format!("redis://:hunter2@127.0.0.1:{}", server.port()));
    let mut redis = client.unwrap().get_multiplexed_async_connection().await.unwrap();
    if reply(&mut redis, &["COMMAND", "DOCS", "GET"]).await.is_none() {
        // A server of 6.2 has no such command, and has just done all of it.
        return;
    }
    // Sent when a connection is made: not seen by `MONITOR`, or unknown to an older server. The
    // redis crate ignores the answer to `CLIENT SETINFO`, which 6.2 does not know.
    let mut seen: BTreeSet<Vec<String>> = commands.into_iter().collect();
    seen.insert(vec!["AUTH".to_owned()]);
    // Not seen either.
    seen.insert(vec!["CONFIG".to_owned()]);
    let mut docs = BTreeMap::new();
    for words in seen {
        let name = words[0].to_uppercase();
        if matches!(name.as_str(), "CLIENT" | "SCRIPT") {
            continue;
        }
        if !docs.contains_key(&name) {
            let reply = reply(&mut redis, &["COMMAND", "DOCS", &name]).await.unwrap();
            let doc = pairs(&reply);
            let doc = pairs(doc.values().next().unwrap_or_else(|| panic!("{name} is unknown")));
            let since = version(&text(doc["since"]));
            let mut words = BTreeMap::new();
            if let Some(arguments) = doc.get("arguments") {
                tokens(arguments, since, &mut words);
            }
            docs.insert(name.clone(), (since, words));
        }
        let (since, known) = &docs[&name];
        assert!(*since <= OLDEST, "{name} is in Redis since {since:?}");
        for word in &words[1..] {
            let since = known.get(word).copied().unwrap_or_default();
            assert!(since <= OLDEST, "{word} of {name} is in Redis since {since:?}");
        }
    }
    // Or nothing was checked: an option that is older, and one that is younger.
    assert_eq!(docs["SET"].1["NX"], [2, 6, 12]);
    assert_eq!(docs["PEXPIRE"].1["GT"], [7, 0, 0]);
}

async fn reply(redis: &mut MultiplexedConnection, words: &[&str]) -> Option<Value> {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command.query_async(redis).await.ok()
}
