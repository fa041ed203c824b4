//! Macros used across modules.

/// A `tracing` event, where the feature `tracing` is on. Never with keys, cookies, bodies or URLs.
#[allow(unused_macros)] // by some sets of features
macro_rules! event {
    ($level:ident, $($field:tt)+) => {
        #[cfg(feature = "tracing")]
        ::tracing::$level!($($field)+)
    };
}
