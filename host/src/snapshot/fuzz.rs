//! What the fuzzer does with bytes: a snapshot file.

use std::io::Read;

use super::SnapshotReader;

/// Reads `bytes` as a snapshot file: an error or a head and a payload, no panic, no allocation by a forged length; and what
/// verifies reads whole.
pub fn file(bytes: &[u8]) {
    let Ok((_, reader)) = SnapshotReader::open(bytes) else { return };
    let verified = reader.verify();
    let again = SnapshotReader::open(bytes);
    assert!(again.is_ok(), "the same head is refused the second time");
    let Ok((_, mut reader)) = again else { return };
    let read = reader.read_to_end(&mut Vec::new());
    match verified {
        Ok(digest) => {
            assert!(read.is_ok(), "a snapshot that verifies does not read to its end: {read:?}");
            assert_eq!(reader.digest(), Some(digest));
        }
        Err(_) => assert!(read.is_err() || reader.digest().is_none(), "what does not verify was read as whole"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;
    use std::sync::Arc;

    use openraft::vote::leader_id_std::CommittedLeaderId;

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::sim::SimRandom;
    use crate::snapshot::Head;
    use crate::snapshot::SnapshotStore;
    use crate::types::LogId;

    fn snapshot(payload: &[u8]) -> Vec<u8> {
        let disk = SimDisk::new();
        let store = SnapshotStore::open(Arc::new(disk.clone()), "/groups/7".into(), 1, 0).unwrap();
        let head = Head {
            group: 7,
            last_log_id: LogId::new(CommittedLeaderId::new(3), 100),
            membership: Default::default(),
            module: [1; 32],
            host_state: vec![2; 100],
            made: Vec::new(),
            change: 0,
        };
        let mut writer = store.write(&head).unwrap();
        writer.write_all(payload).unwrap();
        let file = writer.finish(&head).unwrap();
        disk.read(file.path()).unwrap()
    }

    /// A first round of fuzzing on every test run: files with bytes altered, cut and added, and whole ones.
    #[test]
    fn random_files_never_panic() {
        let rounds = std::env::var("STATEHOUSE_SEEDS").map_or(4000, |seeds| seeds.parse().unwrap());
        let files = [snapshot(b""), snapshot(&[7; 500])];
        let mut random = SimRandom::new(1);
        let mut whole = 0;
        for round in 0..rounds {
            let mut bytes = files.get(round % 2).unwrap().clone();
            for _ in 0..random.between(0, 3) {
                let at = random.between(0, bytes.len() as u64) as usize;
                match random.between(0, 3) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, random.between(0, 255) as u8),
                    _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.between(0, 7)),
                }
            }
            file(&bytes);
            whole += usize::from(files.contains(&bytes));
        }
        assert!(whole > rounds / 8, "{whole} files were whole");
    }
}
