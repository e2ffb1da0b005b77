//! One session's requests, each appended to the buffer it is sent from.
//!
//! Invariants:
//! * Only nodes are removed that this session created before, on the same connection: requests of a session
//!   are carried out in order, so no removal comes too early.
//! * A request costs no allocation, but for the list of created nodes, which grows.

use std::rc::Rc;

use super::random::Random;
use super::tree::Node;
use super::tree::Places;
use super::tree::Tree;
use super::wire;
use super::wire::Kind;
use super::wire::Part;
use super::workload;
use super::workload::Span;
use super::workload::Workload;

/// What all sessions share.
#[derive(Debug)]
pub(super) struct Material {
    pub tree: Tree,
    pub value_bytes: Span,
    /// Values are pieces of this: drawing each byte would cost more than sending it.
    pub noise: Vec<u8>,
}

/// How much further than the longest value the noise reaches: so many pieces there are to choose from.
const NOISE_BYTES: usize = 64 << 10;

impl Material {
    pub(super) fn new(prefix: &str, workload: &Workload, seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x6e6f_6973_6500);
        let words = (NOISE_BYTES + workload.value_bytes.most as usize).div_ceil(8);
        Self {
            tree: Tree { prefix: prefix.to_owned(), keys: workload.keys, name_bytes: workload.name_bytes },
            value_bytes: workload.value_bytes,
            noise: (0..words).flat_map(|_| random.next().to_le_bytes()).collect(),
        }
    }

    /// A value of a length that the workload has.
    pub(super) fn value(&self, random: &mut Random) -> &[u8] {
        let length = random.within(self.value_bytes) as usize;
        let start = random.below(NOISE_BYTES as u64) as usize;
        self.noise.get(start..start + length).unwrap_or_default()
    }
}

/// Draws requests.
pub(super) struct Generator {
    material: Rc<Material>,
    random: Random,
    steps: Weighted<Step>,
}

enum Step {
    Read(Kind, Places),
    Set(Places),
    Create(Creating),
    Sync,
    Multi(Kind, Span, Weighted<PartStep>),
}

enum PartStep {
    /// A get, a list or a check.
    At(Part, Places),
    Set(Places),
    Create(Creating),
}

/// Creates, and removes what it created.
struct Creating {
    under: Places,
    remove: f64,
    created: Vec<(Node, u64)>,
}

enum Change {
    Create(Node, u64),
    Remove(Node, u64),
}

impl Creating {
    fn new(create: &workload::Create, keys: u32) -> Self {
        Self { under: Places::new(&create.under, keys), remove: create.remove, created: Vec::new() }
    }

    fn next(&mut self, random: &mut Random) -> Change {
        if !self.created.is_empty() && random.happens(self.remove) {
            let (parent, name) = self.created.swap_remove(random.below(self.created.len() as u64) as usize);
            return Change::Remove(parent, name);
        }
        let (parent, name) = (self.under.pick(random), random.next());
        self.created.push((parent, name));
        Change::Create(parent, name)
    }
}

/// Things that are drawn with different likelihood.
struct Weighted<T> {
    items: Vec<(u32, T)>,
    sum: u64,
}

impl<T> Weighted<T> {
    fn new() -> Self {
        Self { items: Vec::new(), sum: 0 }
    }

    fn add(&mut self, weight: u32, item: T) {
        self.items.push((weight, item));
        self.sum += u64::from(weight);
    }

    fn draw(&mut self, random: &mut Random) -> Option<&mut T> {
        let mut rank = random.below(self.sum);
        for (weight, item) in &mut self.items {
            if rank < u64::from(*weight) {
                return Some(item);
            }
            rank -= u64::from(*weight);
        }
        None
    }
}

impl Generator {
    /// Sessions with different seeds send different requests.
    pub(super) fn new(material: Rc<Material>, workload: &Workload, seed: u64) -> Self {
        let keys = workload.keys;
        let mut steps = Weighted::new();
        for (kind, at) in [(Kind::Get, &workload.get), (Kind::Exists, &workload.exists), (Kind::List, &workload.list)] {
            if let Some(at) = at {
                steps.add(at.weight, Step::Read(kind, Places::new(&at.at, keys)));
            }
        }
        if let Some(set) = &workload.set {
            steps.add(set.weight, Step::Set(Places::new(&set.at, keys)));
        }
        if let Some(create) = &workload.create {
            steps.add(create.weight, Step::Create(Creating::new(create, keys)));
        }
        if let Some(sync) = &workload.sync {
            steps.add(sync.weight, Step::Sync);
        }
        if let Some(multi) = &workload.multi {
            let kind = if multi.reads() { Kind::MultiRead } else { Kind::Multi };
            steps.add(multi.weight, Step::Multi(kind, multi.size, parts_of(multi, keys)));
        }
        Self { material, random: Random::new(seed), steps }
    }

