//! A file system that runs full: a real one, small and of its own, where this machine allows to mount one.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use statehouse_tests::cluster::Cluster;
use statehouse_tests::load::Load;
use statehouse_tests::load::assert_exactly_once;
use statehouse_tests::modules;
use statehouse_tests::report;
use statehouse_tests::wait;

/// Large values are written to a few keys. The state stays small, so snapshots are small and come every few entries; the log behind
/// them is as small, although the entries in it are far fewer than a node keeps of small ones.
#[test]
fn a_few_large_entries_make_no_large_log() {
    let mut cluster = Cluster::prepare(1, &["--snapshot-bytes", "1MiB"]);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    let value = "x".repeat(120 << 10);
    for number in 0..80 {
        let put = json!({"Put": {"key": format!("k{}", number % 2), "value": value}});
        cluster.node(1).client().post("/v1/groups/kv/apply", put.to_string()).expect(200);
    }
    wait::until("the log holds what came after the newest snapshot and a little before it", || {
        let metrics = cluster.node(1).client().get("/metrics").expect(200).text();
        let bytes = metrics.lines().find_map(|line| line.strip_prefix("statehouse_log_live_bytes "));
        let bytes: f64 = bytes.unwrap().parse().unwrap();
        if bytes < 2_500_000.0 { Ok(()) } else { Err(format!("{bytes} bytes of 10 MB that were written")) }
    });
}

/// A mounted file system in memory.
struct Small(PathBuf);

impl Small {
    /// `None` where nobody may mount; then it is said which test was skipped.
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "statehouse-test"]).arg(at).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            other => {
                let test = std::thread::current().name().unwrap_or("a test").to_owned();
                report(format!("SKIPPED: {test}: this machine does not let it mount a file system: {other:?}"));
                None
            }
        }
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all space but so many bytes.
    fn fill_up_to(&self, left: u64) {
        let mut ballast = fs::File::create(self.0.join("ballast")).unwrap();
        let block = vec![1; 64 << 10];
        while self.free_bytes() > left {
            if ballast.write_all(&block).is_err() {
                return;
            }
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: the node may still be on its way out.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

const FLAGS: &[&str] = &["--disk-reserve", "16MiB", "--snapshot-entries", "200"];

fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let groups = fs::read_dir(folder.join("groups")).unwrap();
    let files = groups.flat_map(|group| fs::read_dir(group.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).filter(|path| path.to_string_lossy().ends_with(".part")).collect()
}

#[test]
fn writes_stop_before_the_log_runs_full_and_go_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&folder.path().join("node-1"), "96m") else { return };
    let data_dir = small.0.clone();
    let mut cluster = Cluster::prepare_in(folder, 1, FLAGS);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    let mut client = cluster.node(1).client();
    let put = |key: &str| json!({"Put": {"key": key, "value": "v"}}).to_string();
    client.post("/v1/groups/kv/apply", put("before")).expect(200);

    small.fill_up_to(6 << 20);
    wait::until("commands are refused", || {
        let answer = client.post("/v1/groups/kv/apply", put("meanwhile"));
        if answer.code() == "disk_full" { Ok(()) } else { Err(answer.to_string()) }
    });
    client.post("/v1/groups/kv/apply", put("x")).expect_problem(507, "disk_full", &["no command is taken", "node 1"]);
    client.post("/v1/groups/kv/sessions", r#"{"timeout_ms":5000}"#).expect_problem(507, "disk_full", &[]);
    assert!(client.post("/v1/groups/kv/query", r#"{"Get":{"key":"before"}}"#).expect(200).text().contains('v'));
    // Less than half the reserve is left: that half is the log's.
    client.post("/v1/groups/kv/snapshot", "").expect_problem(507, "disk_full", &["kept for the log"]);
    assert!(unfinished(&data_dir).is_empty(), "{:?}", unfinished(&data_dir));
    let diagnosis = client.get("/v1/doctor").expect(200).json();
    assert!(diagnosis.to_string().contains("disk_full"), "{diagnosis}");
    assert!(client.get("/metrics").expect(200).text().contains("statehouse_disk_short 1.0"));

    // It starts on a full disk as well.
    cluster.node_mut(1).kill();
    cluster.node_mut(1).start();
    cluster.node_mut(1).wait_ready();
    let mut client = cluster.node(1).client();
    assert!(client.post("/v1/groups/kv/query", r#"{"Get":{"key":"before"}}"#).expect(200).text().contains('v'));
    wait::until("commands are refused again", || {
        let answer = client.post("/v1/groups/kv/apply", put("meanwhile"));
        if answer.code() == "disk_full" { Ok(()) } else { Err(answer.to_string()) }
    });

    small.make_room();
    wait::until("commands are taken", || {
        let answer = client.post("/v1/groups/kv/apply", put("after"));
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    client.post("/v1/groups/kv/snapshot", "").expect(200);
}

/// The disk fills up within a moment, to the last byte: nobody looked in time. The log waits where it is, and the node lives.
#[test]
fn a_disk_that_is_full_at_once_makes_the_log_wait_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&folder.path().join("node-1"), "96m") else { return };
    // Small segments, so that the next one is needed soon.
    let segments = ["--log-segment-bytes", "256KiB", "--command-bytes-max", "64KiB"];
    let flags = [&segments[..], &["--disk-reserve", "0", "--snapshot-entries", "1000000"]].concat();
    let mut cluster = Cluster::prepare_in(folder, 1, &flags);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 4);
    load.wait_for(50);
    small.fill_up_to(0);
    wait::until("the log has no room for its next segment", || {
        let page = cluster.node(1).client().get("/metrics").expect(200).text();
        if page.contains("statehouse_log_waits_for_room 1.0") { Ok(()) } else { Err(small.free_bytes()) }
    });
    let answer =
        cluster.node(1).client().post("/v1/groups/kv/query?consistency=local", r#"{"Get":{"key":"client-0-0"}}"#);
    assert!(answer.expect(200).text().contains('x'));
    // It said that 17592186044415 MiB are free, since without a reserve it had not asked.
    wait::until("the node says how much is free", || {
        let said = cluster.node(1).said();
        if said.contains("free_mib=0 reserve_mib=0") { Ok(()) } else { Err(said) }
    });
    small.make_room();
    load.wait_for(50);
    let told = load.stop();
    assert!(cluster.node_mut(1).is_running());
    assert_exactly_once(&cluster.addresses(), "kv", &told);
}
