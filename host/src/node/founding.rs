//! The first start of a node that follows its configuration file: whether the cluster of the listed nodes is there already, or is
//! begun now.
//!
//! The file is edited later, and new machines are started with it. So it does not say whether there is a cluster: the listed nodes do.
//!
//! Invariants:
//! - A cluster is begun only after every other listed voter has said that it is of none, or has just begun this one. Then none of them
//!   has anything of an older one. So newcomers never begin a second cluster beside one whose nodes are away, however many they are.
//! - Who begins a cluster has written down with whom, before it does anything in it: the file may say something else at the next start.
//! - The cluster's id follows from the list: nodes that begin at the same time begin the same one.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::Instant;
use openraft::async_runtime::AsyncRuntime;
use tokio::net::TcpListener;

use super::identity;
use super::identity::Identity;
use super::identity::IdentityError;
use super::join::NOT_NOW;
use super::settle;
use super::start;
use super::start::JOIN_REMINDER;
use super::start::Joined;
use super::start::Place;
use super::start::StartError;
use crate::codec;
use crate::config::Followed;
use crate::config::ServeConfig;
use crate::disk::Disk;
use crate::peer::Handler;
use crate::peer::Lane;
use crate::peer::message::Origin;
use crate::peer::message::PeerRequest;
use crate::peer::message::PeerResponse;
use crate::peer::tcp;
use crate::platform::Platform;
use crate::platform::RealPlatform;
use crate::types::NodeId;

type Runtime = <RealPlatform as Platform>::Runtime;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(250);

/// What a listed node says.
#[derive(Clone, Debug)]
struct Heard {
    address: String,
    voter: bool,
    /// Or why it says nothing.
    said: Result<Origin, String>,
}

/// What to do, all of them heard.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Begin {
    /// Nobody has anything older: with the others.
    Anew,
    /// Ask these to be let in.
    Join(Vec<String>),
    /// Not yet: for whom it waits.
    Waits(String),
    /// The list is of more than one cluster.
    Refused(String),
}

/// What follows from what the other listed nodes say, for a node that would begin the cluster `own`.
fn begin(own: [u8; 16], heard: &BTreeMap<NodeId, Heard>) -> Begin {
    let origins = || heard.iter().filter_map(|(id, one)| one.said.as_ref().ok().map(|origin| (*id, one, origin)));
    if let Some((id, one, origin)) = origins().find(|(id, _, origin)| origin.node != *id) {
        return Begin::Refused(format!("at {}, where node {id} is listed, there is node {}", one.address, origin.node));
    }
    let formed: Vec<_> = origins().filter(|(_, _, origin)| origin.formed).collect();
    if let Some((first, _, of)) = formed.first() {
        let addresses = formed.iter().map(|(_, one, _)| one.address.clone()).collect();
        return match formed.iter().find(|(_, _, origin)| origin.cluster != of.cluster) {
            Some((other, _, origin)) => Begin::Refused(format!(
                "of the listed nodes, node {first} belongs to cluster {}, node {other} to cluster {}",
                hex::encode(of.cluster),
                hex::encode(origin.cluster)
            )),
            None => Begin::Join(addresses),
        };
    }
    let waits: Vec<String> = heard
        .iter()
        .filter(|(_, one)| one.voter)
        .filter_map(|(id, one)| match &one.said {
            Ok(origin) if origin.cluster == own => None,
            Ok(origin) => {
                let ids: Vec<String> = origin.founders.keys().map(NodeId::to_string).collect();
                Some(format!(
                    "node {id} is new as well, and was started with another list or --cluster-name, nodes {}: correct the files and \
                     start again",
                    ids.join(", ")
                ))
            }
            Err(why) => Some(format!("node {id} says nothing: {why}")),
        })
        .collect();
    if waits.is_empty() { Begin::Anew } else { Begin::Waits(waits.join("; ")) }
}

/// Answers others while this node is of no cluster.
struct Newcomer(Origin);

