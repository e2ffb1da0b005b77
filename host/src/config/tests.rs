//! Flags, files and the environment together.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;

/// The environment is the process's, so the test that sets variables does so in a command of its own
/// with a flag no other test has.
fn parse(args: &[&str], file: Option<&str>) -> Result<ServeConfig, String> {
    let file = file
        .map(|text| ConfigFile::parse(Path::new("node.toml"), text))
        .transpose()
        .map_err(|e| format!("{e}; {}", e.remedy()))?;
    let command = prepare(ServeConfig::augment_args(Command::new("serve").no_binary_name(true)), file.as_ref())
        .map_err(|e| format!("{e}; {}", e.remedy()))?;
    let matches = command.try_get_matches_from(args).map_err(|e| e.to_string())?;
    ServeConfig::from_arg_matches(&matches).map_err(|e| e.to_string())
}

#[test]
fn defaults_are_valid_and_serve_one_node() {
    let config = ServeConfig::default();
    assert_eq!(config, parse(&[], None).unwrap());
    config.validate().unwrap();
    assert!(config.initial_cluster.is_empty());
    assert_eq!(config.http_url(), "http://127.0.0.1:7070");
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let file = "heartbeat-ms = 70\nelection_timeout_ms = 900\ninsecure = true\nsnapshot-bytes = \"1MiB\"\n";
    let config = parse(&["--heartbeat-ms", "80"], Some(file)).unwrap();
    assert_eq!((config.heartbeat_ms, config.election_timeout_ms, config.snapshot_bytes), (80, 900, 1 << 20));
    assert!(config.insecure);
    assert!(!parse(&["--insecure=false"], Some(file)).unwrap().insecure);
    assert!(parse(&["--insecure"], None).unwrap().insecure);
    assert_eq!(config.snapshot_entries, ServeConfig::default().snapshot_entries);
}

/// `PATH` is the one variable every test process has: a flag that reads it shows where variables stand.
#[test]
fn a_variable_wins_over_the_file() {
    let file = ConfigFile::parse(Path::new("node.toml"), "x = \"file\"").unwrap();
    let command = Command::new("t").no_binary_name(true).arg(clap::Arg::new("x").long("x"));
    let command = prepare(command, Some(&file)).unwrap();
    assert_eq!(command.clone().get_matches_from(Vec::<&str>::new()).get_one::<String>("x").unwrap(), "file");
    let command = command.mut_arg("x", |arg| arg.env("PATH"));
    assert_eq!(
        command.clone().get_matches_from(Vec::<&str>::new()).get_one::<String>("x").unwrap(),
        &std::env::var("PATH").unwrap()
    );
    assert_eq!(command.get_matches_from(["--x", "flag"]).get_one::<String>("x").unwrap(), "flag");
}

#[test]
fn every_flag_has_its_variable() {
    let command = prepare(ServeConfig::augment_args(Command::new("serve")), None).unwrap();
    for arg in command.get_arguments() {
        let flag = arg.get_long().expect("serve has flags only");
        assert_eq!(arg.get_env().unwrap().to_str().unwrap(), variable(flag));
    }
    assert_eq!(variable("data-dir"), "STATEHOUSE_DATA_DIR");
}

