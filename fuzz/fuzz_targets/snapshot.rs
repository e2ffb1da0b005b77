//! Any bytes as a snapshot file: an error or a head and a payload, no panic, no allocation by a forged length; and
//! what verifies reads whole.
#![no_main]

use std::io::Read;

use statehouse::snapshot::SnapshotReader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok((_, reader)) = SnapshotReader::open(bytes) else { return };
    let verified = reader.verify();
    let Ok((_, mut reader)) = SnapshotReader::open(bytes) else { panic!("the same head is refused the second time") };
    let read = reader.read_to_end(&mut Vec::new());
    match verified {
        Ok(digest) => {
            read.expect("a snapshot that verifies reads to its end");
            assert_eq!(reader.digest(), Some(digest));
        }
        Err(_) => assert!(read.is_err() || reader.digest().is_none(), "what does not verify was read as whole"),
    }
});
