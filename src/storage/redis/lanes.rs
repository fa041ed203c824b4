//! The few long-lived connections over which everything runs.
//!
//! A pool's guard around each command costs most of the throughput (a `PING` and a wait per
//! command), and a stock pool, client or connection manager stays on a connection whose peer has
//! gone silent. So a bb8 pool only *makes* connections here. Commands share a [`Link`]: one or a
//! few multiplexed connections for small commands and one for large bodies, made together and
//! given up together, so that they lead to one server and have one epoch.
//!
//! What makes a link (dialling, the shared secret, the `PING` after a pause) runs in a task of its
//! own, once for all who wait. Callers wait no longer than their deadline and may go away; the
//! task does not notice.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bb8_redis::{RedisConnectionManager, bb8};
use redis::{Cmd, ErrorKind as RedisKind, RedisResult, ServerErrorKind, Value};
use redis::{aio::MultiplexedConnection, cmd};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{
    breaker::{Admission, Breaker},
    call::Call,
    error::{self, Cause, Fault},
    events,
    secret::{self, Secret},
};
use crate::storage::{ErrorKind, HashKey, Name, Result};

/// Timeouts in a row, with no answer between, after which a connection is taken for dead.
const STRIKES: u32 = 3;
/// How often the shared secret's life is renewed.
const RENEWAL: u64 = 60_000;

/// Which deadline an operation has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A limit is decided: everything a service does waits for it.
    Decision,
    /// An entry is read or written.
    Entry,
}

/// How the lanes behave.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) decision: Duration,
    pub(super) entry: Duration,
    pub(super) connect: Duration,
    /// A connection that was not used for so long is asked first whether it is still there.
    pub(super) idle: Duration,
    pub(super) small_lanes: usize,
    pub(super) prefix: Name,
    /// `None`: the one that is shared through the store.
    pub(super) secret: Option<Secret>,
}

/// The way to the server. Clones share it.
#[derive(Clone)]
pub(super) struct Lanes {
    shared: Arc<Shared>,
}

struct Shared {
    pool: bb8::Pool<RedisConnectionManager>,
    settings: Settings,
    breaker: Breaker,
    started: Instant,
    turn: AtomicUsize,
    state: RwLock<State>,
    /// The last secret that the store gave, to be offered again should the store have lost it.
    secret: Mutex<Option<Secret>>,
}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    epoch: u64,
    /// The task that makes or checks a link, while there is one.
    work: Option<watch::Receiver<Option<Made>>>,
}

type Made = Result<Arc<Link>, Cause>;

/// Connections that were made together.
struct Link {
    epoch: u64,
    hash_key: HashKey,
    /// When the shared secret was last read, in milliseconds of [`Shared::now`].
    secret_read: AtomicU64,
    lanes: Arc<[Lane]>,
}

/// One connection, and what is known of its health. Times are milliseconds of [`Shared::now`].
struct Lane {
    connection: MultiplexedConnection,
    /// The deadline of what this lane is for.
    patience: Duration,
    answered: AtomicU64,
    /// When the first call was sent that has had no answer since; 0 if there is none.
    waiting_since: AtomicU64,
    strikes: AtomicU32,
    struck: AtomicU64,
}

impl Lane {
    fn new(connection: MultiplexedConnection, patience: Duration, now: u64) -> Self {
        Self {
            connection,
            patience,
            answered: now.into(),
            waiting_since: 0.into(),
            strikes: 0.into(),
            struck: 0.into(),
        }
    }

    /// Whether to ask for a `PING` before the next call: after a pause, and after a silence as long
    /// as it takes for [`STRIKES`] timeouts. Callers that give up before their deadline never see a
    /// timeout, so timeouts alone would miss a dead peer.
    fn is_doubtful(&self, now: u64, idle: u64) -> bool {
        let since = self.waiting_since.load(Ordering::Relaxed);
        let silence = (self.patience * STRIKES).as_millis() as u64;
        (since != 0 && now.saturating_sub(since) > silence)
            || now.saturating_sub(self.answered.load(Ordering::Relaxed)) > idle
    }

    fn sent(&self, now: u64) {
        if self.waiting_since.load(Ordering::Relaxed) == 0 {
            self.waiting_since.store(now, Ordering::Relaxed);
        }
    }

    fn answered(&self, now: u64) {
        self.answered.store(now, Ordering::Relaxed);
        self.waiting_since.store(0, Ordering::Relaxed);
        self.strikes.store(0, Ordering::Relaxed);
    }

