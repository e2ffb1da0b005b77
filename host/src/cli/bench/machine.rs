//! What this machine can do at all: the measure that results are held against.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use crate::cli::Failure;

const WRITE_BYTES: usize = 4096;
const WRITES: usize = 150;
const ROUND_TRIPS: usize = 1000;

/// What was measured so far. It is measured before and after the load: a disk shared with others does not
/// stay as it was.
#[derive(Debug, Default)]
pub(super) struct Machine {
    writes: Vec<Duration>,
    round_trips: Vec<Duration>,
}

impl Machine {
    /// Measures once more; the file for the writes comes and goes in `dir`.
    pub(super) async fn measure(&mut self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(format!(".statehouse-bench-{}", std::process::id()));
        let writes = measure_writes(&path);
        // The file may not have come into being.
        let _ = fs::remove_file(&path);
        self.writes.extend(writes.map_err(|error| {
            Failure::here(
                format!("cannot measure a synced write with {}: {error}", path.display()),
                "give a --bench-dir that can be written",
            )
        })?);
        self.round_trips.extend(measure_round_trips().await.map_err(|error| {
            Failure::here(
                format!("cannot measure a loopback round trip: {error}"),
                "check that loopback connections are allowed",
            )
        })?);
        Ok(())
    }

    /// The median of a 4 KiB write and its fdatasync, into a file whose blocks are already there.
    pub(super) fn synced_write(&self) -> Duration {
        median(&self.writes)
    }

    /// The median of one byte there and back over loopback TCP, between two tasks of one thread.
    pub(super) fn round_trip(&self) -> Duration {
        median(&self.round_trips)
    }
}

fn measure_writes(path: &Path) -> io::Result<Vec<Duration>> {
    let file: File = OpenOptions::new().create_new(true).write(true).open(path)?;
    let block = [0x5a; WRITE_BYTES];
    file.write_all_at(&vec![0; WRITE_BYTES * WRITES], 0)?;
    file.sync_all()?;
    let mut took = Vec::with_capacity(WRITES);
    for number in 0..WRITES {
        let start = Instant::now();
        file.write_all_at(&block, (number * WRITE_BYTES) as u64)?;
        file.sync_data()?;
        took.push(start.elapsed());
    }
    Ok(took)
}

async fn measure_round_trips() -> io::Result<Vec<Duration>> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read(&mut byte).await? > 0 {
            stream.write_all(&byte).await?;
        }
        io::Result::Ok(())
    });
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut took = Vec::with_capacity(ROUND_TRIPS);
    let mut byte = [0];
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        stream.write_all(&byte).await?;
        stream.read_exact(&mut byte).await?;
        took.push(start.elapsed());
    }
    drop(stream);
    // Its end is the end of the connection.
    let _ = echo.await;
    Ok(took)
}

fn median(values: &[Duration]) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
