//! `statehouse recover`: a survivor of a cluster that lost its majority becomes a cluster of its own.

use std::io;
use std::io::BufRead;
use std::io::IsTerminal;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::Failure;
use super::Output;
use super::output;
use crate::disk::Disk;
use crate::disk::RealDisk;
use crate::node::start;
use crate::offline::Directory;
use crate::offline::recover::Kept;
use crate::offline::recover::Plan;
use crate::offline::recover::RecoverError;
use crate::platform::Platform;
use crate::platform::RealPlatform;

/// Make a survivor of a lost majority a cluster of its own
///
/// The last resort: when a majority of the nodes is gone for good and no backup is newer than what a survivor holds. The node is
/// stopped; its groups go on with this node as their only member, and others join it as they would any cluster. What the
/// others had acknowledged and this node had not received is lost. The old nodes must never run again.
///
/// While a majority could come back, wait for it: a cluster without a majority loses nothing, it only waits.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  statehouse log inspect --data-dir d1                                        which survivor has the most? compare `last`
  statehouse recover --unsafe-force-new-cluster --data-dir d1 --dry-run       what would be done and lost
  statehouse recover --unsafe-force-new-cluster --data-dir d1                 asks before it does it
  statehouse serve --node-id 1 --data-dir d1                                  with its old flags
  statehouse serve --node-id 4 --data-dir d4 --join ADDR-OF-NODE-1            and so on, with empty directories

If it is cut short, the node does not start until it is run again.")]
pub(super) struct Recover {
    /// Says that this is meant: the cluster's other nodes are given up
    #[arg(long, required = true)]
    unsafe_force_new_cluster: bool,
    /// The survivor's data directory
    #[arg(long, value_name = "DIR", default_value = "./statehouse-data")]
    data_dir: PathBuf,
    /// The address that other nodes will reach this one at, if it is another than before
    #[arg(long, value_name = "ADDR")]
    advertise_peer: Option<String>,
    /// Say what would be done and what may be lost, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do it without asking, for scripts
    #[arg(long)]
    yes_lose_what_is_not_here: bool,
    /// The form of the data on standard output
    #[arg(short, long, value_enum, default_value_t = Output::Table, display_order = 801)]
    output: Output,
}

/// What is typed.
const CONFIRMATION: &str = "lose what is not here";

impl From<RecoverError> for Failure {
    fn from(error: RecoverError) -> Self {
        Self::here(error.to_string(), error.remedy())
    }
}

pub(super) fn run(recover: &Recover) -> Result<(), Failure> {
    debug_assert!(recover.unsafe_force_new_cluster, "the parser requires it");
    // Looked for first: taking the lock would make a directory where there is none.
    drop(Directory::open(&recover.data_dir)?);
    let held = start::lock(&recover.data_dir).map_err(|error| Failure::here(error.to_string(), error.remedy()))?;
    let (directory, damaged) = Directory::open_held(&held, &recover.data_dir)?;
    if let Some(error) = damaged {
        output::note(format!("note: {error}"));
    }
    let plan = Plan::make(&directory, recover.advertise_peer.clone(), RealPlatform.wall_ms())?;
    output::note(plan.words());
    if recover.dry_run {
        output::note("\nNothing was changed.");
        return tell(recover, &plan, None);
    }
    if !recover.yes_lose_what_is_not_here {
        confirm()?;
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut drawn = [0; 16];
    RealPlatform.fill_random(&mut drawn);
    let cluster = plan.carry_out(&disk, &recover.data_dir, drawn)?;
    output::note(format!(
        "Node {} is a cluster of its own now. Start it with its old flags, then let others join it with empty \
         directories: `statehouse serve --join {}`.",
        plan.identity.node, plan.address
    ));
    tell(recover, &plan, Some(&cluster))
}

fn confirm() -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "nobody is there to ask whether this is meant",
            "give --yes-lose-what-is-not-here in scripts; nothing was changed",
        ));
    }
    let mut err = io::stderr();
    // If nobody can read it, nobody types the words.
    let _asked = write!(err, "\nIf this is meant, type \"{CONFIRMATION}\": ").and_then(|()| err.flush());
    let mut typed = String::new();
    let read = io::stdin().lock().read_line(&mut typed);
    if read.is_ok() && typed.trim() == CONFIRMATION {
        return Ok(());
    }
    Err(Failure::here("it was not confirmed; nothing was changed", format!("type \"{CONFIRMATION}\" when it is meant")))
}

fn tell(recover: &Recover, plan: &Plan, cluster: Option<&str>) -> Result<(), Failure> {
    if recover.output == Output::Json {
        let kept = plan.kept.iter().map(|kept| {
            json!({ "group": kept.name, "id": kept.id, "last": kept.last.index, "term": kept.last.leader_id.term,
                "known_committed": kept.committed, "members": kept.members, "voters": kept.voters })
        });
        let lost = plan.lost.iter().map(|lost| {
            json!({ "group": lost.name, "id": lost.id, "module": lost.module, "nodes": lost.hosts,
                "unreadable": lost.unreadable })
        });
        return output::json(&json!({
            "node": plan.identity.node, "address": plan.address, "old_cluster": plan.identity.cluster, "cluster": cluster,
            "others": plan.others, "kept": kept.collect::<Vec<_>>(), "lost": lost.collect::<Vec<_>>(), "doubts": plan.doubts,
        }));
    }
    let role =
        |kept: &Kept| match (kept.voters.contains(&plan.identity.node), kept.members.contains_key(&plan.identity.node))
        {
            (true, _) => "voter",
            (_, true) => "learner",
            _ => "no member",
        };
    let rows = plan.kept.iter().map(|kept| {
        let ids: Vec<String> = kept.voters.iter().map(ToString::to_string).collect();
        vec![
            kept.name.clone(),
            kept.id.to_string(),
            kept.last.index.to_string(),
            kept.committed.to_string(),
            ids.join(","),
            role(kept).to_owned(),
        ]
    });
    output::table(&["group", "id", "last", "known committed", "voters before", "this node"], rows.collect())
}
