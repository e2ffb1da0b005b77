//! The program under test, as its users call it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

/// The binary: the host's `main.rs`, built as this crate's own so that cargo keeps it fresh for every test.
pub fn path() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let folder = this.ancestors().nth(2).expect("a test runs in target/PROFILE/deps");
    let path = folder.join("statehouse-under-test");
    assert!(path.exists(), "{} is not there: run the tests with `cargo test`", path.display());
    path
}

/// Where the nodes of all tests keep compiled modules: most of what a short test does would be to compile
/// `znode-tree`. Of this very build of the program, whose compiler may be another than the last one's.
fn code_cache() -> &'static Path {
    static CODE_CACHE: OnceLock<PathBuf> = OnceLock::new();
    CODE_CACHE.get_or_init(|| {
        let built = path().metadata().and_then(|program| program.modified()).unwrap();
        let built = built.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos().to_string();
        let caches = path().with_file_name("code-of-tests");
        for other in std::fs::read_dir(&caches).into_iter().flatten().flatten() {
            if other.file_name() != *built {
                // Another process may be at it too.
                drop(std::fs::remove_dir_all(other.path()));
            }
        }
        caches.join(built)
    })
}

/// A command line of the program, without any setting from this process's environment.
pub fn command() -> Command {
    let mut command = Command::new(path());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STATEHOUSE_") {
            command.env_remove(name);
        }
    }
    command.env("STATEHOUSE_CODE_CACHE", code_cache());
    command
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// Checks that all went well; standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Checks a failure: its exit code, and that standard error says all of `words`.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {:?}", self.err);
        }
        assert!(!self.err.contains("panicked"), "{self:?}");
    }
}

/// Runs a command to its end; kills it and panics when that takes longer than a minute.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> Output {
    let scratch = tempfile::tempdir().unwrap();
    let (out, err) = (scratch.path().join("out"), scratch.path().join("err"));
    command.stdin(Stdio::piped()).stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // A program that does not read its input closes it.
    drop(child.stdin.take().unwrap().write_all(input));
    let status = wait(&mut child, Duration::from_secs(60));
    let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let (out, err) = (read(out), read(err));
    let Some(status) = status else {
        drop(child.kill());
        drop(child.wait());
        panic!("{command:?} does not end. It said:\n{out}\n{err}");
    };
    Output { code: status.code().unwrap_or(-1), out, err }
}

/// Waits until a process ends, for at most `patience`.
pub fn wait(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal to a process.
pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    // It may have ended just now.
    let _ = rustix::process::kill_process(pid, signal);
}
