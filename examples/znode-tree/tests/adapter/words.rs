use statehouse_sdk::adapter::Asked;
use znode_tree::wire::MultiHeader;
use znode_tree::wire::op;

use crate::world::World;
use crate::world::body;
use crate::world::create;
use crate::world::delete;
use crate::world::path_watch;

const STATUS: &str = r#"{"node":1,"role":"leader","term":3,"first_term":2,"last_term":3,"leader":1,"applied":9,"commit":9,"last":9,"snapshot":null,
    "data_dir":"/data","settings":{"heartbeat_ms":200,"election_timeout_ms":1000,"snapshot_entries":100000,"snapshots_kept":2,
    "log_entries_kept":10000,"log_segment_bytes":67108864,"log_cache_bytes":16777216,"append_entries_max":1024,
    "commands_batch_max":512,"commands_batch_bytes_max":8388608,"caught_up_entries":1000,"commands_waiting_max":16384,"session_check_ms":500,"request_timeout_ms":5000,
    "transfer_part_bytes":1048576,"connections_per_address_max":60},
    "proposed":{"count":8,"sum":900,"last":70,"min":30,"max":400},
    "sync_micros":{"count":3,"sum":7500,"last":1500,"min":999,"max":5001},
    "snapshot_micros":{"count":0,"sum":0,"last":null,"min":null,"max":null},
    "sessions":2,"uptime_s":60,"version":"0.1.0","members":[
    {"id":1,"address":"10.0.0.1:7001","role":"voter","matched":9},
    {"id":2,"address":"10.0.0.2:7001","role":"voter","matched":9},
    {"id":3,"address":"10.0.0.3:7001","role":"learner","matched":null},
    {"id":4,"address":"10.0.0.4:7001","role":"learner","matched":9}]}"#;

fn world() -> World {
    let mut world = World::new(1);
    world.desk.tell("status", STATUS);
    world
}

/// The first words of each line.
fn keys(text: &str, until: char) -> Vec<&str> {
    text.lines().map(|line| line.split(until).next().unwrap()).collect()
}

#[test]
fn srvr_and_stat_have_zookeepers_lines() {
    let mut world = world();
    let mut peer = world.connect(0);
    world.create(&mut peer, "/a");
    let srvr = world.word(0, "srvr");
    assert_eq!(
        keys(&srvr, ':'),
        [
            "Zookeeper version",
            "Latency min/avg/max",
            "Received",
            "Sent",
            "Connections",
            "Outstanding",
            "Zxid",
            "Mode",
            "Node count",
            "Proposal sizes last/min/max"
        ]
    );
    assert!(srvr.starts_with("Zookeeper version: 3.9.0-"), "what clients read the version from: {srvr}");
    let zxid = world.desk.last();
    let expected = format!(
        "Latency min/avg/max: 0/0.0/0\nReceived: 3\nSent: 2\nConnections: 2\nOutstanding: 0\nZxid: 0x{zxid:x}\nMode: leader\nNode count: "
    );
    assert!(srvr.contains(&expected), "{srvr}");
    let stat = world.word(0, "stat");
    assert!(srvr.ends_with("\nProposal sizes last/min/max: 70/30/400\n"), "{srvr}");
    assert!(stat.contains("Clients:\n /10.1.2.3:50000[1](queued=0,recved=2,sent=2)\n /10.1.2.3:50000[0](queued=0,recved=1,sent=0)\n\nLatency"), "{stat}");
}

#[test]
fn cons_shows_each_connection_with_its_session_and_last_request() {
    let mut world = world();
    let mut peer = world.connect(0);
    let zxid = world.ask(&mut peer, op::EXISTS, &path_watch("/", false)).zxid;
    let now = world.desk.time_ms();
    let (session, cons) = (peer.session(), world.word(0, "cons"));
    let line = format!(
        " /10.1.2.3:50000[1](queued=0,recved=2,sent=2,sid=0x{session:x},lop=EXIS,est={now},to=10000,lcxid=0x1,lzxid=0x{zxid:x},lresp={now},llat=0,minlat=0,avglat=0,maxlat=0)\n"
    );
    assert_eq!(cons, format!("{line} /10.1.2.3:50000[0](queued=0,recved=1,sent=0)\n\n"));
    assert_eq!(world.word(0, "crst"), "Connection stats reset.\n");
    assert!(world.word(0, "cons").contains("recved=0,sent=0,"), "{}", world.word(0, "cons"));
    assert_eq!(world.word(0, "srst"), "Server stats reset.\n");
    assert!(world.word(0, "srvr").contains("Received: 1\nSent: 1\n"));
}

