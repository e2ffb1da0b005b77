//! The simulated disk forgets, tears and fails as it says it does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;

fn disk() -> (SimDisk, PathBuf) {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/d")).unwrap();
    (disk, PathBuf::from("/d/f"))
}

#[test]
fn only_what_was_synced_survives_a_crash_name_and_bytes_each_for_itself() {
    let (disk, path) = disk();
    let file = disk.create(&path).unwrap();
    file.write_all_at(0, b"synced").unwrap();
    file.sync_data().unwrap();
    let nameless = disk.fork();
    nameless.crash_after(0, 0);
    assert!(!nameless.exists(&path).unwrap(), "its directory was not synced");

    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_all_at(6, b" not").unwrap();
    assert_eq!(disk.read(&path).unwrap(), b"synced not");
    let torn = disk.fork();
    torn.crash_after(0, 2);
    assert_eq!(torn.read(&path).unwrap(), b"synced n");
    disk.crash_after(0, 0);
    assert_eq!(disk.read(&path).unwrap(), b"synced");
    assert!(file.write_all_at(0, b"x").is_err(), "the handle is of an earlier life");
}

#[test]
fn a_rename_is_either_done_or_not() {
    let (disk, path) = disk();
    disk.create(&path).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.rename(&path, Path::new("/d/g")).unwrap();
    for (kept, names) in [(0, ["f"]), (1, ["g"])] {
        let fork = disk.fork();
        fork.crash_after(kept, 0);
        assert_eq!(fork.list(Path::new("/d")).unwrap(), names);
    }
}

#[test]
fn a_random_crash_tears_writes_at_sectors_only() {
    let (disk, path) = disk();
    let file = disk.create(&path).unwrap();
    file.set_len(2048).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_all_at(0, &[1; 2048]).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..200_u64 {
        let fork = disk.fork();
        let mut state = seed;
        fork.crash(&mut || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        });
        let sectors: Vec<u8> = fork
            .read(&path)
            .unwrap()
            .chunks(512)
            .map(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
                sector[0]
            })
            .collect();
        seen.insert(sectors);
    }
    assert_eq!(seen.len(), 16, "every combination of four sectors");
}

#[test]
fn a_failed_sync_loses_the_write_and_still_shows_it() {
    let (disk, path) = disk();
    let file = disk.create(&path).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_all_at(0, b"gone").unwrap();
    disk.fail_sync(0);
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    assert_eq!(disk.read(&path).unwrap(), b"gone");
    disk.crash_after(0, 0);
    assert_eq!(disk.read(&path).unwrap(), b"");
}

#[test]
fn a_full_disk_writes_what_fits_and_gives_space_back() {
    let (disk, path) = disk();
    disk.set_space(Some(10));
    let file = disk.create(&path).unwrap();
    let error = file.write_all_at(0, &[1; 20]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 10);
    disk.remove(&path).unwrap();
    assert_eq!(disk.free_space(&path).unwrap(), 10);
    let file = disk.create(&path).unwrap();
    file.preallocate(8).unwrap();
    file.write_all_at(0, &[1; 8]).unwrap();
    assert!(file.preallocate(11).is_err());
}

#[test]
fn a_removed_file_lives_until_its_last_handle_and_no_longer() {
    let (disk, path) = disk();
    let file = disk.create(&path).unwrap();
    file.write_all_at(0, b"here").unwrap();
    disk.remove(&path).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    let mut bytes = [0; 4];
    file.read_exact_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"here");
    drop(file);
    assert!(disk.lock().live.files.is_empty());
}

#[test]
fn a_directory_takes_its_files_along_when_it_is_renamed_or_keeps_them_when_that_is_lost() {
    let disk = SimDisk::new();
    let (old, new, file) = (Path::new("/d/log"), Path::new("/d/aside"), Path::new("1.seg"));
    disk.create_dir_all(old).unwrap();
    disk.create(&old.join(file)).unwrap().sync_data().unwrap();
    disk.sync_dir(old).unwrap();
    disk.rename(old, new).unwrap();
    assert!(disk.exists(&new.join(file)).unwrap() && !disk.exists(&old.join(file)).unwrap());
    disk.crash_after(0, 0);
    assert!(!disk.exists(&new.join(file)).unwrap() && disk.exists(&old.join(file)).unwrap());
    disk.rename(old, new).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.crash_after(0, 0);
    assert!(disk.exists(&new.join(file)).unwrap() && !disk.exists(&old.join(file)).unwrap());
}

#[test]
fn damage_changes_one_bit_and_unreadable_ranges_fail() {
    let (disk, path) = disk();
    let file = disk.create(&path).unwrap();
    file.write_all_at(0, &[0; 10]).unwrap();
    disk.flip_bit(&path, 3, 1).unwrap();
    assert_eq!(disk.read(&path).unwrap(), [0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    disk.fail_reads(&path, 5, 2).unwrap();
    let mut byte = [0];
    assert!(file.read_at(6, &mut byte).is_err());
    assert_eq!(file.read_at(7, &mut byte).unwrap(), 1);
}
