//! Reads the configuration file again while the node runs, for `--members-from-config`.

use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use super::Failure;
use crate::config;
use crate::config::ConfigError;
use crate::config::ConfigFile;
use crate::config::Followed;
use crate::config::ListSyntax;
use crate::config::ServeConfig;
use crate::keeper::zoo_cfg;
use crate::membership::NodeList;
use crate::node::start::RealNode;

/// Between two looks at the file.
const PAUSE: Duration = Duration::from_secs(1);

fn read(path: &Path, syntax: ListSyntax) -> Result<NodeList, String> {
    match syntax {
        ListSyntax::Toml => config::listed_in(path),
        ListSyntax::ZooCfg => zoo_cfg::listed_in(path).map_err(|error| error.to_string()),
    }
}

/// Finds the file with the list that is to be followed, where that was asked for. `observer`: this node joins, as its file says.
pub(super) fn attach(
    config: &mut ServeConfig,
    file: Option<&ConfigFile>,
    zoo_cfg: Option<&Path>,
    observer: bool,
) -> Result<(), Failure> {
    if !config.members_from_config {
        return Ok(());
    }
    let refuse = |detail: String, remedy: &str| -> Result<(), Failure> {
        Err(ConfigError::Refused { detail, remedy: remedy.to_owned() }.into())
    };
    let toml = file.filter(|file| file.sets("initial-cluster")).map(|file| (file.path(), ListSyntax::Toml));
    let Some((path, syntax)) = toml.or(zoo_cfg.map(|path| (path, ListSyntax::ZooCfg))) else {
        return refuse(
            "--members-from-config is given, and no file that lists the nodes".to_owned(),
            "write initial-cluster into the file of --config, or name a zoo.cfg with server.N lines with --zoo-cfg",
        );
    };
    let list = match read(path, syntax) {
        Ok(list) => list,
        Err(detail) => return refuse(detail, "list the nodes there, or leave --members-from-config out"),
    };
    let observes = observer && list.get(&config.node_id).is_some_and(|node| !node.voter);
    if !config.join.is_empty() && !observes {
        return refuse(
            "--join and --members-from-config are both given".to_owned(),
            "leave --join out: a new node joins the nodes that the file lists",
        );
    }
    let voters = list.iter().filter(|(_, node)| node.voter).map(|(id, node)| (*id, node.address.clone()));
    if !observes && config.initial_cluster != voters.collect() {
        return refuse(
            format!("--initial-cluster says something else than {}, whose list is to be followed", path.display()),
            "leave flag and variable (STATEHOUSE_INITIAL_CLUSTER) out",
        );
    }
    config.followed = Some(Followed { path: path.to_owned(), syntax, list });
    Ok(())
}

/// A file that is read again and again.
struct Reader {
    followed: Followed,
    /// What the last look gave, for the next one to confirm: an editor may have written half of the file.
    last: Result<NodeList, String>,
    /// What is wrong with it, once it was said.
    said: Option<String>,
}

impl Reader {
    fn new(followed: Followed) -> Self {
        Self { last: Ok(followed.list.clone()), followed, said: None }
    }

    /// Takes a look's result; the list, if it is another one than before and was found twice. What cannot be used is warned of once.
    fn take(&mut self, now: Result<NodeList, String>) -> Option<&NodeList> {
        let confirmed = now == self.last;
        self.last = now;
        if !confirmed {
            return None;
        }
        match &self.last {
            Ok(list) => {
                self.said = None;
                if *list == self.followed.list {
                    return None;
                }
                self.followed.list = list.clone();
                Some(&self.followed.list)
            }
            Err(why) => {
                if self.said.as_ref() != Some(why) {
                    tracing::warn!(%why, "the list of nodes cannot be read; the last good one stays");
                    self.said = Some(why.clone());
                }
                None
            }
        }
    }
}

