//! Which process speaks for a node.
//!
//! A data directory that was copied, with a virtual machine perhaps, makes two processes one node. The copy knows nothing of what the
//! other has acknowledged and promised since; whoever listened to both could help to elect a leader that lacks acknowledged entries.
//!
//! Invariant: a process is not listened to while another one of the same node is, and was heard a moment ago. One that was killed leaves
//! none: its kernel closes its connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::Lane;
use super::frame::Hello;
use crate::repeats::Repeats;
use crate::types::NodeId;

/// A connection over which nothing came for so long says nothing of its process: its machine may have lost power. Nodes tell each
/// other how they are every few seconds.
const ALIVE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Seen {
    life: u64,
    spoke: Instant,
    /// Whether another process was welcomed since, because this one had been silent for so long.
    replaced: bool,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    /// The connections, by node and number.
    here: BTreeMap<(NodeId, u64), Seen>,
    /// Nodes of which there was another process.
    copies: Repeats<Instant>,
}

/// The connections of other nodes.
#[derive(Clone, Debug, Default)]
pub struct Guests(Arc<Mutex<Inner>>);

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    // No code that can panic runs under this lock.
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guests {
    /// One more connection; `Err` is the refusal in words.
    pub fn welcome(&self, hello: &Hello) -> Result<Guest, String> {
        let (node, now) = (hello.from, Instant::now());
        let mut inner = lock(&self.0);
        let others = |seen: &Seen| seen.life != hello.life && !seen.replaced;
        let mut here = inner.here.range((node, 0)..=(node, u64::MAX)).filter(|(_, seen)| others(seen));
        // Who asks to join belongs to nothing yet, and is asked for more than this.
        if hello.lane != Lane::Join && here.any(|(_, seen)| now - seen.spoke < ALIVE) {
            if let Some(times) = inner.copies.came(&node.to_string(), now) {
                tracing::error!(node, times, "two processes speak for one node; the second one is not listened to");
            }
            return Err(format!(
                "another process speaks for node {node}, on a copy of its data directory perhaps: stop one of the two for good (one that \
                 was cut off or lost its power is waited for {} s)",
                ALIVE.as_secs()
            ));
        }
        inner.last += 1;
        let number = inner.last;
        if hello.lane != Lane::Join {
            inner.here.range_mut((node, 0)..=(node, u64::MAX)).filter(|(_, seen)| others(seen)).for_each(
                |(_, seen)| {
                    seen.replaced = true;
                },
            );
            inner.here.insert((node, number), Seen { life: hello.life, spoke: now, replaced: false });
        }
        Ok(Guest { guests: self.clone(), place: (node, number) })
    }
}

/// A connection; dropped when it ends.
#[derive(Debug)]
pub struct Guest {
    guests: Guests,
    place: (NodeId, u64),
}

impl Guest {
    /// Something came over it. Whether that may be listened to: not when another process took this one's place.
    pub fn spoke(&self) -> bool {
        match lock(&self.guests.0).here.get_mut(&self.place) {
            Some(seen) => {
                seen.spoke = Instant::now();
                !seen.replaced
            }
            None => true,
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        lock(&self.guests.0).here.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn hello(from: NodeId, lane: Lane, life: u64) -> Hello {
        Hello { cluster: [7; 16], from, to: 1, lane, life }
    }

    /// A virtual machine was copied, and both ran.
    #[tokio::test(start_paused = true)]
    async fn who_speaks_for_a_node_that_another_process_speaks_for_is_refused() {
        let guests = Guests::default();
        let first = guests.welcome(&hello(2, Lane::Consensus, 10)).unwrap();
        let control = guests.welcome(&hello(2, Lane::Control, 10)).unwrap();
        let refused = || guests.welcome(&hello(2, Lane::Consensus, 11)).unwrap_err();
        assert!(refused().contains("another process speaks for node 2"), "{}", refused());
        drop(guests.welcome(&hello(3, Lane::Consensus, 11)).unwrap());
        drop(guests.welcome(&hello(2, Lane::Join, 0)).unwrap());
        // Long silent is only the one connection.
        tokio::time::advance(ALIVE - Duration::from_secs(1)).await;
        assert!(control.spoke());
        tokio::time::advance(Duration::from_secs(2)).await;
        refused();
        drop(control);
        let second = guests.welcome(&hello(2, Lane::Consensus, 11)).unwrap();
        // Its machine had been paused, and went on where it was.
        assert!(!first.spoke(), "another process is listened to by now");
        assert!(guests.welcome(&hello(2, Lane::Control, 10)).is_err());
        drop(guests.welcome(&hello(2, Lane::Control, 11)).unwrap());
        drop(first);
        drop(second);
        drop(guests.welcome(&hello(2, Lane::Control, 12)).unwrap());
    }
}
