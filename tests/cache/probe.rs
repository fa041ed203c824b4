//! The words in which probes are written: what is asked, what the handler would answer, and who must
//! answer.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceExt, service_fn};
use tower_keep::{
    cache::{Cache, CacheHandle, CacheTags, Outcome, Policy, Source},
    marks::SessionMark,
    storage::{AnyStorage, Name},
};

const TTL: Duration = Duration::from_secs(60);

/// What decides how long answers live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The handler: all answers say `max-age=60` that say nothing else.
    Http,
    /// The route, for 60 s.
    Output,
}

/// A named conversation with a cache and a handler of its own.
pub(crate) struct Probe {
    name: &'static str,
    modes: &'static [Mode],
    policy: fn(Policy) -> Policy,
    answers: Vec<Answer>,
    steps: Vec<Step>,
}

enum Step {
    Ask(Ask, Expected),
    Crowd(usize, Ask),
    Purge(&'static str),
}

/// In both modes.
pub(crate) fn probe(name: &'static str) -> Probe {
    Probe {
        name,
        modes: &[Mode::Http, Mode::Output],
        policy: |policy| policy,
        answers: Vec::new(),
        steps: Vec::new(),
    }
}

impl Probe {
    pub(crate) fn in_http_mode(mut self) -> Self {
        self.modes = &[Mode::Http];
        self
    }

    pub(crate) fn in_output_mode(mut self) -> Self {
        self.modes = &[Mode::Output];
        self
    }

    pub(crate) fn policy(mut self, policy: fn(Policy) -> Policy) -> Self {
        self.policy = policy;
        self
    }

    /// What the handler answers; if it is said several times, one after the other, the last for ever.
    pub(crate) fn handler(mut self, answer: Answer) -> Self {
        self.answers.push(answer);
        self
    }

    pub(crate) fn ask(mut self, ask: Ask, expected: Expected) -> Self {
        self.steps.push(Step::Ask(ask, expected));
        self
    }

    /// So many at once, for whom the handler must run once.
    pub(crate) fn crowd(mut self, clients: usize, ask: Ask) -> Self {
        self.steps.push(Step::Crowd(clients, ask));
        self
    }

    pub(crate) fn purge(mut self, tag: &'static str) -> Self {
        self.steps.push(Step::Purge(tag));
        self
    }
}

/// A request.
#[derive(Clone)]
pub(crate) struct Ask {
    method: &'static str,
    target: String,
    host: &'static str,
    headers: HeaderMap,
    body: &'static str,
    mark: Option<bool>,
    user: Option<User>,
}

/// What an authentication layer has found out.
#[derive(Clone)]
pub(crate) struct User(pub(crate) &'static str);

pub(crate) fn request(method: &'static str, target: impl Into<String>) -> Ask {
    Ask {
        method,
        target: target.into(),
        host: "shop.example",
        headers: HeaderMap::new(),
        body: "",
        mark: None,
        user: None,
    }
}

pub(crate) fn get(target: impl Into<String>) -> Ask {
    request("GET", target)
}

pub(crate) fn head(target: impl Into<String>) -> Ask {
    request("HEAD", target)
}

impl Ask {
    pub(crate) fn with(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        append(&mut self.headers, name, value);
        self
    }

    pub(crate) fn of_host(mut self, host: &'static str) -> Self {
        self.host = host;
        self
    }

    pub(crate) fn body(mut self, body: &'static str) -> Self {
        self.body = body;
        self
    }

    /// With a session that nobody has looked at yet.
    pub(crate) fn in_session(mut self) -> Self {
        self.mark = Some(false);
        self
    }

    /// With a session that a layer outside of the cache has looked at.
    pub(crate) fn in_touched_session(mut self) -> Self {
        self.mark = Some(true);
        self
    }

    pub(crate) fn by(mut self, user: &'static str) -> Self {
        self.user = Some(User(user));
        self
    }

    fn build(&self) -> Request<Body> {
        let mut request = Request::builder()
            .method(self.method)
            .uri(&self.target)
            .header("host", self.host)
            .body(if self.body.is_empty() { Body::empty() } else { Body::from(self.body) })
            .unwrap();
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        if let Some(touched) = self.mark {
            let mark = SessionMark::new();
            if touched {
                mark.touch();
            }
            request.extensions_mut().insert(mark);
        }
        if let Some(user) = &self.user {
            request.extensions_mut().insert(user.clone());
        }
        request
    }
}

/// What the handler answers: `answer 1` at first, then `answer 2`, and so on.
#[derive(Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: HeaderMap,
    echoes: Vec<&'static str>,
    body: Option<Bytes>,
    says_how_long: bool,
    touches: bool,
    tags: Option<CacheTags>,
    trailer: bool,
    slow: bool,
}

pub(crate) fn answer() -> Answer {
    Answer {
        status: 200,
        headers: HeaderMap::new(),
        echoes: Vec::new(),
        body: None,
        says_how_long: true,
        touches: false,
        tags: None,
        trailer: false,
        slow: false,
    }
}

pub(crate) fn status(status: u16) -> Answer {
    Answer { status, ..answer() }
}

impl Answer {
    pub(crate) fn with(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.says_how_long &= name != "cache-control";
        append(&mut self.headers, name, value);
        self
    }

