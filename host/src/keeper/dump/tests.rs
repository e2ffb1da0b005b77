#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
//! Directories that Debian's ZooKeeper 3.8 wrote (`tests/keeper/make.py`), and what is made of them by breaking them.

use std::collections::BTreeMap;

use super::jute::Acl;
use super::tree::Stored;
use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/keeper");

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

/// A directory of these files.
fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn read_all(path: &Path) -> Result<Dump, DumpError> {
    read(path, path, &|_| {})
}

fn read_files(files: &[(&str, &[u8])]) -> Result<Dump, DumpError> {
    read_all(directory(files).path())
}

/// The owner of a node that is to live a year.
const TTL_OF_A_YEAR: i64 = (0xff00_0000_0000_0000_u64 as i64) | (365 * 86_400_000);

type Seen = BTreeMap<String, (Option<Vec<u8>>, Vec<Acl>, Stored)>;

fn seen(tree: &Tree) -> Seen {
    let nodes = tree.nodes();
    nodes
        .map(|(path, node)| {
            let data = node.data.as_deref().map(<[u8]>::to_vec);
            (path.to_owned(), (data, tree.acl(node.acl).to_vec(), node.stored))
        })
        .collect()
}

/// The clients' view at the end, as kazoo wrote it down, against what is read: each node with its data, ACL and stat.
#[test]
fn what_clients_saw_is_what_is_read() {
    let dump = read_all(&fixture("plain")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes_of("plain/tree.json")).unwrap();
    let mut clients = 0;
    for (path, node) in json.as_object().unwrap() {
        let path = if path == "/" { "" } else { path };
        let stat: Vec<i64> = node["stat"].as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect();
        if stat[7] != 0 {
            assert!(dump.tree.get(path).is_none(), "{path} is ephemeral");
            continue;
        }
        let read = dump.tree.get(path).unwrap_or_else(|| panic!("{path} is missing"));
        let data = node["data"].as_str().map(|hex| hex.to_owned());
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        // A quota's count is no transaction: the server keeps it in memory, and counts anew when it starts.
        if !path.ends_with("/zookeeper_stats") {
            assert_eq!(read.data.as_deref().map(hex), data, "{path}");
        }
        let Stored { czxid, mzxid, ctime, mtime, version, cversion, aversion, owner, pzxid } = read.stored;
        let children = stat[9];
        let shown = i64::from(cversion) * 2 - children;
        // Clients are not told of containers and of times to live.
        let owner = if owner < 0 { 0 } else { owner };
        let is = [czxid, mzxid, ctime, mtime, version.into(), shown, aversion.into(), owner];
        assert_eq!((&is[..], pzxid), (&stat[..8], stat[10]), "{path}");
        let acl: Vec<_> = dump.tree.acl(read.acl).iter().map(|acl| (acl.perms, &acl.scheme, &acl.id)).collect();
        if let Some(entries) = node["acls"].as_array() {
            // Digests are shown to those alone who may change them.
            let hidden = |id: &str| id.split_once(':').map_or(id.to_owned(), |(user, _)| format!("{user}:x"));
            let shown: Vec<_> =
                acl.iter().map(|(perms, scheme, id)| serde_json::json!([perms, scheme, hidden(id)])).collect();
            assert_eq!(&shown, entries, "{path}");
        }
        clients += 1;
    }
    assert_eq!(clients, dump.tree.len());
    let owner = |path| dump.tree.get(path).unwrap().stored.owner;
    assert_eq!((owner("/containers/c"), owner("/containers/ttl")), (i64::MIN, TTL_OF_A_YEAR));
    assert!(clients > 40 && dump.transactions > 10, "{dump:?}");
    assert_eq!((dump.ephemerals, dump.notes.len()), (1, 0));
    assert!(dump.snapshot.unwrap().ends_with("snapshot.3a"));
}

/// The same history by another way: from the empty tree, through both logs. Snapshot and replay must not differ.
#[test]
fn a_replay_from_the_beginning_ends_in_the_same_tree() {
    let files = ["snapshot.0", "log.1", "log.3b"].map(|name| (name, bytes_of(&format!("plain/{name}"))));
    let files: Vec<_> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let long = read_files(&files).unwrap();
    let short = read_all(&fixture("plain")).unwrap();
    assert_eq!(long.zxid, short.zxid);
    assert!(long.transactions >= short.transactions + 0x3a);
    let (mut long, mut short) = (seen(&long.tree), seen(&short.tree));
    // Configuration is written outside of transactions.
    long.remove("/zookeeper/config");
    short.remove("/zookeeper/config");
    assert_eq!(long, short);
}

