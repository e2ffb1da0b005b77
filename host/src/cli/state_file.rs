//! A group's state as a file: the client's part of `snapshot take|save` and `group restore`.
//!
//! What holds: a file has its name only after its digest was checked and it was synced, and its directory is synced before
//! success is told. A file is verified whole before a byte of it is sent.

use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use super::Call;
use super::Client;
use super::Failure;
use super::Output;
use super::Repeat;
use super::client::Source;
use super::client::chain;
use super::client::encode;
use super::client::file_source;
use super::output;
use super::progress::Progress;
use super::whole_file::Sink;
use crate::api::DIGEST;
use crate::api::INDEX;
use crate::api::schema::Group;
use crate::api::schema::ModuleList;
use crate::api::schema::Snapshot;
use crate::service::ErrorCode;
use crate::snapshot::Head;
use crate::snapshot::SnapshotReader;

/// A large state may be written to disk for so long before its first byte comes; a restored one be read by all its members.
const LONG: Duration = Duration::from_secs(1800);
/// The longest pause within a file.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A snapshot file's last bytes, the digest of all before.
const DIGEST_BYTES: usize = 32;

/// What `snapshot save` tells.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Saved {
    /// The group.
    pub(super) group: String,
    /// The index the file covers.
    pub(super) index: u64,
    /// Its size, bytes.
    pub(super) size: u64,
    /// SHA-256 over all but its last 32 bytes.
    pub(super) digest: String,
}

/// The group that a file is to become.
#[derive(Clone, Debug)]
pub(super) struct Restore {
    pub(super) name: String,
    pub(super) module: Option<String>,
    pub(super) replicas: Option<u64>,
    pub(super) listen: Vec<String>,
    pub(super) listen_params: serde_json::Value,
}

pub(super) async fn take(client: &Client, form: Output, group: &str) -> Result<(), Failure> {
    let call = Call::post(format!("/v1/groups/{}/snapshot", encode(group)), "", Repeat::Harmless).within(LONG);
    let snapshot: Snapshot = client.send(call).await?.json()?;
    match form {
        Output::Json => output::json(&snapshot),
        Output::Table => output::line(snapshot.index.to_string()),
    }
}

/// Passes a group's state on, piece by piece; what came when all of it came, and as it was sent.
pub(super) async fn save(
    client: &Client,
    group: &str,
    progress: &Progress,
    sink: &mut dyn Sink,
) -> Result<Saved, Failure> {
    let call = Call::get(format!("/v1/groups/{}/snapshot", encode(group))).within(LONG);
    let response = client.open(&call).await?;
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let number = |name: &str| header(name).and_then(|text| text.parse::<u64>().ok());
    let (Some(index), Some(size), Some(promised)) = (number(INDEX), number("content-length"), header(DIGEST)) else {
        return Err(Failure::here("the server's answer is no snapshot", "use the same version on both sides"));
    };
    progress.begin(size);
    let broke = |what: String| {
        Failure::here(
            format!("the snapshot of {group} {what}: nothing was saved"),
            "run this again, or ask another --server",
        )
    };
    let mut body = response.into_body();
    let mut check = Check::default();
    loop {
        let frame = match tokio::time::timeout(PAUSE_MAX, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(broke(format!("broke off: {}", chain(&error)))),
            Err(_) => return Err(broke(format!("broke off: no byte came for {} s", PAUSE_MAX.as_secs()))),
        };
        let Ok(piece) = frame.into_data() else { continue };
        progress.advance(piece.len() as u64);
        check.update(&piece);
        sink.write(piece).await?;
    }
    progress.finish();
    if check.length != size {
        return Err(broke(format!("ends after {} of {size} bytes", check.length)));
    }
    match check.finish() {
        Some(digest) if digest == promised => Ok(Saved { group: group.to_owned(), index, size, digest }),
        _ => Err(broke("arrived with another digest than it was sent with".to_owned())),
    }
}

/// Computes the digest of a snapshot file as it passes, and compares it with the one at its end.
#[derive(Default)]
pub(super) struct Check {
    digest: Sha256,
    /// The last bytes, which may be the digest.
    held: Vec<u8>,
    pub(super) length: u64,
}

impl Check {
    pub(super) fn update(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.held.extend_from_slice(piece);
        let sure = self.held.len().saturating_sub(DIGEST_BYTES);
        self.digest.update(self.held.get(..sure).unwrap_or_default());
        self.held.drain(..sure);
    }

    /// The digest, if the file ends with it.
    pub(super) fn finish(self) -> Option<String> {
        let computed = self.digest.finalize();
        (computed.as_slice() == self.held.as_slice()).then(|| hex::encode(computed))
    }
}