    /// Repeats a header field of the request in the body, or `-` if it saw none; `body` is the body.
    pub(crate) fn echoing(mut self, name: &'static str) -> Self {
        self.echoes.push(name);
        self
    }

    /// In place of its number.
    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Some(Bytes::copy_from_slice(body.as_ref()));
        self
    }

    pub(crate) fn without_max_age(mut self) -> Self {
        self.says_how_long = false;
        self
    }

    pub(crate) fn touching_the_session(mut self) -> Self {
        self.touches = true;
        self
    }

    pub(crate) fn tagged<T: AsRef<[u8]>>(mut self, tags: impl IntoIterator<Item = T>) -> Self {
        self.tags = Some(CacheTags::new(tags));
        self
    }

    pub(crate) fn with_trailer(mut self) -> Self {
        self.trailer = true;
        self
    }

    pub(crate) fn slowly(mut self) -> Self {
        self.slow = true;
        self
    }

    async fn give(self, mode: Mode, run: usize, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let sent = body.collect().await.unwrap().to_bytes();
        if let Some(mark) = parts.extensions.get::<SessionMark>()
            && self.touches
        {
            mark.touch();
        }
        if self.slow {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut text =
            self.body.map_or_else(|| format!("answer {run}").into(), |body| body.to_vec());
        for name in self.echoes {
            let field = parts.headers.get(name).map(HeaderValue::as_bytes);
            let value = if name == "body" { &sent } else { field.unwrap_or(b"-") };
            text.extend_from_slice(format!(" {name}=").as_bytes());
            text.extend_from_slice(value);
        }
        if parts.method == http::Method::HEAD {
            text.clear();
        }
        let body = Full::from(text);
        let body = if self.trailer {
            let trailers = HeaderMap::from_iter([(
                HeaderName::from_static("x-checksum"),
                HeaderValue::from_static("17"),
            )]);
            Body::new(body.with_trailers(ready(Some(Ok(trailers)))))
        } else {
            Body::new(body)
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap();
        *response.headers_mut() = self.headers;
        if mode == Mode::Http && self.says_how_long {
            response.headers_mut().insert("cache-control", HeaderValue::from_static("max-age=60"));
        }
        if let Some(tags) = self.tags {
            response.extensions_mut().insert(tags);
        }
        response
    }
}

/// Who must answer, and how.
#[derive(Clone)]
pub(crate) struct Expected {
    /// `None`: the handler. Otherwise the cache, with the handler's answer of this number.
    stored: Option<usize>,
    status: Option<u16>,
    body: Option<Vec<u8>>,
    fields: Vec<(&'static str, Vec<Vec<u8>>)>,
    reason: Option<&'static str>,
    trailer: bool,
}

/// The handler answers, for this request.
pub(crate) fn made() -> Expected {
    Expected {
        stored: None,
        status: None,
        body: None,
        fields: Vec::new(),
        reason: None,
        trailer: false,
    }
}

/// The handler is not asked: the client gets what it said at its n-th run.
pub(crate) fn stored(run: usize) -> Expected {
    Expected { stored: Some(run), ..made() }
}

impl Expected {
    pub(crate) fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Some(body.as_ref().to_vec());
        self
    }

    /// The values of a field, in order.
    pub(crate) fn field<const N: usize>(
        mut self,
        name: &'static str,
        values: [&'static [u8]; N],
    ) -> Self {
        self.fields.push((name, values.iter().map(|value| value.to_vec()).collect()));
        self
    }

    pub(crate) fn without(self, name: &'static str) -> Self {
        self.field(name, [])
    }

    /// Why it was not stored.
    pub(crate) fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    pub(crate) fn with_trailer(mut self) -> Self {
        self.trailer = true;
        self
    }
}

fn append(headers: &mut HeaderMap, name: &'static str, value: impl AsRef<[u8]>) {
    let value = HeaderValue::from_bytes(value.as_ref()).unwrap();
    headers.append(HeaderName::from_static(name), value);
}

/// Runs all probes in all their modes, each in a namespace of its own, and tells all that failed.
pub(crate) async fn run(storage: &AnyStorage, probes: Vec<Probe>) {
    let mut failures = Vec::new();
    let mut count = 0;
    for (number, probe) in probes.iter().enumerate() {
        for &mode in probe.modes {
            let name = format!("{number}-{mode:?}").to_lowercase();
            let cache = CacheHandle::builder(storage.clone())
                .with_namespace(Name::try_new(&name).unwrap())
                .build();
            count += 1;
            for failure in probe.run(cache, mode).await {
                failures.push(format!("{} ({mode:?} mode)\n    {failure}", probe.name));
            }
        }
    }
    println!("{count} probes");
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

impl Probe {
    async fn run(&self, cache: CacheHandle, mode: Mode) -> Vec<String> {
        let policy = match mode {
            Mode::Http => Policy::http(),
            Mode::Output => Policy::output(TTL),
        };
        let answers = match &self.answers[..] {
            [] => vec![answer()],
            answers => answers.to_vec(),
        };
        let runs = Arc::new(AtomicUsize::new(0));
        let handler = service_fn({
            let (runs, answers) = (Arc::clone(&runs), answers.clone());
            move |request: Request<Body>| {
                let run = runs.fetch_add(1, SeqCst) + 1;
                let answer = answers[run.min(answers.len()) - 1].clone();
                async move { Ok::<_, Infallible>(answer.give(mode, run, request).await) }
            }
        });
        let service = Cache::new(handler, cache.clone(), (self.policy)(policy));
        let mut failures = Vec::new();
        for (number, step) in self.steps.iter().enumerate() {
            let (before, tasks) = (runs.load(SeqCst), alive_tasks());
            let failure = match step {
                Step::Purge(tag) => cache.invalidate([tag]).await.err().map(|it| it.to_string()),
                Step::Crowd(clients, ask) => {
                    let requests: Vec<_> = (0..*clients)
                        .map(|_| tokio::spawn(service.clone().oneshot(ask.build())))
                        .collect();
                    for request in requests {
                        request.await.unwrap().unwrap();
                    }
                    let ran = runs.load(SeqCst) - before;
                    (ran != 1).then(|| format!("the handler ran {ran} times for {clients}"))
                }
                Step::Ask(ask, expected) => {
                    let response = send(service.clone(), ask).await;
                    let ran = runs.load(SeqCst) - before;
                    let run = expected.stored.unwrap_or(before + 1);
                    let status = answers[run.min(answers.len()) - 1].status;
                    expected.check(ask, &response, ran, run, status).err()
                }
            };
            failures.extend(failure.map(|failure| format!("step {}: {failure}", number + 1)));
            settle(tasks).await;
        }
        failures
    }
}

fn alive_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Waits until the task of a fill has ended: where the storage is remote, a client has its answer
/// before that is stored.
async fn settle(tasks: usize) {
    for _ in 0..200 {
        if alive_tasks() <= tasks {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

struct Received {
    head: Response<()>,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

async fn send<S, R>(mut service: S, ask: &Ask) -> Received
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>,
    R: http_body::Body<Error: std::fmt::Debug>,
{
    let response = service.ready().await.unwrap().call(ask.build()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned();
    Received { head: Response::from_parts(parts, ()), body: body.to_bytes(), trailers }
}

impl Expected {
    fn check(
        &self,
        ask: &Ask,
        received: &Received,
        ran: usize,
        run: usize,
        status: u16,
    ) -> Result<(), String> {
        let Received { head, body, trailers } = received;
        let outcome = head.extensions().get::<Outcome>().ok_or("there is no Outcome")?;
        let what = format!("{} {}", ask.method, &ask.target[..ask.target.len().min(60)]);
        let text = String::from_utf8_lossy(body);
        match self.stored {
            None if ran != 1 => return Err(format!("{what} did not get to the handler: {text:?}")),
            Some(_) if ran != 0 => return Err(format!("{what} got to the handler: {outcome:?}")),
            Some(_) if !matches!(outcome.source, Source::Hit | Source::Collapsed) => {
                return Err(format!("{what} is called {outcome:?}"));
            }
            _ => {}
        }
        let status = self.status.unwrap_or(status);
        if head.status() != status {
            return Err(format!("{what} was answered {} in place of {status}", head.status()));
        }
        let fits = match &self.body {
            Some(expected) => *body == expected[..],
            None if ask.method == "HEAD" || matches!(status, 304 | 416) => body.is_empty(),
            None => {
                let number = format!("answer {run}");
                text == number || text.starts_with(&format!("{number} "))
            }
        };
        if !fits {
            let expected = self.body.as_deref().map(String::from_utf8_lossy);
            return Err(format!(
                "{what}: the body is {text:?}, of run {run} or {expected:?} wanted"
            ));
        }
        for (name, values) in &self.fields {
            let found: Vec<_> =
                head.headers().get_all(*name).iter().map(|it| it.as_bytes()).collect();
            if found != *values {
                let text = |values: &[&[u8]]| {
                    values.iter().map(|it| it.escape_ascii().to_string()).collect::<Vec<_>>()
                };
                let wanted: Vec<_> = values.iter().map(|it| &it[..]).collect();
                return Err(format!(
                    "{what}: {name} is {:?}, not {:?}",
                    text(&found),
                    text(&wanted)
                ));
            }
        }
        if self.reason.is_some() && self.reason != outcome.reason {
            return Err(format!("{what} is {outcome:?}, not {:?}", self.reason));
        }
        if self.trailer != trailers.as_ref().is_some_and(|it| it.contains_key("x-checksum")) {
            return Err(format!("{what}: the trailers are {trailers:?}"));
        }
        Ok(())
    }
}
