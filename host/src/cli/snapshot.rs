//! `statehouse snapshot`: groups' states, taken and saved from a running cluster, and snapshot files looked at without one.

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;

use super::ClientArgs;
use super::Failure;
use super::Output;
use super::block_on;
use super::output;
use super::progress::Progress;
use super::snapshot_files;
use super::snapshot_files::SnapshotFiles;
use super::state_file;
use super::whole_file::WholeFile;

/// Take snapshots of groups, save them into files, look at snapshot files
///
/// Every node writes snapshots by itself and shortens its log by them. A saved one is a backup of one group, at one index,
/// that `group restore` makes a new group of, here or in another cluster.
///
/// `inspect` and `verify` need no server and change nothing. Damage is told with file and offset, what is behind it is read
/// all the same, and the exit code is 6.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse snapshot save c1 c1.snap
  statehouse group restore c2 c1.snap        a new group that begins with the state of c1
  statehouse snapshot take c1                on the answering node, into its own directory
  statehouse snapshot verify --data-dir /var/lib/statehouse     every file of a node, a line each
  statehouse snapshot inspect d1/groups/1/*.snap                what is in them")]
pub(super) struct SnapshotVerbs {
    #[command(subcommand)]
    verb: SnapshotVerb,
}

#[derive(Debug, Subcommand)]
enum SnapshotVerb {
    /// Write a snapshot on the answering node now, and print the index it covers
    Take {
        /// The group
        group: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Save a group's state into a file: everything acknowledged before, at one index
    ///
    /// The file gets its name when it is whole, its digest checked, and on disk.
    Save(Save),
    /// Tell what files say of themselves: group, index, members, module, sizes, digest; and what is damaged
    Inspect(SnapshotFiles),
    /// Read files to their ends and check every checksum and the digest
    Verify(SnapshotFiles),
}

#[derive(Args, Debug)]
struct Save {
    /// The group
    group: String,
    /// The file
    file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) fn run(verbs: SnapshotVerbs) -> Result<(), Failure> {
    match verbs.verb {
        SnapshotVerb::Take { group, client } => {
            let server = client.client()?;
            block_on(state_file::take(&server, client.output, &group))
        }
        SnapshotVerb::Save(wish) => block_on(save(wish)),
        SnapshotVerb::Inspect(files) => snapshot_files::inspect(&files),
        SnapshotVerb::Verify(files) => snapshot_files::verify(&files),
    }
}

async fn save(wish: Save) -> Result<(), Failure> {
    let client = wish.client.client()?;
    let mut target = WholeFile::create(&wish.file, wish.overwrite)?;
    let progress = Progress::new(&wish.group);
    let saved = state_file::save(&client, &wish.group, &progress, &mut target).await?;
    target.finish()?;
    match wish.client.output {
        Output::Json => output::json(&saved),
        Output::Table => output::pairs(&[
            ("file", wish.file.display().to_string()),
            ("index", saved.index.to_string()),
            ("size", output::size(saved.size)),
            ("digest", saved.digest),
        ]),
    }
}
