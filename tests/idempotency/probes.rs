//! Keys, requests and bytes that clients send, rightly, by mistake or to find somebody else's answer.

use std::fmt;

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, request},
};
use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*, sample::select};
use tower_keep::{
    MemoryStorage, Storage,
    idempotency::{Idempotency, KeySyntax, MissingScope, Outcome, Policy},
};

use crate::{
    storages,
    till::{Till, code, is_replay},
};

/// A request, spelled out.
#[derive(Clone)]
struct Ask {
    method: Method,
    target: String,
    user: Option<String>,
    fields: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
}

impl Ask {
    /// `POST /pay?to=bob` by zoe, with a key.
    fn new() -> Self {
        Self {
            method: Method::POST,
            target: "/pay?to=bob".into(),
            user: Some("zoe".into()),
            fields: Vec::new(),
            body: b"100 EUR".into(),
        }
        .with("content-type", "text/plain")
        .with("idempotency-key", "a-key")
    }

    fn of_method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    fn to(self, target: &str) -> Self {
        Self { target: target.into(), ..self }
    }

    fn by(self, user: Option<&str>) -> Self {
        Self { user: user.map(str::to_owned), ..self }
    }

    /// With one line of the field in place of all others.
    fn with(self, name: &'static str, line: impl AsRef<[u8]>) -> Self {
        self.without(name).and(name, line)
    }

    fn and(mut self, name: &'static str, line: impl AsRef<[u8]>) -> Self {
        self.fields.push((name, line.as_ref().to_vec()));
        self
    }

    fn without(mut self, name: &'static str) -> Self {
        self.fields.retain(|field| field.0 != name);
        self
    }

    fn saying(self, body: impl AsRef<[u8]>) -> Self {
        Self { body: body.as_ref().to_vec(), ..self }
    }

