//! A whole cluster in one thread: virtual time, a network that loses and delays, disks that forget, nodes
//! that die between two instructions. All of it follows from one seed (DESIGN rule 7), so that a run that
//! found a bug can be had again.
//!
//! The nodes are the real ones ([`crate::node::Node`]) on the real log, with real modules; simulated are
//! only the four things they are generic over: the runtime ([`LifeRuntime`]), the platform
//! ([`SimPlatform`]), the transport ([`SimTransport`]) and the disk ([`crate::disk::sim::SimDisk`]).
//! What is checked, and how to repeat a run, is in `docs/simulation.md`.

mod clients;
mod cluster;
mod decay;
mod life;
mod network;
mod platform;
mod random;
mod runtime;

pub use clients::SimClient;
pub use clients::SimNet;
pub use cluster::CallError;
pub use cluster::Crash;
pub use cluster::NOT_REPAIRED;
pub use cluster::Remains;
pub use cluster::SimCluster;
pub use cluster::SimNode;
pub use cluster::SimOptions;
pub use life::Life;
pub use network::NetworkFaults;
pub use network::SimNetwork;
pub use network::SimTransport;
pub use platform::SimPlatform;
pub use random::SimRandom;
pub use runtime::LifeRuntime;