/// Tells the node what its file lists, for ever. SIGHUP has the file read at once.
pub(super) async fn follow(followed: Followed, node: RealNode) {
    let mut hangup = signal(SignalKind::hangup());
    let mut reader = Reader::new(followed);
    loop {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            Some(()) = async { hangup.as_mut().ok()?.recv().await } => {}
        }
        let (path, syntax) = (reader.followed.path.clone(), reader.followed.syntax);
        // The file may be on a disk that hangs.
        let Ok(now) = tokio::task::spawn_blocking(move || read(&path, syntax)).await else { continue };
        let file = reader.followed.path.display().to_string();
        if let Some(list) = reader.take(now) {
            tracing::info!(file, nodes = ?list.keys(), "the configuration file lists other nodes than before");
            node.follow(&file, list.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::membership::ListedNode;

    fn list(ids: &[u64]) -> NodeList {
        ids.iter().map(|id| (*id, ListedNode { address: format!("a:{id}"), voter: true })).collect()
    }

    #[test]
    fn a_list_counts_when_it_was_found_twice_and_nothing_else_replaces_it() {
        let path = "node.toml".into();
        let mut reader = Reader::new(Followed { path, syntax: ListSyntax::Toml, list: list(&[1, 2, 3]) });
        assert_eq!(reader.take(Ok(list(&[1, 2, 3]))), None);
        // Half of a file that is being written, a reader that came in between, and the whole.
        assert_eq!(reader.take(Ok(list(&[1, 2]))), None);
        assert_eq!(reader.take(Err("not TOML".to_owned())), None);
        assert_eq!(reader.take(Ok(list(&[1, 2, 4]))), None);
        assert_eq!(reader.take(Ok(list(&[1, 2, 4]))), Some(&list(&[1, 2, 4])));
        assert_eq!(reader.take(Ok(list(&[1, 2, 4]))), None);
        for _ in 0..3 {
            assert_eq!(reader.take(Err("not there".to_owned())), None);
        }
        assert_eq!(reader.followed.list, list(&[1, 2, 4]));
        assert_eq!(reader.said.as_deref(), Some("not there"));
        assert_eq!(reader.take(Ok(list(&[1, 2, 4]))), None);
        assert_eq!(reader.take(Ok(list(&[1, 2, 4]))), None);
        assert_eq!(reader.said, None);
    }

    #[test]
    fn a_file_without_a_list_and_flags_beside_it_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        let attached = |text: &str, change: &dyn Fn(&mut ServeConfig)| {
            std::fs::write(&path, text).unwrap();
            let file = ConfigFile::read(&path).unwrap();
            let mut config = ServeConfig { members_from_config: true, ..ServeConfig::default() };
            config.initial_cluster = [(1, "a:1".to_owned()), (2, "a:2".to_owned())].into();
            change(&mut config);
            attach(&mut config, Some(&file), None, false).map(|()| config.followed).map_err(|error| error.to_string())
        };
        let nodes = "[initial-cluster]\n1 = \"a:1\"\n2 = \"a:2\"\n";
        assert_eq!(attached(nodes, &|_| {}).unwrap().unwrap().list, list(&[1, 2]));
        assert_eq!(attached("initial_cluster = \"1=a:1, 2=a:2\"", &|_| {}).unwrap().unwrap().list, list(&[1, 2]));
        let refused = |text: &str, change: &dyn Fn(&mut ServeConfig), words: &str| {
            let said = attached(text, change).unwrap_err();
            assert!(said.contains(words), "{said}");
        };
        refused("node-id = 1", &|_| {}, "no file that lists the nodes");
        refused("initial-cluster = \"\"", &|_| {}, "lists no node");
        refused("initial-cluster = \"1=a\"", &|_| {}, "is not HOST:PORT");
        refused(nodes, &|config| config.join = vec!["a:1".to_owned()], "--join");
        refused(nodes, &|config| _ = config.initial_cluster.remove(&2), "--initial-cluster says something else");
        assert_eq!(attached("node-id = 1", &|config| config.members_from_config = false).unwrap(), None);
    }
}