impl Handler for Newcomer {
    fn handle(&self, _from: NodeId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        let origin = self.0.clone();
        Box::pin(async move {
            let request: PeerRequest<Runtime> = codec::decode(&request).map_err(|error| error.to_string())?;
            if lane != Lane::Join || !matches!(request, PeerRequest::Origin) {
                // Whoever takes it for the leader that it was passes this on, to one who asks to be let in perhaps.
                return Err(format!("{NOT_NOW}node {} has an empty directory and is of no cluster yet", origin.node));
            }
            let response = PeerResponse::<Runtime>::Origin(origin);
            Ok(Bytes::from(codec::encode(&response).map_err(|error| error.to_string())?))
        })
    }
}

/// The place of a node that follows `followed`.
pub(super) async fn find_place(
    config: &ServeConfig,
    followed: &Followed,
    disk: &dyn Disk,
    found: Option<Identity>,
    listener: &Arc<TcpListener>,
) -> Result<Place, StartError> {
    let in_data_dir = |source| StartError::DataDir { path: config.data_dir.clone(), source };
    let own = match &found {
        Some(found) => Some(identity::check(found, &config.data_dir, config.node_id, None)?),
        None => {
            start::see_that_it_is_new(disk, &config.data_dir)?;
            None
        }
    };
    if let (Some(cluster), Some(found)) = (own, &found) {
        // One that joined and has not caught up yet may have to be told again who the others are.
        if !found.joined || !settle::is_marked(disk, &config.data_dir).map_err(in_data_dir)? {
            let others: Vec<String> = others(config, followed).map(|(_, address, _)| address).collect();
            start::greet(&others, config.node_id, cluster, Some(found)).await?;
            let founders = founders(config, found, cluster);
            return Ok(Place { cluster, known: founders.clone(), founders, joined_index: 0 });
        }
    } else if !config.initial_cluster.contains_key(&config.node_id) {
        let listed: Vec<String> = config.initial_cluster.keys().map(NodeId::to_string).collect();
        let (file, listed) = (followed.path.clone(), listed.join(", "));
        return Err(IdentityError::NotListed { file, listed, node: config.node_id }.into());
    }
    let cluster = own.unwrap_or_else(|| start::cluster_id(config));
    let founders = config.initial_cluster.clone();
    let newcomer =
        Newcomer(Origin { node: config.node_id, cluster, formed: own.is_some(), founders: founders.clone() });
    let looked = tokio::select! {
        joined = look_around(config, followed, own) => joined?,
        // Others ask meanwhile.
        () = tcp::serve(listener.clone(), config.node_id, own, Arc::new(newcomer)) => None,
    };
    if let Some(joined) = looked {
        return start::arrive(config, disk, found.as_ref(), joined);
    }
    tracing::info!(cluster = hex::encode(cluster), nodes = ?founders.keys(), "all listed nodes are new: this is a new cluster");
    if founders.len() > 1 {
        settle::mark(disk, &config.data_dir).map_err(in_data_dir)?;
    }
    start::write_identity(config, disk, cluster, false, founders.clone())?;
    Ok(Place { cluster, known: founders.clone(), founders, joined_index: 0 })
}

/// The other listed nodes: id, address, whether they vote.
fn others(config: &ServeConfig, followed: &Followed) -> impl Iterator<Item = (NodeId, String, bool)> {
    let nodes = followed.list.iter().filter(|(id, _)| **id != config.node_id);
    nodes.map(|(id, node)| (*id, node.address.clone(), node.voter))
}

/// Those that began the cluster, where a node that was there from the beginning may still have to begin it.
fn founders(config: &ServeConfig, found: &Identity, cluster: [u8; 16]) -> BTreeMap<NodeId, String> {
    if found.joined {
        return BTreeMap::new();
    }
    // A directory of the time before the file was followed.
    if found.founders.is_empty() && cluster == start::cluster_id(config) {
        return config.initial_cluster.clone();
    }
    found.founders.clone()
}

