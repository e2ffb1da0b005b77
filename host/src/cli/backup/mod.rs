//! `statehouse backup`: a whole cluster, its modules and groups, in a directory or in S3-compatible storage.
//!
//! What holds:
//! - A backup is what has a manifest, and the manifest is written last, after all it names.
//! - Each group's file holds everything acknowledged before the backup came to that group, at one index. Between groups there is
//!   no order.
//! - Nothing is restored before every file of the backup was read and found to be what the manifest says.

mod create;
mod manifest;
mod restore;
mod s3;
mod store;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::Subcommand;
use futures_util::StreamExt;
use sha2::Digest;
use sha2::Sha256;

use self::manifest::MANIFEST;
use self::manifest::Manifest;
use self::store::Directory;
use self::store::Store;
use super::ClientArgs;
use super::Failure;
use super::Output;
use super::output;
use super::progress::Progress;
use super::state_file::Check;

/// Back up a whole cluster, and restore it
///
/// DEST is a directory, or s3://BUCKET/PREFIX of S3-compatible storage; each backup is a folder in it, named by its time (UTC).
/// It holds the modules, every group as `snapshot save` writes it, and a manifest with their digests.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse backup create /srv/backups
  statehouse backup create /srv/backups --every 6h --keep 14     goes on until it is stopped
  statehouse backup ls /srv/backups
  statehouse backup verify /srv/backups                          the newest; reads every byte
  statehouse backup restore /srv/backups --server http://new-cluster:7070

S3-compatible storage, over HTTP:
  export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… AWS_REGION=eu-central-1
  statehouse backup create s3://my-bucket/statehouse --s3-endpoint http://127.0.0.1:9000")]
