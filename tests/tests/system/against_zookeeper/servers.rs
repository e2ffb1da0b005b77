//! The two servers: Debian's ZooKeeper, and a node of ours, with the same settings.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use statehouse_tests::cluster::free_ports;
use statehouse_tests::keeper::Keeper;

/// `super:pw`.
const SUPER: &str = "super:0bX78nEegDzJM3ju0iLBEJdWzjg=";
const CLASSES: [&str; 2] = ["/usr/share/java/zookeeper.jar", "/usr/share/java/slf4j-simple.jar"];
/// Longer than the test: neither server may remove containers while it runs.
const CONTAINER_CHECK_MS: &str = "86400000";

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    /// Who it is.
    pub name: &'static str,
    /// Where its clients connect.
    pub address: SocketAddr,
    process: Keeper,
}

impl Server {
    /// What it printed last.
    pub fn said(&self) -> String {
        let said = self.process.said();
        let lines: Vec<_> = said.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// Why there is no ZooKeeper here, if there is none.
pub fn missing() -> Option<String> {
    let java = Command::new("java").arg("-version").output();
    if !java.is_ok_and(|output| output.status.success()) {
        return Some("java does not run".to_owned());
    }
    let class = CLASSES.iter().find(|class| !Path::new(class).exists())?;
    Some(format!("{class} is not there (Debian's package zookeeper)"))
}

/// Starts both; ZooKeeper first.
pub fn start(folder: &Path) -> [Server; 2] {
    let base = free_ports();
    let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], base + port));
    let theirs = Server { name: "ZooKeeper", address: address(0), process: zookeeper(folder, address(0)) };
    let addresses = [1, 2, 3].map(|port| address(port).to_string());
    let data = folder.join("ours");
    let args = [
        &["--client", &addresses[0], "--http", &addresses[1], "--peer", &addresses[2]][..],
        &["--data-dir", data.to_str().unwrap(), "--log-segment-bytes", "16MiB", "--four-letter-words", "*"],
        &["--tick-time-ms", "500", "--session-timeout-min-ms", "1000", "--session-timeout-max-ms", "600000"],
        &["--container-check-interval-ms", CONTAINER_CHECK_MS, "--super-digest", SUPER],
        &["--extended-types", "--enforce-quota"],
    ]
    .concat();
    let process = Keeper::start(&folder.join("ours.log"), &args);
    let ours = Server { name: "Statehouse", address: address(1), process };
    for server in [&theirs, &ours] {
        server.process.until_it_serves(server.address);
    }
    [theirs, ours]
}

fn zookeeper(folder: &Path, address: SocketAddr) -> Keeper {
    let config = folder.join("zoo.cfg");
    let text = format!(
        "tickTime=500\ndataDir={}\nclientPort={}\nclientPortAddress={}\nmaxClientCnxns=0\nminSessionTimeout=1000\n\
         maxSessionTimeout=600000\nadmin.enableServer=false\n4lw.commands.whitelist=*\n",
        folder.join("theirs").display(),
        address.port(),
        address.ip()
    );
    std::fs::write(&config, text).unwrap();
    let mut java = Command::new("java");
    java.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &CLASSES.join(":")]);
    for (name, value) in [
        ("org.slf4j.simpleLogger.defaultLogLevel", "error"),
        // What it promises about disks is not compared.
        ("zookeeper.forceSync", "no"),
        ("zookeeper.extendedTypesEnabled", "true"),
        ("zookeeper.enforceQuota", "true"),
        ("znode.container.checkIntervalMs", CONTAINER_CHECK_MS),
        ("zookeeper.DigestAuthenticationProvider.superDigest", SUPER),
    ] {
        java.arg(format!("-D{name}={value}"));
    }
    java.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(config);
    Keeper::spawn(&folder.join("theirs.log"), java)
}
