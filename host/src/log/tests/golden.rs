//! The format, byte by byte: a change here is a change of the format and needs a new version.

use super::harness::*;
use crate::disk::sim::SimDisk;

/// Rows of 32 bytes with their offset, without rows of zeros.
fn dump(bytes: &[u8]) -> String {
    let rows = bytes.chunks(32).enumerate().filter(|(_, row)| row.iter().any(|byte| *byte != 0));
    rows.map(|(at, row)| format!("{:06x} {}\n", at * 32, hex::encode(row))).collect()
}

/// Regenerate, after thinking twice, with `STATEHOUSE_UPDATE_GOLDEN=1`.
#[test]
fn a_segment_has_the_bytes_that_were_agreed_on() {
    let mut harness = Harness::new(SimDisk::new());
    harness.run(&[
        Step::Vote { group: 1, term: 2 },
        Step::Append { group: 1, entries: 2, bytes: 5, term: 2 },
        Step::Truncate { group: 1, entries: 1 },
        Step::Committed { group: 1 },
    ]);
    harness.run(&[Step::Purge { group: 1, entries: 1 }, Step::Append { group: 9, entries: 1, bytes: 0, term: 3 }]);
    harness.run(&[Step::Remove { group: 9 }]);
    harness.close().unwrap();
    harness.rest();
    let bytes = dump(&harness.disk.read(&segment_path(1)).unwrap());
    if std::env::var_os("STATEHOUSE_UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/log/tests/segment.golden");
        std::fs::write(path, &bytes).unwrap();
    }
    assert_eq!(bytes, include_str!("segment.golden"));
}
