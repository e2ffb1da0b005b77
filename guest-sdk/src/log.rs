//! Lines in the node's log.
//!
//! Logging is not state and not an answer: the host may drop or limit the lines, and each replica
//! writes its own. The text is formatted (and its fuel spent) whether or not anybody reads it.

use std::fmt;

/// How much a line matters; the numbers are the ABI's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// Something is broken.
    Error = 1,
    /// Something is odd.
    Warn = 2,
    /// Something worth knowing happened.
    Info = 3,
    /// For whoever debugs the module.
    Debug = 4,
}

/// Writes one line; the macros [`error!`](crate::error!), [`warn!`](crate::warn!),
/// [`info!`](crate::info!) and [`debug!`](crate::debug!) are the usual way here. In a native test
/// it goes to standard error.
pub fn log(level: Level, text: fmt::Arguments<'_>) {
    #[cfg(target_arch = "wasm32")]
    crate::wasm::log(level, text);
    #[cfg(not(target_arch = "wasm32"))]
    if !crate::testing::is_muted() {
        eprintln!("{level:?}: {text}");
    }
}

/// Logs that something is broken.
#[macro_export]
macro_rules! error {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Error, ::core::format_args!($($text)+)) };
}

/// Logs that something is odd.
#[macro_export]
macro_rules! warn {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Warn, ::core::format_args!($($text)+)) };
}

/// Logs that something worth knowing happened.
#[macro_export]
macro_rules! info {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Info, ::core::format_args!($($text)+)) };
}

/// Logs for whoever debugs the module.
#[macro_export]
macro_rules! debug {
    ($($text:tt)+) => { $crate::log::log($crate::log::Level::Debug, ::core::format_args!($($text)+)) };
}
