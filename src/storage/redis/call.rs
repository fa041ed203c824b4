//! What goes over a lane: one script with its keys and arguments.

use redis::Cmd;

/// A Lua script and the SHA-1 by which a server that has it finds it.
pub(super) struct Script {
    text: String,
    sha: String,
}

impl Script {
    /// A script of several parts, such as shared functions and a body, in this order.
    pub(super) fn new(parts: &[&str]) -> Self {
        let text = parts.concat();
        let sha = redis::Script::new(&text).get_hash().to_owned();
        Self { text, sha }
    }
}

/// One use of a script.
pub(super) struct Call {
    pub(super) script: &'static Script,
    /// Every key that the script touches (a cluster finds the node by them).
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) args: Vec<Vec<u8>>,
    /// The script may run twice to the same effect as once: a pure read.
    pub(super) repeatable: bool,
    /// The call or its reply carries a body large enough to hold up decisions behind it.
    pub(super) large: bool,
}

impl Call {
    /// By name, for a server that knows the script.
    pub(super) fn by_sha(&self) -> Cmd {
        self.command("EVALSHA", &self.script.sha)
    }

    /// With the text, which a server that did not know the script remembers.
    pub(super) fn by_text(&self) -> Cmd {
        self.command("EVAL", &self.script.text)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let size: usize = self.keys.iter().chain(&self.args).map(Vec::len).sum();
        // Command, script and number of keys come first.
        let count = 3 + self.keys.len() + self.args.len();
        let mut command = Cmd::with_capacity(count, name.len() + script.len() + 20 + size);
        command.arg(name).arg(script).arg(self.keys.len());
        for part in self.keys.iter().chain(&self.args) {
            command.arg(part.as_slice());
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_lists_its_keys_before_its_arguments() {
        let script: &'static Script = Box::leak(Box::new(Script::new(&["return ", "1"])));
        let call = Call {
            script,
            keys: vec![b"k".to_vec()],
            args: vec![b"a".to_vec(), vec![]],
            repeatable: false,
            large: false,
        };
        assert_eq!(
            call.by_text().get_packed_command(),
            b"*6\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n1\r\n$1\r\nk\r\n$1\r\na\r\n$0\r\n\r\n"
        );
        // The SHA-1 of "return 1", as `SCRIPT LOAD` gives it.
        assert_eq!(script.sha, "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }
}
