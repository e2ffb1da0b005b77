//! What the fuzzers do with bytes: a ZooKeeper server's files, with valid checksums around any content, and without. A
//! fuzzer would not find a checksum, and everything behind it would stay untested.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::DumpError;
use super::Replay;
use super::jute::Input;
use super::snapshot;
use super::tree::Tree;
use crate::keeper::load::Load;

const LOG_HEAD: &[u8] = b"ZKLG\0\0\0\x02\0\0\0\0\0\0\0\0";
const SNAPSHOT_HEAD: &[u8] = b"ZKSN\0\0\0\x02\0\0\0\0\0\0\0\0";

/// Reads `bytes` as a snapshot, as they are, as they are packed, and closed by a valid checksum. What is read can be
/// loaded, each node once.
pub fn snapshot(bytes: &[u8]) {
    for name in ["snapshot.1", "snapshot.1.gz", "snapshot.1.snappy"] {
        if let Ok(tree) = snapshot::parse(&mut Input::new(snapshot::unpacked(name, bytes))) {
            load(tree);
        }
    }
    let mut sealed = [SNAPSHOT_HEAD, bytes, b"\0\0\0\x01/"].concat();
    sealed.extend(i64::from(adler2::adler32_slice(&sealed)).to_be_bytes());
    sealed.extend(b"\0\0\0\x01/");
    if let Ok(tree) = snapshot::parse(&mut Input::new(&*sealed)) {
        load(tree);
    }
}

/// Reads `bytes` as a transaction log, as they are, and as transactions with valid checksums, of which any may be damaged.
/// The same bytes are the same tree twice.
pub fn log(bytes: &[u8]) {
    drop(replay(bytes));
    let log = log_of(bytes);
    let (one, other) = (replay(&log), replay(&log));
    match (one, other) {
        (Ok(one), Ok(other)) => {
            assert_eq!(one.tree.digest(), other.tree.digest(), "the same log is another tree");
            assert_eq!((one.last, one.transactions), (other.last, other.transactions));
            load(one.tree);
        }
        (one, other) => assert_eq!(one.err().map(said), other.err().map(said)),
    }
}

fn said(error: DumpError) -> String {
    error.to_string()
}

fn replay(bytes: &[u8]) -> Result<Replay, DumpError> {
    let mut replay = Replay {
        tree: Tree::new(),
        last: 0,
        transactions: 0,
        notes: Vec::new(),
        doubts: Vec::new(),
        covered: BTreeMap::new(),
        digest: None,
    };
    replay.take_bytes(Path::new("log.1"), bytes)?;
    replay.reaches(i64::MAX)?;
    replay.compare();
    Ok(replay)
}

/// Everything is in the batches once, however they are cut.
fn load(mut tree: Tree) {
    tree.drop_ephemerals();
    let params = json!({});
    let load = Load::of(&tree, &params);
    let sent: u64 = load.batches().map(|batch| u64::from(batch.nodes)).sum();
    assert_eq!(sent, load.count());
    assert!(load.left_out() <= tree.len() as u64);
}

/// A log of the transactions that `bytes` tell: of each the length, its number against the one before, its kind, and
/// the body; and then a byte that is altered.
fn log_of(bytes: &[u8]) -> Vec<u8> {
    let mut log = LOG_HEAD.to_vec();
    let mut rest = bytes;
    let mut zxid: i64 = 0;
    while let Some(([length, step, kind], more)) = rest.split_first_chunk::<3>() {
        let (body, more) = more.split_at(usize::from(*length).min(more.len()));
        rest = more;
        zxid = match step {
            0 => zxid.saturating_add(2),
            1 => (zxid | 0xffff_ffff).saturating_add(2),
            _ => zxid.saturating_add(1),
        };
        let kind = i32::from(*kind as i8);
        let head = [&7_i64.to_be_bytes()[..], &1_i32.to_be_bytes(), &zxid.to_be_bytes(), &5_i64.to_be_bytes()].concat();
        let transaction = [&head[..], &kind.to_be_bytes(), body].concat();
        log.extend(i64::from(adler2::adler32_slice(&transaction)).to_be_bytes());
        log.extend(i32::try_from(transaction.len()).unwrap_or(0).to_be_bytes());
        log.extend(transaction);
        log.push(b'B');
    }
    log.extend([0; 16]);
    if let [at, with, ..] = rest
        && let Some(byte) = log.get_mut(usize::from(*at) * 16)
    {
        *byte ^= with;
    }
    log
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    struct Dice(u64);

    impl Dice {
        fn byte(&mut self) -> u8 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 56) as u8
        }

        fn below(&mut self, most: usize) -> usize {
            usize::from(self.byte()) % most
        }
    }

    /// A first round of fuzzing on every test run: what servers wrote, with bytes altered, cut and added.
    #[test]
    fn files_that_are_nearly_right_never_panic() {
        let plain = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/keeper"));
        let rounds = std::env::var("STATEHOUSE_SEEDS").map_or(300, |seeds| seeds.parse().unwrap());
        let read = |name: &str| std::fs::read(plain.join(name)).unwrap();
        let snapshots = ["plain/snapshot.3a", "gz/snapshot.3a.gz", "snappy/snapshot.3a.snappy"].map(read);
        let log_bytes = read("plain/log.3b");
        let mut dice = Dice(1);
        let mut damage = |whole: &[u8]| {
            let mut bytes = whole.to_vec();
            for _ in 0..1 + dice.below(4) {
                let at = (dice.below(256) << 8 | dice.below(256)) % bytes.len();
                match dice.below(4) {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes.insert(at, dice.byte()),
                    _ => bytes[at] = dice.byte(),
                }
            }
            bytes
        };
        for round in 0..rounds {
            let bytes = damage(&snapshots[round % snapshots.len()]);
            snapshot(&bytes);
            // What the checksum is put around.
            let inner = damage(&snapshots[0][SNAPSHOT_HEAD.len()..]);
            snapshot(&inner);
            log(&damage(&log_bytes));
        }
    }

    /// The shape that `log` gives to bytes reaches the tree.
    #[test]
    fn transactions_out_of_bytes_reach_the_tree() {
        let creation = b"\0\0\0\x02/a\0\0\0\x01x\0\0\0\0\0\0\0\0\x01";
        let length = u8::try_from(creation.len()).unwrap();
        let bytes = [&[length, 2, 1][..], creation].concat();
        assert!(replay(&log_of(&bytes)).unwrap().tree.get("/a").is_some());
        log(&bytes);
        let mut damaged = bytes.clone();
        damaged.extend([2, 7]);
        assert!(replay(&log_of(&damaged)).is_err());
        log(&damaged);
    }
}
