//! Making, checking and giving up the connections of a storage.
//!
//! What makes a link (dialling, the shared secret, the `PING` after a pause) runs in a task of its
//! own, once for all who wait. Callers wait no longer than their deadline and may go away; the
//! task does not notice.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bb8_redis::{RedisConnectionManager, bb8};
use redis::{RedisResult, aio::MultiplexedConnection, cmd};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{
    error::{self, Cause},
    events,
    health::Health,
    lanes::{Class, Settings},
    secret::{self, Secret},
};
use crate::storage::{ErrorKind, HashKey, Result};

/// How often the shared secret's life is renewed.
const RENEWAL: u64 = 60_000;

/// The present link, and how to make the next.
pub(super) struct Links {
    pool: bb8::Pool<RedisConnectionManager>,
    settings: Settings,
    started: Instant,
    state: RwLock<State>,
    /// The number of the present or last link, for who waits for one.
    epochs: watch::Sender<u64>,
    /// The last secret that the store gave, to be offered again should the store have lost it.
    secret: Mutex<Option<Secret>>,
}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    epoch: u64,
    /// The report of the task that makes or checks a link, while there is one.
    work: Option<watch::Receiver<Option<Made>>>,
}

impl State {
    /// Whether the connections of this link are still the present ones.
    fn holds(&self, link: &Link) -> bool {
        self.link.as_ref().is_some_and(|now| Arc::ptr_eq(&now.lanes, &link.lanes))
    }
}

type Made = Result<Arc<Link>, Cause>;

/// Connections that were made together.
pub(super) struct Link {
    /// Counts the links of this storage.
    pub(super) epoch: u64,
    pub(super) hash_key: HashKey,
    /// When the shared secret was last read, in milliseconds of [`Links::now`].
    secret_read: AtomicU64,
    /// Small lanes, then the large one.
    pub(super) lanes: Arc<[Lane]>,
}

pub(super) struct Lane {
    pub(super) connection: MultiplexedConnection,
    pub(super) health: Health,
}

impl Lane {
    async fn answers(&self) -> bool {
        let mut connection = self.connection.clone();
        connection.set_response_timeout(self.health.patience());
        cmd("PING").exec_async(&mut connection).await.is_ok()
    }
}