/// Reads a whole snapshot file; its head, length and digest when every checksum holds.
pub(super) fn verify(name: &str, source: impl Read, progress: &Progress) -> Result<(Head, String), Failure> {
    let damaged = |offset: u64, reason: &str| Failure::Refused {
        what: format!("{name} is no whole snapshot: at byte {offset}, {reason}"),
        code: Some("file_damaged".to_owned()),
        remedy: "nothing was made: take another copy of the file".to_owned(),
    };
    let source = Watched { source, progress };
    let (head, reader) = SnapshotReader::open(source).map_err(|wrong| damaged(wrong.offset, &wrong.reason))?;
    let digest = reader.verify().map_err(|wrong| damaged(wrong.offset, &wrong.reason))?;
    Ok((head, hex::encode(digest)))
}

struct Watched<'a, R> {
    source: R,
    progress: &'a Progress,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(out)?;
        self.progress.advance(count as u64);
        Ok(count)
    }
}

/// Makes a group of a file.
pub(super) async fn restore(client: &Client, path: &Path, wanted: &Restore) -> Result<Group, Failure> {
    let unreadable = |error: io::Error| {
        Failure::here(format!("cannot read {}: {error}", path.display()), "name a file of `statehouse snapshot save`")
    };
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let progress = Progress::new("verifying");
    progress.begin(size);
    let (head, _) = verify(&path.display().to_string(), io::BufReader::with_capacity(1 << 20, &file), &progress)?;
    progress.finish();
    check_name_is_free(client, &wanted.name).await?;
    check_module(client, wanted, &head).await?;
    send(client, file_source(Arc::new(file), size), size, wanted).await
}

/// Says before a large file is sent that there is a group of this name: a server that refuses the file while it still comes may
/// have closed the connection before its words are read.
async fn check_name_is_free(client: &Client, name: &str) -> Result<(), Failure> {
    match client.send(Call::get(format!("/v1/groups/{}", encode(name)))).await {
        Ok(_) => Err(Failure::Refused {
            what: format!("group {name} exists"),
            code: Some(ErrorCode::AlreadyExists.as_str().to_owned()),
            remedy: "restore under another name, or remove the group (`statehouse group rm`)".to_owned(),
        }),
        Err(Failure::Refused { code: Some(code), .. }) if code == ErrorCode::GroupNotFound.as_str() => Ok(()),
        Err(other) => Err(other),
    }
}

/// Says before a large file is sent that the module is not there.
async fn check_module(client: &Client, wanted: &Restore, head: &Head) -> Result<(), Failure> {
    let modules: ModuleList = client.send(Call::get("/v1/modules")).await?.json()?;
    let digest = hex::encode(head.module);
    if wanted.module.is_some() || modules.modules.iter().any(|module| module.digest == digest) {
        // Whether the named one is the right one, the server says.
        return Ok(());
    }
    let (name, made) = match head.made() {
        Ok(Some(made)) => (made.module.clone(), format!(" {}", made.module)),
        _ => ("NAME".to_owned(), String::new()),
    };
    Err(Failure::Refused {
        what: format!(
            "the file was written by the module{made} with the digest {digest}, which this cluster does not have"
        ),
        code: Some("module_not_found".to_owned()),
        remedy: format!("upload it with `statehouse module push FILE.wasm --name {name}`, then run this again"),
    })
}

/// Sends a verified file.
pub(super) async fn send(client: &Client, source: Source, size: u64, wanted: &Restore) -> Result<Group, Failure> {
    let progress = Progress::new(&wanted.name);
    progress.begin(size);
    let mut path = format!("/v1/groups/{}/restore?", encode(&wanted.name));
    let mut add = |key: &str, value: &str| path.push_str(&format!("{key}={}&", encode(value)));
    if let Some(module) = &wanted.module {
        add("module", module);
    }
    if let Some(replicas) = wanted.replicas {
        add("replicas", &replicas.to_string());
    }
    if !wanted.listen.is_empty() {
        add("listen", &wanted.listen.join(","));
    }
    if wanted.listen_params.as_object().is_some_and(|params| !params.is_empty()) {
        add("listen_params", &wanted.listen_params.to_string());
    }
    let call = Call::post_stream(path.trim_end_matches(['?', '&']), source, size, Repeat::Never)
        .header("content-type", "application/octet-stream")
        .within(LONG)
        .with_progress(progress.counter("sent; waiting until a majority holds it"));
    let answer = client.send(call).await;
    progress.finish();
    answer?.json()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_file_that_came_in_any_pieces_is_checked_by_its_last_bytes() {
        let content: Vec<u8> = (0..200u8).collect();
        let digest = Sha256::digest(&content);
        let whole = [content.as_slice(), &digest].concat();
        for piece in [1, 7, 31, 32, 33, 500] {
            let mut check = Check::default();
            whole.chunks(piece).for_each(|piece| check.update(piece));
            assert_eq!((check.length, check.finish()), (232, Some(hex::encode(digest))), "pieces of {piece}");
        }
        for (place, length) in [(5, 232), (231, 232), (0, 231), (0, 20)] {
            let mut changed = whole.clone();
            changed[place] ^= u8::from(length == 232);
            let mut check = Check::default();
            check.update(&changed[..length]);
            assert_eq!(check.finish(), None);
        }
    }
}
