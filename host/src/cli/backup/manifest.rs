//! What a backup says of itself. It is written last: a backup without a manifest is not one.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;

use crate::api::request::check_name;
use crate::cli::Failure;

/// The manifest's name in a backup.
pub(super) const MANIFEST: &str = "manifest.json";
/// The version of backups that this code writes and reads.
const FORMAT: u32 = 1;

/// See `docs/formats.md`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Its version.
    pub(super) format: u32,
    /// The program's version.
    pub(super) program: String,
    /// When it was begun, Unix milliseconds.
    pub(super) created_ms: u64,
    /// The cluster's id, hexadecimal.
    pub(super) cluster: String,
    /// The modules, by name.
    pub(super) modules: Vec<ModuleItem>,
    /// The groups, by name.
    pub(super) groups: Vec<GroupItem>,
}

/// A module of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ModuleItem {
    pub(super) name: String,
    /// SHA-256 of the file, hexadecimal.
    pub(super) digest: String,
    pub(super) size: u64,
}

impl ModuleItem {
    /// Its file in the backup.
    pub(super) fn path(&self) -> String {
        format!("modules/{}.wasm", self.digest)
    }
}

/// A group of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupItem {
    pub(super) name: String,
    pub(super) module: String,
    pub(super) params: serde_json::Value,
    pub(super) replicas: Option<u64>,
    pub(super) listen: Vec<String>,
    pub(super) listen_params: serde_json::Value,
    /// The index that the file covers.
    pub(super) index: u64,
    /// The file's size, bytes.
    pub(super) size: u64,
    /// SHA-256 over all but the file's last 32 bytes, hexadecimal.
    pub(super) digest: String,
}

impl GroupItem {
    /// Its file in the backup.
    pub(super) fn path(&self) -> String {
        format!("groups/{}.snap", self.name)
    }
}

/// The file: the manifest and its own digest, so that a flipped bit in it is found as well.
#[derive(Serialize, Deserialize)]
struct Sealed {
    manifest: serde_json::Value,
    /// SHA-256 over the manifest as compact JSON with sorted keys, hexadecimal.
    sha256: String,
}

fn seal_of(manifest: &serde_json::Value) -> Result<String, serde_json::Error> {
    Ok(hex::encode(Sha256::digest(serde_json::to_vec(manifest)?)))
}

impl Manifest {
    /// A manifest without modules and groups yet.
    pub(super) fn new(cluster: String, created_ms: u64) -> Self {
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, program, created_ms, cluster, modules: Vec::new(), groups: Vec::new() }
    }

    /// Bytes of all its files.
    pub(super) fn bytes(&self) -> u64 {
        let modules = self.modules.iter().map(|module| module.size);
        modules.chain(self.groups.iter().map(|group| group.size)).sum()
    }

    /// The manifest's file.
    pub(super) fn encode(&self) -> Result<Vec<u8>, Failure> {
        let sealed = || {
            let manifest = serde_json::to_value(self)?;
            let sha256 = seal_of(&manifest)?;
            serde_json::to_vec_pretty(&Sealed { manifest, sha256 })
        };
        sealed().map_err(|error| Failure::here(format!("the manifest cannot be written: {error}"), "report this"))
    }

    /// Reads a manifest's file, `name` in messages.
    pub(super) fn decode(name: &str, bytes: &[u8]) -> Result<Self, Failure> {
        let damaged = |why: String| Failure::Refused {
            what: format!("{name} is damaged: {why}"),
            code: Some("file_damaged".to_owned()),
            remedy: "use another backup (`statehouse backup ls`)".to_owned(),
        };
        let sealed: Sealed = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if seal_of(&sealed.manifest).map_err(|error| damaged(error.to_string()))? != sealed.sha256 {
            return Err(damaged("its digest does not match".to_owned()));
        }
        match sealed.manifest.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            other => {
                let what = format!("{name} has format {other:?}, this program knows {FORMAT}");
                return Err(Failure::here(what, "use a newer statehouse"));
            }
        }
        let manifest: Self = serde_json::from_value(sealed.manifest).map_err(|error| damaged(error.to_string()))?;
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    /// Names become those of files here, and a manifest may come from anywhere: none leads out of the backup, or to another's
    /// file.
    fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for group in &self.groups {
            let fits = check_name("group", &group.name).is_ok() && names.insert(&group.name);
            fits.then_some(()).ok_or_else(|| format!("it has a group {:?}", group.name))?;
        }
        let mut names = BTreeSet::new();
        for module in &self.modules {
            let digest = hex::decode_to_slice(&module.digest, &mut [0; 32]).is_ok();
            let fits = digest && check_name("module", &module.name).is_ok() && names.insert(&module.name);
            fits.then_some(()).ok_or_else(|| format!("it has a module {:?} ({:?})", module.name, module.digest))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn manifest() -> Manifest {
        let mut manifest = Manifest::new("ab".repeat(16), 1_700_000_000_000);
        manifest.modules.push(ModuleItem { name: "kv".into(), digest: "cd".repeat(32), size: 5 });
        manifest.groups.push(GroupItem {
            name: "store".into(),
            module: "kv".into(),
            params: serde_json::json!({ "b": 1.5, "a": [] }),
            replicas: Some(3),
            listen: vec!["127.0.0.1:6379".into()],
            listen_params: serde_json::json!({}),
            index: 7,
            size: 9,
            digest: "ef".repeat(32),
        });
        manifest
    }

    /// A manifest's digest is no signature: whoever can write to where backups are kept can make one. Its names were made paths
    /// of, and a file from anywhere on the operator's machine was sent to the cluster as a module.
    #[test]
    fn no_name_in_a_manifest_leads_out_of_the_backup() {
        let decode = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = manifest();
            change(&mut manifest);
            Manifest::decode("m", &manifest.encode().unwrap()).map_err(|failure| failure.to_string())
        };
        decode(&|_| {}).unwrap();
        for name in ["", "..", "../../x", "/etc/x", "a/b", "a\\b", "A", "a\n", &"a".repeat(65)] {
            assert!(
                decode(&|manifest| manifest.groups[0].name = name.into()).unwrap_err().contains("a group"),
                "{name:?}"
            );
            assert!(decode(&|manifest| manifest.modules[0].name = name.into()).is_err(), "{name:?}");
            assert!(decode(&|manifest| manifest.modules[0].digest = name.into()).is_err(), "{name:?}");
        }
        assert!(decode(&|manifest| manifest.groups.push(manifest.groups[0].clone())).is_err());
        assert!(decode(&|manifest| manifest.modules.push(manifest.modules[0].clone())).is_err());
    }

    #[test]
    fn a_flipped_bit_in_a_manifest_is_found_wherever_it_matters() {
        let manifest = manifest();
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode("m", &bytes).unwrap(), manifest);
        assert_eq!(manifest.bytes(), 14);
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[place] ^= 1 << bit;
                // What is read in spite of it is what was written: a space for a line end.
                if let Ok(read) = Manifest::decode("m", &changed) {
                    assert_eq!(read, manifest, "byte {place}");
                }
            }
        }
    }
}
