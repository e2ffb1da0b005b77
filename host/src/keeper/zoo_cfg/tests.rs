#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
//! Files as they are found in the field: a tarball's sample, Debian's, the container images', an operator's.

use super::*;

/// A directory with a `myid`, and the file in it; `{dir}` in the file is the directory.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new(myid: Option<&str>, cfg: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        if let Some(id) = myid {
            std::fs::write(dir.path().join("myid"), format!("{id}\n")).unwrap();
        }
        let host = Self { dir };
        host.write("zoo.cfg", cfg);
        host
    }

    fn write(&self, name: &str, text: &str) {
        let text = text.replace("{dir}", self.dir.path().to_str().unwrap());
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn read(&self) -> Result<ZooCfg, ZooCfgError> {
        read(&self.dir.path().join("zoo.cfg"), &|host, port| match host.parse::<IpAddr>() {
            Ok(ip) => Ok((ip, port).into()),
            Err(_) if host == "nowhere" => Err(std::io::Error::other("no such host")),
            Err(_) => Ok(([10, 0, 0, 7], port).into()),
        })
    }

    fn refused(&self) -> String {
        let error = self.read().unwrap_err();
        let text = format!("{error}; {}", error.remedy());
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn read_one(myid: Option<&str>, cfg: &str) -> ZooCfg {
    Host::new(myid, cfg).read().unwrap()
}

fn value<'a>(cfg: &'a ZooCfg, flag: &str) -> Option<&'a str> {
    cfg.settings.get(flag).map(|(_, value)| value.as_str())
}

fn ignored(cfg: &ZooCfg) -> Vec<(usize, &str)> {
    cfg.ignored.iter().map(|line| (line.line, line.key.as_str())).collect()
}

/// What the tarball's `zoo_sample.cfg` comes down to: one server, all addresses.
#[test]
fn the_sample_of_the_tarball_is_one_node() {
    let host = Host::new(None, "# a tick\ntickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={dir}\nclientPort=2181\n");
    let cfg = host.read().unwrap();
    assert_eq!(value(&cfg, "client"), Some("0.0.0.0:2181"));
    assert_eq!(value(&cfg, "data-dir"), Some(host.dir.path().join("statehouse").to_str().unwrap()));
    assert_eq!((value(&cfg, "tick-time-ms"), value(&cfg, "sync-limit-ticks")), (Some("2000"), Some("5")));
    assert_eq!((value(&cfg, "initial-cluster"), value(&cfg, "node-id"), value(&cfg, "peer")), (None, None, None));
    assert_eq!(ignored(&cfg), [(3, "initLimit")]);
    assert_eq!(cfg.notes, Vec::<String>::new());
}

/// A file without the line got our default of 10000: an ensemble that never said a limit lost the one that it had.
#[test]
fn connections_of_one_address_are_limited_as_zookeeper_limits_them() {
    let limit = |line: &str| {
        let cfg = read_one(None, &format!("dataDir={{dir}}\nclientPort=2181\n{line}\n"));
        value(&cfg, "client-connections-per-address-max").map(str::to_owned)
    };
    assert_eq!(limit(""), Some("60".to_owned()));
    assert_eq!(limit("maxClientCnxns=7"), Some("7".to_owned()));
    assert_eq!(limit("zookeeper.maxClientCnxns=0"), Some("10000000".to_owned()));
}

/// Debian's `/etc/zookeeper/conf/zoo.cfg` with its ensemble lines switched on.
#[test]
fn an_ensemble_is_read_with_myid() {
    let text = "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={dir}\n# dataLogDir=/disk2/zookeeper\nclientPort=2181\n\
                server.1=zookeeper1:2888:3888\nserver.2=zookeeper2:2888:3888\nserver.3=zookeeper3:2888:3888\n\
                #preAllocSize=65536\n#snapCount=1000\n#leaderServes=yes\n";
    let cfg = read_one(Some("2"), text);
    assert_eq!(value(&cfg, "node-id"), Some("2"));
    assert_eq!(value(&cfg, "initial-cluster"), Some("1=zookeeper1:2888,2=zookeeper2:2888,3=zookeeper3:2888"));
    assert_eq!(value(&cfg, "peer"), Some("10.0.0.7:2888"));
    // The cluster is the same for all of them, whoever reads it.
    assert_eq!(value(&read_one(Some("3"), text), "initial-cluster"), value(&cfg, "initial-cluster"));
}

