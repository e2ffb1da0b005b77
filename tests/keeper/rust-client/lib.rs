//! Keepers for the tests of this crate, which know nothing of the product but its command line.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(90);

/// `statehouse local --keeper`, which ends with this value.
#[derive(Debug)]
pub struct Keepers {
    local: Child,
    folder: tempfile::TempDir,
    /// What clients connect to: `HOST:PORT,…`.
    pub servers: String,
}

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("STATEHOUSE_PROGRAM") {
        return path.into();
    }
    let this = std::env::current_exe().unwrap();
    let path = this.ancestors().nth(2).expect("a test runs in target/PROFILE/deps").join("statehouse-under-test");
    assert!(
        path.exists(),
        "{} is not there: cargo build -p statehouse-tests, or name one by STATEHOUSE_PROGRAM",
        path.display()
    );
    path
}

/// The first of nine free ports; another one at each call.
fn free_ports() -> u16 {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    loop {
        let place = std::process::id() * 13 + u32::from(COUNT.fetch_add(1, Ordering::Relaxed));
        let base = 6_000 + u16::try_from(place % 200).unwrap() * 10;
        if (base..base + 9).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
}

impl Keepers {
    /// So many nodes, up to three, that serve.
    pub fn start(nodes: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = free_ports();
        let mut command = Command::new(program());
        command.args(["local", "--keeper", "-o", "json", "--nodes", &nodes.to_string()]);
        command.arg("--data-dir").arg(folder.path().join("data"));
        for (flag, port) in [("--http-base", base), ("--peer-base", base + 3), ("--client-base", base + 6)] {
            command.args([flag, &port.to_string()]);
        }
        // The nodes read what they are not told from their environment.
        command.env("STATEHOUSE_EXTENDED_TYPES", "true").env("STATEHOUSE_LOG_SEGMENT_BYTES", "8MiB");
        command.env("STATEHOUSE_CONTAINER_CHECK_INTERVAL_MS", "500").env("STATEHOUSE_TICK_TIME_MS", "500");
        let (out, err) = (folder.path().join("out"), folder.path().join("err"));
        command.stdin(Stdio::null()).stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let local = command.spawn().unwrap();
        let mut keepers = Self { local, folder, servers: String::new() };
        let deadline = Instant::now() + PATIENCE;
        // It announces the nodes when all listen.
        while keepers.servers.is_empty() {
            let text = std::fs::read_to_string(&out).unwrap();
            if let Ok(announced) = serde_json::from_str::<serde_json::Value>(&text) {
                let clients = announced["nodes"].as_array().unwrap().iter();
                let clients: Vec<_> = clients.map(|node| node["client"].as_str().unwrap().to_owned()).collect();
                keepers.servers = clients.join(",");
            }
            assert!(Instant::now() < deadline, "the keepers do not serve: {}", keepers.said());
            std::thread::sleep(Duration::from_millis(50));
        }
        keepers
    }

    /// What it printed of the start.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("err")).unwrap_or_default()
    }
}

impl Drop for Keepers {
    fn drop(&mut self) {
        // Its nodes see that it is gone, and go.
        let _ = self.local.kill();
        let _ = self.local.wait();
    }
}
