//! Interleavings that a review found to break a promise, one test each.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Request, Response, header},
};
use futures_util::FutureExt;
use tokio::{sync::oneshot, task::JoinHandle};
use tower::{ServiceExt, service_fn};
use tower_keep::{
    MemoryStorage, RequestHead, SessionLayer, Storage,
    session::{OverCap, Policy, Session, SessionErrorKind, SessionHandle, SessionMap},
    storage::{
        AnyStorage, Capabilities, Charge, Error, ErrorKind, Get, Invalidation, Key, Lookup, Name,
        Put, PutOutcome, Result as StorageResult, Tags, Verdict, When,
    },
};
use tower_layer::Layer;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    /// A compare-and-swap of a record.
    Save,
    /// A new record.
    Create,
    Delete,
    Invalidate,
    /// A write to the index.
    Index,
}

type Work = Pin<Box<dyn Future<Output = Option<Error>> + Send>>;

/// A storage on which something happens before chosen operations.
#[derive(Debug, Clone)]
struct Staged {
    storage: AnyStorage,
    before: Arc<Mutex<VecDeque<Cue>>>,
    /// Whether it says that it is within this process.
    local: bool,
}

struct Cue(Op, Work);

impl std::fmt::Debug for Cue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Staged {
    fn new() -> Self {
        Self { storage: MemoryStorage::new().erase(), before: Arc::default(), local: true }
    }

    /// Once what was said earlier has happened, does this before the next such operation.
    fn before(&self, op: Op, work: impl Future<Output = ()> + Send + 'static) {
        let work = async {
            work.await;
            None
        };
        self.before.lock().unwrap().push_back(Cue(op, Box::pin(work)));
    }

    /// Likewise lets such an operation fail.
    fn fail(&self, op: Op) {
        let work = async { Some(Error::new(ErrorKind::Unavailable, "staged")) };
        self.before.lock().unwrap().push_back(Cue(op, Box::pin(work)));
    }