    /// A call that began at `start` had no answer. Returns whether that was the last strike.
    fn timed_out(&self, start: u64, now: u64) -> bool {
        // The calls of one wave were under way together and count once.
        if start < self.struck.load(Ordering::Relaxed) {
            return false;
        }
        self.struck.store(now, Ordering::Relaxed);
        self.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES
    }

    async fn answers(&self) -> bool {
        let mut connection = self.connection.clone();
        connection.set_response_timeout(self.patience);
        cmd("PING").exec_async(&mut connection).await.is_ok()
    }
}

impl Lanes {
    pub(super) fn new(pool: bb8::Pool<RedisConnectionManager>, settings: Settings) -> Self {
        Self {
            shared: Arc::new(Shared {
                pool,
                settings,
                breaker: Breaker::default(),
                started: Instant::now(),
                turn: AtomicUsize::new(0),
                state: RwLock::default(),
                secret: Mutex::default(),
            }),
        }
    }

    /// Tries once to connect. If that fails, calls fail at once until a probe succeeds.
    ///
    /// # Errors
    ///
    /// `Configuration`, if a server answered that the set-up is wrong. A server that cannot be
    /// reached is no error.
    pub(super) async fn warm_up(&self) -> Result<()> {
        let shared = &self.shared;
        // The attempt is bounded by the connect timeout itself; this only orders the two.
        let deadline = Instant::now() + shared.settings.connect * 2;
        match shared.link(deadline, shared.settings.connect, Class::Entry).await {
            Ok(_) => Ok(()),
            Err(cause) if cause.kind() == ErrorKind::Configuration => Err(cause.into()),
            Err(cause) => {
                if shared.breaker.trip(Instant::now(), &cause) {
                    events::outage_began(cause.message());
                }
                Ok(())
            }
        }
    }

    /// Admits one operation and finds a connection for it.
    ///
    /// # Errors
    ///
    /// `Unavailable` at once during an outage; what went wrong if there is no connection within
    /// the deadline of the class.
    pub(super) async fn enter(&self, class: Class) -> Result<Ticket> {
        let now = Instant::now();
        let budget = match class {
            Class::Decision => self.shared.settings.decision,
            Class::Entry => self.shared.settings.entry,
        };
        let permit = Permit::admitted(&self.shared, now)?;
        let deadline = now + budget;
        match self.shared.link(deadline, budget, class).await {
            Ok(link) => Ok(Ticket { permit, link, class, deadline, budget }),
            Err(cause) => {
                permit.failed(&cause);
                Err(cause.into())
            }
        }
    }

    /// Asks the server for a sign of life.
    pub(super) async fn ping(&self) -> Result<()> {
        let ticket = self.enter(Class::Decision).await?;
        let lane = ticket.lane(false);
        let reply = ticket.exchange(lane, &cmd("PING")).await;
        ticket.settle(reply).map(drop)
    }

    /// Reads the shared secret as if a minute had passed.
    #[cfg(test)]
    pub(super) async fn reread_secret(&self) {
        let link = self.shared.read().link.clone().unwrap();
        self.shared.reread_secret(&link).await;
    }

    /// The number of the present or last link.
    #[cfg(test)]
    pub(super) fn epoch(&self) -> u64 {
        self.shared.read().epoch
    }
}

/// The right to do one operation. Whatever becomes of its caller, the breaker learns of it.
struct Permit {
    shared: Arc<Shared>,
    probe: bool,
    settled: bool,
}

impl Permit {
    fn admitted(shared: &Arc<Shared>, now: Instant) -> Result<Self> {
        let probe = match shared.breaker.admit(now) {
            Admission::Free => false,
            Admission::Probe => true,
            Admission::Refused(cause) => return Err(cause.during_outage()),
        };
        Ok(Self { shared: shared.clone(), probe, settled: false })
    }

    fn succeeded(mut self) {
        self.settled = true;
        if let Some(lasted) = self.shared.breaker.succeeded(self.probe, Instant::now()) {
            events::outage_ended(lasted);
        }
    }

