//! The bytes of `docs/formats.md` that the log's own golden file does not hold: the codec, the peer connection,
//! snapshots. They may change only together with a version; `UPDATE_GOLDEN=1` writes the file anew.

use std::io::Read;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use bytes::BytesMut;
use statehouse::codec;
use statehouse::disk::RealDisk;
use statehouse::peer::Lane;
use statehouse::peer::frame;
use statehouse::peer::frame::Hello;
use statehouse::peer::frame::Kind;
use statehouse::snapshot::Head;
use statehouse::snapshot::SnapshotReader;
use statehouse::snapshot::SnapshotStore;
use statehouse::types::EntryKind;
use statehouse::types::LogId;
use statehouse::types::Origin;
use statehouse::types::Proposal;
use statehouse::types::SessionUse;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn proposals() -> Vec<Proposal> {
    let session = Some(SessionUse { id: 9, secret: [7; 16], sequence: Some(300), attachment: None });
    let kinds = [
        EntryKind::Command { session: None, payload: Bytes::from_static(b"{\"Add\":5}") },
        EntryKind::Command { session, payload: Bytes::from_static(b"x") },
        EntryKind::OpenSession { secret: [1; 16], timeout_ms: 30_000, attached: false },
        EntryKind::CloseSession { id: 9, secret: None, attachment: Some(8) },
        EntryKind::Timers { due: vec![(1, 1_700_000_000_000), (u64::MAX, 2)] },
        EntryKind::AttachSession { id: 9, secret: [7; 16] },
        EntryKind::ChangeModule { change: 4, module: [0xcd; 32], name: "counter".to_string() },
    ];
    let origin = Origin { node: 2, incarnation: 0x0123_4567_89ab_cdef, number: 70_000 };
    kinds.into_iter().map(|kind| Proposal { time_ms: 1_700_000_000_000, origin, kind }).collect()
}

fn snapshot() -> (Head, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(Arc::new(RealDisk), folder.path().to_owned(), 2, 0).unwrap();
    let leader = openraft::vote::leader_id_std::CommittedLeaderId::new(3);
    let head = Head {
        group: 5,
        last_log_id: LogId::new(leader, 1000),
        membership: Default::default(),
        module: [0xab; 32],
        host_state: b"host state".to_vec(),
        made: br#"{"group":"g","module":"m","params":{},"limits":{}}"#.to_vec(),
        change: 7,
    };
    let mut writer = store.write(&head).unwrap();
    writer.write_all(b"the module's own bytes").unwrap();
    let file = writer.finish(&head).unwrap();
    (head, std::fs::read(file.path()).unwrap())
}

#[test]
fn the_bytes_on_disk_and_wire_are_the_documented_ones() {
    let mut text = String::new();
    for proposal in proposals() {
        let bytes = codec::encode(&proposal).unwrap();
        assert_eq!(codec::decode::<Proposal>(&bytes).unwrap(), proposal);
        text.push_str(&format!("{proposal}: {}\n", hex(&bytes)));
    }
    let hello = Hello { cluster: *b"0123456789abcdef", from: 1, to: 2, lane: Lane::Bulk, life: 3 };
    text.push_str(&format!("hello: {}\n", hex(&hello.encode())));
    for (kind, name) in [(Kind::Request, "request"), (Kind::Response, "response"), (Kind::Failure, "failure")] {
        let mut bytes = BytesMut::new();
        frame::encode(0x0102_0304_0506_0708, kind, b"payload", &mut bytes);
        text.push_str(&format!("{name}: {}\n", hex(&bytes)));
    }
    let (head, bytes) = snapshot();
    text.push_str(&format!("snapshot: {}\n", hex(&bytes)));
    let (read, mut payload) = SnapshotReader::open(&bytes[..]).unwrap();
    assert_eq!(read, head);
    let mut text_read = String::new();
    payload.read_to_string(&mut text_read).unwrap();
    assert_eq!(text_read, "the module's own bytes");

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/formats.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text == golden, "the formats changed: give them a new version, say so in docs/formats.md. Now:\n{text}");
}

/// A file of the second version does not say which change of the module came last, one of the first nothing of what the group was
/// made with either; they are read all the same.
#[test]
fn snapshots_of_earlier_versions_are_still_read() {
    let second = Head { change: 0, ..snapshot().0 };
    let first = Head { made: Vec::new(), ..second.clone() };
    for (text, expected) in
        [(include_str!("../../golden/snapshot-1.txt"), first), (include_str!("../../golden/snapshot-2.txt"), second)]
    {
        let digit = |place: usize| u8::from_str_radix(&text[place..place + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..text.len()).step_by(2).map(digit).collect();
        let (head, mut payload) = SnapshotReader::open(&bytes[..]).unwrap();
        assert_eq!(head, expected);
        let mut read = String::new();
        payload.read_to_string(&mut read).unwrap();
        assert_eq!((read.as_str(), payload.digest().is_some()), ("the module's own bytes", true));
    }
}

/// A snapshot is believed whole or not at all.
#[test]
fn every_flipped_bit_and_every_cut_of_a_snapshot_is_found() {
    let (_, bytes) = snapshot();
    let verifies = |bytes: &[u8]| SnapshotReader::open(bytes).is_ok_and(|(_, reader)| reader.verify().is_ok());
    assert!(verifies(&bytes));
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(!verifies(&damaged), "bit {bit} went unnoticed");
    }
    for length in 0..bytes.len() {
        assert!(!verifies(&bytes[..length]), "a file cut to {length} bytes went unnoticed");
    }
    assert!(!verifies(&[&bytes[..], b"\0"].concat()));
}
