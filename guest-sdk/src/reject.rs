//! The refusal of a call: an ordinary outcome, with a text for the caller.

use std::fmt;

/// Why a call is refused. Its text goes to the caller as it is.
///
/// A rejected command has **changed nothing**: no state, no event, no timer. The host relies on it
/// (it does not roll a rejected call back), and [`Harness`](crate::testing::Harness) checks it. So
/// check first, then change; or panic, which the host does roll back.
///
/// Made by [`reject!`](crate::reject!) and [`ensure!`](crate::ensure!), or from anything that is
/// text, so that `?` and `ok_or` work:
///
/// ```
/// use statehouse_sdk::Reject;
///
/// fn half(n: u64) -> Result<u64, Reject> {
///     if n % 2 == 1 {
///         return Err(statehouse_sdk::reject!("{n} is odd"));
///     }
///     Ok(n / 2)
/// }
/// fn shorter(n: u64) -> Result<u64, Reject> {
///     Ok(n.checked_sub(1).ok_or("nothing is below 0")?)
/// }
/// assert_eq!(half(3).unwrap_err().to_string(), "3 is odd");
/// assert_eq!(shorter(0).unwrap_err().to_string(), "nothing is below 0");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    text: String,
}

impl Reject {
    /// A refusal with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }

    /// What the caller reads.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Reject {}

impl From<&str> for Reject {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Reject {
    fn from(text: String) -> Self {
        Self { text }
    }
}

impl From<std::io::Error> for Reject {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// A [`Reject`] with a formatted text: `return Err(reject!("no key {key:?}"))`.
#[macro_export]
macro_rules! reject {
    ($($text:tt)+) => {
        $crate::Reject::new(::std::format!($($text)+))
    };
}

/// Returns early with a [`Reject`] unless the condition holds.
///
/// ```
/// # use statehouse_sdk::{Reject, ensure};
/// fn withdraw(balance: &mut u64, amount: u64) -> Result<u64, Reject> {
///     ensure!(amount <= *balance, "{amount} is more than the balance, {balance}");
///     *balance -= amount;
///     Ok(*balance)
/// }
/// assert!(withdraw(&mut 3, 4).is_err());
/// ```
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return ::core::result::Result::Err($crate::reject!($($text)+));
        }
    };
}
