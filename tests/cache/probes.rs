//! What no shared cache may do, and what a good one does: each line a small conversation.
//!
//! The probes by which research/caching.md §7 tells caches apart, and those of the fault list that
//! concern what is asked and answered. They run in both modes, on memory and on Redis.

use tower_keep::{
    MemoryStorage, Storage,
    cache::{Query, TagForwarding},
    storage::Identity,
};

use crate::{
    probe::{Probe, User, answer, get, head, made, probe, request, run, status, stored},
    redis_storage,
    support::RedisServer,
};

#[tokio::test]
async fn probes_on_memory() {
    run(&MemoryStorage::new().erase(), all()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_on_redis() {
    let server = RedisServer::start();
    run(&redis_storage(&server.url(), "tk").await, all()).await;
    server.check_keys("tk");
}

fn all() -> Vec<Probe> {
    [
        people(),
        statements(),
        variants(),
        methods(),
        conditions(),
        ranges(),
        kinds_of_answers(),
        what_handlers_see(),
        targets(),
        sessions_and_principals(),
        tags(),
        header_fields(),
        streams(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Who asks.
fn people() -> Vec<Probe> {
    vec![
        probe("an answer to Authorization is nobody else's")
            .handler(answer().echoing("authorization"))
            .ask(
                get("/").with("authorization", "alice"),
                made().body("answer 1 authorization=alice"),
            )
            .ask(get("/").with("authorization", "bob"), made().body("answer 2 authorization=bob"))
            .ask(get("/"), made())
            .ask(get("/"), stored(3))
            .ask(get("/").with("authorization", "bob"), made().body("answer 4 authorization=bob"))
            .ask(get("/"), stored(3)),
        probe("`public` lets an answer to Authorization be shared")
            .in_http_mode()
            .handler(answer().with("cache-control", "public, max-age=60"))
            .ask(get("/").with("authorization", "alice"), made())
            .ask(get("/").with("authorization", "bob"), stored(1)),
        probe("no output is stored for Authorization, `public` or not")
            .in_output_mode()
            .handler(answer().with("cache-control", "public, max-age=60"))
            .ask(get("/").with("authorization", "alice"), made().because("authorization"))
            .ask(get("/").with("authorization", "alice"), made()),
        probe("a request with Cookie passes by")
            .in_output_mode()
            .handler(answer().echoing("cookie"))
            .ask(get("/").with("cookie", "id=1"), made().body("answer 1 cookie=id=1"))
            .ask(get("/"), made())
            .ask(get("/").with("cookie", "id=1"), made().because("cookie"))
            .ask(get("/"), stored(2)),
        probe("cookies that do not matter are not seen")
            .in_output_mode()
            .policy(|policy| policy.with_cookies_ignored())
            .handler(answer().echoing("cookie"))
            .ask(get("/").with("cookie", "id=1"), made().body("answer 1 cookie=-"))
            .ask(get("/").with("cookie", "id=2"), stored(1)),
        probe("Set-Cookie is not stored")
            .handler(answer().with("set-cookie", "id=1"))
            .ask(get("/"), made().field("set-cookie", [b"id=1"]).because("set-cookie"))
            .ask(get("/"), made()),
        probe("Set-Cookie is stripped where the policy says so")
            .policy(|policy| policy.with_set_cookie_stripped())
            .handler(answer().with("set-cookie", "id=1"))
            .ask(get("/"), made().without("set-cookie"))
            .ask(get("/"), stored(1).without("set-cookie")),
        probe("a challenge is not stored")
            .handler(answer().with("www-authenticate", "Basic"))
            .ask(get("/"), made().because("challenge"))
            .ask(get("/"), made()),
        probe("what lies under a name with a suffix is as private as without (cache deception)")
            .handler(answer().with("cache-control", "private").with("content-type", "text/css"))
            .ask(get("/account/x.css"), made().because("private"))
            .ask(get("/account/x.css"), made()),
        probe("the account of a cookie is not stored under a name with a suffix")
            .in_output_mode()
            .handler(answer().with("content-type", "text/css"))
            .ask(get("/account/x.css").with("cookie", "id=1"), made())
            .ask(get("/account/x.css"), made()),
    ]
}

/// What `Cache-Control` says, however it is spelled.
fn statements() -> Vec<Probe> {
    let mut probes: Vec<_> = [
        "no-store",
        "private",
        "no-cache",
        "NO-STORE, max-age=60",
        "max-age=60, Private",
        "max-age=60,no-store",
        "private=\"x\", max-age=60",
        "no-cache=\"x\", max-age=60",
        "max-age=60, ,, no-store",
    ]
    .into_iter()
    .map(|field| {
        probe("what forbids storing does")
            .handler(answer().with("cache-control", field))
            .ask(get("/"), made().field("cache-control", [field.as_bytes()]))
            .ask(get("/"), made())
    })
    .collect();
    probes.extend(
        [
            "max-age=0",
            "max-age=-1",
            "max-age=1.5",
            "max-age=",
            "max-age",
            "max-age=x",
            "s-maxage=0, max-age=60",
            "x-max-age=60",
            "max-age=0, max-age=60",
        ]
        .map(|field| {
            probe("what gives no time does not live")
                .in_http_mode()
                .handler(answer().with("cache-control", field))
                .ask(get("/"), made())
                .ask(get("/"), made())
        }),
    );
    probes.extend(
        [
            "max-age=60",
            "MAX-AGE=60",
            "max-age=\"60\"",
            "max-age=99999999999999999999",
            "max-age=0, s-maxage=60",
            "max-age=60, unknown, unknown=\"a, b\"",
            "unknown=\"no-store\", max-age=60",
            "max-age=60, max-age=0",
        ]
        .map(|field| {
            probe("what gives time does")
                .in_http_mode()
                .handler(answer().with("cache-control", field))
                .ask(get("/"), made())
                .ask(get("/"), stored(1))
        }),
    );
    probes.extend([
        probe("an answer that says nothing is not stored in HTTP mode")
            .in_http_mode()
            .handler(answer().without_max_age())
            .ask(get("/"), made())
            .ask(get("/"), made()),
        probe("the field for this cache alone wins, and is not passed on")
            .in_http_mode()
            .handler(
                answer()
                    .with("cache-control", "no-store")
                    .with("tower-keep-cache-control", "max-age=60"),
            )
            .ask(get("/"), made().without("tower-keep-cache-control"))
            .ask(
                get("/"),
                stored(1).field("cache-control", [b"no-store"]).without("tower-keep-cache-control"),
            ),
        probe("clients cannot get past the cache, nor empty it")
            .ask(get("/"), made())
            .ask(get("/").with("cache-control", "no-cache"), stored(1))
            .ask(get("/").with("cache-control", "no-store").with("pragma", "no-cache"), stored(1))
            .ask(get("/").with("cache-control", "max-age=0"), stored(1)),
        probe("clients can, where the policy says so")
            .in_http_mode()
            .policy(|policy| policy.with_request_directives())
            .ask(get("/"), made())
            .ask(get("/").with("cache-control", "no-cache"), made())
            .ask(get("/"), stored(2))
            .ask(get("/other").with("cache-control", "no-store"), made())
            .ask(get("/other"), made()),
    ]);
    probes
}

fn variants() -> Vec<Probe> {
    let by_language = || answer().with("vary", "Accept-Language").echoing("accept-language");
    let german = || get("/").with("accept-language", "de");
    let english = || get("/").with("accept-language", "en");
    vec![
        probe("every language has its own answer, and all are kept")
            .handler(by_language())
            .ask(german(), made().body("answer 1 accept-language=de"))
            .ask(english(), made().body("answer 2 accept-language=en"))
            .ask(get("/"), made().body("answer 3 accept-language=-"))
            .ask(german(), stored(1))
            .ask(english(), stored(2))
            .ask(get("/"), stored(3)),
        probe("case, spaces and forms of weights make no other language, but order does")
            .handler(by_language())
            .ask(get("/").with("accept-language", "de, en;q=0.50"), made())
            .ask(get("/").with("accept-language", "DE ,EN; q=0.5"), stored(1))
            .ask(
                get("/").with("accept-language", "de").with("accept-language", "en;q=0.5"),
                stored(1),
            )
            .ask(get("/").with("accept-language", "de, en;q=0.6"), made())
            .ask(get("/").with("accept-language", "en;q=0.5, de"), made()),
        probe("`Vary: *` is not stored")
            .handler(answer().with("vary", "*"))
            .ask(get("/"), made().because("vary-all"))
            .ask(get("/"), made()),
        probe("`*` hides in no list")
            .handler(answer().with("vary", "Accept").with("vary", "Origin , *"))
            .ask(get("/"), made().because("vary-all"))
            .ask(get("/"), made()),
        probe("`Vary: Cookie` is not stored")
            .handler(answer().with("vary", "accept, cookie"))
            .ask(get("/"), made().because("vary-cookie"))
            .ask(get("/"), made()),
        probe("an answer may vary by many fields")
            .handler(answer().with(
                "vary",
                "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z, \
                 accept, accept-language",
            ))
            .ask(german(), made())
            .ask(english(), made())
            .ask(german(), stored(1)),
        probe("answers that vary by other fields each time are all found")
            .in_http_mode()
            .handler(answer().with("vary", "a"))
            .handler(answer().with("vary", "b"))
            .ask(get("/").with("a", "1").with("b", "1"), made())
            .ask(get("/").with("a", "2").with("b", "2"), made())
            .ask(get("/").with("a", "1").with("b", "1"), stored(1))
            .ask(get("/").with("a", "9").with("b", "2"), stored(2)),
        probe("a coding that Vary forgot is not given to those who cannot read it")
            .in_http_mode()
            .handler(answer().with("content-encoding", "gzip").echoing("accept-encoding"))
            .handler(answer())
            .ask(get("/").with("accept-encoding", "gzip"), made())
            .ask(get("/").with("accept-encoding", "gzip"), stored(1))
            .ask(get("/"), made())
            .ask(get("/"), stored(2)),
        probe("an origin that is reflected is not given to another")
            .in_http_mode()
            .handler(answer().with("access-control-allow-origin", "https://one.example"))
            .handler(answer().with("access-control-allow-origin", "https://two.example"))
            .ask(get("/").with("origin", "https://one.example"), made())
            .ask(
                get("/").with("origin", "https://two.example"),
                made().field("access-control-allow-origin", [b"https://two.example"]),
            )
            .ask(get("/").with("origin", "https://one.example"), stored(1)),
        probe("a handler in output mode has no origin to reflect")
            .in_output_mode()
            .handler(answer().echoing("origin"))
            .ask(get("/").with("origin", "https://one.example"), made().body("answer 1 origin=-"))
            .ask(get("/").with("origin", "https://two.example"), stored(1)),
        probe("fifty who ask at once for one language run the handler once")
            .handler(by_language().slowly())
            .crowd(50, german())
            .crowd(50, english())
            .ask(german(), stored(1)),
    ]
}

fn methods() -> Vec<Probe> {
    let mut probes = vec![
        probe("HEAD never answers a GET")
            .handler(answer())
            .ask(head("/"), made())
            .ask(get("/"), made().body("answer 2"))
            .ask(get("/"), stored(2)),
        probe("GET answers a HEAD, with the length and without the body")
            .ask(get("/"), made())
            .ask(head("/"), stored(1).field("content-length", [b"8"]))
            .ask(get("/"), stored(1)),
        probe("every POST reaches the handler")
            .handler(answer().echoing("body"))
            .ask(request("POST", "/").body("one"), made().body("answer 1 body=one"))
            .ask(request("POST", "/").body("two"), made().body("answer 2 body=two"))
            .ask(get("/"), made()),
        probe("a GET with a body is not stored, nor answered from what is")
            .handler(answer().echoing("body"))
            .ask(get("/").body("poison"), made().body("answer 1 body=poison").because("body"))
            .ask(get("/"), made().body("answer 2 body="))
            .ask(get("/").body("poison"), made())
            .ask(get("/"), stored(2)),
        probe("a GET that announces a body is not stored")
            .ask(get("/").with("transfer-encoding", "chunked"), made().because("body"))
            .ask(get("/").with("content-length", "5"), made().because("body"))
            .ask(get("/"), made())
            .ask(get("/").with("content-length", "0"), stored(3)),
        probe("a write that failed changes nothing")
            .handler(answer())
            .handler(status(500))
            .ask(get("/"), made())
            .ask(request("PUT", "/"), made())
            .ask(get("/"), stored(1)),
        probe("a write changes its own target, and no other")
            .ask(get("/one?a"), made())
            .ask(get("/two"), made())
            .ask(request("PUT", "/one?a"), made())
            .ask(get("/one?a"), made())
            .ask(get("/two"), stored(2)),
        probe("a write changes all variants")
            .handler(answer().with("vary", "accept-language"))
            .ask(get("/").with("accept-language", "de"), made())
            .ask(get("/").with("accept-language", "en"), made())
            .ask(request("PATCH", "/"), made())
            .ask(get("/").with("accept-language", "de"), made())
            .ask(get("/").with("accept-language", "en"), made()),
        probe("a write changes what Location and Content-Location name")
            .handler(answer())
            .handler(answer())
            .handler(answer())
            .handler(
                status(201)
                    .with("location", "/items/7")
                    .with("content-location", "http://shop.example/items"),
            )
            .handler(answer())
            .ask(get("/items/7"), made())
            .ask(get("/items"), made())
            .ask(get("/items/8"), made())
            .ask(request("POST", "/new"), made())
            .ask(get("/items/7"), made())
            .ask(get("/items"), made())
            .ask(get("/items/8"), stored(3)),
        probe("a write changes the groups that it names")
            .handler(answer().with("cache-groups", "\"shop\""))
            .handler(answer())
            .handler(answer().with("cache-group-invalidation", "\"shop\""))
            .handler(answer())
            .ask(get("/one"), made())
            .ask(get("/two"), made())
            .ask(request("POST", "/new"), made())
            .ask(get("/one"), made())
            .ask(get("/two"), stored(2)),
    ];
    for method in ["OPTIONS", "TRACE", "QUERY", "PROPFIND", "M-SEARCH", "HELLO"] {
        probes.push(
            probe("other methods pass by")
                .ask(request(method, "/"), made())
                .ask(request(method, "/"), made())
                .ask(get("/"), made())
                .ask(request(method, "/"), made()),
        );
    }
    for method in ["PUT", "POST", "DELETE", "PATCH", "M-SEARCH", "HELLO"] {
        probes.push(
            probe("after a method that may have changed it, a target is asked for anew")
                .ask(get("/"), made())
                .ask(request(method, "/"), made())
                .ask(get("/"), made()),
        );
    }
    for field in ["x-http-method-override", "x-http-method", "x-method-override"] {
        probes.push(
            probe("a GET that may be something else passes by")
                .handler(answer().echoing("x-http-method-override"))
                .ask(get("/").with(field, "DELETE"), made().because("method-override"))
                .ask(get("/"), made())
                .ask(get("/").with(field, "DELETE"), made())
                .ask(get("/"), stored(2)),
        );
    }
    probes
}

fn conditions() -> Vec<Probe> {
    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    let tagged = || answer().with("etag", "\"v1\"").with("x-kind", "page");
    let if_none_match = |tag| get("/").with("if-none-match", tag);
    vec![
        probe("who has the answer is told so, by the entity tag")
            .handler(tagged())
            .ask(get("/"), made())
            .ask(if_none_match("\"v1\""), stored(1).status(304).field("etag", [b"\"v1\""]))
            .ask(if_none_match("W/\"v1\""), stored(1).status(304))
            .ask(if_none_match("\"v0\", \"v1\""), stored(1).status(304))
            .ask(if_none_match("*"), stored(1).status(304))
            .ask(if_none_match("\"v2\""), stored(1).status(200))
            .ask(head("/").with("if-none-match", "\"v1\""), stored(1).status(304))
            .ask(get("/"), stored(1).status(200)),
        probe("who has the answer is told so, by its date")
            .handler(answer().with("last-modified", MODIFIED))
            .ask(get("/"), made())
            .ask(get("/").with("if-modified-since", MODIFIED), stored(1).status(304))
            .ask(
                get("/").with("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT"),
                stored(1).status(200),
            )
            .ask(get("/").with("if-modified-since", "yesterday"), stored(1).status(200))
            .ask(
                get("/").with("if-modified-since", MODIFIED).with("if-none-match", "\"v2\""),
                stored(1).status(200),
            ),
        probe("conditions of one client do not decide what others get")
            .in_output_mode()
            .handler(tagged().echoing("if-none-match"))
            .ask(if_none_match("\"v0\""), made().body("answer 1 if-none-match=-"))
            .ask(get("/"), stored(1)),
        probe("the handler's 304 is not stored")
            .handler(status(304).body("").with("etag", "\"v1\""))
            .handler(answer())
            .ask(if_none_match("\"v1\""), made())
            .ask(get("/"), made().body("answer 2"))
            .ask(get("/"), stored(2)),
        probe("what only an origin can judge passes by")
            .ask(get("/"), made())
            .ask(get("/").with("if-match", "\"v1\""), made().because("condition"))
            .ask(get("/").with("if-unmodified-since", MODIFIED), made().because("condition")),
    ]
}

fn ranges() -> Vec<Probe> {
    let digits = || answer().body("0123456789").with("etag", "\"v1\"");
    let whole = || stored(1).status(200).body("0123456789").without("content-range");
    let range = |range| get("/").with("range", range);
    vec![
        probe("parts are cut from the whole")
            .handler(digits())
            .ask(get("/"), made().body("0123456789"))
            .ask(
                range("bytes=2-4"),
                stored(1)
                    .status(206)
                    .body("234")
                    .field("content-range", [b"bytes 2-4/10"])
                    .field("content-length", [b"3"]),
            )
            .ask(range("bytes=7-"), stored(1).status(206).body("789"))
            .ask(range("bytes=-2"), stored(1).status(206).body("89"))
            .ask(range("bytes=8-99"), stored(1).status(206).body("89"))
            .ask(range("bytes=10-"), stored(1).status(416).field("content-range", [b"bytes */10"]))
            .ask(range("bytes=-0"), stored(1).status(416))
            .ask(range("bytes=4-2"), whole())
            .ask(range("bytes=0-1,3-4"), whole())
            .ask(range("lines=1-2"), whole())
            .ask(range("bytes=99999999999999999999999-"), stored(1).status(416))
            .ask(get("/"), whole()),
        probe("a part is only cut from what the client has the rest of")
            .handler(digits())
            .ask(get("/"), made().body("0123456789"))
            .ask(range("bytes=2-4").with("if-range", "\"v1\""), stored(1).status(206).body("234"))
            .ask(range("bytes=2-4").with("if-range", "\"v2\""), whole())
            .ask(range("bytes=2-4").with("if-range", "W/\"v1\""), whole()),
        probe("the handler's 206 is not stored")
            .in_http_mode()
            .handler(status(206).body("01").with("content-range", "bytes 0-1/10"))
            .handler(digits())
            .ask(range("bytes=0-1"), made().body("01").because("partial"))
            .ask(get("/"), made().body("0123456789"))
            .ask(get("/"), stored(2).body("0123456789")),
        probe("a handler in output mode makes the whole, of which a part is cut")
            .in_output_mode()
            .handler(digits())
            .ask(range("bytes=0-1"), made().status(206).body("01"))
            .ask(get("/"), whole()),
        probe("a 206 that nobody asked for is not stored")
            .handler(status(206).body("01").with("content-range", "bytes 0-1/10"))
            .ask(get("/"), made().body("01").because("partial"))
            .ask(get("/"), made().body("01")),
        probe("a 200 that claims to be a part is not stored")
            .handler(answer().with("content-range", "bytes 0-1/10"))
            .ask(get("/"), made().because("partial"))
            .ask(get("/"), made()),
    ]
}

fn kinds_of_answers() -> Vec<Probe> {
    let mut probes = Vec::new();
    for code in [400, 401, 403, 408, 413, 414, 421, 429, 431, 500, 502, 503, 504] {
        probes.push(
            probe("an error is not stored unless somebody says so")
                .handler(status(code).without_max_age())
                .handler(answer())
                .ask(get("/"), made())
                .ask(get("/"), made())
                .ask(get("/"), stored(2)),
        );
    }
    for code in [404, 410] {
        probes.push(
            probe("what is missing is not stored unless somebody says so")
                .handler(status(code).without_max_age())
                .ask(get("/"), made())
                .ask(get("/"), made()),
        );
        probes.push(
            probe("what is missing is stored for as long as it says")
                .in_http_mode()
                .handler(status(code))
                .ask(get("/"), made())
                .ask(get("/"), stored(1)),
        );
    }
    for code in [100, 101, 103, 199, 206, 304, 600, 999] {
        probes.push(
            probe("what is no final and whole answer is not stored")
                .handler(status(code))
                .ask(get("/"), made().body("answer 1"))
                .ask(get("/"), made().body("answer 2")),
        );
    }
    for code in [200, 203, 301, 308] {
        probes.push(
            probe("these are stored in both modes")
                .handler(status(code).with("location", "/there"))
                .ask(get("/"), made())
                .ask(get("/"), stored(1).field("location", [b"/there"])),
        );
    }
    probes.extend([
        probe("a 204 has no length")
            .handler(status(204).body(""))
            .ask(get("/"), made().body("").without("content-length"))
            .ask(get("/"), stored(1).body("").without("content-length")),
        probe("an answer without content is one")
            .handler(answer().body(""))
            .ask(get("/"), made().body(""))
            .ask(get("/"), stored(1).body("").field("content-length", [b"0"])),
        probe("any bytes come back as they were")
            .handler(answer().body(b"\0\xff\xfe\r\n\r\n\x80"))
            .ask(get("/"), made().body(b"\0\xff\xfe\r\n\r\n\x80"))
            .ask(get("/"), stored(1).body(b"\0\xff\xfe\r\n\r\n\x80")),
        probe("a hit tells its age")
            .ask(get("/"), made())
            .ask(get("/"), stored(1).field("age", [b"0"])),
        probe("the age of what comes from another cache counts, and is passed on")
            .in_http_mode()
            .handler(answer().with("age", "20"))
            .ask(get("/"), made().field("age", [b"20"]))
            .ask(get("/"), stored(1).field("age", [b"20"])),
        probe("what comes too old from another cache does not live")
            .in_http_mode()
            .handler(answer().with("age", "60"))
            .ask(get("/"), made().field("age", [b"60"]))
            .ask(get("/"), made()),
    ]);
    probes
}

/// What is not in the key does not get to a handler whose answer others are given.
fn what_handlers_see() -> Vec<Probe> {
    let mut probes = Vec::new();
    for field in [
        "x-forwarded-host",
        "x-forwarded-scheme",
        "x-forwarded-proto",
        "x-forwarded-prefix",
        "x-forwarded-port",
        "x-original-url",
        "x-rewrite-url",
        "x-host",
        "x_forwarded_host",
    ] {
        probes.push(
            probe("what overrules the target cannot poison")
                .handler(answer().echoing(field))
                .ask(
                    get("/").with(field, "evil.example"),
                    made().body(format!("answer 1 {field}=-")),
                )
                .ask(get("/"), stored(1)),
        );
    }
    for field in ["accept-encoding", "user-agent", "referer", "x-anything", "range", "pragma"] {
        probes.push(
            probe("what is not in the key is not seen in output mode")
                .in_output_mode()
                .handler(answer().body("").echoing(field))
                .ask(head("/"), made())
                .ask(get("/").with(field, "evil"), made().body(format!(" {field}=-")))
                .ask(get("/"), stored(2).body(format!(" {field}=-"))),
        );
    }
    probes.extend([
        probe("Forwarded cannot poison")
            .handler(answer().echoing("forwarded"))
            .ask(
                get("/").with("forwarded", "for=1.2.3.4;Host=evil.example"),
                made().body("answer 1 forwarded=-"),
            )
            .ask(get("/"), stored(1)),
        probe("what is in the key is seen, and tells answers apart")
            .policy(|policy| policy.add_key_header("x-forwarded-host"))
            .handler(answer().echoing("x-forwarded-host"))
            .ask(
                get("/").with("x-forwarded-host", "one"),
                made().body("answer 1 x-forwarded-host=one"),
            )
            .ask(
                get("/").with("x-forwarded-host", "two"),
                made().body("answer 2 x-forwarded-host=two"),
            )
            .ask(get("/"), made())
            .ask(get("/").with("x-forwarded-host", "one"), stored(1)),
        probe("several lines of a key's field are not one line of both")
            .policy(|policy| policy.add_key_header("x-part"))
            .ask(get("/").with("x-part", "a").with("x-part", "b"), made())
            .ask(get("/").with("x-part", "a, b"), made())
            .ask(get("/").with("x-part", "ab"), made())
            .ask(get("/").with("x-part", "b").with("x-part", "a"), made())
            .ask(get("/").with("x-part", "a").with("x-part", "b"), stored(1)),
        probe("what the policy makes visible is seen")
            .in_output_mode()
            .policy(|policy| policy.add_visible_header("x-trace"))
            .handler(answer().echoing("x-trace"))
            .ask(get("/").with("x-trace", "1"), made().body("answer 1 x-trace=1"))
            .ask(get("/").with("x-trace", "2"), stored(1)),
    ]);
    probes
}

/// All that may be told apart is.
fn targets() -> Vec<Probe> {
    let tricks = [
        "/a",
        "/a/",
        "//a",
        "/A",
        "/a/../b",
        "/b",
        "/./a",
        "/a/.",
        "/a/..",
        "/%2e%2e/a",
        "/%2E%2E/a",
        "/%61",
        "/a%2fb",
        "/a/b",
        "/a;x",
        "/a;x=1",
        "/a%3bx",
        "/a?",
        "/a?a=1",
        "/a?a=1&a=2",
        "/a?a=2&a=1",
        "/a?a=1&b=2",
        "/a?b=2&a=1",
        "/a?a=1;b=2",
        "/a?A=1",
        "/a%3Fa=1",
        "/a%00",
        "/a%20",
        "/a+",
        "/a?a=+",
        "/a?a=%20",
        "/a&a=1",
        "/a?a",
        "/a?a=",
        "/a?a=1&",
        "/a?&a=1",
        "/a.css",
        "/a/x.css",
        "/a%23x",
        "/a?a=1%26b=2",
    ];
    let long = |last: char| format!("/long?{}{last}", "q".repeat(60_000));
    let mut each = probe("paths and queries are compared as they were sent");
    for target in tricks {
        each = each.ask(get(target), made());
    }
    for (index, target) in tricks.iter().enumerate() {
        each = each.ask(get(*target), stored(index + 1));
    }
    vec![
        each,
        probe("of a long query the end counts as well")
            .ask(get(long('a')), made())
            .ask(get(long('b')), made())
            .ask(get(long('a')), stored(1)),
        probe("every host has its own answers")
            .handler(answer().echoing("host"))
            .ask(get("/").of_host("one.example"), made().body("answer 1 host=one.example"))
            .ask(get("/").of_host("two.example"), made().body("answer 2 host=two.example"))
            .ask(get("/").of_host("one.example:8080"), made())
            .ask(get("/").of_host("ONE.example"), stored(1))
            .ask(get("/").of_host("two.example"), stored(2)),
        probe("who names two hosts passes by")
            .ask(get("/").of_host("one.example").with("host", "two.example"), made())
            .ask(
                get("/").of_host("one.example").with("host", "two.example"),
                made().because("ambiguous-host"),
            ),
        probe("a target that names another host than Host is neither's")
            .ask(get("http://one.example/").of_host("one.example"), made())
            .ask(get("http://one.example/").of_host("two.example"), made())
            .ask(get("http://two.example/").of_host("one.example"), made())
            .ask(get("/").of_host("two.example"), made())
            .ask(get("http://one.example/").of_host("one.example"), stored(1)),
        probe("a sorted query has no order, but pairs of one name do")
            .policy(|policy| policy.with_query(Query::Sorted))
            .ask(get("/?a=1&b=2"), made())
            .ask(get("/?b=2&a=1"), stored(1))
            .ask(get("/?a=1&a=2"), made())
            .ask(get("/?a=2&a=1"), made()),
        probe("what a query is not asked for does not count")
            .policy(|policy| policy.with_query(Query::Only(vec!["page".into()])))
            .ask(get("/?page=1&utm_source=x"), made())
            .ask(get("/?utm_source=y&page=1"), stored(1))
            .ask(get("/?page=2"), made())
            .ask(get("/?%70age=2"), made()),
    ]
}

fn sessions_and_principals() -> Vec<Probe> {
    fn by_user(policy: tower_keep::cache::Policy) -> tower_keep::cache::Policy {
        policy.with_principal(|head| Some(Identity::new(head.extensions().get::<User>()?.0)))
    }
    vec![
        probe("what looked at the session is not stored")
            .handler(answer().touching_the_session())
            .ask(get("/").in_session(), made().because("session"))
            .ask(get("/").in_session(), made()),
        probe("who was looked at before passes by")
            .ask(get("/"), made())
            .ask(get("/").in_touched_session(), made().because("session"))
            .ask(get("/"), stored(1)),
        probe("a session that nobody looks at does not matter")
            .ask(get("/").in_session(), made())
            .ask(get("/").in_session(), stored(1))
            .ask(get("/"), stored(1)),
        probe("every principal has answers of his own")
            .policy(by_user)
            .handler(answer().echoing("cookie").echoing("authorization"))
            .ask(
                get("/").by("alice").with("cookie", "a").with("authorization", "A"),
                made().body("answer 1 cookie=a authorization=A"),
            )
            .ask(
                get("/").by("bob").with("cookie", "b"),
                made().body("answer 2 cookie=b authorization=-"),
            )
            .ask(get("/").by("alice").with("cookie", "a2"), stored(1))
            .ask(get("/").by("bob").in_touched_session(), stored(2)),
        probe("who is nobody passes by")
            .policy(by_user)
            .ask(get("/"), made().because("no-principal"))
            .ask(get("/"), made())
            .ask(get("/").by(""), made())
            .ask(get("/"), made()),
        probe("what asks for a password is not stored for anybody")
            .policy(by_user)
            .handler(answer().with("cache-control", "private, max-age=60"))
            .ask(get("/").by("alice"), made().because("private"))
            .ask(get("/").by("alice"), made()),
    ]
}

fn tags() -> Vec<Probe> {
    let fields = || {
        answer()
            .with("surrogate-key", "one two")
            .with("cache-tag", "three, four five")
            .with("edge-cache-tag", "six")
            .with("xkey", "seven")
    };
    let mut probes: Vec<_> = ["own", "one", "two", "three", "four five", "six", "seven"]
        .into_iter()
        .map(|tag| {
            probe("a purge by any tag of an answer ends it")
                .handler(fields().tagged(["own"]))
                .ask(get("/"), made())
                .purge("other")
                .ask(get("/"), stored(1))
                .purge(tag)
                .ask(get("/"), made())
                .ask(get("/"), stored(2))
        })
        .collect();
    probes.extend([
        probe("tags are not told to clients")
            .handler(fields().tagged(["own"]))
            .ask(
                get("/"),
                made()
                    .without("surrogate-key")
                    .without("cache-tag")
                    .without("edge-cache-tag")
                    .without("xkey"),
            )
            .ask(get("/"), stored(1).without("surrogate-key").without("cache-tag")),
        probe("tags are forwarded to Fastly")
            .policy(|policy| {
                policy.with_tag_forwarding(TagForwarding::SurrogateKey).with_tags(["route"])
            })
            .handler(answer().tagged(["own"]).with("cache-tag", "one,two"))
            .ask(
                get("/"),
                made().field("surrogate-key", [b"own route one two"]).without("cache-tag"),
            )
            .ask(get("/"), stored(1).field("surrogate-key", [b"own route one two"])),
        probe("tags are forwarded to Cloudflare")
            .policy(|policy| policy.with_tag_forwarding(TagForwarding::CacheTag))
            .handler(answer().tagged(["own"]).with("surrogate-key", "one two"))
            .ask(get("/"), made().field("cache-tag", [b"own,one,two"]).without("surrogate-key"))
            .ask(get("/"), stored(1).field("cache-tag", [b"own,one,two"])),
        probe("tag fields are sent as they were, where the policy says so")
            .policy(|policy| policy.with_tag_forwarding(TagForwarding::AsReceived))
            .handler(answer().with("surrogate-key", "one two"))
            .ask(get("/"), made().field("surrogate-key", [b"one two"]))
            .ask(get("/"), stored(1).field("surrogate-key", [b"one two"])),
        probe("tags are stripped from what is not stored, too")
            .handler(fields().with("cache-control", "no-store"))
            .ask(get("/"), made().without("surrogate-key").without("cache-tag")),
        probe("clients cannot label what is stored")
            .ask(get("/").with("surrogate-key", "one").with("cache-tag", "one"), made())
            .purge("one")
            .ask(get("/"), stored(1)),
        probe("clients cannot purge by a field").ask(get("/"), made()).ask(
            get("/").with("x-invalidate-cache", "1").with("cache-group-invalidation", "\"a\""),
            stored(1),
        ),
        probe("tags of the route and of the request reach what they label")
            .policy(|policy| {
                policy
                    .with_tags(["route"])
                    .add_tags_from_request(|head| vec![format!("path:{}", head.uri().path())])
            })
            .ask(get("/a"), made())
            .ask(get("/b"), made())
            .purge("path:/a")
            .ask(get("/a"), made())
            .ask(get("/b"), stored(2))
            .purge("route")
            .ask(get("/b"), made()),
        probe("what has too many tags to be purged is not stored")
            .handler(answer().tagged((0..129).map(|tag| tag.to_string())))
            .ask(get("/"), made().because("too-many-tags"))
            .ask(get("/"), made()),
        probe("what has as many tags as it may is")
            .handler(answer().tagged((0..128).map(|tag| tag.to_string())))
            .ask(get("/"), made())
            .ask(get("/"), stored(1))
            .purge("127")
            .ask(get("/"), made()),
        probe("what has too long a tag is not stored")
            .handler(answer().tagged(["x".repeat(1025)]))
            .ask(get("/"), made().because("tag-too-long"))
            .ask(get("/"), made()),
        probe("what has too many bytes of tags is not stored")
            .handler(answer().tagged((0..17).map(|tag| format!("{tag:01000}"))))
            .ask(get("/"), made().because("too-many-tags"))
            .ask(get("/"), made()),
        probe("what has an empty tag is not stored")
            .handler(answer().tagged([""]))
            .ask(get("/"), made().because("empty-tag"))
            .ask(get("/"), made()),
        probe("too many tags in a field count as well")
            .handler(answer().with(
                "surrogate-key",
                (0..129).map(|tag| tag.to_string()).collect::<Vec<_>>().join(" "),
            ))
            .ask(get("/"), made().because("too-many-tags").without("surrogate-key"))
            .ask(get("/"), made()),
    ]);
    probes
}

fn header_fields() -> Vec<Probe> {
    vec![
        probe("fields that come several times come back so")
            .handler(answer().with("link", "</a>").with("x-other", "o").with("link", "</b>"))
            .ask(get("/"), made().field("link", [b"</a>", b"</b>"]))
            .ask(get("/"), stored(1).field("link", [b"</a>", b"</b>"]).field("x-other", [b"o"])),
        probe("values that are not UTF-8 come back as they were")
            .handler(answer().with("x-name", b"caf\xe9").with("x-empty", ""))
            .ask(get("/"), made().field("x-name", [b"caf\xe9"]))
            .ask(get("/"), stored(1).field("x-name", [b"caf\xe9"]).field("x-empty", [b""])),
        probe("what concerns one connection is not replayed")
            .handler(
                answer()
                    .with("connection", "close, X-Hop")
                    .with("x-hop", "1")
                    .with("keep-alive", "timeout=5")
                    .with("proxy-authenticate", "Basic")
                    .with("te", "trailers")
                    .with("trailer", "x-checksum")
                    .with("transfer-encoding", "chunked")
                    .with("upgrade", "h2c")
                    .with("x-stays", "1"),
            )
            .ask(get("/"), made())
            .ask(
                get("/"),
                stored(1)
                    .without("connection")
                    .without("x-hop")
                    .without("keep-alive")
                    .without("proxy-authenticate")
                    .without("te")
                    .without("trailer")
                    .without("transfer-encoding")
                    .without("upgrade")
                    .field("x-stays", [b"1"]),
            ),
        probe("the date of an answer stays, and its length is counted anew")
            .handler(answer().with("date", "Sun, 06 Nov 1994 08:49:37 GMT"))
            .in_output_mode()
            .ask(get("/"), made())
            .ask(
                get("/"),
                stored(1)
                    .field("date", [b"Sun, 06 Nov 1994 08:49:37 GMT"])
                    .field("content-length", [b"8"]),
            ),
        probe("an answer with trailers is passed on with them, and not stored")
            .handler(answer().with_trailer())
            .ask(get("/"), made().with_trailer())
            .ask(get("/"), made().with_trailer()),
    ]
}

fn streams() -> Vec<Probe> {
    vec![
        probe("a WebSocket passes by")
            .handler(status(101).body(""))
            .ask(
                get("/").with("connection", "keep-alive, Upgrade").with("upgrade", "websocket"),
                made().body("").because("upgrade"),
            )
            .ask(
                get("/").with("connection", "upgrade").with("upgrade", "websocket"),
                made().body(""),
            ),
        probe("a WebSocket passes by what is stored")
            .ask(get("/"), made())
            .ask(get("/").with("connection", "upgrade").with("upgrade", "websocket"), made())
            .ask(get("/"), stored(1)),
        probe("an offer to speak h2c is an ordinary request")
            .ask(
                get("/")
                    .with("connection", "Upgrade, HTTP2-Settings")
                    .with("upgrade", "h2c")
                    .with("http2-settings", "AAMAAABk"),
                made(),
            )
            .ask(get("/"), stored(1)),
        probe("events are not stored")
            .handler(answer().with("content-type", "Text/Event-Stream; charset=utf-8"))
            .ask(get("/"), made().because("event-stream"))
            .ask(get("/"), made()),
        probe("pictures that replace one another are not stored")
            .handler(answer().with("content-type", "multipart/x-mixed-replace; boundary=x"))
            .ask(get("/"), made())
            .ask(get("/"), made()),
        probe("what is larger than the route wants is not stored")
            .policy(|policy| policy.with_max_body(7))
            .ask(get("/"), made().because("too-large"))
            .ask(get("/"), made()),
    ]
}
