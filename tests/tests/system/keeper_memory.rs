//! What a znode takes in the memory of the module that nodes run.

use statehouse::module::Context;
use statehouse::module::Effects;
use statehouse::module::Engine;
use statehouse::module::Limits;
use statehouse::module::Machine;
use statehouse::module::Outcome;
use statehouse_tests::modules;
use znode_tree::call::Call;
use znode_tree::jute::Writer;
use znode_tree::wire::op;

const NODES: u64 = 40_000;
const NAME_BYTES: u64 = 12;
const DATA_BYTES: usize = 100;

struct Bed {
    machine: Machine,
    effects: Effects,
    index: u64,
}

impl Bed {
    fn run(&mut self, operation: i32, write: impl FnOnce(&mut Writer<'_>)) {
        let (mut body, mut command) = (Vec::new(), Vec::new());
        write(&mut Writer::new(&mut body));
        Call { operation, identities: Vec::new(), body: &body }.encode(&mut command);
        self.index += 1;
        // A moment of November 2026.
        let context = Context { index: self.index, time_ms: 1_795_000_000_000 + self.index, ..Context::default() };
        let outcome = self.machine.apply(&context, &command, &mut self.effects).unwrap();
        assert!(matches!(&outcome, Outcome::Reply(reply) if reply.starts_with(&[0; 4])), "{outcome:?}");
    }

    fn create(&mut self, path: &str, data: &[u8]) {
        self.run(op::CREATE, |out| {
            out.text(path).buffer(Some(data)).count(1).i32(31).text("world").text("anyone").i32(0);
        });
    }
}

fn path(number: u64) -> String {
    format!("/pool/key-{number:08}")
}

/// A znode used to take 131 bytes beside its name and its data, so that three nodes with a million of them held more than a
/// third of what ZooKeeper does: all numbers of a stat though most followed from two, links to children though most had none,
/// and two allocations.
#[test]
fn a_znode_takes_fifty_bytes_beside_its_name_and_data_and_a_change_forty_more() {
    let module = Engine::new().unwrap().load(modules::bundled("znode-tree"), None).unwrap();
    statehouse::module::mark_guest_thread();
    let mut effects = Effects::default();
    let machine = Machine::init(&module, &Limits::default(), &Context::default(), b"{}", &mut effects).unwrap();
    let mut bed = Bed { machine, effects, index: 0 };
    bed.create("/pool", b"");
    let empty = bed.machine.memory_bytes();
    (0..NODES).for_each(|number| bed.create(&path(number), &[7; DATA_BYTES]));
    let full = bed.machine.memory_bytes();
    let beside = (full - empty) / NODES - NAME_BYTES - DATA_BYTES as u64;
    assert!(beside <= 50, "{beside} bytes a node, beside its name and its data");

    for number in 0..NODES {
        bed.run(op::SET_DATA, |out| _ = out.text(&path(number)).buffer(Some(&[8; DATA_BYTES])).i32(0));
    }
    let more = (bed.machine.memory_bytes() - full) / NODES;
    // Twenty-four, and what the old bytes leave between the new ones.
    assert!(more <= 40, "{more} bytes more for a node that was changed");
    let changed = bed.machine.memory_bytes();
    for number in 0..NODES {
        bed.run(op::SET_DATA, |out| _ = out.text(&path(number)).buffer(Some(&[9; DATA_BYTES])).i32(1));
    }
    assert_eq!(bed.machine.memory_bytes(), changed, "what is changed again is changed in its place");
}