    /// `None` if no client could send it.
    fn request(&self) -> Option<Request<Body>> {
        let mut request = Request::new(Body::from(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::try_from(&self.target).ok()?;
        for (name, line) in &self.fields {
            request.headers_mut().append(*name, HeaderValue::from_bytes(line).ok()?);
        }
        if let Some(user) = &self.user {
            request.extensions_mut().insert(User(user.clone()));
        }
        Some(request)
    }

    /// What the handler makes of it, without the number of the execution.
    fn described(&self) -> Vec<u8> {
        let (parts, _) = self.request().unwrap().into_parts();
        describe(&parts, &self.body)
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |bytes: &[u8]| bytes[..bytes.len().min(60)].escape_ascii().to_string();
        write!(f, "{} {} by {:?}", self.method, short(self.target.as_bytes()), self.user)?;
        for (name, line) in &self.fields {
            write!(f, ", {name}: {}", short(line))?;
        }
        write!(f, ", {}", short(&self.body))
    }
}

/// Whom the authentication outside has found.
#[derive(Debug, Clone)]
struct User(String);

/// All that an answer may depend on.
fn describe(parts: &request::Parts, body: &[u8]) -> Vec<u8> {
    let user = parts.extensions.get::<User>().map(|user| user.0.as_str());
    let kind = parts.headers.get("content-type").map(|kind| kind.as_bytes()).unwrap_or_default();
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let kind = kind.to_ascii_lowercase();
    let head = format!("{} {} {user:?} {}\n", parts.method, parts.uri, kind.escape_ascii());
    [head.as_bytes(), body].concat()
}

/// Answers with all of the request, and the number of the execution.
fn echo(storage: impl Storage, policy: Policy) -> Till {
    Till::new(storage, policy, |execution, request| async move {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let text = [format!("{execution}\n").as_bytes(), &describe(&parts, &body)].concat();
        Response::builder().status(201).body(Body::from(text)).unwrap()
    })
}

fn of_users() -> Policy {
    Policy::scope(|head| head.extensions().get::<User>().map(|user| user.0.clone()))
}

/// What is right for a request that follows the first.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Right {
    Replay,
    /// The handler runs for it, and a repetition is given what came of that.
    Own,
    /// The handler runs for it, each time.
    Passes,
    Refused(u16, &'static str, Outcome),
}
use Right::{Own, Passes, Refused, Replay};

const MISMATCH: Right = Refused(422, "mismatch", Outcome::Mismatch);
const SCOPE: Right = Refused(400, "scope-missing", Outcome::ScopeMissing);

const fn bad_key(code: &'static str) -> Right {
    Refused(400, code, Outcome::KeyInvalid)
}

fn outcome(response: &Response<Bytes>) -> Option<Outcome> {
    response.extensions().get().copied()
}

/// Sends the first request, each of the others twice, and the first again.
async fn run(till: &Till, first: &Ask, others: impl IntoIterator<Item = (Ask, Right)>) {
    let answer = till.send(first.request().unwrap()).await;
    assert_eq!((answer.status().as_u16(), is_replay(&answer)), (201, false));
    let stored = answer.into_body();
    for (ask, right) in others {
        let before = till.executions();
        let mut answers = Vec::new();
        for repetition in [false, true] {
            let answer = till.send(ask.request().unwrap()).await;
            let (status, replay) = (answer.status().as_u16(), is_replay(&answer));
            let what = format!("{ask:?}: {answer:?}");
            match right {
                Replay => {
                    assert_eq!((status, replay, answer.body()), (201, true, &stored), "{what}");
                    assert_eq!(outcome(&answer), Some(Outcome::Replayed), "{what}");
                }
                Own => {
                    assert_eq!((status, replay), (201, repetition), "{what}");
                    assert!(answer.body().ends_with(&ask.described()), "{what}");
                    let wanted = [Outcome::Executed, Outcome::Replayed][usize::from(repetition)];
                    assert_eq!(outcome(&answer), Some(wanted), "{what}");
                }
                Passes => {
                    assert_eq!((status, replay, outcome(&answer)), (201, false, None), "{what}");
                    assert!(answer.body().ends_with(&ask.described()), "{what}");
                }
                Refused(wanted, word, said) => {
                    assert_eq!((status, replay, &*code(&answer)), (wanted, false, word), "{what}");
                    assert_eq!(outcome(&answer), Some(said), "{what}");
                    let text = String::from_utf8_lossy(answer.body()).into_owned();
                    for private in ["a-key", "zoe", "100 EUR"] {
                        assert!(!text.contains(private), "{what}");
                    }
                }
            }
            answers.push(answer.into_body());
        }
        let ran = match right {
            Replay | Refused(..) => 0,
            Own => 1,
            Passes => 2,
        };
        assert_eq!(till.executions() - before, ran, "{ask:?}");
        assert_eq!(answers[0] == answers[1], right != Passes, "{ask:?}");
    }
    let again = till.send(first.request().unwrap()).await;
    assert_eq!((is_replay(&again), again.body()), (true, &stored));
}

#[tokio::test]
async fn a_key_opens_its_own_answer_to_its_own_request_only() {
    let (server, storages) = storages("probes").await;
    for storage in storages {
        let till = echo(storage, of_users());
        let ask = Ask::new;
        let kind = |line: &str| ask().with("content-type", line);
        run(
            &till,
            &ask(),
            [
                (ask(), Replay),
                (ask().saying("100 EUS"), MISMATCH),
                (ask().saying("100 EU"), MISMATCH),
                (ask().saying("100 EUR "), MISMATCH),
                (ask().saying(""), MISMATCH),
                (ask().saying(b"100 EUR\0"), MISMATCH),
                (ask().to("/pay?to=eve"), MISMATCH),
                (ask().to("/pay?to=bob&"), MISMATCH),
                (ask().to("/pay?TO=bob"), MISMATCH),
                (ask().to("/pay?to=b%6fb"), MISMATCH),
                (ask().to("/pay?"), MISMATCH),
                (ask().to("/pay"), MISMATCH),
                (kind("application/json"), MISMATCH),
                (kind(""), MISMATCH),
                (ask().without("content-type"), MISMATCH),
                (ask().and("content-type", "text/plain"), MISMATCH),
                (kind("Text/Plain; charset=utf-8"), Replay),
                // Who asks is the scope's business, and everything else is no part of the payload.
                (ask().with("authorization", "Bearer renewed"), Replay),
                (ask().with("user-agent", "another"), Replay),
                (ask().with("prefer", "wait=99999999999999999999"), Replay),
                (ask().to("/refund?to=bob"), Own),
                (ask().to("/pay/?to=bob"), Own),
                (ask().to("/p%61y?to=bob"), Own),
                (ask().to("//pay?to=bob"), Own),
                (ask().of_method(Method::PATCH), Own),
                (ask().of_method(Method::PUT), Passes),
                (ask().of_method(Method::DELETE), Passes),
                (ask().of_method(Method::GET), Passes),
                (ask().of_method(Method::OPTIONS), Passes),
                (ask().of_method(Method::from_bytes(b"POSTS").unwrap()), Passes),
                (ask().by(Some("eve")), Own),
                (ask().by(Some("ZOE")), Own),
                (ask().by(Some("")), Own),
                (ask().by(None), SCOPE),
                (ask().by(None).saying("another"), SCOPE),
                (ask().with("idempotency-key", "A-KEY"), Own),
                (ask().without("idempotency-key"), Passes),
            ],
        )
        .await;
    }
    server.check_keys("probes");
}

#[tokio::test]
async fn no_two_parts_of_a_request_run_into_one_another() {
    let till = echo(MemoryStorage::new(), of_users());
    // What one has at its end, the other has at its beginning.
    let ask = |user: &str, path: &str, key: &str| {
        Ask::new().by(Some(user)).to(path).with("idempotency-key", key)
    };
    run(
        &till,
        &ask("zoe", "/pay", "key"),
        [
            (ask("zo", "/e/pay", "key"), Own),
            (ask("zoek", "/pay", "ey"), Own),
            (ask("zoe", "/payk", "ey"), Own),
            (ask("zoe", "/pa", "ykey"), Own),
            (ask("zoe/pay", "/", "key"), Own),
            (ask("zoePOST/paykey", "/", "key"), Own),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_key_that_all_routes_share_means_one_request() {
    let (_server, storages) = storages("probes").await;
    for storage in storages {
        let till = echo(storage, of_users().with_keys_shared_by_routes());
        let ask = Ask::new;
        run(
            &till,
            &ask(),
            [
                (ask(), Replay),
                (ask().to("/refund?to=bob"), MISMATCH),
                (ask().to("/pay/?to=bob"), MISMATCH),
                (ask().of_method(Method::PATCH), MISMATCH),
                (ask().saying("1 EUR"), MISMATCH),
                (ask().by(Some("eve")).to("/refund?to=bob"), Own),
                (ask().with("idempotency-key", "another"), Own),
            ],
        )
        .await;
    }
}

#[tokio::test]
async fn a_key_is_one_whether_quoted_or_bare() {
    let till = echo(MemoryStorage::new(), of_users());
    let spelt = |line: &str| Ask::new().with("idempotency-key", line);
    run(
        &till,
        &spelt(r#"a"#),
        [
            (spelt(r#""a""#), Replay),
            (spelt(r#"  a  "#), Replay),
            (spelt("\t\"a\" "), Replay),
            (spelt(r#""a";v=1;w"#), Replay),
            (spelt(r#""A""#), Own),
            (spelt(r#"" a""#), Own),
            (spelt(r#""\"a\"""#), Own),
            (spelt("'a'"), Own),
            (spelt("*1"), Own),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_is_no_key_is_refused_and_nothing_runs() {
    let (server, storages) = storages("probes").await;
    for storage in storages {
        let till = echo(storage, of_users());
        let spelt = |line: &[u8]| Ask::new().with("idempotency-key", line);
        let long = "k".repeat(256);
        run(
            &till,
            &Ask::new(),
            [
                (Ask::new().and("idempotency-key", "b"), bad_key("key-repeated")),
                (Ask::new().and("idempotency-key", "a-key"), bad_key("key-repeated")),
                (Ask::new().and("idempotency-key", ""), bad_key("key-repeated")),
                (Ask::new().and("Idempotency-Key", "b"), bad_key("key-repeated")),
                (spelt(b""), bad_key("key-empty")),
                (spelt(b" \t "), bad_key("key-empty")),
                (spelt(b"\"\""), bad_key("key-empty")),
                (spelt(long.as_bytes()), bad_key("key-too-long")),
                (spelt(format!("\"{long}\"").as_bytes()), bad_key("key-too-long")),
                (spelt(&[b'k'; 10 << 10]), bad_key("key-too-long")),
                (spelt(&[b'"'; 10 << 10]), bad_key("key-malformed")),
                (spelt(&[b'\\'; 10 << 10]), bad_key("key-malformed")),
                (spelt(b"a, b"), bad_key("key-malformed")),
                (spelt(b"\"a\", \"b\""), bad_key("key-malformed")),
                (spelt(b"(\"a\" \"b\")"), bad_key("key-malformed")),
                (spelt(b"\"a"), bad_key("key-malformed")),
                (spelt(b"a\""), bad_key("key-malformed")),
                (spelt(b"\"a\"b"), bad_key("key-malformed")),
                (spelt(b"\"a\";"), bad_key("key-malformed")),
                (spelt(b"\"\\a\""), bad_key("key-malformed")),
                (spelt(b"a b"), bad_key("key-malformed")),
                (spelt(b"a\tb"), bad_key("key-malformed")),
                (spelt(b"\"a\tb\""), bad_key("key-malformed")),
                (spelt(b"a;v=1"), bad_key("key-malformed")),
                (spelt("clé".as_bytes()), bad_key("key-malformed")),
                (spelt("\"clé\"".as_bytes()), bad_key("key-malformed")),
                (spelt(b"\xff\xfe"), bad_key("key-malformed")),
                (spelt(b"\"\x80\""), bad_key("key-malformed")),
                // A key comes before a scope: whoever it is, it cannot be used.
                (spelt(b"a, b").by(None), bad_key("key-malformed")),
                (spelt(long[1..].as_bytes()), Own),
                (spelt(format!("\"{}\\\"\"", &long[2..]).as_bytes()), Own),
            ],
        )
        .await;
    }
    server.check_keys("probes");
}

#[tokio::test]
async fn a_strict_policy_takes_quoted_strings_only() {
    let till = echo(MemoryStorage::new(), of_users().with_syntax(KeySyntax::Strict));
    let spelt = |line: &str| Ask::new().with("idempotency-key", line);
    let malformed = bad_key("key-malformed");
    run(
        &till,
        &spelt(r#""a""#),
        [
            (spelt("a"), malformed),
            (spelt("8e03978e-40d5-43e8-bc93-6894a57f9324"), malformed),
            (spelt("12"), malformed),
            (spelt("?1"), malformed),
            (spelt(":YQ==:"), malformed),
            (spelt("%\"a\""), malformed),
            (spelt("@1"), malformed),
            (spelt("a;v=1"), malformed),
            (spelt(r#""a", "b""#), malformed),
            (spelt(r#""a";v=1"#), Replay),
            (spelt(r#""b""#), Own),
            (Ask::new().without("idempotency-key"), Passes),
        ],
    )
    .await;
}

#[tokio::test]
async fn another_header_field_can_hold_the_key() {
    let policy = of_users().with_header("X-Request-Token").with_required_key();
    let till = echo(MemoryStorage::new(), policy);
    let ask = || Ask::new().without("idempotency-key").with("x-request-token", "a-key");
    run(
        &till,
        &ask(),
        [
            (ask().with("idempotency-key", "another"), Replay),
            (ask().with("idempotency-key", "a, b"), Replay),
            (ask().and("x-request-token", "b"), bad_key("key-repeated")),
            (ask().with("x-request-token", "b"), Own),
            (Ask::new(), Refused(400, "key-missing", Outcome::KeyMissing)),
        ],
    )
    .await;
    let refused = till.send(Ask::new().request().unwrap()).await;
    let detail = String::from_utf8_lossy(refused.body()).into_owned();
    assert!(detail.contains("x-request-token"), "it names the field: {detail}");
}

#[tokio::test]
async fn a_policy_says_how_long_a_key_is() {
    let till = echo(MemoryStorage::new(), of_users().with_key_length(16, 36));
    let spelt = |line: &str| Ask::new().with("idempotency-key", line);
    run(
        &till,
        &spelt("8e03978e-40d5-43e8-bc93-6894a57f9324"),
        [
            (spelt("8e03978e-40d5-43"), Own),
            (spelt("8e03978e-40d5-4"), bad_key("key-too-short")),
            // Quotes and escapes are no characters of the key.
            (spelt("\"8e03978e-40d5-4\""), bad_key("key-too-short")),
            (spelt(r#""\\\\\\\\\\\\\\\\""#), bad_key("key-too-short")),
            (spelt("\"8e03978e-40d5-43e8-bc93-6894a57f9324\""), Replay),
            (spelt("8e03978e-40d5-43e8-bc93-6894a57f93245"), bad_key("key-too-long")),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_request_that_belongs_to_nobody_may_go_by_without_its_key() {
    let till = echo(MemoryStorage::new(), of_users().with_missing_scope(MissingScope::Pass));
    run(&till, &Ask::new(), [(Ask::new().by(None), Passes)]).await;
    let till = Till::new(
        MemoryStorage::new(),
        of_users().with_missing_scope(MissingScope::Pass),
        |_, request| async move {
            let attempt = request.extensions().get::<Idempotency>().is_some();
            Response::new(Body::from(if attempt { "protected" } else { "unprotected" }))
        },
    );
    assert_eq!(till.send(Ask::new().request().unwrap()).await.body(), "protected");
    assert_eq!(till.send(Ask::new().by(None).request().unwrap()).await.body(), "unprotected");
}

#[tokio::test]
async fn an_absolute_target_and_a_strange_one_are_requests_like_others() {
    let till = echo(MemoryStorage::new(), of_users());
    let ask = |target: &str| Ask::new().to(target);
    run(
        &till,
        &ask("/pay?to=bob"),
        [
            (ask("http://shop.example/pay?to=bob"), Replay),
            (ask("*"), Own),
            (ask("/"), Own),
            (ask("/%00%ff?%00"), Own),
            (ask("/a/../pay?to=bob"), Own),
            (ask(&format!("/{}", "p".repeat(30_000))), Own),
        ],
    )
    .await;
}

/// Bytes as they come from people who try.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let known: [&[u8]; 9] =
        [b"a", b"\"a\"", b"b", b"", b"\"\"", b"a, b", b"\"a\";x=1", b"\xc3\xa9", b"\"\\\"\""];
    prop_oneof![
        6 => select(known.to_vec()).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..40),
        1 => vec(select(b"\"\\,; a=1():?*%\t\x80".to_vec()), 0..12),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let method = select(vec![Method::POST, Method::POST, Method::PATCH, Method::GET]);
    let target = prop_oneof![
        4 => select(vec!["/", "/pay", "/pay?", "/pay?a=1"]).prop_map(str::to_owned),
        1 => "[/*?a%=&#:é]{0,12}",
        1 => any::<String>(),
    ];
    let user = option::weighted(0.9, select(vec!["zoe".to_owned(), "bob".to_owned()]));
    let field =
        (select(vec!["idempotency-key", "idempotency-key", "content-type", "prefer"]), line());
    let body = prop_oneof![
        4 => select(vec![b"".to_vec(), b"1".to_vec()]),
        1 => vec(any::<u8>(), 0..80),
    ];
    (method, target, user, vec(field, 0..4), body)
        .prop_map(|(method, target, user, fields, body)| Ask { method, target, user, fields, body })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::race::count(96, 4_096) as u32))]

    #[test]
    fn no_bytes_make_it_panic_or_give_anybody_a_foreign_answer(
        asks in vec(ask(), 1..24),
        strict in any::<bool>(),
        shared in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut policy = of_users().with_max_request_body(64);
            if strict {
                policy = policy.with_syntax(KeySyntax::Strict);
            }
            if shared {
                policy = policy.with_keys_shared_by_routes();
            }
            let till = echo(MemoryStorage::new(), policy);
            for ask in asks {
                let Some(request) = ask.request() else { continue };
                let before = till.executions();
                let answer = till.send(request).await;
                let ran = till.executions() - before;
                match answer.status().as_u16() {
                    201 => {
                        assert!(answer.body().ends_with(&ask.described()), "{ask:?}: {answer:?}");
                        assert_eq!(ran, usize::from(!is_replay(&answer)), "{ask:?}: {answer:?}");
                    }
                    400 | 413 | 422 => {
                        assert_ne!(code(&answer), "");
                        assert_eq!(ran, 0, "{ask:?}: {answer:?}");
                    }
                    _ => panic!("{ask:?}: {answer:?}"),
                }
            }
        });
    }
}

#[tokio::test]
async fn a_problem_says_what_to_do_and_where_to_read_on() {
    let url = "https://api.example/keys";
    let till = echo(MemoryStorage::new(), of_users().with_required_key().with_documentation(url));
    till.send(Ask::new().request().unwrap()).await;
    let refused = [
        Ask::new().saying("another"),
        Ask::new().without("idempotency-key"),
        Ask::new().with("idempotency-key", "a, b"),
        Ask::new().by(None),
    ];
    for ask in refused {
        let answer = till.send(ask.request().unwrap()).await;
        code(&answer);
        let problem: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(problem["type"], url, "{ask:?}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.len() > 20), "{problem}");
        assert_eq!(answer.headers()["link"], format!("<{url}>; rel=\"describedby\""));
        assert_eq!(lines(answer.headers(), "retry-after"), 0, "nothing changes by waiting");
    }
}

fn lines(headers: &HeaderMap, name: &str) -> usize {
    headers.get_all(name).iter().count()
}
