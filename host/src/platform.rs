//! The machine underneath, as the core sees it (DESIGN rule 7): wall clock, randomness, and a place to run
//! guest code. Monotonic time, timers and tasks come with the `AsyncRuntime`; the disk is
//! [`crate::disk::Disk`], the network [`crate::peer::Transport`]. Production is [`RealPlatform`]; the
//! simulator has its own.

use std::future::Future;

use openraft::async_runtime::AsyncRuntime;

/// Clock, randomness and guest threads.
pub trait Platform: Clone + Send + Sync + 'static {
    /// Tasks, timers, monotonic time.
    type Runtime: AsyncRuntime;
    /// Client connections.
    type Net: crate::net::Net;

    /// The wall clock, Unix milliseconds. It may jump; nothing but entry stamps is made of it.
    fn wall_ms(&self) -> u64;

    /// Where clients of gateways come from.
    fn net(&self) -> Self::Net;

    /// Fills `out` with random bytes that nobody can guess.
    fn fill_random(&self, out: &mut [u8]);

    /// Runs `job`, which may call guest code for as long as its fuel lasts, where consensus does not wait
    /// for it. `None` when the job panicked or the node is going down.
    fn run_guest<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send;

    /// Files that this process has open, and how many it may have; `None` where nobody can say.
    fn open_files(&self) -> Option<(u64, u64)> {
        None
    }

    /// Ends this node now, because going on could lose what was acknowledged (a sync failed). In production
    /// this does not return.
    fn die(&self, why: &str);
}

/// A random number from the platform.
pub fn random_u64(platform: &impl Platform) -> u64 {
    let mut bytes = [0; 8];
    platform.fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// The operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealPlatform;

impl Platform for RealPlatform {
    type Runtime = openraft_rt_tokio::TokioRuntime;
    type Net = crate::net::Tcp;

    fn net(&self) -> crate::net::Tcp {
        crate::net::Tcp
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    fn wall_ms(&self) -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(
        clippy::expect_used,
        reason = "a machine without randomness cannot make secrets; going on would be unsafe"
    )]
    fn fill_random(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the operating system gave no randomness");
    }

    /// tokio's blocking pool: threads apart from the ones that run consensus. Their stack is set by whoever
    /// builds the runtime, to [`crate::module::GUEST_STACK_BYTES`].
    async fn run_guest<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        match tokio::task::spawn_blocking(job).await {
            Ok(done) => Some(done),
            Err(failed) => {
                tracing::error!(%failed, "a guest job did not finish");
                None
            }
        }
    }

    fn open_files(&self) -> Option<(u64, u64)> {
        let open = std::fs::read_dir("/proc/self/fd").ok()?.count();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
        // One of them is the directory that was just read.
        Some((u64::try_from(open).ok()?.saturating_sub(1), limit))
    }

    fn die(&self, why: &str) {
        tracing::error!("{why}");
        tracing::error!("this process ends now, so that nothing is acknowledged that may not be on disk");
        std::process::exit(EXIT_DISK);
    }
}

/// The process's exit code when a sync failed: the disk is not to be trusted (`EX_IOERR`).
pub const EXIT_DISK: i32 = 74;