pub(super) struct BackupVerbs {
    #[command(subcommand)]
    verb: BackupVerb,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum BackupVerb {
    /// Make a backup: all modules and groups, while the cluster serves
    Create {
        #[command(flatten)]
        place: Place,
        /// Make another one every so often (90s, 30m, 6h, 7d), until stopped; one that fails is told, and the next one tried
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        every: Option<Duration>,
        /// After a backup was made, remove all but the newest N whole ones
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
    },
    /// List the backups, oldest first
    Ls {
        #[command(flatten)]
        place: Place,
    },
    /// Read a whole backup, and compare every file with the manifest
    Verify {
        #[command(flatten)]
        place: Place,
        /// Which one, as `ls` names it; left out: the newest whole one
        name: Option<String>,
    },
    /// Restore a backup's modules and groups into a cluster, of any size
    ///
    /// Reads the whole backup first. Groups that exist are not touched: if one of them has the name of a group of the backup,
    /// nothing is restored.
    Restore {
        #[command(flatten)]
        place: Place,
        /// Which one, as `ls` names it; left out: the newest whole one
        name: Option<String>,
        /// Only these groups, and their modules
        #[arg(long = "group", value_name = "NAME,…", value_delimiter = ',')]
        groups: Vec<String>,
        /// Do not listen for clients of the groups' adapters
        #[arg(long)]
        no_listen: bool,
    },
}

/// The longest time between two backups: a hundred years. What a clock can add without an overflow is not much more.
const EVERY_MAX: Duration = Duration::from_secs(36_500 * 86_400);

/// Where backups are.
#[derive(Args, Clone, Debug)]
pub(super) struct Place {
    /// A directory, or s3://BUCKET/PREFIX
    dest: String,
    /// The S3-compatible server; left out: that of AWS_ENDPOINT_URL, or Amazon's in AWS_REGION
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,
}

impl Place {
    fn store(&self) -> Result<Box<dyn Store>, Failure> {
        match self.dest.strip_prefix("s3://") {
            Some(bucket) => Ok(Box::new(s3::Bucket::open(bucket, self.s3_endpoint.as_deref())?)),
            None => Ok(Box::new(Directory(PathBuf::from(&self.dest)))),
        }
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err("it is a number and one of s, m, h, d, such as 6h".to_owned()),
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)) {
        Some(0) | None => Err("it is a number above 0 and one of s, m, h, d, such as 6h".to_owned()),
        Some(seconds) if seconds > EVERY_MAX.as_secs() => Err("it is too long; write a time such as 6h".to_owned()),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

pub(super) async fn run(verbs: BackupVerbs) -> Result<(), Failure> {
    let form = verbs.client.output;
    match verbs.verb {
        BackupVerb::Create { place, every, keep } => {
            let (store, client) = (place.store()?, verbs.client.client()?);
            match every {
                Some(every) => create::forever(&client, &*store, form, every, keep).await,
                None => create::once(&client, &*store, form, keep).await,
            }
        }
        BackupVerb::Ls { place } => ls(&*place.store()?, form).await,
        BackupVerb::Verify { place, name } => {
            let store = place.store()?;
            let found = find(&*store, name).await?;
            verify(&*store, &found, &|_| true).await?;
            match form {
                Output::Json => output::json(&found.listed()),
                Output::Table => output::line(format!(
                    "{} is whole: {} groups, {} modules, {}",
                    found.name,
                    found.manifest.groups.len(),
                    found.manifest.modules.len(),
                    output::size(found.manifest.bytes())
                )),
            }
        }
        BackupVerb::Restore { place, name, groups, no_listen } => {
            let (store, client) = (place.store()?, verbs.client.client()?);
            let found = find(&*store, name).await?;
            restore::run(&client, &*store, form, &found, &groups, no_listen).await
        }
    }
}

/// A whole backup.
pub(super) struct Found {
    name: String,
    manifest: Manifest,
}

/// A folder that is, or was to become, a backup.
#[derive(Debug, serde::Serialize)]
struct Listed {
    name: String,
    /// `whole`, `unfinished`, or `damaged: why`.
    state: String,
    groups: usize,
    modules: usize,
    size: u64,
    created_ms: u64,
}

impl Found {
    fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }

    fn listed(&self) -> Listed {
        Listed {
            name: self.name.clone(),
            state: "whole".to_owned(),
            groups: self.manifest.groups.len(),
            modules: self.manifest.modules.len(),
            size: self.manifest.bytes(),
            created_ms: self.manifest.created_ms,
        }
    }
}

/// A folder's name, and the backup that it is; none when it has no manifest, an error when that cannot be read.
type Seen = (String, Result<Option<Found>, Failure>);

/// The folders of a store, oldest first.
async fn all(store: &dyn Store) -> Result<Vec<Seen>, Failure> {
    let mut all = Vec::new();
    for name in store.folders().await?.into_iter().filter(|name| create::is_name(name)) {
        let read = store.read(format!("{name}/{MANIFEST}")).await?;
        let manifest = read.map(|bytes| Manifest::decode(&format!("{name}/{MANIFEST}"), &bytes)).transpose();
        let found = manifest.map(|manifest| manifest.map(|manifest| Found { name: name.clone(), manifest }));
        all.push((name, found));
    }
    Ok(all)
}

async fn ls(store: &dyn Store, form: Output) -> Result<(), Failure> {
    let mut listed = Vec::new();
    for (name, found) in all(store).await? {
        let other = |state: String| Listed { name, state, groups: 0, modules: 0, size: 0, created_ms: 0 };
        listed.push(match found {
            Ok(Some(found)) => found.listed(),
            Ok(None) => other("unfinished".to_owned()),
            Err(_) => other("damaged: its manifest cannot be read".to_owned()),
        });
    }
    match form {
        Output::Json => output::json(&listed),
        Output::Table => {
            let row = |backup: &Listed| {
                let (groups, modules) = (backup.groups.to_string(), backup.modules.to_string());
                vec![backup.name.clone(), groups, modules, output::size(backup.size), backup.state.clone()]
            };
            output::table(&["name", "groups", "modules", "size", "state"], listed.iter().map(row).collect())
        }
    }
}

/// The backup of this name, or the newest whole one.
async fn find(store: &dyn Store, name: Option<String>) -> Result<Found, Failure> {
    let look = "`statehouse backup ls DEST` lists the backups";
    let Some(name) = name else {
        let newest = all(store).await?.into_iter().rev().find_map(|(_, found)| found.ok().flatten());
        return newest.ok_or_else(|| Failure::here(format!("{} has no whole backup", store.name()), look));
    };
    if !create::is_name(&name) {
        return Err(Failure::usage(format!("{name:?} is not the name of a backup"), look));
    }
    let path = format!("{name}/{MANIFEST}");
    match store.read(path.clone()).await? {
        Some(bytes) => Ok(Found { manifest: Manifest::decode(&path, &bytes)?, name }),
        None => {
            let what = format!("{}/{name} has no manifest: it is not there, or was never finished", store.name());
            Err(Failure::here(what, look))
        }
    }
}

fn damaged(found: &Found, file: &str, why: &str) -> Failure {
    Failure::Refused {
        what: format!("{} is damaged: {why}", found.path(file)),
        code: Some("file_damaged".to_owned()),
        remedy: "use another backup (`statehouse backup ls`)".to_owned(),
    }
}

/// Reads the modules, and the groups that are `wanted`; an error if one is not what the manifest says.
async fn verify(store: &dyn Store, found: &Found, wanted: &dyn Fn(&str) -> bool) -> Result<(), Failure> {
    let progress = Progress::new("verifying");
    let groups = || found.manifest.groups.iter().filter(|group| wanted(&group.name));
    let modules = found.manifest.modules.iter().map(|module| module.size);
    progress.begin(modules.chain(groups().map(|group| group.size)).sum());
    for module in &found.manifest.modules {
        let mut digest = Sha256::new();
        let length = read_through(store, found, &module.path(), &progress, &mut |piece| digest.update(piece)).await?;
        if length != module.size || hex::encode(digest.finalize()) != module.digest {
            return Err(damaged(found, &module.path(), "it has another digest than the manifest says"));
        }
    }
    for group in groups() {
        let mut check = Check::default();
        let length = read_through(store, found, &group.path(), &progress, &mut |piece| check.update(piece)).await?;
        if length != group.size || check.finish().as_ref() != Some(&group.digest) {
            return Err(damaged(found, &group.path(), "it has another digest than the manifest says"));
        }
    }
    Ok(())
}

async fn read_through(
    store: &dyn Store,
    found: &Found,
    file: &str,
    progress: &Progress,
    take: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<u64, Failure> {
    let (_, source) = store.open(found.path(file)).await?;
    let (mut pieces, mut length) = (source(), 0);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| damaged(found, file, &format!("it cannot be read: {error}")))?;
        length += piece.len() as u64;
        progress.advance(piece.len() as u64);
        take(&piece);
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn times_are_a_number_and_a_unit() {
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("6h"), Ok(Duration::from_secs(6 * 3600)));
        assert_eq!(parse_time("7d"), Ok(Duration::from_secs(7 * 86400)));
        for wrong in
            ["", "6", "h", "0m", "1.5h", "-1h", "6 h", "99999999999999999999d", "18446744073709551615s", "36501d"]
        {
            assert!(parse_time(wrong).unwrap_err().contains("such as 6h"), "{wrong:?}");
        }
    }
}
