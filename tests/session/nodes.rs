//! Nodes of one application, and requests whose moments a test chooses.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::Path,
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};
use tower::ServiceExt;
use tower_keep::{
    SessionLayer,
    session::{Notice, Policy, SaveFailure, SessionError, SessionHandle, SessionMap, Sessions},
    storage::AnyStorage,
};

pub(crate) use crate::race::{Dice, count};

/// Where handlers wait that have looked their session up.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Hall>);

#[derive(Debug)]
struct Hall {
    arrived: watch::Sender<usize>,
    open: watch::Sender<bool>,
    dice: Dice,
}

impl Gate {
    /// A closed one. Those who pass it once it is open are scattered by the dice.
    pub(crate) fn new(dice: &Dice) -> Self {
        let (arrived, open) = (watch::channel(0).0, watch::channel(false).0);
        Self(Arc::new(Hall { arrived, open, dice: dice.clone() }))
    }

    async fn pass(&self) {
        self.0.arrived.send_modify(|arrived| *arrived += 1);
        self.0.open.subscribe().wait_for(|open| *open).await.unwrap();
        self.0.dice.pause().await;
    }

    /// Waits until so many handlers wait.
    pub(crate) async fn crowd(&self, expected: usize) {
        self.0.arrived.subscribe().wait_for(|arrived| *arrived >= expected).await.unwrap();
    }

    pub(crate) fn open(&self) {
        self.0.open.send_replace(true);
    }
}

/// What only compare-and-swap gets right.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Tally {
    pub(crate) count: u64,
    pub(crate) list: Vec<u64>,
}

/// What a session looks like to its client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Look {
    pub(crate) id: String,
    pub(crate) principal: Option<String>,
    pub(crate) names: Vec<String>,
    pub(crate) tally: Tally,
    pub(crate) life_left: Duration,
}

impl Look {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|other| other == name)
    }
}

async fn act(
    Path((what, value)): Path<(String, String)>,
    gate: Option<Extension<Gate>>,
    handle: SessionHandle,
) -> Result<Response, SessionError> {
    let mut map = handle.session::<SessionMap>().await?;
    if let Some(Extension(gate)) = gate {
        gate.pass().await;
    }
    match what.as_str() {
        "read" => {}
        "look" => {
            let tally = handle.read::<Tally>().await?;
            let look = handle.public_id().map(|id| Look {
                id: id.to_string(),
                principal: handle.principal(),
                names: map.names().map(str::to_owned).collect(),
                tally: tally.clone(),
                life_left: handle.life_left().unwrap(),
            });
            return Ok(Json(look).into_response());
        }
        "set" => map.insert(&value, &value)?,
        "save" => {
            map.insert(&value, &value)?;
            map.save().await?;
        }
        "count" => {
            handle.session::<Tally>().await?.update(|tally| tally.count += 1).await?;
        }
        "add" => {
            let number = value.parse().unwrap();
            let mut session = handle.session::<Tally>().await?;
            session.update(|tally| tally.list.push(number)).await?;
        }
        "flash" => handle.flash("notice", &value).await?,
        "login" => handle.login(value).await?,
        "logout" => handle.destroy().await?,
        "rotate" => handle.rotate().await?,
        "prove" => handle.reauthenticate().await?,
        "others" => handle.end_others().await?,
        "end" => handle.end(value.parse().unwrap()).await?,
        "half" => {
            map.insert(&value, &value)?;
            std::future::pending::<()>().await;
        }
        "panic" => {
            map.insert(&value, &value)?;
            panic!("as the test wants it");
        }
        other => panic!("{other}?"),
    }
    Ok(().into_response())
}

/// The routes, without a layer.
pub(crate) fn routes() -> Router {
    Router::new().route("/{what}/{value}", post(act))
}

/// One process that serves the application.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    app: Router,
    pub(crate) sessions: Sessions,
    notices: Arc<Mutex<Vec<Notice>>>,
}

/// What became of what a request wanted to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// There is no such session any more.
    Gone,
    /// Too many sessions.
    Refused,
    /// It may have been done.
    Unknown,
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) failure: Option<SaveFailure>,
    /// What becomes of the cookie, if anything.
    pub(crate) cookie: Option<Option<String>>,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn outcome(&self) -> Outcome {
        match (self.status, self.failure) {
            (StatusCode::UNAUTHORIZED, _) | (_, Some(SaveFailure::Gone)) => Outcome::Gone,
            (StatusCode::CONFLICT, _) => Outcome::Refused,
            (status, None) if status.is_success() => Outcome::Done,
            _ => Outcome::Unknown,
        }
    }

    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.outcome(), Outcome::Done, "{self:?}");
        self
    }

    /// The new id, which there must be.
    #[track_caller]
    pub(crate) fn new_id(&self) -> String {
        self.cookie.clone().flatten().unwrap_or_else(|| panic!("no new id: {self:?}"))
    }

    /// What a client has from now on that has sent this.
    pub(crate) fn kept(&self, sent: &str) -> Option<String> {
        self.cookie.clone().unwrap_or_else(|| Some(sent.to_owned()))
    }
}

impl Node {
    pub(crate) fn new(storage: AnyStorage, policy: Policy) -> Self {
        Self::around(routes(), storage, policy)
    }

