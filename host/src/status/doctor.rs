//! What is wrong with a cluster, in sentences, and what to do about it. A pure function of two looks at it, a moment apart:
//! whether a replica lags is a question of time and not of a number of entries.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use super::ClusterStatus;
use super::DiskStatus;
use super::GroupStatus;
use super::NodeStatus;
use super::ReplicaStatus;
use crate::catalog::Catalog;
use crate::membership::Change;
use crate::membership::ChangeKind;
use crate::membership::ChangeState;
use crate::types::CATALOG;
use crate::types::NodeId;

/// A disk is slow when half of its syncs take longer than this, microseconds: every write waits for one, twice a hard
/// disk's turn is more than any disk needs.
const SLOW_P50_MICROS: u64 = 50_000;
/// … or one of a hundred takes longer than this: as long as a follower waits for its leader by default.
const SLOW_P99_MICROS: u64 = 1_000_000;
/// Fewer syncs say nothing of a disk, …
const SYNCS_MEASURED_MIN: u64 = 16;
/// … and of fewer there is none that is one of a hundred: the slowest of them may have been the only one.
const SYNCS_MEASURED_P99_MIN: u64 = 100;
/// A disk is nearly full when less than this part of it is free, …
const FREE_PARTS: u64 = 10;
/// … and less than this, bytes: a tenth of a very large disk is room enough.
const FREE_BYTES: u64 = 10 << 30;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// A stable word.
    pub code: String,
    /// The node it is about.
    pub node: Option<u64>,
    /// The group it is about.
    pub group: Option<String>,
    /// What is wrong, a sentence.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// What the doctor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diagnosis {
    /// Whether nothing is wrong.
    pub healthy: bool,
    /// What is, nodes first.
    pub findings: Vec<Finding>,
}

struct Doctor<'a> {
    before: &'a ClusterStatus,
    now: &'a ClusterStatus,
    between_ms: u64,
    catalog: &'a Catalog,
    findings: Vec<Finding>,
}

