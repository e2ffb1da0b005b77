//! `backup create`: once, or again and again.

use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use sha2::Digest;
use sha2::Sha256;

use super::Found;
use super::all;
use super::manifest::GroupItem;
use super::manifest::MANIFEST;
use super::manifest::Manifest;
use super::manifest::ModuleItem;
use super::store::Store;
use super::store::write_whole;
use crate::api::request::check_name;
use crate::api::schema::Group;
use crate::api::schema::GroupList;
use crate::api::schema::Module;
use crate::api::schema::ModuleList;
use crate::api::schema::Node;
use crate::cli::Call;
use crate::cli::Client;
use crate::cli::Failure;
use crate::cli::Output;
use crate::cli::client::encode;
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::cli::state_file;
use crate::service::ErrorCode;

/// What never became a backup is removed with the old ones when it is older than this: another process may be at work on
/// something younger.
const UNFINISHED_TIME_MAX: Duration = Duration::from_secs(86400);

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A backup's name: its time, so that names sort by it. `20261122T081334.123Z`.
fn name_of(ms: u64) -> String {
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    // The Gregorian calendar in years that begin in March, from the year 0: leap days are then the last of their year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (seconds, thousandths) = (in_day / 1000, in_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{thousandths:03}Z")
}

/// Whether a folder has such a name.
pub(super) fn is_name(name: &str) -> bool {
    let pattern = b"ddddddddTdddddd.dddZ";
    name.len() == pattern.len()
        && name.bytes().zip(pattern).all(|(byte, expected)| match expected {
            b'd' => byte.is_ascii_digit(),
            other => byte == *other,
        })
}

/// A name that no backup has: what fails under it is removed, and must not be somebody else's. A clock may have gone back.
async fn free_name(store: &dyn Store) -> Result<String, Failure> {
    let taken = store.folders().await?;
    let mut ms = now_ms();
    while taken.contains(&name_of(ms)) {
        ms += 1;
    }
    Ok(name_of(ms))
}

/// One backup, and then the old ones go.
pub(super) async fn once(client: &Client, store: &dyn Store, form: Output, keep: Option<u32>) -> Result<(), Failure> {
    let name = free_name(store).await?;
    let found = match make(client, store, &name).await {
        Ok(found) => found,
        Err(failure) => {
            // What is left without a manifest is no backup; it goes with the old ones if it cannot go now.
            let _gone = store.remove(name).await;
            return Err(failure);
        }
    };
    match form {
        Output::Json => output::json_line(&found.listed())?,
        Output::Table => output::line(format!(
            "{}/{}: {} groups, {} modules, {}",
            store.name(),
            found.name,
            found.manifest.groups.len(),
            found.manifest.modules.len(),
            output::size(found.manifest.bytes())
        ))?,
    }
    match keep {
        Some(keep) => prune(store, usize::try_from(keep).unwrap_or(usize::MAX), &found.name).await,
        None => Ok(()),
    }
}

/// A backup now, and then one at each `every`, until the process is told to stop. One that fails is told.
pub(super) async fn forever(
    client: &Client,
    store: &dyn Store,
    form: Output,
    every: Duration,
    keep: Option<u32>,
) -> Result<(), Failure> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(|error| Failure::here(format!("cannot listen for signals: {error}"), "run it without --every"))?;
    let mut next = Instant::now();
    loop {
        let round = async {
            tokio::time::sleep(next.saturating_duration_since(Instant::now())).await;
            if let Err(failure) = once(client, store, form, keep).await {
                output::note(failure.to_string());
                output::note(format!("the next backup is tried in {} s", every.as_secs()));
            }
        };
        tokio::select! {
            () = round => {}
            _ = terminate.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        // One that took longer than the time between two leaves out those it was in the way of.
        let now = Instant::now();
        while next <= now {
            next += every;
        }
    }
}

async fn make(client: &Client, store: &dyn Store, name: &str) -> Result<Found, Failure> {
    let node: Node = client.send(Call::get("/v1/node")).await?.json()?;
    let mut manifest = Manifest::new(node.cluster, now_ms());
    // The groups first: the module of each is in the list that is asked for after it.
    let groups: GroupList = client.send(Call::get("/v1/groups")).await?.json()?;
    let modules: ModuleList = client.send(Call::get("/v1/modules")).await?.json()?;
    for module in &modules.modules {
        manifest.modules.extend(take_module(client, store, name, module).await?);
    }
    for group in groups.groups {
        // It becomes a file's name here.
        if let Err(problem) = check_name("group", &group.name) {
            return Err(Failure::here(format!("the server's answer: {}", problem.detail), "see what --server names"));
        }
        manifest.groups.extend(take_group(client, store, name, group).await?);
    }
    write_whole(store, format!("{name}/{MANIFEST}"), manifest.encode()?.into()).await?;
    Ok(Found { name: name.to_owned(), manifest })
}

