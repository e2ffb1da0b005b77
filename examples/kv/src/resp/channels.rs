//! Who listens to which channels, on this node.
//!
//! Invariant: a connection is listed under a channel exactly if the channel is in the connection's own
//! [`Subscriptions`], and no list is empty.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use statehouse_sdk::adapter::ConnectionId;

use super::glob;

/// How many channels and patterns a connection may listen to.
pub const SUBSCRIPTIONS_MAX: usize = 10_000;
/// How many bytes their names may take together; and those of all connections.
pub const SUBSCRIPTION_BYTES_MAX: usize = 1 << 20;
const ALL_BYTES_MAX: usize = 32 << 20;

/// A channel by its name, or all that match a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `SUBSCRIBE`
    Name,
    /// `PSUBSCRIBE`
    Pattern,
}

/// What one connection listens to.
#[derive(Debug, Default)]
pub struct Subscriptions {
    names: BTreeSet<Vec<u8>>,
    patterns: BTreeSet<Vec<u8>>,
    /// Of all of them.
    bytes: usize,
}

impl Subscriptions {
    /// How many.
    pub fn len(&self) -> usize {
        self.names.len() + self.patterns.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty()
    }

    /// The channels or the patterns.
    pub fn all(&self, by: By) -> &BTreeSet<Vec<u8>> {
        match by {
            By::Name => &self.names,
            By::Pattern => &self.patterns,
        }
    }

    fn all_mut(&mut self, by: By) -> &mut BTreeSet<Vec<u8>> {
        match by {
            By::Name => &mut self.names,
            By::Pattern => &mut self.patterns,
        }
    }
}

/// All subscriptions of this node.
#[derive(Debug, Default)]
pub struct Channels {
    names: BTreeMap<Vec<u8>, BTreeSet<ConnectionId>>,
    patterns: BTreeMap<Vec<u8>, BTreeSet<ConnectionId>>,
    /// Of all connections' subscriptions.
    bytes: usize,
}

impl Channels {
    /// Whether nobody listens.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty()
    }

    /// Whether a connection may listen to so many more, whose names take so many bytes.
    pub fn has_room(&self, own: &Subscriptions, count: usize, bytes: usize) -> bool {
        own.len().saturating_add(count) <= SUBSCRIPTIONS_MAX
            && own.bytes.saturating_add(bytes) <= SUBSCRIPTION_BYTES_MAX
            && self.bytes.saturating_add(bytes) <= ALL_BYTES_MAX
    }

    /// Lets a connection listen.
    pub fn add(&mut self, id: ConnectionId, own: &mut Subscriptions, by: By, channel: &[u8]) {
        if own.all_mut(by).insert(channel.to_vec()) {
            own.bytes += channel.len();
            self.bytes += channel.len();
            self.all_mut(by).entry(channel.to_vec()).or_default().insert(id);
        }
    }

    /// Lets it listen no more.
    pub fn remove(&mut self, id: ConnectionId, own: &mut Subscriptions, by: By, channel: &[u8]) {
        if own.all_mut(by).remove(channel) {
            own.bytes = own.bytes.saturating_sub(channel.len());
            self.bytes = self.bytes.saturating_sub(channel.len());
        }
        let all = self.all_mut(by);
        if let Some(listeners) = all.get_mut(channel) {
            listeners.remove(&id);
            if listeners.is_empty() {
                all.remove(channel);
            }
        }
    }

    /// Lets it listen to nothing.
    pub fn remove_all(&mut self, id: ConnectionId, own: &mut Subscriptions) {
        for by in [By::Name, By::Pattern] {
            while let Some(channel) = own.all(by).first().cloned() {
                self.remove(id, own, by, &channel);
            }
        }
    }

    /// Who hears a message to this channel, and through which pattern, if not by name.
    pub fn listeners(&self, channel: &[u8]) -> impl Iterator<Item = (ConnectionId, Option<&[u8]>)> {
        let named = self.names.get(channel).into_iter().flatten().map(|id| (*id, None));
        let matching = self.patterns.iter().filter(|(pattern, _)| glob::is_match(pattern, channel));
        named.chain(matching.flat_map(|(pattern, ids)| ids.iter().map(|id| (*id, Some(pattern.as_slice())))))
    }

    /// The channels that somebody listens to by name.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.keys().map(Vec::as_slice)
    }

    /// How many listen to this channel by name.
    pub fn listening(&self, channel: &[u8]) -> usize {
        self.names.get(channel).map_or(0, BTreeSet::len)
    }

    /// How many patterns there are.
    pub fn patterns(&self) -> usize {
        self.patterns.len()
    }

    fn all_mut(&mut self, by: By) -> &mut BTreeMap<Vec<u8>, BTreeSet<ConnectionId>> {
        match by {
            By::Name => &mut self.names,
            By::Pattern => &mut self.patterns,
        }
    }
}
