//! `statehouse snapshot`: take snapshots, and save groups' states into files.

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;

use super::ClientArgs;
use super::Failure;
use super::Output;
use super::output;
use super::progress::Progress;
use super::state_file;
use super::whole_file::WholeFile;

/// Take snapshots of groups, and save them into files
///
/// Every node writes snapshots by itself and shortens its log by them. A saved one is a backup of one group, at one index,
/// that `group restore` makes a new group of, here or in another cluster.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse snapshot save c1 c1.snap
  statehouse group restore c2 c1.snap        a new group that begins with the state of c1
  statehouse snapshot take c1                on the answering node, into its own directory")]
pub(super) struct SnapshotVerbs {
    #[command(subcommand)]
    verb: SnapshotVerb,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum SnapshotVerb {
    /// Write a snapshot on the answering node now, and print the index it covers
    Take {
        /// The group
        group: String,
    },
    /// Save a group's state into a file: everything acknowledged before, at one index
    ///
    /// The file gets its name when it is whole, its digest checked, and on disk.
    Save {
        /// The group
        group: String,
        /// The file
        file: PathBuf,
        /// Replace the file if it is there
        #[arg(long)]
        overwrite: bool,
    },
}

pub(super) async fn run(verbs: SnapshotVerbs) -> Result<(), Failure> {
    let client = verbs.client.client()?;
    let form = verbs.client.output;
    match verbs.verb {
        SnapshotVerb::Take { group } => state_file::take(&client, form, &group).await,
        SnapshotVerb::Save { group, file, overwrite } => {
            let mut target = WholeFile::create(&file, overwrite)?;
            let progress = Progress::new(&group);
            let saved = state_file::save(&client, &group, &progress, &mut target).await?;
            target.finish()?;
            match form {
                Output::Json => output::json(&saved),
                Output::Table => output::pairs(&[
                    ("file", file.display().to_string()),
                    ("index", saved.index.to_string()),
                    ("size", output::size(saved.size)),
                    ("digest", saved.digest),
                ]),
            }
        }
    }
}
