//! `backup restore`: modules first, then one group after the other.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use super::Found;
use super::damaged;
use super::manifest::GroupItem;
use super::manifest::ModuleItem;
use super::store::Store;
use super::verify;
use crate::api::schema::Group;
use crate::api::schema::GroupList;
use crate::api::schema::ModuleList;
use crate::api::schema::NodeList;
use crate::cli::Call;
use crate::cli::Client;
use crate::cli::Failure;
use crate::cli::Output;
use crate::cli::client::Source;
use crate::cli::module;
use crate::cli::output;
use crate::cli::state_file;
use crate::cli::state_file::Check;
use crate::cli::state_file::Restore;
use crate::service::ErrorCode;

pub(super) async fn run(
    client: &Client,
    store: &dyn Store,
    form: Output,
    found: &Found,
    only: &[String],
    no_listen: bool,
) -> Result<(), Failure> {
    if let Some(unknown) = only.iter().find(|name| !found.manifest.groups.iter().any(|group| group.name == **name)) {
        let what = format!("backup {} has no group {unknown}", found.name);
        return Err(Failure::usage(what, "`statehouse backup ls` lists the backups"));
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    let groups: Vec<&GroupItem> = found.manifest.groups.iter().filter(|group| wanted(&group.name)).collect();
    let used = |module: &&ModuleItem| only.is_empty() || groups.iter().any(|group| group.module == module.name);
    let modules: Vec<&ModuleItem> = found.manifest.modules.iter().filter(used).collect();
    let nodes = look(client, &groups, &modules).await?;
    verify(store, found, &wanted).await?;
    for item in modules {
        let path = found.path(&item.path());
        let wasm = store.read(path).await?.ok_or_else(|| damaged(found, &item.path(), "it is gone"))?;
        module::push(client, &item.name, wasm).await?;
    }
    let mut restored: Vec<Group> = Vec::new();
    for item in &groups {
        match restore_group(client, store, found, item, nodes, no_listen).await {
            Ok(group) => {
                output::note(format!("group {} is restored, at index {}", item.name, item.index));
                restored.push(group);
            }
            Err(failure) => {
                let rest: Vec<&str> = groups.iter().skip(restored.len()).map(|group| group.name.as_str()).collect();
                output::note(format!(
                    "{} of {} groups are restored; go on with --group {} when this is mended:",
                    restored.len(),
                    groups.len(),
                    rest.join(",")
                ));
                return Err(failure);
            }
        }
    }
    match form {
        Output::Json => output::json(&restored),
        Output::Table => {
            let row = |group: &Group| {
                let replicas = group.replicas.map_or("all".to_owned(), |replicas| replicas.to_string());
                vec![group.name.clone(), group.module.clone(), replicas, group.applied.to_string()]
            };
            output::table(&["group", "module", "replicas", "applied"], restored.iter().map(row).collect())
        }
    }
}

/// Whether there is room for what is to come: no group and no other module of these names. How many nodes there are.
async fn look(client: &Client, groups: &[&GroupItem], modules: &[&ModuleItem]) -> Result<u64, Failure> {
    let exists = |what: String, remedy: &str| Failure::Refused {
        what,
        code: Some(ErrorCode::AlreadyExists.as_str().to_owned()),
        remedy: remedy.to_owned(),
    };
    let there: GroupList = client.send(Call::get("/v1/groups")).await?.json()?;
    let taken: Vec<&str> = groups
        .iter()
        .map(|group| group.name.as_str())
        .filter(|name| there.groups.iter().any(|group| group.name == *name))
        .collect();
    if !taken.is_empty() {
        let what = format!("the cluster has groups of the same names: {}. Nothing was restored", taken.join(", "));
        return Err(exists(
            what,
            "remove them first (`statehouse group rm`), or name the groups to restore with --group",
        ));
    }
    let there: ModuleList = client.send(Call::get("/v1/modules")).await?.json()?;
    let known: BTreeMap<&str, &str> =
        there.modules.iter().map(|module| (module.name.as_str(), module.digest.as_str())).collect();
    let other = |module: &&&ModuleItem| known.get(module.name.as_str()).is_some_and(|digest| *digest != module.digest);
    if let Some(other) = modules.iter().find(other) {
        let what = format!("the cluster has another module {}. Nothing was restored", other.name);
        return Err(exists(what, "remove it first (`statehouse module rm`)"));
    }
    let nodes: NodeList = client.send(Call::get("/v1/nodes")).await?.json()?;
    Ok(nodes.nodes.iter().filter(|node| node.role == "voter").count() as u64)
}

async fn restore_group(
    client: &Client,
    store: &dyn Store,
    found: &Found,
    item: &GroupItem,
    nodes: u64,
    no_listen: bool,
) -> Result<Group, Failure> {
    let replicas = item.replicas.map(|replicas| replicas.min(nodes));
    if replicas != item.replicas {
        output::note(format!("group {} gets {nodes} replicas: the cluster has no more full nodes", item.name));
    }
    let wanted = Restore {
        name: item.name.clone(),
        module: Some(item.module.clone()),
        replicas,
        listen: if no_listen { Vec::new() } else { item.listen.clone() },
        listen_params: item.listen_params.clone(),
    };
    let (size, source) = store.open(found.path(&item.path())).await?;
    state_file::send(client, checked(source, item.digest.clone()), size, &wanted).await
}

/// The same pieces, the last one only if all of them together have this digest: what was verified some time ago may have been
/// changed since.
fn checked(source: Source, digest: String) -> Source {
    Arc::new(move || {
        let state = (source(), Some(Check::default()), None, digest.clone());
        let pieces = stream::unfold(state, |(mut pieces, check, held, digest)| async move {
            let mut check = check?;
            let mut held: Option<bytes::Bytes> = held;
            loop {
                match pieces.next().await {
                    Some(Ok(piece)) => {
                        check.update(&piece);
                        if let Some(before) = held.replace(piece) {
                            return Some((Ok(before), (pieces, Some(check), held, digest)));
                        }
                    }
                    Some(Err(error)) => return Some((Err(error), (pieces, None, None, digest))),
                    None => {
                        let last = if check.finish().as_ref() == Some(&digest) {
                            Ok(held?)
                        } else {
                            Err(io::Error::other("the file was changed since it was verified"))
                        };
                        return Some((last, (pieces, None, None, digest)));
                    }
                }
            }
        });
        pieces.boxed()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use bytes::Bytes;
    use sha2::Digest;
    use sha2::Sha256;

    use super::*;

    #[tokio::test]
    async fn a_file_that_changed_since_it_was_verified_is_not_sent_whole() {
        let content = [7; 100];
        let whole = Bytes::from([content.as_slice(), &Sha256::digest(content)].concat());
        let digest = hex::encode(Sha256::digest(content));
        let pass = async |bytes: Bytes| {
            let source: Source = Arc::new(move || {
                let pieces: Vec<_> = bytes.chunks(30).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
                stream::iter(pieces).boxed()
            });
            let pieces: Vec<io::Result<Bytes>> = checked(source, digest.clone())().collect().await;
            pieces.into_iter().collect::<io::Result<Vec<Bytes>>>().map(|pieces| pieces.concat())
        };
        assert_eq!(pass(whole.clone()).await.unwrap(), whole);
        let mut changed = whole.to_vec();
        changed[3] ^= 1;
        assert!(pass(changed.into()).await.is_err());
        assert!(pass(whole.slice(..131)).await.is_err());
    }
}