/// What is wrong now, when `before` was true `between_ms` earlier.
pub fn diagnose(before: &ClusterStatus, now: &ClusterStatus, between_ms: u64, catalog: &Catalog) -> Diagnosis {
    let mut doctor = Doctor { before, now, between_ms, catalog, findings: Vec::new() };
    for node in &now.nodes {
        doctor.node(node);
    }
    doctor.versions();
    // At both looks: in between a change may go on as it should.
    if let (Some(_), Some(waits), []) = (&before.files, &now.files, &now.changes[..]) {
        let what = format!("the nodes are not those of the configuration files: {waits}");
        let remedy =
            "edit the files of all nodes alike, and start who is listed; docs/operations/membership.md says more";
        doctor.find("files_differ", None, None, what, remedy);
    }
    for group in &now.groups {
        doctor.group(group);
    }
    Diagnosis { healthy: doctor.findings.is_empty(), findings: doctor.findings }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn millis(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1000.0)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

impl Doctor<'_> {
    fn find(&mut self, code: &str, node: Option<NodeId>, group: Option<&str>, what: String, remedy: &str) {
        let (code, remedy) = (code.to_owned(), remedy.to_owned());
        self.findings.push(Finding { code, node, group: group.map(str::to_owned), what, remedy });
    }

    fn node(&mut self, node: &NodeStatus) {
        let id = node.id;
        if node.state == "unreachable" {
            let what = format!("node {id} ({}) does not answer: {}", node.address, list(&node.reasons));
            let remedy =
                "start it, or see what stands between; if it is gone for good, `statehouse node rm` it and add another";
            self.find("node_unreachable", Some(id), None, what, remedy);
            return;
        }
        // That a group has no leader, or a replica stopped, is told once, of the group.
        for reason in node.reasons.iter().filter(|reason| !reason.starts_with("group ")) {
            let what = format!("node {id} is not ready: {reason}");
            self.find("node_not_ready", Some(id), None, what, "wait a little, and see its log if it stays so");
        }
        if let Some(disk) = &node.disk {
            self.disk(id, disk);
        }
        let about = |kind: &ChangeKind| matches!(kind, ChangeKind::NodeAdd { node, .. } | ChangeKind::NodeDemote { node } if *node == id);
        let begun = self.changes().any(|change| about(&change.kind));
        if node.role == "learner" && node.replicas == Some(1) && !begun {
            let what = format!("node {id} has joined, but votes nowhere and holds no group");
            let remedy =
                format!("`statehouse node add {id}` makes it a full node, `statehouse node rm {id}` sends it away");
            self.find("learner_forgotten", Some(id), None, what, &remedy);
        }
    }

    fn disk(&mut self, id: NodeId, disk: &DiskStatus) {
        let free = mebibytes(disk.free_bytes);
        if disk.is_short() {
            let what = format!(
                "node {id} has {free} of disk left, less than its reserve of {}: it takes no commands, so that its log \
                 survives; reads go on",
                mebibytes(disk.reserve_bytes)
            );
            let remedy = "free space on the file system of its --data-dir; it goes on by itself";
            self.find("disk_full", Some(id), None, what, remedy);
        } else if disk.free_bytes < (disk.total_bytes / FREE_PARTS).min(FREE_BYTES)
            || disk.free_bytes < disk.reserve_bytes.saturating_mul(2)
        {
            let what = format!("node {id} has {free} of {} of disk left", mebibytes(disk.total_bytes));
            let remedy = "free space on the file system of its --data-dir, or enlarge it, before writes have to stop";
            self.find("disk_nearly_full", Some(id), None, what, remedy);
        }
        let half_slow = disk.sync_p50_micros > SLOW_P50_MICROS && disk.syncs_measured >= SYNCS_MEASURED_MIN;
        let some_slow = disk.sync_p99_micros > SLOW_P99_MICROS && disk.syncs_measured >= SYNCS_MEASURED_P99_MIN;
        if half_slow || some_slow {
            let what = format!(
                "the disk of node {id} is slow: of the last {} syncs half took over {}, and one of a hundred over {}; every \
                 write waits for them",
                disk.syncs_measured,
                millis(disk.sync_p50_micros),
                millis(disk.sync_p99_micros)
            );
            let remedy = "see what else writes to that disk, and its health (smartctl); a disk that honours a sync in 10 ms is \
                          slow, one of 1 ms is common";
            self.find("disk_slow", Some(id), None, what, remedy);
        }
    }

    fn versions(&mut self) {
        let mut nodes: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for node in &self.now.nodes {
            if let Some(version) = &node.version {
                nodes.entry(version).or_default().push(node.id);
            }
        }
        if nodes.len() > 1 {
            let runs = |(version, ids): (&&str, &Vec<u64>)| format!("{version} on node {}", list(ids));
            let what = format!("the nodes run different versions: {}", list(nodes.iter().map(runs)));
            self.find("versions_differ", None, None, what, "finish the upgrade");
        }
    }

    fn group(&mut self, group: &GroupStatus) {
        let name = &group.name;
        let answers = |id: &u64| {
            let replica = group.replicas.iter().find(|replica| replica.node == *id);
            replica.is_some_and(|replica| replica.term.is_some() && !replica.state.starts_with("stopped"))
        };
        let (up, down): (Vec<u64>, Vec<u64>) = group.voters.iter().copied().partition(answers);
        let majority = group.voters.len() / 2 + 1;
        if group.leader.is_none() {
            let (why, remedy) = if up.len() < majority {
                let why = if group.voters.is_empty() {
                    "no node that answers runs a replica of it, so that its voters are not known".to_owned()
                } else {
                    let voters = list(&group.voters);
                    format!("of its voters {voters} only {} run, and {majority} are needed", up.len())
                };
                (why, "start the others; if they are lost for good, docs/operations.md says what can be done")
            } else {
                (format!("its voters {} run", list(&up)), "look again in a few seconds; if it stays so, see their logs")
            };
            self.find("no_leader", None, Some(name), format!("group {name} has no leader: {why}"), remedy);
        } else if !down.is_empty() && up.len() == majority && group.voters.len() > 1 {
            let what = format!("group {name} has the least voters that it can go on with: {} do not run", list(&down));
            self.find(
                "majority_at_risk",
                None,
                Some(name),
                what,
                "bring them back, or replace them, before another fails",
            );
        }
        if group.voters.len() > 1 && group.voters.len().is_multiple_of(2) && !self.is_changing(group) {
            let what = format!(
                "group {name} has {} voters ({}): as many may fail as with {}, and more have to agree",
                group.voters.len(),
                list(&group.voters),
                group.voters.len() - 1
            );
            let remedy = match group.id {
                CATALOG => "`statehouse node add` another, or `statehouse node rm` one".to_owned(),
                _ => format!("`statehouse member add {name} NODE` another, or `statehouse member rm {name} NODE` one"),
            };
            self.find("even_voters", None, Some(name), what, &remedy);
        }
        self.membership(group);
        for replica in &group.replicas {
            self.replica(group, replica);
        }
        self.learners(group);
    }

    /// Whether nodes disagree about who belongs to the group, and no change explains it.
    fn membership(&mut self, group: &GroupStatus) {
        let name = &group.name;
        if self.is_changing(group) {
            return;
        }
        if group.joint {
            let what = format!("group {name}: a change of its voters was left half done");
            let remedy = "any further change of its members ends it; wait a little first, its leader tries by itself";
            self.find("change_half_done", None, Some(name), what, remedy);
        }
        let Some(entry) = self.catalog.groups.values().find(|entry| entry.id == group.id) else { return };
        let members: BTreeSet<u64> = group.voters.union(&group.learners).copied().collect();
        // Without a member that answers nothing is known.
        if !members.is_empty() && members != entry.hosts {
            let what = format!(
                "the nodes disagree about group {name}: by the catalog it is on {}, its own members are {}",
                list(&entry.hosts),
                list(&members)
            );
            let remedy = format!(
                "`statehouse change ls` shows what was begun; ask for the members you want with \
                                  `statehouse member add {name} NODE` and `member rm`"
            );
            self.find("membership_disagrees", None, Some(name), what, &remedy);
        }
    }

    fn replica(&mut self, group: &GroupStatus, replica: &ReplicaStatus) {
        let (name, node) = (&group.name, replica.node);
        if let Some(why) = replica.state.strip_prefix("stopped") {
            let what = format!("the replica of group {name} on node {node} has stopped{why}");
            let remedy = "see the node's log, and start the node again; docs/operations.md says more";
            self.find("replica_stopped", Some(node), Some(name), what, remedy);
        } else if replica.state == "missing" && !self.is_changing(group) {
            let what = format!("node {node} does not run its replica of group {name}");
            let remedy = "`/readyz?verbose` of that node says why";
            self.find("replica_missing", Some(node), Some(name), what, remedy);
        } else if let (Some(applied), Some(due)) = (replica.applied, self.commit_before(group))
            && applied < due
        {
            let what = format!(
                "the replica of group {name} on node {node} lags: it lacks {} entries, among them some that were committed over \
                 {} ms ago",
                group.commit.saturating_sub(applied),
                self.between_ms
            );
            let remedy = "if it does not catch up by itself, see that node's load, its disk and its network";
            self.find("replica_lags", Some(node), Some(name), what, remedy);
        }
    }

    /// What the group's leader had committed at the first look; nothing when there was none.
    fn commit_before(&self, group: &GroupStatus) -> Option<u64> {
        let before = self.before.groups.iter().find(|before| before.id == group.id)?;
        before.leader.map(|_| before.commit)
    }

    /// Learners that were to become voters, and whose change ended without that.
    fn learners(&mut self, group: &GroupStatus) {
        if group.id == CATALOG || self.is_changing(group) {
            return;
        }
        for node in group.learners.iter().copied() {
            let about = |change: &&Change| match &change.kind {
                ChangeKind::MemberAdd { group: of, node: added, .. } => *added == node && *of == group.name,
                ChangeKind::MemberSet { group: of, voters } => voters.contains(&node) && *of == group.name,
                ChangeKind::GroupMove { group: of, to, .. } => *to == node && *of == group.name,
                ChangeKind::NodeAdd { node: added, .. } => *added == node,
                _ => false,
            };
            let last = self.changes().filter(about).max_by_key(|change| change.id);
            if let Some(Change { id, kind, state: ChangeState::Failed(error), .. }) = last {
                let name = &group.name;
                let what = format!(
                    "node {node} is a learner of group {name} and was to vote: change {id} ({kind}) ended with {}",
                    error.code.as_str()
                );
                let remedy = format!(
                    "`statehouse member promote {name} {node}` lets it vote, `statehouse member rm {name} {node}` takes it away"
                );
                self.find("learner_forgotten", Some(node), Some(name), what, &remedy);
            }
        }
    }

    fn changes(&self) -> impl Iterator<Item = &Change> {
        self.catalog.changes.values()
    }

    /// Whether a change that runs may touch the group's members.
    fn is_changing(&self, group: &GroupStatus) -> bool {
        self.changes().any(|change| change.is_running() && change.kind.group().is_none_or(|name| name == group.name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::membership::Roster;
    use crate::membership::RosterMember;
    use crate::service::ErrorCode;
    use crate::service::ServiceError;
    use crate::status::Known;
    use crate::status::KnownNode;
    use crate::status::NodeReport;
    use crate::status::ReplicaReport;

    /// Nodes of one group, the catalog, led by node 1; all is well.
    struct World {
        catalog: Catalog,
        nodes: BTreeMap<u64, KnownNode>,
    }

    impl World {
        fn of(count: u64) -> Self {
            let members: BTreeMap<u64, RosterMember> = (1..=count)
                .map(|id| {
                    (id, RosterMember { address: format!("n{id}"), voter: true, matched: Some(100), receives: None })
                })
                .collect();
            let replica = |node| ReplicaReport {
                group: CATALOG,
                name: "catalog".into(),
                roster: Roster { node, leader: Some(1), last: 100, members: members.clone(), ..Roster::default() },
                state: if node == 1 { "leader" } else { "follower" }.into(),
                term: 3,
                commit: 100,
                applied: 100,
                ..ReplicaReport::default()
            };
            let disk = DiskStatus {
                free_bytes: 50 << 30,
                total_bytes: 100 << 30,
                reserve_bytes: 256 << 20,
                syncs_measured: 256,
                sync_p50_micros: 900,
                sync_p99_micros: 4000,
                ..DiskStatus::default()
            };
            let report = |node| NodeReport {
                node,
                version: "1".into(),
                disk: disk.clone(),
                groups: vec![replica(node)],
                ..NodeReport::default()
            };
            let known =
                |node| KnownNode { address: format!("n{node}"), role: "voter".into(), report: Ok(report(node)) };
            Self { catalog: Catalog::default(), nodes: (1..=count).map(|node| (node, known(node))).collect() }
        }

        fn report(&mut self, node: u64) -> &mut NodeReport {
            self.nodes.get_mut(&node).unwrap().report.as_mut().unwrap()
        }

        fn status(&self) -> ClusterStatus {
            Known { cluster: [1; 16], node: 1, at_ms: 0, catalog: &self.catalog, nodes: self.nodes.clone() }.status()
        }

        /// What is found when all was well a second ago.
        fn found(&self) -> Vec<(String, Option<u64>)> {
            let before = World::of(self.nodes.len() as u64).status();
            let diagnosis = diagnose(&before, &self.status(), 1000, &self.catalog);
            assert_eq!(diagnosis.healthy, diagnosis.findings.is_empty());
            diagnosis.findings.into_iter().map(|finding| (finding.code, finding.node)).collect()
        }
    }

    fn finding(code: &str, node: Option<u64>) -> (String, Option<u64>) {
        (code.to_owned(), node)
    }

    #[test]
    fn nothing_is_found_when_nothing_is_wrong() {
        assert_eq!(World::of(3).found(), []);
        assert_eq!(World::of(1).found(), []);
    }

    #[test]
    fn a_node_that_does_not_answer_is_in_the_status_and_found() {
        let mut world = World::of(3);
        world.nodes.get_mut(&3).unwrap().report = Err("connection refused".into());
        assert_eq!(world.found(), [finding("node_unreachable", Some(3)), finding("majority_at_risk", None)]);
        let status = world.status();
        assert_eq!((status.nodes[2].state.as_str(), status.nodes.len()), ("unreachable", 3));
        let replica = &status.groups[0].replicas[2];
        assert_eq!((replica.state.as_str(), replica.role.as_str(), replica.lag), ("unreachable", "voter", Some(0)));
    }

    #[test]
    fn without_a_majority_there_is_no_leader_and_the_doctor_says_how_many_lack() {
        let mut world = World::of(3);
        for lost in [1, 2] {
            world.nodes.get_mut(&lost).unwrap().report = Err("gone".into());
        }
        let before = World::of(3).status();
        let diagnosis = diagnose(&before, &world.status(), 1000, &world.catalog);
        let found = diagnosis.findings.iter().find(|finding| finding.code == "no_leader").unwrap();
        assert!(found.what.contains("of its voters 1, 2, 3 only 1 run, and 2 are needed"), "{}", found.what);
    }

    /// It said "of its voters  only 0 run": who could tell who they are does not run.
    #[test]
    fn of_a_group_that_runs_nowhere_the_doctor_does_not_count_its_voters() {
        let mut world = World::of(1);
        with_group(&mut world, &[1], &[(1, true)]);
        world.report(1).groups.pop();
        let before = World::of(1).status();
        let diagnosis = diagnose(&before, &world.status(), 1000, &world.catalog);
        let found = diagnosis.findings.iter().find(|finding| finding.code == "no_leader").unwrap();
        let what =
            "group store has no leader: no node that answers runs a replica of it, so that its voters are not known";
        assert_eq!(found.what, what);
    }

    /// However far behind a replica is: what counts is that it has not got what was committed a second ago.
    #[test]
    fn a_replica_lags_by_time_and_not_by_entries() {
        let mut world = World::of(3);
        for node in 1..=3 {
            world.report(node).groups[0].commit = 90_000;
            world.report(node).groups[0].applied = 90_000;
        }
        world.report(2).groups[0].applied = 100;
        assert_eq!(world.found(), [], "a second ago 100 were committed, and it has these");
        world.report(2).groups[0].applied = 99;
        assert_eq!(world.found(), [finding("replica_lags", Some(2))]);
        let status = world.status();
        assert_eq!(status.groups[0].replicas[1].lag, Some(89_901));
    }

    #[test]
    fn disks_are_found_slow_short_and_nearly_full() {
        let mut world = World::of(3);
        world.report(1).disk.sync_p50_micros = 80_000;
        world.report(2).disk.free_bytes = 5 << 30;
        world.report(3).disk.free_bytes = 100 << 20;
        let found =
            [finding("disk_slow", Some(1)), finding("disk_nearly_full", Some(2)), finding("disk_full", Some(3))];
        assert_eq!(world.found(), found);
        // Two syncs of a node that has just begun say nothing.
        world.report(1).disk.syncs_measured = 2;
        assert_eq!(world.found(), found[1..]);
    }

    /// On a machine that was busy for a moment one sync of the first few dozen took 1.1 s. It was "one of a hundred", and stayed the
    /// slowest of them for as long as nobody wrote: the doctor called the disk slow without an end.
    #[test]
    fn one_slow_sync_of_fewer_than_a_hundred_is_no_slow_disk() {
        let mut world = World::of(3);
        world.report(1).disk.sync_p99_micros = 1_100_000;
        world.report(1).disk.syncs_measured = 99;
        assert_eq!(world.found(), []);
        world.report(1).disk.syncs_measured = 100;
        assert_eq!(world.found(), [finding("disk_slow", Some(1))]);
    }

    #[test]
    fn an_even_number_of_voters_is_found_unless_a_change_is_on_its_way() {
        let mut world = World::of(4);
        assert_eq!(world.found(), [finding("even_voters", None)]);
        let kind = ChangeKind::NodeAdd { node: 5, learner: false };
        let state = ChangeState::Running("it catches up".into());
        world.catalog.changes.insert(1, Change { id: 1, kind, state, began_ms: 0, changed_ms: 0 });
        assert_eq!(world.found(), []);
        assert_eq!(world.status().changes.len(), 1);
    }

    #[test]
    fn a_node_that_joined_and_was_forgotten_is_found_and_one_that_was_added_is_not() {
        let mut world = World::of(4);
        for node in 1..=4 {
            world.report(node).groups[0].roster.members.get_mut(&4).unwrap().voter = false;
        }
        world.nodes.get_mut(&4).unwrap().role = "learner".into();
        assert_eq!(world.found(), [finding("learner_forgotten", Some(4))]);
        let kind = ChangeKind::NodeAdd { node: 4, learner: true };
        world.catalog.changes.insert(1, Change { id: 1, kind, state: ChangeState::Done, began_ms: 0, changed_ms: 0 });
        assert_eq!(world.found(), [], "it is a learner on purpose");
    }

    fn with_group(world: &mut World, hosts: &[u64], members: &[(u64, bool)]) {
        let entry = crate::catalog::GroupEntry {
            id: 7,
            module: "kv".into(),
            digest: [0; 32],
            modules: Vec::new(),
            params: Vec::new(),
            limits: crate::module::Limits::default(),
            seed: 0,
            created_ms: 0,
            members: BTreeMap::new(),
            hosts: hosts.iter().copied().collect(),
            replicas: None,
            listen: Vec::new(),
            listen_params: Vec::new(),
            base: None,
        };
        world.catalog.groups.insert("store".into(), entry);
        let member = |voter| RosterMember { address: String::new(), voter, matched: Some(1), receives: None };
        let members: BTreeMap<u64, RosterMember> = members.iter().map(|(id, voter)| (*id, member(*voter))).collect();
        for node in hosts {
            let roster =
                Roster { node: *node, leader: Some(1), last: 1, members: members.clone(), ..Roster::default() };
            let state = if *node == 1 { "leader" } else { "follower" }.to_owned();
            let replica = ReplicaReport { group: 7, name: "store".into(), roster, state, ..ReplicaReport::default() };
            world.report(*node).groups.push(replica);
        }
    }

    #[test]
    fn the_catalog_and_the_group_must_agree_about_the_members() {
        let mut world = World::of(3);
        with_group(&mut world, &[1, 2, 3], &[(1, true), (2, true), (3, true)]);
        assert_eq!(world.found(), []);
        with_group(&mut world, &[1, 2], &[(1, true), (2, true), (3, true)]);
        assert!(world.found().contains(&finding("membership_disagrees", None)));
    }

    /// A leader that went away between the two configurations of a change: the next one ends it, or somebody must.
    #[test]
    fn a_change_of_voters_that_was_left_half_done_is_found_unless_it_goes_on() {
        let mut world = World::of(3);
        world.report(1).groups[0].roster.joint = true;
        assert_eq!(world.found(), [finding("change_half_done", None)]);
        let kind = ChangeKind::NodeRemove { node: 3 };
        let state = ChangeState::Running("its replicas go".into());
        world.catalog.changes.insert(1, Change { id: 1, kind, state, began_ms: 0, changed_ms: 0 });
        assert_eq!(world.found(), []);
    }

    #[test]
    fn a_learner_whose_promotion_failed_is_found_and_one_on_purpose_is_not() {
        let mut world = World::of(3);
        with_group(&mut world, &[1, 2, 3], &[(1, true), (2, false), (3, false)]);
        let change = |id, node, state| {
            let kind = ChangeKind::MemberAdd { group: "store".into(), node, learner: node == 3 };
            (id, Change { id, kind, state, began_ms: 0, changed_ms: 0 })
        };
        let cancelled = ChangeState::Failed(ServiceError::new(ErrorCode::Cancelled, "it was cancelled"));
        world.catalog.changes.extend([change(1, 2, cancelled), change(2, 3, ChangeState::Done)]);
        assert_eq!(world.found(), [finding("learner_forgotten", Some(2))]);
    }

    #[test]
    fn a_replica_that_stopped_or_does_not_run_is_found_by_its_node() {
        let mut world = World::of(3);
        with_group(&mut world, &[1, 2, 3], &[(1, true), (2, true), (3, true)]);
        world.report(2).groups[1].state = "stopped: no memory".into();
        world.report(3).groups.pop();
        let found = world.found();
        assert!(found.contains(&finding("replica_stopped", Some(2))), "{found:?}");
        assert!(found.contains(&finding("replica_missing", Some(3))), "{found:?}");
    }
}