    /// Appends the next request.
    pub(super) fn put_next(&mut self, out: &mut Vec<u8>, xid: i32) -> Kind {
        let (material, random) = (&*self.material, &mut self.random);
        let tree = &material.tree;
        // A workload has at least one request with a weight.
        let Some(step) = self.steps.draw(random) else {
            wire::put_request(out, xid, Kind::Sync, |out| {
                wire::put_sync_body(out, |out| tree.put_path(out, Node::Hot));
            });
            return Kind::Sync;
        };
        match step {
            Step::Read(kind, places) => {
                let node = places.pick(random);
                wire::put_request(out, xid, *kind, |out| wire::put_read_body(out, |out| tree.put_path(out, node)));
                *kind
            }
            Step::Set(places) => {
                let node = places.pick(random);
                wire::put_request(out, xid, Kind::Set, |out| {
                    wire::put_set_body(out, |out| tree.put_path(out, node), material.value(random));
                });
                Kind::Set
            }
            Step::Create(creating) => match creating.next(random) {
                Change::Create(parent, name) => {
                    wire::put_request(out, xid, Kind::Create, |out| {
                        let value = material.value(random);
                        wire::put_create_body(out, |out| tree.put_created(out, parent, name), value);
                    });
                    Kind::Create
                }
                Change::Remove(parent, name) => {
                    wire::put_request(out, xid, Kind::Remove, |out| {
                        wire::put_remove_body(out, |out| tree.put_created(out, parent, name));
                    });
                    Kind::Remove
                }
            },
            Step::Sync => {
                wire::put_request(out, xid, Kind::Sync, |out| {
                    wire::put_sync_body(out, |out| tree.put_path(out, Node::Hot));
                });
                Kind::Sync
            }
            Step::Multi(kind, size, parts) => {
                wire::put_request(out, xid, *kind, |out| {
                    for _ in 0..random.within(*size) {
                        put_part(out, material, random, parts);
                    }
                    wire::put_multi_end(out);
                });
                *kind
            }
        }
    }
}

fn parts_of(multi: &workload::Multi, keys: u32) -> Weighted<PartStep> {
    let mut parts = Weighted::new();
    for (part, at) in [(Part::Get, &multi.get), (Part::List, &multi.list), (Part::Check, &multi.check)] {
        if let Some(at) = at {
            parts.add(at.weight, PartStep::At(part, Places::new(&at.at, keys)));
        }
    }
    if let Some(set) = &multi.set {
        parts.add(set.weight, PartStep::Set(Places::new(&set.at, keys)));
    }
    if let Some(create) = &multi.create {
        parts.add(create.weight, PartStep::Create(Creating::new(create, keys)));
    }
    parts
}

fn put_part(out: &mut Vec<u8>, material: &Material, random: &mut Random, parts: &mut Weighted<PartStep>) {
    let tree = &material.tree;
    match parts.draw(random) {
        // A multi has at least one operation with a weight.
        None => {}
        Some(PartStep::At(part, places)) => {
            let node = places.pick(random);
            wire::put_part(out, *part);
            match part {
                Part::Check => wire::put_remove_body(out, |out| tree.put_path(out, node)),
                _ => wire::put_read_body(out, |out| tree.put_path(out, node)),
            }
        }
        Some(PartStep::Set(places)) => {
            let node = places.pick(random);
            wire::put_part(out, Part::Set);
            wire::put_set_body(out, |out| tree.put_path(out, node), material.value(random));
        }
        Some(PartStep::Create(creating)) => match creating.next(random) {
            Change::Create(parent, name) => {
                wire::put_part(out, Part::Create);
                wire::put_create_body(out, |out| tree.put_created(out, parent, name), material.value(random));
            }
            Change::Remove(parent, name) => {
                wire::put_part(out, Part::Remove);
                wire::put_remove_body(out, |out| tree.put_created(out, parent, name));
            }
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::collections::BTreeMap;

    use super::*;

    fn generator(name: &str, seed: u64) -> Generator {
        let workload = Workload::find(name).unwrap();
        Generator::new(Rc::new(Material::new("/b", &workload, 1)), &workload, seed)
    }

    #[test]
    fn the_kinds_come_in_their_proportions() {
        let mut generator = generator("prod-mix", 3);
        let mut counts = BTreeMap::new();
        let mut out = Vec::new();
        for xid in 0..20_000 {
            out.clear();
            *counts.entry(generator.put_next(&mut out, xid)).or_insert(0.0_f64) += 1.0 / 20_000.0;
        }
        for (kind, share) in [
            (Kind::Get, 0.396),
            (Kind::Create, 0.354 * 0.51),
            (Kind::Remove, 0.354 * 0.49),
            (Kind::Set, 0.094),
            (Kind::Multi, 0.115),
            (Kind::List, 0.042),
        ] {
            assert!((counts[&kind] - share).abs() < 0.015, "{kind:?}: {} for {share}", counts[&kind]);
        }
    }

    #[test]
    fn the_same_seed_sends_the_same_bytes() {
        let bytes = |seed| {
            let mut out = Vec::new();
            let mut generator = generator("write-multi", seed);
            for xid in 1..100 {
                generator.put_next(&mut out, xid);
            }
            out
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
    }

    /// A tree in the test follows all creations and removals: none fails.
    #[test]
    fn nothing_is_removed_that_is_not_there_and_nothing_is_created_twice() {
        let mut creating = Creating::new(&Workload::find("churn").unwrap().create.unwrap(), 64);
        let (mut random, mut there) = (Random::new(5), Vec::new());
        for _ in 0..10_000 {
            match creating.next(&mut random) {
                Change::Create(parent, name) => {
                    assert!(!there.contains(&(parent, name)));
                    there.push((parent, name));
                }
                Change::Remove(parent, name) => {
                    let place = there.iter().position(|node| *node == (parent, name)).expect("it is there");
                    there.swap_remove(place);
                }
            }
        }
    }

    #[test]
    fn values_have_the_lengths_of_the_workload() {
        let workload = Workload::parse("x", "value-bytes = [10, 12]\n[set]\nat = [\"hot\"]").unwrap();
        let material = Material::new("/b", &workload, 1);
        let mut random = Random::new(1);
        let lengths: std::collections::BTreeSet<usize> = (0..1000).map(|_| material.value(&mut random).len()).collect();
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [10, 11, 12]);
    }
}