    fn failed(mut self, cause: &Cause) {
        self.settled = true;
        let began = self.shared.breaker.failed(self.probe, Instant::now(), cause);
        if began {
            events::outage_began(cause.message());
        }
        // A probe takes a connection that was made during the outage: on the one from before, a
        // peer that has silently gone would fail it for ever.
        if began || self.probe {
            self.shared.drop_any_link("it failed during an outage");
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.probe && !self.settled {
            self.shared.breaker.abandoned(Instant::now());
        }
    }
}

/// One use of a live connection.
///
/// Dropping it, also while it runs, leaves the connection in order: the reply is discarded when it
/// comes, and the operation may have been applied.
pub(super) struct Ticket {
    permit: Permit,
    link: Arc<Link>,
    class: Class,
    deadline: Instant,
    budget: Duration,
}

impl Ticket {
    /// Counts the links of this storage. The replies to this ticket come from a connection of this
    /// epoch or, after a repeated read, of a later one.
    pub(super) fn epoch(&self) -> u64 {
        self.link.epoch
    }

    /// With what identities and tags are hashed on this link.
    pub(super) fn hash_key(&self) -> &HashKey {
        &self.link.hash_key
    }

    /// Runs the script.
    ///
    /// # Errors
    ///
    /// `Timeout` if there was no answer within what was left of the deadline. After any error but
    /// those that are the server's answer, the script may have run.
    pub(super) async fn run(mut self, call: &Call) -> Result<Value> {
        let lane = self.lane(call.large);
        let mut reply = self.evaluate(lane, call).await;
        if call.repeatable && reply.as_ref().is_err_and(|error| error.is_connection_dropped()) {
            self.permit.shared.drop_link(&self.link, "it was found closed");
            match self.permit.shared.link(self.deadline, self.budget, self.class).await {
                Ok(link) => self.link = link,
                Err(cause) => {
                    self.permit.failed(&cause);
                    return Err(cause.into());
                }
            }
            reply = self.evaluate(lane, call).await;
        }
        self.settle(reply)
    }

    async fn evaluate(&self, lane: usize, call: &Call) -> RedisResult<Value> {
        match self.exchange(lane, &call.by_sha()).await {
            Err(error) if error.kind() == RedisKind::Server(ServerErrorKind::NoScript) => {
                self.exchange(lane, &call.by_text()).await
            }
            reply => reply,
        }
    }

    /// Small lanes take turns; the large one is the last.
    fn lane(&self, large: bool) -> usize {
        match self.link.lanes.len() - 1 {
            small if large => small,
            1 => 0,
            small => self.permit.shared.turn.fetch_add(1, Ordering::Relaxed) % small,
        }
    }

    async fn exchange(&self, lane: usize, command: &Cmd) -> RedisResult<Value> {
        let shared = &self.permit.shared;
        let lane = &self.link.lanes[lane];
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        }
        let start = shared.now();
        lane.sent(start);
        let mut connection = lane.connection.clone();
        // Also bounds the wait for a place in the connection's queue.
        connection.set_response_timeout(left);
        let reply = command.query_async(&mut connection).await;
        match &reply {
            Err(error) if error.is_timeout() => {
                if lane.timed_out(start, shared.now()) {
                    shared.drop_link(&self.link, "three calls in a row had no answer");
                }
            }
            Err(error) if error::fault(error) == Fault::Connection => {}
            _ => lane.answered(shared.now()),
        }
        reply
    }

    fn settle(self, reply: RedisResult<Value>) -> Result<Value> {
        let error = match reply {
            Ok(value) => {
                self.permit.succeeded();
                return Ok(value);
            }
            Err(error) => error,
        };
        let cause = error::explain(&error, self.budget);
        match error::fault(&error) {
            Fault::Call => self.permit.succeeded(),
            Fault::Server | Fault::Silence => self.permit.failed(&cause),
            Fault::Connection => {
                self.permit.shared.drop_link(&self.link, cause.message());
                self.permit.failed(&cause);
            }
        }
        Err(cause.into())
    }
}

impl Shared {
    /// Milliseconds since the lanes were made, from 1 on.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A link that is believed to work.
    async fn link(
        self: &Arc<Self>,
        deadline: Instant,
        budget: Duration,
        class: Class,
    ) -> Result<Arc<Link>, Cause> {
        // A statement of its own: the lock must not be held while waiting below.
        let ready = self.ready(&self.read(), class);
        let link = match ready {
            Some(link) => link,
            None => self.make(deadline, budget, class).await?,
        };
        self.renew_secret(&link);
        Ok(link)
    }

