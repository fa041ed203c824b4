//! What strangers try with cookies, and what they find in a stolen storage.

use std::{collections::HashSet, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::Path,
    http::{HeaderMap, HeaderValue, Request, StatusCode},
    response::Response,
    routing::post,
};
use tokio::{sync::Semaphore, time::advance};
use tower::ServiceExt;
use tower_keep::{
    MemoryStorage, SessionLayer,
    session::{Policy, SaveFailure, Session, SessionMap},
};

use crate::{
    redis_storage,
    shop::{Answer, Client, app, routes},
    support::RedisServer,
    watched::{Watched, as_token, contains, spellings},
};

const HOUR: Duration = Duration::from_secs(3_600);

/// A token that nobody was ever given.
const INVENTED: &str = "c2Vzc2lvbnMgYXJlIG5vdCBpbnZlbnRlZCBoZXJlISE";

fn request(method: &str, path: &str, cookies: &[&[u8]]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    for line in cookies {
        request.headers_mut().append("cookie", HeaderValue::from_bytes(line).unwrap());
    }
    request
}

/// What can be told from an answer.
fn seen(answer: Answer) -> (StatusCode, HeaderMap, String) {
    (answer.status, answer.headers, answer.text)
}

fn token(client: &Client) -> &str {
    client.cookie.as_deref().unwrap().split_once('=').unwrap().1
}

#[tokio::test]
async fn what_was_never_given_out_is_as_no_cookie_at_all() {
    let storage = Watched::new(MemoryStorage::new());
    let app = app(storage.clone(), Policy::new());
    let mut victim = Client::new(&app);
    victim.post("/login/alice").await.expect(200);
    let real = token(&victim).to_owned();
    let other = {
        let mut other = Client::new(&app);
        other.post("/login/bob").await.expect(200);
        token(&other).to_owned()
    };
    let last = real.len() - 1;
    let flip = |c: char| match c {
        'a'..='z' => c.to_ascii_uppercase(),
        other => other.to_ascii_lowercase(),
    };
    let flipped: String = real[..last].chars().map(flip).chain(real[last..].chars()).collect();
    let encoded: String = real.bytes().map(|byte| format!("%{byte:02X}")).collect();
    // The last digit has two bits that mean nothing.
    let next = |c: char| char::from(c as u8 + 1);
    let respelt = format!("{}{}", &real[..last], next(real.chars().next_back().unwrap()));

    // The lines of a request, and how often the storage may be asked.
    let ours = |value: &str| vec![format!("__Host-sid={value}").into_bytes()];
    let line = |line: &str| vec![line.as_bytes().to_vec()];
    let table: Vec<(&str, Vec<Vec<u8>>, usize)> = vec![
        ("invented", ours(INVENTED), 1),
        ("zeros", ours(&"A".repeat(43)), 1),
        ("case flipped", ours(&flipped), 1),
        ("empty", ours(""), 0),
        ("truncated", ours(&real[..last]), 0),
        ("lengthened", ours(&format!("{real}A")), 0),
        ("padded", ours(&format!("{real}=")), 0),
        ("another spelling", ours(&respelt), 0),
        ("twice as long", ours(&format!("{real}{real}")), 0),
        ("a megabyte", ours(&"A".repeat(1 << 20)), 0),
        ("a UUID", ours("67e55044-10b1-426f-9247-bb680e5fe0c8"), 0),
        ("hex", ours(&"ab".repeat(32)), 0),
        ("another alphabet", ours(&format!("+/{}", &real[2..])), 0),
        ("URL-encoded", ours(&encoded), 0),
        ("one letter encoded", ours(&format!("{}%41", &real[..last - 2])), 0),
        ("quoted", ours(&format!("\"{real}\"")), 0),
        ("a quote before", ours(&format!("\"{real}")), 0),
        ("a space inside", ours(&format!("{} {}", &real[..20], &real[21..])), 0),
        ("not UTF-8", vec![b"__Host-sid=\xff\xfe".to_vec()], 0),
        ("a JWT", ours("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."), 0),
        ("SQL", ours("' OR 1=1 --"), 0),
        ("no value", line("__Host-sid"), 0),
        ("another name", line(&format!("sid={real}")), 0),
        ("another prefix", line(&format!("__Secure-sid={real}")), 0),
        ("another case of the name", line(&format!("__host-SID={real}")), 0),
        ("a longer name", line(&format!("x__Host-sid={real}; __Host-sid2={real}")), 0),
        ("a space of Unicode before", line(&format!("\u{2000}__Host-sid={real}")), 0),
        ("a space before the equals sign", line(&format!("__Host-sid ={real}")), 0),
        ("a comma between", line(&format!("a=b, __Host-sid={real}")), 0),
        ("quoted semicolon", line(&format!("a=\"; __Host-sid={real}\"")), 0),
        ("two that differ", line(&format!("__Host-sid={real}; __Host-sid={other}")), 0),
        ("two that differ, one malformed", line(&format!("__Host-sid=x; __Host-sid={real}")), 0),
        ("two lines", [ours(&real), ours(&other)].concat(), 0),
        ("two lines, one malformed", [ours(&real), ours("")].concat(), 0),
        ("a thousand", line(&(0..1_000).map(|n| format!("c{n}=v; ")).collect::<String>()), 0),
    ];
    let asked = [("GET", "/read"), ("GET", "/maybe"), ("GET", "/required"), ("GET", "/me")];
    for (method, path) in asked {
        let nothing = seen(victim.ask(request(method, path, &[])).await);
        for (what, lines, lookups) in &table {
            let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
            storage.operations();
            let answer = seen(victim.ask(request(method, path, &lines)).await);
            assert_eq!(answer, nothing, "{what}: {method} {path}");
            assert_eq!(storage.operations(), *lookups, "{what}");
        }
    }

    // The same session twice is that session.
    let line = format!("__Host-sid={real}");
    let ways: [&[&[u8]]; 4] = [
        &[line.as_bytes(), line.as_bytes()],
        &[format!("{line};{line}").leak().as_bytes()],
        &[format!("a=\"b; \t{line} ;c").leak().as_bytes()],
        &[b"sister=\xff\xfe", line.as_bytes(), b"=;;;=="],
    ];
    for lines in ways {
        assert_eq!(victim.ask(request("GET", "/me", lines)).await.expect(200).text, "alice");
    }
}

