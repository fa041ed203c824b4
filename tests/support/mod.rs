//! A Redis server of the test's own, and a network that fails on demand.
#![allow(dead_code)]

pub(crate) mod monitor;

use std::{
    future::Future,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener as StdListener, TcpStream as StdStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// A `redis-server` on a port of its own. It ends with the value.
#[derive(Debug)]
pub(crate) struct RedisServer {
    child: Option<Child>,
    dir: PathBuf,
    port: u16,
    options: Vec<String>,
    kind: Kind,
}

#[derive(Debug, PartialEq)]
enum Kind {
    Tcp,
    Unix,
    Tls { certificate: String },
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more options, such as `["--requirepass", "secret"]`.
    pub(crate) fn start_with(options: &[&str]) -> Self {
        Self::start_as(Kind::Tcp, options)
    }

    /// Listens on a Unix socket only.
    pub(crate) fn start_unix() -> Self {
        Self::start_as(Kind::Unix, &[])
    }

    /// Speaks TLS only, with a certificate for `localhost` that it signed itself.
    pub(crate) fn start_tls() -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let mut server = Self::unstarted(Kind::Tls { certificate: cert.pem() }, &[]);
        let (certificate, key) = (server.dir.join("cert.pem"), server.dir.join("key.pem"));
        std::fs::write(&certificate, cert.pem()).unwrap();
        std::fs::write(&key, signing_key.serialize_pem()).unwrap();
        for (option, value) in [
            ("--tls-port", server.port.to_string()),
            ("--tls-cert-file", certificate.display().to_string()),
            ("--tls-key-file", key.display().to_string()),
            ("--tls-auth-clients", "no".to_owned()),
        ] {
            server.options.extend([option.to_owned(), value]);
        }
        server.restart();
        server
    }

    /// A port on which nothing listens until [`restart`](Self::restart).
    pub(crate) fn stopped() -> Self {
        Self::unstarted(Kind::Tcp, &[])
    }

    fn start_as(kind: Kind, options: &[&str]) -> Self {
        let mut server = Self::unstarted(kind, options);
        server.restart();
        server
    }

    fn unstarted(kind: Kind, options: &[&str]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("tower-keep-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let port =
            StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { child: None, dir, port, options, kind }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        match &self.kind {
            Kind::Tcp => format!("redis://127.0.0.1:{}", self.port),
            Kind::Unix => format!("unix://{}", self.socket().display()),
            Kind::Tls { .. } => format!("rediss://localhost:{}", self.port),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("redis.sock")
    }

    /// The PEM of the TLS server's certificate.
    pub(crate) fn certificate(&self) -> &str {
        match &self.kind {
            Kind::Tls { certificate } => certificate,
            _ => panic!("this server does not speak TLS"),
        }
    }

    /// Starts again, empty, on the same port, and waits until it answers.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let port = if self.kind == Kind::Tcp { self.port } else { 0 };
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &port.to_string()])
            .arg("--dir")
            .arg(&self.dir)
            .arg("--unixsocket")
            .arg(self.socket())
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "cannot start redis-server ({error}): run `./test`, which says what to install"
                )
            });
        self.child = Some(child);
        let began = Instant::now();
        while !self.answers() {
            if began.elapsed() > Duration::from_secs(10) {
                let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                panic!("redis-server does not answer; its log:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the server has read a command. Every kind listens on a Unix socket as well.
    fn answers(&self) -> bool {
        let Ok(mut stream) = std::os::unix::net::UnixStream::connect(self.socket()) else {
            return false;
        };
        let mut reply = [0; 8];
        stream.write_all(b"PING\r\n").is_ok()
            && stream
                .read(&mut reply)
                .is_ok_and(|_| &reply[..5] == b"+PONG" || &reply[..2] == b"-N")
    }

    /// Ends the server at once (SIGKILL).
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends the server in order (SIGTERM).
    pub(crate) fn stop(&mut self) {
        self.signal("-TERM");
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    /// Leaves the sockets open and answers nothing, until [`resume`](Self::resume).
    pub(crate) fn pause_process(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().expect("the server runs").id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Sends one command as a line, over a connection of its own, and returns what comes back.
    pub(crate) fn ask(&self, line: &str) -> String {
        self.ask_all(&[line])
    }

    /// Several commands over one connection, such as `AUTH` first; returns the last reply.
    pub(crate) fn ask_all(&self, lines: &[&str]) -> String {
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut reply = vec![0; 1 << 16];
        let mut length = 0;
        for line in lines {
            stream.write_all(format!("{line}\r\n").as_bytes()).unwrap();
            length = loop {
                match stream.read(&mut reply) {
                    // The end of a child process is a signal, too.
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    read => break read.unwrap(),
                }
            };
        }
        String::from_utf8_lossy(&reply[..length]).into_owned()
    }

    /// How often a command was called since the server started or `CONFIG RESETSTAT`.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats = self.ask("INFO commandstats");
        let entry = format!("cmdstat_{command}:calls=");
        stats
            .split_once(&entry)
            .and_then(|(_, rest)| rest.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }

    /// Every key has an end, and the prefix: to be called at the end of a suite.
    pub(crate) fn check_keys(&self, prefix: &str) {
        let script = format!(
            "local at = '0' \
             repeat local page = redis.call('SCAN', at) at = page[1] \
             for _, key in ipairs(page[2]) do \
             if key:sub(1, {length}) ~= '{prefix}:' then return 'not under the prefix: ' .. key end \
             if redis.call('PTTL', key) < 0 then return 'without an end: ' .. key end \
             end until at == '0' return 'fine'",
            length = prefix.len() + 1,
        );
        assert_eq!(self.ask(&format!("EVAL \"{script}\" 0")), "$4\r\nfine\r\n");
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A TCP proxy in this process, whose connections can be delayed, cut or made half-open.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    network: Arc<Network>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Network {
    opened: AtomicU64,
    delay_ms: AtomicU64,
    /// Connections with a lower number are mute.
    mute_below: AtomicU64,
    /// Connections with a lower number are cut.
    cut_below: watch::Sender<u64>,
}

impl Proxy {
    /// In front of a port of this machine.
    pub(crate) async fn start(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = Arc::new(Network {
            opened: 0.into(),
            delay_ms: 0.into(),
            mute_below: 0.into(),
            cut_below: watch::channel(0).0,
        });
        let shared = network.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
                    continue;
                };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let number = shared.opened.fetch_add(1, Ordering::Relaxed);
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(shared.clone().pump(number, from_client, to_server));
                tokio::spawn(shared.clone().pump(number, from_server, to_client));
            }
        });
        Self { port, network, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How many connections were opened.
    pub(crate) fn opened(&self) -> u64 {
        self.network.opened.load(Ordering::Relaxed)
    }

    /// From now on silently swallows what flows over the connections there are. New ones work.
    pub(crate) fn half_open(&self) {
        self.network.mute_below.store(self.opened(), Ordering::Relaxed);
    }

    /// Closes the connections there are. New ones work.
    pub(crate) fn cut(&self) {
        self.network.cut_below.send_replace(self.opened());
    }

    /// While it is so, silently swallows everything, also over new connections. What is swallowed
    /// never comes, so the connections of before end with it.
    pub(crate) fn set_partitioned(&self, partitioned: bool) {
        let mute_below = if partitioned { u64::MAX } else { self.opened() };
        self.network.mute_below.store(mute_below, Ordering::Relaxed);
    }

    /// Holds every piece of traffic up.
    pub(crate) fn delay(&self, by: Duration) {
        self.network.delay_ms.store(by.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Network {
    async fn pump(self: Arc<Self>, number: u64, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut cut = self.cut_below.subscribe();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = tokio::select! {
                read = from.read(&mut buffer) => match read {
                    Ok(length) if length > 0 => length,
                    _ => return,
                },
                _ = cut.wait_for(|below| number < *below) => return,
            };
            if number < self.mute_below.load(Ordering::Relaxed) {
                continue;
            }
            let delay = self.delay_ms.load(Ordering::Relaxed);
            if delay > 0 {
                tokio::time::sleep(Duration::from_millis(delay)).await;
            }
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that answers everything with these bytes. Returns its port.
pub(crate) async fn answer_with(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {
                    if stream.write_all(bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// Repeats the attempt until it gives a value, and says how long that took.
pub(crate) async fn until<T, F>(within: Duration, mut attempt: impl FnMut() -> F) -> (T, Duration)
where
    F: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(value) = attempt().await {
            return (value, began.elapsed());
        }
        assert!(began.elapsed() < within, "it did not happen within {within:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether something listens on a port of this machine.
pub(crate) fn is_open(port: u16) -> bool {
    StdStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}
