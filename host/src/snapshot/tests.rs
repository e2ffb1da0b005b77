#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use openraft::vote::leader_id_std::CommittedLeaderId;

use super::*;
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::types::LogId;

const FLOOR: u64 = 1 << 20;
const DIR: &str = "/groups/7";

fn head(index: u64) -> Head {
    Head {
        group: 7,
        last_log_id: LogId::new(CommittedLeaderId::new(3), index),
        membership: Default::default(),
        module: [1; 32],
        host_state: vec![2; 100],
        made: Vec::new(),
        change: 0,
    }
}

fn is_full(error: io::Error) -> bool {
    let error = SnapshotError::of_writing(Path::new(DIR), error);
    matches!(&error, SnapshotError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
}

/// There is room when a snapshot is begun, and somebody else takes it meanwhile. It ends at the chunk that would take what is
/// the log's, leaves nothing behind, and the one before it is still the newest; with room again the next one comes through.
#[test]
fn a_snapshot_that_comes_to_the_disk_floor_midway_ends_there_and_leaves_the_log_its_space() {
    let disk = SimDisk::new();
    let store = SnapshotStore::open(Arc::new(disk.clone()), DIR.into(), 1, FLOOR).unwrap();
    let left = || disk.list(Path::new(DIR)).unwrap();
    let newest = || store.newest().unwrap().found.unwrap().0.last_log_id.index;
    let chunk = vec![7; 256 << 10];
    store.write(&head(1)).unwrap().finish(&head(1)).unwrap();
    let earlier = left();

    disk.set_space(Some(FLOOR + (1 << 20)));
    let mut writer = store.write(&head(2)).unwrap();
    writer.write_all(&chunk).unwrap();
    disk.set_space(Some(FLOOR + (300 << 10)));
    writer.write_all(&chunk).unwrap();
    assert!(is_full(writer.write_all(&chunk).unwrap_err()));
    assert!(disk.free_space(Path::new(DIR)).unwrap() >= FLOOR, "it took what is the log's");
    writer.abandon();
    assert_eq!(left(), earlier);

    // The last chunk is not full, and is written at the end.
    disk.set_space(Some(FLOOR + (300 << 10)));
    let mut writer = store.write(&head(2)).unwrap();
    writer.write_all(&chunk).unwrap();
    writer.write_all(&vec![7; 100 << 10]).unwrap();
    let error = writer.finish(&head(2)).unwrap_err();
    assert!(
        matches!(&error, SnapshotError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull),
        "{error}"
    );
    assert!(disk.free_space(Path::new(DIR)).unwrap() >= FLOOR, "it took what is the log's");
    assert_eq!(left(), earlier);
    assert_eq!(newest(), 1);

    disk.set_space(Some(FLOOR + (1 << 20)));
    let mut writer = store.write(&head(2)).unwrap();
    writer.write_all(&chunk).unwrap();
    writer.finish(&head(2)).unwrap();
    assert_eq!(newest(), 2);
}
