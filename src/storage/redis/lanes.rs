//! The few long-lived connections over which everything runs.
//!
//! A pool's guard around each command costs most of the throughput (a `PING` and a wait per
//! command), and a stock pool, client or connection manager stays on a connection whose peer has
//! gone silent. So a bb8 pool only *makes* connections here. Commands share a [`Link`]: one or a
//! few multiplexed connections for small commands and one for large bodies, made together and
//! given up together, so that they lead to one server and have one epoch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bb8_redis::{RedisConnectionManager, bb8};
use redis::{
    Cmd, ErrorKind as RedisKind, Pipeline, RedisResult, ServerErrorKind, Value,
    aio::MultiplexedConnection, cmd,
};
use tokio::{sync::watch, time::Instant};

use super::{
    breaker::{Admission, Breaker},
    call::Call,
    error::{self, Cause, Fault},
    events,
    link::{Link, Links},
    secret::Secret,
};
use crate::storage::{ErrorKind, HashKey, Name, Result};

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
    links: Arc<Links>,
    breaker: Breaker,
    turn: AtomicUsize,
}

impl Lanes {
    pub(super) fn new(pool: bb8::Pool<RedisConnectionManager>, settings: Settings) -> Self {
        Self {
            shared: Arc::new(Shared {
                links: Arc::new(Links::new(pool, settings)),
                breaker: Breaker::default(),
                turn: AtomicUsize::new(0),
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
        let now = Instant::now();
        let deadline = now + shared.links.settings().connect * 2;
        match shared
            .links
            .current(now, deadline, shared.links.settings().connect, Class::Entry)
            .await
        {
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
            Class::Decision => self.shared.links.settings().decision,
            Class::Entry => self.shared.links.settings().entry,
        };
        let permit = Permit::admitted(&self.shared, now)?;
        let deadline = now + budget;
        match self.shared.links.current(now, deadline, budget, class).await {
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
        let reply = ticket.exchange(lane, Message::One(&cmd("PING"))).await;
        ticket.settle(reply).map(|(_, ticket)| ticket.finish())
    }

    /// Sends commands each of which may be refused, and returns what came back of each. None holds
    /// up a decision.
    pub(super) async fn ask_each(&self, commands: &Pipeline) -> Result<Vec<Value>> {
        let ticket = self.enter(Class::Entry).await?;
        let lane = ticket.lane(true);
        let reply = ticket.exchange(lane, Message::Each(commands)).await;
        let (replies, ticket) = ticket.settle(reply)?;
        ticket.finish();
        match replies {
            Value::Array(replies) => Ok(replies),
            _ => Ok(Vec::new()),
        }
    }

    /// Counts the links, from 1 on.
    #[cfg_attr(not(feature = "idempotency"), allow(dead_code))]
    pub(super) fn connected(&self) -> watch::Receiver<u64> {
        self.shared.links.epochs()
    }

    #[cfg(test)]
    pub(super) fn links(&self) -> &Links {
        &self.shared.links
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
            self.shared.links.drop_any_link("it failed during an outage");
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

/// What an operation wants to know.
#[derive(Clone, Copy)]
enum Ask<'a> {
    Script(&'a Call),
    Reads(&'a Pipeline, bool),
}

/// What goes over a lane in one piece.
#[derive(Clone, Copy)]
enum Message<'a> {
    One(&'a Cmd),
    Several(&'a Pipeline),
    /// Errors are replies like others.
    Each(&'a Pipeline),
}

async fn several(
    commands: &Pipeline,
    connection: &mut MultiplexedConnection,
) -> RedisResult<Value> {
    let mut replies = connection.send_packed_commands(commands, 0, commands.len()).await?;
    if let Some(last @ Value::ServerError(_)) = replies.last_mut() {
        *last = Value::Nil;
    }
    match replies.iter().position(|reply| matches!(reply, Value::ServerError(_))) {
        Some(failed) => replies.swap_remove(failed).extract_error(),
        None => Ok(Value::Array(replies)),
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
    pub(super) async fn run(self, call: &Call) -> Result<Value> {
        let (reply, ticket) = self.send(Ask::Script(call)).await?;
        ticket.finish();
        Ok(reply)
    }

    /// Sends commands that write nothing, in one piece, and returns an array of their replies. If
    /// these are not enough, the ticket runs a script within the same deadline; if they are, it
    /// wants to be [finished](Self::finish). An error of the last command counts as no reply to it.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub(super) async fn read(self, commands: &Pipeline, large: bool) -> Result<(Value, Self)> {
        self.send(Ask::Reads(commands, large)).await
    }

    /// The server has answered, and nothing more is asked of it.
    pub(super) fn finish(self) {
        self.permit.succeeded();
    }

    async fn send(mut self, ask: Ask<'_>) -> Result<(Value, Self)> {
        let (repeatable, large) = match ask {
            Ask::Script(call) => (call.repeatable, call.large),
            Ask::Reads(_, large) => (true, large),
        };
        let lane = self.lane(large);
        let mut reply = self.evaluate(lane, ask).await;
        if repeatable && reply.as_ref().is_err_and(|error| error.is_connection_dropped()) {
            self.permit.shared.links.drop_link(&self.link, "it was found closed");
            match self
                .permit
                .shared
                .links
                .current(Instant::now(), self.deadline, self.budget, self.class)
                .await
            {
                Ok(link) if link.hash_key == self.link.hash_key => self.link = link,
                // The call names its keys and tags by another secret: it would find nothing, and a
                // purge would be acknowledged that reached nothing.
                Ok(_) => return self.settle(reply),
                Err(cause) => {
                    self.permit.failed(&cause);
                    return Err(cause.into());
                }
            }
            reply = self.evaluate(lane, ask).await;
        }
        self.settle(reply)
    }

    async fn evaluate(&self, lane: usize, ask: Ask<'_>) -> RedisResult<Value> {
        let call = match ask {
            Ask::Script(call) => call,
            Ask::Reads(commands, _) => {
                return self.exchange(lane, Message::Several(commands)).await;
            }
        };
        match self.exchange(lane, Message::One(&call.by_sha())).await {
            Err(error) if error.kind() == RedisKind::Server(ServerErrorKind::NoScript) => {
                self.exchange(lane, Message::One(&call.by_text())).await
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

    async fn exchange(&self, lane: usize, message: Message<'_>) -> RedisResult<Value> {
        let shared = &self.permit.shared;
        let lane = &self.link.lanes[lane];
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        }
        let start = shared.links.millis(now);
        lane.health.sent(start);
        let mut connection = lane.connection.clone();
        // Also bounds the wait for a place in the connection's queue.
        connection.set_response_timeout(left);
        let reply = match message {
            Message::One(command) => command.query_async(&mut connection).await,
            Message::Several(commands) => several(commands, &mut connection).await,
            Message::Each(commands) => {
                let replies = connection.send_packed_commands(commands, 0, commands.len()).await;
                replies.map(Value::Array)
            }
        };
        match &reply {
            Err(error) if error.is_timeout() => {
                if lane.health.timed_out(start, shared.links.now()) {
                    shared.links.drop_link(&self.link, "three calls in a row had no answer");
                }
            }
            Err(error) if error::fault(error) == Fault::Connection => {}
            _ => lane.health.answered(shared.links.now()),
        }
        reply
    }

    fn settle(self, reply: RedisResult<Value>) -> Result<(Value, Self)> {
        let error = match reply {
            Ok(value) => return Ok((value, self)),
            Err(error) => error,
        };
        let cause = error::explain(&error, self.budget);
        match error::fault(&error) {
            Fault::Call => self.permit.succeeded(),
            Fault::Server | Fault::Silence => self.permit.failed(&cause),
            Fault::Connection => {
                self.permit.shared.links.drop_link(&self.link, cause.message());
                self.permit.failed(&cause);
            }
        }
        Err(cause.into())
    }
}