#[tokio::test]
async fn an_invented_id_is_never_adopted() {
    let app = app(MemoryStorage::new(), Policy::new());
    let planted = format!("__Host-sid={INVENTED}");
    for path in ["/count", "/theme/dark", "/flash/hello", "/set/a/b", "/login/alice"] {
        let mut victim = Client::new(&app);
        victim.cookie = Some(planted.clone());
        victim.post(path).await;
        let given = victim.cookie.clone().unwrap();
        assert_ne!(given, planted, "{path}");
        assert_ne!(victim.get("/maybe").await.text, "null");
        let mut attacker = Client::new(&app);
        attacker.cookie = Some(planted.clone());
        assert_eq!(attacker.get("/maybe").await.text, "null", "{path}");
    }
    // Nor is one of two that differ.
    let mut victim = Client::new(&app);
    victim.cookie = Some(format!("{planted}; __Host-sid={}", "A".repeat(43)));
    victim.post("/theme/dark").await.expect(200);
    let given = token(&victim).to_owned();
    assert!(given != INVENTED && !given.starts_with("AAAAAA"));
}

/// Where a request waits between its read and its write.
#[derive(Clone)]
struct Gate {
    arrived: Arc<Semaphore>,
    go: Arc<Semaphore>,
}

impl Gate {
    fn closed() -> Self {
        Self { arrived: Arc::new(Semaphore::new(0)), go: Arc::new(Semaphore::new(0)) }
    }

    async fn pass(&self) {
        self.arrived.add_permits(1);
        self.go.acquire().await.unwrap().forget();
    }
}

/// The application, with a handler that writes to its session when it is told to.
fn with_gate(storage: Watched, policy: Policy, gate: &Gate) -> Router {
    let late = async |Extension(gate): Extension<Gate>,
                      Path(value): Path<String>,
                      mut session: Session<SessionMap>| {
        gate.pass().await;
        session.insert("planted", &value).unwrap();
    };
    routes()
        .route("/late/{value}", post(late))
        .layer(Extension(gate.clone()))
        .layer(SessionLayer::new(storage, policy))
}

#[tokio::test]
async fn a_planted_session_is_dead_as_soon_as_the_victim_has_logged_in() {
    for policy in [Policy::new(), Policy::new().with_rotation(Duration::from_secs(1))] {
        let gate = Gate::closed();
        let app = with_gate(Watched::new(MemoryStorage::new()), policy, &gate);
        let mut attacker = Client::new(&app);
        attacker.post("/set/before/seen").await.expect(204);
        let mut victim = attacker.clone();

        let under_way: Vec<_> = (0..3)
            .map(|n| {
                let cookie = attacker.cookie.clone().unwrap();
                let request = request("POST", &format!("/late/{n}"), &[cookie.as_bytes()]);
                tokio::spawn(app.clone().oneshot(request))
            })
            .collect();
        gate.arrived.acquire_many(3).await.unwrap().forget();
        victim.post("/login/alice").await.expect(200);
        assert_ne!(victim.cookie, attacker.cookie);
        assert_eq!(attacker.clone().get("/maybe").await.text, "null", "dead at once");
        attacker.clone().post("/set/after/evil").await.expect(204);
        gate.go.add_permits(3);
        for request in under_way {
            let response: Response = request.await.unwrap().unwrap();
            assert_eq!(response.extensions().get(), Some(&SaveFailure::Gone));
            assert!(!response.headers().contains_key("set-cookie"), "{response:?}");
        }
        assert_eq!(attacker.clone().get("/maybe").await.text, "null");
        // What an anonymous visitor had stays with him, and nothing comes after it.
        let data = victim.get("/all").await.expect(200).json();
        assert_eq!(data, serde_json::json!({ "before": "seen" }));
        assert_eq!(victim.get("/me").await.text, "alice");
    }
}

