//! The Lua, put together.

use std::sync::LazyLock;

use super::call::Script;

const PRELUDE: &str = include_str!("lua/prelude.lua");
const ENTRY: &str = include_str!("lua/entry.lua");

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts::new(PRELUDE, &["TIME"]));

/// One script for each operation.
pub(super) struct Scripts {
    pub(super) acquire: Script,
    pub(super) get: Script,
    pub(super) put: Script,
    pub(super) delete: Script,
    pub(super) invalidate: Script,
    /// The command that tells the time, where no script is needed.
    pub(super) clock: Vec<String>,
}

impl Scripts {
    fn new(prelude: &str, clock: &[&str]) -> Self {
        Self {
            acquire: Script::new(&[prelude, include_str!("lua/acquire.lua")]),
            get: Script::new(&[prelude, ENTRY, include_str!("lua/get.lua")]),
            put: Script::new(&[prelude, ENTRY, include_str!("lua/put.lua")]),
            delete: Script::new(&[prelude, ENTRY, include_str!("lua/delete.lua")]),
            invalidate: Script::new(&[prelude, ENTRY, include_str!("lua/invalidate.lua")]),
            clock: clock.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    /// The scripts that read the server's clock.
    pub(super) fn on_server_time() -> &'static Self {
        &SCRIPTS
    }

    /// Scripts for tests that turn the clock themselves: the time is what the fields `s` and `us`
    /// of this hash say, and no key expires while a test runs. They are never freed.
    ///
    /// # Panics
    ///
    /// If the name of the hash has other characters than a [`Name`](crate::storage::Name) and `:`.
    #[cfg(any(test, feature = "conformance"))]
    pub(super) fn on_virtual_time(clock_key: &str) -> &'static Self {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        assert!(clock_key.chars().all(plain), "the key is written into the scripts");
        let read = format!("redis.call('HMGET', '{clock_key}', 's', 'us')");
        let prelude = PRELUDE
            .replace("redis.call('TIME')", &read)
            .replace("local LINGER = 0", "local LINGER = 600000");
        assert!(prelude.contains(&read) && prelude.contains("LINGER = 600000"));
        Box::leak(Box::new(Self::new(&prelude, &["HMGET", clock_key, "s", "us"])))
    }
}
