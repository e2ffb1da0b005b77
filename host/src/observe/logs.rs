//! The process's own log, on standard error: standard output belongs to data.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::ConfigError;
use crate::config::LogFormat;

/// Starts logging. `level` is a word for this program (its libraries then only warn), or a whole filter.
///
/// A second call does nothing: tests start many nodes in one process.
pub fn init_logs(level: &str, format: LogFormat) -> Result<(), ConfigError> {
    let filter = filter(level)?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter, ConfigError> {
    let words = ["off", "error", "warn", "info", "debug", "trace"];
    let level = level.trim().to_ascii_lowercase();
    let directives = match words.contains(&level.as_str()) {
        true if ["off", "error"].contains(&level.as_str()) => level.clone(),
        // openraft warns of what is ordinary here: elections, peers that are not up yet. What an operator must know of
        // these, the group tells itself.
        true => format!("warn,openraft=error,statehouse={level}"),
        false if level.contains('=') => level.clone(),
        false => String::new(),
    };
    EnvFilter::builder().parse(&directives).ok().filter(|_| !directives.is_empty()).ok_or_else(|| {
        ConfigError::Refused {
            detail: format!("--log-level {level:?} is neither a level nor a filter"),
            remedy: "give error, warn, info, debug or trace, or a filter such as info,statehouse::log=debug".into(),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn a_level_is_for_this_program_and_a_filter_is_taken_as_it_is() {
        assert_eq!(filter("info").unwrap().to_string(), "statehouse=info,openraft=error,warn");
        assert_eq!(filter("OFF").unwrap().to_string(), "off");
        assert_eq!(filter("warn,statehouse::log=debug").unwrap().to_string(), "statehouse::log=debug,warn");
        for bad in ["", "loud", "statehouse=loud"] {
            assert!(filter(bad).unwrap_err().to_string().contains("--log-level"), "{bad}");
        }
    }
}
