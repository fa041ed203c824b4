//! Whether the server is set up to keep what it is given.
//!
//! Managed services forbid `CONFIG` and sometimes `INFO`. What a server does not tell is no finding,
//! so each fact is taken from either.

use std::{
    fmt,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use redis::{Pipeline, Value};
use tokio::{runtime::Handle, sync::watch, time::sleep};

use super::{Inner, RedisStorage, events};
use crate::storage::Result;

/// The pauses after each attempt that was not answered. Fewer attempts than make an outage: the
/// audit alone never begins one.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// No name of a policy is longer.
const LONGEST_POLICY: usize = 40;

/// What about a Redis server loses data that is still wanted; see [`RedisStorage::audit`].
///
/// As text it says what follows from it, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisFinding {
    /// The server evicts keys when its memory is full. All keys here have an expiry, so that
    /// `volatile-*` policies choose among them too.
    Evicts {
        /// The `maxmemory-policy`.
        policy: String,
        /// `maxmemory`, in bytes.
        maxmemory: u64,
    },
    /// The server starts empty after a restart: neither `appendonly` nor a save point is set.
    NotPersistent,
    /// The server is a replica, which refuses to write, or loses what it is given when it next
    /// follows its primary.
    Replica,
}

impl fmt::Display for RedisFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Evicts { policy, maxmemory } => write!(
                f,
                "redis evicts live keys once {maxmemory} bytes are used (maxmemory-policy \
                 {policy}): a lost claim lets a request run twice, a lost counter starts at zero, a \
                 lost session is a logout; set maxmemory-policy noeviction, and give caches a \
                 server of their own"
            ),
            Self::NotPersistent => f.write_str(
                "redis keeps nothing over a restart, neither appendonly nor a save point is set: \
                 requests that ran before it can run again; set appendonly yes",
            ),
            Self::Replica => f.write_str(
                "redis is a replica here: give the address of the primary, or one that follows it",
            ),
        }
    }
}

/// What the server tells of itself. `None`: nothing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Facts {
    maxmemory: Option<u64>,
    policy: Option<String>,
    appends: Option<bool>,
    saves: Option<bool>,
    is_replica: Option<bool>,
}

impl Facts {
    /// Learns a field of `INFO`, or a parameter of `CONFIG`.
    fn learn(&mut self, name: &str, value: &str) {
        match name {
            "maxmemory" => self.maxmemory = value.parse().ok().or(self.maxmemory),
            "maxmemory_policy" | "maxmemory-policy" if is_policy(value) => {
                self.policy = Some(value.to_owned());
            }
            "aof_enabled" | "appendonly" => match value {
                "1" | "yes" => self.appends = Some(true),
                "0" | "no" => self.appends = Some(false),
                _ => {}
            },
            "save" => self.saves = Some(!value.is_empty()),
            "role" => self.is_replica = Some(matches!(value, "slave" | "replica")),
            _ => {}
        }
    }

    fn learn_from(&mut self, reply: &Value) {
        match reply {
            Value::Map(pairs) => pairs.iter().for_each(|(name, value)| self.pair(name, value)),
            Value::Array(items) => {
                items.as_chunks().0.iter().for_each(|[name, value]| self.pair(name, value));
            }
            info => {
                let lines = text(info).unwrap_or_default().lines();
                let fields = lines.filter_map(|line| line.trim_end().split_once(':'));
                fields.for_each(|(name, value)| self.learn(name, value));
            }
        }
    }

    fn pair(&mut self, name: &Value, value: &Value) {
        if let (Some(name), Some(value)) = (text(name), text(value)) {
            self.learn(name, value);
        }
    }

    fn findings(self) -> Vec<RedisFinding> {
        let mut findings = Vec::new();
        if let (Some(policy), Some(maxmemory @ 1..)) = (self.policy, self.maxmemory)
            && policy != "noeviction"
        {
            findings.push(RedisFinding::Evicts { policy, maxmemory });
        }
        if (self.appends, self.saves) == (Some(false), Some(false)) {
            findings.push(RedisFinding::NotPersistent);
        }
        if self.is_replica == Some(true) {
            findings.push(RedisFinding::Replica);
        }
        findings
    }
}

/// A server's words end up in logs: nothing else than a name passes.
fn is_policy(text: &str) -> bool {
    let in_names = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    (1..=LONGEST_POLICY).contains(&text.len()) && text.bytes().all(in_names)
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

/// One parameter at a time: several in one command are younger than Redis 6.2.
fn questions() -> Pipeline {
    let mut questions = Pipeline::new();
    questions.cmd("INFO");
    for parameter in ["maxmemory", "maxmemory-policy", "appendonly", "save"] {
        questions.cmd("CONFIG").arg("GET").arg(parameter);
    }
    questions
}

impl RedisStorage {
    /// Asks the server whether it is set up to keep what it is given, within the deadline of an
    /// entry: for a start-up check, or a test of an installation.
    ///
    /// It is found out by `INFO` and `CONFIG GET`, which an ACL user needs `+info +config|get` for.
    /// A server that does not let itself be asked, as of many managed services, gives no finding.
    /// An idempotency layer asks by itself once a storage is connected, and logs what it finds (with
    /// the feature `tracing`).
    ///
    /// # Errors
    ///
    /// If the server gives no answer. Not if it forbids the question.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(storage: tower_keep::RedisStorage) -> tower_keep::storage::Result<()> {
    /// for finding in storage.audit().await? {
    ///     eprintln!("{finding}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn audit(&self) -> Result<Vec<RedisFinding>> {
        let mut facts = Facts::default();
        for reply in self.inner.lanes.ask_each(&questions()).await? {
            facts.learn_from(&reply);
        }
        Ok(facts.findings())
    }

    /// Audits the server once it is connected, and logs what is found; only the first time that
    /// this is asked of a storage, and only within a Tokio runtime.
    #[cfg_attr(not(feature = "idempotency"), allow(dead_code))]
    pub(crate) fn audit_once(&self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if cfg!(feature = "tracing") && !self.inner.audited.swap(true, Relaxed) {
            // Weakly: a storage that goes before it was connected is not waited for.
            let storage = Arc::downgrade(&self.inner);
            runtime.spawn(audit_when_connected(storage, self.inner.lanes.connected()));
        }
    }
}

async fn audit_when_connected(storage: Weak<Inner>, mut epochs: watch::Receiver<u64>) {
    if epochs.wait_for(|epoch| *epoch > 0).await.is_err() {
        return;
    }
    drop(epochs);
    for pause in PAUSES {
        let Some(inner) = storage.upgrade() else { return };
        // Nobody asked for it, so a failure is not worth a word.
        if let Ok(findings) = (RedisStorage { inner }).audit().await {
            findings.iter().for_each(events::found);
            return;
        }
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests;