#[test]
fn mntr_has_what_monitors_read() {
    let mut world = world();
    let mut peer = world.connect(0);
    assert_eq!(world.error(&mut peer, op::CREATE, &create("/e", "12345", 1)), 0);
    assert_eq!(world.error(&mut peer, op::EXISTS, &path_watch("/e", true)), 0);
    let mntr = world.word(0, "mntr");
    assert!(mntr.lines().all(|line| line.starts_with("zk_") && line.matches('\t').count() == 1), "{mntr}");
    let value = |key: &str| {
        let line = mntr.lines().find_map(|line| line.strip_prefix(&format!("zk_{key}\t")));
        line.unwrap_or_else(|| panic!("no {key} in {mntr}")).to_owned()
    };
    for key in [
        "version",
        "server_state",
        "avg_latency",
        "min_latency",
        "max_latency",
        "packets_received",
        "packets_sent",
        "num_alive_connections",
        "outstanding_requests",
        "znode_count",
        "watch_count",
        "ephemerals_count",
        "approximate_data_size",
        "open_file_descriptor_count",
        "max_file_descriptor_count",
        "followers",
        "learners",
        "synced_followers",
        "pending_syncs",
        "quorum_size",
        "peer_state",
        "uptime",
        "global_sessions",
        "cnt_readlatency",
        "avg_updatelatency",
    ] {
        value(key);
    }
    let members = ["followers", "learners", "quorum_size", "synced_followers", "synced_observers"].map(value);
    assert_eq!(
        (value("server_state").as_str(), members.each_ref().map(String::as_str)),
        ("leader", ["1", "3", "2", "1", "1"])
    );
    assert_eq!(
        (value("watch_count"), value("ephemerals_count"), value("uptime")),
        ("1".into(), "1".into(), "60000".into())
    );
}

