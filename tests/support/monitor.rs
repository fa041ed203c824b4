//! The commands that a Redis server is sent.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use super::RedisServer;

/// What clients send, as `MONITOR` shows it.
pub(crate) struct Monitor<'a> {
    server: &'a RedisServer,
    lines: BufReader<UnixStream>,
    questions: usize,
}

impl<'a> Monitor<'a> {
    pub(crate) fn start(server: &'a RedisServer) -> Self {
        let mut stream = UnixStream::connect(server.dir().join("redis.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut monitor = Self { server, lines: BufReader::new(stream), questions: 0 };
        assert_eq!(monitor.line(), "+OK");
        monitor
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.lines.read_until(b'\n', &mut line).unwrap();
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// How many scripts, pipelines and other commands came since the last question, and what they
    /// were: each is one round trip.
    pub(crate) async fn count(&mut self) -> (usize, Vec<String>) {
        // An answer is given before it is stored.
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.questions += 1;
        let end = format!("question-{}", self.questions);
        self.server.ask(&format!("ECHO {end}"));
        let mut commands = Vec::new();
        loop {
            let line = self.line();
            if line.contains(&end) {
                return (commands.len(), commands);
            }
            let (source, words) = line.split_once("] ").unwrap();
            // A question of the test's own, and what a connection is asked after a pause.
            if words.starts_with("\"INFO\"") || words == "\"PING\"" {
                continue;
            }
            // A lookup without a script is one pipeline: `PING`, and these.
            let piped = ["\"TIME\"", "\"GET\"", "\"GETRANGE\"", "\"HMGET\""];
            if !source.ends_with(" lua") && !piped.iter().any(|name| words.starts_with(name)) {
                commands.push(words.chars().take(60).collect());
            }
        }
    }

    pub(crate) async fn expect(&mut self, wanted: usize, what: &str) {
        let (count, commands) = self.count().await;
        println!("{what}: {count}");
        assert_eq!(count, wanted, "{what}: {commands:?}");
    }
}