#[test]
fn compressed_snapshots_are_read() {
    let plain: Vec<String> =
        seen(&snapshot::read(&fixture("plain/snapshot.3a"), &|_| {}).unwrap()).into_keys().collect();
    for name in ["gz/snapshot.3a.gz", "snappy/snapshot.3a.snappy"] {
        let tree = snapshot::read(&fixture(name), &|_| {}).unwrap();
        assert_eq!(seen(&tree).into_keys().collect::<Vec<_>>(), plain, "{name}");
        let mut bytes = bytes_of(name);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        let name = Path::new(name).file_name().unwrap().to_str().unwrap();
        assert!(matches!(read_files(&[(name, &bytes)]), Err(DumpError::NoSnapshot(_))), "{name}");
    }
}

/// Servers of 3.4 and 3.5 end the file at the first seal.
#[test]
fn a_snapshot_without_the_digest_of_later_versions_is_whole() {
    let bytes = bytes_of("plain/snapshot.3a");
    let old = &bytes[..bytes.len() - 33];
    let read = read_files(&[("snapshot.3a", old)]).unwrap();
    assert_eq!(seen(&read.tree), seen(&read_files(&[("snapshot.3a", &bytes)]).unwrap().tree));
    for cut in (0..old.len()).chain(old.len() + 1..bytes.len()) {
        assert!(read_files(&[("snapshot.3a", &bytes[..cut])]).is_err(), "cut at {cut}");
    }
}

#[test]
fn no_flipped_byte_of_a_snapshot_is_passed_over() {
    let bytes = bytes_of("plain/snapshot.3a");
    for at in (0..bytes.len()).step_by(7) {
        let mut broken = bytes.clone();
        broken[at] ^= 0x41;
        let error = read_files(&[("snapshot.3a", &broken)]).unwrap_err().to_string();
        assert!(error.contains("snapshot.3a is damaged at offset"), "{at}: {error}");
    }
}

/// A log that ends anywhere is a server that was killed: what was whole counts.
#[test]
fn a_torn_tail_is_left_out() {
    let (snapshot, log) = (bytes_of("plain/snapshot.3a"), bytes_of("plain/log.3b"));
    let whole = read_files(&[("snapshot.3a", &snapshot), ("log.3b", &log)]).unwrap();
    let end = log.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut transactions = Vec::new();
    for cut in 0..=end {
        let dump = read_files(&[("snapshot.3a", &snapshot), ("log.3b", &log[..cut])])
            .unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        transactions.push(dump.transactions);
        assert!(dump.notes.len() <= 1, "{:?}", dump.notes);
        assert!(dump.notes.iter().all(|note| note.contains("was being written")), "{:?}", dump.notes);
    }
    assert!(transactions.is_sorted());
    assert_eq!((transactions[0], transactions[end]), (0, whole.transactions));
}

/// A byte that is not what was written: refused with its place, or it is in the record at the very end, which the
/// server may not have finished, or in the head, where nothing is looked at.
#[test]
fn no_flipped_byte_of_a_log_is_passed_over() {
    let (snapshot, log) = (bytes_of("plain/snapshot.3a"), bytes_of("plain/log.3b"));
    let read = |log: &[u8]| read_files(&[("snapshot.3a", &snapshot), ("log.3b", log)]);
    let whole = read(&log).unwrap();
    let end = log.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for at in (0..8).chain(16..end).step_by(5) {
        let mut broken = log.clone();
        broken[at] ^= 0x41;
        match read(&broken) {
            Err(DumpError::Damaged(damage)) => assert!(damage.offset <= at as u64, "{at}: {damage}"),
            Ok(dump) => {
                assert_eq!((dump.transactions, dump.notes.len()), (whole.transactions - 1, 1), "{at}");
            }
            Err(other) => panic!("{at}: {other}"),
        }
    }
}

/// A page of zeros in the middle, as a disk leaves that lost a sector: not the end of the log.
#[test]
fn zeros_before_the_end_are_damage() {
    let (snapshot, mut log) = (bytes_of("plain/snapshot.3a"), bytes_of("plain/log.3b"));
    log[16..600].fill(0);
    let error = read_files(&[("snapshot.3a", &snapshot), ("log.3b", &log)]).unwrap_err().to_string();
    assert!(error.contains("log.3b is damaged at offset 16: nothing, and records behind it"), "{error}");
}

