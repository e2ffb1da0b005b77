//! What makes a node a ZooKeeper replacement, as far as the host has a part in it: a group and a listener that are there
//! from the start, and the files of an existing ensemble. The protocol and the tree are the bundled module `znode-tree`'s;
//! the rest of the host knows nothing of this folder.
//!
//! * [`settings`]: the flags of `statehouse keeper`, and what becomes of them;
//! * [`ensure`]: module and group, made by whichever node gets there first;
//! * [`dump`]: a server's data directory; [`load`]: how the module takes it in;
//! * [`zoo_cfg`]: an ensemble's `zoo.cfg` as settings of ours; [`properties`]: the syntax it is written in.

pub mod dump;
pub mod ensure;
pub mod load;
pub mod properties;
pub mod settings;
pub mod zoo_cfg;