/// What was proposed was not shown at all, and `srvr` said -1 for ever.
#[test]
fn a_leader_shows_how_large_its_proposals_are_and_no_other_does() {
    let mut world = world();
    let shown = |world: &mut World| -> Vec<String> {
        let mntr = world.word(0, "mntr");
        mntr.lines().filter(|line| line.contains("proposal")).map(str::to_owned).collect()
    };
    let lines = |values: [&str; 4]| {
        let names = ["last_proposal_size", "max_proposal_size", "min_proposal_size", "proposal_count"];
        names.iter().zip(values).map(|(name, value)| format!("zk_{name}\t{value}")).collect::<Vec<_>>()
    };
    assert_eq!(shown(&mut world), lines(["70", "400", "30", "8"]));
    // Before the first of its lead; an older host says nothing of it.
    let none = STATUS.replace(r#"{"count":8,"sum":900,"last":70,"min":30,"max":400}"#, r#"{"count":8,"last":null}"#);
    world.desk.tell("status", &none);
    assert_eq!(shown(&mut world), lines(["-1", "-1", "-1", "8"]));
    world.desk.tell("status", &STATUS.replace(r#""role":"leader""#, r#""role":"follower""#));
    assert_eq!(shown(&mut world), [""; 0]);
}

/// Times of syncs and of snapshots were in the node's metrics alone.
#[test]
fn mntr_sums_up_syncs_snapshots_and_requests() {
    let mut world = world();
    let mut peer = world.connect(0);
    world.create(&mut peer, "/a");
    let mntr = world.word(0, "mntr");
    let of = |name: &str| -> Vec<String> {
        let lines = mntr.lines().filter_map(|line| line.strip_prefix("zk_")?.split_once('\t'));
        let of_it = lines.filter_map(|(key, value)| Some((key.strip_suffix(name)?.strip_suffix('_')?, value)));
        of_it.map(|(part, value)| format!("{part}={value}")).collect()
    };
    assert_eq!(of("fsynctime"), ["avg=2.5", "min=0", "max=5", "cnt=3", "sum=7"]);
    assert_eq!(of("snapshottime"), ["avg=0.0", "min=0", "max=0", "cnt=0", "sum=0"]);
    let written = ["avg=0.0", "min=0", "max=0", "cnt=1", "sum=0", "p50=0", "p95=0", "p99=0", "p999=0"];
    assert_eq!(of("updatelatency"), written);
    assert!(of("readlatency").contains(&"p999=0".to_owned()), "{mntr}");
}

#[test]
fn a_leaders_uptime_is_that_of_its_lead() {
    let mut world = world();
    world.desk.advance(10_000);
    world.desk.lead(None);
    world.desk.advance(10_000);
    world.desk.lead(Some(0));
    world.desk.advance(4_000);
    let led_ms = |world: &mut World| -> u64 {
        let mntr = world.word(0, "mntr");
        mntr.lines().find_map(|line| line.strip_prefix("zk_leader_uptime\t")).unwrap().parse().unwrap()
    };
    let after = led_ms(&mut world);
    assert!((2_000..=4_000).contains(&after), "seen at a tick: {after}");
    world.desk.advance(60_000);
    assert_eq!(led_ms(&mut world), after + 60_000);
}

#[test]
fn times_without_a_leader_are_counted_and_an_election_is_its_winners() {
    let mut world = World::new(3);
    world.desk.tell("status", STATUS);
    let value = |world: &mut World, node: usize, key: &str| -> u64 {
        let mntr = world.word(node, "mntr");
        mntr.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap_or_else(|| panic!("{mntr}"))
    };
    for winner in [1, 2] {
        world.desk.lead(None);
        world.desk.advance(10_000);
        world.desk.lead(Some(winner));
        world.desk.advance(4_000);
        assert_eq!(value(&mut world, winner, "zk_cnt_election_time"), 1);
        let took_ms = value(&mut world, winner, "zk_sum_election_time");
        assert!((6_000..=14_000).contains(&took_ms), "seen at ticks: {took_ms}");
    }
    assert_eq!(value(&mut world, 0, "zk_cnt_election_time"), 0);
    assert_eq!(value(&mut world, 0, "zk_cnt_leader_unavailable_time"), 2);
    world.word(0, "srst");
    assert_eq!(value(&mut world, 0, "zk_cnt_leader_unavailable_time"), 0);
}

#[test]
fn watch_words_count_as_zookeeper_does() {
    let mut world = world();
    let (mut one, mut two) = (world.connect(0), world.connect(0));
    for peer in [&mut one, &mut two] {
        assert_eq!(world.error(peer, op::EXISTS, &path_watch("/", true)), 0);
        assert_eq!(world.error(peer, op::EXISTS, &path_watch("/none", true)), -101);
        assert_eq!(world.error(peer, op::GET_CHILDREN, &path_watch("/", true)), 0);
    }
    let (a, b) = (one.session(), two.session());
    assert_eq!(world.word(0, "wchs"), "2 connections watching 2 paths\nTotal watches:4\n");
    assert_eq!(world.word(0, "wchp"), format!("/\n\t0x{a:x}\n\t0x{b:x}\n/none\n\t0x{a:x}\n\t0x{b:x}\n\n"));
    assert_eq!(world.word(0, "wchc"), format!("0x{a:x}\n\t/\n\t/none\n0x{b:x}\n\t/\n\t/none\n\n"));
}

#[test]
fn dump_lists_ephemeral_nodes_by_session() {
    let mut world = world();
    let mut peer = world.connect(0);
    assert_eq!(world.error(&mut peer, op::CREATE, &create("/e", "", 1)), 0);
    let (session, dump) = (peer.session(), world.word(0, "dump"));
    assert!(dump.contains(&format!("Sessions with Ephemerals (1):\n0x{session:x}:\n\t/e\n")), "{dump}");
    assert!(dump.contains(&format!("\tip: /10.1.2.3:50000 sessionId: 0x{session:x}\n")), "{dump}");
}

#[test]
fn a_word_that_is_not_allowed_says_so_and_one_that_is_none_says_nothing() {
    let mut world = World::with(1, "{}", r#"{"listen":{"four_letter_words":"ruok, isro"}}"#);
    assert_eq!(world.word(0, "mntr"), "mntr is not executed because it is not in the whitelist.\n");
    assert_eq!((world.word(0, "ruok"), world.word(0, "isro")), ("imok".into(), "rw".into()));
    assert_eq!(world.word(0, "nope"), "");
    // What follows a word is not looked at: `echo ruok | nc` sends a line feed.
    assert_eq!(world.word(0, "ruok\n"), "imok");
}

#[test]
fn a_word_may_come_in_pieces() {
    let mut world = world();
    let mut peer = world.dial(0);
    for byte in b"ruok" {
        world.send(&peer, &[*byte]);
        world.desk.run();
    }
    assert_eq!(world.text(&mut peer), "imok");
}

#[test]
fn without_a_leader_words_say_that_nobody_is_served() {
    let mut world = world();
    world.desk.lead(None);
    for word in ["stat", "srvr", "mntr", "cons", "wchs", "dump", "conf", "dirs", "srst"] {
        assert_eq!(world.word(0, word), "This ZooKeeper instance is not currently serving requests\n", "{word}");
    }
    assert_eq!((world.word(0, "ruok"), world.word(0, "isro")), ("imok".into(), "null".into()));
}

#[test]
fn a_word_is_answered_when_the_host_knows_nothing() {
    let mut world = World::new(1);
    for word in ["srvr", "stat", "mntr", "conf", "dirs", "envi", "dump", "lgif", "csnp", "rqld", "ftfl", "apiv"] {
        assert_ne!(world.word(0, word), "", "{word}");
    }
    assert_eq!(world.word(0, "csnp"), "Failed to schedule snapshot creation task.");
    world.desk.tell("snapshot", r#"{"index": 77}"#);
    world.desk.tell("lead", r#"{"leads":true}"#);
    assert_eq!(world.word(0, "csnp"), "77");
    assert_eq!(world.word(0, "rqld"), "Sent leadership request to leader.");
    assert_eq!(world.word(0, "ydld"), "Failed to send yield leadership request to leader.");
    world.desk.tell("yield", "{}");
    assert_eq!(world.word(0, "ydld"), "Sent yield leadership request to leader.");
}

/// It was not supported. The host ends for it, so it is asked to only when whoever gave the others up has been answered.
#[test]
fn who_gives_up_the_other_servers_is_answered_before_the_host_is_asked_to_end() {
    for (compatibility, is_refused) in
        [("zookeeper", "rcvr is not executed because it is not in the whitelist.\n"), ("clickhouse", "")]
    {
        let params = format!(r#"{{"compatibility":"{compatibility}"}}"#);
        let world = |words: &str| {
            let mut world = World::with(
                1,
                &params,
                &format!(r#"{{"params":{params},"listen":{{"four_letter_words":"{words}"}}}}"#),
            );
            world.desk.keep_asked();
            world
        };
        let asked = |world: &mut World| -> Vec<String> {
            let told = |(_, asked)| match asked {
                Asked::Ask { what, .. } if what.starts_with("recover") => Some(what),
                Asked::Send { bytes, .. } if bytes == b"ok" => Some("ok is sent".to_owned()),
                _ => None,
            };
            world.desk.take_asked().into_iter().filter_map(told).collect()
        };
        let mut all = world("*");
        all.desk.tell("recover check", "{}");
        assert_eq!((all.word(0, "rcvr").as_str(), asked(&mut all)), (is_refused, Vec::new()), "not by a star");

        let mut named = world("*,rcvr");
        named.desk.lead(None);
        assert_eq!(named.word(0, "rcvr"), "this desk knows no answer\n", "the host's own words");
        assert_eq!(asked(&mut named), ["recover check"]);
        named.desk.tell("recover check", r#"{"recovers":false}"#);
        assert_eq!(named.word(0, "rcvr"), "ok");
        assert_eq!(asked(&mut named), ["recover check", "ok is sent", "recover"]);
        assert_eq!(named.word(0, "ruok"), "imok");
    }
}

#[test]
fn conf_has_each_key_once() {
    let mut world = world();
    let conf = world.word(0, "conf");
    for key in ["clientPort=2181", "tickTime=2000", "minSessionTimeout=4000", "maxSessionTimeout=40000", "serverId=1"] {
        assert_eq!(conf.matches(key).count(), 1, "{conf}");
    }
    assert!(conf.contains("\nmaxClientCnxns=60\n"), "the host's limit, which was printed as 0: {conf}");
    assert!(conf.contains("server.3=10.0.0.3:7001:7001:observer\n"), "{conf}");
}

fn clickhouse() -> World {
    let params = r#"{"compatibility":"clickhouse"}"#;
    let mut world = World::with(1, params, r#"{"params":{"compatibility":"clickhouse"},"node":1}"#);
    world.desk.tell("status", STATUS);
    world
}

#[test]
fn an_operation_that_was_switched_off_ends_the_connection_as_in_clickhouse() {
    let settings =
        r#"{"params":{"compatibility":"clickhouse","feature_flags":{"multi_read":false,"create_ttl":true}}}"#;
    let mut world = World::with(1, r#"{"compatibility":"clickhouse","feature_flags":{"multi_read":false}}"#, settings);
    let mut peer = world.connect(0);
    assert_eq!(world.error(&mut peer, op::MULTI_READ, &[]), -6);
    assert!(world.is_closed(&peer));
    assert!(world.connect(0).session() > 0);
}

/// They were done all the same inside a multi and a multiRead.
#[test]
fn what_was_switched_off_is_so_inside_a_multi_and_a_multi_read_too() {
    let params = r#"{"compatibility":"clickhouse","feature_flags":{"filtered_list":false,"try_remove":false}}"#;
    let mut world = World::with(1, params, &format!(r#"{{"params":{params}}}"#));
    let many = |requests: &[(i32, Vec<u8>)]| {
        body(|out| {
            for (operation, request) in requests {
                MultiHeader { op: *operation, done: false, err: -1 }.write(out);
                out.raw(request);
            }
            MultiHeader::END.write(out);
        })
    };
    let list = |operation, options: &[u8]| (operation, [path_watch("/", false), options.to_vec()].concat());
    let reads = [
        list(op::GET_CHILDREN, b""),
        (op::LIST_RECURSIVE, body(|out| _ = out.text("/").u32(9))),
        list(op::FILTERED_LIST_WITH_STATS_AND_DATA, &[0, 1, 1]),
        list(op::EXISTS, b""),
    ];
    let mut peer = world.connect(0);
    assert_eq!(world.error(&mut peer, op::MULTI_READ, &many(&reads)), 0);
    assert_eq!(world.error(&mut peer, op::MULTI, &many(&[(op::CREATE, create("/a", "", 0))])), 0);
    assert_eq!(world.error(&mut peer, op::MULTI, b"junk"), -5, "what cannot be read is refused as ever");
    let off = [reads.to_vec(), vec![list(op::FILTERED_LIST, &[0])]].concat();
    assert_eq!(world.error(&mut peer, op::MULTI_READ, &many(&off)), -6);
    assert!(world.is_closed(&peer));
    let mut peer = world.connect(0);
    let off = [(op::CREATE, create("/b", "", 0)), (op::TRY_REMOVE, delete("/a"))];
    assert_eq!(world.error(&mut peer, op::MULTI, &many(&off)), -6);
    assert!(world.is_closed(&peer));
    let mut peer = world.connect(0);
    assert_eq!(world.error(&mut peer, op::EXISTS, &path_watch("/a", false)), 0);
    assert_eq!(world.error(&mut peer, op::EXISTS, &path_watch("/b", false)), -101);
}

#[test]
fn clickhouse_mode_answers_in_its_own_words() {
    let mut world = clickhouse();
    let _peer = world.connect(0);
    assert_eq!(world.word(0, "wchc"), "", "not allowed by default: closed without a word");
    assert!(world.word(0, "srvr").starts_with("ClickHouse Keeper version: "));
    assert_eq!(
        keys(&world.word(0, "mntr"), '\t'),
        [
            "zk_version",
            "zk_avg_latency",
            "zk_max_latency",
            "zk_min_latency",
            "zk_packets_received",
            "zk_packets_sent",
            "zk_num_alive_connections",
            "zk_outstanding_requests",
            "zk_server_state",
            "zk_znode_count",
            "zk_watch_count",
            "zk_ephemerals_count",
            "zk_approximate_data_size",
            "zk_key_arena_size",
            "zk_latest_snapshot_size",
            "zk_open_file_descriptor_count",
            "zk_max_file_descriptor_count",
            "zk_sum_election_time",
            "zk_cnt_election_time",
            "zk_sum_leader_unavailable_time",
            "zk_cnt_leader_unavailable_time",
            "zk_followers",
            "zk_synced_followers",
            "zk_leader_uptime"
        ]
    );
    assert_eq!(
        keys(&world.word(0, "lgif"), '\t'),
        [
            "first_log_idx",
            "first_log_term",
            "last_log_idx",
            "last_log_term",
            "last_committed_log_idx",
            "leader_committed_log_idx",
            "target_committed_log_idx",
            "last_snapshot_idx",
            "latest_logs_cache_entries",
            "latest_logs_cache_size",
            "commit_logs_cache_entries",
            "commit_logs_cache_size"
        ]
    );
    // Each of its own term: all were said to be of the leader's now.
    let terms = |text: &str| text.lines().filter(|line| line.contains("_term")).collect::<Vec<_>>().join(" ");
    assert_eq!(terms(&world.word(0, "lgif")), "first_log_term\t2 last_log_term\t3");
    assert!(world.word(0, "ftfl").starts_with("filtered_list\t1\nmulti_read\t1\ncheck_not_exists\t1\n"));
    assert_eq!(world.word(0, "apiv"), "2", "as /keeper/api_version");
    assert_eq!(world.word(0, "isro"), "rw");
    world.desk.tell("status", &STATUS.replace(r#""role":"leader""#, r#""role":"learner""#));
    assert_eq!(world.word(0, "isro"), "ro", "a learner does not vote");
    world.desk.lead(None);
    assert_eq!(world.word(0, "mntr"), "This instance is not currently serving requests");
}

#[test]
fn clickhouses_conf_has_its_names_in_its_order_with_the_values_that_hold() {
    let mut world = clickhouse();
    let conf = world.word(0, "conf");
    let allowed = "jmst,jmfp,jmep,jmdp,conf,cons,crst,envi,ruok,srst,srvr,stat,wchs,dirs,mntr,isro,apiv,csnp,lgif,rqld,\
        rclc,clrs,ftfl,ydld,pfev,lgrq";
    let expected = format!(
        "server_id=1\nenable_ipv6=true\ntcp_port=0\nfour_letter_word_allow_list={allowed}\n\
         min_session_timeout_ms=10000\nsession_timeout_ms=100000\noperation_timeout_ms=5000\n\
         dead_session_check_period_ms=500\nttl_gc_period_ms=60000\nttl_gc_batch_size=1000\n\
         container_gc_period_ms=60000\ncontainer_gc_batch_size=1000\nheart_beat_interval_ms=200\n\
         election_timeout_lower_bound_ms=1000\nelection_timeout_upper_bound_ms=1500\nleadership_expiry_ms=1200\n\
         reserved_log_items=10000\nsnapshot_distance=100000\nauto_forwarding=true\nsleep_before_leader_change_ms=0\n\
         snapshots_to_keep=2\nfresh_log_gap=1000\nmax_request_queue_size=16384\nmax_requests_batch_size=512\n\
         max_requests_batch_bytes_size=8388608\nparallel_read_threads=0\nmax_request_size=1048575\n\
         max_requests_append_size=1024\nquorum_reads=false\nforce_sync=true\ncompress_logs=false\n\
         compress_snapshots_with_zstd_format=false\nmax_log_file_size=67108864\nlog_file_overallocate_size=0\n\
         min_request_size_for_cache=0\nasync_replication=true\nlatest_logs_cache_size_threshold=16777216\n\
         use_xid_64=true\ncheck_node_acl_on_remove=false\nsnapshot_transfer_chunk_size=1048576\n\
         max_request_queue_bytes_size=134217728\noptimize_read_order=false\nlog_readahead_enabled=false\n\
         log_readahead_commit_window_bytes=0\nlog_storage_path=/data/log\nlog_storage_disk=LocalLogDisk\n\
         snapshot_storage_path=/data/groups\nsnapshot_storage_disk=LocalSnapshotDisk\n"
    );
    assert_eq!(conf, expected);
    // An older host says less, and nothing is made up.
    world.desk.tell("status", r#"{"node":1,"role":"leader"}"#);
    let conf = world.word(0, "conf");
    assert!(conf.contains("session_timeout_ms=100000\n") && !conf.contains("heart_beat"), "{conf}");
    assert!(conf.lines().all(|line| line.matches('=').count() == 1), "{conf}");
}
