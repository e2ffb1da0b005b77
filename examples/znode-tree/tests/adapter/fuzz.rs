//! Lengths that are lies. (What else clients may come up with is in the crate's `fuzz`.)

use znode_tree::jute::Writer;

use crate::world::World;
use crate::world::request;

/// One byte short, one too many, each field at its worst: for every length in a frame.
#[test]
fn no_length_is_believed() {
    let mut world = World::new(1);
    for operation in (1..25).chain(100..110) {
        for length in [i32::MIN, -2, -1, 0, 1, 1 << 20, i32::MAX] {
            let mut peer = world.connect(0);
            let mut rest = Vec::new();
            Writer::new(&mut rest).i32(length).raw(b"/abc").i32(length).i32(length);
            world.send(&peer, &request(1, operation, &rest));
            world.desk.run();
            assert!(world.all(&mut peer).len() <= 3);
        }
    }
}