#[test]
fn the_cluster_may_be_text_list_or_table() {
    let expected = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:2".to_owned())]);
    for file in [
        "initial-cluster = \"1=a:1,2=b:2\"",
        "initial-cluster = [\"1=a:1\", \"2=b:2\"]",
        "[initial-cluster]\n1 = \"a:1\"\n2 = \"b:2\"",
    ] {
        assert_eq!(parse(&[], Some(file)).unwrap().initial_cluster, expected, "{file}");
    }
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_valid_one() {
    assert_eq!(
        parse(&[], Some("hearbeat-ms = 3")).unwrap_err(),
        "node.toml has the key `hearbeat-ms`, which is no setting; did you mean `heartbeat-ms`?"
    );
    assert!(parse(&[], Some("colour = 3")).unwrap_err().contains("--help"));
    assert!(parse(&[], Some("heartbeat-ms = 3\nheartbeat_ms = 4")).unwrap_err().contains("twice"));
    assert!(parse(&[], Some("heartbeat-ms = ")).unwrap_err().contains("not TOML"));
    assert!(parse(&[], Some("heartbeat-ms = 1979-05-27")).unwrap_err().contains("is a date"));
}

#[test]
fn values_that_do_not_go_together_are_refused_by_name() {
    let refused = |args: &[&str]| parse(args, None).unwrap().validate().unwrap_err().to_string();
    assert!(refused(&["--node-id", "0"]).contains("--node-id"));
    assert!(refused(&["--http", "0.0.0.0:7070"]).contains("--http 0.0.0.0:7070"));
    assert!(refused(&["--node-id", "3", "--initial-cluster", "1=a:1,2=b:2"]).contains("1, 2, but not this one"));
    assert!(refused(&["--heartbeat-ms", "600"]).contains("--election-timeout-ms 1000"));
    assert!(refused(&["--session-timeout-min-ms", "99999999999"]).contains("leave no timeout"));
    parse(&["--http", "0.0.0.0:7070", "--insecure"], None).unwrap().validate().unwrap();
}

/// Node 1 listened at 7170 and told the others 7171: they waited for each other, and nothing said why. Where one forwards to the other
/// it is right, so it is said and no more.
#[test]
fn an_address_that_the_others_are_told_and_nobody_listens_at_is_doubted() {
    let doubt = |args: &[&str]| parse(&[args, &["--insecure"]].concat(), None).unwrap().doubt();
    let cluster = ["--initial-cluster", "1=127.0.0.1:7171,2=127.0.0.1:7172"];
    let told = doubt(&cluster).unwrap();
    for words in ["reach this node at 127.0.0.1:7171", "listens at --peer 127.0.0.1:7170", "--advertise-peer"] {
        assert!(told.contains(words), "{told}");
    }
    let with = |args: &[&'static str]| doubt(&[&cluster[..], args].concat());
    assert_eq!(with(&["--peer", "127.0.0.1:7171"]), None);
    assert_eq!(with(&["--peer", "0.0.0.0:7171"]), None, "on every address is on this one too");
    assert!(with(&["--peer", "0.0.0.0:7170"]).is_some());
    assert!(with(&["--peer", "10.0.0.1:7171"]).is_some());
    assert_eq!(with(&["--advertise-peer", "127.0.0.1:7171"]), None, "it was said on purpose");
    assert!(with(&["--advertise-peer", "127.0.0.1:7170"]).unwrap().contains("--advertise-peer says 127.0.0.1:7170"));
    assert_eq!(doubt(&["--initial-cluster", "1=db1:7170"]), None, "a name may be any address");
    assert!(doubt(&["--initial-cluster", "1=db1:7171"]).is_some());
    assert_eq!(doubt(&["--initial-cluster", "1=[::1]:7170", "--peer", "[::1]:7170"]), None);
    assert_eq!(doubt(&[]), None);
}

#[test]
fn sizes_and_clusters_that_make_no_sense_are_refused() {
    assert_eq!(parse_bytes("3KiB"), Ok(3072));
    assert_eq!(parse_bytes("2 g"), Ok(2 << 30));
    for bad in ["", "KiB", "3parsec", "99999999999999999999", "17179869184G"] {
        assert!(parse_bytes(bad).is_err(), "{bad}");
    }
    for bad in ["1", "0=a:1", "x=a:1", "1=a", "1=:5", "1=a:99999", "1=a:1,1=b:1", "1=a:1,2=a:1"] {
        assert!(parse_cluster(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_file_is_found_before_anything_is_parsed() {
    let args = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
    assert_eq!(
        file_named_by(&args(&["statehouse", "serve", "--config", "a"]), "--config", Some("b".into())),
        Some("a".into())
    );
    assert_eq!(file_named_by(&args(&["statehouse", "--config=a", "serve"]), "--config", None), Some("a".into()));
    assert_eq!(file_named_by(&args(&["statehouse", "serve"]), "--config", Some("b".into())), Some("b".into()));
    assert_eq!(file_named_by(&args(&["statehouse", "apply", "g", "--", "--config", "x"]), "--config", None), None);
}
