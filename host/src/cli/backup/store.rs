//! Where backups are kept: a directory, or a bucket of S3-compatible storage. Each backup is a folder of files there.
//!
//! What holds: a file is there whole or not at all, and durable once `finish` returned.

use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::manifest::MANIFEST;
use crate::cli::Failure;
use crate::cli::client::Source;
use crate::cli::client::file_source;
use crate::cli::whole_file::Sink;
use crate::cli::whole_file::WholeFile;
use crate::cli::whole_file::directory_of;
use crate::cli::whole_file::sync_directory;

/// Something that a store does.
pub(super) type Doing<'a, T> = BoxFuture<'a, Result<T, Failure>>;

/// A place for backups. Paths are relative to it, with `/` between their parts.
pub(super) trait Store: Send + Sync {
    /// What it is called in messages.
    fn name(&self) -> String;
    /// The folders in it, sorted.
    fn folders(&self) -> Doing<'_, Vec<String>>;
    /// A whole small file; `None` when it is not there.
    fn read(&self, path: String) -> Doing<'_, Option<Bytes>>;
    /// A file's size, and a way to read it.
    fn open(&self, path: String) -> Doing<'_, (u64, Source)>;
    /// Begins a new file.
    fn write(&self, path: String) -> Doing<'_, Box<dyn NewFile>>;
    /// Removes a folder, its manifest first, so that what is left of it is no backup.
    fn remove(&self, folder: String) -> Doing<'_, ()>;
}

/// A file that is being written. Dropped before its end, it is not there, or is removed with its folder.
pub(super) trait NewFile: Sink {
    /// The file is whole.
    fn finish(self: Box<Self>) -> Doing<'static, ()>;
}

/// A directory.
pub(super) struct Directory(pub(super) PathBuf);

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::here(format!("cannot {what} {}: {error}", path.display()), "see that it is there and may be used")
}

/// Done at once: files are read and written where the caller waits.
fn now<T: Send + 'static>(result: Result<T, Failure>) -> Doing<'static, T> {
    Box::pin(std::future::ready(result))
}

impl Directory {
    fn create_folder(&self, folder: &Path) -> Result<(), Failure> {
        if folder.is_dir() {
            return Ok(());
        }
        let parent = directory_of(folder);
        if parent != folder {
            self.create_folder(parent)?;
        }
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("make", folder, &error)),
            _ => sync_directory(parent),
        }
    }

    fn list(&self) -> Result<Vec<String>, Failure> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &self.0, &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &self.0, &error))?;
            if let (true, Ok(name)) = (entry.path().is_dir(), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove_folder(&self, folder: &str) -> Result<(), Failure> {
        let folder = self.0.join(folder);
        match fs::remove_file(folder.join(MANIFEST)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &folder.join(MANIFEST), &error));
            }
            Ok(()) => sync_directory(&folder)?,
            Err(_) => {}
        }
        fs::remove_dir_all(&folder).map_err(|error| failed("remove", &folder, &error))
    }
}

impl Store for Directory {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn folders(&self) -> Doing<'_, Vec<String>> {
        now(self.list())
    }

    fn read(&self, path: String) -> Doing<'_, Option<Bytes>> {
        let path = self.0.join(path);
        now(match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, &error)),
        })
    }

    fn open(&self, path: String) -> Doing<'_, (u64, Source)> {
        let path = self.0.join(path);
        let opened = File::open(&path).and_then(|file| {
            let size = file.metadata()?.len();
            Ok((size, file_source(Arc::new(file), size)))
        });
        now(opened.map_err(|error| failed("read", &path, &error)))
    }

    fn write(&self, path: String) -> Doing<'_, Box<dyn NewFile>> {
        let path = self.0.join(path);
        let file = self.create_folder(directory_of(&path)).and_then(|()| WholeFile::create(&path, false));
        now(file.map(|file| Box::new(file) as Box<dyn NewFile>))
    }

    fn remove(&self, folder: String) -> Doing<'_, ()> {
        now(self.remove_folder(&folder))
    }
}

impl NewFile for WholeFile {
    fn finish(self: Box<Self>) -> Doing<'static, ()> {
        now(WholeFile::finish(*self))
    }
}

/// Writes a whole small file.
pub(super) async fn write_whole(store: &dyn Store, path: String, bytes: Bytes) -> Result<(), Failure> {
    let mut file = store.write(path).await?;
    file.write(bytes).await?;
    file.finish().await
}
