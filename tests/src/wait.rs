//! Waiting for what must come, with a deadline and a word on what did not come.

use std::fmt::Debug;
use std::time::Duration;
use std::time::Instant;

/// Longer than anything takes on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Asks until `look` gives something; panics with the last `Err` when nothing came in time.
#[track_caller]
pub fn until<T, E: Debug>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) if Instant::now() > deadline => panic!("{what}: not within {PATIENCE:?}: {why:?}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Asks until `look` says yes.
#[track_caller]
pub fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || if look() { Ok(()) } else { Err("not yet") });
}
