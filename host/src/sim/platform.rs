//! A simulated node's clock, randomness and guest threads.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Weak;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimInstant;

use super::clients::SimNet;
use super::life::Life;
use super::life::lock;
use super::random::SimRandom;
use super::runtime::LifeRuntime;
use crate::platform::Platform;

/// 2026-01-01 00:00 UTC: where the wall clocks begin, Unix milliseconds.
const WALL_START_MS: u64 = 1_767_225_600_000;

/// The machine under one life of one node.
#[derive(Clone, Debug)]
pub struct SimPlatform(Arc<Inner>);

/// Tells whether anything of a life is still held: every part of a node holds its platform.
#[derive(Clone, Debug)]
pub(super) struct WeakPlatform(Weak<Inner>);

impl WeakPlatform {
    /// The life, if something holds its platform.
    pub fn life(&self) -> Option<Arc<Life>> {
        self.0.upgrade().map(|platform| platform.life.clone())
    }
}

#[derive(Debug)]
struct Inner {
    life: Arc<Life>,
    net: SimNet,
    random: Mutex<SimRandom>,
    /// How far this node's wall clock is ahead of the true time.
    ahead_ms: u64,
    /// In how many of 1000 guest jobs other tasks get to run first.
    slow_jobs_per_mille: u64,
}

/// Virtual milliseconds since the start of the run.
pub(super) fn virtual_ms() -> u64 {
    u64::try_from(SimInstant::now().elapsed_since_start().as_millis()).unwrap_or(u64::MAX)
}

impl SimPlatform {
    /// For one life; `ahead_ms` is how far its wall clock is ahead of the true time.
    pub fn new(life: Arc<Life>, random: SimRandom, ahead_ms: u64, slow_jobs_per_mille: u64) -> Self {
        let net = SimNet::new(life.clone());
        Self(Arc::new(Inner { life, net, random: Mutex::new(random), ahead_ms, slow_jobs_per_mille }))
    }

    pub(super) fn downgrade(&self) -> WeakPlatform {
        WeakPlatform(Arc::downgrade(&self.0))
    }
}

impl Platform for SimPlatform {
    type Runtime = LifeRuntime;
    type Net = SimNet;

    fn net(&self) -> SimNet {
        self.0.net.clone()
    }

    fn wall_ms(&self) -> u64 {
        WALL_START_MS + virtual_ms() + self.0.ahead_ms
    }

    fn fill_random(&self, out: &mut [u8]) {
        let mut random = lock(&self.0.random);
        for byte in out {
            *byte = random.draw().to_le_bytes()[0];
        }
    }

    /// On this thread, at a moment that the seed chooses: now, or after whatever else is to run meanwhile.
    async fn run_guest<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let pause = {
            let mut random = lock(&self.0.random);
            random.chance(self.0.slow_jobs_per_mille).then(|| Duration::from_micros(random.between(0, 3000)))
        };
        if let Some(pause) = pause {
            LifeRuntime::sleep(pause).await;
        }
        if !self.0.life.is_alive() {
            return None;
        }
        match std::panic::catch_unwind(AssertUnwindSafe(job)) {
            Ok(done) => Some(done),
            Err(_) => {
                self.0.life.count_panic();
                None
            }
        }
    }

    fn die(&self, why: &str) {
        self.0.life.die(why);
    }
}