    /// With another application inside.
    pub(crate) fn around(routes: Router, storage: AnyStorage, policy: Policy) -> Self {
        let notices = Arc::<Mutex<Vec<_>>>::default();
        let told = Arc::clone(&notices);
        let policy = policy.with_observer(move |notice| told.lock().unwrap().push(notice.clone()));
        let layer = SessionLayer::new(storage, policy);
        let sessions = layer.sessions().clone();
        Self { app: routes.layer(layer), sessions, notices }
    }

    /// What the observer was told since this was last asked.
    pub(crate) fn notices(&self) -> Vec<Notice> {
        std::mem::take(&mut self.notices.lock().unwrap())
    }

    pub(crate) async fn ask(&self, path: &str, cookie: Option<&str>) -> Reply {
        self.ask_through(path, cookie, None).await
    }

    /// With the gate at which the handler waits.
    pub(crate) async fn ask_through(
        &self,
        path: &str,
        cookie: Option<&str>,
        gate: Option<&Gate>,
    ) -> Reply {
        let mut request = Request::post(path);
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, cookie);
        }
        let mut request = request.body(Body::empty()).unwrap();
        if let Some(gate) = gate {
            request.extensions_mut().insert(gate.clone());
        }
        let response = self.app.clone().oneshot(request).await.unwrap();
        let failure = response.extensions().get().copied();
        let (head, body) = response.into_parts();
        let mut lines = head.headers.get_all(header::SET_COOKIE).iter();
        let cookie = lines.next().map(|line| {
            let line = line.to_str().unwrap();
            let pair = line.split(';').next().unwrap().to_owned();
            Some(pair).filter(|_| !line.contains("Max-Age=0"))
        });
        assert!(lines.next().is_none(), "two cookies in one response");
        let text = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        Reply { status: head.status, failure, cookie, text }
    }

    /// A request of its own task.
    pub(crate) fn begin(
        &self,
        path: &str,
        cookie: Option<&str>,
        gate: Option<&Gate>,
    ) -> JoinHandle<Reply> {
        let (node, path) = (self.clone(), path.to_owned());
        let (cookie, gate) = (cookie.map(str::to_owned), gate.cloned());
        tokio::spawn(async move { node.ask_through(&path, cookie.as_deref(), gate.as_ref()).await })
    }

    /// The live session of this id, if there is one.
    pub(crate) async fn look(&self, cookie: &str) -> Option<Look> {
        let reply = self.ask("/look/-", Some(cookie)).await.done();
        serde_json::from_str(&reply.text).unwrap()
    }

    /// A new session of this principal.
    pub(crate) async fn login(&self, principal: &str) -> String {
        self.ask(&format!("/login/{principal}"), None).await.done().new_id()
    }
}

/// The nodes of one application on one storage.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) dice: Dice,
    /// Its number.
    pub(crate) seed: usize,
}

impl World {
    pub(crate) fn any(&self) -> &Node {
        &self.nodes[self.dice.below(self.nodes.len() as u64) as usize]
    }

    /// What all nodes agree about.
    pub(crate) async fn look(&self, cookie: &str) -> Option<Look> {
        let mut looks = Vec::new();
        for node in &self.nodes {
            looks.push(node.look(cookie).await);
        }
        let seen =
            |look: &Option<Look>| look.as_ref().map(|look| (look.id.clone(), look.names.clone()));
        assert!(looks.iter().all(|look| seen(look) == seen(&looks[0])), "{looks:?}");
        looks.swap_remove(0)
    }
}

/// Something that is done often by many at once: in memory with threads, in memory across a network
/// with chosen delays, and on Redis by two nodes.
macro_rules! races {
    ($(#[doc = $doc:literal])* $name:ident, rounds: $few:expr, $many:expr, $policy:expr, $race:expr $(,)?) => {
        $(#[doc = $doc])*
        mod $name {
            use super::*;
            use crate::nodes::{Dice, Node};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_memory() {
                for seed in 0..count($few, $many) {
                    let dice = Dice::new(seed as u64);
                    let storage = tower_keep::Storage::erase(tower_keep::MemoryStorage::new());
                    let nodes = vec![Node::new(storage, ($policy)(seed))];
                    $race(World { nodes, dice, seed }).await;
                }
            }

            #[tokio::test(start_paused = true)]
            async fn across_a_network() {
                for seed in 0..count(2 * $few, 3 * $many) {
                    let dice = Dice::new(seed as u64);
                    let memory = tower_keep::MemoryStorage::new();
                    let node = || {
                        let storage = crate::staged::Staged::delayed(&memory, &dice);
                        Node::new(tower_keep::Storage::erase(storage), ($policy)(seed))
                    };
                    let nodes = vec![node(), node()];
                    $race(World { nodes, dice: dice.clone(), seed }).await;
                }
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_redis() {
                let server = crate::support::RedisServer::start();
                let storages = [
                    crate::redis_storage(&server.url(), "races").await,
                    crate::redis_storage(&server.url(), "races").await,
                ];
                for seed in 0..count($few, $many) {
                    let dice = Dice::new(seed as u64);
                    let node = |storage: &AnyStorage| Node::new(storage.clone(), ($policy)(seed));
                    let nodes = storages.iter().map(node).collect();
                    $race(World { nodes, dice, seed }).await;
                    server.check_keys("races");
                    server.ask("FLUSHALL");
                }
            }
        }
    };
}
pub(crate) use races;
