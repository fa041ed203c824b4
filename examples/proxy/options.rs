//! What the command line says.

use std::{ffi::OsString, net::SocketAddr, time::Duration};

use http::{
    Uri,
    uri::{Authority, Scheme},
};
use tower_keep::Quota;

pub(crate) const HELP: &str = "\
A caching reverse proxy.

usage: proxy --origin http://HOST[:PORT] [options]

  --origin URL       the server behind the proxy
  --listen ADDRESS   where to listen (127.0.0.1:8006)
  --limit QUOTA      how much each client address may ask for, such as \"100/min\"
  --redis URL        keep state in Redis (in memory)
  --timeout SECONDS  how long the origin may be silent before it answers (30)
  --help             this text
";

#[derive(Debug)]
pub(crate) enum Command {
    Help,
    Run(Options),
}

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    pub(crate) origin: Authority,
    pub(crate) limit: Option<Quota>,
    pub(crate) redis: Option<String>,
    pub(crate) timeout: Duration,
}

/// `Err` is a line for the user.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut args = args.map(|arg| {
        arg.into_string().map_err(|arg| format!("{} is not UTF-8", arg.to_string_lossy()))
    });
    let mut listen = SocketAddr::from(([127, 0, 0, 1], 8006));
    let mut timeout = Duration::from_secs(30);
    let (mut origin, mut limit, mut redis) = (None, None, None);
    while let Some(arg) = args.next() {
        let arg = arg?;
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        if matches!(name, "--help" | "-h") {
            return Ok(Command::Help);
        }
        if !matches!(name, "--listen" | "--origin" | "--limit" | "--redis" | "--timeout") {
            return Err(format!("there is no option {name:?}: see --help"));
        }
        let value = match inline {
            Some(value) => value,
            None => args.next().ok_or_else(|| format!("{name} needs a value: see --help"))??,
        };
        match name {
            "--listen" => {
                listen = value.parse().map_err(|_| {
                    format!("--listen {value:?} is no address: write it as 127.0.0.1:8006")
                })?;
            }
            "--origin" => origin = Some(parse_origin(&value)?),
            "--limit" => {
                let quota = value.parse::<Quota>();
                limit = Some(quota.map_err(|error| format!("--limit cannot be used: {error}"))?);
            }
            "--redis" => redis = Some(value),
            _ => {
                timeout = match value.parse() {
                    Ok(seconds @ 1..=86_400) => Duration::from_secs(seconds),
                    _ => return Err(format!("--timeout {value:?} is no number of seconds")),
                }
            }
        }
    }
    let origin = origin.ok_or("--origin is missing: see --help")?;
    Ok(Command::Run(Options { listen, origin, limit, redis, timeout }))
}

fn parse_origin(value: &str) -> Result<Authority, String> {
    let unusable =
        || format!("--origin {value:?} cannot be used: write it as http://127.0.0.1:8000");
    let uri = value.parse::<Uri>().map_err(|_| unusable())?;
    let authority = uri.authority().ok_or_else(unusable)?;
    let whole = uri.scheme() == Some(&Scheme::HTTP)
        && uri.path_and_query().is_none_or(|path| path.as_str() == "/")
        && !authority.as_str().contains('@')
        && !authority.host().is_empty();
    whole.then(|| authority.clone()).ok_or_else(unusable)
}
