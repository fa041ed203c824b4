//! A handler that does nothing by itself: the test says when it answers, and every frame of what.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
};
use tower::{ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_keep::{
    MemoryStorage,
    cache::{Cache, CacheHandle, Outcome, Policy, ResponseBody},
};

/// The handler's, and its body's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}

impl Error for Broken {}

/// A body that the test sends piece by piece.
#[derive(Debug)]
pub(crate) struct Told {
    frames: mpsc::UnboundedReceiver<Result<Frame<Bytes>, Broken>>,
    dropped: Arc<AtomicBool>,
    /// It is moved between threads, and never shared.
    _not_sync: std::cell::Cell<()>,
}

impl Body for Told {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.frames.poll_recv(cx)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.dropped.store(true, SeqCst);
    }
}

/// One run of the handler, waiting for its cues.
pub(crate) struct Run {
    pub(crate) request: Request<()>,
    answer: Option<oneshot::Sender<Result<Response<Told>, Broken>>>,
    body: Option<Told>,
    frames: Option<mpsc::UnboundedSender<Result<Frame<Bytes>, Broken>>>,
    dropped: Arc<AtomicBool>,
}

impl Run {
    /// Answers with this head; the body is what has been said and is going to be.
    pub(crate) fn respond(&mut self, head: response::Builder) {
        let response = head.body(self.body.take().unwrap()).unwrap();
        // Nobody listens if the handler was dropped.
        let _ = self.answer.take().unwrap().send(Ok(response));
    }

    pub(crate) fn respond_ok(&mut self) {
        self.respond(Response::builder());
    }

    /// All at once.
    pub(crate) fn respond_whole(&mut self, head: response::Builder, body: &str) {
        self.say(body);
        self.end();
        self.respond(head);
    }

    pub(crate) fn fail(&mut self) {
        let _ = self.answer.take().unwrap().send(Err(Broken));
    }

    pub(crate) fn say(&self, data: impl AsRef<[u8]>) {
        let frame = Frame::data(Bytes::copy_from_slice(data.as_ref()));
        let _ = self.frames.as_ref().unwrap().send(Ok(frame));
    }

    pub(crate) fn trailers(&self, trailers: HeaderMap) {
        let _ = self.frames.as_ref().unwrap().send(Ok(Frame::trailers(trailers)));
    }

    pub(crate) fn break_off(&self) {
        let _ = self.frames.as_ref().unwrap().send(Err(Broken));
    }

    pub(crate) fn end(&mut self) {
        self.frames = None;
    }

    pub(crate) fn body_is_dropped(&self) -> bool {
        self.dropped.load(SeqCst)
    }
}

type Reply = Result<Response<ResponseBody<Told>>, Broken>;

/// A cache in front of such a handler.
#[derive(Clone)]
pub(crate) struct Stage {
    service: BoxCloneSyncService<Request<Empty<Bytes>>, Response<ResponseBody<Told>>, Broken>,
    runs: Arc<Mutex<mpsc::UnboundedReceiver<Run>>>,
    pub(crate) cache: CacheHandle,
}

impl Stage {
    pub(crate) fn new(policy: Policy) -> Self {
        Self::on(CacheHandle::new(MemoryStorage::new()), policy)
    }

    pub(crate) fn on(cache: CacheHandle, policy: Policy) -> Self {
        let (begun, runs) = mpsc::unbounded_channel();
        let handler = service_fn(move |request: Request<Empty<Bytes>>| {
            let begun = begun.clone();
            async move {
                let (answer, cue) = oneshot::channel();
                let (frames, told) = mpsc::unbounded_channel();
                let dropped = Arc::new(AtomicBool::new(false));
                let body = Told {
                    frames: told,
                    dropped: Arc::clone(&dropped),
                    _not_sync: std::cell::Cell::new(()),
                };
                begun
                    .send(Run {
                        request: request.map(|_| ()),
                        answer: Some(answer),
                        body: Some(body),
                        frames: Some(frames),
                        dropped,
                    })
                    .ok()
                    .unwrap();
                cue.await.unwrap_or(Err(Broken))
            }
        });
        let service = BoxCloneSyncService::new(Cache::new(handler, cache.clone(), policy));
        Self { service, runs: Arc::new(Mutex::new(runs)), cache }
    }

    /// A client that asks, and waits for the head.
    pub(crate) fn send(&self, request: Request<Empty<Bytes>>) -> JoinHandle<Reply> {
        tokio::spawn(self.service.clone().oneshot(request))
    }

    pub(crate) fn get(&self) -> JoinHandle<Reply> {
        self.send(get())
    }

    /// The next run of the handler.
    pub(crate) async fn run(&self) -> Run {
        let wait = async { self.runs.lock().await.recv().await.unwrap() };
        tokio::time::timeout(std::time::Duration::from_secs(3_600), wait)
            .await
            .expect("the handler was not asked")
    }

    /// Whether the handler is left alone, after all that can happen now has happened.
    pub(crate) async fn is_quiet(&self) -> bool {
        calm().await;
        self.runs.lock().await.try_recv().is_err()
    }

    /// What a request gets without the handler.
    pub(crate) async fn stored(&self) -> Option<(Response<()>, Bytes)> {
        let client = self.get();
        if !self.is_quiet().await {
            client.abort();
            calm().await;
            return None;
        }
        Some(whole(client.await.unwrap()).await.unwrap())
    }
}

pub(crate) fn get() -> Request<Empty<Bytes>> {
    request("GET")
}

pub(crate) fn request(method: &str) -> Request<Empty<Bytes>> {
    Request::builder()
        .method(method)
        .uri("/")
        .header("host", "shop.example")
        .body(Empty::new())
        .unwrap()
}

/// Lets all tasks do what they can do without time passing.
pub(crate) async fn calm() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// The response to its end, or the error that the body ended with.
pub(crate) async fn whole(reply: Reply) -> Result<(Response<()>, Bytes), String> {
    let (parts, body) = reply.unwrap().into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok((Response::from_parts(parts, ()), body))
}

/// The data of the next frame; `None` at the end.
pub(crate) async fn piece(body: &mut ResponseBody<Told>) -> Option<Bytes> {
    body.frame().await.map(|frame| frame.unwrap().into_data().unwrap())
}

pub(crate) fn outcome<B>(response: &Response<B>) -> Outcome {
    *response.extensions().get::<Outcome>().unwrap()
}

pub(crate) fn ok() -> response::Builder {
    Response::builder()
}

pub(crate) fn of_status(status: u16) -> response::Builder {
    Response::builder().status(StatusCode::from_u16(status).unwrap())
}