#[test]
fn missing_transactions_are_named() {
    let files = [("snapshot.0", bytes_of("plain/snapshot.0")), ("log.3b", bytes_of("plain/log.3b"))];
    let files: Vec<_> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let error = read_files(&files).unwrap_err();
    assert!(error.to_string().starts_with("the transactions from 0x1 to 0x3a are missing"), "{error}");
    assert!(error.remedy().contains("--log-dir"));
    assert!(matches!(read_files(&files[1..]), Err(DumpError::Gap { .. })));
}

#[test]
fn an_older_snapshot_serves_if_the_logs_reach_back_to_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("version-2")).unwrap();
    for name in ["snapshot.0", "log.1", "log.3b", "snapshot.3a"] {
        let mut bytes = bytes_of(&format!("plain/{name}"));
        if name == "snapshot.3a" {
            bytes.truncate(1000);
        }
        std::fs::write(dir.path().join("version-2").join(name), bytes).unwrap();
    }
    let dump = read_all(dir.path()).unwrap();
    assert_eq!(dump.tree.len(), read_all(&fixture("plain")).unwrap().tree.len());
    let note = &dump.notes[0];
    assert!(note.contains("snapshot.3a is damaged at offset 9") && note.contains("it ends too early"), "{note}");
    assert!(note.contains("the older") && note.contains("snapshot.0"), "{note}");
}

#[test]
fn a_directory_without_data_is_said_to_be_one() {
    let error = read_files(&[("myid", b"1")]).unwrap_err();
    assert!(error.to_string().contains("holds no data of ZooKeeper"), "{error}");
    assert!(matches!(read_all(Path::new("/nowhere")), Err(DumpError::Unreadable { .. })));
}

/// A log of these transactions: number, kind, body.
fn log_of(transactions: &[(i64, i32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"ZKLG\0\0\0\x02\0\0\0\0\0\0\0\0".to_vec();
    for (zxid, kind, body) in transactions {
        let head = [&7_i64.to_be_bytes()[..], &1_i32.to_be_bytes(), &zxid.to_be_bytes(), &5_i64.to_be_bytes()];
        let whole = [head.concat(), kind.to_be_bytes().to_vec(), body.clone()].concat();
        bytes.extend(i64::from(adler2::adler32_slice(&whole)).to_be_bytes());
        bytes.extend(i32::try_from(whole.len()).unwrap().to_be_bytes());
        bytes.extend(whole);
        bytes.push(b'B');
    }
    bytes.extend([0; 64]);
    bytes
}

fn digest(digest: u64) -> Vec<u8> {
    [&2_i32.to_be_bytes()[..], &digest.to_be_bytes()].concat()
}

/// A node `/path` is made, open to all.
fn creation(path: &str, parent_cversion: i32) -> Vec<u8> {
    let text = |text: &str| [&i32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
    let acl = [&1_i32.to_be_bytes()[..], &31_i32.to_be_bytes(), &text("world"), &text("anyone")].concat();
    [text(path), text("data"), acl, vec![0], parent_cversion.to_be_bytes().to_vec()].concat()
}

const EPOCH: i64 = 1 << 32;

/// The digests that ZooKeeper 3.8 wrote are those of the tree that is read, ephemeral nodes and all.
#[test]
fn the_tree_is_the_one_whose_digest_the_server_wrote() {
    let dump = read_all(&fixture("plain")).unwrap();
    assert!(dump.verified && dump.doubts.is_empty(), "{:?}", dump.doubts);
    let files = [("snapshot.0", bytes_of("plain/snapshot.0")), ("log.1", bytes_of("plain/log.1"))];
    let files: Vec<_> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    assert!(read_files(&files).unwrap().verified);
}

/// Four epochs of three servers of ZooKeeper 3.8, whose leaders were killed (`tests/keeper/ensemble.py`): from the empty
/// tree to the digest that the last leader wrote. Without the end of any epoch it is another tree, or a number is missing.
#[test]
fn no_epoch_of_an_ensemble_may_lack_its_end() {
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(fixture("ensemble")).unwrap() {
        names.push(entry.unwrap().file_name().into_string().unwrap());
    }
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), bytes_of(&format!("ensemble/{name}")))).collect();
    let read_without = |left_out: &str| {
        let files = files.iter().filter(|(name, _)| *name != left_out);
        read_files(&files.map(|(name, bytes)| (*name, bytes.as_slice())).collect::<Vec<_>>())
    };
    let whole = read_without("").unwrap();
    assert!(whole.verified && whole.doubts.is_empty(), "{:?}", whole.doubts);
    assert_eq!((whole.zxid, whole.transactions, whole.tree.len()), (0x4_0000_005c, 371, 118));
    for end in ["log.10000003a", "log.30000005b"] {
        let short = read_without(end).unwrap();
        assert!(short.transactions < whole.transactions && !short.verified, "{end}");
        assert!(short.doubts[0].contains("the servers had another tree"), "{end}: {:?}", short.doubts);
    }
    // This one holds the first transaction of the next epoch too.
    let error = read_without("log.200000035").unwrap_err();
    assert!(error.to_string().contains("to 0x300000001 are missing"), "{error}");
}