/// What was removed between two looks is not in the backup.
fn unless_gone<T>(result: Result<T, Failure>, what: &str, code: ErrorCode) -> Result<Option<T>, Failure> {
    match result {
        Err(Failure::Refused { code: Some(told), .. }) if told == code.as_str() => {
            output::note(format!("{what} was removed meanwhile: it is not in the backup"));
            Ok(None)
        }
        other => other.map(Some),
    }
}

async fn take_module(
    client: &Client,
    store: &dyn Store,
    name: &str,
    module: &Module,
) -> Result<Option<ModuleItem>, Failure> {
    let answer = client.send(Call::get(format!("/v1/modules/{}/file", encode(&module.name)))).await;
    let what = format!("module {}", module.name);
    let Some(answer) = unless_gone(answer, &what, ErrorCode::ModuleNotFound)? else { return Ok(None) };
    let (digest, size) = (hex::encode(Sha256::digest(&answer.body)), answer.body.len() as u64);
    if digest != module.digest {
        let what = format!("{what} arrived with another digest than the cluster says");
        return Err(Failure::here(what, "run this again"));
    }
    let item = ModuleItem { name: module.name.clone(), digest, size };
    let path = format!("{name}/{}", item.path());
    // Two names of one file.
    if store.read(path.clone()).await?.is_none() {
        write_whole(store, path, answer.body).await?;
    }
    Ok(Some(item))
}

async fn take_group(
    client: &Client,
    store: &dyn Store,
    name: &str,
    group: Group,
) -> Result<Option<GroupItem>, Failure> {
    let mut item = GroupItem {
        name: group.name,
        module: group.module,
        params: group.params,
        replicas: group.replicas,
        listen: group.listen,
        listen_params: group.listen_params,
        index: 0,
        size: 0,
        digest: String::new(),
    };
    let mut file = store.write(format!("{name}/{}", item.path())).await?;
    let progress = Progress::new(&item.name);
    let saved = state_file::save(client, &item.name, &progress, &mut *file).await;
    let what = format!("group {}", item.name);
    let Some(saved) = unless_gone(saved, &what, ErrorCode::GroupNotFound)? else { return Ok(None) };
    file.finish().await?;
    (item.index, item.size, item.digest) = (saved.index, saved.size, saved.digest);
    Ok(Some(item))
}

/// Removes all but `keep` whole backups: the one that was made just now, and the newest of the others by their names. And what was
/// left unfinished long ago.
async fn prune(store: &dyn Store, keep: usize, made: &str) -> Result<(), Failure> {
    let all = all(store).await?;
    // Names are times of a clock that may have been wrong: one from the future must not push out what is known to be good.
    let whole = all.iter().filter(|(name, found)| matches!(found, Ok(Some(_))) && name != made);
    let whole: Vec<&String> = whole.map(|(name, _)| name).collect();
    let old = (whole.len() + 1).saturating_sub(keep);
    let before = now_ms().saturating_sub(u64::try_from(UNFINISHED_TIME_MAX.as_millis()).unwrap_or(u64::MAX));
    let before = name_of(before);
    let unfinished =
        all.iter().filter(|(name, found)| matches!(found, Ok(None)) && *name < before).map(|(name, _)| name);
    for name in whole.iter().copied().take(old).chain(unfinished) {
        store.remove(name.clone()).await?;
        output::note(format!("removed {}/{name}", store.name()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::super::store::Directory;
    use super::*;

    #[test]
    fn names_are_times_and_sort_like_them() {
        assert_eq!(name_of(0), "19700101T000000.000Z");
        assert_eq!(name_of(951_782_399_999), "20000228T235959.999Z");
        assert_eq!(name_of(951_782_400_000), "20000229T000000.000Z");
        assert_eq!(name_of(1_795_335_214_123), "20261122T081334.123Z");
        assert_eq!(name_of(4_107_542_400_000), "21000301T000000.000Z");
        assert!(is_name(&name_of(now_ms())));
        for other in ["", "lost+found", "20261122T081334Z", "20261122T081334.123ZZ", "2026-1122T081334.123Z"] {
            assert!(!is_name(other), "{other}");
        }
    }

    /// A clock was wrong once, and a backup of the year 2099 was kept as the newest: with `--keep 1` each new one was removed as
    /// soon as it was made, and success was told.
    #[tokio::test]
    async fn what_was_made_just_now_is_never_what_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory(folder.path().to_owned());
        let manifest = Manifest::new(String::new(), 0).encode().unwrap();
        let (old, made, future) = (name_of(1_000_000), name_of(now_ms()), "20991231T235959.999Z".to_owned());
        for name in [&old, &made, &future] {
            write_whole(&store, format!("{name}/{MANIFEST}"), manifest.clone().into()).await.unwrap();
        }
        prune(&store, 2, &made).await.unwrap();
        assert_eq!(store.folders().await.unwrap(), [made.clone(), future]);
        prune(&store, 1, &made).await.unwrap();
        assert_eq!(store.folders().await.unwrap(), [made]);
    }
}