    async fn act(&self, op: Op) -> StorageResult<()> {
        let cue = {
            let mut before = self.before.lock().unwrap();
            before.front().is_some_and(|cue| cue.0 == op).then(|| before.pop_front()).flatten()
        };
        match cue {
            Some(Cue(_, work)) => work.await.map_or(Ok(()), Err),
            None => Ok(()),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Storage for Staged {
    async fn get(&self, key: &Key, get: Get) -> StorageResult<Lookup> {
        self.storage.get(key, get).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> StorageResult<PutOutcome> {
        match (key.detail().as_str(), put.when) {
            ("record", When::Version(_)) => self.act(Op::Save).await?,
            ("record", _) => self.act(Op::Create).await?,
            ("index", _) => self.act(Op::Index).await?,
            _ => {}
        }
        self.storage.put(key, put).await
    }

    async fn delete(&self, key: &Key, when: When) -> StorageResult<bool> {
        self.act(Op::Delete).await?;
        self.storage.delete(key, when).await
    }

    async fn invalidate(
        &self,
        namespace: &Name,
        tags: Tags<'_>,
        how: Invalidation,
    ) -> StorageResult<()> {
        self.act(Op::Invalidate).await?;
        self.storage.invalidate(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> StorageResult<Vec<Verdict>> {
        self.storage.acquire(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.storage.capabilities();
        capabilities.local = self.local;
        capabilities
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}

/// A request whose handler has not returned yet.
struct Asked {
    handle: SessionHandle,
    finish: oneshot::Sender<()>,
    response: JoinHandle<Response<()>>,
}

impl Asked {
    /// A request with this cookie that has looked its session up.
    async fn with(layer: &SessionLayer, cookie: Option<&str>) -> Self {
        let mut request = Request::builder().uri("/");
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, cookie);
        }
        let request = request.body(Body::empty()).unwrap();
        let (tell, told) = oneshot::channel();
        let (finish, finished) = oneshot::channel();
        let channels = Arc::new(Mutex::new(Some((tell, finished))));
        let service = layer.layer(service_fn(move |request: Request<Body>| {
            let (tell, finished) = channels.lock().unwrap().take().unwrap();
            async move {
                let handle = SessionHandle::<()>::of(RequestHead::new(&request)).unwrap();
                handle.load().await.unwrap();
                tell.send(handle).ok().unwrap();
                let _ = finished.await;
                Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
            }
        }));
        let response =
            tokio::spawn(async move { service.oneshot(request).await.unwrap().map(drop) });
        Self { handle: told.await.unwrap(), finish, response }
    }

    /// Lets the handler return. The cookie that is set.
    async fn finish(self) -> Option<String> {
        drop(self.handle);
        self.finish.send(()).unwrap();
        let response = self.response.await.unwrap();
        let line = response.headers().get(header::SET_COOKIE)?.to_str().unwrap();
        Some(line.split(';').next().unwrap().to_owned())
    }

    async fn map(&self) -> Session<SessionMap> {
        self.handle.session().await.unwrap()
    }
}

async fn logged_in(layer: &SessionLayer, who: &str) -> String {
    let request = Asked::with(layer, None).await;
    request.handle.login(who).await.unwrap();
    request.finish().await.unwrap()
}

async fn visitor(layer: &SessionLayer) -> String {
    let request = Asked::with(layer, None).await;
    request.map().await.insert("visits", &1).unwrap();
    request.finish().await.unwrap()
}

async fn lives(layer: &SessionLayer, cookie: &str) -> bool {
    Asked::with(layer, Some(cookie)).await.handle.exists()
}

fn layers() -> (Staged, SessionLayer) {
    with_policy(Policy::new())
}

fn with_policy(policy: Policy) -> (Staged, SessionLayer) {
    let storage = Staged::new();
    (storage.clone(), SessionLayer::new(storage, policy))
}

#[tokio::test]
async fn what_one_principal_saves_never_reaches_another_who_logs_in_meanwhile() {
    let (storage, layer) = layers();
    let alice = logged_in(&layer, "alice").await;
    let bob = Asked::with(&layer, Some(&alice)).await;
    let beside = Asked::with(&layer, Some(&alice)).await;
    storage.before(Op::Save, async move {
        let mut session = beside.map().await;
        session.insert("secret", "of alice").unwrap();
        session.save().await.unwrap();
    });
    bob.handle.login("bob").await.unwrap();
    let bob = bob.finish().await.unwrap();
    let session = Asked::with(&layer, Some(&bob)).await.map().await;
    assert_eq!(session.get::<String>("secret").unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_save_beside_a_rotation_whose_answer_is_lost_locks_nobody_out() {
    let policy = Policy::new().with_rotation(Duration::from_secs(60));
    let (_, layer) = with_policy(policy);
    let cookie = visitor(&layer).await;
    tokio::time::advance(Duration::from_secs(61)).await;
    let saves = Asked::with(&layer, Some(&cookie)).await;
    let rotates = Asked::with(&layer, Some(&cookie)).await;
    assert!(rotates.finish().await.is_some(), "and this answer never arrives");
    saves.map().await.insert("theme", "dark").unwrap();
    let told = saves.finish().await;
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(lives(&layer, &cookie).await, "the old id works until the new one was used");
    assert!(told.is_some_and(|told| told != cookie), "who knows the new id tells it");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_keeps_its_first_cookie_is_not_locked_out_by_rotations() {
    let policy = Policy::new().with_rotation(Duration::from_secs(60));
    let (_, layer) = with_policy(policy);
    let cookie = visitor(&layer).await;
    for round in 0..20 {
        tokio::time::advance(Duration::from_secs(61)).await;
        let request = Asked::with(&layer, Some(&cookie)).await;
        assert!(request.handle.exists(), "in round {round}");
        request.finish().await;
    }
}

#[tokio::test]
async fn of_two_who_end_the_others_at_once_one_is_ended() {
    let (storage, layer) = layers();
    let (a, b) = (logged_in(&layer, "alice").await, logged_in(&layer, "alice").await);
    let a = Asked::with(&layer, Some(&a)).await;
    let b = Asked::with(&layer, Some(&b)).await;
    // B has left its notice and is about to end all, when A does all of it.
    let (done, is_done) = oneshot::channel();
    storage.before(Op::Invalidate, async move {
        let outcome = a.handle.end_others().await;
        let _ = done.send((outcome, a));
    });
    let b_outcome = b.handle.end_others().await;
    let (a_outcome, a) = is_done.await.unwrap();
    let (a, b) = (a.finish().await, b.finish().await);
    let mut alive = Vec::new();
    for cookie in [a, b] {
        alive.push(match cookie {
            Some(cookie) => lives(&layer, &cookie).await,
            None => false,
        });
    }
    assert!(!(alive[0] && alive[1]), "each was to end the other");
    assert!(!(a_outcome.is_ok() && alive[1] || b_outcome.is_ok() && alive[0]));
}

#[tokio::test]
async fn the_end_of_all_while_one_ends_the_others_ends_that_one_too() {
    let (storage, layer) = layers();
    let cookie = logged_in(&layer, "alice").await;
    let user = Asked::with(&layer, Some(&cookie)).await;
    let sessions = layer.sessions().clone();
    storage.before(Op::Invalidate, async move { sessions.end_all("alice").await.unwrap() });
    let outcome = user.handle.end_others().await;
    let cookie = user.finish().await;
    if let Some(cookie) = cookie {
        assert!(!lives(&layer, &cookie).await, "an administrator has locked the account");
    }
    assert!(matches!(outcome.unwrap_err().kind(), SessionErrorKind::Gone));
}

#[tokio::test]
async fn whoever_has_ended_the_others_can_rotate_after_it() {
    let (_, layer) = layers();
    let cookie = logged_in(&layer, "alice").await;
    let user = Asked::with(&layer, Some(&cookie)).await;
    user.handle.end_others().await.unwrap();
    user.handle.rotate().await.unwrap();
    let cookie = user.finish().await.unwrap();
    assert!(lives(&layer, &cookie).await);
}

#[tokio::test]
async fn sessions_of_a_newer_schema_do_not_keep_their_principal_out() {
    let storage = MemoryStorage::new();
    let newer = Policy::new().with_schema(1, |_, _| Ok(())).with_cap(1, OverCap::EndOldest);
    let newer = SessionLayer::new(storage.clone(), newer);
    let older = Policy::new().with_cap(1, OverCap::EndOldest);
    let storage = Staged { storage: storage.erase(), ..Staged::new() };
    let older = SessionLayer::new(storage, older);
    let first = logged_in(&newer, "alice").await;
    let second = logged_in(&older, "alice").await;
    assert!(lives(&older, &second).await);
    assert!(!lives(&newer, &first).await, "the cap is one");
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_lifetime_was_cut_outlives_its_rotation() {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    let storage = MemoryStorage::new();
    let long = Policy::new().with_idle_timeout(30 * DAY);
    let long = SessionLayer::new(storage.clone(), long);
    let cut = Policy::new().with_idle_timeout(15 * DAY).with_lifetime(15 * DAY);
    let cut = SessionLayer::new(storage, cut);
    let cookie = logged_in(&long, "alice").await;
    tokio::time::advance(10 * DAY).await;
    let user = Asked::with(&cut, Some(&cookie)).await;
    let ago = user.handle.authenticated_ago().unwrap();
    assert_eq!(ago.as_secs() / 86_400, 10, "{ago:?}");
    user.handle.rotate().await.unwrap();
    let cookie = user.finish().await.unwrap();
    assert!(lives(&cut, &cookie).await);
    let user = Asked::with(&cut, Some(&cookie)).await;
    let ago = user.handle.authenticated_ago().unwrap();
    assert_eq!(ago.as_secs() / 86_400, 10, "{ago:?}");
    user.map().await.insert("theme", "dark").unwrap();
    user.finish().await;
    tokio::time::advance(5 * DAY).await;
    assert!(!lives(&cut, &cookie).await, "15 days are over");
}

#[tokio::test]
async fn the_logout_of_a_visitor_whose_id_is_replaced_at_once_ends_the_new_id_too() {
    let (_, layer) = layers();
    let cookie = visitor(&layer).await;
    let rotates = Asked::with(&layer, Some(&cookie)).await;
    let leaves = Asked::with(&layer, Some(&cookie)).await;
    rotates.handle.rotate().await.unwrap();
    leaves.handle.destroy().await.unwrap();
    let cookie = rotates.finish().await.unwrap();
    assert!(!lives(&layer, &cookie).await);
}

#[tokio::test]
async fn what_is_left_while_an_update_is_under_way_is_saved() {
    let (storage, layer) = layers();
    let cookie = visitor(&layer).await;
    let request = Asked::with(&layer, Some(&cookie)).await;
    let handle = request.handle.clone();
    storage.before(Op::Save, async move { handle.flash("notice", &5).await.unwrap() });
    request.map().await.update(|map| map.insert("size", &7)).await.unwrap().unwrap();
    request.finish().await;
    let next = Asked::with(&layer, Some(&cookie)).await;
    let notice = next.handle.take_flash::<u32>("notice").await.unwrap();
    assert_eq!(notice, Some(5));
}

#[tokio::test]
async fn what_is_left_while_a_login_is_under_way_is_saved() {
    let (storage, layer) = layers();
    let cookie = visitor(&layer).await;
    let request = Asked::with(&layer, Some(&cookie)).await;
    let handle = request.handle.clone();
    storage.before(Op::Save, async move { handle.flash("notice", &5).await.unwrap() });
    request.handle.login("alice").await.unwrap();
    let cookie = request.finish().await.unwrap();
    let next = Asked::with(&layer, Some(&cookie)).await;
    let notice = next.handle.take_flash::<u32>("notice").await.unwrap();
    assert_eq!(notice, Some(5));
}

#[tokio::test]
async fn two_logins_again_from_one_session_are_not_two_sessions_of_one_name() {
    let (_, layer) = with_policy(Policy::new().with_cap(1, OverCap::EndOldest));
    let cookie = logged_in(&layer, "alice").await;
    let one = Asked::with(&layer, Some(&cookie)).await;
    let two = Asked::with(&layer, Some(&cookie)).await;
    let _ = one.handle.login("alice").await;
    let _ = two.handle.login("alice").await;
    let mut alive = 0;
    for cookie in [one.finish().await, two.finish().await].into_iter().flatten() {
        alive += usize::from(lives(&layer, &cookie).await);
    }
    assert_eq!(alive, 1, "the cap is one");
}

#[tokio::test]
async fn a_failed_eviction_hides_no_session_from_the_cap() {
    let (storage, layer) = with_policy(Policy::new().with_cap(1, OverCap::EndOldest));
    let first = logged_in(&layer, "alice").await;
    let refused = Asked::with(&layer, None).await;
    storage.fail(Op::Delete);
    assert!(refused.handle.login("alice").await.is_err());
    let second = logged_in(&layer, "alice").await;
    assert!(lives(&layer, &second).await);
    assert!(!lives(&layer, &first).await, "the cap is one");
}

#[tokio::test]
async fn a_login_that_has_begun_does_not_survive_the_end_of_all_in_between() {
    let (_, layer) = layers();
    let request = Asked::with(&layer, None).await;
    request.handle.begin_login().await.unwrap();
    layer.sessions().end_all("alice").await.unwrap();
    let outcome = request.handle.login("alice").await;
    assert!(matches!(outcome.unwrap_err().kind(), SessionErrorKind::Gone));
}

#[tokio::test]
async fn a_save_of_what_belongs_to_no_session_any_more_says_so() {
    let (_, layer) = layers();
    let cookie = logged_in(&layer, "alice").await;
    let request = Asked::with(&layer, Some(&cookie)).await;
    let mut session = request.map().await;
    request.handle.destroy().await.unwrap();
    session.insert("theme", "dark").unwrap();
    let outcome = session.save().await;
    assert!(matches!(outcome.unwrap_err().kind(), SessionErrorKind::Gone));
}

#[tokio::test]
async fn a_type_that_does_not_fit_while_a_save_is_under_way_panics_nothing() {
    let (storage, layer) = layers();
    let cookie = visitor(&layer).await;
    let request = Asked::with(&layer, Some(&cookie)).await;
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Other {
        visits: String,
    }
    let handle = request.handle.clone();
    storage.before(Op::Save, async move {
        handle.read::<Other>().await.unwrap();
    });
    let mut session = request.map().await;
    session.insert("theme", "dark").unwrap();
    let _ = session.save().await;
    assert!(!request.handle.exists());
}

#[tokio::test]
async fn a_rotation_that_its_handler_gave_up_is_told_to_the_client() {
    let (storage, layer) = layers();
    let cookie = visitor(&layer).await;
    let request = Asked::with(&layer, Some(&cookie)).await;
    storage.before(Op::Save, tokio::time::sleep(Duration::from_millis(50)));
    let rotation = tokio::time::timeout(Duration::from_millis(10), request.handle.rotate());
    assert!(rotation.await.is_err());
    let cookie = request.finish().await.expect("the old id is about to die");
    assert!(lives(&layer, &cookie).await);
}

#[tokio::test]
async fn what_was_left_for_one_principal_while_another_logs_in_is_not_saved() {
    let (storage, layer) = layers();
    let alice = logged_in(&layer, "alice").await;
    let request = Asked::with(&layer, Some(&alice)).await;
    let mut session = request.map().await;
    let handle = request.handle.clone();
    storage.before(Op::Save, async move {
        session.insert("secret", "of alice").unwrap();
        drop(session);
        handle.flash("notice", &5).await.unwrap();
    });
    request.handle.login("bob").await.unwrap();
    let bob = request.finish().await.unwrap();
    let next = Asked::with(&layer, Some(&bob)).await;
    assert_eq!(next.map().await.get::<String>("secret").unwrap(), None);
    assert_eq!(next.handle.take_flash::<u32>("notice").await.unwrap(), None);
}

#[tokio::test]
async fn a_login_beside_another_keeps_what_its_handler_has_changed() {
    let (_, layer) = layers();
    let cookie = visitor(&layer).await;
    let first = Asked::with(&layer, Some(&cookie)).await;
    first.handle.login("alice").await.unwrap();
    first.finish().await;
    let second = Asked::with(&layer, Some(&cookie)).await;
    second.map().await.insert("theme", "dark").unwrap();
    second.handle.login("alice").await.unwrap();
    let cookie = second.finish().await.unwrap();
    let map = Asked::with(&layer, Some(&cookie)).await.map().await;
    assert_eq!(map.get::<u32>("visits").unwrap(), Some(1), "of the first");
    assert_eq!(map.get::<String>("theme").unwrap().as_deref(), Some("dark"));
}

#[test]
fn sessions_in_memory_need_no_runtime() {
    let layer = SessionLayer::new(MemoryStorage::new(), Policy::new());
    let service = layer.layer(service_fn(async |request: Request<Body>| {
        let handle = SessionHandle::<()>::of(RequestHead::new(&request)).unwrap();
        let mut session = handle.session::<SessionMap>().await.unwrap();
        session.insert("visits", &1).unwrap();
        Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
    }));
    let response = service.oneshot(Request::new(Body::empty())).now_or_never();
    let response = response.expect("memory answers at once").unwrap();
    assert!(response.headers().contains_key(header::SET_COOKIE));
}

#[tokio::test(start_paused = true)]
async fn an_old_id_whose_successor_was_never_used_lives_as_long_as_it_is_used() {
    const MINUTE: Duration = Duration::from_secs(60);
    for local in [true, false] {
        let storage = Staged { local, ..Staged::new() };
        let policy = Policy::new().with_rotation(MINUTE).with_idle_timeout(10 * MINUTE);
        let layer = SessionLayer::new(storage, policy);
        let cookie = visitor(&layer).await;
        for round in 0..10 {
            tokio::time::advance(3 * MINUTE).await;
            let request = Asked::with(&layer, Some(&cookie)).await;
            assert!(request.handle.exists(), "in round {round}, local: {local}");
            request.finish().await;
        }
    }
}

#[tokio::test]
async fn what_became_too_large_by_a_new_policy_stays_and_does_not_grow() {
    let storage = Staged::new();
    let layer = SessionLayer::new(storage.clone(), Policy::new());
    let cookie = visitor(&layer).await;
    let request = Asked::with(&layer, Some(&cookie)).await;
    request.map().await.insert("notes", &"x".repeat(100)).unwrap();
    request.finish().await;
    let layer = SessionLayer::new(storage, Policy::new().with_max_size(50));
    let request = Asked::with(&layer, Some(&cookie)).await;
    request.handle.login("alice").await.unwrap();
    request.handle.end_others().await.unwrap();
    request.handle.rotate().await.unwrap();
    let mut session = request.map().await;
    session.insert("visits", &2).unwrap();
    session.save().await.unwrap();
    session.insert("more", &3).unwrap();
    let outcome = session.save().await;
    assert!(matches!(outcome.unwrap_err().kind(), SessionErrorKind::TooLarge));
}

#[tokio::test]
async fn a_failed_update_of_a_session_that_does_not_fit_meanwhile_begins_no_other() {
    let (storage, layer) = layers();
    let cookie = visitor(&layer).await;
    let request = Asked::with(&layer, Some(&cookie)).await;
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Other {
        visits: String,
    }
    let handle = request.handle.clone();
    let work = async move {
        handle.read::<Other>().await.unwrap();
        Some(Error::new(ErrorKind::Unavailable, "staged"))
    };
    storage.before.lock().unwrap().push_back(Cue(Op::Save, Box::pin(work)));
    let mut session = request.map().await;
    session.insert("theme", "dark").unwrap();
    session.update(|map| map.insert("size", &7)).await.unwrap_err();
    drop(session);
    assert_eq!(request.finish().await, None, "the cookie of the session that is there stays");
}