impl Links {
    pub(super) fn new(pool: bb8::Pool<RedisConnectionManager>, settings: Settings) -> Self {
        Self {
            pool,
            settings,
            started: Instant::now(),
            state: RwLock::default(),
            epochs: watch::Sender::new(0),
            secret: Mutex::default(),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The number of the present or last link, as it changes.
    #[cfg_attr(not(feature = "idempotency"), allow(dead_code))]
    pub(super) fn epochs(&self) -> watch::Receiver<u64> {
        self.epochs.subscribe()
    }

    /// The number of the present or last link.
    #[cfg(test)]
    pub(super) fn epoch(&self) -> u64 {
        self.read().epoch
    }

    /// Reads the shared secret as if a minute had passed.
    #[cfg(test)]
    pub(super) async fn reread_secret_now(&self) {
        let link = self.read().link.clone().unwrap();
        self.reread_secret(&link).await;
    }

    /// Milliseconds since the lanes were made, from 1 on.
    pub(super) fn now(&self) -> u64 {
        self.millis(Instant::now())
    }

    pub(super) fn millis(&self, at: Instant) -> u64 {
        (at - self.started).as_millis() as u64 + 1
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A link that is believed to work.
    pub(super) async fn current(
        self: &Arc<Self>,
        now: Instant,
        deadline: Instant,
        budget: Duration,
        class: Class,
    ) -> Result<Arc<Link>, Cause> {
        let now = self.millis(now);
        // A statement of its own: the lock must not be held while waiting below.
        let ready = self.ready(&self.read(), class, now);
        let link = match ready {
            Some(link) => link,
            None => self.make(deadline, budget, class).await?,
        };
        self.renew_secret(&link, now);
        Ok(link)
    }

    fn ready(&self, state: &State, class: Class, now: u64) -> Option<Arc<Link>> {
        let link = state.link.as_ref()?;
        // Decisions never take the large lane, the last one, and need not wait for its `PING`.
        let concerned = match class {
            Class::Decision => &link.lanes[..link.lanes.len() - 1],
            Class::Entry => &link.lanes[..],
        };
        let idle = self.settings.idle;
        let doubtful = concerned.iter().any(|lane| lane.health.is_doubtful(now, idle));
        (!doubtful).then(|| link.clone())
    }

    #[cold]
    async fn make(
        self: &Arc<Self>,
        deadline: Instant,
        budget: Duration,
        class: Class,
    ) -> Result<Arc<Link>, Cause> {
        let mut made = {
            let mut state = self.write();
            if let Some(link) = self.ready(&state, class, self.now()) {
                return Ok(link);
            }
            match &state.work {
                Some(work) => work.clone(),
                None => {
                    let (report, made) = watch::channel(None);
                    state.work = Some(made.clone());
                    let work = Work { links: self.clone() };
                    // Not tracked: an outage would hold up a shutdown, and who needs the link waits.
                    tokio::spawn(work.run(state.link.clone(), report));
                    made
                }
            }
        };
        match timeout_at(deadline, made.wait_for(Option::is_some)).await {
            Ok(Ok(made)) => made.clone().unwrap_or_else(|| Err(interrupted())),
            Ok(Err(_)) => Err(interrupted()),
            Err(_) => Err(Cause::new(
                ErrorKind::Timeout,
                format!("no connection to redis within {budget:?}"),
            )),
        }
    }

    /// Makes the connections of a link at the same time.
    async fn dial(self: &Arc<Self>) -> Result<(Secret, Arc<[Lane]>), Cause> {
        let started = Instant::now();
        let mut dials = JoinSet::new();
        for _ in 0..=self.settings.small_lanes {
            let links = self.clone();
            dials.spawn(async move {
                let mut connection = links.pool.dedicated_connection().await?;
                // Without a password, dialling succeeds before the server has said anything.
                cmd("PING").exec_async(&mut connection).await?;
                RedisResult::Ok(connection)
            });
        }
        let mut connections = Vec::new();
        while let Some(dialled) = dials.join_next().await {
            let connection = dialled
                .map_err(|_| interrupted())?
                .map_err(|error| error::explain(&error, started.elapsed()))?;
            connections.push(connection);
        }
        let secret = match &self.settings.secret {
            Some(secret) => secret.clone(),
            None => {
                let secret =
                    secret::share(&mut connections[0], &self.settings.prefix, &self.offer())
                        .await?;
                self.learn(&secret);
                secret
            }
        };
        let now = self.now();
        let lanes = connections.into_iter().enumerate().map(|(i, connection)| {
            let is_small = i < self.settings.small_lanes;
            let Settings { decision, entry, .. } = self.settings;
            Lane { connection, health: Health::new(if is_small { decision } else { entry }, now) }
        });
        Ok((secret, lanes.collect()))
    }

    /// The secret in use, or one for the store to take if it has none.
    fn offer(&self) -> Secret {
        let known = self.secret.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone().unwrap_or_else(Secret::random)
    }

    fn learn(&self, secret: &Secret) {
        let mut known = self.secret.lock().unwrap_or_else(PoisonError::into_inner);
        match known.replace(secret.clone()) {
            None => events::secret_is_shared(),
            Some(before) if before != *secret => events::secret_changed(),
            Some(_) => {}
        }
    }

    fn install(&self, state: &mut State, secret: &Secret, lanes: Arc<[Lane]>) -> Arc<Link> {
        state.epoch += 1;
        let link = Arc::new(Link {
            epoch: state.epoch,
            hash_key: secret.hash_key(),
            secret_read: self.now().into(),
            lanes,
        });
        state.link = Some(link.clone());
        self.epochs.send_replace(state.epoch);
        link
    }

    /// Once a minute of use, in the background: a store that forgot the secret gets it back, and a
    /// secret that others have agreed on meanwhile is taken over.
    fn renew_secret(self: &Arc<Self>, link: &Arc<Link>, now: u64) {
        if self.settings.secret.is_some() {
            return;
        }
        let read = link.secret_read.load(Ordering::Relaxed);
        let due = now.saturating_sub(read) > RENEWAL;
        if !due
            || link
                .secret_read
                .compare_exchange(read, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        let (links, link) = (self.clone(), link.clone());
        tokio::spawn(async move { links.reread_secret(&link).await });
    }

    async fn reread_secret(&self, link: &Link) {
        let mut connection = link.lanes[0].connection.clone();
        connection.set_response_timeout(self.settings.entry);
        // A failure says nothing that the operations beside it do not find out themselves.
        let Ok(secret) = secret::share(&mut connection, &self.settings.prefix, &self.offer()).await
        else {
            return;
        };
        self.learn(&secret);
        if secret.hash_key() == link.hash_key {
            return;
        }
        let mut state = self.write();
        // Under one lock: connections that were given up meanwhile must not come back, for they may
        // lead to a server that was demoted.
        if state.holds(link) {
            // Fences were taken under other names of the tags: a new epoch refuses them.
            self.install(&mut state, &secret, link.lanes.clone());
        }
    }

    /// Gives a link up, if its connections are still the present ones. Calls that are under way on
    /// it go on.
    pub(super) fn drop_link(&self, link: &Link, reason: &str) {
        let mut state = self.write();
        if state.holds(link) {
            state.link = None;
            drop(state);
            events::lane_dropped(reason);
        }
    }

    pub(super) fn drop_any_link(&self, reason: &str) {
        if self.write().link.take().is_some() {
            events::lane_dropped(reason);
        }
    }
}

fn interrupted() -> Cause {
    Cause::new(ErrorKind::Unavailable, "the task that connects to redis was stopped")
}

/// The task that checks the present link or makes a new one. Only one is under way at a time.
struct Work {
    links: Arc<Links>,
}

impl Work {
    async fn run(self, present: Option<Arc<Link>>, report: watch::Sender<Option<Made>>) {
        let made = self.check_or_dial(present).await;
        // First the state, then the report: who comes between finds the link, or dials anew.
        drop(self);
        report.send_replace(Some(made));
    }

    async fn check_or_dial(&self, present: Option<Arc<Link>>) -> Made {
        let links = &self.links;
        if let Some(link) = present {
            if self.is_alive(&link).await {
                return Ok(link);
            }
            links.drop_link(&link, "it did not answer after a pause");
        }
        match timeout(links.settings.connect, links.dial()).await {
            Ok(Ok((secret, lanes))) => {
                let link = links.install(&mut links.write(), &secret, lanes);
                if link.epoch > 1 {
                    events::lane_replaced(link.epoch);
                }
                Ok(link)
            }
            Ok(Err(cause)) => Err(cause),
            Err(_) => Err(Cause::new(
                ErrorKind::Unavailable,
                format!("no connection to redis within {:?}", links.settings.connect),
            )),
        }
    }

    async fn is_alive(&self, link: &Link) -> bool {
        let links = &self.links;
        for lane in link.lanes.iter() {
            if lane.health.is_doubtful(links.now(), links.settings.idle) {
                if !lane.answers().await {
                    return false;
                }
                lane.health.answered(links.now());
            }
        }
        true
    }
}

impl Drop for Work {
    /// Also when the runtime drops the task or it panics: the next caller starts another.
    fn drop(&mut self) {
        self.links.write().work = None;
    }
}
