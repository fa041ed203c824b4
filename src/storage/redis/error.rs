//! What went wrong, in the storage's terms.
//!
//! A server may quote the arguments of a command in its error (`unknown command .. with args
//! beginning with`), so its text is shown only where that cannot be.

use std::{sync::Arc, time::Duration};

use redis::{RedisError, ServerErrorKind};

use crate::storage::{Error, ErrorKind};

/// An error that many callers share.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    kind: ErrorKind,
    message: Arc<str>,
}

impl Cause {
    pub(super) fn new(kind: ErrorKind, message: impl Into<Arc<str>>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(super) fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// What callers are told while the outage lasts that this began.
    pub(super) fn during_outage(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("redis is not asked until a probe succeeds; last failure: {}", self.message),
        )
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Self::new(cause.kind, &*cause.message)
    }
}

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody's but the call's: a server in good health said no.
    Call,
    /// The server's, for now.
    Server,
    /// Unknown: there was no answer in time.
    Silence,
    /// The connection's, or that of the server at its other end: take another.
    Connection,
}

pub(super) fn fault(error: &RedisError) -> Fault {
    use ServerErrorKind as S;
    if error.is_timeout() {
        return Fault::Silence;
    }
    if let Some(raised) = raised_in_script(error) {
        return fault(&raised);
    }
    match error.kind() {
        redis::ErrorKind::Server(S::ReadOnly | S::MasterDown) => Fault::Connection,
        redis::ErrorKind::Server(S::BusyLoading | S::ClusterDown | S::TryAgain) => Fault::Server,
        redis::ErrorKind::Extension => match error.code() {
            Some("BUSY") => Fault::Server,
            Some("NOAUTH" | "WRONGPASS") => Fault::Connection,
            _ => Fault::Call,
        },
        redis::ErrorKind::Io => Fault::Connection,
        _ if error.is_unrecoverable_error() => Fault::Connection,
        _ => Fault::Call,
    }
}

/// Says what happened and what to do about it.
pub(super) fn explain(error: &RedisError, waited: Duration) -> Cause {
    use redis::ErrorKind as K;
    if error.is_timeout() {
        return timeout(waited);
    }
    if let Some(raised) = raised_in_script(error) {
        return explain(&raised, waited);
    }
    let (kind, message) = match error.kind() {
        K::Server(server) => return explain_server(server, error),
        K::Extension => return explain_code(error),
        K::AuthenticationFailed => (ErrorKind::Configuration, REFUSED),
        K::InvalidClientConfig => {
            (ErrorKind::Configuration, "the redis client cannot work with this set-up")
        }
        K::Parse => (
            ErrorKind::Unavailable,
            "the peer's answer is not the redis protocol; check host, port and whether TLS is expected",
        ),
        K::Io => {
            // The operating system's or the TLS library's words: neither sees a key or password.
            let text = error.to_string();
            let kind = if text.contains("invalid peer certificate") {
                ErrorKind::Configuration
            } else {
                ErrorKind::Unavailable
            };
            return Cause::new(kind, format!("no connection to redis: {text}"));
        }
        K::RESP3NotSupported => (
            ErrorKind::Configuration,
            "the server does not speak RESP3; drop `protocol` from the URL",
        ),
        _ => (ErrorKind::Other, "the redis client failed"),
    };
    Cause::new(kind, message)
}