/// The last log of an epoch is gone, and the next leader counts from 1: no number is missing, but the tree is
/// not what the servers say it was.
#[test]
fn a_log_that_is_missing_at_the_end_of_an_epoch_is_a_doubt() {
    let first = || (EPOCH + 1, 1, creation("/a", 1));
    let last = || (EPOCH + 2, 1, creation("/b", 2));
    let next = |digest: Vec<u8>| (2 * EPOCH + 1, 1, [creation("/c", 3), digest].concat());
    let read = |transactions: &[(i64, i32, Vec<u8>)]| {
        read_files(&[("snapshot.0", &bytes_of("plain/snapshot.0")), ("log.100000001", &log_of(transactions))]).unwrap()
    };
    let whole = read(&[first(), last(), next(Vec::new())]);
    assert!(!whole.verified && whole.doubts.is_empty(), "servers before 3.6 write no digest");
    let wanted = whole.tree.digest();
    let whole = read(&[first(), last(), next(digest(wanted))]);
    assert!(whole.verified && whole.doubts.is_empty(), "{:?}", whole.doubts);
    let short = read(&[first(), next(digest(wanted))]);
    assert!(!short.verified);
    assert!(short.doubts[0].contains("after 0x200000001 the servers had another tree"), "{:?}", short.doubts);
    assert!(short.doubts[0].contains("end of an epoch"), "{:?}", short.doubts);
}

/// A snapshot that cannot be read still tells by its name how far the servers were.
#[test]
fn the_name_of_a_damaged_snapshot_tells_what_is_missing() {
    let (snapshot, log) = (bytes_of("plain/snapshot.0"), log_of(&[(1, 1, creation("/a", 1))]));
    let next = log_of(&[(EPOCH + 1, 1, creation("/b", 2))]);
    let read = |damaged: &str, logs: &[(&str, &[u8])]| {
        let files = [&[("snapshot.0", &snapshot[..]), (damaged, b"ZKSN")], logs].concat();
        read_files(&files)
    };
    let error = read("snapshot.3", &[("log.1", &log)]).unwrap_err();
    assert!(error.to_string().starts_with("the transactions from 0x2 to 0x3 are missing"), "{error}");
    let error = read("snapshot.3", &[("log.1", &log), ("log.100000001", &next)]).unwrap_err();
    assert!(error.to_string().contains("snapshot.3 comes after them"), "{error}");
    // Of what is there, and of the beginning of an epoch.
    for name in ["snapshot.1", "snapshot.100000000", "snapshot.100000001"] {
        let dump = read(name, &[("log.1", &log), ("log.100000001", &next)]).unwrap();
        assert_eq!((dump.transactions, dump.notes.len()), (2, 1), "{name}");
    }
}

/// Logs without any snapshot are a whole history only if they begin where servers begin.
#[test]
fn logs_that_begin_late_are_a_doubt() {
    for (from, doubts) in [(1, 0), (EPOCH + 1, 0), (2 * EPOCH + 1, 1)] {
        let dump = read_files(&[(&format!("log.{from:x}"), &log_of(&[(from, 1, creation("/a", 1))]))]).unwrap();
        assert_eq!((dump.transactions, dump.doubts.len()), (1, doubts), "{:?}", dump.doubts);
    }
}

/// A new leader counts from 1 in the next epoch; nothing else may be left out.
#[test]
fn what_follows_a_transaction() {
    let epoch = EPOCH;
    assert!(follows(0, 1) && follows(5, 6) && follows(5, epoch + 1) && follows(epoch, epoch + 1));
    assert!(!follows(5, 7) && !follows(5, epoch + 2) && !follows(epoch + 9, 3));
}