/// Asks the listed nodes until one of their cluster has let this one in, or until it is clear that there is none (`None`).
async fn look_around(
    config: &ServeConfig,
    followed: &Followed,
    own: Option<[u8; 16]>,
) -> Result<Option<Joined>, StartError> {
    type Now = <Runtime as AsyncRuntime>::Instant;
    let would_be = start::cluster_id(config);
    // As the others list it: they compare.
    let address = config.initial_cluster.get(&config.node_id).cloned().unwrap_or_else(|| config.peer_address());
    let mut said = String::new();
    let mut reminded = Now::now();
    loop {
        let asked = others(config, followed).map(async |(id, address, voter)| {
            let asked = start::ask_as_stranger(config, &address, own, &PeerRequest::Origin, ANSWER_TIME_MAX).await?;
            let said = match asked {
                Ok(PeerResponse::Origin(origin)) => Ok(origin),
                Ok(other) => Err(format!("it answered {other:?}")),
                Err(why) => Err(why),
            };
            Ok::<_, StartError>((id, Heard { address, voter, said }))
        });
        let heard = futures_util::future::join_all(asked).await.into_iter().collect::<Result<BTreeMap<_, _>, _>>()?;
        let waits = match begin(would_be, &heard) {
            Begin::Refused(words) => return Err(StartError::Refused(words)),
            // Who has been of a cluster never begins one.
            Begin::Anew if own.is_none() => return Ok(None),
            Begin::Anew => "no listed node is of this node's cluster".to_string(),
            Begin::Waits(waits) => waits,
            Begin::Join(through) => {
                let mut reasons = BTreeSet::new();
                for one in &through {
                    match start::ask_to_join(config, one, own, address.clone()).await? {
                        Ok(joined) => return Ok(Some(joined)),
                        Err(reason) => _ = reasons.insert(reason),
                    }
                }
                reasons.into_iter().collect::<Vec<_>>().join("; ")
            }
        };
        if waits != said || reminded.elapsed() >= JOIN_REMINDER {
            reminded = Now::now();
            tracing::warn!(
                %waits,
                "this node is of no cluster yet: it joins that of the listed nodes, or begins a new one when all of them have said that they \
                 are new as well"
            );
            said = waits;
        }
        start::pause(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const OWN: [u8; 16] = [1; 16];
    const OTHER: [u8; 16] = [2; 16];

    /// Its cluster, and whether that is there; nothing of one that does not answer.
    type Said = Option<([u8; 16], bool)>;

    fn heard(nodes: &[(NodeId, Said)]) -> BTreeMap<NodeId, Heard> {
        let one = |(id, said): &(NodeId, Said)| {
            let origin = |(cluster, formed)| Origin {
                node: *id,
                cluster,
                formed,
                founders: BTreeMap::from([(*id, String::new())]),
            };
            let said = said.map(origin).ok_or_else(|| "no answer".to_owned());
            (*id, Heard { address: format!("a:{id}"), voter: *id < 9, said })
        };
        nodes.iter().map(one).collect()
    }

    #[test]
    fn a_cluster_is_begun_only_when_all_listed_voters_are_new() {
        assert_eq!(begin(OWN, &heard(&[])), Begin::Anew);
        assert_eq!(begin(OWN, &heard(&[(2, Some((OWN, false))), (3, Some((OWN, false)))])), Begin::Anew);
        // A majority is not enough: who is silent may be of an older cluster.
        let one_is_away = heard(&[(2, Some((OWN, false))), (3, Some((OWN, false))), (4, None)]);
        assert_eq!(begin(OWN, &one_is_away), Begin::Waits("node 4 says nothing: no answer".to_owned()));
        // An observer has no part in it, and asks no one.
        assert_eq!(begin(OWN, &heard(&[(2, Some((OWN, false))), (9, None)])), Begin::Anew);
        let another_list = begin(OWN, &heard(&[(2, Some((OTHER, false)))]));
        assert!(matches!(&another_list, Begin::Waits(text) if text.contains("another list")), "{another_list:?}");
    }

    #[test]
    fn a_cluster_that_is_there_is_joined_however_few_of_it_answer() {
        let nodes = heard(&[(2, Some((OTHER, true))), (3, Some((OWN, false))), (4, None)]);
        assert_eq!(begin(OWN, &nodes), Begin::Join(vec!["a:2".to_owned()]));
        // The others were quicker: the cluster that this one would have begun with them.
        assert_eq!(begin(OWN, &heard(&[(2, Some((OWN, true))), (3, None)])), Begin::Join(vec!["a:2".to_owned()]));
        let of_an_observer = heard(&[(2, None), (9, Some((OTHER, true)))]);
        assert_eq!(begin(OWN, &of_an_observer), Begin::Join(vec!["a:9".to_owned()]));
    }

    /// The leader had lost its disk. Another node, which had yet to hear of a new leader, asked it to let a third one in, and that one took its
    /// answer for a no and ended.
    #[tokio::test]
    async fn a_newcomer_that_is_taken_for_the_leader_lets_others_ask_again() {
        let origin = Origin { node: 3, cluster: OWN, formed: false, founders: BTreeMap::new() };
        let newcomer = Newcomer(origin.clone());
        let ask = |lane, request: PeerRequest<Runtime>| {
            newcomer.handle(1, lane, Bytes::from(codec::encode(&request).unwrap()))
        };
        let refused = ask(Lane::Control, PeerRequest::Join { node: 4, address: "a:4".to_owned() }).await.unwrap_err();
        assert!(refused.contains(NOT_NOW), "{refused}");
        assert!(ask(Lane::Control, PeerRequest::Origin).await.is_err());
        let answer = codec::decode::<PeerResponse<Runtime>>(&ask(Lane::Join, PeerRequest::Origin).await.unwrap());
        assert!(matches!(answer, Ok(PeerResponse::Origin(said)) if said == origin));
    }

    /// Killed before its first entry, and the file edited before it started again.
    #[test]
    fn who_began_a_cluster_begins_it_with_the_same_nodes_again() {
        let nodes =
            |ids: &[NodeId]| -> BTreeMap<NodeId, String> { ids.iter().map(|id| (*id, format!("a:{id}"))).collect() };
        let config = |ids: &[NodeId]| ServeConfig { initial_cluster: nodes(ids), ..ServeConfig::default() };
        let cluster = start::cluster_id(&config(&[1, 2, 3]));
        let identity = |founders: &[NodeId], joined| Identity {
            format: identity::FORMAT,
            node: 1,
            cluster: hex::encode(cluster),
            joined,
            founders: nodes(founders),
            ..Identity::default()
        };
        let founders = |edited: &[NodeId], found: Identity| founders(&config(edited), &found, cluster);
        assert_eq!(founders(&[1, 2, 3, 4], identity(&[1, 2, 3], false)), nodes(&[1, 2, 3]));
        assert_eq!(founders(&[1, 2, 3], identity(&[], false)), nodes(&[1, 2, 3]));
        // Nobody knows them: it waits for those who do.
        assert_eq!(founders(&[1, 2, 3, 4], identity(&[], false)), nodes(&[]));
        assert_eq!(founders(&[1, 2, 3], identity(&[], true)), nodes(&[]));
    }

    #[test]
    fn a_list_of_two_clusters_or_of_a_wrong_address_is_refused() {
        let two = begin(OWN, &heard(&[(2, Some((OWN, true))), (3, Some((OTHER, true)))]));
        assert!(matches!(&two, Begin::Refused(text) if text.contains("belongs to cluster")), "{two:?}");
        let mut wrong = heard(&[(2, Some((OWN, false)))]);
        wrong.get_mut(&2).unwrap().said.as_mut().unwrap().node = 5;
        let wrong = begin(OWN, &wrong);
        assert!(
            matches!(&wrong, Begin::Refused(text) if text == "at a:2, where node 2 is listed, there is node 5"),
            "{wrong:?}"
        );
    }
}