/// What the container image writes from `ZOO_SERVERS` and `ZOO_CFG_EXTRA`.
#[test]
fn the_container_images_file_with_client_ports_in_the_server_lines() {
    let cfg = read_one(
        Some("1"),
        "dataDir={dir}\ndataLogDir=/datalog\ntickTime=2000\ninitLimit=5\nsyncLimit=2\nautopurge.snapRetainCount=3\n\
         autopurge.purgeInterval=0\nmaxClientCnxns=60\nstandaloneEnabled=true\nadmin.enableServer=true\n\
         server.1=zoo1:2888:3888;2181\nserver.2=zoo2:2888:3888;2181\nserver.3=zoo3:2888:3888;2181\n\
         metricsProvider.className=org.apache.zookeeper.metrics.prometheus.PrometheusMetricsProvider\n\
         metricsProvider.httpPort=7000\n4lw.commands.whitelist=srvr, mntr,ruok\nreconfigEnabled=false\n",
    );
    assert_eq!(value(&cfg, "client"), Some("0.0.0.0:2181"));
    assert_eq!(value(&cfg, "client-connections-per-address-max"), Some("60"));
    assert_eq!(value(&cfg, "snapshots-kept"), Some("3"));
    assert_eq!(value(&cfg, "four-letter-words"), Some("srvr, mntr,ruok"));
    assert_eq!(value(&cfg, "reconfig-enabled"), Some("false"));
    let keys: Vec<_> = ignored(&cfg).into_iter().map(|(_, key)| key).collect();
    assert_eq!(
        keys,
        [
            "dataLogDir",
            "initLimit",
            "autopurge.purgeInterval",
            "standaloneEnabled",
            "admin.enableServer",
            "metricsProvider.className",
            "metricsProvider.httpPort"
        ]
    );
}

/// A file of 3.5 and later after a reconfiguration: the members are in a file of their own, which names roles and
/// addresses for clients.
#[test]
fn the_dynamic_file_is_followed() {
    let host = Host::new(
        Some("1"),
        "dataDir={dir}\ntickTime=3000\nreconfigEnabled=true\nstandaloneEnabled=false\n\
         dynamicConfigFile={dir}/zoo.cfg.dynamic.100000000\nskipACL=yes\n",
    );
    host.write(
        "zoo.cfg.dynamic.100000000",
        "server.1=[fd00::1]:2888:3888:participant;[fd00::1]:2181\nserver.2=b:2888:3888:participant;0.0.0.0:2181\n\
         server.3=c:2888:3888:PARTICIPANT;2181\nserver.4=d:2888:3888:observer;2181\nversion=100000000\n",
    );
    let cfg = host.read().unwrap();
    assert_eq!(value(&cfg, "initial-cluster"), Some("1=[fd00::1]:2888,2=b:2888,3=c:2888"));
    assert_eq!((value(&cfg, "client"), value(&cfg, "peer")), (Some("[fd00::1]:2181"), Some("[fd00::1]:2888")));
    assert_eq!((value(&cfg, "skip-acl"), value(&cfg, "reconfig-enabled")), (Some("true"), Some("true")));
    assert_eq!(ignored(&cfg), [(5, "version")]);
    assert!(cfg.ignored[0].file.ends_with("zoo.cfg.dynamic.100000000"));
}

