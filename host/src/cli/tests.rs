//! The command line: what it accepts, what it says of itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    let matches =
        command(None).unwrap().try_get_matches_from(std::iter::once("statehouse").chain(args.iter().copied()))?;
    Cli::from_arg_matches(&matches)
}

#[test]
fn the_definition_holds_together() {
    command(None).unwrap().debug_assert();
}

/// The examples in the help texts are what people type first.
#[test]
fn every_verb_of_the_help_parses() {
    for line in [
        "serve",
        "serve --node-id 1 --data-dir DIR --http 127.0.0.1:7070 --peer 127.0.0.1:7170 --initial-cluster 1=127.0.0.1:7170,2=127.0.0.1:7270",
        "local --nodes 3",
        "local --nodes 3 --keeper --client-base 21810",
        "keeper",
        "keeper --client 0.0.0.0:2181 --insecure --tick-time-ms 1000 --four-letter-words ruok,mntr --skip-acl",
        "keeper-import /var/lib/zookeeper --log-dir /datalog --group k2 --dry-run",
        "local --nodes 5 --data-dir d --http-base 8070 --peer-base 8170",
        "module push counter.wasm --name counter",
        "module push --bundled kv",
        "module ls",
        "module show counter -o json",
        "module rm counter",
        "module check counter.wasm",
        "module check counter.wasm --module-bytes-max 64MiB -o json",
        "group create c1 --module counter --param start=100 --param name=x",
        "group create c3 --module counter --replicas 3",
        "group ls --server http://127.0.0.1:7071",
        "group status c1",
        "group digest c1",
        "group snapshot c1",
        "snapshot take c1",
        "snapshot save c1 c1.snap --overwrite",
        "group restore c2 c1.snap",
        "group restore c2 c1.snap --module counter --replicas 3 --listen 127.0.0.1:6379 --listen-param auth=true",
        "backup create backups",
        "backup create s3://bucket/prefix --s3-endpoint http://127.0.0.1:9000 --every 6h --keep 14",
        "backup ls backups -o json",
        "backup verify backups 20261122T081334.123Z",
        "backup restore backups --group c1,c2 --no-listen --server http://127.0.0.1:7071",
        "group rm c1",
        "group move c1 --from 1 --to 4",
        "serve --node-id 4 --peer 127.0.0.1:7173 --join 127.0.0.1:7170,127.0.0.1:7270",
        "node add 4",
        "node add 5 --learner --no-wait",
        "node demote 4 --no-wait",
        "node rm 2",
        "node priority 3 0",
        "node priority 3 default -o json",
        "node ls -o json",
        "member ls c1",
        "member add c1 4 --learner",
        "member promote c1 4",
        "member rm c1 4",
        "leader transfer c1 --to 3",
        "leader balance",
        "change ls",
        "change show 1 --wait",
        "change cancel 1",
        "status --server http://127.0.0.1:7071",
        "doctor -o json",
        "apply c1 {\"Add\":5}",
        "apply c1 -5",
        "apply c1 -",
        "apply c1 x --session 7:000102030405060708090a0b0c0d0e0f --sequence 1",
        "query c1 \"Get\" --consistency lease",
        "watch c1 --from 3",
        "session open c1 --timeout-ms 5000",
        "session touch c1 7:000102030405060708090a0b0c0d0e0f",
        "session close c1 7:000102030405060708090a0b0c0d0e0f",
        "bench apply c1 --connections 64 --duration-s 10 --warmup-s 0 --command x",
        "bench query c1 --consistency local",
        "bench keeper --server 127.0.0.1:2181 --workload prod-mix",
        "bench keeper --server zk1:2181,zk2:2181 --workload write --sessions 640 --pipeline 8 --warm-up-s 0 -o json",
        "bench keeper --workload mine.toml --keys 100000 --value-bytes 10-20 --prefix /a/b --keep --seed 7",
        "log inspect --data-dir d1",
        "log inspect -o json",
        "log dump --data-dir d1 --group c1 --from 100 --to 120",
        "log dump --data-dir d1 --records -o json",
        "snapshot inspect d1/groups/1/a.snap",
        "snapshot verify --data-dir d1 -o json",
        "recover --unsafe-force-new-cluster --data-dir d1 --dry-run",
        "recover --unsafe-force-new-cluster --advertise-peer 10.0.0.1:7170 --yes-lose-what-is-not-here -o json",
        "completions bash",
        "--config /dev/null group ls",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        parse(&args).unwrap_or_else(|error| panic!("{line}\n{error}"));
    }
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for line in [
        "frobnicate",
        "module push",
        "module push a.wasm --bundled kv",
        "apply c1 x --sequence 1",
        "apply c1 x --session 7",
        "query c1 x --consistency quick",
        "local --nodes 0",
        "serve --snapshots-kept 0",
        "group create c1",
        "keeper --client here",
        "keeper --jute-max-buffer 10",
        "keeper --super-digest secret",
        "keeper-import",
        "group create c1 --module m --param =3",
        "bench apply c1 --connections 0",
        "bench keeper --server http://127.0.0.1:7070",
        "bench keeper --prefix /",
        "bench keeper --prefix /zookeeper/bench",
        "bench keeper --sessions 0",
        "bench keeper --value-bytes 4-1",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let error = parse(&args).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

/// Every flag of every verb reads its variable, so that no verb has a second set of names.
#[test]
fn every_flag_of_every_verb_has_its_variable() {
    fn check(command: &clap::Command) {
        for arg in command.get_arguments() {
            if let Some(flag) = arg.get_long().filter(|flag| !["help", "version"].contains(flag)) {
                assert_eq!(
                    arg.get_env().unwrap_or_default().to_str().unwrap(),
                    config::variable(flag),
                    "{} --{flag}",
                    command.get_name()
                );
            }
        }
        command.get_subcommands().for_each(check);
    }
    check(&command(None).unwrap());
}

#[test]
fn the_file_serves_client_verbs_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("statehouse.toml");
    std::fs::write(&path, "server = [\"http://a:1\", \"http://b:2\"]\noutput = \"json\"\nheartbeat-ms = 50\n").unwrap();
    let file = ConfigFile::read(&path).unwrap();
    let matches = command(Some(&file)).unwrap().try_get_matches_from(["statehouse", "group", "ls"]).unwrap();
    let Verb::Group(verbs) = Cli::from_arg_matches(&matches).unwrap().verb else { panic!("another verb") };
    assert!(format!("{verbs:?}").contains("http://a:1,http://b:2"), "{verbs:?}");
    let matches =
        command(Some(&file)).unwrap().try_get_matches_from(["statehouse", "serve", "--heartbeat-ms", "60"]).unwrap();
    let Verb::Serve(serve) = Cli::from_arg_matches(&matches).unwrap().verb else { panic!("another verb") };
    assert_eq!(serve.heartbeat_ms, 60);
}

/// `statehouse apply` without a group told of `--server` as of something that had to be given, where STATEHOUSE_SERVER was set: clap
/// takes a variable for a flag that is there. `PATH` is the one variable that every test process has.
#[test]
fn an_error_shows_how_the_verb_is_used_and_not_what_the_environment_says() {
    for (line, usage) in [
        ("apply", "Usage: statehouse apply [OPTIONS] <GROUP> [DATA]\n"),
        ("group create", "Usage: statehouse group create [OPTIONS] --module <NAME> <NAME>\n"),
        ("group", "Usage: statehouse group [OPTIONS] <COMMAND>\n"),
        ("module check", "Usage: statehouse module check [OPTIONS] <FILE>\n"),
    ] {
        let mut command = command(None).unwrap().mut_subcommands(|verb| match verb.get_name() {
            "apply" | "group" => verb.mut_arg("server", |server| server.env("PATH")),
            _ => verb,
        });
        let args = std::iter::once("statehouse").chain(line.split(' '));
        let error = command.try_get_matches_from_mut(args).expect_err(line);
        let error = with_usage(error, &command).to_string();
        assert!(error.contains(usage), "{line}: {error}");
    }
}

/// What `--help` prints, `help` prints too, of verbs at every depth.
#[test]
fn help_is_a_verb_too() {
    let ask = |args: &[&str]| parse(args).expect_err("help is an early end").to_string();
    assert_eq!(ask(&["help", "apply"]), ask(&["apply", "--help"]));
    assert_eq!(ask(&["help", "group", "create"]), ask(&["group", "create", "--help"]));
    assert_eq!(ask(&["help"]), ask(&["--help"]));
}

/// A verb of the list without one was found by trying.
#[test]
fn what_people_type_first_has_examples() {
    for line in [
        "serve",
        "keeper",
        "local",
        "module",
        "module push",
        "group",
        "group create",
        "session",
        "session open",
        "apply",
        "query",
        "watch",
        "bench",
        "bench apply",
        "status",
        "doctor",
        "completions",
    ] {
        let args: Vec<&str> = line.split(' ').chain(["--help"]).collect();
        let help = parse(&args).expect_err("help is an early end").to_string();
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{line} has no examples"));
        assert!(examples.contains(&format!("statehouse {line}")), "{line}: {examples}");
    }
}

/// It needs no server, and must say what an upload to nodes of these settings would.
#[test]
fn a_module_is_checked_by_the_settings_of_the_nodes_and_without_a_server() {
    assert!(parse(&["module", "check", "x.wasm", "--server", "http://a:1"]).is_err());
    let dir = tempfile::tempdir().unwrap();
    let (path, wasm) = (dir.path().join("statehouse.toml"), dir.path().join("x.wasm"));
    std::fs::write(&path, "module-bytes-max = \"1KiB\"\nserver = \"http://a:1\"\n").unwrap();
    std::fs::write(&wasm, vec![0; 2 << 10]).unwrap();
    let file = ConfigFile::read(&path).unwrap();
    let args = ["statehouse", "module", "check", wasm.to_str().unwrap()];
    let matches = command(Some(&file)).unwrap().try_get_matches_from(args).unwrap();
    let Verb::Module(verbs) = Cli::from_arg_matches(&matches).unwrap().verb else { panic!("another verb") };
    let refused = block_on(module::run(verbs)).unwrap_err().to_string();
    assert!(refused.contains("too_large") && refused.contains("limit of 1024"), "{refused}");
}

/// The help is part of the product: it changes on purpose, and here is where one sees it. `UPDATE_HELP=1` writes it anew.
#[test]
fn the_help_of_the_main_verbs_is_this() {
    let mut texts = String::new();
    for path in [
        &[][..],
        &["local"],
        &["group", "create"],
        &["apply"],
        &["module", "push"],
        &["session", "open"],
        &["bench", "apply"],
    ] {
        let mut command = command(None).unwrap().term_width(100);
        let name = path.join(" ");
        let args = std::iter::once("statehouse").chain(path.iter().copied()).chain(["--help"]);
        let help = command.try_get_matches_from_mut(args).expect_err("help is an early end").to_string();
        texts.push_str(&format!("$ statehouse {name} --help\n{help}\n"));
    }
    let texts: String = texts.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/help.txt");
    if std::env::var_os("UPDATE_HELP").is_some() {
        std::fs::write(golden, &texts).unwrap();
    }
    let expected = std::fs::read_to_string(golden).unwrap_or_default();
    assert!(texts == expected, "the help changed; UPDATE_HELP=1 writes {golden} anew. Now it is:\n{texts}");
}