/// The error of a command within a script. Redis 6.2 wraps it, code and all, in an `ERR`:
/// `Error running script (call to f_..): @user_script:1: -READONLY ..`; from 7.0 on it comes bare.
fn raised_in_script(error: &RedisError) -> Option<RedisError> {
    let detail = error.detail().filter(|text| text.starts_with("Error running script"))?;
    let (_, raised) = detail.rsplit_once("@user_script:")?;
    let (_, raised) = raised.split_once(": ")?;
    let raised = raised.trim_start_matches('-');
    let code = raised.split(' ').next().unwrap_or_default();
    if code.is_empty() || code == "ERR" || !code.bytes().all(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let line = format!("-{raised}\r\n");
    redis::parse_redis_value(line.as_bytes()).ok()?.extract_error().err()
}

const REFUSED: &str = "redis refused the user name or password; check them in the URL";
const NO_PASSWORD: &str =
    "redis wants a password: write it into the URL as redis://:password@host:port";

fn explain_server(server: ServerErrorKind, error: &RedisError) -> Cause {
    use ServerErrorKind as S;
    let (kind, message) = match server {
        S::BusyLoading => (ErrorKind::Unavailable, "redis is still loading its data set"),
        S::ReadOnly => (
            ErrorKind::Unavailable,
            "redis is a read-only replica here; the address must lead to the master",
        ),
        S::MasterDown => {
            (ErrorKind::Unavailable, "redis is a replica here and has lost its master")
        }
        S::NoPerm => (
            ErrorKind::Configuration,
            "the redis user lacks a permission; it needs ~<prefix>:* and +@read +@write +@scripting +ping +time",
        ),
        S::Moved | S::Ask | S::CrossSlot => (
            ErrorKind::Configuration,
            "this redis is a node of a cluster, which is not supported; give a standalone server",
        ),
        S::ClusterDown | S::TryAgain => (ErrorKind::Unavailable, "the redis cluster is not ready"),
        S::ResponseError => return explain_response(error),
        _ => return explain_code(error),
    };
    Cause::new(kind, message)
}

/// The many errors that have no code of their own.
fn explain_response(error: &RedisError) -> Cause {
    let text = error.to_string();
    let detail = error.detail().unwrap_or_default();
    if text.contains("refused to switch database") || text.contains("DB index is out of range") {
        let message = "redis has no such database; check the number at the end of the URL";
        Cause::new(ErrorKind::Configuration, message)
    } else if detail.contains("max number of clients") {
        Cause::new(ErrorKind::Unavailable, "redis has no connection left (`maxclients`)")
    } else if detail.contains("unknown command") {
        let message = "redis lacks a command; version 6.2 with scripting is required";
        Cause::new(ErrorKind::Configuration, message)
    } else if detail.contains("user_script") {
        Cause::new(ErrorKind::Other, format!("a script failed in redis: {detail}"))
    } else {
        Cause::new(ErrorKind::Other, "redis answered ERR")
    }
}

fn explain_code(error: &RedisError) -> Cause {
    let code = error.code().unwrap_or("an error without a code");
    let (kind, message) = match code {
        "WRONGTYPE" => (
            ErrorKind::Corrupt,
            "a key of ours holds another type; something else writes under the prefix",
        ),
        "OOM" => (
            ErrorKind::Full,
            "redis is out of memory (`maxmemory`); give it more, or caches a server of their own",
        ),
        "NOAUTH" => (ErrorKind::Configuration, NO_PASSWORD),
        "WRONGPASS" => (ErrorKind::Configuration, REFUSED),
        "BUSY" => (ErrorKind::Unavailable, "redis is held up by a long script; try `SCRIPT KILL`"),
        "MISCONF" => {
            (ErrorKind::Unavailable, "redis cannot save its data set and refuses to write")
        }
        "NOREPLICAS" => {
            (ErrorKind::Unavailable, "redis has too few replicas left and refuses to write")
        }
        code => return Cause::new(ErrorKind::Other, format!("redis answered {code}")),
    };
    Cause::new(kind, message)
}

pub(super) fn timeout(waited: Duration) -> Cause {
    Cause::new(ErrorKind::Timeout, format!("redis gave no answer within {waited:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(line: &str) -> RedisError {
        redis::parse_redis_value(line.as_bytes()).unwrap().extract_error().unwrap_err()
    }

    #[test]
    fn answers_of_a_healthy_server_are_the_calls_own_fault() {
        let wait = Duration::from_millis(100);
        for (line, kind, whose) in [
            ("-WRONGTYPE bad\r\n", ErrorKind::Corrupt, Fault::Call),
            ("-NOPERM no\r\n", ErrorKind::Configuration, Fault::Call),
            ("-OOM full\r\n", ErrorKind::Full, Fault::Call),
            ("-ERR oops\r\n", ErrorKind::Other, Fault::Call),
            ("-MISCONF rdb\r\n", ErrorKind::Unavailable, Fault::Call),
            ("-ERR DB index is out of range\r\n", ErrorKind::Configuration, Fault::Call),
            ("-LOADING wait\r\n", ErrorKind::Unavailable, Fault::Server),
            ("-BUSY script\r\n", ErrorKind::Unavailable, Fault::Server),
            ("-READONLY replica\r\n", ErrorKind::Unavailable, Fault::Connection),
            ("-MASTERDOWN gone\r\n", ErrorKind::Unavailable, Fault::Connection),
            ("-NOAUTH who\r\n", ErrorKind::Configuration, Fault::Connection),
            ("-WRONGPASS no\r\n", ErrorKind::Configuration, Fault::Connection),
        ] {
            let error = answered(line);
            assert_eq!(explain(&error, wait).kind(), kind, "{line}");
            assert_eq!(fault(&error), whose, "{line}");
        }
    }

    #[test]
    fn what_redis_6_wraps_in_an_error_of_the_script_is_told_apart() {
        let wait = Duration::from_millis(100);
        for (raised, kind, whose) in [
            ("1: -READONLY You can't write against a replica.", ErrorKind::Unavailable, "link"),
            ("1: @user_script: 1: -READONLY You can't write.", ErrorKind::Unavailable, "link"),
            ("138: WRONGTYPE Operation against a key", ErrorKind::Corrupt, "call"),
            ("3: @user_script: 3: -OOM command not allowed", ErrorKind::Full, "call"),
            ("3: -MISCONF Redis is configured to save", ErrorKind::Unavailable, "call"),
            ("3: ERR invalid expire time in set", ErrorKind::Other, "call"),
            ("3: attempt to index a nil value", ErrorKind::Other, "call"),
            ("3: ", ErrorKind::Other, "call"),
            ("3", ErrorKind::Other, "call"),
        ] {
            let line =
                format!("-ERR Error running script (call to f_e0e1): @user_script:{raised}\r\n");
            let error = answered(&line);
            assert_eq!(explain(&error, wait).kind(), kind, "{line}");
            let fault_of = if whose == "link" { Fault::Connection } else { Fault::Call };
            assert_eq!(fault(&error), fault_of, "{line}");
        }
    }

    #[test]
    fn arguments_that_a_server_quotes_are_not_repeated() {
        let error = answered("-ERR unknown command 'X', with args beginning with: 'secret'\r\n");
        let cause = explain(&error, Duration::ZERO);
        assert!(!cause.message().contains("secret"), "{}", cause.message());
    }

    #[test]
    fn io_errors_are_the_connections_fault_and_timeouts_nobodys() {
        let refused = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(fault(&refused), Fault::Connection);
        assert_eq!(explain(&refused, Duration::ZERO).kind(), ErrorKind::Unavailable);
        let late = RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        assert_eq!(fault(&late), Fault::Silence);
        assert_eq!(explain(&late, Duration::ZERO).kind(), ErrorKind::Timeout);
    }
}
