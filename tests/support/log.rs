//! What this process logs, kept for the test to read.
#![allow(dead_code)]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use tracing::{Subscriber, subscriber::DefaultGuard};

#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Keeps everything from now on. Once in a process.
    pub(crate) fn start() -> Self {
        let log = Self::default();
        tracing::subscriber::set_global_default(log.subscriber()).unwrap();
        log
    }

    /// Keeps what this thread logs, until the guard goes.
    pub(crate) fn of_this_thread() -> (Self, DefaultGuard) {
        let log = Self::default();
        let guard = tracing::subscriber::set_default(log.subscriber());
        (log, guard)
    }

    fn subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        let writer = self.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
