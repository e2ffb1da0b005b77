//! The README and the tutorial do what they say: every command line in them is run, every file in them
//! written, every output in them compared, in an empty folder and one shell.
//!
//! What stands for what is in [`Reader::adapt`]; it is as little as ports and the program's place allow.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use statehouse_tests::cluster::free_ports;
use statehouse_tests::program;
use statehouse_tests::wait;

/// A fenced block: ```` ```LANGUAGE FILE ````.
#[derive(Debug)]
struct Block {
    line: usize,
    language: String,
    file: Option<String>,
    text: String,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in markdown.lines().enumerate() {
        match (line.strip_prefix("```"), open) {
            (Some(info), false) => {
                let mut words = info.split_whitespace().map(str::to_owned);
                let language = words.next().expect("a fence says its language");
                blocks.push(Block { line: number + 1, language, file: words.next(), text: String::new() });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => {
                let block = blocks.last_mut().unwrap();
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, false) => {}
        }
    }
    assert!(!open, "a fence is not closed");
    blocks
}

/// A process that goes on beside the shell: the cluster, or a listener.
struct Beside {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Beside {
    fn said(&self) -> String {
        format!("{}{}", fs::read_to_string(&self.out).unwrap(), fs::read_to_string(&self.err).unwrap())
    }

    fn interrupt(mut self) {
        program::signal(&self.child, Signal::INT);
        assert!(
            program::wait(&mut self.child, Duration::from_secs(40)).is_some(),
            "Ctrl-C did not end it:\n{}",
            self.said()
        );
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Not killed outright: the cluster's nodes are its children, and end with it in order.
        program::signal(&self.child, Signal::TERM);
        if program::wait(&mut self.child, Duration::from_secs(30)).is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Who reads a document and types what it says.
struct Reader {
    folder: tempfile::TempDir,
    http_base: u16,
    cluster: Option<Beside>,
    listener: Option<Beside>,
    /// Nodes that were started one by one.
    nodes: Vec<Beside>,
    shell: Child,
    input: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// What the last block printed.
    printed: String,
    count: usize,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

impl Reader {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join(".bin");
        fs::create_dir(&bin).unwrap();
        symlink(program::path(), bin.join("statehouse")).unwrap();
        fs::create_dir(folder.path().join("empty")).unwrap();
        let http_base = free_ports();
        let mut shell = Command::new("bash");
        shell.arg("--norc").current_dir(folder.path().join("empty"));
        Self::environment(&mut shell, &bin, http_base);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let input = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().unwrap());
        Self {
            folder,
            http_base,
            cluster: None,
            listener: None,
            nodes: Vec::new(),
            shell,
            input,
            answers,
            printed: String::new(),
            count: 0,
        }
    }

    /// Other ports than 7070 and 7170, by the same settings a person would use; and no network, since all the
    /// crates are here that the workspace was built of.
    fn environment(command: &mut Command, bin: &Path, http_base: u16) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("STATEHOUSE_")
                || (name.starts_with("CARGO") && name != "CARGO_HOME")
                || name.starts_with("RUSTFLAGS")
            {
                command.env_remove(&*name);
            }
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).env("REPO", repository()).env("CARGO_NET_OFFLINE", "true");
        command.env("STATEHOUSE_HTTP_BASE", http_base.to_string());
        command.env("STATEHOUSE_PEER_BASE", (http_base + 10).to_string());
        command.env("STATEHOUSE_SERVER", format!("http://127.0.0.1:{http_base}"));
    }

    fn here(&self) -> PathBuf {
        self.folder.path().join("empty")
    }

    fn bin(&self) -> PathBuf {
        self.folder.path().join(".bin")
    }

    /// The program under test for the one the document builds, this test's ports for the default ones.
    fn adapt(&self, line: &str) -> String {
        let mut line = line.replace("cargo run --release -- ", "statehouse ");
        line = line.replace("$REPO/target/release", self.bin().to_str().unwrap());
        for node in 0..9 {
            for (usual, here) in [(7070, self.http_base), (7170, self.http_base + 10)] {
                line = line.replace(&format!("127.0.0.1:{}", usual + node), &format!("127.0.0.1:{}", here + node));
            }
        }
        // This very test is one of them.
        if line == "cargo test --workspace" { "true".to_owned() } else { line }
    }

    fn beside(&mut self, line: &str) -> Beside {
        self.count += 1;
        let (out, err) = (
            self.folder.path().join(format!("out-{}", self.count)),
            self.folder.path().join(format!("err-{}", self.count)),
        );
        let mut command = Command::new("bash");
        // The shell becomes the program, so that signals reach it.
        command.args(["-c", &format!("exec {line}")]).current_dir(self.here());
        Self::environment(&mut command, &self.bin(), self.http_base);
        command.stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        Beside { child: command.spawn().unwrap(), out, err }
    }