/// A file that is followed is read by whoever has it, also by a member that it does not list any more.
#[test]
fn the_members_of_a_file_are_the_same_for_every_reader() {
    let listed = |host: &Host| {
        let list = listed_in(&host.dir.path().join("zoo.cfg")).map_err(|error| error.to_string())?;
        let node = |(id, node): (u64, ListedNode)| format!("{id}={} {}", node.address, node.voter);
        Ok::<_, String>(list.into_iter().map(node).collect::<Vec<_>>().join(", "))
    };
    let host = Host::new(Some("9"), "dataDir={dir}\ndynamicConfigFile={dir}/servers\nserver.1=nowhere:2888:3888\n");
    host.write("servers", "server.2=b:2888:3888:participant;2181\nserver.3=[fd00::1]:2889:3888:observer;2181\n");
    assert_eq!(listed(&host).unwrap(), "1=nowhere:2888 true, 2=b:2888 true, 3=[fd00::1]:2889 false");
    for (servers, words) in [
        ("", "there is no server.N line"),
        ("server.1=a:1:2:observer\n", "nobody votes"),
        ("server.1=0.0.0.0:1:2\nserver.2=b:1:2\n", "a different place for each reader"),
        ("server.1=a:1:2\nserver.1=b:1:2\n", "is said here and, differently"),
        ("server.1=a\n", "there is no host"),
    ] {
        let refused = listed(&Host::new(None, &format!("dataDir={{dir}}\n{servers}"))).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
}

/// An observer was refused; it had to be started by flags, and added by hand.
#[test]
fn an_observer_joins_those_that_vote() {
    let servers = "server.1=a:2888:3888\nserver.2=b:2888:3888:participant;2181\nserver.3=c:2889:3888:observer;2181\n\
                   server.4=d:2888:3888:observer;2181\n";
    let cfg = read_one(Some("3"), &format!("dataDir={{dir}}\npeerType=observer\n{servers}"));
    assert_eq!((value(&cfg, "observer"), value(&cfg, "node-id")), (Some("true"), Some("3")));
    assert_eq!((value(&cfg, "join"), value(&cfg, "join-seconds")), (Some("a:2888,b:2888"), Some("0")));
    assert_eq!((value(&cfg, "advertise-peer"), value(&cfg, "peer")), (Some("c:2889"), Some("10.0.0.7:2889")));
    assert_eq!((value(&cfg, "initial-cluster"), value(&cfg, "client")), (None, Some("0.0.0.0:2181")));
    assert_eq!(ignored(&cfg), []);
    // Which it is stands in its line, which all members read.
    let cfg = read_one(Some("4"), &format!("dataDir={{dir}}\npeerType=participant\n{servers}"));
    assert_eq!((value(&cfg, "observer"), ignored(&cfg)), (Some("true"), vec![(2, "peerType")]));
    let cfg = read_one(Some("2"), &format!("dataDir={{dir}}\npeerType=observer\n{servers}"));
    assert_eq!((value(&cfg, "observer"), ignored(&cfg)), (None, vec![(2, "peerType")]));
    assert_eq!((value(&cfg, "join"), value(&cfg, "initial-cluster")), (None, Some("1=a:2888,2=b:2888")));
}

/// Keys that operators put into the file with the system property's prefix, and without.
#[test]
fn both_spellings_of_a_property_are_one_setting() {
    let cfg = read_one(
        None,
        "dataDir={dir}\nclientPort=2181\nclientPortAddress=127.0.0.1\nzookeeper.extendedTypesEnabled=true\n\
         zookeeper.DigestAuthenticationProvider.superDigest=super:xQJmxLMiHGwaqBvst5y6rkB6HQs=\n\
         jute.maxbuffer=0x3fffff\nenforceQuota=true\nzookeeper.znode.container.checkIntervalMs=5000\nmaxClientCnxns=0\n\
         minSessionTimeout=-1\nmaxSessionTimeout=120000\nadmin.serverPort=8081\nforceSync=no\nsecureClientPort=2281\n\
         readonlymode.enabled=true\nsslQuorum=false\naudit.enable=false\nwhat.is.this=1\n",
    );
    assert_eq!(value(&cfg, "client"), Some("127.0.0.1:2181"));
    assert_eq!(value(&cfg, "super-digest"), Some("super:xQJmxLMiHGwaqBvst5y6rkB6HQs="));
    assert_eq!((value(&cfg, "jute-max-buffer"), value(&cfg, "tick-time-ms")), (Some("4194303"), Some("3000")));
    assert_eq!((value(&cfg, "extended-types"), value(&cfg, "enforce-quota")), (Some("true"), Some("true")));
    assert_eq!(value(&cfg, "container-check-interval-ms"), Some("5000"));
    assert_eq!(value(&cfg, "client-connections-per-address-max"), Some("10000000"));
    assert_eq!((value(&cfg, "session-timeout-min-ms"), value(&cfg, "session-timeout-max-ms")), (None, Some("120000")));
    assert_eq!(value(&cfg, "http"), Some("127.0.0.1:8081"));
    let keys: Vec<_> = ignored(&cfg).into_iter().map(|(_, key)| key).collect();
    assert_eq!(keys, ["forceSync", "secureClientPort", "what.is.this"]);
    assert_eq!((value(&cfg, "read-only-mode"), value(&cfg, "audit")), (Some("true"), Some("false")));
    let said = cfg.ignored.last().unwrap().to_string();
    assert!(said.ends_with("zoo.cfg:18: what.is.this is not honoured: it is not known here"), "{said}");
}

#[test]
fn the_last_of_two_lines_counts_and_the_first_is_said_not_to() {
    let cfg = read_one(None, "dataDir={dir}\nclientPort=2181\ntickTime=1000\nclientPort=2182\ntickTime=1000\n");
    assert_eq!(value(&cfg, "client"), Some("0.0.0.0:2182"));
    assert_eq!(ignored(&cfg), [(2, "clientPort")]);
    assert!(cfg.ignored[0].reason.ends_with("zoo.cfg:4 sets it again"), "{}", cfg.ignored[0].reason);
}

#[test]
fn data_of_zookeeper_is_pointed_out_until_there_is_ours() {
    let host = Host::new(None, "dataDir={dir}\nclientPort=2181\n");
    std::fs::create_dir(host.dir.path().join("version-2")).unwrap();
    assert!(host.read().unwrap().notes[0].contains("statehouse keeper-import"));
    std::fs::create_dir(host.dir.path().join(DATA_FOLDER)).unwrap();
    assert_eq!(host.read().unwrap().notes, Vec::<String>::new());
}

#[test]
fn an_address_on_all_interfaces_is_asked_for_as_in_zookeeper() {
    let text =
        "dataDir={dir}\nclientPort=2181\nquorumListenOnAllIPs=true\nserver.1=nowhere:2888:3888\nserver.2=b:2888:3888\n";
    assert_eq!(value(&read_one(Some("1"), text), "peer"), Some("0.0.0.0:2888"));
}

/// Contradictions, each with its place: (myid, file, what is said).
#[test]
fn what_contradicts_itself_is_refused_with_file_and_line() {
    let cases: &[(Option<&str>, &str, &str)] = &[
        (None, "clientPort=2181\n", "zoo.cfg: dataDir is not set; name the directory"),
        (None, "dataDir={dir}\nclientPort=many\n", "zoo.cfg:2: clientPort is `many`; write a whole number, at least 1"),
        (None, "dataDir={dir}\nclientPort=70000\n", "zoo.cfg:2: 70000 is no port"),
        (None, "dataDir={dir}\nclientPortAddress=10.0.0.1\n", "zoo.cfg:2: clientPortAddress is set, but no clientPort"),
        (
            None,
            "dataDir={dir}\nclientPort=1\nminSessionTimeout=90000\nmaxSessionTimeout=80000\n",
            "zoo.cfg:3: the shortest session timeout, 90000 ms, is over the longest, 80000 ms",
        ),
        (
            None,
            "dataDir={dir}\nminSessionTimeout=90000\n",
            "zoo.cfg:2: the shortest session timeout, 90000 ms, is over the longest, 60000 ms",
        ),
        (None, "dataDir={dir}\nskipACL=perhaps\n", "zoo.cfg:2: skipACL is `perhaps`; write true or false"),
        (None, "dataDir={dir}\njute.maxbuffer=-1\n", "zoo.cfg:2: jute.maxbuffer is `-1`"),
        (
            Some("3"),
            "dataDir={dir}\nserver.1=a:1:2\nserver.2=b:1:2\n",
            "zoo.cfg: there is no server.3, but myid says 3",
        ),
        (Some("one"), "dataDir={dir}\nserver.1=a:1:2\n", "myid:1: `one` is no number of a member"),
        (None, "dataDir={dir}\nserver.1=a:1:2\nserver.2=b:1:2\n", "cannot read myid: No such file"),
        (
            Some("1"),
            "dataDir={dir}\nserver.1=a:1:2\nserver.2=a:1:3\n",
            "zoo.cfg:3: server.2 has the address of server.1",
        ),
        (
            Some("1"),
            "dataDir={dir}\nserver.1=a:1:2\nserver.1=b:1:2\n",
            "zoo.cfg:2: server.1 is said here and, differently, on line 3",
        ),
        (Some("1"), "dataDir={dir}\nserver.0=a:1:2\n", "zoo.cfg:2: `0` in server.0 is no node id"),
        (Some("1"), "dataDir={dir}\nserver.1=a\n", "zoo.cfg:2: server.1 is `a`: there is no host"),
        (Some("1"), "dataDir={dir}\nserver.1=a:x:3888\n", "zoo.cfg:2: server.1 is `a:x:3888`: the first port is none"),
        (
            Some("1"),
            "dataDir={dir}\nserver.1=a:1:2:leader\n",
            "zoo.cfg:2: server.1 is `a:1:2:leader`: `leader` is no role",
        ),
        (Some("1"), "dataDir={dir}\nserver.1=a:1:2;x\n", "the client port is none"),
        (
            Some("1"),
            "dataDir={dir}\nserver.1=nowhere:1:2\n",
            "zoo.cfg:2: the address of this member's host nowhere is not known",
        ),
        (
            Some("2"),
            "dataDir={dir}\nserver.1=a:1:2:observer\nserver.2=b:1:2:observer\n",
            "zoo.cfg:3: all servers are observers, and nobody votes",
        ),
        (
            Some("1"),
            "dataDir={dir}\nserver.1=0.0.0.0:2888:3888\nserver.2=b:2888:3888\n",
            "zoo.cfg:2: server.1 is 0.0.0.0, which is a different place for each reader",
        ),
        (
            Some("1"),
            "dataDir={dir}\nclientPort=2182\nserver.1=a:1:2;2181\n",
            "zoo.cfg:2: clientPort is 2182, but server.1 on line 3 ends in ;2181",
        ),
        (None, "dataDir={dir}\nserver.1=\\u00\n", "zoo.cfg:2: `\\u00` is no character"),
        (None, "dataDir={dir}\ndynamicConfigFile={dir}/gone\n", "cannot read gone"),
    ];
    for (myid, cfg, expected) in cases {
        let said = Host::new(*myid, cfg).refused();
        assert!(said.contains(expected), "{cfg}: {said}");
        assert!(said.contains("; "), "a remedy: {said}");
    }
}
