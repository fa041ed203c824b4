//! The example proxy as its clients and its origin meet it: the built binary between raw sockets.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn binary() -> PathBuf {
    // target/debug/deps/proxy-<hash> -> target/debug/examples/proxy
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let path = path.join("examples").join("proxy");
    assert!(path.exists(), "the example is not built: run `cargo build --example proxy` first");
    path
}

struct Proxy {
    child: Child,
    address: String,
}

impl Proxy {
    fn start(origin: &str, options: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .args(["--listen", "127.0.0.1:0", "--origin", &format!("http://{origin}")])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        let address =
            line.split("http://").nth(1).unwrap_or_else(|| panic!("no address: {line:?}"));
        let address = address.split_whitespace().next().unwrap().to_owned();
        Self { child, address }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    /// Sends these bytes and reads until the connection ends.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset after a truncated body is an end, too.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("no end");
        String::from_utf8(answer).unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An origin that answers every connection's first request with the same bytes, and closes.
struct Origin {
    address: String,
    heads: mpsc::UnboundedReceiver<String>,
}

impl Origin {
    async fn start(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, heads) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let mut stream = BufReader::new(listener.accept().await.unwrap().0);
                let Some(head) = read_head(&mut stream).await else { continue };
                let _ = sender.send(head);
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { address, heads }
    }

    async fn head(&mut self) -> String {
        timeout(PATIENCE, self.heads.recv()).await.expect("no request").unwrap()
    }
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn get(fields: &str) -> String {
    format!("GET /a?b=c HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{fields}\r\n")
}

fn head_of(answer: &str) -> String {
    answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase()
}

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn any_method_reaches_the_origin_with_the_clients_host() {
    let mut origin = Origin::start(HELLO).await;
    let proxy = Proxy::start(&origin.address, &[]);
    for method in ["GET", "PUT", "DELETE", "M-SEARCH", "OPTIONS", "PATCH", "foo"] {
        let request = get("").replacen("GET", method, 1);
        assert!(proxy.exchange(&request).await.ends_with("\r\n\r\nhello"), "{method}");
        let head = origin.head().await;
        assert!(head.starts_with(&format!("{method} /a?b=c HTTP/1.1\r\n")), "{head}");
        let head = head.to_ascii_lowercase();
        assert!(head.contains("\r\nhost: shop.example\r\n"), "{head}");
        assert!(head.contains("\r\nvia: 1.1 tower-keep\r\n"), "{head}");
    }
    proxy.exchange("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(origin.head().await.starts_with("OPTIONS * HTTP/1.1\r\n"));
    proxy
        .exchange("GET http://other.example/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    let head = origin.head().await.to_ascii_lowercase();
    assert!(head.starts_with("get /x http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nhost: other.example\r\n"), "{head}");
    let refusal =
        proxy.exchange("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n").await;
    assert!(refusal.starts_with("HTTP/1.1 501 "), "{refusal}");
}

#[tokio::test]
async fn any_status_comes_back_with_its_reason() {
    for status in ["201 Made", "299 Odd", "404 Gone Fishing", "503 Later", "999 304 Not Generated"]
    {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
        let proxy = Proxy::start(&Origin::start(answer).await.address, &[]);
        let answer = proxy.exchange(&get("")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert_eq!(body_of(&answer), "ok");
    }
}

#[tokio::test]
async fn repeated_fields_are_kept_and_those_of_one_connection_are_not() {
    let mut origin = Origin::start(
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: close, X-Private\r\n\
         X-Private: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nUpgrade: h2c\r\n\
         Content-Length: 5\r\n\r\nhello",
    )
    .await;
    let proxy = Proxy::start(&origin.address, &[]);
    let answer = proxy
        .exchange(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine, Host\r\nX-Mine: 1\r\n\
             Keep-Alive: 1\r\nTE: trailers, gzip\r\nUpgrade: websocket\r\nX-Twice: 1\r\n\
             X-Twice: 2\r\nVia: 1.0 first\r\n\r\n",
        )
        .await;
    let answer = head_of(&answer);
    assert!(answer.contains("\r\nset-cookie: a=1\r\nset-cookie: b=2"), "{answer}");
    for name in ["x-private", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"] {
        assert!(!answer.contains(&format!("\r\n{name}:")), "{name} in {answer}");
    }
    let head = origin.head().await.to_ascii_lowercase();
    for name in ["x-mine", "keep-alive", "upgrade", "transfer-encoding"] {
        assert!(!head.contains(&format!("\r\n{name}:")), "{name} in {head}");
    }
    for line in [
        "host: a",
        "x-twice: 1\r\nx-twice: 2",
        "via: 1.0 first\r\nvia: 1.1 tower-keep",
        "te: trailers",
        "connection: te",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "no {line:?} in {head}");
    }
}

#[tokio::test]
async fn answers_without_a_body_stay_without_one() {
    for (request, answer) in [
        (get("").replacen("GET", "HEAD", 1), "HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n"),
        (get(""), "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n"),
        (get(""), "HTTP/1.1 204 No Content\r\n\r\n"),
    ] {
        let proxy = Proxy::start(&Origin::start(answer).await.address, &[]);
        let got = proxy.exchange(&request).await;
        assert!(got.starts_with(&answer[..12]), "{got}");
        assert_eq!(body_of(&got), "");
        assert_eq!(head_of(&got).contains("content-length: 700"), answer.contains("700"), "{got}");
        assert!(!head_of(&got).contains("content-length: 0"), "{got}");
    }
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(&listener.local_addr().unwrap().to_string(), &[]);
    let origin = tokio::spawn(async move {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        let head = read_head(&mut stream).await.unwrap().to_ascii_lowercase();
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
        let mut body = String::new();
        while !body.ends_with("\r\n\r\n") {
            stream.read_line(&mut body).await.unwrap();
        }
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                      3\r\none\r\n3\r\ntwo\r\n0\r\nX-Sum: 6\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        body
    });
    // With a GET: its body is unusual, and passed on nevertheless.
    let fields = "Transfer-Encoding: chunked\r\n";
    let request = get(fields).replace("Connection: close", "Connection: close, TE\r\nTE: trailers")
        + "4\r\nbody\r\n0\r\n\r\n";
    let answer = proxy.exchange(&request).await.to_ascii_lowercase();
    assert_eq!(origin.await.unwrap(), "4\r\nbody\r\n0\r\n\r\n");
    assert!(answer.contains("one") && answer.contains("two"), "{answer}");
    assert!(answer.ends_with("0\r\nx-sum: 6\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn bodies_stream_and_are_never_held_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(&listener.local_addr().unwrap().to_string(), &[]);
    let mut client = proxy.connect().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut origin = BufReader::new(listener.accept().await.unwrap().0);
    // The head is there before any of the body is.
    let head = read_head(&mut origin).await.unwrap().to_ascii_lowercase();
    assert!(head.contains("\r\ncontent-length: 20000000\r\n"), "{head}");
    let (mut reader, mut writer) = client.into_split();
    let upload = tokio::spawn(async move {
        writer.write_all(&vec![b'u'; 20_000_000]).await.unwrap();
        writer
    });
    let mut uploaded = vec![0; 20_000_000];
    origin.read_exact(&mut uploaded).await.unwrap();
    assert!(uploaded.iter().all(|&byte| byte == b'u'));
    let _writer = upload.await.unwrap();

    origin.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 20000005\r\n\r\nfirst").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"first") {
        let count = timeout(PATIENCE, reader.read_buf(&mut seen)).await.unwrap().unwrap();
        assert_ne!(count, 0);
    }
    let download = tokio::spawn(async move {
        origin.write_all(&vec![b'd'; 20_000_000]).await.unwrap();
        origin
    });
    let mut downloaded = vec![0; 20_000_000];
    reader.read_exact(&mut downloaded).await.unwrap();
    assert!(downloaded.iter().all(|&byte| byte == b'd'));
    download.await.unwrap();
}

#[tokio::test]
async fn an_origin_that_breaks_off_before_its_answer_is_a_502() {
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Le", "nonsense\r\n\r\n"] {
        let mut origin = Origin::start(answer).await;
        let proxy = Proxy::start(&origin.address, &[]);
        let answer = proxy.exchange(&get("")).await;
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
        assert!(head_of(&answer).contains("\r\ncache-control: no-store"), "{answer}");
        assert!(head_of(&answer).contains("application/problem+json"), "{answer}");
        origin.head().await;
        assert!(origin.heads.try_recv().is_err(), "a request was sent twice");
    }
}

#[tokio::test]
async fn an_origin_that_is_gone_is_a_502_and_a_silent_one_a_504() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let proxy = Proxy::start(&address, &["--timeout", "1"]);
    let answer = proxy.exchange(&get("")).await;
    assert!(answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
    drop(listener);
    let answer = proxy.exchange(&get("")).await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert!(head_of(&answer).contains("\r\ncache-control: no-store"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let counted = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
    for answer in [chunked, counted] {
        let proxy = Proxy::start(&Origin::start(answer).await.address, &[]);
        // The client would keep the connection: that it ends is what tells it.
        let got = proxy.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(!got.contains("\r\n0\r\n"), "{got}");
        if answer == counted && got.contains("\r\n\r\n") {
            assert!(head_of(&got).contains("content-length: 10"), "{got}");
            assert!(body_of(&got).len() < 10, "{got}");
        }
    }
}

#[tokio::test]
async fn a_limit_holds_by_client_address() {
    let proxy = Proxy::start(&Origin::start(HELLO).await.address, &["--limit", "2/min"]);
    for status in ["200", "200", "429"] {
        let answer = proxy.exchange(&get("")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn sigterm_lets_running_requests_finish() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut proxy = Proxy::start(&listener.local_addr().unwrap().to_string(), &[]);
    let mut client = proxy.connect().await;
    let idle = proxy.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut origin = BufReader::new(listener.accept().await.unwrap().0);
    read_head(&mut origin).await.unwrap();
    let stopped = Command::new("kill").arg(proxy.child.id().to_string()).status().unwrap();
    assert!(stopped.success());
    // It has heard the signal when it takes no more connections.
    let refused = async { while TcpStream::connect(&proxy.address).await.is_ok() {} };
    timeout(PATIENCE, refused).await.unwrap();
    origin.write_all(HELLO.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    let ended = tokio::task::spawn_blocking(move || proxy.child.wait().unwrap().code());
    assert_eq!(timeout(PATIENCE, ended).await.unwrap().unwrap(), Some(0));
    drop(idle);
}

#[test]
fn options_that_cannot_be_used_are_one_line_and_code_2() {
    let origin = ["--origin", "http://127.0.0.1:1"];
    for options in [
        &[][..],
        &["--origin"],
        &["--origin", "https://127.0.0.1"],
        &["--origin", "http://127.0.0.1/path"],
        &["--origin", "127.0.0.1:1"],
        &[origin[0], origin[1], "--listen", "here"],
        &[origin[0], origin[1], "--limit", "lots"],
        &[origin[0], origin[1], "--redis", "http://a"],
        &[origin[0], origin[1], "--timeout=0"],
        &[origin[0], origin[1], "--speed=1"],
    ] {
        let output = Command::new(binary()).args(options).output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {line}");
        assert!(line.starts_with("proxy: ") && line.trim_end().lines().count() == 1, "{line}");
    }
    let help = Command::new(binary()).arg("--help").output().unwrap();
    assert!(help.status.success());
    assert!(String::from_utf8(help.stdout).unwrap().contains("--origin URL"));
}