    fn ready(&self, state: &State, class: Class) -> Option<Arc<Link>> {
        let link = state.link.as_ref()?;
        // Decisions never take the large lane, the last one, and need not wait for its `PING`.
        let concerned = match class {
            Class::Decision => &link.lanes[..link.lanes.len() - 1],
            Class::Entry => &link.lanes[..],
        };
        let (now, idle) = (self.now(), self.settings.idle.as_millis() as u64);
        let doubtful = concerned.iter().any(|lane| lane.is_doubtful(now, idle));
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
            if let Some(link) = self.ready(&state, class) {
                return Ok(link);
            }
            match &state.work {
                Some(work) => work.clone(),
                None => {
                    let (report, made) = watch::channel(None);
                    state.work = Some(made.clone());
                    let work = Work { shared: self.clone() };
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

    /// Makes the connections of a link, all at once.
    async fn dial(self: &Arc<Self>) -> Result<(Secret, Arc<[Lane]>), Cause> {
        let started = Instant::now();
        let mut dials = JoinSet::new();
        for _ in 0..=self.settings.small_lanes {
            let shared = self.clone();
            dials.spawn(async move {
                let mut connection = shared.pool.dedicated_connection().await?;
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
            Lane::new(connection, if is_small { decision } else { entry }, now)
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

    fn install(&self, secret: &Secret, lanes: Arc<[Lane]>) -> Arc<Link> {
        let mut state = self.write();
        state.epoch += 1;
        let link = Arc::new(Link {
            epoch: state.epoch,
            hash_key: secret.hash_key(),
            secret_read: self.now().into(),
            lanes,
        });
        state.link = Some(link.clone());
        link
    }

    /// Once a minute of use, in the background: a store that forgot the secret gets it back, and a
    /// secret that others have agreed on meanwhile is taken over.
    fn renew_secret(self: &Arc<Self>, link: &Arc<Link>) {
        if self.settings.secret.is_some() {
            return;
        }
        let (now, read) = (self.now(), link.secret_read.load(Ordering::Relaxed));
        let due = now.saturating_sub(read) > RENEWAL;
        if !due
            || link
                .secret_read
                .compare_exchange(read, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        let (shared, link) = (self.clone(), link.clone());
        tokio::spawn(async move { shared.reread_secret(&link).await });
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
        if secret.hash_key() != link.hash_key && self.is_current(link) {
            // Fences were taken under other names of the tags: a new epoch refuses them.
            self.install(&secret, link.lanes.clone());
        }
    }

    fn is_current(&self, link: &Link) -> bool {
        self.read().link.as_ref().is_some_and(|now| Arc::ptr_eq(&now.lanes, &link.lanes))
    }

    /// Gives a link up, if its connections are still the present ones. Calls that are under way on
    /// it go on.
    fn drop_link(&self, link: &Link, reason: &str) {
        let mut state = self.write();
        if state.link.as_ref().is_some_and(|now| Arc::ptr_eq(&now.lanes, &link.lanes)) {
            state.link = None;
            drop(state);
            events::lane_dropped(reason);
        }
    }

    fn drop_any_link(&self, reason: &str) {
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
    shared: Arc<Shared>,
}

impl Work {
    async fn run(self, present: Option<Arc<Link>>, report: watch::Sender<Option<Made>>) {
        let made = self.check_or_dial(present).await;
        // First the state, then the report: who comes between finds the link, or dials anew.
        drop(self);
        report.send_replace(Some(made));
    }

    async fn check_or_dial(&self, present: Option<Arc<Link>>) -> Made {
        let shared = &self.shared;
        if let Some(link) = present {
            if self.is_alive(&link).await {
                return Ok(link);
            }
            shared.drop_link(&link, "it did not answer after a pause");
        }
        match timeout(shared.settings.connect, shared.dial()).await {
            Ok(Ok((secret, lanes))) => {
                let link = shared.install(&secret, lanes);
                if link.epoch > 1 {
                    events::lane_replaced(link.epoch);
                }
                Ok(link)
            }
            Ok(Err(cause)) => Err(cause),
            Err(_) => Err(Cause::new(
                ErrorKind::Unavailable,
                format!("no connection to redis within {:?}", shared.settings.connect),
            )),
        }
    }

    async fn is_alive(&self, link: &Link) -> bool {
        let shared = &self.shared;
        let idle = shared.settings.idle.as_millis() as u64;
        for lane in link.lanes.iter() {
            if lane.is_doubtful(shared.now(), idle) {
                if !lane.answers().await {
                    return false;
                }
                lane.answered(shared.now());
            }
        }
        true
    }
}

impl Drop for Work {
    /// Also when the runtime drops the task or it panics: the next caller starts another.
    fn drop(&mut self) {
        self.shared.write().work = None;
    }
}
