//! What tower asks of a middleware, and what a middleware may not ask of the service inside.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceExt};
use tower_keep::{
    MemoryStorage, Quota, RateLimitLayer, RequestHead, Storage,
    rate_limit::{KeyExtractor, Policy, Settlement, Tiers},
    storage::AnyStorage,
};
use tower_layer::Layer;

use crate::{remote::Remote, request_from};

const HOUR: Duration = Duration::from_secs(3_600);

fn policy() -> Policy {
    Policy::new("api", Quota::fixed_window(2, HOUR)).with_key(KeyExtractor::global())
}

/// Ready by one of a few permits, which only the clone that took it may use.
struct Permits {
    free: Arc<AtomicUsize>,
    held: bool,
}

impl Permits {
    fn new(permits: usize) -> Self {
        Self { free: Arc::new(permits.into()), held: false }
    }
}

impl Clone for Permits {
    fn clone(&self) -> Self {
        Self { free: Arc::clone(&self.free), held: false }
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        if self.held {
            self.free.fetch_add(1, SeqCst);
        }
    }
}

impl Service<Request<()>> for Permits {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !self.held {
            let take = self.free.fetch_update(SeqCst, SeqCst, |free| free.checked_sub(1));
            self.held = take.is_ok();
        }
        if self.held { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(self.held, "a service is called that is not ready");
        self.held = false;
        self.free.fetch_add(1, SeqCst);
        ready(Ok(Response::new(Full::from("hello"))))
    }
}

/// A layer that decides at once, one that asks across a network, and ones that look up a tier or an
/// identity first.
fn layers() -> [RateLimitLayer; 6] {
    let tiers = Tiers::new().tier("pro", [Quota::fixed_window(2, HOUR)]);
    let looked_up = policy().with_async_tiers(tiers, |_| async {
        tokio::task::yield_now().await;
        Some("pro")
    });
    let identified = || {
        policy().with_async_key(|_| async {
            tokio::task::yield_now().await;
            Some("alice")
        })
    };
    [
        RateLimitLayer::new(MemoryStorage::new(), policy()),
        RateLimitLayer::new(Remote::slow(2), policy()),
        RateLimitLayer::new(Remote::slow(2), policy().with_settlement(Settlement::declared(1))),
        RateLimitLayer::new(MemoryStorage::new(), looked_up),
        RateLimitLayer::new(MemoryStorage::new(), identified()),
        RateLimitLayer::new(Remote::slow(2), identified()),
    ]
}

#[tokio::test]
async fn the_service_that_was_polled_ready_is_the_one_that_is_called() {
    for layer in layers() {
        let permits = Permits::new(1);
        let mut service = layer.layer(permits.clone());
        for expected in [200, 200, 429, 429] {
            let response = service.ready().await.unwrap().call(request_from("192.0.2.1")).await;
            assert_eq!(response.unwrap().status(), expected);
        }
        drop(service);
        assert_eq!(permits.free.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn a_dropped_request_holds_nothing_back_from_other_clones() {
    for layer in layers() {
        for polls in 0..10 {
            let permits = Permits::new(1);
            let mut service = layer.layer(permits.clone());
            {
                let mut request =
                    pin!(service.ready().await.unwrap().call(request_from("192.0.2.1")));
                for _ in 0..polls {
                    let mut cx = Context::from_waker(Waker::noop());
                    if request.as_mut().poll(&mut cx).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(permits.free.load(SeqCst), 1, "after {polls} polls");
        }
    }
}

/// Neither `Send` nor `Sync`, nor `Unpin`.
struct LocalBody(Option<Rc<str>>, std::marker::PhantomPinned);

impl Body for LocalBody {
    type Data = Bytes;
    type Error = Rc<str>;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Rc<str>>>> {
        let data = self.0.as_deref().map(|text| Bytes::copy_from_slice(text.as_bytes()));
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

#[tokio::test]
async fn services_bodies_and_errors_need_be_neither_send_nor_sync() {
    for layer in layers() {
        let local: Rc<str> = "local".into();
        let inner = tower::service_fn(move |request: Request<LocalBody>| {
            let local = Rc::clone(&local);
            async move {
                tokio::task::yield_now().await;
                match request.into_body().0 {
                    Some(body) => {
                        Ok(Response::new(LocalBody(Some(body), std::marker::PhantomPinned)))
                    }
                    None => Err(local),
                }
            }
        });
        let mut service = layer.layer(inner);
        let request = |body: Option<Rc<str>>| {
            request_from("192.0.2.1").map(|()| LocalBody(body, std::marker::PhantomPinned))
        };
        let answer = service.ready().await.unwrap().call(request(Some("hi".into()))).await.unwrap();
        let mut body = Box::pin(answer.into_body());
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "hi");
        let error = service.ready().await.unwrap().call(request(None)).await.err().unwrap();
        assert_eq!(&*error, "local");
    }
}

#[tokio::test]
async fn a_panic_in_a_closure_of_the_policy_harms_no_later_request() {
    let panicking = |storage: AnyStorage| {
        let at = |head: RequestHead<'_>, place: &str| {
            assert_ne!(&head.uri().path()[1..], place, "as it is meant");
        };
        let policy = Policy::new("api", Quota::fixed_window(5, HOUR))
            .with_key(KeyExtractor::from_fn(move |head| {
                at(head, "key");
                Some("all")
            }))
            .with_exemption(move |head| {
                at(head, "exemption");
                false
            })
            .with_cost(move |head| {
                at(head, "cost");
                1
            })
            .with_tiers(Tiers::new(), move |head| {
                at(head, "tier");
                None::<&str>
            })
            .with_settlement(Settlement::from_fn(|response| {
                assert!(!response.headers().contains_key("panic"), "as it is meant");
                1
            }));
        RateLimitLayer::new(storage, policy)
    };
    for storage in [MemoryStorage::new().erase(), Remote::slow(1).erase()] {
        let layer = panicking(storage);
        for path in ["/key", "/exemption", "/cost", "/tier", "/settlement"] {
            let layer = layer.clone();
            let task = tokio::spawn(async move {
                let mut service = crate::limited_with(&layer, |request| {
                    let mut response = Response::new(Full::default());
                    if request.uri().path() == "/settlement" {
                        response.headers_mut().insert("panic", "1".parse().unwrap());
                    }
                    response
                });
                let mut request = request_from("192.0.2.1");
                *request.uri_mut() = path.parse().unwrap();
                crate::send(&mut service, request).await
            });
            assert!(task.await.unwrap_err().is_panic(), "{path}");
        }
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let left = layer.limiter().peek("all").await.unwrap().remaining();
        assert_eq!(left, Some(5), "nothing was taken");
    }
}
