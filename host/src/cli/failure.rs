//! How a verb fails, and the process's exit code.

use std::fmt;
use std::process::ExitCode;

use crate::api::problem::Problem;
use crate::config::ConfigError;
use crate::service::ErrorCode;

/// Why a verb failed. Each kind has its own exit code, documented in `docs/cli.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server said no, or something on this machine did: exit code 1.
    Refused {
        /// What happened.
        what: String,
        /// The stable code, where there is one.
        code: Option<String>,
        /// What to do.
        remedy: String,
    },
    /// The command line makes no sense: exit code 2.
    Usage {
        /// What is wrong with it.
        what: String,
        /// What to write instead.
        remedy: String,
    },
    /// No server was reached, and nothing was done: exit code 3.
    Unreachable {
        /// Which servers, and why not.
        what: String,
    },
    /// The command may or may not have taken effect: exit code 4.
    OutcomeUnknown {
        /// What happened.
        what: String,
        /// How to find out.
        remedy: String,
    },
    /// This node belongs to its cluster no more: exit code 5, so that whoever started it does not start it again.
    Removed {
        /// What happened.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// What was looked at is damaged; what can be read of it was told: exit code 6.
    Damaged {
        /// What is damaged.
        what: String,
        /// What to do.
        remedy: String,
    },
}

impl Failure {
    /// Something on this machine is in the way.
    pub fn here(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), code: None, remedy: remedy.into() }
    }

    /// Files that were looked at are damaged.
    pub fn damaged(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Damaged { what: what.into(), remedy: remedy.into() }
    }

    /// The command line makes no sense.
    pub fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), remedy: remedy.into() }
    }

    /// The exit code's number.
    pub fn code(&self) -> u8 {
        match self {
            Self::Refused { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Unreachable { .. } => 3,
            Self::OutcomeUnknown { .. } => 4,
            Self::Removed { .. } => 5,
            Self::Damaged { .. } => 6,
        }
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        ExitCode::from(failure.code())
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        if problem.code == ErrorCode::OutcomeUnknown.as_str() {
            return Self::OutcomeUnknown { what: problem.detail, remedy: problem.remedy };
        }
        let code = match problem.reason {
            Some(reason) => format!("{}, {reason}", problem.code),
            None => problem.code,
        };
        Self::Refused { what: problem.detail, code: Some(code), remedy: problem.remedy }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string(), error.remedy())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { what, code: Some(code), remedy } => write!(f, "error: {what} ({code})\n  try: {remedy}"),
            Self::Refused { what, code: None, remedy }
            | Self::Usage { what, remedy }
            | Self::Removed { what, remedy }
            | Self::Damaged { what, remedy } => {
                write!(f, "error: {what}\n  try: {remedy}")
            }
            Self::Unreachable { what } => {
                write!(
                    f,
                    "error: {what}\n  try: start a server with `statehouse serve`, or name one that runs with --server or STATEHOUSE_SERVER"
                )
            }
            Self::OutcomeUnknown { what, remedy } => write!(f, "error: {what} (outcome_unknown)\n  try: {remedy}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn a_problem_becomes_two_lines_and_an_exit_code() {
        let failure = Failure::from(*Problem::new(ErrorCode::GroupNotFound, "no group \"c9\""));
        assert_eq!(
            failure.to_string(),
            "error: no group \"c9\" (group_not_found)\n  try: `statehouse group ls` lists the groups"
        );
        assert_eq!(failure.code(), 1);
        let unknown = Failure::from(*Problem::new(ErrorCode::OutcomeUnknown, "the leader is gone"));
        assert_eq!(unknown.code(), 4);
        let trapped = Problem { reason: Some("out_of_fuel".into()), ..*Problem::new(ErrorCode::Trapped, "it looped") };
        assert!(Failure::from(trapped).to_string().starts_with("error: it looped (trapped, out_of_fuel)\n"));
    }
}
