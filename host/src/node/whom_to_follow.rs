//! Replicas that begin empty in groups that others have begun: from which term on they may follow a leader.
//!
//! Invariants:
//! - A leader of term T has committed an entry without this replica. So a majority of the others is in term T or later, and
//!   whatever was committed with the help of what this node has forgotten lies before that entry: whoever is elected from then
//!   on has it, and whoever led before T gets nothing from this replica.
//! - Where there is only one other voter, no majority is without this replica. But then nobody was ever elected without that
//!   other one, whose term is the last one there was.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;

use super::Node;
use super::repair::promise;
use crate::group::Group;
use crate::peer::Lane;
use crate::peer::Transport;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::raft::call;
use crate::platform::Platform;
use crate::types::NodeId;

const PAUSE: Duration = Duration::from_millis(100);
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

impl<P: Platform, T: Transport> Node<P, T> {
    /// Begins to ask, where the replica has to know.
    pub(super) fn ask_whom_to_follow(&self, group: &Arc<Group<P, T>>, hosts: &BTreeSet<NodeId>) {
        if group.follows_nobody() {
            drop(P::Runtime::spawn(self.clone().find_whom_to_follow(group.clone(), hosts.clone())));
        }
    }

    async fn find_whom_to_follow(self, group: Arc<Group<P, T>>, hosts: BTreeSet<NodeId>) {
        while group.follows_nobody() && !group.is_stopped() && !self.is_stopping() {
            let mut peers = self.others_of(&hosts);
            let transport = &self.0.setup.transport;
            let found = match promise::<P::Runtime, T>(transport, self.id(), group.id(), &mut peers).await {
                Ok(vote) => Some(vote.leader_id.term),
                Err(_) => self.term_of_the_only_other(&group, &peers).await,
            };
            match found {
                Some(term) => {
                    tracing::info!(
                        group = group.name(),
                        term,
                        "this replica began empty, and follows from this term on"
                    );
                    group.follow_from(term);
                }
                None => P::Runtime::sleep(PAUSE).await,
            }
        }
    }

    /// The other nodes, as far as they are known.
    fn others_of(&self, hosts: &BTreeSet<NodeId>) -> BTreeMap<NodeId, String> {
        let setup = &self.0.setup;
        let mut others: BTreeMap<NodeId, String> = setup.known.iter().chain(&setup.members).map(own).collect();
        others.extend(self.catalog().standing().members.into_iter().map(|member| (member.id, member.address)));
        for host in hosts {
            others.entry(*host).or_default();
        }
        others.remove(&setup.id);
        others
    }

    async fn term_of_the_only_other(&self, group: &Group<P, T>, peers: &BTreeMap<NodeId, String>) -> Option<u64> {
        for peer in peers.keys() {
            let asked = PeerRequest::Roster(group.id());
            let sent = call::<P::Runtime, T>(&self.0.setup.transport, *peer, Lane::Control, &asked);
            if let Ok(Ok(PeerResponse::Roster(roster))) = P::Runtime::timeout(ANSWER_TIME_MAX, sent).await
                && !roster.joint
                && roster.voters() == BTreeSet::from([self.id(), *peer])
            {
                return Some(roster.term);
            }
        }
        None
    }
}

fn own((id, address): (&NodeId, &String)) -> (NodeId, String) {
    (*id, address.clone())
}
