//! Macros used across modules.

/// A `tracing` event, where the feature `tracing` is on. Never with keys, cookies, bodies or URLs.
macro_rules! event {
    ($level:ident, $($field:tt)+) => {
        #[cfg(feature = "tracing")]
        ::tracing::$level!($($field)+)
    };
}