#[tokio::test]
async fn nothing_passes_from_one_principal_to_the_next() {
    let app = app(MemoryStorage::new(), Policy::new());
    let mut client = Client::new(&app);
    client.post("/login/alice").await.expect(200);
    client.post("/set/secret/hers").await.expect(204);
    client.post("/flash/hers").await.expect(200);
    let old = client.clone();
    client.post("/login/bob").await.expect(200);
    assert_eq!(client.get("/all").await.text, "{}");
    assert_eq!(client.get("/flash").await.text, "null");
    old.clone().get("/me").await.expect(401);
}

/// A story in which every kind of record is written, under tokens that are returned with the
/// clients that still have one.
async fn story(app: &Router, later: impl AsyncFn()) -> (HashSet<String>, Vec<Client>) {
    let mut tokens = HashSet::new();
    let mut clients = [(); 3].map(|()| Client::new(app));
    let mut step = async |client: &mut Client, path: &str| {
        let answer = client.post(path).await;
        assert!(answer.status.is_success(), "{path}: {answer:?}");
        if client.cookie.is_some() {
            tokens.insert(token(client).to_owned());
        }
    };
    let [first, second, third] = &mut clients;
    step(first, "/count").await;
    step(first, "/login/alice-the-principal").await;
    step(second, "/login/alice-the-principal").await;
    step(third, "/login/alice-the-principal").await;
    step(first, "/rotate").await;
    step(first, "/prove").await;
    step(first, "/sessions/others").await;
    step(second, "/theme/dark").await;
    step(third, "/theme/dark").await;
    step(third, "/logout").await;
    step(third, "/login/alice-the-principal").await;
    // A periodic rotation whose new id has not been used: the storage holds it sealed.
    later().await;
    for client in [first, second, third] {
        let before = client.cookie.clone();
        step(client, "/flash/hello").await;
        assert_ne!(client.cookie, before, "a rotation was due");
    }
    assert_eq!(tokens.len(), 13);
    (tokens, clients.into())
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_the_storage_can_open_no_session() {
    let storage = Watched::new(MemoryStorage::new());
    let app = app(storage.clone(), Policy::new().with_rotation(HOUR));
    let (tokens, clients) = story(&app, async || advance(2 * HOUR).await).await;
    let dump = storage.bytes();
    assert!(dump.len() > 100);
    for token in &tokens {
        for spelling in spellings(token) {
            assert!(!dump.iter().any(|bytes| contains(bytes, &spelling)), "{token}");
        }
    }
    // Nothing that lies there opens anything, whatever it is.
    let lives = async |token: &str| {
        let cookie = format!("__Host-sid={token}");
        let answer = clients[0].ask(request("GET", "/maybe", &[cookie.as_bytes()])).await;
        answer.expect(200).text != "null"
    };
    assert!(lives(token(&clients[0])).await);
    let windows: HashSet<&[u8]> = dump.iter().flat_map(|bytes| bytes.windows(32)).collect();
    println!("{} windows", windows.len());
    for window in windows {
        assert!(!lives(&as_token(window)).await);
    }
    for bytes in &dump {
        for window in bytes.windows(43) {
            if let Ok(text) = std::str::from_utf8(window)
                && HeaderValue::from_str(text).is_ok()
            {
                assert!(!lives(text).await);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_of_redis_holds_no_token_and_its_keys_no_name() {
    let server = RedisServer::start();
    server.ask("CONFIG SET rdbcompression no");
    let storage = redis_storage(&server.url(), "dump").await;
    let second = Duration::from_secs(1);
    let policy = Policy::named("sid").with_timeout(10 * second).with_rotation(second);
    let app = app(storage, policy);
    // Rotations are due while the story is told, too.
    let mut tokens = HashSet::new();
    let mut client = Client::new(&app);
    for path in ["/count", "/login/alice-the-principal", "/rotate", "/sessions/others"] {
        client.post(path).await.expect(200);
        tokens.insert(token(&client).to_owned());
        server.check_keys("dump");
    }
    tokio::time::sleep(second + second / 10).await;
    client.post("/theme/dark").await.expect(200);
    tokens.insert(token(&client).to_owned());
    assert_eq!(tokens.len(), 5);
    assert_eq!(server.ask("SAVE"), "+OK\r\n");
    let dump = std::fs::read(server.dir().join("dump.rdb")).unwrap();
    assert!(
        contains(&dump, b"alice-the-principal"),
        "it is all there: the record knows whose it is"
    );
    for token in &tokens {
        for spelling in spellings(token) {
            assert!(!contains(&dump, &spelling), "{token}");
        }
    }
    let keys = server.ask("KEYS *");
    assert!(keys.lines().filter(|line| line.starts_with("dump:")).count() >= 4, "{keys}");
    assert!(!keys.contains("alice"), "{keys}");
    client.get("/me").await.expect(200);
    server.check_keys("dump");
}
