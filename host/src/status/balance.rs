//! Which groups' leadership is to move for every node to lead about as many as any other.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use super::ClusterStatus;
use crate::types::CATALOG;
use crate::types::NodeId;

/// A group whose leadership moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moved {
    /// The group's name.
    pub group: String,
    /// The node that leads it.
    pub from: NodeId,
    /// The node that is to lead it.
    pub to: NodeId,
}

/// Each group's leadership goes to the voter that leads fewest, wherever that evens things out. Of the voters only those of the
/// highest priority count: the others would hand over to them at once.
pub fn moves(status: &ClusterStatus) -> Vec<Moved> {
    let priorities: BTreeMap<NodeId, u8> =
        status.nodes.iter().filter_map(|node| Some((node.id, node.priority?))).collect();
    let groups: Vec<_> = status.groups.iter().filter(|group| group.id != CATALOG).collect();
    let mut leads = BTreeMap::<NodeId, u64>::new();
    for leader in groups.iter().filter_map(|group| group.leader) {
        *leads.entry(leader).or_default() += 1;
    }
    let mut moves = Vec::new();
    for (group, from) in groups.into_iter().filter_map(|group| Some((group, group.leader?))) {
        // One that does not answer has no priority, and gets nothing.
        let priority = |node: &NodeId| priorities.get(node).copied();
        let highest = group.voters.iter().filter_map(priority).max();
        let suited = group.voters.iter().copied().filter(|node| priority(node) == highest);
        let count = |node: NodeId| leads.get(&node).copied().unwrap_or(0);
        let next = suited.min_by_key(|node| (count(*node), *node)).filter(|to| count(*to) + 1 < count(from));
        let Some(to) = next else { continue };
        *leads.entry(from).or_default() -= 1;
        *leads.entry(to).or_default() += 1;
        moves.push(Moved { group: group.name.clone(), from, to });
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::GroupStatus;
    use crate::status::NodeStatus;

    fn group(id: u64, leader: NodeId) -> GroupStatus {
        GroupStatus {
            id,
            name: format!("g{id}"),
            leader: Some(leader),
            voters: [1, 2, 3].into(),
            ..GroupStatus::default()
        }
    }

    #[test]
    fn leaders_are_spread_over_the_nodes_that_are_to_lead() {
        let moved = |priorities: &[(NodeId, u8)]| {
            let node = |(id, priority): &(NodeId, u8)| NodeStatus {
                id: *id,
                priority: Some(*priority),
                ..NodeStatus::default()
            };
            let groups = (0..=6).map(|id| group(id, 1)).collect();
            let nodes = priorities.iter().map(node).collect();
            let moves = moves(&ClusterStatus { groups, nodes, ..ClusterStatus::default() });
            moves.into_iter().map(|one| one.to).collect::<Vec<NodeId>>()
        };
        assert_eq!(moved(&[(1, 100), (2, 100), (3, 100)]), [2, 3, 2, 3], "the catalog stays where it is");
        assert_eq!(moved(&[(1, 100), (2, 100), (3, 0)]), [2, 2, 2]);
        assert_eq!(moved(&[(1, 100), (2, 200), (3, 100)]), [2, 2, 2], "the others go there by themselves");
        assert_eq!(moved(&[(1, 100), (3, 100)]), [3, 3, 3], "node 2 does not answer");
    }
}