    fn type_in(&mut self, block: &Block) {
        let mut script = String::new();
        for line in block.text.lines() {
            let line = self.adapt(line);
            if line.starts_with("statehouse local") {
                if let Some(before) = self.cluster.take() {
                    before.interrupt();
                }
                let mut cluster = self.beside(&line);
                wait::until("the cluster is ready", || {
                    let said = cluster.said();
                    assert!(cluster.child.try_wait().unwrap().is_none(), "line {}: {line} ended:\n{said}", block.line);
                    if said.contains("nodes are ready") { Ok(()) } else { Err(said) }
                });
                self.cluster = Some(cluster);
            } else if line.starts_with("statehouse serve") {
                let mut node = self.beside(&line);
                wait::until("the node serves", || {
                    let said = node.said();
                    assert!(node.child.try_wait().unwrap().is_none(), "line {}: {line} ended:\n{said}", block.line);
                    if said.contains("serving") { Ok(()) } else { Err(said) }
                });
                self.nodes.push(node);
            } else if line.starts_with("statehouse watch") {
                self.listener = Some(self.beside(&line));
            } else {
                script.push_str(&line);
                script.push('\n');
            }
        }
        self.run(block.line, &script);
    }

    fn run(&mut self, line: usize, script: &str) {
        self.count += 1;
        let place = |what: &str| self.folder.path().join(format!("{what}-{}", self.count));
        let (file, out, err) = (place("script"), place("out"), place("err"));
        fs::write(&file, format!("set -e\n{script}\nset +e\n")).unwrap();
        let typed = format!(". {} >{} 2>{}; echo \"ran $?\"\n", file.display(), out.display(), err.display());
        self.input.as_mut().unwrap().write_all(typed.as_bytes()).unwrap();
        let mut answer = String::new();
        // A command that fails ends the shell.
        self.answers.read_line(&mut answer).unwrap();
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        self.printed = read(&out);
        assert_eq!(
            answer,
            "ran 0\n",
            "line {line}: a command failed:\n{script}\nIt printed:\n{}\n{}",
            self.printed,
            read(&err)
        );
    }

    fn compare(&self, block: &Block) {
        let all_there = |printed: &str| {
            let mut rest = printed;
            block.text.lines().all(|line| match rest.split_once(line.trim_start_matches('…')) {
                Some((_, after)) => {
                    rest = after;
                    true
                }
                None => false,
            })
        };
        if let Some(listener) = &self.listener {
            return wait::until(&format!("line {}: the output {:?}", block.line, block.text), || {
                let said = listener.said();
                if all_there(&said) { Ok(()) } else { Err(said) }
            });
        }
        assert!(all_there(&self.printed), "line {}: expected\n{}\nfound\n{}", block.line, block.text, self.printed);
    }

    fn follow(&mut self, document: &str) {
        let text = fs::read_to_string(repository().join(document)).unwrap();
        let blocks = blocks(&text);
        assert!(blocks.iter().filter(|block| block.language == "sh").count() >= 5, "{document} has hardly a command");
        for block in &blocks {
            match (block.language.as_str(), &block.file) {
                ("sh", None) => self.type_in(block),
                ("text", None) => {
                    self.compare(block);
                    self.listener = None;
                }
                (_, Some(file)) => {
                    let path = self.here().join(file);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, &block.text).unwrap();
                }
                (language, None) => panic!("{document}:{}: what is to be done with a block of {language}?", block.line),
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Without input the shell ends.
        drop(self.input.take());
        if program::wait(&mut self.shell, Duration::from_secs(5)).is_none() {
            drop(self.shell.kill());
            drop(self.shell.wait());
        }
    }
}

#[test]
fn the_readme_does_what_it_says() {
    Reader::new().follow("README.md");
}

#[test]
fn the_tutorial_does_what_it_says() {
    Reader::new().follow("docs/tutorial.md");
}

#[test]
fn the_page_on_snapshots_and_disk_space_does_what_it_says() {
    Reader::new().follow("docs/operations/snapshots.md");
}

#[test]
fn the_page_on_status_does_what_it_says() {
    Reader::new().follow("docs/operations/status.md");
}

#[test]
fn the_page_on_disaster_does_what_it_says() {
    Reader::new().follow("docs/operations/disaster.md");
}

#[test]
fn the_page_on_membership_does_what_it_says() {
    Reader::new().follow("docs/operations/membership.md");
}

#[test]
fn the_page_on_backups_does_what_it_says() {
    Reader::new().follow("docs/operations/backup.md");
}

#[test]
fn the_page_on_new_versions_of_a_module_does_what_it_says() {
    Reader::new().follow("docs/operations/upgrades.md");
}
